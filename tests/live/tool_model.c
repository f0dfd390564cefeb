// SPDX-License-Identifier: MIT
/*
 * The model test (model/model.h says what it is).
 *
 *   tool_model --daemon PROGRAM --dir DIR [--seed N] [--seconds S] [--total T]
 *
 * Runs the seed, or one of its own choice, for about S seconds (20), and then, with --total, one
 * seed after the other until T seconds are over. DIR is an empty folder for sockets and logs.
 * Prints each seed, and at the end a line "RESULT model ...". Exit status 0: all was right; 1: it
 * was not, and the last lines say what, where and with which seed; 2: wrong usage.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/live/model/run.h"

#define MS	 1000u
#define SECOND	 1000000ULL
#define ROUND_US (1500 * MS)

static void play_round(struct run *r)
{
	u64 end = now_us() + ROUND_US + model_below(&r->rng, ROUND_US), next = 0;

	/* So that merging is not off for long. */
	if (run_calm(r, true) < 0)
		return;
	run_command(r, CMD_RUN);
	while (now_us() < end && !run_failed(r)) {
		run_tick(r);
		if (now_us() >= next) {
			run_event(r);
			next = now_us() + (20 + model_below(&r->rng, 200)) * MS;
		}
		usleep(5 * MS);
	}
	r->t->rounds++;
}

static void end_run(struct run *r)
{
	/* Half of the VMs in an orderly way, the others not. */
	for (u32 v = 0; v < MODEL_VMS && !run_failed(r); v++)
		run_end_vm(r, v, (v + r->m->seed) % 2);
	if (!run_failed(r))
		run_check_empty(r);
	if (!run_failed(r))
		run_end_daemon(r, false);
}

/* One seed; false: it found something. */
static bool play_seed(struct model *m, const char *daemon, const char *dir, u64 seed, u64 us,
		      struct totals *t)
{
	char path[128], state[160];
	struct run r = { .m = m,
			 .t = t,
			 .h = { .daemon = daemon, .dir = dir },
			 .rng = model_mix(seed),
			 .command = CMD_IDLE,
			 .epoch = 1 };
	u64 end = now_us() + us;

	memset(m, 0, sizeof(*m));
	m->seed = seed;
	m->unique = MODEL_COMMON;
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	/* What an earlier seed left behind is not this one's. */
	snprintf(state, sizeof(state), "%s/state", dir);
	unlink(state);
	snprintf(path, sizeof(path), "%s/agent.sock", dir);
	setenv("BALLAST_AGENT_SOCKET", path, 1);
	run_start(&r);
	while (now_us() < end && !run_failed(&r)) {
		play_round(&r);
		if (!run_failed(&r))
			run_audit(&r);
	}
	end_run(&r);
	run_kill_all(&r);
	t->seeds++;
	if (!run_failed(&r))
		return true;
	/* Who claimed the right to tell may still be at it. */
	for (u32 i = 0; i < 100 && !m->error.complete; i++)
		usleep(10 * MS);
	printf("FAILED seed %llu round %llu: %s\n", (unsigned long long)seed,
	       (unsigned long long)t->rounds, m->error.text);
	return false;
}

static void print_result(const struct totals *t, bool ok, u64 us)
{
	printf("RESULT model ok=%d seconds=%llu seeds=%llu rounds=%llu ops=%llu checks=%llu "
	       "merges=%llu zeroed=%llu breaks=%llu moved_back=%llu wait_faults=%llu paged_out=%llu "
	       "paged_in=%llu swap_read=%llu page_outs=%llu discards=%llu "
	       "forks=%llu remaps=%llu leaves=%llu daemon_kills=%llu daemon_ends=%llu "
	       "daemon_stops=%llu vm_kills=%llu vm_stops=%llu reloads=%llu unmerges=%llu "
	       "audits=%llu shared_most=%llu full=%llu slowest_ms=%llu\n",
	       ok, (unsigned long long)(us / SECOND), (unsigned long long)t->seeds,
	       (unsigned long long)t->rounds, (unsigned long long)t->ops,
	       (unsigned long long)t->checks, (unsigned long long)t->merged,
	       (unsigned long long)t->zeroed, (unsigned long long)t->breaks,
	       (unsigned long long)t->moved_back, (unsigned long long)t->wait_faults,
	       (unsigned long long)t->paged_out, (unsigned long long)t->paged_in,
	       (unsigned long long)t->swap_read, (unsigned long long)t->page_outs,
	       (unsigned long long)t->discards, (unsigned long long)t->forks,
	       (unsigned long long)t->remaps, (unsigned long long)t->leaves,
	       (unsigned long long)t->daemon_kills, (unsigned long long)t->daemon_ends,
	       (unsigned long long)t->daemon_stops, (unsigned long long)t->vm_kills,
	       (unsigned long long)t->vm_stops, (unsigned long long)t->reloads,
	       (unsigned long long)t->unmerges, (unsigned long long)t->audits,
	       (unsigned long long)t->shared_most, (unsigned long long)t->full,
	       (unsigned long long)(t->slowest_us / MS));
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "daemon", required_argument, NULL, 'p' },
		{ "dir", required_argument, NULL, 'd' },
		{ "seed", required_argument, NULL, 's' },
		{ "seconds", required_argument, NULL, 't' },
		{ "total", required_argument, NULL, 'T' },
		{ 0 },
	};
	const char *daemon = NULL, *dir = NULL;
	u64 seed = 0, seconds = 20, total = 0, started = now_us();
	struct totals t = { 0 };
	struct model *m;
	bool ok;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'p':
			daemon = optarg;
			break;
		case 'd':
			dir = optarg;
			break;
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = strtoull(optarg, NULL, 0);
			break;
		case 'T':
			total = strtoull(optarg, NULL, 0);
			break;
		default:
			return 2;
		}
	}
	if (!daemon || !dir || !seconds || optind < argc || strlen(dir) > 80) {
		fprintf(stderr, "usage: tool_model --daemon PROGRAM --dir DIR [--seed N] "
				"[--seconds S] [--total T]\n");
		return 2;
	}
	m = mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (m == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	if (!seed)
		seed = clock_us(CLOCK_REALTIME) % 1000000000;
	do {
		ok = play_seed(m, daemon, dir, seed++, seconds * SECOND, &t);
	} while (ok && now_us() - started + seconds * SECOND <= total * SECOND);
	print_result(&t, ok, now_us() - started);
	munmap(m, sizeof(*m));
	return !ok;
}
