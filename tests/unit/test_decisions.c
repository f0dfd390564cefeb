/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "daemon/decisions.h"

TestSuite(decisions, .timeout = 10);

#define SECOND 1000000ULL

static struct decision made(u64 at, bool take, enum policy_mechanism m, u64 bytes)
{
	return (struct decision){
		.last_us = at,
		.action = { .take = take, .mechanism = m, .bytes = bytes },
		.available_bytes = at,
	};
}

static bool add(struct decisions *all, u64 at, bool take, enum policy_mechanism m, u64 bytes)
{
	struct decision d = made(at, take, m, bytes);
	u64 more;

	return decisions_add(all, &d, &more);
}

Test(decisions, what_goes_on_is_one_entry)
{
	struct decisions all = { 0 };
	const struct decision *d;

	cr_expect_null(decisions_at(&all, 0));
	cr_expect(add(&all, SECOND, true, POLICY_BALLOON, 10));
	cr_expect_not(add(&all, 2 * SECOND, true, POLICY_BALLOON, 20));
	/* Two mechanisms in one step: each goes on. */
	cr_expect(add(&all, 2 * SECOND, true, POLICY_SHARE, 5));
	cr_expect_not(add(&all, 3 * SECOND, true, POLICY_BALLOON, 30));
	cr_expect_not(add(&all, 3 * SECOND, true, POLICY_SHARE, 6));
	d = decisions_at(&all, 1);
	cr_assert_not_null(d);
	/* Of a balloon that has not moved yet: 30 is asked for, and not 60. */
	cr_expect(d->bytes == 30 && d->steps == 3 && d->first_us == SECOND &&
		  d->last_us == 3 * SECOND && d->available_bytes == 3 * SECOND);
	cr_expect_eq(decisions_at(&all, 0)->bytes, 11u);
	cr_expect_null(decisions_at(&all, 2));
}

/* Each step asks for what is missing: what was decided is how far the target moved. */
Test(decisions, what_a_balloon_was_asked_for_is_not_counted_again)
{
	static const struct {
		bool take;
		u64 taken, bytes, more, sum;
	} steps[] = {
		{ true, 100, 50, 50, 50 },     { true, 120, 30, 0, 50 },
		{ true, 140, 30, 20, 70 },     { true, 170, 5, 5, 75 },
		{ false, 170, 70, 70, 70 },    { false, 130, 30, 0, 70 },
		{ false, 100, 100, 100, 170 },
	};
	struct decisions all = { 0 };

	for (u32 i = 0; i < ARRAY_SIZE(steps); i++) {
		struct decision d =
			made((i + 1) * SECOND, steps[i].take, POLICY_BALLOON, steps[i].bytes);
		u64 more;

		d.taken_bytes = steps[i].taken;
		decisions_add(&all, &d, &more);
		cr_expect_eq(more, steps[i].more, "%u", i);
		cr_expect_eq(decisions_at(&all, 0)->bytes, steps[i].sum, "%u", i);
	}
}

Test(decisions, another_direction_and_a_gap_begin_anew)
{
	struct decisions all = { 0 };

	cr_expect(add(&all, SECOND, true, POLICY_BALLOON, 10));
	cr_expect(add(&all, 2 * SECOND, false, POLICY_BALLOON, 10));
	cr_expect(add(&all, 30 * SECOND, false, POLICY_BALLOON, 7));
	cr_expect_eq(decisions_at(&all, 0)->bytes, 7u);
	cr_expect_eq(decisions_at(&all, 2)->bytes, 10u);
}

Test(decisions, the_last_are_kept)
{
	struct decisions all = { 0 };

	for (u32 i = 0; i < 3 * DECISIONS_KEPT; i++)
		cr_expect(add(&all, (i + 1) * 100 * SECOND, true, POLICY_BALLOON, i + 1));
	for (u32 i = 0; i < DECISIONS_KEPT; i++)
		cr_expect_eq(decisions_at(&all, i)->bytes, 3 * DECISIONS_KEPT - i);
	cr_expect_null(decisions_at(&all, DECISIONS_KEPT));
}
