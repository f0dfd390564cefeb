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

	return decisions_add(all, &d);
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
	cr_expect(d->bytes == 60 && d->steps == 3 && d->first_us == SECOND &&
		  d->last_us == 3 * SECOND && d->available_bytes == 3 * SECOND);
	cr_expect_eq(decisions_at(&all, 0)->bytes, 11u);
	cr_expect_null(decisions_at(&all, 2));
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
