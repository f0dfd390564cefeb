/* SPDX-License-Identifier: MIT */
/*
 * Guest page numbers: every page of every region of every VM has a number of 31 bits (8 TiB in
 * all), so that an index entry names a page in four bytes. Regions get whole 2 MiB chunks of the
 * number space; a table tells whose a chunk is.
 *
 * Cost: 8 bytes for 512 pages.
 */
#ifndef BALLAST_KSMD_GPN_H
#define BALLAST_KSMD_GPN_H

#include "common/types.h"

#define GPN_NONE UINT32_MAX
#define GPN_MAX	 ((u32)1 << 31)

struct gpn_space {
	void **owner; /* of each chunk; NULL: free */
	u32 nr_chunks;
};

/* Numbers for @nr_pages consecutive pages: the first one, a multiple of CHUNK_PAGES; GPN_NONE when
 * there is no room. */
u32 gpn_alloc(struct gpn_space *g, u64 nr_pages, void *owner);
void gpn_release(struct gpn_space *g, u32 first, u64 nr_pages);
void gpn_space_free(struct gpn_space *g);

static inline void *gpn_owner(const struct gpn_space *g, u32 gpn)
{
	return g->owner[gpn / CHUNK_PAGES];
}

#endif
