/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include "ksmd/planner.h"
#include "ksmd/store.h"

/* A run of so many pages is good as it is: it would not be worth its copy. */
#define LONG_RUN 32
/* A stretch is short runs, in a row: so many at least. */
#define STRETCH_RUNS 4
/* Pages that may be mapped anew to free a mapping. A page takes an agent about 5 us, once; a
 * mapping takes some 250 bytes of the kernel's for good, and a place among max_map_count. */
#define PAGES_FOR_MAPPING 32

static int new_ones_first(const void *a, const void *b)
{
	const struct match *x = a, *y = b;
	bool x_new = x->spn == SPN_NONE, y_new = y->spn == SPN_NONE;

	if (x_new != y_new)
		return x_new ? -1 : 1;
	return x->gpn < y->gpn ? -1 : x->gpn > y->gpn;
}

u32 plan_promotions(struct match *m, u32 nr)
{
	u32 n = 0;

	qsort(m, nr, sizeof(*m), new_ones_first);
	while (n < nr && m[n].spn == SPN_NONE)
		n++;
	return n;
}

static int by_page(const void *a, const void *b)
{
	const struct placement *x = a, *y = b;

	return x->gpn < y->gpn ? -1 : x->gpn > y->gpn;
}

u32 plan_runs(struct placement *p, u32 nr, u32 max_nr, struct run *ret)
{
	u32 n = 0;

	qsort(p, nr, sizeof(*p), by_page);
	for (u32 i = 0; i < nr; i++) {
		struct run *last = n ? &ret[n - 1] : NULL;

		if (last && last->nr < max_nr && last->gpn + last->nr == p[i].gpn &&
		    last->spn + last->nr == p[i].spn)
			last->nr++;
		else
			ret[n++] = (struct run){ .gpn = p[i].gpn, .spn = p[i].spn, .nr = 1 };
	}
	return n;
}

static u32 run_length(const u32 *spn, u32 nr)
{
	u32 n = 1;

	while (n < nr && spn[n] == spn[n - 1] + 1 && spn[n] != SPN_NONE)
		n++;
	return n;
}

u32 plan_stretches(const u32 *spn, u32 nr, struct stretch *ret)
{
	u32 found = 0;

	for (u32 i = 0; i < nr;) {
		struct stretch s = { .first = i };
		u32 runs = 0;

		while (i < nr && spn[i] != SPN_NONE) {
			u32 n = run_length(spn + i, nr - i);

			if (n >= LONG_RUN)
				break;
			s.nr += n;
			i += n;
			runs++;
		}
		if (runs >= STRETCH_RUNS)
			ret[found++] = s;
		/* Over what ended it. */
		if (i < nr)
			i += spn[i] == SPN_NONE ? 1 : run_length(spn + i, nr - i);
	}
	return found;
}

bool plan_boundary(u32 below, u32 here)
{
	if (below == SPN_NONE || here == SPN_NONE)
		return below != here;
	return below + 1 != here;
}

bool plan_worth_repair(const struct stretch_cost *c)
{
	return !c->refused && c->before > c->after &&
	       (u64)(c->before - c->after) * PAGES_FOR_MAPPING >= c->pages;
}

u32 plan_shortest_run(u64 used, u64 limit)
{
	u64 left = limit > used ? limit - used : 0;
	u32 shortest = 1;

	while (left && left * 2 <= limit && shortest < 256) {
		left *= 2;
		shortest *= 2;
	}
	return left ? shortest : UINT32_MAX;
}
