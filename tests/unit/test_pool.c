/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include "hypervisor-hooks/pool.h"

TestSuite(pool, .timeout = 60);

#define OBJECTS 20000

static u64 seed = 1;

static u32 rnd(u32 below)
{
	seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (u32)((seed >> 33) % below);
}

Test(pool, bounds)
{
	static u8 data[4096];
	struct pool *p;
	u32 o, bytes;

	cr_assert_eq(pool_new(MIB(1), &p), 0);
	cr_expect_eq(pool_add(p, data, POOL_OBJECT_MAX + 1), (u32)POOL_NONE);
	o = pool_add(p, data, POOL_OBJECT_MAX);
	cr_assert_neq(o, (u32)POOL_NONE);
	cr_expect_not_null(pool_get(p, o, &bytes));
	cr_expect_eq(bytes, (u32)POOL_OBJECT_MAX);
	cr_expect(pool_objects(p) == 1 && pool_bytes(p) == 65536);
	pool_del(p, o);
	cr_expect(pool_objects(p) == 0 && pool_bytes(p) == 0);
	pool_free(p);
}

/* Full is said, and what is given back can be used for another size. */
Test(pool, full_and_empty_again)
{
	static u8 data[4096];
	struct pool *p;
	u32 *objects = calloc(OBJECTS, sizeof(u32)), nr, again;

	cr_assert_eq(pool_new(MIB(1), &p), 0);
	for (nr = 0; nr < OBJECTS; nr++) {
		objects[nr] = pool_add(p, data, 2000);
		if (objects[nr] == POOL_NONE)
			break;
	}
	/* 2,048 with the header: 32 in each of the 16 slabs. */
	cr_expect_eq(nr, 512u);
	cr_expect_eq(pool_bytes(p), MIB(1));
	cr_expect_eq(pool_add(p, data, 100), (u32)POOL_NONE);
	for (u32 i = 0; i < nr; i++)
		pool_del(p, objects[i]);
	cr_expect_eq(pool_bytes(p), 0u);
	for (again = 0; pool_add(p, data, 100) != POOL_NONE; again++)
		;
	cr_expect_eq(again, 16u * 512);
	pool_free(p);
	free(objects);
}

/* Whatever comes and goes: each object is what was put there, and none lies in another. */
Test(pool, keeps_what_it_is_given)
{
	u32 *objects = calloc(OBJECTS, sizeof(u32));
	u16 *lengths = calloc(OBJECTS, sizeof(u16));
	u8 *tags = calloc(OBJECTS, 1), data[POOL_OBJECT_MAX];
	u64 held = 0;
	struct pool *p;

	cr_assert_eq(pool_new(GIB(1), &p), 0);
	for (u32 round = 0; round < 400000; round++) {
		u32 i = rnd(OBJECTS), bytes;
		const u8 *at;

		if (!objects[i]) {
			lengths[i] = (u16)rnd(POOL_OBJECT_MAX + 1);
			tags[i] = (u8)rnd(256);
			memset(data, tags[i], lengths[i]);
			objects[i] = pool_add(p, data, lengths[i]);
			cr_assert_neq(objects[i], (u32)POOL_NONE);
			held++;
			continue;
		}
		at = pool_get(p, objects[i], &bytes);
		cr_assert_eq(bytes, lengths[i]);
		for (u32 k = 0; k < bytes; k++)
			cr_assert_eq(at[k], tags[i], "object %u, byte %u", i, k);
		pool_del(p, objects[i]);
		objects[i] = POOL_NONE;
		held--;
	}
	cr_expect_eq(pool_objects(p), held);
	for (u32 i = 0; i < OBJECTS; i++)
		if (objects[i])
			pool_del(p, objects[i]);
	cr_expect(pool_objects(p) == 0 && pool_bytes(p) == 0);
	pool_free(p);
	free(objects);
	free(lengths);
	free(tags);
}
