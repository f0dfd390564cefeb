/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "ksmd/store.h"

static struct store *s;

static void setup(void)
{
	cr_assert_eq(store_new("test", MIB(16), &s), 0);
}

static void teardown(void)
{
	store_free(s);
}

TestSuite(store, .init = setup, .fini = teardown);

static u64 file_blocks(void)
{
	struct stat st;

	cr_assert_eq(fstat(store_fd_readonly(s), &st), 0);
	return (u64)st.st_blocks * 512;
}

static void fill(u32 spn, u8 byte)
{
	u8 page[PAGE_BYTES];

	memset(page, byte, sizeof(page));
	cr_assert_eq(store_write(s, spn, page, 1), 0);
	store_set_hash(s, spn, (byte + 1000ull) << 16);
}

Test(store, last_reference_gives_the_memory_back)
{
	u32 a = store_alloc(s, 4);

	for (u32 i = 0; i < 4; i++) {
		fill(a + i, (u8)i);
		store_ref(s, a + i);
	}
	cr_assert_eq(file_blocks(), 4 * PAGE_BYTES);
	store_ref(s, a);
	cr_assert_eq(store_total_refs(s), 5u);
	cr_assert(!store_unref(s, a));
	cr_assert(store_unref(s, a));
	cr_assert(store_unref(s, a + 1));
	store_flush(s);
	cr_assert_eq(file_blocks(), 2 * PAGE_BYTES);
	cr_assert_eq(store_pages(s), 2u);
	cr_assert(!store_has_content(s, a));
	cr_assert(store_has_content(s, a + 2));
}

/* Invariant 4: a page that may still be mapped (covered) is a hole, and is not given out again. */
Test(store, covered_page_is_not_used_again)
{
	u32 a = store_alloc(s, 1), b;
	u8 page[PAGE_BYTES];

	fill(a, 1);
	store_ref(s, a);
	store_cover(s, a);
	cr_assert(store_unref(s, a));
	store_flush(s);
	cr_assert_eq(store_read(s, a, page, 1), 0);
	cr_assert_eq(page[0], 0);
	/* Everything else in the store is used up: still not @a. */
	for (u32 i = 1; i < MIB(16) / PAGE_BYTES; i++)
		cr_assert_neq(store_alloc(s, 1), a);
	cr_assert_eq(store_alloc(s, 1), SPN_NONE);
	store_uncover(s, a);
	for (u32 i = 0; i < 3; i++) {
		b = store_alloc(s, 1);
		if (b == a)
			break;
	}
	cr_assert_eq(b, a);
}

Test(store, allocates_consecutive_pages_and_fills_gaps)
{
	u32 a = store_alloc(s, 64), b = store_alloc(s, 64), c;

	cr_assert_eq(b, a + 64);
	store_release(s, a, 64);
	store_flush(s);
	cr_assert_neq(store_alloc(s, 64), SPN_NONE);
	c = store_alloc(s, 4000);
	cr_assert_eq(c, SPN_NONE, "more than is left");
}

Test(store, descriptor_for_vmms_is_read_only_and_the_file_cannot_shrink)
{
	int fd = store_fd_readonly(s);
	u8 byte = 1;

	cr_assert_eq(pwrite(fd, &byte, 1, 0), -1);
	cr_assert_eq(mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	cr_assert_neq(mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0),
		      MAP_FAILED);
	cr_assert_eq(ftruncate(fd, 0), -1);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1,
		     "a VMM must not be able to freeze the store");
}

static int count_page(struct store *st, u32 spn, void *arg)
{
	store_set_hash(st, spn, (spn + 1000ull) << 16);
	(*(u32 *)arg)++;
	return 0;
}

static void count_dropped(struct store *st, u32 spn, void *arg)
{
	(*(u32 *)arg)++;
}

Test(store, adopted_store_frees_nothing_before_recovery_is_complete)
{
	u32 a = store_alloc(s, 10), n = 0, dropped = 0;
	struct store *t;
	char path[64];
	int fd;

	for (u32 i = 0; i < 10; i++)
		fill(a + i, (u8)i);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", store_fd_readonly(s));
	fd = open(path, O_RDWR | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	cr_assert_eq(store_adopt(fd, MIB(16), &t), 0);
	cr_assert_eq(store_walk(t, count_page, &n), 0);
	cr_assert_eq(n, 10u);
	store_ref(t, a);
	store_cover(t, a);
	store_ref(t, a + 1);
	cr_assert(!store_unref(t, a + 1), "another mapping may still turn up");
	/* A broken page's mapping beyond all data: nothing new may be put there. */
	store_reserve(t, a + 20);
	cr_assert_geq(store_alloc(t, 1), a + 20);
	store_recovered(t, count_dropped, &dropped);
	cr_assert_eq(dropped, 9u);
	cr_assert_eq(file_blocks(), PAGE_BYTES);
	cr_assert(store_has_content(t, a));
	store_free(t);
}

Test(store, foreign_file_is_not_adopted)
{
	int fd = memfd_create("not-a-store", MFD_CLOEXEC);
	struct store *t;

	cr_assert_eq(ftruncate(fd, MIB(1)), 0);
	cr_assert_eq(store_adopt(fd, MIB(16), &t), -EINVAL);
	close(fd);
}

/* Counts are kept in 16 bits while they fit: several pages beyond that, in any order. */
Test(store, counts_beyond_16_bits)
{
	enum {
		PAGES = 5,
		MANY = 70000
	};
	u32 a = store_alloc(s, PAGES);

	for (u32 i = 0; i < PAGES; i++)
		fill(a + i, (u8)i);
	for (u32 n = 0; n < MANY; n++) {
		for (u32 i = 0; i < PAGES; i++) {
			store_ref(s, a + i);
			if (i % 2)
				store_cover(s, a + i);
		}
		if (n % 1000 == 999 || (n > 65530 && n < 65540)) {
			for (u32 i = 0; i < PAGES; i++) {
				cr_assert_eq(store_refs(s, a + i), n + 1);
				cr_assert_eq(store_covers(s, a + i), i % 2 ? n + 1 : 0u);
			}
		}
	}
	cr_assert_eq(store_total_refs(s), (u64)PAGES * MANY);
	cr_assert_eq(store_hash(s, a + 1), 1001ull << 16);
	for (u32 n = MANY; n-- > 0;)
		for (u32 i = 0; i < PAGES; i++)
			cr_assert_eq(store_unref(s, a + i), n == 0, "page %u at %u", i, n);
	cr_assert_eq(store_pages(s), 0u);
	/* Content gone, mappings not: no offset with a cover is given out. */
	for (u32 i = 1; i < PAGES; i += 2) {
		cr_assert_eq(store_covers(s, a + i), (u32)MANY);
		cr_assert_eq(store_refs(s, a + i), 0u);
		for (u32 n = 0; n < MANY; n++)
			store_uncover(s, a + i);
		cr_assert_eq(store_covers(s, a + i), 0u);
	}
}

/* Against a plain search: runs of all lengths, across the words of the bitmap. */
Test(store, reuses_gaps_and_never_a_used_page)
{
	enum {
		PAGES = 2048,
		ROUNDS = 4000
	};
	static bool used[PAGES * 2];
	u64 seed = 88172645463325252ull, reused = 0;
	u32 end = store_alloc(s, PAGES);

	cr_assert_eq(end, 0u);
	memset(used, true, PAGES);
	end = PAGES;
	for (u32 round = 0; round < ROUNDS; round++) {
		u32 nr, at;

		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		nr = 1 + seed % 90;
		at = (u32)((seed >> 20) % (PAGES - nr));
		for (u32 i = at; i < at + nr; i++) {
			if (!used[i])
				continue;
			store_release(s, i, 1);
			used[i] = false;
		}
		/* What is asked for is less than what was just given up, in one piece. */
		at = store_alloc(s, nr / 2 + 1);
		/* A search is bounded, and does not see all of the store. */
		if (at == SPN_NONE)
			continue;
		reused += at < end;
		for (u32 i = at; i <= at + nr / 2; i++) {
			cr_assert_lt(i, (u32)ARRAY_SIZE(used));
			cr_assert(!used[i], "page %u given out twice, round %u", i, round);
			used[i] = true;
		}
		end = MAX(end, at + nr / 2 + 1);
	}
	cr_assert_gt(reused, ROUNDS / 2);
}

/* What looks at all bits of a hash must not miss what is stored, and 0 is for "no content". */
Test(store, hashes_are_kept_to_48_bits)
{
	u32 a = store_alloc(s, 3);

	store_set_hash(s, a, 0x0123456789abcdef);
	cr_assert_eq(store_hash(s, a), store_hash_kept(0x0123456789abcdef));
	cr_assert_eq(store_hash(s, a), 0x0123456789ab0000u);
	store_set_hash(s, a + 1, 0xffff);
	cr_assert(store_has_content(s, a + 1));
	cr_assert_neq(store_hash(s, a + 1), 0u);
	cr_assert_eq(store_hash(s, a + 1) >> 32, 0u); /* the index's tag of 0xffff */
	cr_assert(!store_has_content(s, a + 2));
	for (u32 i = 0; i < 2; i++)
		store_ref(s, a + i);
}
