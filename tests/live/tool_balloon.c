/* SPDX-License-Identifier: MIT */
/*
 * Drives one VM's balloon with the real client and controller, without a daemon:
 *
 *   tool_balloon SOCKET [--wish MIB] [--floor MIB] [--seconds N] [--fast] [--visits] [--pid PID]
 *
 * Prints a line whenever what it says has changed, and one each second:
 *
 *   BALLOON link=up run=running device=/machine/... driver=answers actual=MIB ram=MIB age_ms=N
 *     available=MIB reason=idle target=MIB resets=N withdrawn=N stuck=0 rounds=N error="..."
 *
 * SIGUSR1 takes the wish back, SIGUSR2 gives it again. SIGTERM ends it, and gives no memory back.
 * --fast: times that a test waits for are tenths of what they are.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "balloon/balloon_vm.h"
#include "balloon/controller.h"
#include "common/clock.h"

static struct {
	sd_event *event;
	struct bvm *bvm;
	struct controller controller;
	struct controller_config cfg;
	struct controller_decision last;
	bool has_wish;
	u64 wish_bytes;
	char line[512], printed[512];
} tool;

static const char *const links[] = {
	[QMP_RESTING] = "resting",
	[QMP_CONNECTING] = "connecting",
	[QMP_UP] = "up",
	[QMP_WAITING] = "waiting",
};

static s64 mib_or_none(const struct guest_stats *s, enum guest_stat stat)
{
	return guest_stats_has(s, stat) ? (s64)(s->last.value[stat] >> 20) : -1;
}

static void print_state(bool always)
{
	const struct bvm_info *i = bvm_info(tool.bvm);
	const struct qmp *q = bvm_qmp(tool.bvm);
	u64 age = guest_stats_age_us(&i->stats, now_us());

	snprintf(tool.line, sizeof(tool.line),
		 "link=%s run=%s device=%s driver=%s actual=%lld ram=%llu available=%lld reason=%s "
		 "target=%llu resets=%llu withdrawn=%llu stuck=%d period=%u error=\"%s\"",
		 bvm_linked(tool.bvm) ? "up" : links[qmp_state(q)], bvm_run_name(i->run),
		 i->has_device ? i->device : "-", bvm_driver_name(i->driver),
		 i->has_actual ? (long long)(i->actual_bytes >> 20) : -1LL,
		 (unsigned long long)i->ram_bytes >> 20,
		 (long long)mib_or_none(&i->stats, GUEST_STAT_AVAILABLE),
		 controller_reason_name(tool.last.reason),
		 (unsigned long long)tool.controller.target_bytes >> 20,
		 (unsigned long long)i->nr_resets,
		 (unsigned long long)tool.controller.withdrawn_total, tool.controller.stuck,
		 i->stats_period_s, qmp_error_text(q));
	if (!always && strcmp(tool.line, tool.printed) == 0)
		return;
	strcpy(tool.printed, tool.line);
	printf("BALLOON %s rounds=%llu age_ms=%lld\n", tool.line, (unsigned long long)i->nr_rounds,
	       age == UINT64_MAX ? -1LL : (long long)(age / 1000));
	fflush(stdout);
}

static void decide(void)
{
	static const enum controller_run runs[] = {
		[BVM_RUN_UNKNOWN] = CONTROLLER_UNKNOWN,
		[BVM_RUNNING] = CONTROLLER_RUNNING,
		[BVM_PAUSED] = CONTROLLER_PAUSED,
		[BVM_MIGRATING] = CONTROLLER_MIGRATING,
	};
	const struct bvm_info *i = bvm_info(tool.bvm);
	struct controller_input in = {
		.now_us = now_us(),
		.linked = bvm_linked(tool.bvm),
		.has_actual = i->has_actual,
		.actual_bytes = i->actual_bytes,
		.ram_bytes = i->ram_bytes,
		.run = runs[i->run],
		.nr_resets = i->nr_resets,
		.stats = &i->stats,
		.has_wish = tool.has_wish,
		.wish_bytes = tool.wish_bytes,
	};

	controller_step(&tool.controller, &tool.cfg, &in, &tool.last);
	bvm_hurry(tool.bvm, tool.has_wish || tool.controller.target_bytes);
	if (tool.last.set)
		(void)bvm_set_target(tool.bvm, tool.last.target_bytes);
}

static void on_changed(void *arg)
{
	decide();
	print_state(false);
}

static const struct bvm_ops bvm_ops = { .changed = on_changed };

static int on_second(sd_event_source *s, uint64_t usec, void *arg)
{
	decide();
	print_state(true);
	sd_event_source_set_time(s, now_us() + 1000000);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static int on_end(sd_event_source *s, uint64_t usec, void *arg)
{
	return sd_event_exit(tool.event, 0);
}

static int on_wish(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	tool.has_wish = si->ssi_signo == SIGUSR2;
	decide();
	print_state(true);
	return 0;
}

static void must(int r, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "tool_balloon: %s: %s\n", what, strerror(-r));
	exit(2);
}

static void add_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	must(sd_event_add_signal(tool.event, NULL, SIGTERM, NULL, NULL), "signals");
	must(sd_event_add_signal(tool.event, NULL, SIGUSR1, on_wish, NULL), "signals");
	must(sd_event_add_signal(tool.event, NULL, SIGUSR2, on_wish, NULL), "signals");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "wish", required_argument, NULL, 'w' },
		{ "floor", required_argument, NULL, 'f' },
		{ "seconds", required_argument, NULL, 's' },
		{ "pid", required_argument, NULL, 'p' },
		{ "fast", no_argument, NULL, 'F' },
		{ "visits", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	struct bvm_config cfg = BVM_CONFIG_DEFAULT;
	u64 seconds = 3600;
	bool fast = false;
	pid_t pid = 0;
	int opt;

	cfg.visit_us = 0;
	tool.cfg = controller_defaults;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'w':
			tool.has_wish = true;
			tool.wish_bytes = MIB(strtoull(optarg, NULL, 10));
			break;
		case 'f':
			tool.cfg.floor_bytes = MIB(strtoull(optarg, NULL, 10));
			break;
		case 's':
			seconds = strtoull(optarg, NULL, 10);
			break;
		case 'p':
			pid = atoi(optarg);
			break;
		case 'F':
			fast = true;
			break;
		case 'v':
			cfg.visit_us = 1000000;
			break;
		default:
			return 2;
		}
	}
	if (optind != argc - 1) {
		fprintf(stderr, "usage: tool_balloon SOCKET [--wish MIB] ...\n");
		return 2;
	}
	if (fast) {
		cfg.poll_us = cfg.hurry_us = 500000;
		cfg.stats_period_s = 1;
		cfg.silent_us = 4000000;
		cfg.retry_min_us = 200000;
		cfg.retry_max_us = 1000000;
		tool.cfg.holdoff_us = 5000000;
		tool.cfg.progress_us = 10000000;
	}
	must(sd_event_default(&tool.event), "event loop");
	add_signals();
	must(bvm_new(tool.event, argv[optind], pid, &cfg, &bvm_ops, NULL, &tool.bvm), "client");
	must(sd_event_add_time(tool.event, NULL, CLOCK_MONOTONIC, now_us() + 1000000, 0, on_second,
			       NULL),
	     "timer");
	must(sd_event_add_time(tool.event, NULL, CLOCK_MONOTONIC, now_us() + seconds * 1000000, 0,
			       on_end, NULL),
	     "timer");
	must(sd_event_loop(tool.event), "loop");
	bvm_free(tool.bvm);
	sd_event_unref(tool.event);
	return 0;
}
