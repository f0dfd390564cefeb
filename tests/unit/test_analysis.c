/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "ctl/analysis.h"

/* Pages of a VM from an address on, one letter a page: the letter is the content, '.' a page
 * that is absent, a letter in upper case the same content in a store page. */
static size_t add(struct analysis_page *v, size_t n, u32 vm, u64 page, const char *letters)
{
	for (; *letters; letters++, page++) {
		bool shared = *letters >= 'A' && *letters <= 'Z';

		if (*letters != '.')
			v[n++] = (struct analysis_page){
				/* Spread over all bits, as hashes are; the order differs from
				 * the letters'. */
				.hash = (u64)(*letters | 0x20) * 0x9e3779b97f4a7c15ULL,
				.where = analysis_where(vm, page, shared),
			};
	}
	return n;
}

static void expect(const struct analysis_counts *c, const char *what, u64 pages, u64 distinct,
		   u64 within, u64 across, u64 shareable, u64 runs)
{
	cr_expect(c->pages == pages && c->distinct == distinct && c->dup_within == within &&
			  c->dup_across == across && c->shareable == shareable && c->runs == runs,
		  "%s: pages %" PRIu64 " distinct %" PRIu64 " within %" PRIu64 " across %" PRIu64
		  " shareable %" PRIu64 " runs %" PRIu64,
		  what, c->pages, c->distinct, c->dup_within, c->dup_across, c->shareable, c->runs);
}

Test(analysis, nothing)
{
	struct analysis_counts vms[2];
	struct analysis a;

	memset(vms, 0xff, sizeof(vms));
	memset(&a, 0xff, sizeof(a));
	analysis_run(NULL, 0, vms, 2, &a);
	expect(&vms[1], "vm", 0, 0, 0, 0, 0, 0);
	expect(&a.total, "total", 0, 0, 0, 0, 0, 0);
	cr_expect_eq(a.runs[0], 0);
}

Test(analysis, all_different)
{
	struct analysis_page v[32];
	struct analysis_counts vms[2];
	struct analysis a;
	size_t n = add(v, 0, 0, 100, "abcdef");

	n = add(v, n, 1, 100, "ghij");
	analysis_run(v, n, vms, 2, &a);
	expect(&vms[0], "vm 0", 6, 6, 0, 0, 0, 0);
	expect(&vms[1], "vm 1", 4, 4, 0, 0, 0, 0);
	expect(&a.total, "total", 10, 10, 0, 0, 0, 0);
}

Test(analysis, within_and_across)
{
	struct analysis_page v[32];
	struct analysis_counts vms[3];
	struct analysis a;
	size_t n = add(v, 0, 2, 7, "ca"); /* any order of input will do */

	n = add(v, n, 0, 100, "abca");
	n = add(v, n, 1, 500, "aaxb");
	analysis_run(v, n, vms, 3, &a);
	expect(&vms[0], "vm 0", 4, 3, 1, 0, 4, 2);
	/* The first a has its like in VM 0 only, the second has one in its own VM too. */
	expect(&vms[1], "vm 1", 4, 3, 1, 2, 3, 3);
	expect(&vms[2], "vm 2", 2, 2, 0, 2, 2, 2);
	/* a b c x are left of ten. */
	expect(&a.total, "total", 10, 4, 2, 4, 9, 7);
}

Test(analysis, runs_follow_the_first_copies)
{
	struct analysis_page v[64];
	struct analysis_counts vms[2];
	struct analysis a;
	size_t n = add(v, 0, 0, 1000, "abcdefgh");

	/* abcd moved: one run. gh after ef absent: a run. ba: the first copies go backwards,
	 * two runs. */
	n = add(v, n, 1, 5, "abcd..gh.ba");
	analysis_run(v, n, vms, 2, &a);
	/* VM 0: e and f are alone, so abcd and gh. */
	expect(&vms[0], "vm 0", 8, 8, 0, 0, 6, 2);
	expect(&vms[1], "vm 1", 8, 6, 2, 6, 8, 4);
	cr_expect_eq(a.runs[0], 2);
	cr_expect_eq(a.run_pages[0], 2);
	cr_expect_eq(a.runs[1], 2);
	cr_expect_eq(a.run_pages[1], 4);
	cr_expect_eq(a.runs[2], 2);
	cr_expect_eq(a.run_pages[2], 8);
	cr_expect_eq(a.runs[3], 0);
}

/* The last page of one VM and the first of the next are no neighbours. */
Test(analysis, runs_end_with_the_vm)
{
	struct analysis_page v[64];
	struct analysis_counts vms[4];
	struct analysis a;
	size_t n = add(v, 0, 0, (1ULL << 49) - 2, "ab");

	n = add(v, n, 1, 0, "cd");
	n = add(v, n, 2, 50, "abcd");
	analysis_run(v, n, vms, 4, &a);
	expect(&vms[0], "vm 0", 2, 2, 0, 0, 2, 1);
	expect(&vms[1], "vm 1", 2, 2, 0, 0, 2, 1);
	cr_expect_eq(vms[2].pages, 4);
	expect(&vms[3], "vm 3", 0, 0, 0, 0, 0, 0);
}

Test(analysis, store_pages_are_not_removable)
{
	struct analysis_page v[32];
	struct analysis_counts vms[2];
	struct analysis a;
	/* a is shared by both already; b is in the store and once more in private. */
	size_t n = add(v, 0, 0, 10, "bAA");

	n = add(v, n, 1, 10, "BAc");
	analysis_run(v, n, vms, 2, &a);
	expect(&vms[0], "vm 0", 3, 2, 0, 1, 3, 2);
	expect(&vms[1], "vm 1", 3, 3, 0, 0, 2, 1);
	cr_expect_eq(vms[0].already_shared, 2);
	cr_expect_eq(vms[1].already_shared, 2);
	cr_expect_eq(a.total.already_shared, 4);
	cr_expect_eq(a.total.dup_across + a.total.dup_within, 1);
}

Test(analysis, buckets)
{
	struct analysis_counts vms[2];
	struct analysis a;
	size_t big = 70000, n = 0;
	struct analysis_page *v = calloc(2 * (big + 7), sizeof(*v));

	for (u32 vm = 0; vm < 2; vm++) {
		for (u64 i = 0; i < big; i++) /* in the open bucket: 2^15 and more */
			v[n++] = (struct analysis_page){ i * 0x9e3779b97f4a7c15ULL,
							 analysis_where(vm, i, false) };
		for (u64 i = 0; i < 7; i++) /* 4 to 7 */
			v[n++] = (struct analysis_page){ ~(i * 0x9e3779b97f4a7c15ULL),
							 analysis_where(vm, 900000 + i, false) };
	}
	analysis_run(v, n, vms, 2, &a);
	cr_expect_eq(a.runs[2], 2);
	cr_expect_eq(a.run_pages[2], 14);
	cr_expect_eq(a.runs[ANALYSIS_NR_BUCKETS - 1], 2);
	cr_expect_eq(a.run_pages[ANALYSIS_NR_BUCKETS - 1], 2 * big);
	free(v);
}

/* The same figures by brute force. Few hash values, so that groups are large and of all kinds. */
static void slow(const struct analysis_page *v, size_t n, u32 nr_vms, struct analysis_counts *vms,
		 u64 *ret_runs)
{
	u64 runs = 0;

	memset(vms, 0, nr_vms * sizeof(*vms));
	for (size_t i = 0; i < n; i++) {
		struct analysis_counts *c = &vms[v[i].where >> 50];
		bool group = false, own_before = false, any_before = false, store = false;
		u64 first = v[i].where;

		for (size_t j = 0; j < n; j++) {
			if (j == i || v[j].hash != v[i].hash)
				continue;
			group = true;
			store |= v[j].where & 1;
			first = MIN(first, v[j].where);
			if (v[j].where < v[i].where) {
				any_before = true;
				own_before |= v[j].where >> 50 == v[i].where >> 50;
			}
		}
		c->pages++;
		c->distinct += !own_before;
		c->shareable += group;
		if (v[i].where & 1)
			c->already_shared++;
		else if (own_before)
			c->dup_within++;
		else if (any_before || store)
			c->dup_across++;
		if (!group)
			continue;
		/* A run begins here unless the page before continues into this one. */
		bool continued = false;

		for (size_t j = 0; j < n; j++) {
			u64 first_j = v[j].where, group_j = 0;

			if (v[j].where >> 1 != (v[i].where >> 1) - 1)
				continue;
			for (size_t k = 0; k < n; k++) {
				if (v[k].hash == v[j].hash) {
					first_j = MIN(first_j, v[k].where);
					group_j++;
				}
			}
			continued = group_j > 1 && first_j >> 1 == (first >> 1) - 1;
		}
		runs += !continued;
	}
	*ret_runs = runs;
}

Test(analysis, against_brute_force)
{
	struct analysis_counts fast[3], expected[3];
	struct analysis_page v[300];
	struct analysis a;
	u64 runs;

	srandom(3);
	for (int round = 0; round < 200; round++) {
		u32 contents = 1 + (u32)random() % 200;
		size_t n = 0;

		for (u32 vm = 0; vm < 3; vm++) {
			u64 page = (u64)random() % 1000;
			u32 content = (u32)random() % contents;

			for (int i = 0; i < 100; i++) {
				page += random() % 8 ? 1 : 2;
				content = random() % 4 ? content + 1 : (u32)random();
				v[n++] = (struct analysis_page){
					.hash = (content % contents) * 0x9e3779b97f4a7c15ULL,
					.where = analysis_where(vm, page, random() % 16 == 0),
				};
			}
		}
		slow(v, n, 3, expected, &runs);
		analysis_run(v, n, fast, 3, &a);
		for (u32 vm = 0; vm < 3; vm++) {
			expected[vm].runs = fast[vm].runs; /* compared as a sum */
			cr_assert(memcmp(&fast[vm], &expected[vm], sizeof(fast[vm])) == 0,
				  "round %d, VM %u", round, vm);
		}
		cr_assert_eq(a.total.runs, runs, "round %d", round);
		u64 in_buckets = 0, pages = 0;

		for (int b = 0; b < ANALYSIS_NR_BUCKETS; b++) {
			in_buckets += a.runs[b];
			pages += a.run_pages[b];
		}
		cr_assert_eq(in_buckets, runs);
		cr_assert_eq(pages, a.total.shareable);
	}
}
