/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "ksmd/core.h"
#include "ksmd/pace.h"

static const struct pace_limits limits = { .interval_us = 1000000, .idle_interval_us = 60000000 };

static u64 interval_after(u64 interval, u64 hashed, u64 found, const struct pace_limits *l)
{
	struct pace_pass p = { .hashed = hashed, .found = found };

	return pace_next_interval(l, interval, &p);
}

Test(pace, a_new_vm_is_looked_at_soon_and_then_ever_later)
{
	u64 interval = pace_first_interval(&limits);

	cr_assert_eq(interval, (u64)PACE_INTERVAL_MIN_US);
	for (u32 i = 0; i < 20; i++) {
		u64 next = interval_after(interval, 1000, 0, &limits);

		cr_assert_geq(next, interval);
		interval = next;
	}
	cr_assert_eq(interval, limits.interval_us);
}

Test(pace, looking_goes_on_faster_while_it_pays)
{
	cr_assert_eq(interval_after(1000000, 1000, 500, &limits), 500000u);
	cr_assert_eq(interval_after(1000000, 100000, 500, &limits), 1000000u); /* 0.5% of it */
	cr_assert_eq(interval_after(1000000, 10, 10, &limits), 1000000u);      /* a few pages */
	cr_assert_eq(interval_after(PACE_INTERVAL_MIN_US, 1000, 500, &limits),
		     (u64)PACE_INTERVAL_MIN_US);
}

Test(pace, a_short_interval_of_the_configuration_is_kept)
{
	const struct pace_limits l = { .interval_us = 10000, .idle_interval_us = 1000000 };

	cr_assert_eq(pace_first_interval(&l), 10000u);
	cr_assert_leq(interval_after(10000, 0, 0, &l), (u64)PACE_INTERVAL_MIN_US);
}

Test(pace, pressure_shortens_the_interval)
{
	struct pace_limits l = limits;

	l.pressure = true;
	cr_assert_eq(interval_after(1000000, 0, 0, &l), 250000u);
}

/* Passes until the window is looked at again, after @k was seen. */
static u32 skipped(struct pace_window *w, const struct pace_limits *l, struct pace_look k)
{
	u32 n = 0;

	(void)pace_window_looked(w, l, &k);
	while (!pace_window_due(w))
		n++;
	return n;
}

Test(pace, quiet_windows_are_left_out_up_to_the_idle_interval)
{
	const struct pace_look quiet = { .pages = 4096 };
	struct pace_window w = { 0 };
	u32 last = 0;

	for (u32 i = 0; i < 12; i++) {
		u32 n = skipped(&w, &limits, quiet);

		cr_assert_geq(n, last);
		cr_assert_leq(n, 60u);
		last = n;
	}
	cr_assert_eq(last, 60u);
	/* One written page ends that. */
	cr_assert_eq(skipped(&w, &limits, (struct pace_look){ .pages = 4096, .written = 1 }), 0u);
}

Test(pace, dear_windows_are_left_out_for_longer)
{
	/* 10 windows of 2 ms: a look in 20 s is a thousandth of a core. */
	const struct pace_limits l = { .interval_us = 1000000,
				       .idle_interval_us = 60000000,
				       .nr_windows = 10 };
	const struct pace_look cheap = { .pages = 4096, .cost_us = 5 };
	const struct pace_look dear = { .pages = 4096, .cost_us = 2000 };
	const struct pace_look dearest = { .pages = 4096, .cost_us = 1000000 };
	struct pace_window w = { 0 };

	/* Not at once. */
	for (u32 i = 0; i < 3; i++)
		cr_assert_leq(skipped(&w, &l, dear), 4u);
	cr_assert_eq(skipped(&w, &l, dear), 20u);
	cr_assert_eq(skipped(&w, &l, dear), 20u);
	/* What backing off gives is longer by now. */
	cr_assert_eq(skipped(&w, &l, cheap), 32u);
	cr_assert_eq(skipped(&w, &l, dearest), 240u);
}

Test(pace, a_window_with_work_is_not_left_out)
{
	const struct pace_look waiting = { .pages = 4096, .waiting = 3 };
	const struct pace_look broken = { .pages = 4096, .broken = true };
	struct pace_window w = { 0 };

	for (u32 i = 0; i < 10; i++)
		cr_assert_eq(skipped(&w, &limits, waiting), 0u);
	/* Broken pages have to be seen twice, but then may stay as they are. */
	for (u32 i = 0; i < 10; i++) {
		cr_assert_eq(skipped(&w, &limits, broken), 0u);
		pace_broken_looked(&w, &limits, true);
	}
	for (u32 i = 0; i < 3; i++)
		pace_broken_looked(&w, &limits, false);
	for (u32 i = 0; i < 10; i++)
		(void)skipped(&w, &limits, broken);
	cr_assert_gt(skipped(&w, &limits, broken), 0u);
}

Test(pace, pages_written_all_the_time_are_protected_more_rarely)
{
	const struct pace_look hot = { .pages = 4096, .written = 1000, .rewritten = 1000 };
	const struct pace_look cool = { .pages = 4096, .written = 1000, .rewritten = 10 };
	struct pace_window w = { 0 };

	for (u32 i = 0; i < 10; i++)
		cr_assert_leq(skipped(&w, &limits, hot), 7u);
	cr_assert_eq(skipped(&w, &limits, hot), 7u);
	cr_assert_eq(skipped(&w, &limits, cool), 0u);
}

Test(pace, under_pressure_no_quiet_window_is_left_out)
{
	struct pace_limits l = limits;
	struct pace_window w = { 0 };

	l.pressure = true;
	for (u32 i = 0; i < 10; i++)
		cr_assert_eq(skipped(&w, &l, (struct pace_look){ .pages = 4096 }), 0u);
}

Test(pace, a_quiet_window_that_wakes_says_so)
{
	const struct pace_look quiet = { .pages = 4096 };
	const struct pace_look busy = { .pages = 4096, .written = 64 };
	const struct pace_look little = { .pages = 4096, .written = 63 };
	struct pace_window w = { 0 };

	cr_assert_not(pace_window_looked(&w, &limits, &busy));
	for (u32 i = 0; i < 8; i++)
		cr_assert_not(pace_window_looked(&w, &limits, &quiet));
	cr_assert_not(pace_window_looked(&w, &limits, &little));
	for (u32 i = 0; i < 8; i++)
		cr_assert_not(pace_window_looked(&w, &limits, &quiet));
	cr_assert(pace_window_looked(&w, &limits, &busy));
}

Test(pace, held_pages_are_tried_again_once_in_a_while)
{
	const struct pace_look look = { .pages = 4096, .written = 1 };
	struct pace_window w = { 0 };
	u32 due = 0;

	for (u32 i = 0; i < 320; i++) {
		due += pace_held_due(&w);
		(void)pace_window_looked(&w, &limits, &look);
	}
	cr_assert_eq(due, 10u);
}

Test(huge, splits_what_saves_enough_or_anything_under_pressure)
{
	cr_assert_not(huge_worth_splitting(0, 4096, false));
	cr_assert_not(huge_worth_splitting(0, 4096, true));
	/* 512 pages among 8 Mi entries: one by chance, on the average. */
	cr_assert_eq(huge_chance_twins(512, (u64)8 << 20), 2u);
	cr_assert_eq(huge_chance_twins(512, (u64)64 << 20), 16u);
	cr_assert_eq(huge_chance_twins(512, 100000), 0u);
	cr_assert(huge_worth_splitting(1, 4096, false));
	cr_assert_not(huge_worth_splitting(31, 131072, false));
	cr_assert(huge_worth_splitting(32, 131072, false));
	cr_assert(huge_worth_splitting(1, 131072, true));
}

/* Huge pages are aligned in the address space; a region that is not has one chunk more. */
Test(huge, chunks_follow_the_address_space)
{
	cr_assert_eq(huge_chunks_of(CHUNK_BYTES, 512), 1u);
	cr_assert_eq(huge_chunks_of(CHUNK_BYTES, 513), 2u);
	cr_assert_eq(huge_chunks_of(CHUNK_BYTES + PAGE_BYTES, 511), 1u);
	cr_assert_eq(huge_chunks_of(CHUNK_BYTES + PAGE_BYTES, 512), 2u);
}
