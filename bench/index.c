/* SPDX-License-Identifier: MIT */
/*
 * make bench-index: synthetic hashes through the real index, at 1 to 64 Mi pages (256 GiB of guest
 * memory). Shows what a page costs in time and bytes, and that this stays flat.
 */
#include <stdio.h>
#include <stdlib.h>
#include "bench/report.h"
#include "common/clock.h"
#include "common/procfs.h"
#include "ksmd/index.h"
#include <unistd.h>

/* A stand-in for XXH3 of page @i: splitmix64, whose high half is the tag. */
static u32 tag_of(u64 i)
{
	i += 0x9e3779b97f4a7c15ull;
	i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9ull;
	i = (i ^ (i >> 27)) * 0x94d049bb133111ebull;
	return (u32)((i ^ (i >> 31)) >> 32);
}

static bool is_value(u32 value, void *arg)
{
	return value == *(u32 *)arg;
}

static u64 rss(void)
{
	struct proc_memory m = { 0 };

	proc_memory(getpid(), &m);
	return m.rss;
}

struct point {
	double ns_insert, ns_hit, ns_miss, ns_delete, bytes, rss_bytes, longest_us;
};

enum {
	LOOKUPS = 2000000
};

static struct point measure(struct report *r, u32 mi)
{
	u64 nr = (u64)mi << 20, rss_before = rss(), t, longest = 0;
	u64 found = 0, missed = 0, deleted = 0;
	struct point p = { 0 };
	struct index *x;

	if (index_new(&x) < 0)
		exit(1);
	t = now_us();
	for (u64 i = 0, last = t; i < nr; i++) {
		if (index_add(x, tag_of(i), (u32)i) < 0)
			exit(1);
		/* How long does the engine stand still when the index grows? Looked at in batches.
		 */
		if (i % 256 == 0) {
			u64 now = now_us();

			longest = MAX(longest, now - last);
			last = now;
		}
	}
	p.ns_insert = (double)(now_us() - t) * 1000 / (double)nr;
	p.longest_us = (double)longest;
	p.bytes = (double)index_bytes(x) / (double)nr;
	p.rss_bytes = (double)(rss() - rss_before) / (double)nr;

	t = now_us();
	for (u64 i = 0; i < LOOKUPS; i++) {
		u32 v = (u32)(i * 2654435761u % nr);

		found += index_find(x, tag_of(v), is_value, &v) == v;
	}
	p.ns_hit = (double)(now_us() - t) * 1000 / LOOKUPS;
	t = now_us();
	for (u64 i = 0; i < LOOKUPS; i++) {
		u32 v = UINT32_MAX - 1;

		missed += index_find(x, tag_of(nr + i), is_value, &v) == INDEX_NONE;
	}
	p.ns_miss = (double)(now_us() - t) * 1000 / LOOKUPS;
	t = now_us();
	for (u64 i = 0; i < LOOKUPS / 2; i++) {
		u32 v = (u32)(i * 2654435761u % nr);

		deleted += index_del(x, tag_of(v), v);
	}
	p.ns_delete = (double)(now_us() - t) * 1000 / (LOOKUPS / 2.0);
	index_free(x);
	/* Deletions come round to the same page again when there are fewer pages than lookups. */
	if (found != LOOKUPS || missed != LOOKUPS || !deleted) {
		fprintf(stderr, "the index is wrong: %llu hits, %llu misses of %d\n",
			(unsigned long long)found, (unsigned long long)missed, LOOKUPS);
		exit(1);
	}

	report_result(r, "index");
	report_number(r, "entries_mi", mi, 0);
	report_number(r, "guest_gib", mi * 4.0, 0);
	report_number(r, "inserts_per_second", 1e9 / p.ns_insert, 0);
	report_number(r, "hits_per_second", 1e9 / p.ns_hit, 0);
	report_number(r, "misses_per_second", 1e9 / p.ns_miss, 0);
	report_number(r, "deletes_per_second", 1e9 / p.ns_delete, 0);
	report_number(r, "bytes_per_page", p.bytes, 2);
	report_number(r, "rss_bytes_per_page", p.rss_bytes, 2);
	report_number(r, "longest_256_inserts_us", p.longest_us, 0);
	report_end(r);
	return p;
}

int main(void)
{
	static const u32 sizes[] = { 1, 4, 16, 64 };
	double x[4], insert[4], hit[4], miss[4];
	struct report *r = report_new("index");

	for (u32 i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct point p = measure(r, sizes[i]);

		x[i] = (double)sizes[i] * (1 << 20);
		insert[i] = p.ns_insert;
		hit[i] = p.ns_hit;
		miss[i] = p.ns_miss;
	}
	report_chart(
		r, "index.svg",
		&(struct chart){
			.title = "Content index: time of an operation",
			.x_title = "pages in the index",
			.y_title = "ns",
			.log_x = true,
			.lines = (struct chart_line[]){ { "insert (with growth)", x, insert, 4 },
							{ "hit", x, hit, 4 },
							{ "miss", x, miss, 4 } },
			.nr_lines = 3,
		});
	report_finish(r);
	return 0;
}
