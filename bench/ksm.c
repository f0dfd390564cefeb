/* SPDX-License-Identifier: MIT */
/*
 * make bench-ksm: the same memory given once to the kernel's KSM, as it is set in practice, and
 * once to Ballast, in one run.
 *
 * For each kind of content and each engine: processes are filled with the content and offered to
 * the engine; it is started, and watched until it has found all that it will find; then it is
 * watched doing nothing. All figures of the comparison are ratios to KSM flat out on the same
 * content in the same run.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "bench/content.h"
#include "bench/host.h"
#include "bench/peer.h"
#include "bench/report.h"
#include "common/clock.h"

#define HOSTS_MAX 8
#define POLL_US	  10000
/* An engine that has found nothing more for this long has found what it can. */
#define SETTLED_US 4000000
#define IDLE_US	   5000000
#define LOAD_US	   3000000
/* Slow settings are watched for this long; what they would need for the rest is not guessed. */
#define LIMIT_US 60000000

struct workload {
	const char *name;
	char files[HOSTS_MAX][160];
	u32 nr;
	u64 resident, can_save; /* pages */
};

struct outcome {
	double seconds_to_95, cpu_to_95;	/* < 0: not reached */
	double cpu_seconds, saved_pages, found; /* @found: share of what can be saved */
	double cpu_per_gib, idle_cpu_per_hour, idle_cpu_per_pass, metadata_per_page;
	double load_before, load_merging, load_idle; /* ops a second */
	u64 p99_before, p99_merging, p99_idle;
	double t[4096], saved[4096]; /* for the chart */
	u32 nr;
};

static void die(const char *what, int err)
{
	fprintf(stderr, "bench-ksm: %s: %s\n", what, strerror(-err));
	exit(1);
}

/* --- what can be saved, by hashing the contents ------------------------------------------------
 */

static int by_hash(const void *a, const void *b)
{
	const u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void hash_file(const char *path, u64 **hashes, u64 *nr, u64 *cap, u64 *zero)
{
	static const u8 zeros[PAGE_BYTES];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t data = 0;
	u8 page[PAGE_BYTES];

	if (fd < 0)
		die(path, -errno);
	while ((data = lseek(fd, data, SEEK_DATA)) >= 0) {
		off_t hole = lseek(fd, data, SEEK_HOLE);

		for (; data < hole; data += (off_t)PAGE_BYTES) {
			if (pread(fd, page, PAGE_BYTES, data) != (ssize_t)PAGE_BYTES)
				die(path, -EIO);
			if (memcmp(page, zeros, PAGE_BYTES) == 0) {
				(*zero)++;
				continue;
			}
			if (*nr == *cap) {
				*cap = *cap ? *cap * 2 : 65536;
				*hashes = realloc(*hashes, *cap * sizeof(u64));
				if (!*hashes)
					die("memory", -ENOMEM);
			}
			(*hashes)[(*nr)++] = XXH3_64bits(page, PAGE_BYTES);
		}
	}
	close(fd);
}

static void count_duplicates(struct workload *w)
{
	u64 *hashes = NULL, nr = 0, cap = 0, zero = 0, distinct = 0;

	for (u32 i = 0; i < w->nr; i++)
		hash_file(w->files[i], &hashes, &nr, &cap, &zero);
	if (!hashes)
		die("no content", -ENODATA);
	qsort(hashes, nr, sizeof(u64), by_hash);
	for (u64 i = 0; i < nr; i++)
		distinct += i == 0 || hashes[i] != hashes[i - 1];
	w->resident = nr + zero;
	w->can_save = nr - distinct + zero;
	free(hashes);
}

/* --- one engine on one content -----------------------------------------------------------------
 */

struct run {
	struct peer peer;
	const struct workload *w;
	struct host hosts[HOSTS_MAX], load;
	u64 sums[HOSTS_MAX];
	struct outcome *o;
};

static void start_hosts(struct run *r, const char *load_file)
{
	int err;

	for (u32 i = 0; i < r->w->nr; i++) {
		char name[32];

		snprintf(name, sizeof(name), "host%u", i);
		err = host_start(&r->hosts[i], r->w->files[i], r->peer.ops->host_mode, name, 0);
		if (err < 0 || host_sum(&r->hosts[i], &r->sums[i]) < 0)
			die("memhost", err);
	}
	err = host_start(&r->load, load_file, r->peer.ops->host_mode, "load", 50);
	if (err < 0)
		die("memhost with load", err);
}

static void measure_load(struct run *r, double *ret_ops, u64 *ret_p99)
{
	struct host_load l;

	host_load(&r->load, &l);
	usleep(LOAD_US);
	if (host_load(&r->load, &l) < 0)
		die("memhost with load", -EIO);
	*ret_ops = l.ops_per_second;
	*ret_p99 = l.p99_ns;
}

static void watch_merging(struct run *r)
{
	const struct peer_ops *ops = r->peer.ops;
	struct outcome *o = r->o;
	u64 t0 = now_us(), cpu0 = ops->cpu_us(&r->peer), best = 0, best_at = t0, now = t0;
	struct host_load l;

	o->seconds_to_95 = o->cpu_to_95 = -1;
	host_load(&r->load, &l);
	if (ops->start(&r->peer) < 0)
		die(ops->name, -EIO);
	while (now - t0 < LIMIT_US && (now - best_at < SETTLED_US || best == 0)) {
		u64 saved = 0;

		usleep(POLL_US);
		now = now_us();
		if (ops->saved_pages(&r->peer, &saved) < 0)
			die(ops->name, -EIO);
		if (saved > best + r->w->can_save / 2000) {
			best = saved;
			best_at = now;
		}
		if (o->seconds_to_95 < 0 && saved * 100 >= r->w->can_save * 95) {
			o->seconds_to_95 = (double)(now - t0) / 1e6;
			o->cpu_to_95 = (double)(ops->cpu_us(&r->peer) - cpu0) / 1e6;
		}
		if (o->nr < ARRAY_SIZE(o->t) &&
		    (o->nr == 0 || (double)(now - t0) / 1e6 > o->t[o->nr - 1] + 0.02)) {
			o->t[o->nr] = (double)(now - t0) / 1e6;
			o->saved[o->nr++] = (double)saved / 256;
		}
		o->saved_pages = (double)saved;
	}
	o->cpu_seconds = (double)(ops->cpu_us(&r->peer) - cpu0) / 1e6;
	o->found = o->saved_pages / (double)r->w->can_save;
	/* CPU for the saving, up to 95% of it where that was reached: what comes after is the idle
	 * cost. */
	if (o->cpu_to_95 >= 0)
		o->cpu_per_gib = o->cpu_to_95 / (0.95 * (double)r->w->can_save / 262144);
	else if (o->saved_pages > 0)
		o->cpu_per_gib = o->cpu_seconds / (o->saved_pages / 262144);
	if (host_load(&r->load, &l) == 0) {
		o->load_merging = l.ops_per_second;
		o->p99_merging = l.p99_ns;
	}
}

static void watch_idle(struct run *r)
{
	const struct peer_ops *ops = r->peer.ops;
	u64 cpu = ops->cpu_us(&r->peer), passes = ops->passes(&r->peer), t = now_us();

	usleep(IDLE_US);
	cpu = ops->cpu_us(&r->peer) - cpu;
	passes = ops->passes(&r->peer) - passes;
	r->o->idle_cpu_per_hour = (double)cpu / (double)(now_us() - t) * 3600;
	r->o->idle_cpu_per_pass = passes ? (double)cpu / 1e6 / (double)passes : -1;
	r->o->metadata_per_page = (double)ops->metadata_bytes(&r->peer) / (double)r->w->resident;
}

static void check_content(struct run *r)
{
	for (u32 i = 0; i < r->w->nr; i++) {
		u64 now;

		if (host_sum(&r->hosts[i], &now) < 0 || now != r->sums[i]) {
			fprintf(stderr, "bench-ksm: %s changed the content of a host\n",
				r->peer.ops->name);
			exit(1);
		}
	}
}

static void run_peer(u32 which, const struct workload *w, const char *load_file, struct outcome *o)
{
	struct run r = { .w = w, .o = o };
	int err;

	peer_init(&r.peer, which);
	err = r.peer.ops->prepare(&r.peer);
	if (err < 0)
		die(r.peer.ops->name, err);
	start_hosts(&r, load_file);
	measure_load(&r, &o->load_before, &o->p99_before);
	watch_merging(&r);
	watch_idle(&r);
	measure_load(&r, &o->load_idle, &o->p99_idle);
	check_content(&r);
	for (u32 i = 0; i < w->nr; i++)
		host_stop(&r.hosts[i]);
	host_stop(&r.load);
	r.peer.ops->finish(&r.peer);
}

/* --- reporting ---------------------------------------------------------------------------------
 */

static void report_outcome(struct report *rep, const char *workload, const char *engine,
			   const struct outcome *o)
{
	report_result(rep, "ksm");
	report_text(rep, "content", workload);
	report_text(rep, "engine", engine);
	report_number(rep, "found_percent", 100 * o->found, 2);
	report_number(rep, "seconds_to_95", o->seconds_to_95, 2);
	report_number(rep, "cpu_to_95", o->cpu_to_95, 3);
	report_number(rep, "cpu_per_gib", o->cpu_per_gib, 3);
	report_number(rep, "idle_cpu_per_hour", o->idle_cpu_per_hour, 2);
	report_number(rep, "idle_cpu_per_pass", o->idle_cpu_per_pass, 6);
	report_number(rep, "metadata_bytes_per_page", o->metadata_per_page, 1);
	report_number(rep, "load_merging_ratio", o->load_merging / o->load_before, 3);
	report_number(rep, "load_idle_ratio", o->load_idle / o->load_before, 3);
	report_number(rep, "p99_before_ns", (double)o->p99_before, 0);
	report_number(rep, "p99_merging_ns", (double)o->p99_merging, 0);
	report_number(rep, "p99_idle_ns", (double)o->p99_idle, 0);
	report_end(rep);
}

static void report_ratios(struct report *rep, const char *workload, const struct outcome *ksm,
			  const struct outcome *b)
{
	report_result(rep, "ksm_ratio");
	report_text(rep, "content", workload);
	report_number(rep, "idle_scan_cpu", b->idle_cpu_per_hour / ksm->idle_cpu_per_hour, 5);
	report_number(rep, "cpu_per_gib", b->cpu_per_gib / ksm->cpu_per_gib, 3);
	report_number(rep, "time_to_95", b->seconds_to_95 / ksm->seconds_to_95, 3);
	report_number(rep, "found_percent", 100 * b->found, 2);
	report_number(rep, "guest_throughput_idle", b->load_idle / b->load_before, 3);
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
			lines[n++] =
				(struct chart_line){ p.ops->name, o[i]->t, o[i]->saved, o[i]->nr };
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

static void run_workload(struct report *rep, struct workload *w, const char *load_file,
			 bool slow_peers)
{
	struct outcome *o[NR_PEERS] = { 0 };

	count_duplicates(w);
	printf("%s: %llu pages, %llu can be saved\n", w->name, (unsigned long long)w->resident,
	       (unsigned long long)w->can_save);
	for (u32 i = 0; i < NR_PEERS; i++) {
		struct peer p;

		if (!slow_peers && i != PEER_KSM_FLAT_OUT && i != PEER_BALLAST)
			continue;
		peer_init(&p, i);
		o[i] = calloc(1, sizeof(*o[i]));
		run_peer(i, w, load_file, o[i]);
		report_outcome(rep, w->name, p.ops->name, o[i]);
	}
	report_ratios(rep, w->name, o[PEER_KSM_FLAT_OUT], o[PEER_BALLAST]);
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
	const char *dir = getenv("CONTENT");
	struct workload guests = { .name = "guests" }, scattered, mixed;
	struct workload load;
	struct report *rep;

	if (!dir || argc < 2) {
		fprintf(stderr,
			"usage: CONTENT=DIR bench-ksm PID...   (running stock guests, whose content is recorded to DIR)\n");
		return 2;
	}
	rep = report_new("ksm");
	for (int i = 1; i < argc && i <= HOSTS_MAX; i++) {
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
	run_workload(rep, &guests, load.files[0], getenv("SLOW_PEERS") != NULL);
	run_workload(rep, &scattered, load.files[0], false);
	run_workload(rep, &mixed, load.files[0], false);
	report_finish(rep);
	return 0;
}
