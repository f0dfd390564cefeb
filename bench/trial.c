/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench/host.h"
#include "bench/trial.h"
#include "common/clock.h"

#define POLL_US 10000
/* An engine that has found nothing more for this long has found what it can; not while it has
 * hardly begun, as slow ones come upon a few pages long before the rest. */
#define SETTLED_US 4000000
#define BEGUN_PART 20
/* What found nothing is looked at ever more rarely (ksmd/pace.c), and an hour is not like its first
 * seconds: those would be counted 45 times. */
#define REST_US 20000000
#define IDLE_US 80000000
#define LOAD_US 2000000
/* Turns of the load with the engine at work and stopped. */
#define TURNS	80
#define TURN_US 250000
/* Slow settings are watched for this long; what they would need for the rest is not guessed. */
#define LIMIT_US 60000000

struct trial {
	struct peer peer;
	const struct workload *w;
	struct host hosts[TRIAL_HOSTS_MAX], load;
	u64 sums[TRIAL_HOSTS_MAX], frames_before;
	struct outcome *o;
};

static void die(const char *what, int err)
{
	fprintf(stderr, "bench-ksm: %s: %s\n", what, strerror(-err));
	exit(1);
}

static u64 frames_of_hosts(struct trial *t)
{
	struct frames_range ranges[TRIAL_HOSTS_MAX];
	u64 frames;
	int r;

	for (u32 i = 0; i < t->w->nr; i++)
		ranges[i] = (struct frames_range){ t->hosts[i].pid, t->hosts[i].address,
						   t->hosts[i].bytes };
	r = count_frames(ranges, t->w->nr, &frames);
	if (r < 0)
		die("page frames", r);
	return frames;
}

static void start_hosts(struct trial *t, const char *load_file)
{
	const char *mode = t->peer.ops->host_mode;
	int err;

	for (u32 i = 0; i < t->w->nr; i++) {
		char name[32];

		snprintf(name, sizeof(name), "host%u", i);
		err = host_start(&t->hosts[i], t->w->files[i], mode, name, 0);
		if (err < 0 || host_sum(&t->hosts[i], &t->sums[i]) < 0)
			die("memhost", err);
		t->peer.hosts[t->peer.nr_hosts++] = t->hosts[i].pid;
	}
	err = host_start(&t->load, load_file, mode, "load", 50);
	if (err < 0)
		die("memhost with load", err);
	t->peer.hosts[t->peer.nr_hosts++] = t->load.pid;
	t->frames_before = frames_of_hosts(t);
}

static void measure_load(struct trial *t, u64 us, struct host_load *ret)
{
	if (host_load(&t->load, ret) < 0)
		die("memhost with load", -EIO);
	usleep((useconds_t)us);
	if (host_load(&t->load, ret) < 0)
		die("memhost with load", -EIO);
}

static void offer_all(struct trial *t)
{
	for (u32 i = 0; i < t->w->nr; i++)
		if (host_offer(&t->hosts[i]) < 0)
			die("memhost does not offer its memory", -EIO);
	if (host_offer(&t->load) < 0)
		die("memhost does not offer its memory", -EIO);
}

static void note_point(struct outcome *o, double seconds, u64 saved)
{
	if (o->nr_points == TRIAL_POINTS_MAX)
		return;
	if (o->nr_points && seconds < o->t[o->nr_points - 1] + 0.02)
		return;
	o->t[o->nr_points] = seconds;
	o->saved_mib[o->nr_points++] = (double)saved / 256;
}

static void watch_merging(struct trial *t)
{
	const struct peer_ops *ops = t->peer.ops;
	u64 can_save = t->w->dup.can_save, t0, cpu0, best = 0, best_at, now, saved = 0;
	struct outcome *o = t->o;
	struct host_load l;

	o->seconds_to_95 = o->cpu_to_95 = -1;
	host_load(&t->load, &l);
	if (ops->start(&t->peer) < 0)
		die(ops->name, -EIO);
	now = best_at = t0 = now_us();
	cpu0 = ops->cpu_us(&t->peer);
	offer_all(t);
	while (now - t0 < LIMIT_US &&
	       (now - best_at < SETTLED_US || best < can_save / BEGUN_PART)) {
		usleep(POLL_US);
		now = now_us();
		if (ops->saved_pages(&t->peer, &saved) < 0)
			die(ops->name, -EIO);
		if (saved > best + can_save / 2000) {
			best = saved;
			best_at = now;
		}
		if (o->seconds_to_95 < 0 && saved * 100 >= can_save * 95) {
			o->seconds_to_95 = (double)(now - t0) / 1e6;
			o->cpu_to_95 = (double)(ops->cpu_us(&t->peer) - cpu0) / 1e6;
		}
		note_point(o, (double)(now - t0) / 1e6, saved);
	}
	o->cpu_seconds = (double)(ops->cpu_us(&t->peer) - cpu0) / 1e6;
	o->found = (double)saved / (double)can_save;
	/* CPU for the saving, up to 95% of it where that was reached: what comes after is the idle
	 * cost. */
	if (o->cpu_to_95 >= 0)
		o->cpu_per_gib = o->cpu_to_95 / (0.95 * (double)can_save / 262144);
	else
		o->cpu_per_gib = saved ? o->cpu_seconds / ((double)saved / 262144) : -1;
	if (host_load(&t->load, &l) < 0)
		die("memhost with load", -EIO);
	o->load_merging = l.ops_per_second;
	o->p99_merging_ns = l.p99_ns;
	o->max_merging_us = l.max_us;
}

/* In turns, since the machine's speed changes by more than what is looked for. */
static void watch_load(struct trial *t)
{
	const struct peer_ops *ops = t->peer.ops;
	double with = 0, without = 0;
	struct host_load l;

	for (u32 i = 0; i < TURNS; i++) {
		if (ops->stop(&t->peer, true) < 0)
			die(ops->name, -EIO);
		measure_load(t, TURN_US, &l);
		without += l.ops_per_second;
		t->o->p99_stopped_ns = MAX(t->o->p99_stopped_ns, l.p99_ns);
		if (ops->stop(&t->peer, false) < 0)
			die(ops->name, -EIO);
		measure_load(t, TURN_US, &l);
		with += l.ops_per_second;
		t->o->p99_idle_ns = MAX(t->o->p99_idle_ns, l.p99_ns);
	}
	t->o->load_idle_ratio = with / without;
}

static void watch_idle(struct trial *t)
{
	const struct peer_ops *ops = t->peer.ops;
	const char *wanted = getenv("IDLE_SECONDS");
	u64 idle_us = wanted ? strtoull(wanted, NULL, 10) * 1000000 : IDLE_US;
	u64 cpu, passes, t0;

	usleep(REST_US);
	cpu = ops->cpu_us(&t->peer);
	passes = ops->passes(&t->peer);
	t0 = now_us();
	for (u64 end = t0 + idle_us; now_us() < end;)
		usleep(100000);
	cpu = ops->cpu_us(&t->peer) - cpu;
	passes = ops->passes(&t->peer) - passes;
	t->o->idle_cpu_per_hour = (double)cpu / (double)(now_us() - t0) * 3600;
	t->o->idle_cpu_per_pass = passes ? (double)cpu / 1e6 / (double)passes : -1;
}

static void check_content(struct trial *t)
{
	for (u32 i = 0; i < t->w->nr; i++) {
		u64 now;

		if (host_sum(&t->hosts[i], &now) < 0 || now != t->sums[i]) {
			fprintf(stderr, "bench-ksm: %s changed the content of a host\n",
				t->peer.ops->name);
			exit(1);
		}
	}
}

void trial_run(u32 which_peer, const struct workload *w, const char *load_file, bool brief,
	       struct outcome *o)
{
	struct trial t = { .w = w, .o = o };
	struct host_load l;
	int err;

	peer_init(&t.peer, which_peer);
	err = t.peer.ops->prepare(&t.peer);
	if (err < 0)
		die(t.peer.ops->name, err);
	start_hosts(&t, load_file);
	if (!brief) {
		measure_load(&t, LOAD_US, &l);
		o->load_alone = l.ops_per_second;
		o->p99_alone_ns = l.p99_ns;
	}
	watch_merging(&t);
	if (!brief)
		watch_load(&t);
	o->metadata_per_page =
		(double)t.peer.ops->metadata_bytes(&t.peer) / (double)(w->dup.pages + t.load.pages);
	host_stop(&t.load);
	t.peer.nr_hosts--;
	if (!brief)
		watch_idle(&t);
	/* Reads all pages: each is mapped then, wherever it is, and is counted. */
	check_content(&t);
	o->frames_saved =
		((double)t.frames_before - (double)frames_of_hosts(&t)) / (double)w->dup.can_save;
	for (u32 i = 0; i < w->nr; i++)
		host_stop(&t.hosts[i]);
	t.peer.ops->finish(&t.peer);
}
