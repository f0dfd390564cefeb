/* SPDX-License-Identifier: MIT */
/*
 * The store: one memfd for a sharing domain, whose pages are what merged guest pages map.
 *
 * Two counts a store page:
 *   refs    guest pages that show its content (or are about to: a reference is taken before a merge
 *           is asked for). At 0 the content is dropped: the hole is punched, the memory returns to
 *           the host.
 *   covers  guest pages inside a mapping of it, broken or not. A broken page shows its own copy,
 *           but the mapping under it still names this offset. An offset is used again only when
 *           both are 0 (invariant 4): until then whatever might look at it finds a hole, which
 *           reads as zeros, never another page.
 *
 * The daemon writes pages with pwrite(): it keeps no writable mapping, so no stray pointer of its
 * own can change a published page (invariant 3). VMMs get a read-only descriptor; the file's mode
 * (0600) keeps them from reopening it.
 *
 * Cost: 10 bytes and a bit a store page, allocated as pages come into use.
 */
#ifndef BALLAST_KSMD_STORE_H
#define BALLAST_KSMD_STORE_H

#include "common/types.h"

#define SPN_NONE UINT32_MAX

struct store;

/* @max_bytes: what it may grow to. */
int store_new(const char *domain, u64 max_bytes, struct store **ret);
/*
 * Takes over the store of a daemon that died, @fd open for reading and writing (owned by the store
 * on success). Nothing of it is freed or used again before store_recovered().
 */
int store_adopt(int fd, u64 max_bytes, struct store **ret);
/* Offsets below @end are named by mappings that are still to be accounted for: none is given out
 * before then. */
void store_reserve(struct store *s, u64 end);
void store_free(struct store *s); /* closes the file; the memory lives as long as guests map it */

int store_fd_readonly(const struct store *s); /* owned by the store */
u64 store_file_bytes(const struct store *s);  /* grows */
void store_identity(const struct store *s, u64 *ret_dev, u64 *ret_ino);

/* @nr consecutive free pages; SPN_NONE if there are none. They have no references yet: give them
 * some, or store_release(). */
u32 store_alloc(struct store *s, u32 nr);
void store_release(struct store *s, u32 spn, u32 nr);

/* Where page content goes: safe to call from a reader thread, on pages just allocated. */
int store_write(const struct store *s, u32 spn, const void *pages, u32 nr);
int store_read(const struct store *s, u32 spn, void *pages, u32 nr);

void store_set_hash(struct store *s, u32 spn, u64 hash);
u64 store_hash(const struct store *s, u32 spn); /* store_hash_kept() of it; 0: no content */
static inline u64 store_hash_kept(u64 hash)
{
	return hash & ~(u64)UINT16_MAX;
}
bool store_has_content(const struct store *s, u32 spn);
u64 store_max_pages(const struct store *s);
u32 store_refs(const struct store *s, u32 spn);
u32 store_covers(const struct store *s, u32 spn);

void store_ref(struct store *s, u32 spn);
/* True when that was the last one: the content is gone. */
bool store_unref(struct store *s, u32 spn);
void store_cover(struct store *s, u32 spn);
void store_uncover(struct store *s, u32 spn);

/* Punches what store_unref() left pending. Called at the end of each slice of work. */
void store_flush(struct store *s);
/* Takes back memory that reading its holes brought into the file. Cheap when there is none. */
void store_trim(struct store *s);

/* After store_adopt(): calls @fn for each page that has content. */
int store_walk(struct store *s, int (*fn)(struct store *s, u32 spn, void *arg), void *arg);
/* All mappings are accounted for: drops what nobody refers to, calling @dropped for each. */
void store_recovered(struct store *s, void (*dropped)(struct store *s, u32 spn, void *arg),
		     void *arg);
bool store_in_recovery(const struct store *s);

u64 store_pages(const struct store *s); /* with content */
u64 store_total_refs(const struct store *s);
u64 store_meta_bytes(const struct store *s);

#endif
