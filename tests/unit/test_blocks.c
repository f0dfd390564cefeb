/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "ksmd/blocks.h"
#include "ksmd/hash.h"

static const u64 disk_a[2] = { 1, 2 }, disk_b[2] = { 1, 3 };

static struct blocks *fresh(void)
{
	struct blocks *b;

	cr_assert_eq(page_hash_init(), 0);
	cr_assert_eq(blocks_new(&b), 0);
	return b;
}

Test(blocks, the_last_reader_of_a_block)
{
	struct blocks *b = fresh();

	cr_assert_eq(blocks_note(b, disk_a, 8, 0), BLOCK_NONE);
	cr_assert_eq(blocks_note(b, disk_a, 16, 5), BLOCK_NONE);
	cr_assert_eq(blocks_note(b, disk_b, 8, 6), BLOCK_NONE);
	cr_assert_eq(blocks_note(b, disk_a, 8, 7), 0);
	cr_assert_eq(blocks_note(b, disk_a, 8, 7), 7);
	cr_assert_eq(blocks_note(b, disk_b, 8, 0x7fffffff), 6);
	cr_assert_eq(blocks_note(b, disk_b, 8, 1), 0x7fffffff);
	cr_assert_eq(blocks_entries(b), 3);
	blocks_free(b);
}

/* As it grows it forgets little: what falls into full sets. */
Test(blocks, grows_and_remembers)
{
	const u32 nr = 300000;
	struct blocks *b = fresh();
	u64 bytes = blocks_bytes(b);
	u32 known = 0;

	for (u32 i = 0; i < nr; i++)
		blocks_note(b, disk_a, (u64)i * 8, i);
	for (u32 i = 0; i < nr; i++)
		known += blocks_note(b, disk_a, (u64)i * 8, i) == i;
	cr_assert_geq(known, nr / 20 * 19, "%u of %u", known, nr);
	cr_assert_gt(blocks_bytes(b), bytes);
	/* The cost that the header promises. */
	cr_assert_leq(blocks_bytes(b), nr * 26 + 4096);
	blocks_free(b);
}

Test(blocks, is_bounded)
{
	struct blocks *b = fresh();
	u32 known = 0;

	for (u32 i = 0; i < 2 * BLOCKS_ENTRIES_MAX; i++)
		blocks_note(b, disk_a, i, i);
	cr_assert_leq(blocks_entries(b), BLOCKS_ENTRIES_MAX);
	cr_assert_leq(blocks_bytes(b), BLOCKS_ENTRIES_MAX * 8 + 4096);
	/* The newest are there. */
	for (u32 i = 2 * BLOCKS_ENTRIES_MAX - 1000; i < 2 * BLOCKS_ENTRIES_MAX; i++)
		known += blocks_note(b, disk_a, i, i) == i;
	cr_assert_geq(known, 950);
	blocks_free(b);
}
