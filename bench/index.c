/* SPDX-License-Identifier: MIT */
/*
 * make bench-index: what a scanned guest page costs the daemon, in time and in bytes, at 1 to 64 Mi
 * pages (256 GiB of guest memory), and that this stays flat.
 *
 *   index   synthetic hashes through the real content index
 *   page    all metadata together, by the engine's own code: a region of that many pages, all of
 *           them candidates, or half or all of them shared, a store page for each two
 *   numbers allocation of store pages and of page numbers
 *
 * Bytes are resident anonymous ones (smaps_rollup: without the program's own text, which does not
 * depend on pages), each measured in a child process of its own, so that no allocator hands the
 * memory of one to the next. The address space of the region is never touched.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "bench/report.h"
#include "common/clock.h"
#include "common/procfs.h"
#include "ksmd/core.h"

enum {
	LOOKUPS = 2000000,
	AHEAD = 8, /* lookups that are prefetched */
	NR_SIZES = 4,
};

static const u32 sizes_mi[NR_SIZES] = { 1, 4, 16, 64 };

/* A stand-in for XXH3 of page @i: splitmix64. */
static u64 hash_of(u64 i)
{
	i += 0x9e3779b97f4a7c15ull;
	i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9ull;
	i = (i ^ (i >> 27)) * 0x94d049bb133111ebull;
	return i ^ (i >> 31);
}

static u32 tag_of(u64 i)
{
	return hash_tag(hash_of(i));
}

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "bench-index: %s\n", what);
	exit(1);
}

static u64 rss(void)
{
	struct proc_memory m = { 0 };

	if (proc_memory(getpid(), &m) < 0)
		fail("smaps_rollup");
	return m.pss_anon;
}

/* jemalloc keeps what was freed for ten seconds; the sanitized build has none. */
int mallctl(const char *name, void *old, size_t *old_len, void *new, size_t new_len)
	__attribute__((weak));

static void purge_heap(void)
{
	if (mallctl)
		mallctl("arena.4096.purge", NULL, NULL, NULL, 0); /* MALLCTL_ARENAS_ALL */
}

/* Runs @fn in a child, and returns what it stored. */
static void run_apart(void (*fn)(u64 nr, double *ret), u64 nr, double *ret, u32 nr_ret)
{
	double *shared =
		mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	if (shared == MAP_FAILED)
		fail("mmap");
	pid = fork();
	if (pid == 0) {
		fn(nr, shared);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
		fail("a measurement failed");
	for (u32 i = 0; i < nr_ret; i++)
		ret[i] = shared[i];
	munmap(shared, PAGE_BYTES);
}

/* --- the index ---------------------------------------------------------------------------------
 */

enum point {
	NS_INSERT,
	NS_HIT,
	NS_MISS,
	NS_MISS_PREFETCHED,
	NS_DELETE,
	BYTES,
	RSS_BYTES,
	RSS_BYTES_AT_ONCE,
	LONGEST_US,
	RSS_BYTES_LEFT,
	NR_POINT,
};

static bool is_value(u32 value, void *arg)
{
	return value == *(u32 *)arg;
}

/* Adds values up to @nr; the last ones are timed one by one: each shard grows once about. */
static void measure_inserts(struct index *x, u64 nr, double *p)
{
	u64 t = now_ns(), bulk = nr / 8 * 7, longest = 0;

	for (u64 i = 0; i < bulk; i++)
		if (index_add(x, tag_of(i), (u32)i) < 0)
			fail("index_add");
	p[NS_INSERT] = (double)(now_ns() - t) / (double)bulk;
	for (u64 i = bulk; i < nr; i++) {
		t = now_ns();
		if (index_add(x, tag_of(i), (u32)i) < 0)
			fail("index_add");
		longest = MAX(longest, now_ns() - t);
	}
	p[LONGEST_US] = (double)longest / 1000;
}

static double measure_misses(const struct index *x, u64 nr, u32 ahead)
{
	u64 t = now_ns(), missed = 0;

	for (u64 i = nr; i < nr + LOOKUPS; i++) {
		if (ahead)
			index_prefetch(x, tag_of(i + ahead));
		missed += index_find(x, tag_of(i), is_value, &(u32){ INDEX_NONE - 1 }) ==
			  INDEX_NONE;
	}
	if (missed != LOOKUPS)
		fail("the index found what is not there");
	return (double)(now_ns() - t) / LOOKUPS;
}

static void measure_index(u64 nr, double *p)
{
	u64 rss_before = rss(), t, found = 0, deleted = 0;
	struct index *x;

	if (index_new(&x) < 0)
		fail("index_new");
	measure_inserts(x, nr, p);
	p[BYTES] = (double)index_bytes(x) / (double)nr;
	p[RSS_BYTES_AT_ONCE] = (double)(rss() - rss_before) / (double)nr;
	purge_heap();
	p[RSS_BYTES] = (double)(rss() - rss_before) / (double)nr;

	t = now_ns();
	for (u64 i = 0; i < LOOKUPS; i++) {
		u32 v = (u32)(i * 2654435761u % nr);

		found += index_find(x, tag_of(v), is_value, &v) == v;
	}
	p[NS_HIT] = (double)(now_ns() - t) / LOOKUPS;
	if (found != LOOKUPS)
		fail("the index lost something");
	p[NS_MISS] = measure_misses(x, nr, 0);
	p[NS_MISS_PREFETCHED] = measure_misses(x, nr, AHEAD);

	/* All but a hundredth: what shrinking leaves. */
	t = now_ns();
	for (u64 i = nr / 100; i < nr; i++)
		deleted += index_del(x, tag_of(i), (u32)i);
	p[NS_DELETE] = (double)(now_ns() - t) / (double)(nr - nr / 100);
	if (deleted != nr - nr / 100)
		fail("the index lost something");
	purge_heap();
	p[RSS_BYTES_LEFT] = (double)(rss() - rss_before) / (double)nr;
}

static void report_index(struct report *r, u32 mi, const double *p)
{
	report_result(r, "index");
	report_number(r, "entries_mi", mi, 0);
	report_number(r, "guest_gib", mi * 4.0, 0);
	report_number(r, "inserts_per_second", 1e9 / p[NS_INSERT], 0);
	report_number(r, "hits_per_second", 1e9 / p[NS_HIT], 0);
	report_number(r, "misses_per_second", 1e9 / p[NS_MISS], 0);
	report_number(r, "misses_prefetched_per_second", 1e9 / p[NS_MISS_PREFETCHED], 0);
	report_number(r, "deletes_per_second", 1e9 / p[NS_DELETE], 0);
	report_number(r, "longest_insert_us", p[LONGEST_US], 0);
	report_number(r, "bytes_per_entry", p[BYTES], 2);
	report_number(r, "rss_bytes_per_entry", p[RSS_BYTES], 2);
	report_number(r, "rss_bytes_per_entry_before_purge", p[RSS_BYTES_AT_ONCE], 2);
	report_number(r, "rss_bytes_per_entry_after_delete_99", p[RSS_BYTES_LEFT], 2);
	report_end(r);
}

/* --- all metadata of a page --------------------------------------------------------------------
 */

static const struct engine_ops no_agent;

/* A region of @nr pages in this process, none of which is ever touched. */
static struct ksm_region *new_region(u64 nr)
{
	const struct engine_config cfg = { .interval_us = 1000000,
					   .store_max_bytes = nr << PAGE_SHIFT,
					   .threads = 1,
					   .request_pages = ENGINE_PAGES_MAX,
					   .vm_max_bytes = nr << PAGE_SHIFT };
	void *ram = mmap(NULL, nr << PAGE_SHIFT, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct ksm_domain *d;
	struct engine *e;
	struct ksm_vm *vm;

	if (ram == MAP_FAILED || engine_new(&cfg, &no_agent, &e) < 0 ||
	    engine_domain(e, "bench", &d) < 0 || engine_vm_add(e, getpid(), d, KSM_ON, &vm) < 0 ||
	    engine_region_add(vm, ROUND_UP((u64)(uintptr_t)ram, PAGE_BYTES), nr << PAGE_SHIFT) < 0)
		fail("cannot make a region");
	return vm->regions[0];
}

/* Without what the region costs before a page of it was looked at: that is part of the price. */
static void measure_candidates(u64 nr, double *ret)
{
	u64 before = rss();
	struct ksm_region *r = new_region(nr);

	for (u32 p = 0; p < nr; p++)
		if (page_set_candidate(r, p, tag_of(p)) < 0)
			fail("page_set_candidate");
	purge_heap();
	*ret = (double)(rss() - before) / (double)nr;
}

/* The same pages; then pairs of them are promoted as promote.c does, @nr_store pairs. */
static double measure_shared(u64 nr, u32 nr_store)
{
	u64 before = rss();
	struct ksm_region *r = new_region(nr);
	struct ksm_domain *d = r->vm->domain;
	u32 spn;

	/* The second one of a pair is never a candidate. */
	for (u32 p = 0; p < nr; p++)
		if ((p < nr_store || p >= 2 * nr_store) && page_set_candidate(r, p, tag_of(p)) < 0)
			fail("page_set_candidate");
	for (u32 p = 0; p < nr_store; p++) {
		spn = store_alloc(d->store, 1);
		if (spn == SPN_NONE)
			fail("store_alloc");
		store_set_hash(d->store, spn, hash_of(p));
		if (index_add(d->index, tag_of(p), INDEX_STORE_FLAG | spn) < 0)
			fail("index_add");
		for (u32 k = 0; k < 2; k++) {
			page_set_pending(r, p + k * nr_store);
			store_ref(d->store, spn);
			page_set_shared(r, p + k * nr_store, spn);
		}
	}
	if (r->vm->stats.shared_pages != 2 * nr_store ||
	    r->vm->stats.candidate_pages != nr - 2 * nr_store)
		fail("not as many pages are shared as should be");
	purge_heap();
	return (double)(rss() - before) / (double)nr;
}

static void measure_half_shared(u64 nr, double *ret)
{
	*ret = measure_shared(nr, (u32)(nr / 4));
}

/* The dearest that sharing can be: a store page for each two. */
static void measure_all_shared(u64 nr, double *ret)
{
	*ret = measure_shared(nr, (u32)(nr / 2));
}

/* --- allocation of numbers ---------------------------------------------------------------------
 */

enum numbers {
	NS_STORE_FILL,
	NS_STORE_GAPS,
	NS_STORE_RUN,
	US_GPN,
	US_GPN_GAPS,
	NR_NUMBERS,
};

/* A store of @nr pages: filled, then with every 16th page free, then asked for runs in that. */
static void measure_store(u64 nr, double *ret)
{
	struct store *s;
	u64 t = now_ns();

	if (store_new("bench", nr * 2 << PAGE_SHIFT, &s) < 0)
		fail("store_new");
	for (u64 i = 0; i < nr; i++)
		if (store_alloc(s, 1) == SPN_NONE)
			fail("store_alloc");
	ret[NS_STORE_FILL] = (double)(now_ns() - t) / (double)nr;
	for (u64 i = 0; i < nr; i += 16)
		store_release(s, (u32)i, 1);
	store_flush(s);
	t = now_ns();
	for (u64 i = 0; i < nr / 32; i++)
		if (store_alloc(s, 1) == SPN_NONE)
			fail("store_alloc");
	ret[NS_STORE_GAPS] = (double)(now_ns() - t) / (double)(nr / 32);
	t = now_ns();
	for (u64 i = 0; i < 10000; i++)
		if (store_alloc(s, 16) == SPN_NONE)
			fail("store_alloc");
	ret[NS_STORE_RUN] = (double)(now_ns() - t) / 10000;
}

/* Page numbers for @nr pages in 2,048 VMs; then every other one goes, and larger ones come. */
static void measure_gpn(u64 nr, double *ret)
{
	enum {
		VMS = 2048
	};
	struct gpn_space g = { 0 };
	u64 pages = nr / VMS, t = now_ns();
	u32 first[VMS];

	for (u32 i = 0; i < VMS; i++) {
		first[i] = gpn_alloc(&g, pages, &g);
		if (first[i] == GPN_NONE)
			fail("gpn_alloc");
	}
	ret[US_GPN] = (double)(now_ns() - t) / 1000 / VMS;
	for (u32 i = 0; i < VMS; i += 2)
		gpn_release(&g, first[i], pages);
	t = now_ns();
	for (u32 i = 0; i < VMS / 2; i++)
		if (gpn_alloc(&g, pages * 2, &g) == GPN_NONE)
			fail("gpn_alloc");
	ret[US_GPN_GAPS] = (double)(now_ns() - t) / 1000 / (VMS / 2);
}

static void measure_numbers(u64 nr, double *ret)
{
	measure_store(nr, ret);
	measure_gpn(nr, ret);
}

static void report_numbers(struct report *r, u32 mi, const double *n)
{
	report_result(r, "numbers");
	report_number(r, "pages_mi", mi, 0);
	report_number(r, "store_alloc_ns", n[NS_STORE_FILL], 0);
	report_number(r, "store_alloc_in_gaps_ns", n[NS_STORE_GAPS], 0);
	report_number(r, "store_alloc_run_past_gaps_ns", n[NS_STORE_RUN], 0);
	report_number(r, "gpn_alloc_2048_vms_us", n[US_GPN], 1);
	report_number(r, "gpn_alloc_past_gaps_us", n[US_GPN_GAPS], 1);
	report_end(r);
}

static void report_page(struct report *r, u32 mi, double candidates, double half, double all)
{
	report_result(r, "page");
	report_number(r, "pages_mi", mi, 0);
	report_number(r, "guest_gib", mi * 4.0, 0);
	report_number(r, "rss_bytes_per_page_all_candidates", candidates, 2);
	report_number(r, "rss_bytes_per_page_half_shared", half, 2);
	report_number(r, "rss_bytes_per_page_all_shared_in_pairs", all, 2);
	report_end(r);
}

int main(void)
{
	double x[NR_SIZES], line[NR_POINT][NR_SIZES], candidates[NR_SIZES], half[NR_SIZES],
		all[NR_SIZES];
	struct report *r = report_new("index");

	for (u32 i = 0; i < NR_SIZES; i++) {
		u64 nr = (u64)sizes_mi[i] << 20;
		double p[NR_POINT], n[NR_NUMBERS];

		x[i] = (double)nr;
		run_apart(measure_index, nr, p, NR_POINT);
		report_index(r, sizes_mi[i], p);
		for (u32 k = 0; k < NR_POINT; k++)
			line[k][i] = p[k];
		run_apart(measure_candidates, nr, &candidates[i], 1);
		run_apart(measure_half_shared, nr, &half[i], 1);
		run_apart(measure_all_shared, nr, &all[i], 1);
		report_page(r, sizes_mi[i], candidates[i], half[i], all[i]);
		run_apart(measure_numbers, nr, n, NR_NUMBERS);
		report_numbers(r, sizes_mi[i], n);
	}
	report_chart(r, "index.svg",
		     &(struct chart){
			     .title = "Content index: time of an operation",
			     .x_title = "pages in the index",
			     .y_title = "ns",
			     .log_x = true,
			     .lines =
				     (struct chart_line[]){
					     { "insert (with growth)", x, line[NS_INSERT], 4 },
					     { "hit", x, line[NS_HIT], 4 },
					     { "miss", x, line[NS_MISS], 4 },
					     { "miss, prefetched", x, line[NS_MISS_PREFETCHED], 4 },
				     },
			     .nr_lines = 4,
		     });
	report_chart(
		r, "bytes.svg",
		&(struct chart){
			.title = "Resident memory of the daemon for a guest page",
			.x_title = "guest pages",
			.y_title = "bytes",
			.log_x = true,
			.lines = (struct chart_line[]){ { "all candidates", x, candidates, 4 },
							{ "half shared", x, half, 4 },
							{ "all shared, in pairs", x, all, 4 },
							{ "index alone", x, line[RSS_BYTES], 4 } },
			.nr_lines = 4,
		});
	report_finish(r);
	return 0;
}
