/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include "ksmd/gpn.h"

u32 gpn_alloc(struct gpn_space *g, u64 nr_pages, void *owner)
{
	u64 want = DIV_ROUND_UP(nr_pages, CHUNK_PAGES), run = 0, first;
	void **grown;

	if (want > GPN_MAX / CHUNK_PAGES)
		return GPN_NONE;
	for (u64 c = 0; c < g->nr_chunks && run < want; c++)
		run = g->owner[c] ? 0 : run + 1;
	if (run == want) {
		/* First fit: the loop stopped right behind the gap. */
		u64 c = 0;

		for (run = 0; run < want; c++)
			run = g->owner[c] ? 0 : run + 1;
		first = c - want;
	} else {
		/* @run free chunks at the end, and as many new ones as are missing. */
		first = g->nr_chunks - run;
		if (first + want > GPN_MAX / CHUNK_PAGES)
			return GPN_NONE;
		grown = realloc(g->owner, (first + want) * sizeof(*grown));
		if (!grown)
			return GPN_NONE;
		g->owner = grown;
		g->nr_chunks = (u32)(first + want);
	}
	for (u64 c = first; c < first + want; c++)
		g->owner[c] = owner;
	return (u32)(first * CHUNK_PAGES);
}

void gpn_release(struct gpn_space *g, u32 first, u64 nr_pages)
{
	memset(g->owner + first / CHUNK_PAGES, 0,
	       DIV_ROUND_UP(nr_pages, CHUNK_PAGES) * sizeof(void *));
}

void gpn_space_free(struct gpn_space *g)
{
	free(g->owner);
	*g = (struct gpn_space){ 0 };
}
