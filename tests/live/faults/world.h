/* SPDX-License-Identifier: MIT */
/*
 * What surrounds the agent in tool_faults: a daemon on its socket (peer.c), and guest memory whose
 * every byte is known, with a thread that reads and writes it all the time (guest.c).
 */
#ifndef BALLAST_TESTS_FAULTS_WORLD_H
#define BALLAST_TESTS_FAULTS_WORLD_H

#include "hypervisor-hooks/hooks.h"
#include "hypervisor-hooks/wire.h"

#define PATIENCE_MS 5000 /* what takes longer hangs */

/* --- content -----------------------------------------------------------------------------------
 */

/* Content is named by a number: 0 is zeros; those from PACKABLE on can be compressed. The store
 * holds content @id at page @id. */
#define NR_CONTENTS 128
#define PACKABLE    112
extern u8 contents[NR_CONTENTS][PAGE_BYTES];

/* --- peer: the daemon's side -------------------------------------------------------------------
 */

int peer_start(const char *socket_path);
void peer_store_grow(void); /* by one page, of zeros */
u64 peer_store_bytes(void);
/* Offers this descriptor as the store from now on; -1: the right one. */
void peer_offer(int fd);
/* Waits until the agent has told of the region on the connection that is there now. */
bool peer_knows(u64 hva);
/* Waits until the region is not known, or the connection is another. */
bool peer_forgets(u64 hva);
/* Asks, and waits for the answer: 0, -ECONNRESET (the connection broke first), -ETIMEDOUT. One
 * status a page of the runs, in their order. */
int peer_merge(const struct wire_run *runs, u32 nr, s32 *status);
/* The same for pages that shall leave the guest. */
int peer_page_out(const struct wire_run *runs, u32 nr, s32 *status);
/* The swap file is there, and empty: nothing of an earlier case is taken for what was written. */
void peer_swap_clear(void);
/* The agent gets it, if it has none, and shall write so much to it; not answered. */
void peer_swap_out(u64 bytes);
int peer_unmerge(u64 hva, u64 bytes);

/* --- guest -------------------------------------------------------------------------------------
 */

#define GUEST_BYTES (CHUNK_BYTES + KIB(64)) /* a whole chunk, so that it can be emptied at once */
#define GUEST_PAGES (GUEST_BYTES >> PAGE_SHIFT)

enum page_use {
	PAGE_AWAY,  /* the guest does not touch it (given to its balloon, or never used yet) */
	PAGE_STILL, /* it is read */
	PAGE_HOT,   /* its first word is counted up; read otherwise */
};

int guest_start(void); /* the thread; memory comes by guest_new() */
/* New memory, all of it PAGE_AWAY. Not a region yet. */
int guest_new(void);
void guest_delete(void);
u8 *guest_page(u32 page);
u64 guest_hva(u32 page);
/* The guest writes the content into the page, and uses it so from now on. */
void guest_write(u32 page, u32 content, enum page_use use);
/* Uses it so from now on, whatever the guest last wrote being in it. */
void guest_use(u32 page, u32 nr, enum page_use use);
/* It holds that content now, by the VMM's doing (discards). */
void guest_expect(u32 page, u32 content);
/* Which content PAGE_STILL pages have. */
u32 guest_content(u32 page);
enum page_use guest_uses(u32 page);
/* Waits until every page was looked at since the call. False: an access hangs. */
bool guest_lives(void);
/* What was wrong so far, in words; NULL. */
const char *guest_complaint(void);
u64 guest_accesses(void);
/* Does the kernel show the page as one of a file (that is, as merged)? */
bool guest_page_is_file(u32 page);
/* Would PAGEMAP_SCAN say that it was written? */
bool guest_page_is_watched(u32 page);

#endif
