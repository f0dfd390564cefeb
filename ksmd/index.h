/* SPDX-License-Identifier: MIT */
/*
 * The content index: 32-bit tag -> 32-bit value, many values for one tag allowed.
 *
 * Algorithm. 128 shards by the tag's high bits, so that growing is never long. A shard is one array
 * of 8-byte slots in tag order with gaps: a slot's home is the rest of the tag scaled to the number
 * of homes, and an entry stands at its home or as close behind it as those before it allow. So a
 * search ends at the first larger tag. Since the home follows from the stored tag alone, a shard
 * grows (by a sixteenth at 7/8; small ones by up to a quarter at 15/16) and shrinks (at 7/16) where
 * it is, in linear walks, without the full hashes; large ones by mremap(), so that there never are
 * two of it and the memory of what was deleted returns to the host. Instead of wrapping around,
 * entries spill behind the last home. There are no tombstones.
 *
 * Why only 32 bits of the hash: a lookup may hit a page of other content, once in 2^32 / nr_entries
 * (1.6% at 64 Mi entries). The bytes are compared before anything is done (invariant 2), so that
 * costs a read, never a wrong merge; it saves 4 bytes for each page of guest memory.
 *
 * Cost: 8 bytes at 82 to 87.5% full (`make bench-index` measures what is resident), more only below
 * some thousand entries; 6 KiB when empty.
 *
 * Not thread-safe. Values must not be INDEX_NONE.
 */
#ifndef BALLAST_KSMD_INDEX_H
#define BALLAST_KSMD_INDEX_H

#include "common/types.h"

#define INDEX_NONE UINT32_MAX

struct index;
int index_new(struct index **ret);
void index_free(struct index *x);

/* -ENOMEM: not added. Adding the same (tag, value) twice is the caller's error. */
int index_add(struct index *x, u32 tag, u32 value);

/* False if it was not there. */
bool index_del(struct index *x, u32 tag, u32 value);

/* The first value of @tag for which @match is true (@match NULL: the first), or INDEX_NONE. */
u32 index_find(const struct index *x, u32 tag, bool (*match)(u32 value, void *arg), void *arg);

/* The caller will ask for @tag in a moment. */
void index_prefetch(const struct index *x, u32 tag);

u64 index_entries(const struct index *x);
u64 index_bytes(const struct index *x);

#endif
