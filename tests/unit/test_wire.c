/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "hypervisor-hooks/wire.h"

static struct wire_message m;
static const char *why;

static int check(u32 fds)
{
	return wire_check(&m, m.h.bytes, fds, &why);
}

static void good_merge(u32 runs)
{
	memset(&m, 0, sizeof(m));
	wire_init(&m, WIRE_MERGE, 5, runs * sizeof(m.runs[0]));
	for (u32 i = 0; i < runs; i++)
		m.runs[i] = (struct wire_run){ .hva = 0x10000 + i * 0x2000,
					       .store_offset = 0x5000,
					       .nr_pages = 1,
					       .kind = WIRE_RUN_STORE };
}

/* A valid message of each type, so that every test below starts from something that passes. */
static u32 good(enum wire_type type)
{
	static const size_t payload[WIRE_TYPE_END] = {
		[WIRE_HELLO] = sizeof(struct wire_hello),
		[WIRE_WELCOME] = sizeof(struct wire_welcome),
		[WIRE_REFUSE] = sizeof(struct wire_refuse),
		[WIRE_REGION_ADD] = sizeof(struct wire_region),
		[WIRE_REGION_DEL] = sizeof(struct wire_range),
		[WIRE_MERGE] = sizeof(struct wire_run),
		[WIRE_UNMERGE] = sizeof(struct wire_range),
		[WIRE_DISCARD] = sizeof(struct wire_range),
		[WIRE_DONE] = sizeof(struct wire_done) + sizeof(struct wire_segment),
		[WIRE_DISK_READ] = sizeof(struct wire_read),
		[WIRE_IMAGE] = sizeof(struct wire_image),
		[WIRE_IMAGE_RUNS] = sizeof(struct wire_run),
		[WIRE_IMAGE_END] = sizeof(struct wire_image_end),
		[WIRE_PAGE_OUT] = sizeof(struct wire_run),
		[WIRE_PAGER] = sizeof(struct wire_pager),
		[WIRE_SWAP_OUT] = sizeof(struct wire_swap_out),
		[WIRE_SWAP] = sizeof(struct wire_swap),
		[WIRE_LATENCY] = sizeof(struct wire_latency),
		[WIRE_PACE] = sizeof(struct wire_pace),
	};

	memset(&m, 0, sizeof(m));
	wire_init(&m, type, 0, payload[type]);
	switch (type) {
	case WIRE_HELLO:
		m.hello = (struct wire_hello){ .version_lowest = 1,
					       .version_highest = 9,
					       .page_bytes = 4096 };
		break;
	case WIRE_REGION_ADD:
		m.region = (struct wire_region){ .hva = 0x200000, .bytes = 0x1000 };
		break;
	case WIRE_REGION_DEL:
	case WIRE_UNMERGE:
	case WIRE_DISCARD:
		m.range = (struct wire_range){ .hva = 0x200000, .bytes = 0x1000 };
		break;
	case WIRE_MERGE:
		good_merge(1);
		break;
	case WIRE_IMAGE_RUNS:
		m.runs[0] = (struct wire_run){ 0x10000, 0x5000, 1, WIRE_RUN_STORE };
		break;
	case WIRE_PAGE_OUT:
		m.runs[0] = (struct wire_run){ 0x10000, 0, 1, WIRE_RUN_OUT };
		break;
	case WIRE_IMAGE:
		m.image = (struct wire_image){ 0x200000, 0x2000, 0x1000 };
		break;
	case WIRE_DONE:
		m.segments[0] = (struct wire_segment){ .hva = 0x1000, .nr_pages = 1 };
		break;
	case WIRE_DISK_READ:
		m.reads[0] = (struct wire_read){ .hva = 0x1000, .sector = 3, .nr_pages = 1 };
		break;
	default:
		break;
	}
	return type == WIRE_WELCOME || type == WIRE_IMAGE || type == WIRE_SWAP_FILE;
}

Test(wire, accepts_a_good_message_of_each_type)
{
	for (u32 t = WIRE_HELLO; t < WIRE_TYPE_END; t++) {
		u32 fds = good(t);

		cr_assert_eq(check(fds), 0, "type %u: %s", t, why ? why : "");
	}
}

Test(wire, refuses_wrong_length_version_magic_and_descriptors_of_each_type)
{
	for (u32 t = WIRE_HELLO; t < WIRE_TYPE_END; t++) {
		u32 fds = good(t);

		for (u32 bytes = 0; bytes < m.h.bytes; bytes++)
			cr_assert_eq(wire_check(&m, bytes, fds, &why), -EPROTO, "type %u, %u bytes",
				     t, bytes);
		m.h.bytes += 4;
		cr_assert_eq(check(fds), -EPROTO, "type %u, 4 bytes more", t);
		good(t);
		cr_assert_eq(check(fds + 1), -EPROTO, "type %u, a descriptor too many", t);
		if (fds)
			cr_assert_eq(check(0), -EPROTO, "type %u, no descriptor", t);
		m.h.magic ^= 1;
		cr_assert_eq(check(fds), -EPROTO);
		good(t);
		m.h.version = WIRE_VERSION + 1;
		cr_assert_eq(check(fds), t == WIRE_HELLO ? 0 : -EPROTO, "type %u, another version",
			     t);
	}
	good(WIRE_HELLO);
	m.h.type = WIRE_TYPE_END;
	cr_assert_eq(check(0), -EPROTO);
	m.h.type = 0;
	cr_assert_eq(check(0), -EPROTO);
}

Test(wire, refuses_bad_ranges)
{
	const struct wire_range bad[] = {
		{ 0x200001, 0x1000 },
		{ 0x200000, 0x1001 },
		{ 0x200000, 0 },
		{ UINT64_MAX & ~0xfffull, 0x1000 },
		{ 0x1000, UINT64_MAX & ~0xfffull },
	};

	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		good(WIRE_DISCARD);
		m.range = bad[i];
		cr_assert_eq(check(0), -EPROTO, "range %u", i);
		good(WIRE_REGION_ADD);
		m.region.hva = bad[i].hva;
		m.region.bytes = bad[i].bytes;
		cr_assert_eq(check(0), -EPROTO, "region %u", i);
	}
}

Test(wire, refuses_bad_runs)
{
	good_merge(2);
	m.runs[1].kind = 3;
	cr_assert_eq(check(0), -EPROTO);
	good_merge(2);
	m.runs[1].nr_pages = 0;
	cr_assert_eq(check(0), -EPROTO);
	good_merge(2);
	m.runs[1].store_offset = 1;
	cr_assert_eq(check(0), -EPROTO);
	good_merge(2);
	m.runs[0].nr_pages = WIRE_PAGES_MAX;
	cr_assert_eq(check(0), -EPROTO, "one page more than an answer can hold");
	m.runs[0].nr_pages = WIRE_PAGES_MAX - 1;
	cr_assert_eq(check(0), 0);
	good_merge(1);
	m.runs[0].nr_pages = UINT32_MAX;
	cr_assert_eq(check(0), -EPROTO);
}

Test(wire, refuses_strings_without_an_end)
{
	good(WIRE_HELLO);
	memset(m.hello.name, 'x', sizeof(m.hello.name));
	cr_assert_eq(check(0), -EPROTO);
	good(WIRE_REGION_ADD);
	memset(m.region.name, 'x', sizeof(m.region.name));
	cr_assert_eq(check(0), -EPROTO);
}

/* Random bytes, and good messages with random damage: never a crash, and what passes obeys the
 * bounds. */
Test(wire, survives_random_bytes)
{
	u64 pages;
	u32 passed = 0;

	srandom(1);
	for (u32 i = 0; i < 200000; i++) {
		u32 fds = good((enum wire_type)(1 + random() % (WIRE_TYPE_END - 1)));

		if (i % 4 == 0) {
			for (u32 k = 0; k < 64; k++)
				((u8 *)&m)[k] = (u8)random();
			m.h.magic = WIRE_MAGIC;
		} else {
			((u8 *)&m)[random() % 200] = (u8)random();
		}
		if (wire_check(&m, (size_t)random() % sizeof(m), fds, &why) == 0 ||
		    wire_check(&m, m.h.bytes, fds, &why) == 0) {
			passed++;
			pages = 0;
			for (u32 k = 0; m.h.type == WIRE_MERGE && k < wire_count(&m); k++)
				pages += m.runs[k].nr_pages;
			cr_assert_leq(pages, (u64)WIRE_PAGES_MAX);
		}
	}
	cr_assert_gt(passed, 0u, "the damage must not be such that nothing ever passes");
}

Test(wire, passes_a_descriptor_and_closes_those_that_do_not_belong)
{
	int sv[2], fd, before, got;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
	fd = open("/dev/null", O_RDONLY);
	good(WIRE_WELCOME);
	cr_assert_eq(wire_send(sv[0], &m, fd, 0), 0);
	cr_assert_eq(wire_recv(sv[1], &m, &got, &why), 0);
	cr_assert_geq(got, 0);
	close(got);
	before = dup(0);
	close(before);
	good(WIRE_DISCARD);
	cr_assert_eq(wire_send(sv[0], &m, fd, 0), 0);
	cr_assert_eq(wire_recv(sv[1], &m, &got, &why), -EPROTO);
	got = dup(0);
	cr_assert_eq(got, before, "the descriptor was closed");
	cr_assert_eq(wire_recv(sv[1], &m, &got, &why), -EAGAIN);
	close(sv[0]);
	cr_assert_eq(wire_recv(sv[1], &m, &got, &why), -ECONNRESET);
}

/* Agents and daemons of version 1 take nothing else for theirs. */
Test(wire, headers_name_the_version_of_the_layout)
{
	for (u32 t = WIRE_WELCOME; t < WIRE_TYPE_END; t++) {
		good(t);
		cr_assert_eq(m.h.version,
			     t >= WIRE_SWAP_FILE   ? 4
			     : t >= WIRE_PAGE_OUT  ? 3
			     : t >= WIRE_DISK_READ ? 2
						   : 1,
			     "type %u", t);
	}
	good(WIRE_HELLO);
	cr_assert_eq(m.h.version, WIRE_VERSION);
	good(WIRE_DISK_READ);
	m.h.version = 1;
	cr_assert_eq(check(0), -EPROTO);
	good(WIRE_MERGE);
	m.h.version = 2;
	cr_assert_eq(check(0), -EPROTO);
}

Test(wire, the_highest_common_version)
{
	cr_assert_eq(wire_common_version(1, 1), 1);
	cr_assert_eq(wire_common_version(1, 2), 2);
	cr_assert_eq(wire_common_version(2, 2), 2);
	cr_assert_eq(wire_common_version(1, 99), WIRE_VERSION);
	cr_assert_eq(wire_common_version(WIRE_VERSION + 1, 99), 0);
	cr_assert_eq(wire_common_version(0, 0), 0);
}

Test(wire, refuses_bad_images)
{
	good(WIRE_IMAGE);
	m.image.hva += 8;
	cr_assert_eq(check(1), -EPROTO);
	good(WIRE_IMAGE);
	m.image.bytes = 0;
	cr_assert_eq(check(1), -EPROTO);
	good(WIRE_IMAGE);
	m.image.offset = 512;
	cr_assert_eq(check(1), -EPROTO);
	good(WIRE_IMAGE);
	m.image.offset = UINT64_MAX & ~(u64)0xfff;
	cr_assert_eq(check(1), -EPROTO);
	good(WIRE_IMAGE);
	m.image.bytes = (u64)1 << 63;
	cr_assert_eq(check(1), -EPROTO);
	good(WIRE_IMAGE_RUNS);
	m.runs[0].kind = WIRE_RUN_ZERO;
	cr_assert_eq(check(0), -EPROTO);
	good(WIRE_IMAGE_END);
	m.image_end.status = 1;
	cr_assert_eq(check(0), -EPROTO);
}

Test(wire, refuses_bad_reads)
{
	good(WIRE_DISK_READ);
	m.reads[0].hva++;
	cr_assert_eq(check(0), -EPROTO);
	good(WIRE_DISK_READ);
	m.reads[0].nr_pages = 0;
	cr_assert_eq(check(0), -EPROTO);
	good(WIRE_DISK_READ);
	m.reads[0].hva = UINT64_MAX & ~(u64)0xfff;
	m.reads[0].nr_pages = 2;
	cr_assert_eq(check(0), -EPROTO);
	good(WIRE_DISK_READ);
	m.reads[0].sector = UINT64_MAX;
	cr_assert_eq(check(0), -EPROTO);
	good(WIRE_DISK_READ);
	m.reads[0].nr_pages = WIRE_READ_PAGES_MAX;
	cr_assert_eq(check(0), 0);
	wire_init(&m, WIRE_DISK_READ, 0, 2 * sizeof(m.reads[0]));
	m.reads[1] = m.reads[0];
	m.reads[1].nr_pages = 1;
	cr_assert_eq(check(0), -EPROTO);
}

/* Each message has its own kinds of runs. */
Test(wire, kinds_of_runs)
{
	static const struct {
		u32 type, kinds; /* bit WIRE_RUN_x */
	} table[] = {
		{ WIRE_MERGE, 1 << WIRE_RUN_STORE | 1 << WIRE_RUN_ZERO },
		{ WIRE_IMAGE_RUNS, 1 << WIRE_RUN_STORE },
		{ WIRE_PAGE_OUT, 1 << WIRE_RUN_OUT | 1 << WIRE_RUN_SAMPLE },
	};

	for (u32 i = 0; i < ARRAY_SIZE(table); i++) {
		for (u32 kind = 0; kind < 8; kind++) {
			good(table[i].type);
			m.runs[0].kind = kind;
			cr_expect_eq(check(0) == 0, table[i].kinds >> kind & 1, "%u %u", i, kind);
		}
	}
}
