/* SPDX-License-Identifier: MIT */
/*
 * A hostile VMM that passes the daemon a file of a file system of its own (FUSE, spoken here),
 * which does not answer:
 *
 *   tool_hangfile read DIR     an IMAGE of it: reading it hangs
 *   tool_hangfile flush DIR    an IMAGE that cannot be: closing it hangs
 *   tool_hangfile early DIR    the file comes with a HELLO, where no file belongs: closing it hangs
 *
 * DIR is what it is mounted on. Prints "passed", and "end STATUS" when the daemon says how the
 * request ended. SIGUSR1: the file system goes, so that what hangs in it comes back. SIGTERM: ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include "hypervisor-hooks/wire.h"

#define FILE_NODE  2
#define FILE_BYTES MIB(16)
#define VALID_S	   3600
#define ANSWER_MS  5000

static volatile sig_atomic_t stop_signal, go_signal;

static void on_stop(int sig)
{
	stop_signal = 1;
}

static void on_go(int sig)
{
	go_signal = 1;
}

static void __attribute__((noreturn)) give_up(const char *what)
{
	printf("failed: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* --- the file system -------------------------------------------------------------------------- */

static void reply(int dev, const struct fuse_in_header *in, int error, const void *out, size_t size)
{
	struct fuse_out_header h = { .len = (u32)(sizeof(h) + size),
				     .error = error,
				     .unique = in->unique };
	struct iovec iov[] = { { &h, sizeof(h) }, { (void *)out, size } };

	(void)!writev(dev, iov, size ? 2 : 1);
}

/* Its times are old, as those of a snapshot are. */
static struct fuse_attr attr_of(u64 node)
{
	return (struct fuse_attr){
		.ino = node,
		.size = node == FILE_NODE ? FILE_BYTES : 0,
		.mode = node == FILE_NODE ? S_IFREG | 0600 : S_IFDIR | 0700,
		.mtime = 1000000000,
		.ctime = 1000000000,
		.nlink = 1,
		.blksize = PAGE_BYTES,
	};
}

static void serve_one(int dev, const struct fuse_in_header *in, bool hang_read)
{
	struct fuse_entry_out entry = { .nodeid = FILE_NODE,
					.entry_valid = VALID_S,
					.attr_valid = VALID_S,
					.attr = attr_of(FILE_NODE) };
	struct fuse_attr_out attr = { .attr_valid = VALID_S, .attr = attr_of(in->nodeid) };
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION,
				      .minor = 31,
				      .max_write = PAGE_BYTES,
				      .max_background = 8,
				      .congestion_threshold = 8 };
	struct fuse_open_out opened = { .fh = 1 };

	switch (in->opcode) {
	case FUSE_INIT:
		reply(dev, in, 0, &init, sizeof(init));
		break;
	case FUSE_LOOKUP:
		reply(dev, in, 0, &entry, sizeof(entry));
		break;
	case FUSE_GETATTR:
		reply(dev, in, 0, &attr, sizeof(attr));
		break;
	case FUSE_OPEN:
		reply(dev, in, 0, &opened, sizeof(opened));
		break;
	case FUSE_READ:
		break; /* never */
	case FUSE_FLUSH:
		if (hang_read)
			reply(dev, in, 0, NULL, 0);
		break; /* else never */
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break; /* have no answer */
	default:
		reply(dev, in, in->opcode == FUSE_RELEASE ? 0 : -ENOSYS, NULL, 0);
	}
}

/* A process of its own: the one that passes the file must not wait for itself. */
static pid_t mount_file(const char *dir, bool hang_read)
{
	static u8 buf[FUSE_MIN_READ_BUFFER + PAGE_BYTES] __attribute__((aligned(8)));
	int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char options[64];
	pid_t child;

	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", dev);
	if (dev < 0 || mount("hang", dir, "fuse", MS_NOSUID | MS_NODEV, options) < 0) {
		printf("no FUSE: %s\n", strerror(errno));
		exit(77);
	}
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			if (read(dev, buf, sizeof(buf)) >= (ssize_t)sizeof(struct fuse_in_header))
				serve_one(dev, (const struct fuse_in_header *)buf, hang_read);
			else if (errno == ENODEV)
				_exit(0);
	}
	close(dev);
	return child;
}

/* --- the agent's side ------------------------------------------------------------------------- */

static struct wire_message rx, tx;
static int sock;

static void connect_daemon(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", getenv("BALLAST_AGENT_SOCKET"));
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		give_up("connect");
}

static void say_hello(int fd)
{
	wire_init(&tx, WIRE_HELLO, 0, sizeof(tx.hello));
	tx.hello = (struct wire_hello){ .version_lowest = 1,
					.version_highest = WIRE_VERSION,
					.page_bytes = PAGE_BYTES,
					.name = "hangfile" };
	if (wire_send(sock, &tx, fd, ANSWER_MS) < 0)
		give_up("HELLO");
}

static void ask_image(int file, bool good)
{
	u8 *ram = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	u64 hva = (u64)(uintptr_t)ram;
	struct pollfd p = { .fd = sock, .events = POLLIN };
	const char *why;
	int store;

	say_hello(-1);
	if (ram == MAP_FAILED || poll(&p, 1, ANSWER_MS) <= 0 ||
	    wire_recv(sock, &rx, &store, &why) < 0 || rx.h.type != WIRE_WELCOME)
		give_up("WELCOME");
	wire_init(&tx, WIRE_REGION_ADD, 0, sizeof(tx.region));
	tx.region = (struct wire_region){ .hva = hva, .bytes = FILE_BYTES, .name = "ram" };
	if (wire_send(sock, &tx, -1, ANSWER_MS) < 0)
		give_up("REGION_ADD");
	wire_init(&tx, WIRE_IMAGE, 0, sizeof(tx.image));
	tx.image = (struct wire_image){ .hva = good ? hva : hva - FILE_BYTES, .bytes = FILE_BYTES };
	if (wire_send(sock, &tx, file, ANSWER_MS) < 0)
		give_up("IMAGE");
}

/* Nothing is ever asked of memory that is empty, so all there is to hear is the end. */
static void listen_on(void)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	static bool closed;
	const char *why;
	int fd;

	if (poll(&p, 1, 20) <= 0)
		return;
	if (wire_recv(sock, &rx, &fd, &why) < 0) {
		if (!closed)
			puts("closed");
		closed = true;
		fflush(stdout);
		usleep(100000);
	} else if (rx.h.type == WIRE_IMAGE_END) {
		printf("end %d\n", -rx.image_end.status);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	struct sigaction stop = { .sa_handler = on_stop }, go = { .sa_handler = on_go };
	const char *what = argc > 1 ? argv[1] : "";
	char path[128];
	pid_t server;
	int file;

	if (argc < 3)
		return 2;
	sigaction(SIGTERM, &stop, NULL);
	sigaction(SIGUSR1, &go, NULL);
	server = mount_file(argv[2], strcmp(what, "read") == 0);
	snprintf(path, sizeof(path), "%s/image", argv[2]);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		give_up(path);
	connect_daemon();
	if (strcmp(what, "early") == 0)
		say_hello(file);
	else
		ask_image(file, strcmp(what, "read") == 0);
	puts("passed");
	fflush(stdout);
	while (!stop_signal) {
		listen_on();
		if (go_signal && server > 0) {
			kill(server, SIGKILL);
			server = 0;
		}
	}
	if (server > 0)
		kill(server, SIGKILL);
	umount2(argv[2], MNT_DETACH);
	return 0;
}
