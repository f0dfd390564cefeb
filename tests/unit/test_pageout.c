/* SPDX-License-Identifier: MIT */
/* Which pages leave a guest (ksmd/pageout.c): on plain structs. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include "ksmd/core.h"

TestSuite(pageout, .timeout = 10);

#define PAGES (3 * WINDOW_PAGES)

static u8 state[PAGES];
static struct pace_window windows[PAGES / WINDOW_PAGES];
static struct huge_chunk chunks[PAGES / CHUNK_PAGES];
static struct ksm_region region, *regions[] = { &region };
static struct ksm_vm vm;
static u8 taken[PAGES];
static u32 nr_taken, room;

static void begin(void)
{
	memset(state, PG_QUIET, sizeof(state));
	region = (struct ksm_region){ .vm = &vm,
				      .bytes = (u64)PAGES << PAGE_SHIFT,
				      .nr_pages = PAGES,
				      .state = state,
				      .windows = windows,
				      .chunks = chunks };
	vm = (struct ksm_vm){ .regions = regions, .nr_regions = 1 };
	room = UINT32_MAX;
}

static void end(void)
{
	free(region.heat);
}

static u32 put(struct hand *h, struct ksm_region *r, u32 page, u32 nr)
{
	nr = MIN(nr, room);
	for (u32 i = 0; i < nr; i++)
		taken[page + i]++;
	nr_taken += nr;
	return nr;
}

/* How many were taken. */
static u32 round_of(u64 pages, u32 looks, u32 quiet)
{
	struct hand h = { .at = &vm.out_place, .missing = pages, .looks = looks, .put = put };

	memset(taken, 0, sizeof(taken));
	nr_taken = 0;
	hand_round(&vm, quiet, &h);
	return nr_taken;
}

Test(pageout, private_pages_one_after_the_other, .init = begin, .fini = end)
{
	static const u8 others[] = { PG_NONE, PG_FRESH,	 PG_PENDING, PG_HELD,
				     PG_ZERO, PG_SHARED, PG_BROKEN,  PG_BROKEN_CANDIDATE };

	for (u32 i = 0; i < ARRAY_SIZE(others); i++)
		state[10 + i] = others[i];
	state[9] = PG_CANDIDATE;
	cr_expect_eq(round_of(20, PAGES, 0), 20u);
	for (u32 p = 0; p < 28; p++)
		cr_expect_eq(taken[p], p < 10 || p >= 10 + ARRAY_SIZE(others), "%u", p);
	/* From there on, to the end and around. */
	round_of(4 * PAGES, UINT32_MAX, 0);
	cr_expect_geq(nr_taken, PAGES - (u32)ARRAY_SIZE(others));
	cr_expect_leq(nr_taken, 2 * PAGES);
	cr_expect_eq(taken[11], 0);
}

Test(pageout, quiet_windows_first, .init = begin, .fini = end)
{
	windows[1].quiet = QUIET_LOOKS;
	round_of(WINDOW_PAGES, PAGES, QUIET_LOOKS);
	cr_expect_eq(nr_taken, WINDOW_PAGES);
	cr_expect_eq(taken[0], 0);
	cr_expect_geq(taken[WINDOW_PAGES], 1);
	cr_expect_eq(taken[2 * WINDOW_PAGES], 0);
}

Test(pageout, stops_when_it_is_told_to, .init = begin, .fini = end)
{
	cr_expect_eq(round_of(PAGES, 100, 0), 100u);
	room = 7;
	cr_expect_eq(round_of(PAGES, PAGES, 0), 7u);
	cr_expect_eq(vm.out_place.page, 107u);
}

/* One that comes back before the hand was round is in use; one that comes back later, less so. */
Test(pageout, what_comes_back_is_passed_over, .init = begin, .fini = end)
{
	static const u32 passed[] = { 15, 15, 1, 15, 1 };

	memset(state, PG_NONE, sizeof(state));
	state[5] = state[6] = PG_QUIET;
	for (u32 i = 0; i < ARRAY_SIZE(passed); i++) {
		u32 rounds = 0;

		heat_left(&region, 5);
		/* Once round, and what it was before counts for less each time. */
		state[5] = PG_NONE;
		for (u32 turns = 0; turns < 4 && passed[i] == 1; turns++) {
			vm.out_place = (struct hand_place){ 0 };
			round_of(2, WINDOW_PAGES, 0);
		}
		state[5] = PG_QUIET;
		heat_is_back(&region, 5);
		heat_is_back(&region,
			     6); /* written, without having been out: no sign of anything */
		for (; rounds < 100; rounds++) {
			vm.out_place = (struct hand_place){ 0 };
			round_of(2, WINDOW_PAGES, 0);
			cr_expect(taken[6] >= 1);
			if (taken[5])
				break;
		}
		cr_expect_eq(rounds, passed[i], "the %u. time: %u", i, rounds);
	}
}

/* What stays out for long was not that hot. */
Test(pageout, what_stays_out_cools, .init = begin, .fini = end)
{
	u32 rounds = 0;

	memset(state, PG_NONE, sizeof(state));
	for (u32 i = 0; i < 4; i++) {
		heat_left(&region, 5);
		heat_is_back(&region, 5);
	}
	heat_left(&region, 5);
	for (u32 i = 0; i < 3; i++) {
		vm.out_place = (struct hand_place){ 0 };
		round_of(1, WINDOW_PAGES, 0);
	}
	heat_is_back(&region, 5);
	state[5] = PG_QUIET;
	for (; rounds < 100 && round_of(1, WINDOW_PAGES, 0) == 0; rounds++)
		vm.out_place = (struct hand_place){ 0 };
	cr_expect_leq(rounds, 4u);
	cr_expect_geq(rounds, 2u);
}
