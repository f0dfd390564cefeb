/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "ksmd/planner.h"
#include "ksmd/store.h"

/* In page order, whatever lies between; what is in the store already comes last. */
Test(planner, promotes_in_page_order)
{
	struct match m[] = {
		{ .gpn = 16, .spn = SPN_NONE }, { .gpn = 11, .spn = SPN_NONE },
		{ .gpn = 12, .spn = 77 },	{ .gpn = 13, .spn = SPN_NONE },
		{ .gpn = 9, .spn = 78 },	{ .gpn = 10, .spn = SPN_NONE },
	};
	const u32 order[] = { 10, 11, 13, 16, 9, 12 };

	cr_assert_eq(plan_promotions(m, 6), 4u);
	for (u32 i = 0; i < 6; i++)
		cr_assert_eq(m[i].gpn, order[i]);
	cr_assert_eq(plan_promotions(m + 4, 2), 0u);
	cr_assert_eq(plan_promotions(m, 0), 0u);
}

Test(planner, joins_pages_whose_store_offsets_follow)
{
	struct placement p[] = { { 5, 105 }, { 3, 103 }, { 4, 104 },
				 { 6, 200 }, { 7, 201 }, { 9, 203 } };
	struct run r[6];

	cr_assert_eq(plan_runs(p, 6, 64, r), 3u);
	cr_assert(r[0].gpn == 3 && r[0].spn == 103 && r[0].nr == 3);
	cr_assert(r[1].gpn == 6 && r[1].spn == 200 && r[1].nr == 2);
	cr_assert(r[2].gpn == 9 && r[2].spn == 203 && r[2].nr == 1);
}

/* Every placement appears in exactly one run, whatever the order and the limit. */
Test(planner, runs_cover_exactly_the_placements)
{
	enum {
		NR = 5000
	};
	static struct placement p[NR];
	static struct run r[NR];
	static u32 want[NR * 2];
	u64 seed = 42;
	u32 n, covered = 0;

	for (u32 i = 0; i < NR; i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		/* Pages in an order of their own, with gaps; offsets that often follow. */
		p[i] = (struct placement){ .gpn = (i * 7919u % NR) * 2 / 2, .spn = 0 };
		p[i].spn = p[i].gpn + (seed >> 60 == 0 ? 100000 : 50000);
		want[p[i].gpn] = p[i].spn;
	}
	n = plan_runs(p, NR, 64, r);
	for (u32 i = 0; i < n; i++) {
		cr_assert_leq(r[i].nr, 64u);
		for (u32 k = 0; k < r[i].nr; k++, covered++)
			cr_assert_eq(want[r[i].gpn + k], r[i].spn + k);
	}
	cr_assert_eq(covered, (u32)NR);
	cr_assert_lt(n, (u32)NR / 4);
}
