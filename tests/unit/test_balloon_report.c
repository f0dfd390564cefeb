/* SPDX-License-Identifier: MIT */
/* What is told of balloons: plain structs in; JSON and metrics out. And the command line that a
 * socket is found on. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "daemon/balloon_report.h"
#include "daemon/cmdline.h"

static const struct balloon_view known = {
	.state = "up",
	.linked = true,
	.run = "running",
	.driver = "answers",
	.reason = "reached",
	.has_actual = true,
	.actual_bytes = MIB(192),
	.ram_bytes = MIB(256),
	.releases_total = 3,
	.has_stats = true,
	.stats_age_us = 1500000,
	.present = 1U << GUEST_STAT_AVAILABLE | 1U << GUEST_STAT_MAJOR_FAULTS,
	.stats = { [GUEST_STAT_AVAILABLE] = 777, [GUEST_STAT_MAJOR_FAULTS] = 5 },
	.has_wish = true,
	.wish_bytes = MIB(190),
};

static const struct balloon_view busy = {
	.state = "busy",
	.error = "is another's",
	.has_target = true,
	.target_bytes = MIB(100),
};

static json_t *json_of(const struct balloon_view *b)
{
	json_t *j = json_object();

	cr_assert_eq(balloon_report_json(j, b), 0);
	return j;
}

Test(balloon_report, json)
{
	json_t *j = json_of(&known);

	cr_expect_str_eq(json_string_value(json_object_get(j, "balloon_state")), "up");
	cr_expect_str_eq(json_string_value(json_object_get(j, "balloon_reason")), "reached");
	cr_expect_str_eq(json_string_value(json_object_get(j, "guest_run")), "running");
	cr_expect_eq(json_integer_value(json_object_get(j, "balloon_actual_bytes")), MIB(192));
	cr_expect_eq(json_integer_value(json_object_get(j, "balloon_wish_bytes")), MIB(190));
	cr_expect_eq(json_integer_value(json_object_get(j, "guest_available_bytes")), 777);
	cr_expect_eq(json_integer_value(json_object_get(j, "guest_major_faults_total")), 5);
	cr_expect_eq(json_integer_value(json_object_get(j, "guest_stats_age_us")), 1500000);
	/* What is not known, or not so, is absent. */
	cr_expect_null(json_object_get(j, "balloon_target_bytes"));
	cr_expect_null(json_object_get(j, "balloon_error"));
	cr_expect_null(json_object_get(j, "guest_free_bytes"));
	json_decref(j);

	j = json_of(&busy);
	cr_expect_str_eq(json_string_value(json_object_get(j, "balloon_error")), "is another's");
	cr_expect_eq(json_integer_value(json_object_get(j, "balloon_target_bytes")), MIB(100));
	cr_expect_eq(json_object_size(j), 3, "says what it does not know");
	json_decref(j);

	j = json_of(&(struct balloon_view){ 0 });
	cr_expect_eq(json_object_size(j), 0);
	json_decref(j);
}

Test(balloon_report, metrics)
{
	static char labels[3][EXPORTER_LABEL_MAX] = { "a", "b", "c" };
	struct vm_view vms[3] = { { .balloon = known }, { .balloon = busy }, {} };
	struct view v = { .vms = vms, .nr_vms = 3 };
	struct mx_writer *w = mx_new();
	static const char *const lines[] = {
		"\nballast_vm_balloon_up{vm=\"a\"} 1\n",
		"\nballast_vm_balloon_up{vm=\"b\"} 0\n",
		"\nballast_vm_running{vm=\"a\"} 1\n",
		"\nballast_vm_balloon_actual_bytes{vm=\"a\"} 201326592\n",
		"\nballast_vm_balloon_target_bytes{vm=\"b\"} 104857600\n",
		"\nballast_vm_balloon_wish_bytes{vm=\"a\"} 199229440\n",
		"\nballast_vm_balloon_stuck{vm=\"a\"} 0\n",
		"\nballast_vm_balloon_releases_total{vm=\"a\"} 3\n",
		"\nballast_vm_guest_stats_age_seconds{vm=\"a\"} 1.5\n",
		"\nballast_vm_guest_available_bytes{vm=\"a\"} 777\n",
		"\n# TYPE ballast_vm_guest_major_faults_total counter\n",
		"\nballast_vm_guest_major_faults_total{vm=\"a\"} 5\n",
	};
	static const char *const not_lines[] = {
		"vm=\"c\"",
		"guest_free",
		"-1",
		"ballast_vm_running{vm=\"b\"}",
		"ballast_vm_balloon_target_bytes{vm=\"a\"}",
		"ballast_vm_balloon_actual_bytes{vm=\"b\"}",
	};
	const char *text;
	size_t bytes;

	balloon_report_metrics(w, &v, labels);
	cr_assert_eq(mx_finish(w, &text, &bytes), 0);
	for (u32 i = 0; i < ARRAY_SIZE(lines); i++)
		cr_expect(strstr(text, lines[i]), "not there: %s", lines[i]);
	for (u32 i = 0; i < ARRAY_SIZE(not_lines); i++)
		cr_expect_not(strstr(text, not_lines[i]), "there: %s", not_lines[i]);
	mx_free(w);
}

/* --- command lines ---------------------------------------------------------------------------- */

static char got[CMDLINE_BYTES_MAX];
static size_t got_len;
static int nr_done;

static void on_done(void *arg, const char *args, size_t len)
{
	nr_done++;
	memcpy(got, args, len);
	got_len = len;
}

static void read_cmdline(sd_event *event, pid_t pid)
{
	struct cmdline *c;
	u64 end = now_us() + 10000000;

	nr_done = 0;
	got_len = 0;
	cr_assert_eq(cmdline_start(event, pid, on_done, NULL, &c), 0);
	while (!nr_done && now_us() < end)
		sd_event_run(event, 10000);
	cr_assert_eq(nr_done, 1);
	cmdline_free(c);
}

static pid_t child(char **argv)
{
	pid_t pid = fork();

	if (pid == 0) {
		execv("/bin/sleep", argv);
		_exit(1);
	}
	return pid;
}

/* After fork() it is our own command line for a moment. */
static void wait_for_exec(pid_t pid)
{
	char exe[64], link[64];

	snprintf(exe, sizeof(exe), "/proc/%d/exe", (int)pid);
	for (u64 end = now_us() + 5000000; now_us() < end; usleep(1000)) {
		ssize_t n = readlink(exe, link, sizeof(link) - 1);

		if (n > 0 && (link[n] = '\0', strstr(link, "sleep")))
			return;
	}
}

Test(balloon_report, cmdline, .timeout = 60)
{
	static char big[100000];
	char *short_args[] = { "sleep", "60", NULL };
	char *long_args[] = { "sleep", "60", "0", "0", "0", NULL };
	sd_event *event;
	pid_t pid;

	cr_assert(sd_event_new(&event) >= 0);
	pid = child(short_args);
	wait_for_exec(pid);
	read_cmdline(event, pid);
	cr_expect(got_len == 9 && memcmp(got,
					 "sleep\0"
					 "60",
					 9) == 0,
		  "%zu", got_len);
	kill(pid, SIGKILL);
	/* Ended, not yet reaped. */
	for (u64 end = now_us() + 5000000; now_us() < end && (nr_done = 0, got_len = 9, true);) {
		read_cmdline(event, pid);
		if (got_len == 0)
			break;
	}
	cr_expect_eq(got_len, 0);
	waitpid(pid, NULL, 0);
	/* More than is taken. (sleep adds its arguments up.) */
	memset(big, '0', sizeof(big) - 1);
	long_args[2] = long_args[3] = long_args[4] = big;
	pid = child(long_args);
	wait_for_exec(pid);
	read_cmdline(event, pid);
	cr_expect_eq(got_len, CMDLINE_BYTES_MAX);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	cr_expect_lt(cmdline_start(event, pid, on_done, NULL, &(struct cmdline *){ NULL }), 0);
	/* Given up while a thread writes. */
	for (int i = 0; i < 100; i++) {
		struct cmdline *c;
		int r = cmdline_start(event, getpid(), on_done, NULL, &c);

		cr_assert(r == 0 || r == -EAGAIN);
		if (r == 0)
			cmdline_free(c);
	}
	sd_event_unref(event);
}
