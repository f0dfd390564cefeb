/* SPDX-License-Identifier: MIT */
/*
 * One engine (peer.h) on one kind of content, watched from before it starts until it has nothing
 * more to find.
 *
 *   1. Hosts (memhost.c) fill their memory, which no engine knows of. One more runs a load.
 *   2. The engine runs, with nothing to do; then the hosts offer their memory, at one moment: time
 *      and CPU count from there.
 *   3. Until nothing more is found: the curve, time and CPU to 95% of what exact sharing can save.
 *   4. The load with the engine at work on idle memory, and with it stopped, in turns: what
 *      scanning costs a guest that runs all along.
 *   5. Without load: what the engine costs over memory that does not change.
 *   6. All content is summed, and compared with before; the page frames are counted.
 */
#ifndef BALLAST_BENCH_TRIAL_H
#define BALLAST_BENCH_TRIAL_H

#include "bench/frames.h"
#include "bench/peer.h"

#define TRIAL_HOSTS_MAX	 8
#define TRIAL_POINTS_MAX 4096

struct workload {
	const char *name;
	char files[TRIAL_HOSTS_MAX][160];
	u32 nr;
	struct duplicates dup;
};

struct outcome {
	double seconds_to_95, cpu_to_95; /* < 0: not reached */
	double cpu_seconds;		 /* until it was settled */
	double found;			 /* share of dup.can_save, by the engine's books */
	double frames_saved;		 /* the same by counting page frames, of the hosts */
	double cpu_per_gib;		 /* CPU seconds for a GiB saved */
	double idle_cpu_per_hour;	 /* seconds */
	double idle_cpu_per_pass;	 /* seconds; < 0: no whole pass was seen */
	double metadata_per_page;	 /* bytes */
	double load_alone, load_merging,
		load_idle_ratio; /* operations a second; ratio to stopped */
	u64 p99_alone_ns, p99_merging_ns, p99_idle_ns, p99_stopped_ns, max_merging_us;
	double t[TRIAL_POINTS_MAX], saved_mib[TRIAL_POINTS_MAX]; /* for the chart */
	u32 nr_points;
};

/* @load_file: content of the host with the load. @brief: without what only the whole tells (4, 5):
 * those figures stay 0. Ends the program on errors. */
void trial_run(u32 which_peer, const struct workload *w, const char *load_file, bool brief,
	       struct outcome *o);

#endif
