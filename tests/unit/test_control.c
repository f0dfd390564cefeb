/* SPDX-License-Identifier: MIT */
/* The control server on a real event loop and real sockets, in this process, with a made-up
 * core behind it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "daemon/control.h"

#define WAIT_US 10000000ULL

static struct core {
	int views, pauses, resumes, unmerges, shares, balloons;
	bool balloon_on;
	u64 balloon_bytes;
	char vm[128];
	int result; /* of every operation */
	u32 nr_vms;
	u64 rss_bytes;
} core;

static int core_view(void *arg, struct view *ret)
{
	struct core *c = arg;

	c->views++;
	if (c->result < 0)
		return c->result;
	memset(ret, 0, sizeof(*ret));
	ret->host.scanning = true;
	ret->host.scan_cpu_permille = 50;
	ret->host.daemon_rss_bytes = c->rss_bytes;
	ret->host.max_map_count = 1048576;
	ret->host.max_map_count_original = 65530;
	ret->host.pressure = true;
	ret->host.memory_bytes = GIB(8);
	ret->host.available_bytes = MIB(300);
	ret->host.has_pressure_some = c->rss_bytes != 0;
	ret->host.pressure_some_permille = 73;
	ret->vms = calloc(c->nr_vms, sizeof(*ret->vms));
	ret->nr_vms = c->nr_vms;
	for (u32 i = 0; i < c->nr_vms; i++) {
		struct vm_view *vm = &ret->vms[i];

		snprintf(vm->name, sizeof(vm->name), "vm-%u", i);
		strcpy(vm->domain, "default");
		strcpy(vm->share, "on");
		vm->pid = i == 0 ? getpid() : 0;
		vm->connected = true;
		vm->configured_bytes = MIB(256);
		vm->shared_pages = 300;
		vm->zero_pages = 7;
		vm->overhead_bytes = 5000;
		vm->vmm_bytes = 2000;
		vm->map_count = 410 + i;
		vm->map_limit = 1040384;
	}
	ret->domains = calloc(2, sizeof(*ret->domains));
	ret->nr_domains = 2;
	strcpy(ret->domains[0].name, "empty"); /* no references: nothing to divide by */
	strcpy(ret->domains[1].name, "default");
	ret->domains[1].store_pages = 200;
	ret->domains[1].store_refs = 600;
	ret->domains[1].index_bytes = 100;
	ret->domains[1].store_meta_bytes = 11;
	ret->domains[1].store_memory_bytes = c->rss_bytes ? 203 * 4096 : 0;
	return 0;
}

static int core_set_paused(void *arg, bool paused)
{
	struct core *c = arg;

	*(paused ? &c->pauses : &c->resumes) += 1;
	return c->result;
}

static int core_unmerge(void *arg, const char *vm, u64 *ret_pages)
{
	struct core *c = arg;

	c->unmerges++;
	snprintf(c->vm, sizeof(c->vm), "%s", vm);
	if (c->result == 0)
		*ret_pages = 1234;
	return c->result;
}

static int core_share(void *arg, const char *vm)
{
	struct core *c = arg;

	c->shares++;
	snprintf(c->vm, sizeof(c->vm), "%s", vm);
	return c->result;
}

static int core_balloon(void *arg, const char *vm, bool on, u64 bytes, u64 *ret_bytes,
			struct balloon_view *ret)
{
	struct core *c = arg;

	c->balloons++;
	c->balloon_on = on;
	c->balloon_bytes = bytes;
	snprintf(c->vm, sizeof(c->vm), "%s", vm);
	if (c->result == -ENOENT)
		return c->result;
	*ret = (struct balloon_view){ .state = "busy", .error = "is another's" };
	*ret_bytes = on ? bytes + 1 : 0;
	return c->result;
}

static int core_page_out(void *arg, const char *vm, u64 bytes, u64 *ret_pages)
{
	struct core *c = arg;

	snprintf(c->vm, sizeof(c->vm), "%s", vm);
	*ret_pages = bytes / 4096;
	return c->result;
}

static int core_plan(void *arg, struct view *ret_view, struct plan *ret)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy state = { 0 };
	int r = core_view(arg, ret_view);
	u64 more;

	if (r < 0)
		return r;
	strcpy(ret_view->host.policy.mode, "observe");
	ret_view->vms[0].resident_bytes = MIB(200);
	ret_view->vms[0].huge_saving_pages = 1000;
	r = plan_view(ret_view, &cfg, &state, 1000000, ret);
	cr_assert_eq(r, 0);
	ret->decisions = calloc(ret_view->nr_vms, sizeof(ret->decisions[0]));
	decisions_add(&ret->decisions[1],
		      &(struct decision){ .last_us = 1, .action = { .bytes = MIB(5) } }, &more);
	return 0;
}

static const struct control_ops ops = {
	.view = core_view,
	.set_paused = core_set_paused,
	.unmerge = core_unmerge,
	.share = core_share,
	.balloon = core_balloon,
	.page_out = core_page_out,
	.plan = core_plan,
};

static char dir[64], path[80];
static sd_event *event;
static struct control *control;

static void start(void)
{
	strcpy(dir, "/tmp/ballast-control-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/control.sock", dir);
	core = (struct core){ .nr_vms = 2 };
	cr_assert(sd_event_new(&event) >= 0);
	cr_assert_eq(control_new(event, path, &ops, &core, &control), 0);
}

static void stop(void)
{
	control_free(control);
	sd_event_unref(event);
	cr_expect_eq(access(path, F_OK), -1, "the socket was left behind");
	unlink(path);
	cr_assert_eq(rmdir(dir), 0);
}

TestSuite(control, .init = start, .fini = stop, .timeout = 60);

static int connect_client(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	strcpy(sa.sun_path, path);
	cr_assert_eq(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

/* Lets the server work until it has nothing to do for @us. */
static void settle(u64 us)
{
	while (sd_event_run(event, us) > 0)
		;
}

/* Sends all of it, letting the server work whenever the socket is full. false: the server hung
 * up. */
static bool send_bytes(int fd, const void *data, size_t len)
{
	u64 end = now_us() + WAIT_US;

	for (size_t at = 0; at < len;) {
		ssize_t n = send(fd, (const char *)data + at, len - at, MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			return false;
		at += n > 0 ? (size_t)n : 0;
		sd_event_run(event, 0);
		cr_assert(now_us() < end, "the server does not read");
	}
	return true;
}

static bool send_text(int fd, const char *text)
{
	return send_bytes(fd, text, strlen(text));
}

/* The next line that the server sends, as JSON; NULL when it hung up. */
static json_t *receive(int fd)
{
	u64 end = now_us() + WAIT_US;
	size_t cap = 1 << 20, len = 0;
	char *buf = malloc(cap);
	json_t *j = NULL;

	while (len < cap) {
		ssize_t n = recv(fd, buf + len, 1, 0);

		if (n == 0 || (n < 0 && errno != EAGAIN))
			break;
		if (n < 0) {
			cr_assert(now_us() < end, "the server does not answer");
			sd_event_run(event, 1000);
			continue;
		}
		if (buf[len] == '\n') {
			j = json_loadb(buf, len, 0, NULL);
			cr_assert(j, "a reply that is not JSON: %.*s", (int)len, buf);
			break;
		}
		len++;
	}
	free(buf);
	return j;
}

static bool hung_up(int fd)
{
	json_t *j = receive(fd);

	json_decref(j);
	return !j;
}

static void expect_ok(int fd, const char *request)
{
	json_t *j;

	cr_assert(send_text(fd, request));
	j = receive(fd);
	cr_expect(json_is_true(json_object_get(j, "ok")), "%s", request);
	json_decref(j);
}

static void expect_error_reply(int fd, const char *what, const char *says)
{
	json_t *j = receive(fd);
	const char *text = json_string_value(json_object_get(j, "error"));

	cr_expect(json_is_false(json_object_get(j, "ok")), "%s", what);
	cr_expect(text && strstr(text, says), "%s: \"%s\" does not say \"%s\"", what, text, says);
	json_decref(j);
}

static s64 number(const json_t *j, const char *key)
{
	cr_expect(json_is_integer(json_object_get(j, key)), "%s is missing", key);
	return json_integer_value(json_object_get(j, key));
}

Test(control, status_and_its_arithmetic)
{
	int fd = connect_client();
	json_t *j, *vm, *total;

	cr_assert(send_text(fd, "{\"command\":\"status\"}\n"));
	j = receive(fd);
	cr_expect(json_is_true(json_object_get(j, "ok")));
	cr_expect(json_is_true(json_object_get(json_object_get(j, "host"), "scanning")));
	cr_assert_eq(json_array_size(json_object_get(j, "vms")), 2);
	vm = json_array_get(json_object_get(j, "vms"), 0);
	cr_expect_str_eq(json_string_value(json_object_get(vm, "name")), "vm-0");
	cr_expect_gt(number(vm, "resident_bytes"), 0);
	cr_expect_eq(number(vm, "shared_bytes"), 300 * 4096);
	cr_expect_eq(number(vm, "zero_bytes"), 7 * 4096);
	/* Each of 600 references carries a third of a page. */
	cr_expect_eq(number(vm, "saved_bytes"), (200 + 7) * 4096);
	cr_expect_eq(number(vm, "net_saved_bytes"), (200 + 7) * 4096 - 5000);
	vm = json_array_get(json_object_get(j, "vms"), 1);
	cr_expect(json_object_get(vm, "resident_bytes") == NULL,
		  "made up for a process that is gone");
	total = json_object_get(j, "total");
	cr_expect_eq(number(total, "saved_bytes"), (600 - 200 + 14) * 4096);
	cr_expect_eq(number(total, "overhead_bytes"), 10000 + 111);
	cr_expect_eq(number(total, "net_saved_bytes"), (600 - 200 + 14) * 4096 - 10111);
	cr_expect_eq(number(vm, "cow_debt_bytes"), 307 * 4096);
	/* All sharing gone: 614 frames, less the store's. */
	cr_expect_eq(number(total, "cow_debt_bytes"), (614 - 200) * 4096);
	cr_expect_eq(number(vm, "map_count"), 411);
	cr_expect_eq(number(vm, "map_limit"), 1040384);
	json_decref(j);
	/* The daemon's resident memory holds its metadata, and the store's file three more pages.
	 */
	core.rss_bytes = 7000000;
	cr_assert(send_text(fd, "{\"command\":\"status\"}\n"));
	j = receive(fd);
	total = json_object_get(j, "total");
	cr_expect_eq(number(total, "saved_bytes"), (600 - 200 + 14) * 4096);
	cr_expect_eq(number(total, "overhead_bytes"), 7000000 + 2 * 2000 + 3 * 4096 + 203 * 9);
	cr_expect_eq(number(total, "net_saved_bytes"),
		     (600 - 200 + 14) * 4096 - 7000000 - 2 * 2000 - 3 * 4096 - 203 * 9);
	cr_expect_eq(number(total, "cow_debt_bytes"), (614 - 200) * 4096);
	json_decref(j);
	close(fd);
}

Test(control, status_of_the_host)
{
	int fd = connect_client();
	json_t *j, *host;

	cr_assert(send_text(fd, "{\"command\":\"status\"}\n"));
	j = receive(fd);
	host = json_object_get(j, "host");
	cr_expect(json_is_true(json_object_get(host, "pressure")));
	cr_expect_eq(number(host, "max_map_count"), 1048576);
	cr_expect_eq(number(host, "max_map_count_original"), 65530);
	cr_expect_eq(number(host, "memory_bytes"), GIB(8));
	cr_expect_eq(number(host, "available_bytes"), MIB(300));
	cr_expect_null(json_object_get(host, "pressure_some_permille"), "made up without PSI");
	json_decref(j);
	core.rss_bytes = 1;
	cr_assert(send_text(fd, "{\"command\":\"status\"}\n"));
	j = receive(fd);
	cr_expect_eq(number(json_object_get(j, "host"), "pressure_some_permille"), 73);
	json_decref(j);
	close(fd);
}

Test(control, commands_reach_the_core)
{
	int fd = connect_client();

	expect_ok(fd, "{\"command\":\"pause\"}\n");
	expect_ok(fd, "{\"command\":\"resume\"}\r\n");
	expect_ok(fd, "{\"command\":\"unmerge\",\"vm\":\"web 1\"}\n");
	cr_expect_str_eq(core.vm, "web 1");
	expect_ok(fd, "{\"command\":\"share\",\"vm\":4711}\n");
	cr_expect_str_eq(core.vm, "4711");
	cr_expect_eq(core.pauses, 1);
	cr_expect_eq(core.resumes, 1);
	cr_expect_eq(core.unmerges, 1);
	cr_expect_eq(core.shares, 1);
	/* Well formed but refused: the connection stays. */
	send_text(fd, "{\"command\":\"explode\"}\n");
	expect_error_reply(fd, "explode", "unknown command \"explode\"");
	send_text(fd, "{\"command\":\"unmerge\"}\n");
	expect_error_reply(fd, "no vm", "needs \"vm\"");
	send_text(fd, "{\"command\":\"unmerge\",\"vm\":[]}\n");
	expect_error_reply(fd, "vm of a wrong type", "needs \"vm\"");
	core.result = -ENOENT;
	send_text(fd, "{\"command\":\"unmerge\",\"vm\":\"x\"}\n");
	expect_error_reply(fd, "unknown vm", "no VM has the name, UUID or PID \"x\"");
	core.result = -ENOTCONN;
	send_text(fd, "{\"command\":\"share\",\"vm\":\"x\"}\n");
	expect_error_reply(fd, "lost vm", "not connected");
	core.result = -ENOMEM;
	send_text(fd, "{\"command\":\"status\"}\n");
	expect_error_reply(fd, "status", "Cannot allocate memory");
	core.result = 0;
	expect_ok(fd, "{\"command\":\"status\"}\n");
	close(fd);
}

Test(control, malformed_requests)
{
	static const struct {
		const char *text;
		size_t len;
		const char *says;
	} bad[] = {
#define BAD(text, says) { text, sizeof(text) - 1, says }
		BAD("\n", "not JSON"),
		BAD("hello\n", "not JSON"),
		BAD("{\"command\":\"pause\"\n", "not JSON"),
		BAD("{\"command\":\"pause\"} x\n", "not JSON"),
		BAD("{\"command\":\"pause\",\"command\":\"resume\"}\n", "duplicate"),
		BAD("[\"pause\"]\n", "not an object"),
		BAD("{}\n", "with a \"command\""),
		BAD("{\"command\":1}\n", "with a \"command\""),
		BAD("\"pause\"\n", "not"),
		BAD("{\"command\":\"pause\"}\0\n", "NUL"),
		BAD("\0\n", "NUL"),
		BAD("{\"command\":\"pa\\u0000use\"}\n", "not JSON"),
		BAD("{\"command\":\"\xff\xfe\"}\n", "not JSON"),
		BAD("GET / HTTP/1.1\r\n", "not JSON"),
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = connect_client();

		/* What follows a malformed request must not be carried out. */
		cr_expect(send_bytes(fd, bad[i].text, bad[i].len));
		expect_error_reply(fd, bad[i].text, bad[i].says);
		send_text(fd, "{\"command\":\"pause\"}\n");
		cr_expect(hung_up(fd), "%s", bad[i].text);
		close(fd);
	}
	cr_expect_eq(core.pauses, 0);
}

Test(control, size_and_nesting)
{
	char *big = malloc(CONTROL_REQUEST_MAX * 2);
	int fd;

	/* The largest request that is allowed, byte for byte. */
	memset(big, ' ', CONTROL_REQUEST_MAX * 2);
	memcpy(big, "{\"command\":\"pause\"}", 19);
	big[CONTROL_REQUEST_MAX - 1] = '\n';
	fd = connect_client();
	cr_expect(send_bytes(fd, big, CONTROL_REQUEST_MAX));
	cr_assert(!hung_up(fd));
	cr_expect_eq(core.pauses, 1);
	close(fd);
	/* One more; and one without any end. */
	big[CONTROL_REQUEST_MAX - 1] = ' ';
	big[CONTROL_REQUEST_MAX] = '\n';
	fd = connect_client();
	send_bytes(fd, big, CONTROL_REQUEST_MAX + 1);
	expect_error_reply(fd, "one byte too long", "too long");
	cr_expect(hung_up(fd));
	close(fd);
	fd = connect_client();
	memset(big, 'x', CONTROL_REQUEST_MAX * 2);
	send_bytes(fd, big, CONTROL_REQUEST_MAX * 2);
	expect_error_reply(fd, "endless", "too long");
	close(fd);
	cr_expect_eq(core.pauses, 1);

	for (int i = 0; i < 2; i++) {
		memset(big, '[', CONTROL_REQUEST_MAX - 1);
		for (int at = 0; i && at < CONTROL_REQUEST_MAX - 6; at += 5)
			memcpy(big + at, "{\"a\":", 5);
		big[CONTROL_REQUEST_MAX - 1] = '\n';
		fd = connect_client();
		send_bytes(fd, big, CONTROL_REQUEST_MAX);
		expect_error_reply(fd, "nested", "not JSON: maximum parsing depth");
		cr_expect(hung_up(fd));
		close(fd);
	}
	free(big);
}

Test(control, partial_lines)
{
	static const char request[] = "{\"command\":\"pause\"}\n";
	int fd = connect_client();

	for (size_t i = 0; i < sizeof(request) - 1; i++) {
		cr_expect_eq(core.pauses, 0, "carried out before it was whole");
		send_bytes(fd, request + i, 1);
		settle(0);
	}
	cr_expect(!hung_up(fd));
	cr_expect_eq(core.pauses, 1);
	/* A request cut off by the end of the connection is none. */
	send_text(fd, "{\"command\":\"pause\"}");
	shutdown(fd, SHUT_WR);
	expect_error_reply(fd, "cut off", "line end");
	cr_expect(hung_up(fd));
	cr_expect_eq(core.pauses, 1);
	close(fd);
	/* Whole ones are answered after a shutdown, all of them. */
	fd = connect_client();
	send_text(fd,
		  "{\"command\":\"pause\"}\n{\"command\":\"status\"}\n{\"command\":\"resume\"}\n");
	shutdown(fd, SHUT_WR);
	for (int i = 0; i < 3; i++)
		cr_expect(!hung_up(fd), "reply %d", i);
	cr_expect(hung_up(fd));
	cr_expect_eq(core.resumes, 1);
	close(fd);
	/* Connected and gone. */
	close(connect_client());
	fd = connect_client();
	send_text(fd, "{\"comm");
	close(fd);
	settle(0);
	fd = connect_client();
	expect_ok(fd, "{\"command\":\"status\"}\n");
	close(fd);
}

/* A client that asks and never reads must cost one reply of memory, no stall, and be gone in
 * time. */
Test(control, a_client_that_does_not_read)
{
	static const char request[] = "{\"command\":\"status\"}\n";
	int fd = connect_client(), other;
	int sent = 0;
	u64 end;

	core.nr_vms = 2000; /* a reply of about a MiB: more than the socket holds */
	control_free(control);
	control = NULL;
	cr_assert_eq(control_new(event, path, &ops, &core, &control), 0);
	control_set_timeout(control, 300000);
	close(fd);
	fd = connect_client();
	while (send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) > 0 && sent++ < 1000)
		;
	settle(20000);
	cr_expect_eq(core.views, 1, "%d replies made for a client that reads none", core.views);
	/* Others are served meanwhile. */
	core.nr_vms = 1;
	other = connect_client();
	expect_ok(other, "{\"command\":\"status\"}\n");
	cr_expect_eq(core.views, 2);
	/* Both are let go: one did not read, the other asks nothing. */
	end = now_us() + WAIT_US;
	while (now_us() < end) {
		struct pollfd p = { .fd = fd };

		sd_event_run(event, 50000);
		poll(&p, 1, 0);
		if (p.revents & POLLHUP)
			break;
	}
	cr_expect(now_us() < end, "still connected");
	cr_expect(hung_up(other));
	cr_expect_eq(core.views, 2);
	close(fd);
	close(other);
}

/* Sending one byte now and then must not hold a slot for ever. */
Test(control, a_client_that_drips)
{
	u64 begin = now_us();
	int fd;

	control_set_timeout(control, 300000);
	fd = connect_client();
	while (send(fd, " ", 1, MSG_NOSIGNAL) > 0) {
		sd_event_run(event, 20000);
		cr_assert(now_us() < begin + WAIT_US, "still connected");
		usleep(20000);
	}
	cr_expect(now_us() >= begin + 300000);
	close(fd);
}

Test(control, many_clients)
{
	int fds[40], answered = 0, refused = 0;

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = connect_client();
		settle(0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		json_t *j;

		send_text(fds[i], "{\"command\":\"pause\"}\n");
		j = receive(fds[i]);
		answered += json_is_true(json_object_get(j, "ok"));
		refused += json_is_false(json_object_get(j, "ok"));
		json_decref(j);
	}
	cr_expect_eq(answered, 16);
	cr_expect_eq(refused, 24);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	settle(0);
	fds[0] = connect_client();
	expect_ok(fds[0], "{\"command\":\"pause\"}\n");
	close(fds[0]);
}

/* Many requests in one buffer: one is answered a turn of the loop, so that others get theirs. */
Test(control, pipelined_requests_are_fair)
{
	static const char request[] = "{\"command\":\"status\"}\n",
			  pause[] = "{\"command\":\"pause\"}\n";
	int fd = connect_client(), other = connect_client();
	char all[500 * (sizeof(request) - 1)];

	settle(0);
	for (int i = 0; i < 500; i++)
		memcpy(all + i * (sizeof(request) - 1), request, sizeof(request) - 1);
	cr_assert_eq(send(fd, all, sizeof(all), MSG_NOSIGNAL), (ssize_t)sizeof(all));
	cr_assert_eq(send(other, pause, sizeof(pause) - 1, MSG_NOSIGNAL),
		     (ssize_t)sizeof(pause) - 1);
	while (core.pauses == 0)
		cr_assert(sd_event_run(event, WAIT_US) > 0);
	cr_expect_lt(core.views, 5, "%d requests of another client came first", core.views);
	for (int i = 0; i < 500; i++)
		cr_assert(!hung_up(fd), "reply %d", i);
	cr_expect_eq(core.views, 500);
	close(fd);
	close(other);
}

Test(control, random_bytes)
{
	static const char set[] = "{}[]\":,\n\n command status pause vm \\u0000\t1e9-";
	u8 junk[3000];

	srandom(2);
	for (int i = 0; i < 300; i++) {
		size_t len = (size_t)random() % sizeof(junk);
		int fd = connect_client();

		for (size_t j = 0; j < len; j++)
			junk[j] = i % 2 ? (u8)random() : (u8)set[(size_t)random() % sizeof(set)];
		send_bytes(fd, junk, len);
		settle(0);
		close(fd);
	}
	settle(0);
	cr_expect_eq(core.pauses + core.unmerges + core.shares, 0);
	expect_ok(connect_client(), "{\"command\":\"status\"}\n");
}

/* A hostile VMM chooses its name. */
static int hostile_view(void *arg, struct view *ret)
{
	int r = core_view(arg, ret);

	if (r == 0)
		memcpy(ret->vms[0].name, "\xff\x1b[2J\"\n\xc3", 9);
	return r;
}

Test(control, names_that_are_not_text)
{
	static const struct control_ops hostile = {
		.view = hostile_view,
		.set_paused = core_set_paused,
		.unmerge = core_unmerge,
		.share = core_share,
	};
	json_t *j, *vms;
	int fd;

	control_free(control);
	cr_assert_eq(control_new(event, path, &hostile, &core, &control), 0);
	fd = connect_client();
	send_text(fd, "{\"command\":\"status\"}\n");
	j = receive(fd);
	vms = json_object_get(j, "vms");
	cr_expect_str_eq(json_string_value(json_object_get(json_array_get(vms, 0), "name")),
			 "?\x1b[2J\"\n?");
	json_decref(j);
	close(fd);
}

Test(control, socket_file)
{
	struct control *second = NULL;
	char long_path[200];
	struct stat st;
	FILE *f;

	cr_assert_eq(stat(path, &st), 0);
	cr_expect(S_ISSOCK(st.st_mode));
	cr_expect_eq(st.st_mode & 07777, 0600);
	/* Somebody listens: hands off, and the first one still answers. */
	cr_expect_eq(control_new(event, path, &ops, &core, &second), -EADDRINUSE);
	cr_expect_null(second);
	expect_ok(connect_client(), "{\"command\":\"pause\"}\n");
	/* Replaced by another's file: not ours to remove. */
	cr_assert_eq(unlink(path), 0);
	f = fopen(path, "w");
	fputs("precious", f);
	fclose(f);
	control_free(control);
	control = NULL;
	cr_expect_eq(access(path, F_OK), 0, "removed a file that is not its own");
	/* Not a socket: stays as it is. */
	cr_expect_eq(control_new(event, path, &ops, &core, &control), -EEXIST);
	cr_expect_eq(stat(path, &st), 0);
	cr_expect_eq(st.st_size, 8);
	unlink(path);
	memset(long_path, 'x', sizeof(long_path));
	long_path[sizeof(long_path) - 1] = '\0';
	cr_expect_eq(control_new(event, long_path, &ops, &core, &control), -ENAMETOOLONG);
	snprintf(long_path, sizeof(long_path), "%s/missing/control.sock", dir);
	cr_expect_eq(control_new(event, long_path, &ops, &core, &control), -ENOENT);
	cr_expect_null(control);
}

Test(control, balloon)
{
	int fd = connect_client();
	json_t *j;

	send_text(fd, "{\"command\":\"balloon\",\"vm\":\"web\",\"bytes\":4096}\n");
	j = receive(fd);
	cr_expect(json_is_true(json_object_get(j, "ok")));
	cr_expect_eq(number(j, "bytes"), 4097, "what the core said");
	cr_expect_str_eq(json_string_value(json_object_get(j, "error")), "is another's");
	json_decref(j);
	cr_expect(core.balloon_on && core.balloon_bytes == 4096);
	cr_expect_str_eq(core.vm, "web");
	expect_ok(fd, "{\"command\":\"balloon\",\"vm\":\"web\"}\n");
	cr_expect(!core.balloon_on && core.balloons == 2);
	for (u32 i = 0; i < 4; i++) {
		static const char *const bad[] = { "0", "-1", "\"1G\"", "null" };
		char request[128];

		snprintf(request, sizeof(request),
			 "{\"command\":\"balloon\",\"vm\":\"a\",\"bytes\":%s}\n", bad[i]);
		send_text(fd, request);
		expect_error_reply(fd, bad[i], "above 0");
	}
	send_text(fd, "{\"command\":\"balloon\",\"bytes\":5}\n");
	expect_error_reply(fd, "no VM", "needs \"vm\"");
	cr_expect_eq(core.balloons, 2);
	core.result = -ENODEV;
	send_text(fd, "{\"command\":\"balloon\",\"vm\":\"a\",\"bytes\":5}\n");
	expect_error_reply(fd, "no device", "can be reached: is another's");
	core.result = -ENOENT;
	send_text(fd, "{\"command\":\"balloon\",\"vm\":\"a\",\"bytes\":5}\n");
	expect_error_reply(fd, "no VM", "no VM has the name");
	close(fd);
}

/* What a killed daemon leaves behind: a socket file that nobody listens on. */
Test(control, stale_socket)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	control_free(control);
	control = NULL;
	strcpy(sa.sun_path, path);
	cr_assert_eq(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	close(fd);
	cr_assert_eq(access(path, F_OK), 0);
	cr_assert_eq(control_new(event, path, &ops, &core, &control), 0);
	expect_ok(connect_client(), "{\"command\":\"pause\"}\n");
}

/* Out of descriptors: the loop must sleep, not spin, and serve again afterwards. */
Test(control, no_descriptors_left)
{
	struct rlimit old, low;
	int fd = connect_client(), next;
	u64 cpu;

	/* Everything that takes a descriptor is open by now, but the accepted side. */
	next = dup(0);
	cr_assert(next >= 0);
	close(next);
	getrlimit(RLIMIT_NOFILE, &old);
	low = (struct rlimit){ (rlim_t)next, old.rlim_max };
	setrlimit(RLIMIT_NOFILE, &low);
	cpu = process_cpu_us();
	for (u64 end = now_us() + 300000; now_us() < end;)
		sd_event_run(event, 50000);
	cr_expect_lt(process_cpu_us() - cpu, 100000, "busy loop");
	setrlimit(RLIMIT_NOFILE, &old);
	expect_ok(fd, "{\"command\":\"pause\"}\n");
	close(fd);
}

Test(control, other_users_are_refused)
{
	pid_t child;
	int status;

	if (geteuid() != 0)
		cr_skip_test("needs root, to become somebody else");
	/* Somebody has opened the door wide: the peer's identity still decides. */
	cr_assert_eq(chmod(dir, 0755), 0);
	cr_assert_eq(chmod(path, 0666), 0);
	child = fork();
	if (child == 0) {
		struct sockaddr_un sa = { .sun_family = AF_UNIX };
		char reply[256] = "";
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);

		strcpy(sa.sun_path, path);
		if (setuid(65534) != 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0)
			_exit(1);
		send(fd, "{\"command\":\"pause\"}\n", 20, MSG_NOSIGNAL);
		if (recv(fd, reply, sizeof(reply) - 1, 0) < 0)
			_exit(2);
		_exit(strstr(reply, "only root") ? 0 : 3);
	}
	while (waitpid(child, &status, WNOHANG) == 0)
		sd_event_run(event, 10000);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
	cr_expect_eq(core.pauses, 0);
}

Test(control, plan)
{
	int fd = connect_client();
	json_t *j, *vm;

	cr_assert(send_text(fd, "{\"command\":\"plan\"}\n"));
	j = receive(fd);
	cr_assert_not_null(j);
	cr_expect(json_is_true(json_object_get(j, "ok")));
	cr_expect_str_eq(json_string_value(json_object_get(j, "mode")), "observe");
	cr_expect_str_eq(json_string_value(json_object_get(j, "state")), "hard");
	cr_expect_eq(json_array_size(json_object_get(j, "actions")), 1u);
	vm = json_array_get(json_object_get(j, "vms"), 0);
	cr_expect_eq(json_integer_value(json_object_get(vm, "resident_bytes")),
		     (json_int_t)MIB(200));
	/* Why its balloon is not used, and that nothing was decided before. */
	cr_expect_not_null(json_object_get(vm, "held"));
	cr_expect_eq(json_array_size(json_object_get(vm, "decisions")), 0u);
	vm = json_array_get(json_object_get(j, "vms"), 1);
	vm = json_array_get(json_object_get(vm, "decisions"), 0);
	cr_expect_eq(json_integer_value(json_object_get(vm, "bytes")), (json_int_t)MIB(5));
	json_decref(j);
	/* An error is one sentence. */
	core.result = -ENODATA;
	cr_assert(send_text(fd, "{\"command\":\"plan\"}\n"));
	j = receive(fd);
	cr_assert_not_null(j);
	cr_expect_not_null(
		strstr(json_string_value(json_object_get(j, "error")), "memory is not known"));
	json_decref(j);
	close(fd);
}
