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

Test(planner, stretches_are_short_runs_in_a_row)
{
	u32 spn[200];
	struct stretch s[100];

	for (u32 i = 0; i < 200; i++)
		spn[i] = SPN_NONE;
	/* Too few to be worth a look, a good run, and twenty pages in reverse order. */
	spn[0] = 7, spn[1] = 3, spn[2] = 9;
	for (u32 i = 0; i < 40; i++)
		spn[10 + i] = 1000 + i;
	for (u32 i = 0; i < 20; i++)
		spn[60 + i] = 500 - i;
	/* Short runs on both sides of a good one. */
	for (u32 i = 0; i < 10; i++)
		spn[100 + i] = 2000 + 2 * i;
	for (u32 i = 0; i < 50; i++)
		spn[110 + i] = 3000 + i;
	for (u32 i = 0; i < 10; i++)
		spn[160 + i] = 4000 + 2 * i;
	cr_assert_eq(plan_stretches(spn, 200, s), 3u);
	cr_assert(s[0].first == 60 && s[0].nr == 20);
	cr_assert(s[1].first == 100 && s[1].nr == 10);
	cr_assert(s[2].first == 160 && s[2].nr == 10);
}

Test(planner, boundaries_are_where_a_mapping_cannot_go_on)
{
	cr_assert(!plan_boundary(SPN_NONE, SPN_NONE));
	cr_assert(!plan_boundary(4, 5));
	cr_assert(plan_boundary(4, 6));
	cr_assert(plan_boundary(5, 5));
	cr_assert(plan_boundary(SPN_NONE, 0));
	cr_assert(plan_boundary(0, SPN_NONE));
}

Test(planner, a_repair_must_free_mappings_and_be_possible)
{
	cr_assert(
		plan_worth_repair(&(struct stretch_cost){ .before = 40, .after = 2, .pages = 40 }));
	cr_assert(!plan_worth_repair(
		&(struct stretch_cost){ .before = 40, .after = 40, .pages = 40 }));
	cr_assert(!plan_worth_repair(
		&(struct stretch_cost){ .before = 40, .after = 60, .pages = 40 }));
	/* Many pages for one mapping. */
	cr_assert(!plan_worth_repair(
		&(struct stretch_cost){ .before = 3, .after = 2, .pages = 4096 }));
	cr_assert(!plan_worth_repair(
		&(struct stretch_cost){ .before = 40, .after = 2, .pages = 40, .refused = true }));
}

Test(planner, the_last_mappings_are_for_long_runs)
{
	cr_assert_eq(plan_shortest_run(0, 1000), 1u);
	cr_assert_eq(plan_shortest_run(499, 1000), 1u);
	cr_assert_eq(plan_shortest_run(500, 1000), 2u);
	cr_assert_eq(plan_shortest_run(750, 1000), 4u);
	cr_assert_eq(plan_shortest_run(999, 1000), 256u);
	cr_assert_eq(plan_shortest_run(1000, 1000), UINT32_MAX);
	cr_assert_eq(plan_shortest_run(1001, 1000), UINT32_MAX);
	cr_assert_eq(plan_shortest_run(0, 0), UINT32_MAX);
	for (u64 used = 1; used < 1000; used++)
		cr_assert_geq(plan_shortest_run(used, 1000), plan_shortest_run(used - 1, 1000));
}
