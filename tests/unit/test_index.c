/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <stdlib.h>
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

/*
 * Against a plain array. @nr rises and falls, so that shards grow, become mappings, shrink and go
 * away; a part of the tags is all in one shard, and some of these are few or at the end of the
 * range, so that there are long clusters, equal tags, and a spill.
 */
enum model_tags {
	TAGS_SPREAD,
	TAGS_ONE_SHARD,
	TAGS_FEW,
	TAGS_LAST,
};

static u32 model_tag(u64 *seed, enum model_tags kind)
{
	u32 r = rnd(seed);

	switch (kind) {
	case TAGS_SPREAD:
		return r;
	case TAGS_ONE_SHARD:
		return 0x42000000u | (r & 0xffffff);
	case TAGS_FEW:
		return 0x42424200u | r % 200;
	default:
		return UINT32_MAX - r % 200;
	}
}

static void check_all(const struct index *x, const u32 *tag_of, const bool *present, u32 nr,
		      u64 count)
{
	cr_assert_eq(index_entries(x), count);
	for (u32 v = 0; v < nr; v++)
		cr_assert_eq(index_find(x, tag_of[v], is_value, &v), present[v] ? v : INDEX_NONE,
			     "value %u", v);
}

static void run_model(u32 nr, u32 wanted, u32 unwanted, u32 steps)
{
	u32 *tag_of = calloc(nr, sizeof(*tag_of));
	bool *present = calloc(nr, sizeof(*present));
	u64 seed = 88172645463325252ull, count = 0;
	struct index *x;

	cr_assert_eq(index_new(&x), 0);
	for (u32 step = 0; step < steps; step++) {
		/* Up in the first half, down in the second. */
		u32 adds = step < steps / 2 ? wanted : unwanted;
		u32 v = rnd(&seed) % nr;
		bool add = rnd(&seed) % 100 < adds;

		if (add && !present[v]) {
			u32 kind = rnd(&seed) % 64;

			/* Few share a tag, or the walk over them is all that is tested. */
			tag_of[v] = model_tag(&seed, kind < 40	 ? TAGS_ONE_SHARD
						     : kind < 42 ? TAGS_FEW
						     : kind < 44 ? TAGS_LAST
								 : TAGS_SPREAD);
			cr_assert_eq(index_add(x, tag_of[v], v), 0);
			cr_assert_eq(index_find(x, tag_of[v], is_value, &v), v);
			present[v] = true;
			count++;
		} else if (!add) {
			cr_assert_eq(index_del(x, tag_of[v], v), present[v], "step %u value %u",
				     step, v);
			count -= present[v];
			present[v] = false;
		}
		if (step % (steps / 16) == 0)
			check_all(x, tag_of, present, nr, count);
	}
	check_all(x, tag_of, present, nr, count);
	for (u32 v = 0; v < nr; v++)
		cr_assert_eq(index_del(x, tag_of[v], v), present[v]);
	cr_assert_eq(index_entries(x), 0u);
	index_free(x);
	free(tag_of);
	free(present);
}

Test(index, agrees_with_a_model_over_random_operations)
{
	run_model(20000, 60, 40, 400000);
}

/* One shard becomes a mapping (8,192 slots), grows on, and goes back to the heap. */
Test(index, agrees_with_a_model_when_shards_grow_and_shrink)
{
	run_model(60000, 95, 5, 600000);
}

/* Only the last home, and more than any spill: the array must become longer without more homes. */
Test(index, holds_many_of_the_last_tag)
{
	u64 bytes;
	struct index *x;

	cr_assert_eq(index_new(&x), 0);
	for (u32 v = 0; v < 5000; v++)
		cr_assert_eq(index_add(x, UINT32_MAX, v), 0);
	bytes = index_bytes(x);
	cr_assert_leq(bytes, 5000 * 8 * 3ull + 6144);
	for (u32 v = 0; v < 5000; v += 100)
		cr_assert_eq(index_find(x, UINT32_MAX, is_value, &v), v);
	for (u32 v = 5000; v-- > 0;)
		cr_assert(index_del(x, UINT32_MAX, v));
	cr_assert_eq(index_find(x, UINT32_MAX, NULL, NULL), INDEX_NONE);
	index_free(x);
}

Test(index, gives_equal_tags_in_the_order_they_came)
{
	struct index *x;

	cr_assert_eq(index_new(&x), 0);
	for (u32 v = 10; v < 1000; v++)
		cr_assert_eq(index_add(x, v / 10 * 7919, v), 0);
	for (u32 v = 10; v < 1000; v++) {
		cr_assert_eq(index_find(x, v / 10 * 7919, NULL, NULL), v);
		cr_assert(index_del(x, v / 10 * 7919, v));
	}
	index_free(x);
}

Test(index, gives_its_memory_back)
{
	struct index *x;
	u64 seed = 1, empty, most;

	cr_assert_eq(index_new(&x), 0);
	empty = index_bytes(x);
	cr_assert_leq(empty, 8192u);
	for (u32 v = 0; v < 300000; v++)
		cr_assert_eq(index_add(x, rnd(&seed), v), 0);
	most = index_bytes(x);
	seed = 1;
	for (u32 v = 0; v < 300000; v++) {
		cr_assert(index_del(x, rnd(&seed), v));
		/* At 7/16 full a shard shrinks: never more than 8 * 16 / 7 bytes an entry. */
		if (300000 - v > 20000)
			cr_assert_leq(index_bytes(x), MIN(most, (300000 - v) * 20ull));
	}
	cr_assert_eq(index_bytes(x), empty);
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
