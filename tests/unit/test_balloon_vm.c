/* SPDX-License-Identifier: MIT */
/* The real client on a real socket, and a made-up VM behind it, on one event loop. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "balloon/balloon_vm.h"
#include "common/clock.h"

#define WAIT_US 10000000ULL

/* What the VM says of itself. */
static struct fake {
	int listen_fd, fd;
	sd_event_source *accept_io, *io;
	char in[4096];
	size_t in_len;
	const char *status;    /* NULL: running */
	const char *migration; /* NULL: none */
	const char *balloon;   /* its name in /machine/peripheral; NULL: no device */
	bool anonymous;	       /* it is in /machine/peripheral-anon */
	bool no_summary;       /* an old VMM: no query-memory-size-summary */
	bool period_is_stuck;  /* takes a period and keeps its own */
	bool mute;	       /* answers nothing */
	int period;
	u64 actual, last_update;
	int nr_clients, nr_period_sets, nr_targets;
} vm;

static char dir[64], path[80];
static sd_event *event;
static struct bvm *bvm;
static int nr_changed;

static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...)
{
	char text[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	strcat(text, "\r\n");
	cr_assert_eq(send(vm.fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void refuse(s64 id, const char *class)
{
	say("{\"id\": %lld, \"error\": {\"class\": \"%s\", \"desc\": \"no\"}}", (long long)id,
	    class);
}

static void answer(const char *json, s64 id)
{
	say("{\"return\": %s, \"id\": %lld}", json, (long long)id);
}

static void answer_property(const json_t *args, bool set, s64 id)
{
	const char *property = json_string_value(json_object_get(args, "property"));
	const char *object = json_string_value(json_object_get(args, "path"));
	char text[512], wanted[128];

	snprintf(wanted, sizeof(wanted), "/machine/peripheral%s/%s", vm.anonymous ? "-anon" : "",
		 vm.balloon ? vm.balloon : "");
	if (!vm.balloon || strcmp(object, wanted) != 0) {
		refuse(id, "DeviceNotFound");
	} else if (strcmp(property, "guest-stats") == 0) {
		snprintf(text, sizeof(text),
			 "{\"stats\": {\"stat-free-memory\": 4096, \"stat-swap-in\": "
			 "18446744073709551615}, \"last-update\": %llu}",
			 (unsigned long long)vm.last_update);
		answer(text, id);
	} else if (set) {
		vm.nr_period_sets++;
		if (!vm.period_is_stuck)
			vm.period = (int)json_integer_value(json_object_get(args, "value"));
		answer("{}", id);
	} else {
		snprintf(text, sizeof(text), "%d", vm.period);
		answer(text, id);
	}
}

static void answer_list(const json_t *args, s64 id)
{
	const char *list = json_string_value(json_object_get(args, "path"));
	bool here = vm.anonymous == (strstr(list, "-anon") != NULL);
	char text[512];

	if (vm.balloon && here)
		snprintf(text, sizeof(text),
			 "[{\"name\": \"type\", \"type\": \"string\"}, {\"name\": \"disk\", "
			 "\"type\": \"child<virtio-blk-pci>\"}, {\"name\": \"%s\", \"type\": "
			 "\"child<virtio-balloon-pci>\"}]",
			 vm.balloon);
	else
		snprintf(text, sizeof(text), "[{\"name\": \"type\", \"type\": \"string\"}]");
	answer(text, id);
}

static void serve_command(const json_t *j)
{
	const char *command = json_string_value(json_object_get(j, "execute"));
	const json_t *args = json_object_get(j, "arguments");
	s64 id = json_integer_value(json_object_get(j, "id"));
	char text[256];

	cr_assert(command && id > 0);
	if (vm.mute)
		return;
	if (strcmp(command, "qmp_capabilities") == 0) {
		answer("{}", id);
	} else if (strcmp(command, "query-status") == 0) {
		snprintf(text, sizeof(text), "{\"status\": \"%s\", \"running\": %s}",
			 vm.status ? vm.status : "running", vm.status ? "false" : "true");
		answer(text, id);
	} else if (strcmp(command, "query-migrate") == 0) {
		snprintf(text, sizeof(text), "{\"status\": \"%s\"}", vm.migration);
		answer(vm.migration ? text : "{}", id);
	} else if (strcmp(command, "query-memory-size-summary") == 0) {
		if (vm.no_summary)
			refuse(id, "CommandNotFound");
		else
			answer("{\"base-memory\": 1048576, \"plugged-memory\": 4096}", id);
	} else if (strcmp(command, "query-balloon") == 0) {
		snprintf(text, sizeof(text), "{\"actual\": %llu}", (unsigned long long)vm.actual);
		if (vm.balloon)
			answer(text, id);
		else
			refuse(id, "DeviceNotActive");
	} else if (strcmp(command, "balloon") == 0) {
		vm.nr_targets++;
		vm.actual = (u64)json_integer_value(json_object_get(args, "value"));
		answer("{}", id);
		say("{\"event\": \"BALLOON_CHANGE\", \"data\": {\"actual\": %llu}}",
		    (unsigned long long)vm.actual);
	} else if (strcmp(command, "qom-list") == 0) {
		answer_list(args, id);
	} else {
		answer_property(args, strcmp(command, "qom-set") == 0, id);
	}
}

static void hang_up(void)
{
	vm.io = sd_event_source_disable_unref(vm.io);
	if (vm.fd >= 0)
		close(vm.fd);
	vm.fd = -1;
	vm.in_len = 0;
	/* One client at a time, as QEMU does. */
	sd_event_source_set_enabled(vm.accept_io, SD_EVENT_ON);
}

static int on_input(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	ssize_t n = recv(fd, vm.in + vm.in_len, sizeof(vm.in) - vm.in_len, MSG_DONTWAIT);
	char *end;

	if (n <= 0) {
		hang_up();
		return 0;
	}
	vm.in_len += (size_t)n;
	while (vm.fd >= 0 && (end = memchr(vm.in, '\n', vm.in_len))) {
		size_t len = (size_t)(end - vm.in) + 1;
		json_t *j = json_loadb(vm.in, len, 0, NULL);

		cr_assert(j, "%.*s", (int)len, vm.in);
		memmove(vm.in, vm.in + len, vm.in_len - len);
		vm.in_len -= len;
		serve_command(j);
		json_decref(j);
	}
	return 0;
}

static int on_accept(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	vm.fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	cr_assert(vm.fd >= 0);
	vm.nr_clients++;
	sd_event_source_set_enabled(s, SD_EVENT_OFF);
	cr_assert(sd_event_add_io(event, &vm.io, vm.fd, EPOLLIN, on_input, NULL) >= 0);
	say("{\"QMP\": {\"version\": {\"qemu\": {\"major\": 9, \"minor\": 0, \"micro\": 1}}}}");
	return 0;
}

static void vm_start(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	strcpy(sa.sun_path, path);
	unlink(path);
	vm.fd = -1;
	vm.listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(vm.listen_fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	cr_assert_eq(listen(vm.listen_fd, 4), 0);
	cr_assert(sd_event_add_io(event, &vm.accept_io, vm.listen_fd, EPOLLIN, on_accept, NULL) >=
		  0);
}

static void vm_stop(void)
{
	hang_up();
	vm.accept_io = sd_event_source_disable_unref(vm.accept_io);
	close(vm.listen_fd);
	vm.listen_fd = -1;
}

static void init(void)
{
	strcpy(dir, "/tmp/ballast-bvm-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/qmp", dir);
	cr_assert(sd_event_new(&event) >= 0);
	vm = (struct fake){ .balloon = "balloon0", .actual = 1052672 };
	nr_changed = 0;
	vm_start();
}

static void fini(void)
{
	bvm_free(bvm);
	vm_stop();
	sd_event_unref(event);
	unlink(path);
	cr_assert_eq(rmdir(dir), 0);
}

TestSuite(balloon_vm, .init = init, .fini = fini, .timeout = 60);

static void on_changed(void *arg)
{
	nr_changed++;
}
static const struct bvm_ops ops = { .changed = on_changed };

static void watch(u64 visit_us, pid_t pid)
{
	struct bvm_config cfg = BVM_CONFIG_DEFAULT;

	cfg.poll_us = 10000;
	cfg.visit_us = visit_us;
	cfg.silent_us = 300000;
	cfg.retry_min_us = 10000;
	cfg.retry_max_us = 40000;
	cr_assert_eq(bvm_new(event, path, pid, &cfg, &ops, NULL, &bvm), 0);
}

#define INFO bvm_info(bvm)
/* Lets both sides work until it is so. */
#define UNTIL(cond)                                                              \
	do {                                                                     \
		for (u64 end_us = now_us() + WAIT_US; !(cond);) {                \
			cr_assert_lt(now_us(), end_us, "never came: %s", #cond); \
			sd_event_run(event, 10000);                              \
		}                                                                \
	} while (0)

static void rounds(u64 nr)
{
	u64 upto = INFO->nr_rounds + nr;

	UNTIL(INFO->nr_rounds >= upto);
}

static void guest_answers(void)
{
	vm.last_update = MAX(vm.last_update + 1, clock_us(CLOCK_REALTIME) / 1000000);
}

Test(balloon_vm, finds_all_that_there_is)
{
	watch(0, getpid());
	guest_answers();
	UNTIL(INFO->driver == BVM_DRIVER_ANSWERS);
	cr_expect(bvm_linked(bvm) && qmp_state(bvm_qmp(bvm)) == QMP_UP);
	cr_expect_str_eq(qmp_version(bvm_qmp(bvm)), "9.0.1");
	cr_expect_eq(INFO->run, BVM_RUNNING);
	cr_expect_str_eq(INFO->run_text, "running");
	cr_expect_str_eq(INFO->device, "/machine/peripheral/balloon0");
	cr_expect(INFO->has_actual && INFO->actual_bytes == 1052672 && INFO->ram_bytes == 1052672);
	UNTIL(INFO->stats_period_s == 2);
	cr_expect_eq(vm.period, 2);
	cr_expect(guest_stats_has(&INFO->stats, GUEST_STAT_FREE));
	cr_expect_not(guest_stats_has(&INFO->stats, GUEST_STAT_SWAP_IN), "2^64-1 is not known");
	/* Once is enough. */
	rounds(10);
	cr_expect_eq(vm.nr_period_sets, 1);
	cr_expect_eq(vm.nr_clients, 1);
}

Test(balloon_vm, a_shorter_period_is_left_alone)
{
	vm.period = 1;
	watch(0, 0);
	UNTIL(INFO->stats_period_s == 1);
	rounds(5);
	cr_expect_eq(vm.nr_period_sets, 0);
}

Test(balloon_vm, a_period_that_is_not_taken)
{
	vm.period_is_stuck = true;
	watch(0, 0);
	UNTIL(vm.nr_period_sets > 0);
	rounds(5);
	cr_expect_eq(INFO->stats_period_s, 0, "believed without looking");
	cr_expect_eq(INFO->driver, BVM_DRIVER_UNKNOWN);
}

Test(balloon_vm, driver_none_then_answers_then_silent)
{
	watch(0, 0);
	UNTIL(INFO->driver == BVM_DRIVER_NONE);
	guest_answers();
	UNTIL(INFO->driver == BVM_DRIVER_ANSWERS);
	UNTIL(INFO->driver == BVM_DRIVER_SILENT);
	guest_answers();
	UNTIL(INFO->driver == BVM_DRIVER_ANSWERS);
	/* A reboot: nobody has answered yet, and then nobody does. */
	say("{\"event\": \"RESET\", \"data\": {\"guest\": true}}");
	UNTIL(INFO->nr_resets == 1);
	cr_expect_eq(INFO->driver, BVM_DRIVER_UNKNOWN);
	cr_expect_eq(guest_stats_age_us(&INFO->stats, now_us()), UINT64_MAX);
	UNTIL(INFO->driver == BVM_DRIVER_NONE);
}

Test(balloon_vm, a_paused_guest_is_not_silent)
{
	watch(0, 0);
	guest_answers();
	UNTIL(INFO->driver == BVM_DRIVER_ANSWERS);
	vm.status = "paused";
	say("{\"event\": \"STOP\"}");
	UNTIL(INFO->run == BVM_PAUSED);
	for (u64 end = now_us() + 600000; now_us() < end;)
		sd_event_run(event, 10000);
	cr_expect_eq(INFO->driver, BVM_DRIVER_ANSWERS);
	vm.status = NULL;
	say("{\"event\": \"RESUME\"}");
	UNTIL(INFO->run == BVM_RUNNING);
	cr_expect_eq(INFO->driver, BVM_DRIVER_ANSWERS, "it has had no time to answer");
	UNTIL(INFO->driver == BVM_DRIVER_SILENT);
}

Test(balloon_vm, states)
{
	static const struct {
		const char *status, *migration;
		enum bvm_run run;
	} cases[] = {
		{ NULL, NULL, BVM_RUNNING },
		{ "paused", NULL, BVM_PAUSED },
		{ "suspended", NULL, BVM_PAUSED },
		{ "guest-panicked", NULL, BVM_PAUSED },
		{ "io-error", NULL, BVM_PAUSED },
		{ "prelaunch", NULL, BVM_PAUSED },
		{ NULL, "active", BVM_MIGRATING },
		{ NULL, "setup", BVM_MIGRATING },
		{ NULL, "postcopy-active", BVM_MIGRATING },
		{ NULL, "completed", BVM_RUNNING },
		{ NULL, "failed", BVM_RUNNING },
		{ NULL, "cancelled", BVM_RUNNING },
		{ "inmigrate", NULL, BVM_MIGRATING },
		{ "finish-migrate", "device", BVM_MIGRATING },
		{ "postmigrate", "completed", BVM_MIGRATING },
		{ NULL, "none", BVM_RUNNING },
	};

	watch(0, 0);
	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		vm.status = cases[i].status;
		vm.migration = cases[i].migration;
		rounds(2); /* one may be under way */
		cr_expect_eq(INFO->run, cases[i].run, "%s %s: %s", cases[i].status,
			     cases[i].migration, bvm_run_name(INFO->run));
	}
	vm.status = vm.migration = NULL;
	rounds(2);
	say("{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}");
	UNTIL(INFO->run == BVM_MIGRATING);
}

Test(balloon_vm, a_device_comes_and_goes)
{
	vm.balloon = NULL;
	watch(0, 0);
	rounds(3);
	cr_expect(!INFO->has_device && !INFO->has_actual);
	cr_expect_eq(INFO->run, BVM_RUNNING);
	vm.balloon = "device[3]";
	vm.anonymous = true;
	UNTIL(INFO->has_device);
	cr_expect_str_eq(INFO->device, "/machine/peripheral-anon/device[3]");
	UNTIL(INFO->has_actual && INFO->stats_period_s == 2);
	/* Unplugged; the event says so, or the next round does. */
	vm.balloon = NULL;
	UNTIL(!INFO->has_device && !INFO->has_actual);
	vm.balloon = "balloon1";
	vm.anonymous = false;
	vm.period = 0;
	UNTIL(INFO->has_device && INFO->stats_period_s == 2);
	cr_expect_str_eq(INFO->device, "/machine/peripheral/balloon1");
	say("{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/machine/peripheral/other\"}}");
	rounds(2);
	cr_expect(INFO->has_device);
}

Test(balloon_vm, names_that_are_no_names)
{
	static const char *const names[] = {
		"../x", "a\\u0007b", "",
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		"aaaaaaaa"
	};

	watch(0, 0);
	for (u32 i = 0; i < ARRAY_SIZE(names); i++) {
		vm.balloon = names[i];
		rounds(7);
		cr_expect_not(INFO->has_device, "%s", names[i]);
	}
}

Test(balloon_vm, targets)
{
	watch(0, 0);
	UNTIL(INFO->has_actual);
	nr_changed = 0;
	cr_expect_eq(bvm_set_target(bvm, 524288), 0);
	UNTIL(INFO->target_bytes == 524288 && INFO->actual_bytes == 524288);
	cr_expect(nr_changed > 0 && vm.nr_targets == 1);
	cr_expect_str_eq(bvm_target_error(bvm), "");
	cr_expect_eq(INFO->ram_bytes, 1052672, "RAM is not what the balloon leaves");
}

Test(balloon_vm, an_old_vmm)
{
	vm.no_summary = true;
	watch(0, 0);
	UNTIL(INFO->has_actual);
	cr_expect_eq(INFO->ram_bytes, 1052672, "the largest that was seen");
	vm.actual = 4096;
	UNTIL(INFO->actual_bytes == 4096);
	cr_expect_eq(INFO->ram_bytes, 1052672);
}

Test(balloon_vm, comes_back)
{
	watch(0, 0);
	guest_answers();
	UNTIL(INFO->driver == BVM_DRIVER_ANSWERS && INFO->stats_period_s == 2);
	nr_changed = 0;
	vm_stop();
	UNTIL(!bvm_linked(bvm));
	cr_expect(nr_changed > 0 && INFO->run == BVM_RUN_UNKNOWN && !INFO->has_actual);
	cr_expect_eq(bvm_set_target(bvm, 4096), -ENOTCONN);
	UNTIL(qmp_state(bvm_qmp(bvm)) == QMP_WAITING && qmp_error(bvm_qmp(bvm)));
	vm.period = 0; /* another QEMU at the same place */
	vm_start();
	UNTIL(bvm_linked(bvm) && INFO->stats_period_s == 2);
	cr_expect(vm.nr_period_sets == 2 && INFO->run == BVM_RUNNING);
	/* In the middle of a round, too. */
	for (u32 i = 0; i < 5; i++) {
		vm.mute = true;
		for (u64 end = now_us() + 30000; now_us() < end;)
			sd_event_run(event, 5000);
		hang_up();
		vm.mute = false;
		UNTIL(!bvm_linked(bvm));
		UNTIL(bvm_linked(bvm));
	}
}

Test(balloon_vm, nobody_is_there_yet)
{
	vm_stop();
	unlink(path);
	watch(0, 0);
	UNTIL(qmp_error(bvm_qmp(bvm)) == -ENOENT);
	vm_start();
	UNTIL(bvm_linked(bvm));
	cr_expect_str_eq(qmp_error_text(bvm_qmp(bvm)), "");
}

Test(balloon_vm, visits)
{
	u64 before;

	watch(20000, 0);
	guest_answers();
	rounds(5);
	cr_expect(bvm_linked(bvm) && INFO->driver == BVM_DRIVER_ANSWERS);
	cr_expect_geq(vm.nr_clients, 5);
	/* It lets go after each round, and what it knows stays. */
	UNTIL(qmp_state(bvm_qmp(bvm)) == QMP_RESTING && vm.fd < 0);
	cr_expect(bvm_linked(bvm) && INFO->has_actual && INFO->has_device);
	cr_expect_eq(bvm_set_target(bvm, 4096), -ENOTCONN);
	cr_expect_eq(vm.nr_period_sets, 1, "asked for at each visit");
	/* Gone between two visits. */
	before = INFO->nr_rounds;
	vm_stop();
	unlink(path);
	UNTIL(!bvm_linked(bvm));
	vm_start();
	UNTIL(bvm_linked(bvm) && INFO->nr_rounds > before);
}

/* A controller sets its target when a visit's round is done; it must still arrive. */
static void on_changed_set(void *arg)
{
	if (nr_changed++ == 2)
		cr_assert_eq(bvm_set_target(bvm, 8192), 0);
}

Test(balloon_vm, a_target_in_a_visit)
{
	static const struct bvm_ops set_ops = { .changed = on_changed_set };
	struct bvm_config cfg = BVM_CONFIG_DEFAULT;

	cfg.visit_us = cfg.poll_us = 20000;
	cr_assert_eq(bvm_new(event, path, 0, &cfg, &set_ops, NULL, &bvm), 0);
	UNTIL(INFO->target_bytes == 8192);
	UNTIL(INFO->actual_bytes == 8192);
	UNTIL(qmp_state(bvm_qmp(bvm)) == QMP_RESTING);
	rounds(3);
	cr_expect_eq(vm.nr_targets, 1);
}

Test(balloon_vm, another_process)
{
	watch(0, getpid() + 1);
	UNTIL(qmp_error(bvm_qmp(bvm)) == -EPERM);
	cr_expect(strstr(qmp_error_text(bvm_qmp(bvm)), "not of the VM's process"));
	cr_expect_not(bvm_linked(bvm));
}

Test(balloon_vm, a_path_longer_than_an_address)
{
	char longer[300] = "", *real = path + strlen(dir) + 1;
	struct bvm_config cfg = BVM_CONFIG_DEFAULT;

	strcpy(longer, dir);
	while (strlen(longer) < 200)
		strcat(longer, "/.");
	strcat(longer, "/");
	strcat(longer, real);
	cr_assert_eq(bvm_new(event, longer, getpid(), &cfg, &ops, NULL, &bvm), 0);
	UNTIL(bvm_linked(bvm));
}
