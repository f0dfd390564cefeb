// SPDX-License-Identifier: MIT
/*
 * A hostile client of the agent socket ($BALLAST_AGENT_SOCKET): says what no honest agent would,
 * and looks at what the daemon makes of it. It never maps the store and never merges anything; see
 * tool_vmm.c for hostile memory.
 *
 *   tool_protocol kinds               one breach of each kind
 *   tool_protocol states              every message type, bent in every way, in every state
 *   tool_protocol done                wrong answers to a real MERGE request
 *   tool_protocol regions             overlapping, enormous and numberless regions
 *   tool_protocol claim GIB COUNT     regions of GIB of address space that is not mapped; stays
 *                                     until SIGTERM
 *   tool_protocol discard GIB         16 messages of as many whole-region DISCARDs as fit in one
 *   tool_protocol reads COUNT         as many DISK_READs, of as many pages as there can be in one
 *   tool_protocol random COUNT SEED   random and half-random packets
 *   tool_protocol crowd COUNT SECONDS holds COUNT connections and says nothing on them
 *
 * Prints "bad CASE: ..." for each answer that is not the right one, and ends with "CASES n CLOSED c
 * BAD b"; CLOSED are the connections that the daemon closed for a breach of the protocol. Exit
 * status 0 if b is 0.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"
#include "hypervisor-hooks/uffd.h"
#include "hypervisor-hooks/wire.h"

#define ANSWER_MS 5000 /* a daemon that has not closed by then never will */
#define OPEN_MS	  100  /* one that has not closed by then lets it be */
#define MERGE_MS  20000
#define FDS_MOST  8
#define RAM_BYTES MIB(8)
/* Nothing is ever mapped there. */
#define NOWHERE GIB(16 * 1024)

static u32 nr_cases, nr_closed, nr_bad;
static u8 *ram;
static volatile sig_atomic_t stop_signal;

static void on_stop(int sig)
{
	stop_signal = 1;
}

/* Room for what is longer than any message. */
static union packet {
	struct wire_message m;
	u8 bytes[WIRE_MESSAGE_MAX + 4096];
} packet, answer;

static int dial(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const char *path = getenv("BALLAST_AGENT_SOCKET");
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || !path)
		return -1;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
		return fd;
	close(fd);
	return -1;
}

static int send_raw(int sock, const void *buf, size_t bytes, u32 nr_fds)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * FDS_MOST)];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)buf, .iov_len = bytes };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nr_fds) {
		struct cmsghdr *c = &control.align;
		int fds[FDS_MOST];

		for (u32 i = 0; i < FDS_MOST; i++)
			fds[i] = STDIN_FILENO;
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nr_fds);
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int send_message(int sock, const struct wire_message *m)
{
	return send_raw(sock, m, m->h.bytes, 0);
}

/* The next message into @answer: its type; 0: closed by the daemon; -1: nothing in @ms. */
static int next_message(int sock, int ms)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	const char *why;
	int fd = -1, r;

	if (poll(&p, 1, ms) <= 0)
		return -1;
	r = wire_recv(sock, &answer.m, &fd, &why);
	if (fd >= 0)
		close(fd);
	return r < 0 ? 0 : answer.m.h.type;
}

static bool is_closed(int sock, int ms)
{
	u64 end = now_us() + (u64)ms * 1000;
	int r;

	do
		r = next_message(sock, ms);
	while (r > 0 && now_us() < end);
	return r == 0;
}

static void verdict(const char *name, bool right, const char *what)
{
	nr_cases++;
	if (right)
		return;
	nr_bad++;
	printf("bad %s: %s\n", name, what);
}

static void expect_closed(const char *name, int sock)
{
	bool closed = is_closed(sock, ANSWER_MS);

	nr_closed += closed;
	verdict(name, closed, "the daemon goes on with the connection");
	close(sock);
}

static void expect_open(const char *name, int sock)
{
	verdict(name, !is_closed(sock, OPEN_MS), "the daemon closed the connection");
}

/* --- valid messages ----------------------------------------------------------------------------
 */

static void make_hello(struct wire_message *m)
{
	wire_init(m, WIRE_HELLO, 0, sizeof(m->hello));
	m->hello = (struct wire_hello){
		.version_lowest = WIRE_VERSION_LOWEST,
		.version_highest = WIRE_VERSION,
		.page_bytes = PAGE_BYTES,
		.name = "hostile",
	};
}

static void make_region(struct wire_message *m, u64 hva, u64 bytes)
{
	wire_init(m, WIRE_REGION_ADD, 0, sizeof(m->region));
	m->region = (struct wire_region){ .hva = hva, .bytes = bytes, .name = "ram" };
}

static void make_ranges(struct wire_message *m, enum wire_type type, u64 hva, u64 bytes, u32 nr)
{
	wire_init(m, type, 0, nr * sizeof(m->ranges[0]));
	for (u32 i = 0; i < nr; i++)
		m->ranges[i] = (struct wire_range){ hva, bytes };
}

/* Right in form, whatever it means where it is said. */
static void make(struct wire_message *m, u32 type)
{
	u64 hva = (u64)(uintptr_t)ram;

	memset(m, 0, sizeof(*m));
	switch (type) {
	case WIRE_HELLO:
		make_hello(m);
		return;
	case WIRE_WELCOME:
		wire_init(m, type, 0, sizeof(m->welcome));
		m->welcome = (struct wire_welcome){ .version = WIRE_VERSION, .store_bytes = 4096 };
		return;
	case WIRE_REFUSE:
		wire_init(m, type, 0, sizeof(m->refuse));
		return;
	case WIRE_REGION_ADD:
		make_region(m, hva, RAM_BYTES);
		return;
	case WIRE_REGION_DEL:
		wire_init(m, type, 0, sizeof(m->range));
		m->range = (struct wire_range){ hva, RAM_BYTES };
		return;
	case WIRE_MERGE:
		wire_init(m, type, 1, 2 * sizeof(m->runs[0]));
		m->runs[0] = m->runs[1] =
			(struct wire_run){ .hva = hva, .nr_pages = 1, .kind = WIRE_RUN_ZERO };
		return;
	case WIRE_DONE:
		wire_init(m, type, 1, sizeof(m->done) + 2 * sizeof(m->segments[0]));
		m->segments[0] = m->segments[1] =
			(struct wire_segment){ .hva = hva, .nr_pages = 1 };
		return;
	case WIRE_IMAGE:
		wire_init(m, type, 0, sizeof(m->image));
		m->image = (struct wire_image){ hva, PAGE_BYTES, 0 };
		return;
	case WIRE_IMAGE_RUNS:
		wire_init(m, type, 1, sizeof(m->runs[0]));
		m->runs[0] = (struct wire_run){ .hva = hva, .nr_pages = 1, .kind = WIRE_RUN_STORE };
		return;
	case WIRE_IMAGE_END:
		wire_init(m, type, 0, sizeof(m->image_end));
		return;
	case WIRE_DISK_READ:
		wire_init(m, type, 0, 2 * sizeof(m->reads[0]));
		m->reads[0] = m->reads[1] =
			(struct wire_read){ .hva = hva, .sector = 8, .nr_pages = 1 };
		return;
	default:
		make_ranges(m, type, hva, PAGE_BYTES, 2);
	}
}

/* --- states ------------------------------------------------------------------------------------
 */

enum state {
	NEW,	 /* connected */
	READY,	 /* welcome */
	REGION,	 /* with a region */
	DELETED, /* that it has taken back */
	NR_STATES,
};

static const char *const state_names[] = { "new", "ready", "region", "deleted" };

/* A connection in that state; -1 if the daemon does not let us get there. */
static int dial_to(enum state s)
{
	int sock = dial();
	struct wire_message *m = &packet.m;

	if (sock < 0 || s == NEW)
		return sock;
	make_hello(m);
	if (send_message(sock, m) < 0 || next_message(sock, ANSWER_MS) != WIRE_WELCOME)
		goto fail;
	if (s >= REGION) {
		make(m, WIRE_REGION_ADD);
		if (send_message(sock, m) < 0)
			goto fail;
	}
	if (s >= DELETED) {
		make(m, WIRE_REGION_DEL);
		if (send_message(sock, m) < 0)
			goto fail;
	}
	return sock;
fail:
	close(sock);
	return -1;
}

/* What is sent: @bytes of the packet, with @nr_fds descriptors. */
struct sending {
	size_t bytes;
	u32 nr_fds;
};

/* The first range of a message that has one; NULL. */
static u64 *first_hva(struct wire_message *m)
{
	switch (m->h.type) {
	case WIRE_REGION_ADD:
		return &m->region.hva;
	case WIRE_REGION_DEL:
		return &m->range.hva;
	case WIRE_IMAGE:
		return &m->image.hva;
	case WIRE_MERGE:
	case WIRE_IMAGE_RUNS:
		return &m->runs[0].hva;
	case WIRE_DONE:
		return &m->segments[0].hva;
	case WIRE_UNMERGE:
	case WIRE_DISCARD:
		return &m->ranges[0].hva;
	case WIRE_DISK_READ:
		return &m->reads[0].hva;
	default:
		return NULL;
	}
}

/* Its length, where that is in bytes; NULL. */
static u64 *first_bytes(struct wire_message *m)
{
	bool in_bytes = m->h.type == WIRE_REGION_ADD || m->h.type == WIRE_REGION_DEL ||
			m->h.type == WIRE_UNMERGE || m->h.type == WIRE_DISCARD ||
			m->h.type == WIRE_IMAGE;

	return in_bytes ? first_hva(m) + 1 : NULL;
}

/* Each bends a valid message; false: there is nothing of that kind in it. */
static bool bend_magic(struct wire_message *m, struct sending *s)
{
	m->h.magic ^= 1;
	return true;
}

static bool bend_type_0(struct wire_message *m, struct sending *s)
{
	m->h.type = 0;
	return true;
}

static bool bend_type_end(struct wire_message *m, struct sending *s)
{
	m->h.type = WIRE_TYPE_END;
	return true;
}

static bool bend_type_max(struct wire_message *m, struct sending *s)
{
	m->h.type = UINT16_MAX;
	return true;
}

/* HELLO's header may say any version: its payload counts. */
static bool bend_version_0(struct wire_message *m, struct sending *s)
{
	m->h.version = 0;
	return m->h.type != WIRE_HELLO;
}

static bool bend_version_next(struct wire_message *m, struct sending *s)
{
	m->h.version = WIRE_VERSION + 1;
	return m->h.type != WIRE_HELLO;
}

static bool bend_bytes_0(struct wire_message *m, struct sending *s)
{
	m->h.bytes = 0;
	return true;
}

static bool bend_bytes_more(struct wire_message *m, struct sending *s)
{
	m->h.bytes += 8;
	return true;
}

static bool bend_bytes_max(struct wire_message *m, struct sending *s)
{
	m->h.bytes = UINT32_MAX;
	return true;
}

static bool bend_one_byte(struct wire_message *m, struct sending *s)
{
	s->bytes = 1;
	return true;
}

static bool bend_half_header(struct wire_message *m, struct sending *s)
{
	s->bytes = sizeof(m->h) - 1;
	return true;
}

static bool bend_header_only(struct wire_message *m, struct sending *s)
{
	m->h.bytes = s->bytes = sizeof(m->h);
	/* Without elements these say nothing, and are not wrong. */
	return m->h.type != WIRE_DISCARD && m->h.type != WIRE_DISK_READ;
}

static bool bend_cut(struct wire_message *m, struct sending *s)
{
	m->h.bytes = --s->bytes;
	return true;
}

static bool bend_longer(struct wire_message *m, struct sending *s)
{
	m->h.bytes = ++s->bytes;
	return true;
}

static bool bend_too_many(struct wire_message *m, struct sending *s)
{
	if (m->h.type != WIRE_DISCARD && m->h.type != WIRE_UNMERGE)
		return false;
	make_ranges(m, m->h.type, (u64)(uintptr_t)ram, PAGE_BYTES, WIRE_RUNS_MAX + 1);
	s->bytes = m->h.bytes;
	return true;
}

static bool bend_huge(struct wire_message *m, struct sending *s)
{
	m->h.bytes = s->bytes = sizeof(packet);
	return true;
}

static bool bend_one_fd(struct wire_message *m, struct sending *s)
{
	/* The one that has one goes without. */
	s->nr_fds = !s->nr_fds;
	return true;
}

static bool bend_many_fds(struct wire_message *m, struct sending *s)
{
	s->nr_fds = FDS_MOST;
	return true;
}

static bool bend_unaligned(struct wire_message *m, struct sending *s)
{
	if (!first_hva(m))
		return false;
	*first_hva(m) += 8;
	return true;
}

static bool bend_no_bytes(struct wire_message *m, struct sending *s)
{
	if (!first_bytes(m))
		return false;
	*first_bytes(m) = 0;
	return true;
}

static bool bend_odd_bytes(struct wire_message *m, struct sending *s)
{
	if (!first_bytes(m))
		return false;
	*first_bytes(m) += 1;
	return true;
}

static bool bend_wraps(struct wire_message *m, struct sending *s)
{
	if (!first_bytes(m))
		return false;
	*first_bytes(m) = ROUND_DOWN(UINT64_MAX, PAGE_BYTES);
	return true;
}

static bool bend_no_end(struct wire_message *m, struct sending *s)
{
	if (m->h.type == WIRE_HELLO)
		memset(m->hello.name, 'x', sizeof(m->hello.name));
	else if (m->h.type == WIRE_REGION_ADD)
		memset(m->region.name, 'x', sizeof(m->region.name));
	else
		return false;
	return true;
}

static bool bend_versions_swapped(struct wire_message *m, struct sending *s)
{
	m->hello.version_lowest = 2;
	m->hello.version_highest = 1;
	return m->h.type == WIRE_HELLO;
}

static const struct bend {
	const char *name;
	bool (*bend)(struct wire_message *m, struct sending *s);
} bends[] = {
	{ "magic", bend_magic },
	{ "type 0", bend_type_0 },
	{ "type end", bend_type_end },
	{ "type max", bend_type_max },
	{ "version 0", bend_version_0 },
	{ "next version", bend_version_next },
	{ "length 0", bend_bytes_0 },
	{ "length + 8", bend_bytes_more },
	{ "length max", bend_bytes_max },
	{ "one byte", bend_one_byte },
	{ "half a header", bend_half_header },
	{ "header only", bend_header_only },
	{ "a byte less", bend_cut },
	{ "a byte more", bend_longer },
	{ "too many elements", bend_too_many },
	{ "longer than any", bend_huge },
	{ "one descriptor, or none", bend_one_fd },
	{ "many descriptors", bend_many_fds },
	{ "not aligned", bend_unaligned },
	{ "empty range", bend_no_bytes },
	{ "odd range", bend_odd_bytes },
	{ "range wraps", bend_wraps },
	{ "string without end", bend_no_end },
	{ "versions swapped", bend_versions_swapped },
};

static void one_bent(enum state state, u32 type, const struct bend *b)
{
	struct sending s;
	char name[96];
	int sock = dial_to(state);

	snprintf(name, sizeof(name), "type %u, state %s, %s", type, state_names[state], b->name);
	if (sock < 0) {
		verdict(name, false, "the daemon does not welcome us");
		return;
	}
	make(&packet.m, type);
	s = (struct sending){ .bytes = packet.m.h.bytes, .nr_fds = type == WIRE_IMAGE };
	if (b->bend(&packet.m, &s)) {
		send_raw(sock, &packet, s.bytes, s.nr_fds);
		expect_closed(name, sock);
	} else {
		close(sock);
	}
}

/* Well-formed, but not for this state, or not for this direction. */
static void one_out_of_place(enum state state, u32 type)
{
	char name[64];
	int sock = dial_to(state);

	make(&packet.m, type);
	send_message(sock, &packet.m);
	snprintf(name, sizeof(name), "type %u out of place in state %s", type, state_names[state]);
	expect_closed(name, sock);
}

static void out_of_place(void)
{
	static const struct {
		enum state state;
		u32 type;
	} list[] = {
		{ NEW, WIRE_REGION_ADD },   { NEW, WIRE_REGION_DEL }, { NEW, WIRE_DISCARD },
		{ NEW, WIRE_DONE },	    { NEW, WIRE_MERGE },      { NEW, WIRE_UNMERGE },
		{ NEW, WIRE_REFUSE },	    { READY, WIRE_HELLO },    { READY, WIRE_DONE },
		{ READY, WIRE_MERGE },	    { READY, WIRE_UNMERGE },  { READY, WIRE_REFUSE },
		{ REGION, WIRE_HELLO },	    { REGION, WIRE_DONE },    { REGION, WIRE_MERGE },
		{ REGION, WIRE_UNMERGE },   { NEW, WIRE_DISK_READ },  { REGION, WIRE_IMAGE_RUNS },
		{ REGION, WIRE_IMAGE_END },
	};
	for (u32 i = 0; i < ARRAY_SIZE(list); i++)
		one_out_of_place(list[i].state, list[i].type);
}

/* Agents of version 1 are served, and have no messages of version 2. */
static void versions(void)
{
	int sock;

	for (u16 v = WIRE_VERSION_LOWEST; v <= WIRE_VERSION; v++) {
		sock = dial();
		make_hello(&packet.m);
		packet.m.h.version = packet.m.hello.version_highest = v;
		send_message(sock, &packet.m);
		verdict("HELLO of an older version",
			next_message(sock, ANSWER_MS) == WIRE_WELCOME && answer.m.h.version == 1 &&
				answer.m.welcome.version == v,
			"no WELCOME of that version");
		make(&packet.m, WIRE_REGION_ADD);
		send_message(sock, &packet.m);
		make(&packet.m, WIRE_DISK_READ);
		send_message(sock, &packet.m);
		if (v < 2) {
			expect_closed("DISK_READ in version 1", sock);
		} else {
			expect_open("DISK_READ in version 2", sock);
			close(sock);
		}
	}
}

static void disk_reads(void)
{
	static const struct {
		s64 from;
		u32 nr_pages;
	} list[] = {
		{ -(s64)PAGE_BYTES, 1 },       /* before */
		{ RAM_BYTES, 1 },	       /* behind */
		{ -(s64)PAGE_BYTES, 2 },       /* over the begin */
		{ RAM_BYTES - PAGE_BYTES, 2 }, /* over the end */
		{ 0, WIRE_READ_PAGES_MAX },    /* far over the end */
		{ 0, RAM_BYTES / PAGE_BYTES }, /* all of it, of blocks that were told before */
	};
	int sock = dial_to(REGION);

	for (u32 n = 0; n < 3; n++) {
		for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
			make(&packet.m, WIRE_DISK_READ);
			packet.m.h.bytes -= sizeof(packet.m.reads[0]);
			packet.m.reads[0].hva = (u64)(uintptr_t)ram + list[i].from;
			packet.m.reads[0].nr_pages = list[i].nr_pages;
			packet.m.reads[0].sector = n;
			send_message(sock, &packet.m);
		}
	}
	expect_open("DISK_READ of any memory", sock);
	close(sock);
}

/* Each costs a connection and a line of the log that names the reason, not a breach of the
 * protocol. */
static void refused(void)
{
	int sock = dial();

	make_hello(&packet.m);
	packet.m.hello.version_lowest = packet.m.hello.version_highest = WIRE_VERSION + 1;
	send_message(sock, &packet.m);
	verdict("HELLO of the next version", next_message(sock, ANSWER_MS) == WIRE_REFUSE,
		"no REFUSE");
	verdict("HELLO of the next version", is_closed(sock, ANSWER_MS), "not closed");
	close(sock);

	sock = dial();
	make_hello(&packet.m);
	packet.m.hello.page_bytes = 65536;
	send_message(sock, &packet.m);
	verdict("HELLO of 64 KiB pages", next_message(sock, ANSWER_MS) == WIRE_REFUSE, "no REFUSE");
	verdict("HELLO of 64 KiB pages", is_closed(sock, ANSWER_MS), "not closed");
	close(sock);

	versions();

	/* A second connection of one process. */
	sock = dial_to(READY);
	int second = dial();

	make_hello(&packet.m);
	send_message(second, &packet.m);
	verdict("second agent of a process", next_message(second, ANSWER_MS) == WIRE_REFUSE,
		"no REFUSE");
	verdict("second agent of a process", is_closed(second, ANSWER_MS), "not closed");
	expect_open("first agent of a process", sock);
	close(second);
	close(sock);
}

static void discards(void)
{
	static const struct {
		s64 from, bytes;
	} list[] = {
		{ -(s64)PAGE_BYTES, PAGE_BYTES },	    /* before */
		{ RAM_BYTES, PAGE_BYTES },		    /* behind */
		{ -(s64)PAGE_BYTES, 2 * PAGE_BYTES },	    /* over the begin */
		{ RAM_BYTES - PAGE_BYTES, 2 * PAGE_BYTES }, /* over the end */
		{ -(s64)PAGE_BYTES, RAM_BYTES + 2 * PAGE_BYTES },
	};
	char name[64];

	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		int sock = dial_to(REGION);

		make_ranges(&packet.m, WIRE_DISCARD, (u64)(uintptr_t)ram, PAGE_BYTES, 2);
		packet.m.ranges[1] =
			(struct wire_range){ (u64)(uintptr_t)ram + list[i].from, list[i].bytes };
		send_message(sock, &packet.m);
		snprintf(name, sizeof(name), "DISCARD outside of the region, %u", i);
		expect_open(name, sock);
		close(sock);
	}
}

/* The daemon may have refused the region of an honest agent, which then tells of it all the same:
 * that changes nothing, and the connection stays. */
static void no_region_yet(void)
{
	static const u32 types[] = { WIRE_DISCARD, WIRE_REGION_DEL };

	for (u32 i = 0; i < ARRAY_SIZE(types); i++) {
		int sock = dial_to(READY);

		make(&packet.m, types[i]);
		send_message(sock, &packet.m);
		expect_open(types[i] == WIRE_DISCARD ? "DISCARD without a region"
						     : "REGION_DEL without a region",
			    sock);
		close(sock);
	}
}

/* One breach of each kind, each for another reason: the log is to name that. */
static void run_kinds(void)
{
	static const struct {
		enum state state;
		u32 type;
		const char *bend;
	} list[] = {
		{ NEW, WIRE_HELLO, "magic" },
		{ NEW, WIRE_HELLO, "type end" },
		{ READY, WIRE_REGION_ADD, "next version" },
		{ NEW, WIRE_HELLO, "half a header" },
		{ NEW, WIRE_HELLO, "header only" },
		{ NEW, WIRE_HELLO, "length + 8" },
		{ READY, WIRE_DISCARD, "longer than any" },
		{ READY, WIRE_DISCARD, "a byte more" },
		{ READY, WIRE_REGION_ADD, "one descriptor, or none" },
		{ NEW, WIRE_HELLO, "string without end" },
		{ READY, WIRE_REGION_ADD, "range wraps" },
		{ READY, WIRE_DONE, "not aligned" },
		{ NEW, WIRE_HELLO, "versions swapped" },
	};

	for (u32 i = 0; i < ARRAY_SIZE(list); i++)
		for (u32 b = 0; b < ARRAY_SIZE(bends); b++)
			if (strcmp(bends[b].name, list[i].bend) == 0)
				one_bent(list[i].state, list[i].type, &bends[b]);
	one_out_of_place(READY, WIRE_MERGE);
	one_out_of_place(READY, WIRE_DONE);
}

static void run_states(void)
{
	/* The daemon knows no region of ours yet; later it does, from connection to connection. */
	no_region_yet();
	for (u32 s = NEW; s < NR_STATES; s++)
		for (u32 t = WIRE_HELLO; t < WIRE_TYPE_END; t++)
			for (u32 b = 0; b < ARRAY_SIZE(bends); b++)
				one_bent(s, t, &bends[b]);
	out_of_place();
	discards();
	disk_reads();
	refused();
}

/* --- done --------------------------------------------------------------------------------------
 */

/* Has the memory watched as an agent would, so that the daemon asks for its zero pages to be
 * merged. */
static int watch_ram(void)
{
	int uffd = uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
			     UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	if (uffd < 0)
		return uffd;
	memset(ram, 0, RAM_BYTES);
	return uffd_register(uffd, (u64)(uintptr_t)ram, RAM_BYTES, UFFDIO_REGISTER_MODE_WP);
}

/* A connection with a MERGE unanswered, which is in @answer; -1. */
static int dial_to_merge(void)
{
	int sock = dial_to(REGION);

	if (sock >= 0 && next_message(sock, MERGE_MS) == WIRE_MERGE)
		return sock;
	close(sock);
	return -1;
}

/* The right answer to the MERGE in @answer: one segment a run. Returns their number. */
static u32 make_done(struct wire_message *m)
{
	u32 nr = wire_count(&answer.m);

	memset(m, 0, sizeof(*m));
	wire_init(m, WIRE_DONE, answer.m.h.seq, sizeof(m->done) + nr * sizeof(m->segments[0]));
	for (u32 i = 0; i < nr; i++)
		m->segments[i] = (struct wire_segment){ .hva = answer.m.runs[i].hva,
							.nr_pages = answer.m.runs[i].nr_pages };
	return nr;
}

static void set_segments(struct wire_message *m, u32 nr)
{
	m->h.bytes = (u32)(sizeof(m->h) + sizeof(m->done) + nr * sizeof(m->segments[0]));
}

static void twist_seq_next(struct wire_message *m, u32 nr)
{
	m->h.seq++;
}

static void twist_seq_0(struct wire_message *m, u32 nr)
{
	m->h.seq = 0;
}

static void twist_none(struct wire_message *m, u32 nr)
{
	set_segments(m, 0);
}

static void twist_short(struct wire_message *m, u32 nr)
{
	if (--m->segments[nr - 1].nr_pages == 0)
		set_segments(m, nr - 1);
}

static void twist_long(struct wire_message *m, u32 nr)
{
	m->segments[nr - 1].nr_pages++;
}

static void twist_extra(struct wire_message *m, u32 nr)
{
	m->segments[nr] = m->segments[nr - 1];
	set_segments(m, nr + 1);
}

static void twist_shifted(struct wire_message *m, u32 nr)
{
	m->segments[0].hva += PAGE_BYTES;
}

static void twist_elsewhere(struct wire_message *m, u32 nr)
{
	m->segments[0].hva = NOWHERE;
}

static void twist_split_backwards(struct wire_message *m, u32 nr)
{
	struct wire_segment *s = &m->segments[0];
	u32 half = s->nr_pages / 2;

	if (!half) {
		s->hva += PAGE_BYTES;
		return;
	}
	memmove(s + 1, s, nr * sizeof(*s));
	s[0] = (struct wire_segment){ .hva = s[1].hva + (u64)half * PAGE_BYTES,
				      .nr_pages = s[1].nr_pages - half };
	s[1].nr_pages = half;
	set_segments(m, nr + 1);
}

static void twist_empty_segment(struct wire_message *m, u32 nr)
{
	m->segments[0].nr_pages = 0;
}

static void twist_huge_segment(struct wire_message *m, u32 nr)
{
	m->segments[0].nr_pages = UINT32_MAX;
}

static void twist_positive_status(struct wire_message *m, u32 nr)
{
	m->segments[0].status = 1;
}

static const struct {
	const char *name;
	void (*twist)(struct wire_message *m, u32 nr);
} twists[] = {
	{ "next seq", twist_seq_next },
	{ "seq 0", twist_seq_0 },
	{ "no segment", twist_none },
	{ "a page less", twist_short },
	{ "a page more", twist_long },
	{ "a segment more", twist_extra },
	{ "shifted", twist_shifted },
	{ "elsewhere", twist_elsewhere },
	{ "wrong order", twist_split_backwards },
	{ "empty segment", twist_empty_segment },
	{ "huge segment", twist_huge_segment },
	{ "positive status", twist_positive_status },
};

static void run_done(void)
{
	char name[64];
	u32 seq, nr;
	int sock, r = watch_ram();

	if (r < 0) {
		verdict("userfaultfd", false, strerror(-r));
		return;
	}
	for (u32 i = 0; i < ARRAY_SIZE(twists); i++) {
		snprintf(name, sizeof(name), "DONE with %s", twists[i].name);
		sock = dial_to_merge();
		if (sock < 0) {
			verdict(name, false, "no MERGE came");
			continue;
		}
		nr = make_done(&packet.m);
		twists[i].twist(&packet.m, nr);
		send_message(sock, &packet.m);
		expect_closed(name, sock);
	}
	/* The right one is taken, the same again is not. */
	sock = dial_to_merge();
	if (sock < 0) {
		verdict("right DONE", false, "no MERGE came");
		return;
	}
	nr = make_done(&packet.m);
	seq = answer.m.h.seq;
	for (u32 i = 0; i < nr; i++)
		packet.m.segments[i].status = -EBUSY;
	send_message(sock, &packet.m);
	/* Its second request may be here already. */
	r = next_message(sock, OPEN_MS);
	verdict("right DONE", r == -1 || r == WIRE_MERGE, "the daemon closed the connection");
	packet.m.h.seq = seq;
	send_message(sock, &packet.m);
	expect_closed("the same DONE again", sock);
}

/* --- regions -----------------------------------------------------------------------------------
 */

static void run_regions(void)
{
	static const struct {
		const char *name;
		u64 hva, bytes;
	} list[] = {
		{ "8 TiB", NOWHERE, GIB(8192) },
		{ "8 TiB less a page", NOWHERE, GIB(8192) - PAGE_BYTES },
		{ "64 TiB", NOWHERE, GIB(65536) },
		{ "2^63", PAGE_BYTES, (u64)1 << 63 },
		{ "nearly 2^64", PAGE_BYTES, ROUND_DOWN(UINT64_MAX, PAGE_BYTES) - PAGE_BYTES },
		{ "kernel space", 0xffff800000000000UL, MIB(64) },
	};
	u64 hva = (u64)(uintptr_t)ram;
	int sock = dial_to(REGION);

	/* The daemon refuses them one by one; the connection, and the region that is there, stay.
	 */
	for (u32 i = 0; i < ARRAY_SIZE(list); i++) {
		make_region(&packet.m, list[i].hva, list[i].bytes);
		send_message(sock, &packet.m);
		expect_open(list[i].name, sock);
	}
	make_region(&packet.m, hva + PAGE_BYTES, PAGE_BYTES);
	send_message(sock, &packet.m);
	expect_open("a region in another", sock);
	make_region(&packet.m, hva - PAGE_BYTES, 2 * PAGE_BYTES);
	send_message(sock, &packet.m);
	expect_open("a region over the begin of another", sock);
	make_region(&packet.m, hva + RAM_BYTES - PAGE_BYTES, 2 * PAGE_BYTES);
	send_message(sock, &packet.m);
	expect_open("a region over the end of another", sock);
	make_region(&packet.m, hva, RAM_BYTES);
	send_message(sock, &packet.m);
	expect_open("the same region again", sock);
	/* More than an agent may have; the daemon may also close the connection for it. */
	make_region(&packet.m, 0, PAGE_BYTES);
	for (u32 i = 0; i < 2000; i++) {
		packet.m.region.hva = NOWHERE + 2 * i * PAGE_BYTES;
		if (send_message(sock, &packet.m) < 0)
			break;
	}
	nr_cases++;
	printf("regions are sent\n");
	fflush(stdout);
	while (!stop_signal && !is_closed(sock, OPEN_MS))
		;
	close(sock);
}

static void run_claim(u64 gib, u32 count)
{
	int sock = dial_to(READY);

	for (u32 i = 0; i < count; i++) {
		make_region(&packet.m, NOWHERE + i * GIB(gib), GIB(gib));
		if (send_message(sock, &packet.m) < 0)
			break;
		nr_cases++;
	}
	printf("regions are sent\n");
	fflush(stdout);
	while (!stop_signal && !is_closed(sock, OPEN_MS))
		;
	close(sock);
}

static void run_discard(u64 gib)
{
	void *at = mmap(NULL, GIB(gib), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int sock = dial_to(READY);

	if (at == MAP_FAILED) {
		verdict("memory", false, strerror(errno));
		return;
	}
	make_region(&packet.m, (u64)(uintptr_t)at, GIB(gib));
	send_message(sock, &packet.m);
	make_ranges(&packet.m, WIRE_DISCARD, (u64)(uintptr_t)at, GIB(gib), WIRE_RUNS_MAX);
	for (u32 i = 0; i < 16; i++)
		if (send_raw(sock, &packet, packet.m.h.bytes, 0) == 0)
			nr_cases++;
	printf("discards are sent\n");
	fflush(stdout);
	while (!stop_signal && !is_closed(sock, OPEN_MS))
		;
	close(sock);
}

/* Of memory that is registered, in blocks that are new each time, then again: ever more to remember
 * and ever more to look at. */
static void run_reads(u32 count)
{
	u64 bytes = (u64)WIRE_READ_PAGES_MAX << PAGE_SHIFT;
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int sock = dial_to(READY);

	if (at == MAP_FAILED) {
		verdict("memory", false, strerror(errno));
		return;
	}
	make_region(&packet.m, (u64)(uintptr_t)at, bytes);
	send_message(sock, &packet.m);
	make(&packet.m, WIRE_DISK_READ);
	packet.m.h.bytes -= sizeof(packet.m.reads[0]);
	packet.m.reads[0].hva = (u64)(uintptr_t)at;
	packet.m.reads[0].nr_pages = WIRE_READ_PAGES_MAX;
	for (u32 i = 0; i < count && !stop_signal; i++) {
		packet.m.reads[0].sector = (u64)(i % (count / 2 + 1)) << 32;
		if (wire_send(sock, &packet.m, -1, ANSWER_MS) == 0)
			nr_cases++;
	}
	verdict("DISK_READs are taken", nr_cases == count, "the daemon does not read them");
	expect_open("DISK_READs without an end", sock);
	close(sock);
}

/* --- random ------------------------------------------------------------------------------------
 */

static u64 rng;

static u64 draw(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

static void run_random(u32 count, u64 seed)
{
	int sock = -1;

	rng = seed | 1;
	for (u32 i = 0; i < count && !stop_signal; i++) {
		u32 kind = draw() % 4, type = WIRE_HELLO + draw() % WIRE_DONE;
		size_t bytes;

		if (sock < 0)
			sock = dial_to(draw() % NR_STATES);
		if (sock < 0) {
			verdict("random", false, "the daemon does not welcome us");
			break;
		}
		make(&packet.m, type);
		bytes = packet.m.h.bytes;
		if (kind == 0) {
			/* Nothing right in it. */
			bytes = 1 + draw() % 256;
			for (size_t k = 0; k < bytes; k++)
				packet.bytes[k] = draw();
		} else if (kind == 1) {
			/* A right header, anything in it. */
			for (size_t k = sizeof(struct wire_header); k < bytes; k++)
				packet.bytes[k] = draw();
		} else {
			/* One to four bytes are others. */
			for (u32 k = 0; k < kind * 2; k++)
				packet.bytes[draw() % bytes] = draw();
		}
		/* Random regions must not be large: what is large is asked for by name, above. */
		if (packet.m.h.type == WIRE_REGION_ADD)
			packet.m.region.bytes &= RAM_BYTES - 1;
		nr_cases++;
		if (send_raw(sock, &packet, bytes, draw() % 8 == 0 ? 1 + draw() % 4 : 0) < 0 ||
		    is_closed(sock, 0)) {
			nr_closed++;
			close(sock);
			sock = -1;
		}
	}
	if (sock >= 0)
		close(sock);
}

/* --- crowd -------------------------------------------------------------------------------------
 */

static void run_crowd(u32 count, u32 seconds)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	u64 end = now_us() + seconds * 1000000ULL, connected = 0, closed = 0, waited = 0;
	struct pollfd *p = calloc(count, sizeof(*p));

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", getenv("BALLAST_AGENT_SOCKET"));
	for (u32 i = 0; p && i < count; i++)
		p[i].fd = -1;
	/* Whatever the daemon closes is opened again. */
	while (p && now_us() < end && !stop_signal) {
		for (u32 i = 0; i < count; i++) {
			if (p[i].fd >= 0 && !(p[i].revents & (POLLIN | POLLHUP)))
				continue;
			if (p[i].fd >= 0) {
				close(p[i].fd);
				closed++;
			}
			p[i] = (struct pollfd){
				.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK,
					     0),
				.events = POLLIN,
			};
			if (p[i].fd >= 0 &&
			    connect(p[i].fd, (struct sockaddr *)&addr, sizeof(addr)) == 0) {
				connected++;
				continue;
			}
			/* The daemon accepts no more for now. */
			waited++;
			close(p[i].fd);
			p[i].fd = -1;
			break;
		}
		poll(p, count, 20);
	}
	printf("CROWD connected=%llu closed=%llu waited=%llu\n", (unsigned long long)connected,
	       (unsigned long long)closed, (unsigned long long)waited);
	free(p);
	nr_cases++;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	u64 a = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
	u64 b = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
	struct sigaction act = { .sa_handler = on_stop };
	u8 *at = mmap(NULL, RAM_BYTES + 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	sigaction(SIGTERM, &act, NULL);
	if (at == MAP_FAILED || madvise(at, RAM_BYTES + 2 * CHUNK_BYTES, MADV_NOHUGEPAGE) < 0)
		return 2;
	/* With a hole's worth of room on both sides. */
	ram = at + CHUNK_BYTES;
	if (strcmp(what, "kinds") == 0)
		run_kinds();
	else if (strcmp(what, "states") == 0)
		run_states();
	else if (strcmp(what, "done") == 0)
		run_done();
	else if (strcmp(what, "regions") == 0)
		run_regions();
	else if (strcmp(what, "claim") == 0)
		run_claim(a, b);
	else if (strcmp(what, "reads") == 0)
		run_reads((u32)a);
	else if (strcmp(what, "discard") == 0)
		run_discard(a);
	else if (strcmp(what, "random") == 0)
		run_random(a, b);
	else if (strcmp(what, "crowd") == 0)
		run_crowd(a, b);
	else
		return 2;
	printf("CASES %u CLOSED %u BAD %u\n", nr_cases, nr_closed, nr_bad);
	return nr_bad ? 1 : 0;
}
