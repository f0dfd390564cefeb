/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include "ksmd/planner.h"
#include "ksmd/store.h"

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
