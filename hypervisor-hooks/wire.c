/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "hypervisor-hooks/wire.h"

_Static_assert(sizeof(struct wire_message) <= WIRE_MESSAGE_MAX, "a message fits in its buffer");
_Static_assert(sizeof(struct wire_header) % 8 == 0, "payloads are aligned");

/* How long each type's payload is: @fixed bytes, then 0..@max elements of @element bytes; and the
 * version that made it so, if not the first. */
static const struct payload_rule {
	u32 fixed, element, max, fds, version;
} rules[WIRE_TYPE_END] = {
	[WIRE_HELLO] = { .fixed = sizeof(struct wire_hello) },
	[WIRE_WELCOME] = { .fixed = sizeof(struct wire_welcome), .fds = 1 },
	[WIRE_REFUSE] = { .fixed = sizeof(struct wire_refuse) },
	[WIRE_REGION_ADD] = { .fixed = sizeof(struct wire_region) },
	[WIRE_REGION_DEL] = { .fixed = sizeof(struct wire_range) },
	[WIRE_MERGE] = { .element = sizeof(struct wire_run), .max = WIRE_RUNS_MAX },
	[WIRE_UNMERGE] = { .element = sizeof(struct wire_range), .max = WIRE_RUNS_MAX },
	[WIRE_DISCARD] = { .element = sizeof(struct wire_range), .max = WIRE_RUNS_MAX },
	[WIRE_DONE] = { .fixed = sizeof(struct wire_done),
			.element = sizeof(struct wire_segment),
			.max = WIRE_PAGES_MAX },
	[WIRE_DISK_READ] = { .element = sizeof(struct wire_read),
			     .max = WIRE_READS_MAX,
			     .version = 2 },
	[WIRE_IMAGE] = { .fixed = sizeof(struct wire_image), .fds = 1, .version = 2 },
	[WIRE_IMAGE_RUNS] = { .element = sizeof(struct wire_run),
			      .max = WIRE_RUNS_MAX,
			      .version = 2 },
	[WIRE_PAGE_OUT] = { .element = sizeof(struct wire_run),
			    .max = WIRE_RUNS_MAX,
			    .version = 3 },
	[WIRE_PAGER] = { .fixed = sizeof(struct wire_pager), .version = 3 },
	[WIRE_SWAP_FILE] = { .fds = 1, .version = 4 },
	[WIRE_SWAP_OUT] = { .fixed = sizeof(struct wire_swap_out), .version = 4 },
	[WIRE_SWAP] = { .fixed = sizeof(struct wire_swap), .version = 4 },
	[WIRE_LATENCY] = { .fixed = sizeof(struct wire_latency), .version = 4 },
	[WIRE_PACE] = { .fixed = sizeof(struct wire_pace), .version = 4 },
	[WIRE_IMAGE_END] = { .fixed = sizeof(struct wire_image_end), .version = 2 },
};

static u16 layout_version(u32 type)
{
	u32 since = type < WIRE_TYPE_END ? rules[type].version : 0;

	return (u16)MAX(since, WIRE_VERSION_LOWEST);
}

void wire_init(struct wire_message *m, enum wire_type type, u32 seq, size_t payload)
{
	m->h = (struct wire_header){
		.magic = WIRE_MAGIC,
		.type = (u16)type,
		.version = type == WIRE_HELLO ? WIRE_VERSION : layout_version(type),
		.bytes = (u32)(sizeof(m->h) + payload),
		.seq = seq,
	};
}

u32 wire_common_version(u32 lowest, u32 highest)
{
	u32 version = MIN(highest, (u32)WIRE_VERSION);

	return version >= lowest && version >= WIRE_VERSION_LOWEST ? version : 0;
}

u32 wire_count(const struct wire_message *m)
{
	const struct payload_rule *r = &rules[m->h.type];

	return r->element ? (u32)(m->h.bytes - sizeof(m->h) - r->fixed) / r->element : 0;
}

static bool range_ok(u64 hva, u64 bytes)
{
	return bytes && page_aligned(hva) && page_aligned(bytes) && hva + bytes > hva;
}

static bool string_ok(const char *s, size_t size)
{
	return memchr(s, '\0', size) != NULL;
}

/* Which kinds of runs a message may have. */
static bool kind_ok(u32 type, u32 kind)
{
	switch (type) {
	case WIRE_MERGE:
		return kind == WIRE_RUN_STORE || kind == WIRE_RUN_ZERO;
	case WIRE_PAGE_OUT:
		return kind == WIRE_RUN_OUT || kind == WIRE_RUN_SAMPLE;
	default:
		return kind == WIRE_RUN_STORE;
	}
}

static const char *check_runs(const struct wire_message *m)
{
	u64 pages = 0;

	for (u32 i = 0; i < wire_count(m); i++) {
		const struct wire_run *r = &m->runs[i];

		if (!kind_ok(m->h.type, r->kind))
			return "unknown kind of run";
		if (!range_ok(r->hva, (u64)r->nr_pages << PAGE_SHIFT))
			return "run: bad range";
		if (r->kind == WIRE_RUN_STORE &&
		    (!page_aligned(r->store_offset) || r->store_offset > ((u64)1 << 62)))
			return "run: bad store offset";
		pages += r->nr_pages;
	}
	return pages > WIRE_PAGES_MAX ? "too many pages in one message" : NULL;
}

static const char *check_ranges(const struct wire_message *m)
{
	for (u32 i = 0; i < wire_count(m); i++)
		if (!range_ok(m->ranges[i].hva, m->ranges[i].bytes))
			return "bad range";
	return NULL;
}

static const char *check_segments(const struct wire_message *m)
{
	for (u32 i = 0; i < wire_count(m); i++) {
		const struct wire_segment *s = &m->segments[i];

		if (!range_ok(s->hva, (u64)s->nr_pages << PAGE_SHIFT) || s->status > 0)
			return "bad segment";
	}
	return NULL;
}

static const char *check_reads(const struct wire_message *m)
{
	u64 pages = 0;

	for (u32 i = 0; i < wire_count(m); i++) {
		const struct wire_read *r = &m->reads[i];

		if (!range_ok(r->hva, (u64)r->nr_pages << PAGE_SHIFT))
			return "read: bad range";
		/* So that the sector of its last byte is a number. */
		if (r->sector > ((u64)1 << 62))
			return "read: bad sector";
		pages += r->nr_pages;
	}
	return pages > WIRE_READ_PAGES_MAX ? "too many pages in one message" : NULL;
}

static const char *check_payload(const struct wire_message *m)
{
	switch (m->h.type) {
	case WIRE_HELLO:
		if (!string_ok(m->hello.name, sizeof(m->hello.name)) ||
		    !string_ok(m->hello.uuid, sizeof(m->hello.uuid)))
			return "string without an end";
		if (m->hello.version_lowest > m->hello.version_highest)
			return "versions in the wrong order";
		return NULL;
	case WIRE_WELCOME:
		return string_ok(m->welcome.domain, sizeof(m->welcome.domain))
			       ? NULL
			       : "string without an end";
	case WIRE_REFUSE:
		return string_ok(m->refuse.reason, sizeof(m->refuse.reason))
			       ? NULL
			       : "string without an end";
	case WIRE_REGION_ADD:
		if (!string_ok(m->region.name, sizeof(m->region.name)))
			return "string without an end";
		return range_ok(m->region.hva, m->region.bytes) ? NULL : "bad range";
	case WIRE_REGION_DEL:
		return range_ok(m->range.hva, m->range.bytes) ? NULL : "bad range";
	case WIRE_MERGE:
	case WIRE_IMAGE_RUNS:
	case WIRE_PAGE_OUT:
		return check_runs(m);
	case WIRE_PAGER:
	case WIRE_SWAP_FILE:
	case WIRE_SWAP_OUT:
	case WIRE_LATENCY:
		return NULL; /* numbers, of which none is relied on */
	case WIRE_PACE:
		return m->pace.ms > WIRE_PACE_MS_MAX ? "too long" : NULL;
	case WIRE_SWAP:
		return m->swap.error > 0 ? "bad status" : NULL;
	case WIRE_IMAGE:
		if (!range_ok(m->image.hva, m->image.bytes))
			return "bad range";
		return page_aligned(m->image.offset) &&
				       m->image.offset <=
					       ((u64)1 << 62) - MIN(m->image.bytes, (u64)1 << 62)
			       ? NULL
			       : "image: bad offset";
	case WIRE_IMAGE_END:
		return m->image_end.status > 0 ? "bad status" : NULL;
	case WIRE_UNMERGE:
	case WIRE_DISCARD:
		return check_ranges(m);
	case WIRE_DISK_READ:
		return check_reads(m);
	default:
		return check_segments(m);
	}
}

static const char *check(const struct wire_message *m, size_t bytes, u32 nr_fds)
{
	const struct payload_rule *r;
	size_t payload;

	if (bytes < sizeof(m->h))
		return "shorter than a header";
	if (m->h.magic != WIRE_MAGIC)
		return "bad magic";
	if (m->h.bytes != bytes)
		return "length differs from the packet's";
	if (m->h.type == 0 || m->h.type >= WIRE_TYPE_END)
		return "unknown message type";
	/* HELLO is read in any version, since it is what settles the version. */
	if (m->h.type != WIRE_HELLO && m->h.version != layout_version(m->h.type))
		return "wrong version";
	r = &rules[m->h.type];
	payload = bytes - sizeof(m->h);
	if (payload < r->fixed)
		return "shorter than its type";
	payload -= r->fixed;
	if (r->element ? payload % r->element || payload / r->element > r->max : payload)
		return "length does not fit its type";
	if (nr_fds != r->fds)
		return "wrong number of descriptors";
	return check_payload(m);
}

int wire_check(const struct wire_message *m, size_t bytes, u32 nr_fds, const char **ret_why)
{
	*ret_why = check(m, bytes, nr_fds);
	return *ret_why ? -EPROTO : 0;
}

int wire_send(int sock, const struct wire_message *m, int fd, int timeout_ms)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)m, .iov_len = m->h.bytes };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	for (;;) {
		struct pollfd p = { .fd = sock, .events = POLLOUT };
		ssize_t n = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0)
			return 0;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN || timeout_ms <= 0)
			return -errno;
		if (poll(&p, 1, timeout_ms) == 0)
			return -EAGAIN;
		timeout_ms = 0;
	}
}

/* Receives one packet. Without @ret_fd descriptors that come with it are dropped by the kernel,
 * which says so (MSG_CTRUNC): they are never opened here, so closing them cannot hang. */
static ssize_t receive(int sock, void *buf, size_t size, int flags, int *ret_fd, int *ret_flags)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = buf, .iov_len = size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	const struct cmsghdr *c;
	ssize_t n;

	if (ret_fd) {
		/* Exactly one: room for it with its padding would be room for two. */
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_LEN(sizeof(int));
		*ret_fd = -1;
	}
	do
		n = recvmsg(sock, &msg, flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	*ret_flags = msg.msg_flags;
	c = ret_fd ? CMSG_FIRSTHDR(&msg) : NULL;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
	return n;
}

int wire_recv(int sock, struct wire_message *m, int *ret_fd, const char **ret_why)
{
	ssize_t n, taken;
	int flags, r = 0;
	bool has_fds;
	u8 byte;

	/* A look at it first: it may be one that has no business with descriptors. */
	*ret_why = "closed";
	n = receive(sock, m, sizeof(*m), MSG_PEEK, NULL, &flags);
	if (n < 0)
		return (int)n;
	has_fds = flags & MSG_CTRUNC;
	if (n == 0) {
		r = has_fds ? -EPROTO : -ECONNRESET;
	} else if (flags & MSG_TRUNC) {
		*ret_why = "longer than any message";
		r = -EPROTO;
	} else {
		r = wire_check(m, (size_t)n, has_fds, ret_why);
	}
	if (r == 0 && has_fds && !ret_fd) {
		*ret_why = "a descriptor out of place";
		r = -EPROTO;
	}
	taken = receive(sock, &byte, sizeof(byte), 0, r == 0 ? ret_fd : NULL, &flags);
	if (taken < 0)
		return (int)taken;
	if (r == 0 && has_fds && (flags & MSG_CTRUNC || *ret_fd < 0)) {
		*ret_why = "wrong number of descriptors";
		r = -EPROTO;
	}
	return r;
}
