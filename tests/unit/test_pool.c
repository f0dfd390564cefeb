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

/* --- the medium ---------------------------------------------------------------------------------
 */

#define MEDIUM_BYTES MIB(64)

static u8 *medium;

/* One object by way of the blocks that it lies in, as swap.c reads them. */
static const u8 *read_object(struct pool *p, u32 object, u8 *blocks, u32 *ret_bytes)
{
	struct pool_place at;
	const u8 *content;

	pool_read_begin(p, object, &at);
	cr_assert(at.offset % POOL_BLOCK_BYTES == 0 && at.bytes % POOL_BLOCK_BYTES == 0 &&
		  at.bytes <= POOL_PLACE_BLOCKS * POOL_BLOCK_BYTES);
	memcpy(blocks, medium + at.offset, at.bytes);
	content = pool_read_check(&at, blocks, ret_bytes);
	pool_read_end(p, object);
	return content;
}

static const u8 *content_of(struct pool *p, u32 object, u8 *blocks, u32 *ret_bytes)
{
	return pool_on_medium(p, object) ? read_object(p, object, blocks, ret_bytes)
					 : pool_get(p, object, ret_bytes);
}

/* Objects come and go while slabs are written, with and without success: each is what was put
 * there, and memory is counted as it is. */
Test(pool, keeps_what_is_on_the_medium)
{
	static u8 blocks[POOL_PLACE_BLOCKS * POOL_BLOCK_BYTES];
	u32 *objects = calloc(OBJECTS, sizeof(u32)), writing = 0, outs = 0, ins = 0;
	u16 *lengths = calloc(OBJECTS, sizeof(u16));
	u8 *tags = calloc(OBJECTS, 1), data[POOL_OBJECT_MAX];
	const void *memory;
	u64 offset = 0;
	struct pool *p;

	medium = calloc(1, MEDIUM_BYTES);
	cr_assert_eq(pool_new(MEDIUM_BYTES, &p), 0);
	for (u32 round = 0; round < 400000; round++) {
		u32 i = rnd(OBJECTS / 2), bytes;
		const u8 *at;

		if (rnd(40) == 0 && writing) {
			bool ok = rnd(4);

			/* The medium has it from here on, whatever is done to the memory. */
			if (ok)
				memcpy(medium + offset, memory, (u64)writing * POOL_SLAB_BYTES);
			pool_write_end(p, offset, writing, ok);
			outs += ok;
			writing = 0;
		} else if (rnd(40) == 0 && !writing) {
			writing = pool_write_begin(p, 1 + rnd(32), &offset, &memory);
			cr_assert(offset + (u64)writing * POOL_SLAB_BYTES <= MEDIUM_BYTES);
		}
		if (!objects[i]) {
			lengths[i] = (u16)rnd(POOL_OBJECT_MAX + 1);
			tags[i] = (u8)rnd(256);
			memset(data, tags[i], lengths[i]);
			objects[i] = pool_add(p, data, lengths[i]);
			cr_assert_neq(objects[i], (u32)POOL_NONE);
			continue;
		}
		ins += pool_on_medium(p, objects[i]);
		at = content_of(p, objects[i], blocks, &bytes);
		cr_assert_not_null(at);
		cr_assert_eq(bytes, lengths[i]);
		for (u32 k = 0; k < bytes; k++)
			cr_assert_eq(at[k], tags[i], "object %u, byte %u", i, k);
		pool_del(p, objects[i]);
		objects[i] = POOL_NONE;
	}
	cr_expect_gt(outs, 1000u);
	cr_expect_gt(ins, 10000u);
	if (writing)
		pool_write_end(p, offset, writing, false);
	for (u32 i = 0; i < OBJECTS; i++)
		if (objects[i])
			pool_del(p, objects[i]);
	cr_expect(pool_objects(p) == 0 && pool_bytes(p) == 0 && pool_medium_bytes(p) == 0);
	pool_free(p);
	free(objects);
	free(lengths);
	free(tags);
	free(medium);
}

/* A place that is being read is not used again, even when what was there is deleted. */
Test(pool, a_place_that_is_read_waits)
{
	static u8 data[POOL_OBJECT_MAX];
	struct pool_place at;
	const void *memory;
	struct pool *p;
	u64 offset;
	u32 o;

	cr_assert_eq(pool_new(POOL_SLAB_BYTES, &p), 0);
	o = pool_add(p, data, 100);
	cr_assert_eq(pool_write_begin(p, 32, &offset, &memory), 1u);
	pool_write_end(p, offset, 1, true);
	cr_expect(pool_bytes(p) == 0 && pool_medium_bytes(p) == POOL_SLAB_BYTES);
	pool_read_begin(p, o, &at);
	pool_del(p, o);
	cr_expect_eq(pool_add(p, data, 100), (u32)POOL_NONE, "the only slab is being read");
	pool_read_end(p, o);
	cr_expect_neq(pool_add(p, data, 100), (u32)POOL_NONE);
	pool_free(p);
}

/* What a medium returns that is not what was written is found out. */
Test(pool, a_wrong_byte_is_found)
{
	static u8 data[POOL_OBJECT_MAX], blocks[POOL_PLACE_BLOCKS * POOL_BLOCK_BYTES];
	const void *memory;
	struct pool *p;
	u64 offset;
	u32 o, bytes;

	medium = calloc(1, POOL_SLAB_BYTES);
	cr_assert_eq(pool_new(POOL_SLAB_BYTES, &p), 0);
	memset(data, 7, sizeof(data));
	o = pool_add(p, data, 3000);
	cr_assert_eq(pool_write_begin(p, 1, &offset, &memory), 1u);
	memcpy(medium, memory, POOL_SLAB_BYTES);
	pool_write_end(p, offset, 1, true);
	cr_expect_not_null(read_object(p, o, blocks, &bytes));
	cr_expect_eq(bytes, 3000u);
	for (u32 at = 8; at < 3008; at += 97) {
		medium[at] ^= 1;
		cr_expect_null(read_object(p, o, blocks, &bytes), "byte %u", at);
		medium[at] ^= 1;
	}
	/* A length that leads out of the object's place. */
	medium[1] = 0xff;
	cr_expect_null(read_object(p, o, blocks, &bytes));
	pool_free(p);
	free(medium);
}
