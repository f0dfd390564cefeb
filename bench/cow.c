/* SPDX-License-Identifier: MIT */
/*
 * make bench-cow: what a guest's write to a shared page costs, under the kernel's KSM and under
 * Ballast, in one run.
 *
 * A case is one engine on one layout of equal pages, in two processes (memhost.c):
 *
 *   1. The hosts fill their memory and offer it. The engine shares it, until all of it is shared:
 *      by its own books, and by the page frames that are left.
 *   2. The engine is stopped, so that nothing is merged again.
 *   3. One host writes to NR_WRITES of its shared pages, in random order, each page once and each
 *      write timed.
 *   4. Every byte of both hosts is compared with what it must be, and the frames are counted: each
 *      write must have cost one, or it was no break.
 *
 * The cases take turns, ROUNDS times, because the machine's speed changes by more than what is
 * looked for; percentiles are over the writes of all rounds. A ratio comes with the lowest and the
 * highest of the rounds.
 *
 * KSM leaves its pages mapped, Ballast does not (the kernel maps a file's page at the first
 * access). So Ballast is measured with its pages read once before, as the comparison asks for
 * ("mapped"), and without ("unmapped": the write pays for the mapping too). "merging" is not about
 * breaks only: writes arrive while the engine works on the same memory, whatever state a page is
 * in; no ratio, since how many of the pages are shared by then is each engine's own.
 *
 * ONLY=text runs the cases with that in their name.
 *
 * For scale: writes to private pages, which break nothing (the time stamps and a cache miss), and
 * to pages shared by fork(), the kernel's own copy-on-write.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bench/atend.h"
#include "bench/content.h"
#include "bench/frames.h"
#include "bench/host.h"
#include "bench/peer.h"
#include "bench/report.h"
#include "common/clock.h"

enum {
	PAGES = 32768, /* of each host: 128 MiB */
	NR_WRITES = 16384,
	ROUNDS = 3,
	/* While an engine is at work: some 100 us apart, so that they meet all of its work. */
	MERGING_CHUNK = 256,
	MERGING_PAUSE_US = 50,
};

#define POLL_US 20000
/* A second on an idle machine; ksmd is nice, and on a busy one gets little. */
#define MERGE_LIMIT_US 40000000
#define RUN_LIMIT_S    115
/* Frames that another process may change under us, and pages that an engine may leave out. */
#define TOLERANCE (PAGES / 1000)

enum layout_name {
	RUN,
	SCATTERED,
	NR_LAYOUTS
};

struct layout {
	const char *name;
	enum content_kind kind;
	u32 nr_files;
	u32 step; /* every step-th page has a twin */
	char files[2][64];
	struct duplicates dup;
};

static struct layout layouts[NR_LAYOUTS] = {
	[RUN] = { .name = "run", .kind = CONTENT_SAME, .nr_files = 1, .step = 1 },
	[SCATTERED] = { .name = "scattered", .kind = CONTENT_SCATTERED, .nr_files = 2, .step = 2 },
};

enum state {
	PRIVATE,
	FORKED,
	MAPPED,
	UNMAPPED,
	MERGING
};
static const char *const state_names[] = {
	[PRIVATE] = "private",	 [FORKED] = "forked",	[MAPPED] = "mapped",
	[UNMAPPED] = "unmapped", [MERGING] = "merging",
};

struct cow_case {
	const char *name; /* in charts and errors */
	u32 peer;	  /* NR_PEERS: none */
	enum layout_name layout;
	enum state state;
	const struct cow_case *ksm; /* the case that it is compared with */
	/* Results. */
	u32 *ns, nr; /* of all rounds */
	u64 p50[ROUNDS], p99[ROUNDS];
};

#define CASE(label, p, l, s, ...)                                                \
	{                                                                        \
		.name = label, .peer = p, .layout = l, .state = s, ##__VA_ARGS__ \
	}

static struct cow_case cases[] = {
	CASE("private", NR_PEERS, RUN, PRIVATE),
	CASE("fork", NR_PEERS, RUN, FORKED),
	CASE("KSM, run", PEER_KSM_FLAT_OUT, RUN, MAPPED),
	CASE("Ballast, run", PEER_BALLAST, RUN, MAPPED, .ksm = &cases[2]),
	CASE("KSM, scattered", PEER_KSM_FLAT_OUT, SCATTERED, MAPPED),
	CASE("Ballast, scattered", PEER_BALLAST, SCATTERED, MAPPED, .ksm = &cases[4]),
	CASE("Ballast, run, unmapped", PEER_BALLAST, RUN, UNMAPPED, .ksm = &cases[2]),
	CASE("KSM, merging", PEER_KSM_FLAT_OUT, RUN, MERGING),
	CASE("Ballast, merging", PEER_BALLAST, RUN, MERGING),
};
#define NR_CASES ARRAY_SIZE(cases)
/* The first of them are different kinds of one write; they make the chart of percentiles. */
#define NR_CURVES 6

static void die(const char *what, const char *why)
{
	fprintf(stderr, "bench-cow: %s: %s\n", what, why);
	exit(1);
}

static void check(const char *what, int err)
{
	if (err < 0)
		die(what, strerror(-err));
}

/* --- one case ----------------------------------------------------------------------------------
 */

struct trial {
	const struct cow_case *c;
	const struct layout *layout;
	struct peer peer;
	struct host hosts[2];
};

static u64 frames_of_hosts(const struct trial *t)
{
	struct frames_range ranges[2];
	u64 frames;

	for (u32 i = 0; i < 2; i++)
		ranges[i] = (struct frames_range){ t->hosts[i].pid, t->hosts[i].address,
						   t->hosts[i].bytes };
	check("page frames", count_frames(ranges, 2, &frames));
	return frames;
}

static u64 saved_pages(struct trial *t)
{
	u64 saved;

	check(t->c->name, t->peer.ops->saved_pages(&t->peer, &saved));
	return saved;
}

/* KSM's books are of the whole host, so both are asked: books and frames. */
static void wait_shared(struct trial *t)
{
	u64 can_save = t->layout->dup.can_save, left = 2 * (u64)PAGES - can_save, saved;
	u64 t0 = now_us();

	while ((saved = saved_pages(t)) + TOLERANCE < can_save ||
	       frames_of_hosts(t) > left + TOLERANCE) {
		if (now_us() - t0 > MERGE_LIMIT_US) {
			fprintf(stderr, "bench-cow: %s: shared %llu of %llu equal pages in %d s\n",
				t->c->name, (unsigned long long)saved, (unsigned long long)can_save,
				MERGE_LIMIT_US / 1000000);
			exit(1);
		}
		usleep(POLL_US);
	}
}

/* Frames that the writes will get were used before: on a VM like ours the first use of a frame is a
 * fault of the machine below, whose cost is not an engine's. */
static void warm_frames(void)
{
	u8 *p = mmap(NULL, NR_WRITES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p != MAP_FAILED)
		munmap(p, NR_WRITES * PAGE_BYTES);
}

static u32 write_merging(struct trial *t, u32 *ret_ns)
{
	u64 can_save = t->layout->dup.can_save;
	u32 nr = 0;

	while (nr < NR_WRITES && saved_pages(t) < (can_save - nr) / 10 * 9) {
		check("write", host_write(&t->hosts[0], MERGING_CHUNK, t->layout->step,
					  MERGING_PAUSE_US, ret_ns + nr));
		nr += MERGING_CHUNK;
	}
	return nr;
}

static void start_trial(struct trial *t, const struct cow_case *c)
{
	const char *mode = "none";

	*t = (struct trial){ .c = c, .layout = &layouts[c->layout] };
	if (c->peer != NR_PEERS) {
		peer_init(&t->peer, c->peer);
		check(c->name, t->peer.ops->prepare(&t->peer));
		mode = t->peer.ops->host_mode;
	}
	for (u32 i = 0; i < 2; i++) {
		check("memhost",
		      host_start(&t->hosts[i], t->layout->files[MIN(i, t->layout->nr_files - 1)],
				 mode, i ? "host1" : "host0", 0));
		t->peer.hosts[t->peer.nr_hosts++] = t->hosts[i].pid;
	}
	if (c->state == FORKED)
		check("fork", host_fork(&t->hosts[0]));
	if (c->peer == NR_PEERS)
		return;
	check(c->name, t->peer.ops->start(&t->peer));
	for (u32 i = 0; i < 2; i++)
		check("memhost does not offer its memory", host_offer(&t->hosts[i]));
}

static void check_outcome(struct trial *t, u32 nr)
{
	u64 expected = 2 * (u64)PAGES, wrong, frames;

	for (u32 i = 0; i < 2; i++) {
		check("memhost does not check its memory", host_check(&t->hosts[i], &wrong));
		if (wrong)
			die(t->c->name, "a host's memory is not what it must be");
	}
	if (t->c->state == MERGING)
		return;
	/* All is mapped now, since all was read. */
	frames = frames_of_hosts(t);
	if (t->c->peer != NR_PEERS)
		expected += nr - t->layout->dup.can_save;
	if (frames + TOLERANCE < expected || frames > expected + TOLERANCE)
		die(t->c->name, "the writes did not take the frames that breaks take");
}

/* @ret_ns: NR_WRITES of them. Returns how many there are. */
static u32 run_trial(const struct cow_case *c, u32 *ret_ns)
{
	u32 nr = NR_WRITES;
	struct trial t;
	u64 sum;

	start_trial(&t, c);
	if (c->state == MERGING) {
		nr = write_merging(&t, ret_ns);
	} else if (c->peer != NR_PEERS) {
		wait_shared(&t);
		check(c->name, t.peer.ops->stop(&t.peer, true));
		for (u32 i = 0; c->state == MAPPED && i < 2; i++)
			check("sum", host_sum(&t.hosts[i], &sum));
	}
	if (c->state != MERGING) {
		warm_frames();
		check("write", host_write(&t.hosts[0], NR_WRITES, t.layout->step, 0, ret_ns));
	}
	check_outcome(&t, nr);
	for (u32 i = 0; i < 2; i++)
		host_stop(&t.hosts[i]);
	if (c->peer != NR_PEERS)
		t.peer.ops->finish(&t.peer);
	return nr;
}

/* --- the run -----------------------------------------------------------------------------------
 */

static int by_value(const void *a, const void *b)
{
	const u32 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static double percentile(const u32 *sorted, u32 nr, double share)
{
	return nr ? sorted[(u32)(share * (nr - 1))] : 0;
}

static void run_round(struct cow_case *c, u32 round)
{
	u32 *ns = c->ns + c->nr, nr = run_trial(c, ns);

	qsort(ns, nr, sizeof(*ns), by_value);
	c->p50[round] = (u64)percentile(ns, nr, 0.5);
	c->p99[round] = (u64)percentile(ns, nr, 0.99);
	c->nr += nr;
}

static const char *engine_name(const struct cow_case *c)
{
	struct peer p;

	if (c->peer == NR_PEERS)
		return c->state == FORKED ? "fork" : "none";
	peer_init(&p, c->peer);
	return p.ops->name;
}

static void prepare_cases(void)
{
	for (u32 i = 0; i < NR_LAYOUTS; i++) {
		struct layout *l = &layouts[i];
		const char *both[2] = { l->files[0], l->files[l->nr_files - 1] };

		/* Files without a name: nothing to remove, however this ends. */
		for (u32 k = 0; k < l->nr_files; k++) {
			int fd = memfd_create("content", MFD_CLOEXEC);

			check("memfd", fd < 0 ? -errno : 0);
			snprintf(l->files[k], sizeof(l->files[k]), "/proc/%d/fd/%d", (int)getpid(),
				 fd);
			check("content", make_content(l->kind, k, PAGES, l->files[k]));
		}
		check("content", count_duplicates(both, 2, &l->dup));
	}
	for (u32 i = 0; i < NR_CASES; i++) {
		cases[i].ns = calloc(ROUNDS * NR_WRITES, sizeof(*cases[i].ns));
		if (!cases[i].ns)
			die("memory", strerror(ENOMEM));
	}
}

static void report_case(struct report *rep, const struct cow_case *c)
{
	report_result(rep, "cow");
	report_text(rep, "engine", engine_name(c));
	report_text(rep, "layout", layouts[c->layout].name);
	report_text(rep, "pages", state_names[c->state]);
	report_number(rep, "p50_ns", percentile(c->ns, c->nr, 0.5), 0);
	report_number(rep, "p99_ns", percentile(c->ns, c->nr, 0.99), 0);
	report_number(rep, "p999_ns", percentile(c->ns, c->nr, 0.999), 0);
	report_number(rep, "max_ns", percentile(c->ns, c->nr, 1), 0);
	report_number(rep, "writes", c->nr, 0);
	report_end(rep);
}

static void report_ratio_of(struct report *rep, const char *key, double all, const u64 *a,
			    const u64 *b)
{
	double low = 1e9, high = 0;
	char name[32];

	for (u32 i = 0; i < ROUNDS; i++) {
		double ratio = (double)a[i] / (double)MAX(b[i], 1u);

		low = MIN(low, ratio);
		high = MAX(high, ratio);
	}
	report_number(rep, key, all, 3);
	snprintf(name, sizeof(name), "%s_low", key);
	report_number(rep, name, low, 3);
	snprintf(name, sizeof(name), "%s_high", key);
	report_number(rep, name, high, 3);
}

static void report_ratio(struct report *rep, const struct cow_case *c)
{
	const struct cow_case *ksm = c->ksm;

	report_result(rep, "cow_ratio");
	report_text(rep, "layout", layouts[c->layout].name);
	report_text(rep, "pages", state_names[c->state]);
	report_ratio_of(rep, "p50",
			percentile(c->ns, c->nr, 0.5) / percentile(ksm->ns, ksm->nr, 0.5), c->p50,
			ksm->p50);
	report_ratio_of(rep, "p99",
			percentile(c->ns, c->nr, 0.99) / percentile(ksm->ns, ksm->nr, 0.99), c->p99,
			ksm->p99);
	report_end(rep);
}

static void draw(struct report *rep)
{
	enum {
		POINTS = 200
	};
	static double x[NR_CURVES][POINTS], y[NR_CURVES][POINTS];
	struct chart_line lines[NR_CURVES];
	struct bar p50[NR_CASES], p99[NR_CASES];

	for (u32 i = 0; i < NR_CURVES; i++) {
		for (u32 k = 0; k < POINTS; k++) {
			double share = 0.999 * k / (POINTS - 1);

			x[i][k] = MAX(percentile(cases[i].ns, cases[i].nr, share), 1.0);
			y[i][k] = 100 * share;
		}
		lines[i] = (struct chart_line){ cases[i].name, x[i], y[i], POINTS };
	}
	report_chart(rep, "latency.svg",
		     &(struct chart){ .title = "First write to a page: writes done within a time",
				      .x_title = "ns",
				      .y_title = "% of writes",
				      .log_x = true,
				      .lines = lines,
				      .nr_lines = NR_CURVES });
	for (u32 i = 0; i < NR_CASES; i++) {
		const struct cow_case *c = &cases[i];

		p50[i] = (struct bar){ c->name, percentile(c->ns, c->nr, 0.5) };
		p99[i] = (struct bar){ c->name, percentile(c->ns, c->nr, 0.99) };
	}
	report_bars(rep, "p50.svg", "First write to a page: p50", "ns", p50, NR_CASES);
	report_bars(rep, "p99.svg", "First write to a page: p99", "ns", p99, NR_CASES);
}

int main(void)
{
	const char *only = getenv("ONLY");
	struct report *rep;

	if (geteuid() != 0)
		die("must run as root", "it sets /sys/kernel/mm/ksm, and reads page frame numbers");
	end_after(RUN_LIMIT_S);
	rep = report_new("cow");
	prepare_cases();
	for (u32 round = 0; round < ROUNDS; round++)
		for (u32 i = 0; i < NR_CASES; i++)
			if (!only || strstr(cases[i].name, only))
				run_round(&cases[i], round);
	for (u32 i = 0; i < NR_CASES; i++) {
		qsort(cases[i].ns, cases[i].nr, sizeof(*cases[i].ns), by_value);
		if (cases[i].nr)
			report_case(rep, &cases[i]);
	}
	for (u32 i = 0; i < NR_CASES; i++)
		if (cases[i].ksm && cases[i].nr && cases[i].ksm->nr)
			report_ratio(rep, &cases[i]);
	draw(rep);
	for (u32 i = 0; i < NR_CASES; i++)
		free(cases[i].ns);
	report_finish(rep);
	return 0;
}
