/* SPDX-License-Identifier: MIT */
/*
 * The agent protocol, one packet: wire_check() and wire_recv(), as the daemon and as the agent call
 * them. The first byte of the input says how many descriptors come with the packet, the rest is the
 * packet.
 *
 * Properties: nothing behind the packet is read; what is accepted keeps the promises that the two
 * ends rely on (said here again, independently of wire.c); wire_recv() says what wire_check() says,
 * gives a descriptor to the caller only with a WELCOME or an IMAGE, and leaks none.
 */
#include <errno.h>
#include <sys/socket.h>
#include "hypervisor-hooks/wire.h"
#include "tests/fuzz/fuzz.h"

#define FDS_SENT_MAX 6

static int pair[2] = { -1, -1 };

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	return 0;
}

static void must_be_range(u64 hva, u64 bytes)
{
	MUST(hva % PAGE_BYTES == 0 && bytes % PAGE_BYTES == 0 && bytes > 0);
	MUST(hva <= UINT64_MAX - bytes);
}

static void must_end(const char *s, size_t size)
{
	MUST(strnlen(s, size) < size);
}

static void must_be_good(const struct wire_message *m, size_t bytes)
{
	u32 n = wire_count(m);
	u64 pages = 0;

	MUST(m->h.magic == WIRE_MAGIC && m->h.bytes == bytes);
	MUST(m->h.type == WIRE_HELLO || m->h.version == (m->h.type >= WIRE_DISK_READ ? 2 : 1));
	switch (m->h.type) {
	case WIRE_HELLO:
		MUST(bytes == sizeof(m->h) + sizeof(m->hello));
		must_end(m->hello.name, sizeof(m->hello.name));
		must_end(m->hello.uuid, sizeof(m->hello.uuid));
		break;
	case WIRE_WELCOME:
		MUST(bytes == sizeof(m->h) + sizeof(m->welcome));
		must_end(m->welcome.domain, sizeof(m->welcome.domain));
		break;
	case WIRE_REFUSE:
		MUST(bytes == sizeof(m->h) + sizeof(m->refuse));
		must_end(m->refuse.reason, sizeof(m->refuse.reason));
		break;
	case WIRE_REGION_ADD:
		MUST(bytes == sizeof(m->h) + sizeof(m->region));
		must_be_range(m->region.hva, m->region.bytes);
		must_end(m->region.name, sizeof(m->region.name));
		break;
	case WIRE_REGION_DEL:
		MUST(bytes == sizeof(m->h) + sizeof(m->range));
		must_be_range(m->range.hva, m->range.bytes);
		break;
	case WIRE_IMAGE:
		MUST(bytes == sizeof(m->h) + sizeof(m->image));
		must_be_range(m->image.hva, m->image.bytes);
		MUST(m->image.offset % PAGE_BYTES == 0);
		MUST(m->image.offset + m->image.bytes > m->image.offset);
		break;
	case WIRE_PAGER:
		MUST(bytes == sizeof(m->h) + sizeof(m->pager));
		break;
	case WIRE_SWAP_FILE:
		MUST(bytes == sizeof(m->h));
		break;
	case WIRE_SWAP_OUT:
		MUST(bytes == sizeof(m->h) + sizeof(m->swap_out));
		break;
	case WIRE_SWAP:
		MUST(bytes == sizeof(m->h) + sizeof(m->swap) && m->swap.error <= 0);
		break;
	case WIRE_PACE:
		MUST(bytes == sizeof(m->h) + sizeof(m->pace) && m->pace.ms <= WIRE_PACE_MS_MAX);
		break;
	case WIRE_LATENCY:
		MUST(bytes == sizeof(m->h) + sizeof(m->latency));
		break;
	case WIRE_IMAGE_END:
		MUST(bytes == sizeof(m->h) + sizeof(m->image_end) && m->image_end.status <= 0);
		break;
	case WIRE_IMAGE_RUNS:
	case WIRE_PAGE_OUT:
	case WIRE_MERGE:
		MUST(n <= WIRE_RUNS_MAX && bytes == sizeof(m->h) + n * sizeof(m->runs[0]));
		for (u32 i = 0; i < n; i++) {
			const struct wire_run *r = &m->runs[i];

			must_be_range(r->hva, (u64)r->nr_pages * PAGE_BYTES);
			if (m->h.type == WIRE_PAGE_OUT)
				MUST(r->kind == WIRE_RUN_OUT || r->kind == WIRE_RUN_SAMPLE);
			else
				MUST(r->kind == WIRE_RUN_STORE ||
				     (r->kind == WIRE_RUN_ZERO && m->h.type == WIRE_MERGE));
			MUST(r->kind != WIRE_RUN_STORE ||
			     (r->store_offset % PAGE_BYTES == 0 &&
			      r->store_offset + (u64)r->nr_pages * PAGE_BYTES > r->store_offset));
			pages += r->nr_pages;
		}
		/* a->status and DONE have room for so many. */
		MUST(pages <= WIRE_PAGES_MAX);
		break;
	case WIRE_UNMERGE:
	case WIRE_DISCARD:
		MUST(n <= WIRE_RUNS_MAX && bytes == sizeof(m->h) + n * sizeof(m->ranges[0]));
		for (u32 i = 0; i < n; i++)
			must_be_range(m->ranges[i].hva, m->ranges[i].bytes);
		break;
	case WIRE_DONE:
		MUST(n <= WIRE_PAGES_MAX &&
		     bytes == sizeof(m->h) + sizeof(m->done) + n * sizeof(m->segments[0]));
		for (u32 i = 0; i < n; i++) {
			must_be_range(m->segments[i].hva,
				      (u64)m->segments[i].nr_pages * PAGE_BYTES);
			MUST(m->segments[i].status <= 0);
		}
		break;
	case WIRE_DISK_READ:
		MUST(n <= WIRE_READS_MAX && bytes == sizeof(m->h) + n * sizeof(m->reads[0]));
		for (u32 i = 0; i < n; i++) {
			const struct wire_read *r = &m->reads[i];

			must_be_range(r->hva, (u64)r->nr_pages * PAGE_BYTES);
			MUST(r->sector + (u64)r->nr_pages * 8 > r->sector);
			pages += r->nr_pages;
		}
		MUST(pages <= WIRE_READ_PAGES_MAX);
		break;
	default:
		MUST(!"a message of no known type was accepted");
	}
}

/* Not wire_send(): that cannot say what is wrong. */
static void send_packet(const u8 *data, size_t size, u32 nr_fds)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * FDS_SENT_MAX)];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)data, .iov_len = size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nr_fds) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
		for (u32 i = 0; i < nr_fds; i++)
			((int *)CMSG_DATA(c))[i] = STDERR_FILENO;
	}
	MUST(sendmsg(pair[0], &msg, MSG_DONTWAIT) == (ssize_t)size);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static struct wire_message received;
	struct wire_message *m;
	const char *why = NULL, *why_received = NULL;
	int fd = -2, checked, r, free_fd;
	u32 nr_fds;

	if (size == 0 || size > WIRE_MESSAGE_MAX + 4096)
		return 0;
	nr_fds = data[0] % (FDS_SENT_MAX + 1);
	data++;
	size--;
	/* Of the packet's size, so that ASan sees a look behind its end. */
	m = malloc(size ? size : 1);
	MUST(m);
	memcpy(m, data, size);
	checked = wire_check(m, size, nr_fds, &why);
	MUST(checked == (why ? -EPROTO : 0));
	if (checked == 0)
		must_be_good(m, size);

	free_fd = lowest_free_fd();
	send_packet(data, size, nr_fds);
	memset(&received, 0xa5, sizeof(received)); /* what an earlier message left */
	r = wire_recv(pair[1], &received, &fd, &why_received);
	if (size == 0) {
		/* As a closed connection, for which the caller closes, too. */
		MUST(r == (nr_fds ? -EPROTO : -ECONNRESET));
	} else if (size > sizeof(received)) {
		MUST(r == -EPROTO);
	} else {
		MUST(r == checked);
	}
	MUST(r == 0 || why_received);
	if (r == 0) {
		MUST(memcmp(&received, m, size) == 0);
		MUST((fd >= 0) ==
		     (received.h.type == WIRE_WELCOME || received.h.type == WIRE_IMAGE ||
		      received.h.type == WIRE_SWAP_FILE));
		if (fd >= 0)
			close(fd);
	} else {
		/* One of several may have come through. */
		MUST(fd < 0 || (r == -EPROTO && nr_fds > 1));
		if (fd >= 0)
			close(fd);
	}
	MUST(lowest_free_fd() == free_fd);
	MUST(wire_recv(pair[1], &received, &fd, &why_received) == -EAGAIN);
	free(m);
	return 0;
}
