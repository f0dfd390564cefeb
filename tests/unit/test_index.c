/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "ksmd/index.h"

static u32 rnd(u64 *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return (u32)(*s >> 16);
}

Test(index, finds_what_was_added_and_nothing_else)
{
	struct index *x;

	cr_assert_eq(index_new(&x), 0);
	cr_assert_eq(index_find(x, 7, NULL, NULL), INDEX_NONE);
	cr_assert_eq(index_add(x, 7, 100), 0);
	cr_assert_eq(index_find(x, 7, NULL, NULL), 100u);
	cr_assert_eq(index_find(x, 8, NULL, NULL), INDEX_NONE);
	cr_assert(!index_del(x, 7, 101));
	cr_assert(index_del(x, 7, 100));
	cr_assert(!index_del(x, 7, 100));
	cr_assert_eq(index_find(x, 7, NULL, NULL), INDEX_NONE);
	cr_assert_eq(index_entries(x), 0u);
	index_free(x);
}

static bool is_value(u32 value, void *arg)
{
	return value == *(u32 *)arg;
}

Test(index, keeps_many_values_of_one_tag)
{
	struct index *x;

	cr_assert_eq(index_new(&x), 0);
	for (u32 v = 0; v < 500; v++)
		cr_assert_eq(index_add(x, 0xffffffff, v), 0);
	for (u32 v = 0; v < 500; v += 2)
		cr_assert(index_del(x, 0xffffffff, v));
	for (u32 v = 0; v < 500; v++)
		cr_assert_eq(index_find(x, 0xffffffff, is_value, &v), v % 2 ? v : INDEX_NONE);
	index_free(x);
}

/* Against a plain array, with few tags so that clusters, wrap-around and shifting back all happen.
 */
Test(index, agrees_with_a_model_over_random_operations)
{
	enum {
		VALUES = 20000,
		STEPS = 400000
	};
	static u32 tag_of[VALUES];
	static bool present[VALUES];
	struct index *x;
	u64 seed = 88172645463325252ull, count = 0;

	cr_assert_eq(index_new(&x), 0);
	for (u32 step = 0; step < STEPS; step++) {
		u32 v = rnd(&seed) % VALUES;

		if (!present[v]) {
			/* A third of the tags at the very end of the range, whose followers wrap
			 * around. */
			tag_of[v] = rnd(&seed) % 3 ? rnd(&seed) : 0xffffff00u + rnd(&seed) % 256;
			cr_assert_eq(index_add(x, tag_of[v], v), 0);
			present[v] = true;
			count++;
		} else {
			cr_assert(index_del(x, tag_of[v], v), "step %u value %u", step, v);
			present[v] = false;
			count--;
		}
	}
	cr_assert_eq(index_entries(x), count);
	for (u32 v = 0; v < VALUES; v++)
		cr_assert_eq(index_find(x, tag_of[v], is_value, &v), present[v] ? v : INDEX_NONE);
	index_free(x);
}

Test(index, costs_at_most_11_bytes_an_entry)
{
	struct index *x;
	u64 seed = 1;

	cr_assert_eq(index_new(&x), 0);
	for (u32 v = 0; v < 300000; v++) {
		cr_assert_eq(index_add(x, rnd(&seed), v), 0);
		if (v > 10000)
			cr_assert_leq(index_bytes(x), (v + 1) * 11ull);
	}
	index_free(x);
}
