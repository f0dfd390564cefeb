/* SPDX-License-Identifier: MIT */
/* The control socket of a machine that has no KVM: protocol, bounds, hostile clients. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "vmm/monitor.h"

static struct vm_config cfg = { .name = "test" };
static char dir[64], path[96];
static struct vm *vm;

static void set_up(void)
{
	strcpy(dir, "/tmp/ballast-monitor.XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/qmp", dir);
	vm = calloc(1, sizeof(*vm));
	vm->kvm_fd = vm->vm_fd = -1;
	vm->cfg = &cfg;
	vm->state = VM_PAUSED;
	vm->end = VM_END_NONE;
	strcpy(vm->name, "test");
	cr_assert_geq(sd_event_new(&vm->loop), 0);
	cr_assert_eq(monitor_new(vm, path, &vm->monitor), 0);
}

static void tear_down(void)
{
	monitor_free(vm->monitor);
	sd_event_unref(vm->loop);
	free(vm);
	cr_assert_neq(access(path, F_OK), 0, "the socket's file is left");
	rmdir(dir);
}

static int dial(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	strcpy(addr.sun_path, path);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* Lets the loop do all that there is to do. */
static void turn(void)
{
	for (int i = 0; i < 50; i++) {
		if (sd_event_run(vm->loop, 0) == 0)
			return;
	}
}

static void tell(int fd, const char *text)
{
	cr_assert_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
	turn();
}

/* What has come, as text. NULL: hung up, and nothing was left. */
static const char *hear(int fd)
{
	static char buf[1 << 20];
	size_t bytes = 0;
	ssize_t n;

	turn();
	while ((n = recv(fd, buf + bytes, sizeof(buf) - 1 - bytes, 0)) > 0) {
		bytes += (size_t)n;
		turn();
	}
	buf[bytes] = '\0';
	return n == 0 && bytes == 0 ? NULL : buf;
}

#define HEARS(fd, text)                                                                \
	do {                                                                           \
		const char *heard = hear(fd);                                          \
		cr_assert_not_null(heard, "hung up");                                  \
		cr_assert_not_null(strstr(heard, text), "%s without %s", heard, text); \
	} while (0)

static int negotiated(void)
{
	int fd = dial();

	HEARS(fd, "\"QMP\"");
	tell(fd, "{\"execute\":\"qmp_capabilities\"}");
	HEARS(fd, "{\"return\":{}}");
	return fd;
}

Test(vmm_monitor, is_for_its_owner_alone, .init = set_up, .fini = tear_down)
{
	struct monitor *other;
	struct stat st;

	cr_assert_eq(stat(path, &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0600);
	cr_assert_eq(monitor_new(vm, path, &other), -EADDRINUSE);
	cr_assert_eq(stat(path, &st), 0);
}

Test(vmm_monitor, replaces_a_dead_socket)
{
	set_up();
	/* As after a kill: the file stays. */
	cr_assert_eq(rename(path, "/tmp/ballast-monitor-dead"), 0);
	monitor_free(vm->monitor);
	cr_assert_eq(rename("/tmp/ballast-monitor-dead", path), 0);
	cr_assert_eq(monitor_new(vm, path, &vm->monitor), 0);
	close(negotiated());
	tear_down();
}

Test(vmm_monitor, negotiates_first, .init = set_up, .fini = tear_down)
{
	int fd = dial();

	HEARS(fd, "\"QMP\"");
	tell(fd, "{\"execute\":\"query-status\",\"id\":5}");
	HEARS(fd, "\"id\":5");
	tell(fd, "{\"execute\":\"qmp_capabilities\"}");
	HEARS(fd, "return");
	tell(fd, "{\"execute\":\"query-status\"}");
	HEARS(fd, "\"status\":\"paused\"");
	tell(fd, "{\"execute\":\"qmp_capabilities\"}");
	HEARS(fd, "CommandNotFound");
	close(fd);
}

Test(vmm_monitor, answers_in_order_with_ids, .init = set_up, .fini = tear_down)
{
	int fd = negotiated();
	const char *a, *b;

	/* In pieces, and two in one; white space or none between them. */
	tell(fd, "{\"execute\":\"query-na");
	tell(fd, "me\",\"id\":\"one\"}{\"execute\":\"query-version\",\"id\":{\"x\":2}}\n\n");
	a = hear(fd);
	cr_assert_not_null(strstr(a, "\"name\":\"test\""));
	b = strstr(a, "\"id\":{\"x\":2}");
	cr_assert_not_null(b);
	cr_assert_lt(strstr(a, "\"id\":\"one\""), b);
	tell(fd, "{\"execute\":\"no-such-command\"}");
	HEARS(fd, "CommandNotFound");
	tell(fd, "{\"execute\":\"query-balloon\"}");
	HEARS(fd, "DeviceNotActive");
	tell(fd, "{\"execute\":\"qom-list\",\"arguments\":{\"path\":\"/machine/peripheral\"}}");
	HEARS(fd, "\"return\":[]");
	tell(fd, "{\"execute\":\"qom-get\",\"arguments\":{\"path\":\"/x\",\"property\":\"y\"}}");
	HEARS(fd, "DeviceNotFound");
	tell(fd, "{\"execute\":\"query-commands\"}");
	HEARS(fd, "x-ballast-stats");
	close(fd);
}

Test(vmm_monitor, wrong_requests_are_answered, .init = set_up, .fini = tear_down)
{
	static const char *const requests[] = {
		"{}",
		"[]",
		"{\"execute\":5}",
		"{\"execute\":\"stop\",\"arguments\":[]}",
		"{\"arguments\":{}}",
	};
	int fd = negotiated();

	for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
		tell(fd, requests[i]);
		HEARS(fd, "GenericError");
	}
	tell(fd, "{\"execute\":\"query-status\"}");
	HEARS(fd, "paused");
	close(fd);
}

Test(vmm_monitor, hangs_up_on_nonsense, .init = set_up, .fini = tear_down)
{
	static const char *const nonsense[] = { "hello\n", "{\"execute\":}", "{\"a\":1,\"a\":2}",
						"\xff\xff", "}" };

	for (size_t i = 0; i < ARRAY_SIZE(nonsense); i++) {
		int fd = negotiated();

		tell(fd, nonsense[i]);
		HEARS(fd, "GenericError");
		cr_assert_null(hear(fd));
		close(fd);
	}
}

Test(vmm_monitor, bounds_a_message, .init = set_up, .fini = tear_down)
{
	static char big[2 * MONITOR_IN_MAX];
	int fd = negotiated();
	size_t sent = 0;

	memset(big, ' ', sizeof(big));
	memcpy(big, "{\"execute\":\"", 12);
	memset(big + 12, 'a', sizeof(big) - 12);
	while (sent < sizeof(big)) {
		ssize_t n =
			send(fd, big + sent, MIN(sizeof(big) - sent, (size_t)4096), MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			break;
		sent += n > 0 ? (size_t)n : 0;
		turn();
		if (sent > MONITOR_IN_MAX + 4096)
			break;
	}
	HEARS(fd, "too long");
	close(fd);
	/* Nesting without end is nonsense, too, and no matter for the stack. */
	fd = negotiated();
	memset(big, '[', sizeof(big));
	cr_assert_gt(send(fd, big, 60000, MSG_NOSIGNAL), 10000);
	HEARS(fd, "GenericError");
	close(fd);
}

/* Who sends and never reads is stopped, and keeps nobody else waiting. */
Test(vmm_monitor, who_does_not_read_is_not_read, .init = set_up, .fini = tear_down)
{
	static const char cmd[] = "{\"execute\":\"query-commands\"}";
	int deaf = negotiated(), fd, full = 0;
	size_t sent = 0;

	while (full < 5 && sent < 20000) {
		if (send(deaf, cmd, sizeof(cmd) - 1, MSG_NOSIGNAL) < 0) {
			cr_assert_eq(errno, EAGAIN);
			full++;
		} else {
			sent++;
		}
		turn();
	}
	cr_assert_eq(full, 5, "%zu commands were taken", sent);
	fd = negotiated();
	tell(fd, "{\"execute\":\"query-status\"}");
	HEARS(fd, "paused");
	/* When it reads after all, all of it is answered. */
	for (size_t answers = 0, tries = 0; answers < sent; tries++) {
		const char *p = hear(deaf);

		cr_assert_lt(tries, 1000u);
		cr_assert_not_null(p);
		for (; (p = strstr(p, "\"return\"")); p++)
			answers++;
	}
	close(deaf);
	close(fd);
}

Test(vmm_monitor, clients_are_bounded, .init = set_up, .fini = tear_down)
{
	int fds[MONITOR_CLIENTS_MAX], one_more;

	for (u32 i = 0; i < MONITOR_CLIENTS_MAX; i++)
		fds[i] = negotiated();
	one_more = dial();
	cr_assert_null(hear(one_more));
	close(one_more);
	close(fds[3]);
	turn();
	fds[3] = negotiated();
	monitor_event(vm->monitor, "STOP", NULL);
	for (u32 i = 0; i < MONITOR_CLIENTS_MAX; i++) {
		HEARS(fds[i], "\"event\":\"STOP\"");
		close(fds[i]);
	}
}

Test(vmm_monitor, events_only_after_negotiation, .init = set_up, .fini = tear_down)
{
	int fd = dial();

	HEARS(fd, "QMP");
	monitor_event(vm->monitor, "STOP", json_pack("{s:i}", "x", 1));
	cr_assert_str_eq(hear(fd), "");
	close(fd);
}
