/* SPDX-License-Identifier: MIT */
/*
 * make bench-ksm: the same memory given once to the kernel's KSM, as it is set in practice, and
 * once to Ballast, in one run. What is done with each engine on each content: trial.h.
 *
 * All figures of the comparison are ratios to KSM flat out on the same content in the same run. A
 * shared machine's speed changes from one minute to the next, so the two are run again, one after
 * the other, and of those ratios the median counts (ROUNDS=, with the first).
 * Both may use one core at most: KSM has one thread, Ballast gets cpu_percent = 100.
 * ONLY="guests scattered" and PEER=NAME run a part, IDLE_SECONDS= watches idle memory for longer.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench/content.h"
#include "bench/report.h"
#include "bench/trial.h"

static void die(const char *what, int err)
{
	fprintf(stderr, "bench-ksm: %s: %s\n", what, strerror(-err));
	exit(1);
}

static void report_outcome(struct report *rep, const char *workload, const char *engine,
			   const struct outcome *o)
{
	report_result(rep, "ksm");
	report_text(rep, "content", workload);
	report_text(rep, "engine", engine);
	report_number(rep, "found_percent", 100 * o->found, 2);
	report_number(rep, "frames_saved_percent", 100 * o->frames_saved, 2);
	report_number(rep, "seconds_to_95", o->seconds_to_95, 2);
	report_number(rep, "cpu_to_95", o->cpu_to_95, 3);
	report_number(rep, "cpu_seconds", o->cpu_seconds, 3);
	report_number(rep, "cpu_per_gib", o->cpu_per_gib, 3);
	report_number(rep, "idle_cpu_per_hour", o->idle_cpu_per_hour, 2);
	report_number(rep, "idle_cpu_per_pass", o->idle_cpu_per_pass, 6);
	report_number(rep, "metadata_bytes_per_page", o->metadata_per_page, 1);
	report_number(rep, "load_merging_ratio", o->load_merging / o->load_alone, 3);
	report_number(rep, "load_idle_ratio", o->load_idle_ratio, 4);
	report_number(rep, "p99_alone_ns", (double)o->p99_alone_ns, 0);
	report_number(rep, "p99_merging_ns", (double)o->p99_merging_ns, 0);
	report_number(rep, "max_merging_us", (double)o->max_merging_us, 0);
	report_number(rep, "p99_stopped_ns", (double)o->p99_stopped_ns, 0);
	report_number(rep, "p99_idle_ns", (double)o->p99_idle_ns, 0);
	report_end(rep);
}

#define ROUNDS_MAX     15
#define ROUNDS_DEFAULT 5

struct rounds {
	double cpu_per_gib[ROUNDS_MAX], time_to_95[ROUNDS_MAX];
	u32 nr;
};

static void add_round(struct rounds *r, const struct outcome *ksm, const struct outcome *b)
{
	r->cpu_per_gib[r->nr] = b->cpu_per_gib / ksm->cpu_per_gib;
	r->time_to_95[r->nr] = b->seconds_to_95 / ksm->seconds_to_95;
	printf("# round %u: cpu_per_gib %.3f (%.3f, %.3f), time_to_95 %.3f (%.2f, %.2f)\n",
	       r->nr + 1, r->cpu_per_gib[r->nr], b->cpu_per_gib, ksm->cpu_per_gib,
	       r->time_to_95[r->nr], b->seconds_to_95, ksm->seconds_to_95);
	fflush(stdout);
	r->nr++;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void report_median(struct report *rep, const char *name, double *values, u32 nr)
{
	char key[64];

	qsort(values, nr, sizeof(values[0]), by_size);
	report_number(rep, name, values[nr / 2], 3);
	snprintf(key, sizeof(key), "%s_least", name);
	report_number(rep, key, values[0], 3);
	snprintf(key, sizeof(key), "%s_most", name);
	report_number(rep, key, values[nr - 1], 3);
}

static void report_ratios(struct report *rep, const char *workload, const struct outcome *ksm,
			  const struct outcome *b, struct rounds *rounds)
{
	report_result(rep, "ksm_ratio");
	report_text(rep, "content", workload);
	report_number(rep, "idle_scan_cpu", b->idle_cpu_per_hour / ksm->idle_cpu_per_hour, 6);
	report_median(rep, "cpu_per_gib", rounds->cpu_per_gib, rounds->nr);
	report_median(rep, "time_to_95", rounds->time_to_95, rounds->nr);
	report_number(rep, "rounds", rounds->nr, 0);
	report_number(rep, "metadata_bytes_per_page", b->metadata_per_page / ksm->metadata_per_page,
		      3);
	report_number(rep, "found_percent", 100 * b->found, 2);
	report_number(rep, "frames_saved_percent", 100 * b->frames_saved, 2);
	report_number(rep, "guest_throughput_idle", b->load_idle_ratio, 4);
	report_end(rep);
}

static void chart(struct report *rep, const char *workload, struct outcome *o[NR_PEERS])
{
	struct chart_line lines[NR_PEERS];
	char file[64], title[128];
	u32 n = 0;

	for (u32 i = 0; i < NR_PEERS; i++) {
		struct peer p;

		peer_init(&p, i);
		if (o[i])
			lines[n++] = (struct chart_line){ p.ops->name, o[i]->t, o[i]->saved_mib,
							  o[i]->nr_points };
	}
	snprintf(file, sizeof(file), "%s.svg", workload);
	snprintf(title, sizeof(title), "Memory saved over time: %s", workload);
	report_chart(rep, file,
		     &(struct chart){ .title = title,
				      .x_title = "seconds",
				      .y_title = "MiB saved",
				      .lines = lines,
				      .nr_lines = n });
}

static void compare(struct report *rep, const struct workload *w, const char *load_file,
		    const struct outcome *ksm, const struct outcome *b)
{
	const char *wanted = getenv("ROUNDS");
	int nr = wanted ? atoi(wanted) : ROUNDS_DEFAULT;
	struct outcome *again = calloc(2, sizeof(*again));
	struct rounds rounds = { 0 };

	if (!again)
		die("memory", -ENOMEM);
	add_round(&rounds, ksm, b);
	while ((int)rounds.nr < nr && rounds.nr < ROUNDS_MAX) {
		memset(again, 0, 2 * sizeof(*again));
		trial_run(PEER_KSM_FLAT_OUT, w, load_file, true, &again[0]);
		trial_run(PEER_BALLAST, w, load_file, true, &again[1]);
		add_round(&rounds, &again[0], &again[1]);
	}
	report_ratios(rep, w->name, ksm, b, &rounds);
	free(again);
}

static void run_workload(struct report *rep, struct workload *w, const char *load_file,
			 bool slow_peers)
{
	struct outcome *o[NR_PEERS] = { 0 };

	const char *files[TRIAL_HOSTS_MAX], *one_peer = getenv("PEER"), *only = getenv("ONLY");
	int r;

	if (only && *only && !strstr(only, w->name))
		return;
	for (u32 i = 0; i < w->nr; i++)
		files[i] = w->files[i];
	r = count_duplicates(files, w->nr, &w->dup);
	if (r < 0)
		die(w->name, r);
	printf("%s: %llu pages, %llu of them zeros, %llu can be saved\n", w->name,
	       (unsigned long long)w->dup.pages, (unsigned long long)w->dup.zero_pages,
	       (unsigned long long)w->dup.can_save);
	fflush(stdout);
	for (u32 i = 0; i < NR_PEERS; i++) {
		struct peer p;

		if (!slow_peers && i != PEER_KSM_FLAT_OUT && i != PEER_BALLAST)
			continue;
		peer_init(&p, i);
		if (one_peer && strcmp(one_peer, p.ops->name) != 0)
			continue;
		o[i] = calloc(1, sizeof(*o[i]));
		if (!o[i])
			die("memory", -ENOMEM);
		trial_run(i, w, load_file, false, o[i]);
		report_outcome(rep, w->name, p.ops->name, o[i]);
	}
	if (o[PEER_KSM_FLAT_OUT] && o[PEER_BALLAST])
		compare(rep, w, load_file, o[PEER_KSM_FLAT_OUT], o[PEER_BALLAST]);
	chart(rep, w->name, o);
	for (u32 i = 0; i < NR_PEERS; i++)
		free(o[i]);
}

static void make_workload(struct workload *w, const char *name, enum content_kind kind, u64 pages,
			  u32 nr, const char *dir)
{
	*w = (struct workload){ .name = name, .nr = nr };
	for (u32 i = 0; i < nr; i++) {
		int r;

		snprintf(w->files[i], sizeof(w->files[i]), "%s/%s%u", dir, name, i);
		r = make_content(kind, i, pages, w->files[i]);
		if (r < 0)
			die(w->files[i], r);
	}
}

/* For ksm.sh: the guests are not needed any more. */
static void mark_recorded(const char *dir)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), "%s/recorded", dir);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	const char *dir = getenv("CONTENT"), *only = getenv("ONLY");
	bool slow = getenv("SLOW_PEERS") != NULL;
	struct workload guests = { .name = "guests" }, scattered, mixed;
	struct workload load;
	struct report *rep;

	if (!dir || argc < 2) {
		fprintf(stderr,
			"usage: CONTENT=DIR [ONLY=guests|scattered|mixed] [PEER=NAME] bench-ksm PID...\n"
			"  PID: a running stock guest, whose content is recorded to DIR; 0: recorded there before\n");
		return 2;
	}
	rep = report_new("ksm");
	for (int i = 1; i < argc && i <= TRIAL_HOSTS_MAX; i++) {
		int r;

		snprintf(guests.files[guests.nr], sizeof(guests.files[0]), "%s/guest%d", dir, i);
		r = atoi(argv[i]) ? record_guest(atoi(argv[i]), guests.files[guests.nr]) : 0;
		if (r < 0)
			die(argv[i], r);
		guests.nr++;
	}
	mark_recorded(dir);
	make_workload(&scattered, "scattered", CONTENT_SCATTERED, 32768, 3, dir);
	make_workload(&mixed, "mixed", CONTENT_MIXED, 32768, 3, dir);
	make_workload(&load, "load", CONTENT_UNIQUE, 16384, 1, dir);
	if (!only || strcmp(only, guests.name) == 0)
		run_workload(rep, &guests, load.files[0], slow);
	if (!only || strcmp(only, scattered.name) == 0)
		run_workload(rep, &scattered, load.files[0], false);
	if (!only || strcmp(only, mixed.name) == 0)
		run_workload(rep, &mixed, load.files[0], false);
	report_finish(rep);
	return 0;
}
