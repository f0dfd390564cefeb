/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "daemon/working_set.h"

TestSuite(working_set, .timeout = 10);

Test(working_set, unknown_at_first)
{
	struct working_set w = { 0 };

	cr_expect_eq(working_set_bytes(&w, GIB(1)), UINT64_MAX);
	/* Too few to say anything. */
	working_set_add(&w, WORKING_SET_SAMPLES_MIN - 1, 20);
	cr_expect_eq(working_set_bytes(&w, GIB(1)), UINT64_MAX);
	working_set_add(&w, 100, 25);
	cr_expect_eq(working_set_bytes(&w, GIB(1)), GIB(1) / 4);
	/* A liar's figures. */
	w = (struct working_set){ 0 };
	working_set_add(&w, 100, 1000);
	cr_expect_eq(working_set_bytes(&w, GIB(1)), GIB(1));
}

Test(working_set, rises_fast_and_falls_slowly)
{
	struct working_set w = { 0 };
	u64 after;

	for (u32 i = 0; i < 50; i++)
		working_set_add(&w, 100, 10);
	working_set_add(&w, 100, 90);
	after = working_set_bytes(&w, 1000);
	cr_expect(after >= 499 && after <= 501, "%llu", (unsigned long long)after);
	for (u32 i = 0; i < 50; i++)
		working_set_add(&w, 100, 90);
	working_set_add(&w, 100, 10);
	after = working_set_bytes(&w, 1000);
	cr_expect(after >= 790 && after <= 810, "%llu", (unsigned long long)after);
	for (u32 i = 0; i < 50; i++)
		working_set_add(&w, 100, 10);
	after = working_set_bytes(&w, 1000);
	cr_expect(after >= 99 && after <= 105, "%llu", (unsigned long long)after);
}
