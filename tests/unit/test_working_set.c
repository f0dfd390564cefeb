/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "daemon/working_set.h"

TestSuite(working_set, .timeout = 10);

Test(working_set, unknown_at_first)
{
	struct working_set w = { .base_bytes = GIB(1) };

	cr_expect_eq(working_set_bytes(&w, GIB(1)), UINT64_MAX);
	/* Too few to say anything. */
	working_set_add(&w, WORKING_SET_SAMPLES_MIN - 1, 20);
	cr_expect_eq(working_set_bytes(&w, GIB(1)), UINT64_MAX);
	working_set_add(&w, 100, 25);
	cr_expect_eq(working_set_bytes(&w, GIB(1)), GIB(1) / 4);
	/* A liar's figures. */
	w = (struct working_set){ .base_bytes = GIB(1) };
	working_set_add(&w, 100, 1000);
	cr_expect_eq(working_set_bytes(&w, GIB(1)), GIB(1));
}

Test(working_set, rises_fast_and_falls_slowly)
{
	struct working_set w = { .base_bytes = 1000 };
	u64 after;

	for (u32 i = 0; i < 50; i++)
		working_set_add(&w, 100, 10);
	working_set_add(&w, 100, 90);
	after = working_set_bytes(&w, 1000);
	cr_expect(after >= 899 && after <= 901, "%llu", (unsigned long long)after);
	for (u32 i = 0; i < 50; i++)
		working_set_add(&w, 100, 90);
	working_set_add(&w, 100, 10);
	after = working_set_bytes(&w, 1000);
	cr_expect(after >= 690 && after <= 710, "%llu", (unsigned long long)after);
	for (u32 i = 0; i < 50; i++)
		working_set_add(&w, 100, 10);
	after = working_set_bytes(&w, 1000);
	cr_expect(after >= 99 && after <= 105, "%llu", (unsigned long long)after);
}

/* What a period shows counts before its end, and what has come since it began is in use. */
Test(working_set, a_rise_is_seen_at_once)
{
	struct working_set w = { 0 };

	working_set_begin(&w, 1000);
	working_set_add(&w, 100, 10);
	working_set_begin(&w, 1000);
	cr_expect_eq(working_set_bytes(&w, 1000), 100u);
	cr_expect_eq(working_set_bytes(&w, 1500), 600u);
	cr_expect_eq(working_set_bytes(&w, 500), 50u);
	working_set_note(&w, 100, 25); /* as samples go */
	cr_expect_eq(working_set_bytes(&w, 1000), 100u);
	working_set_note(&w, 100, 60);
	cr_expect_eq(working_set_bytes(&w, 1000), 600u);
	working_set_note(&w, WORKING_SET_SAMPLES_MIN - 1, 3);
	cr_expect_eq(working_set_bytes(&w, 1000), 600u);
	working_set_begin(&w, 1500);
	cr_expect_eq(working_set_bytes(&w, 1500), 150u);
}
