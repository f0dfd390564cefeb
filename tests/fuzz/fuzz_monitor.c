/* SPDX-License-Identifier: MIT */
/*
 * The control socket of a VM: whatever a client sends, in pieces. What must hold: all that comes
 * back is lines of JSON, one answer to each request at most, and the socket serves the next client.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "tests/fuzz/fuzz.h"
#include "vmm/monitor.h"

static const struct vm_config cfg = { .name = "fuzz" };
static char dir[] = "/tmp/ballast-fuzz.XXXXXX", path[64];
static struct vm *vm;

static void remove_dir(void)
{
	monitor_free(vm->monitor);
	rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	MUST(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/qmp", dir);
	vm = calloc(1, sizeof(*vm));
	MUST(vm);
	vm->kvm_fd = vm->vm_fd = -1;
	vm->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vm->cfg = &cfg;
	/* A VM that has ended: what would pause it, or save it to a path of the input, is refused.
	 */
	vm->state = VM_ENDED;
	vm->end = VM_END_NONE;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->parked, NULL);
	pthread_mutex_init(&vm->pm.lock, NULL);
	MUST(sd_event_new(&vm->loop) >= 0);
	MUST(monitor_new(vm, path, &vm->monitor) == 0);
	atexit(remove_dir);
	return 0;
}

static void no_irq(void *arg, bool level)
{
}

static void turn(void)
{
	for (int i = 0; i < 100 && sd_event_run(vm->loop, 0) > 0; i++)
		;
}

static int dial(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	MUST(fd >= 0);
	strcpy(addr.sun_path, path);
	MUST(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	turn();
	return fd;
}

/* Reads all that is there; returns the number of lines, each of them JSON. */
static size_t hear(int fd, bool *gone)
{
	static char buf[2 * MONITOR_OUT_MAX];
	size_t bytes = 0, lines = 0;
	char *line = buf, *end;
	ssize_t n;

	while ((n = recv(fd, buf + bytes, sizeof(buf) - 1 - bytes, 0)) > 0) {
		bytes += (size_t)n;
		turn();
	}
	*gone = n == 0 || (n < 0 && errno != EAGAIN);
	buf[bytes] = '\0';
	for (; (end = strchr(line, '\n')); line = end + 1) {
		json_t *v = json_loadb(line, (size_t)(end - line), 0, NULL);

		MUST(json_is_object(v));
		json_decref(v);
		lines++;
	}
	MUST(*line == '\0');
	return lines;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static const char hello[] = "{\"execute\":\"qmp_capabilities\"}";
	static const char ask[] = "{\"execute\":\"query-status\"}";
	static const struct pm_backend backend = { .irq = no_irq };
	struct input in = { data, data + size };
	u8 piece = input_u8(&in);
	bool gone = false;
	int fd = dial(), next;
	size_t braces = 0;

	if (size > 200000)
		size = 0;
	vm->pm.backend = &backend;
	MUST(hear(fd, &gone) == 1 && !gone);
	if (piece & 1) {
		MUST(send(fd, hello, sizeof(hello) - 1, MSG_NOSIGNAL) > 0);
		turn();
		MUST(hear(fd, &gone) == 1);
	}
	while (size && input_left(&in) && !gone) {
		size_t n = MIN(input_left(&in), (size_t)piece * 16 + 1);
		ssize_t sent = send(fd, in.at, n, MSG_NOSIGNAL);

		if (sent < 0)
			break;
		for (ssize_t i = 0; i < sent; i++)
			braces += in.at[i] == '{' || in.at[i] == '[' || in.at[i] == '}';
		in.at += sent;
		turn();
		/* One for each message, one for nonsense, and an event of the command's. */
		MUST(hear(fd, &gone) <= 2 * braces + 1);
	}
	close(fd);
	turn();
	/* The next one is served. */
	next = dial();
	MUST(hear(next, &gone) == 1 && !gone);
	MUST(send(next, hello, sizeof(hello) - 1, MSG_NOSIGNAL) > 0);
	MUST(send(next, ask, sizeof(ask) - 1, MSG_NOSIGNAL) > 0);
	turn();
	MUST(hear(next, &gone) == 2 && !gone);
	close(next);
	turn();
	vm->end = VM_END_NONE;
	return 0;
}
