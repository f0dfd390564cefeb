/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "tests/unit/vmm_driver.h"
#include "vmm/virtio_balloon.h"

#define ALL    (UINT64_MAX & ~(1ULL << BALLOON_F_RANGES))
#define FRAMES DRIVER_DATA
#define MEMORY (DRIVER_DATA + 0x200000) /* what is given back */

enum {
	INFLATE,
	DEFLATE,
	STATS,
	HINT,
	REPORT
};

static struct driver v;
static u64 changed_to;
static u32 changes, hints_done;

static void changed(void *arg, u64 actual)
{
	changed_to = actual;
	changes++;
}

static void hint_done(void *arg)
{
	hints_done++;
	cr_assert_eq(balloon_actual(v.d), DRIVER_RAM); /* may call us */
}

static void setup(void)
{
	static const struct balloon_callbacks cb = { .changed = changed, .hint_done = hint_done };
	struct virtio_device *d;

	driver_machine(&v, 0);
	cr_assert_eq(virtio_balloon_new(&v.vm, &d), 0);
	driver_attach(&v, d);
	balloon_set_callbacks(d, &cb);
	memset(driver_at(&v, MEMORY), 0x55, MIB(2));
}

static void teardown(void)
{
	driver_end(&v);
}

TestSuite(virtio_balloon, .init = setup, .fini = teardown, .timeout = 30);

static u32 config_u32(u32 offset)
{
	u32 value;

	bus_read(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + offset, &value, 4);
	return value;
}

static void set_config_u32(u32 offset, u32 value)
{
	bus_write(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + offset, &value, 4);
}

static void frames(u32 q, const u32 *list, u32 nr)
{
	const struct driver_buf buf = { FRAMES, nr * 4, false };

	memcpy(driver_at(&v, FRAMES), list, nr * 4);
	driver_request(&v, q, &buf, 1);
}

/* What is left of the marks in page @i of MEMORY, and whether it costs anything. */
static bool page_is_gone(u32 i)
{
	u8 *p = driver_at(&v, MEMORY + i * PAGE_BYTES);
	unsigned char resident;

	cr_assert_eq(mincore(p, PAGE_BYTES, &resident), 0);
	return !(resident & 1) && p[0] == 0 && p[PAGE_BYTES - 1] == 0;
}

static bool page_is_there(u32 i)
{
	u8 *p = driver_at(&v, MEMORY + i * PAGE_BYTES);

	return p[0] == 0x55 && p[PAGE_BYTES - 1] == 0x55;
}

static struct balloon_counters counters(void)
{
	struct balloon_counters c;

	balloon_counters(v.d, &c);
	return c;
}

Test(virtio_balloon, inflates_in_ranges)
{
	u32 list[] = { 1024 + 7, 1024 + 5, 1024 + 6, 1024 + 100 };

	driver_up(&v, ALL);
	frames(INFLATE, list, 4);
	for (u32 i = 0; i < 512; i++) {
		if ((i >= 5 && i <= 7) || i == 100)
			cr_assert(page_is_gone(i), "page %u", i);
		else
			cr_assert(page_is_there(i), "page %u", i);
	}
	cr_assert_eq(counters().inflated_pages, 4u);
	cr_assert_eq(counters().discards, 2u);
	frames(DEFLATE, list, 4);
	cr_assert_eq(counters().deflated_pages, 4u);
	cr_assert_eq(counters().discards, 2u);
}

/* Frames that are no RAM, or twice the same, do not save their neighbours, and hurt nobody. */
static void ranges(u32 q, const u64 *list, u32 nr)
{
	const struct driver_buf buf = { FRAMES, nr * 8, false };

	memcpy(driver_at(&v, FRAMES), list, nr * 8);
	driver_request(&v, q, &buf, 1);
}

Test(virtio_balloon, takes_ranges)
{
	/* Pages 16 to 19, 20 and 21, 64: the first two are neighbours. */
	u64 list[] = { (MEMORY + 20 * PAGE_BYTES) | 1, MEMORY + 64 * PAGE_BYTES,
		       (MEMORY + 16 * PAGE_BYTES) | 2 };

	driver_up(&v, UINT64_MAX);
	ranges(INFLATE, list, 3);
	for (u32 i = 0; i < 512; i++) {
		if ((i >= 16 && i <= 21) || i == 64)
			cr_assert(page_is_gone(i), "page %u", i);
		else
			cr_assert(page_is_there(i), "page %u", i);
	}
	cr_assert_eq(counters().inflated_pages, 7u);
	cr_assert_eq(counters().discards, 2u);
	cr_assert_eq(counters().bad_frames, 0u);
	ranges(DEFLATE, list, 1);
	cr_assert_eq(counters().deflated_pages, 2u);
	cr_assert_eq(counters().discards, 2u);
}

Test(virtio_balloon, hostile_ranges)
{
	u64 list[] = {
		DRIVER_RAM,			  /* behind the last page */
		(DRIVER_RAM - PAGE_BYTES) | 1,	  /* out of RAM by half */
		UINT64_MAX & ~0xfffull,		  /* the last page there can be */
		MEMORY | 63,			  /* no order */
		MEMORY | BALLOON_RANGE_ORDER_MAX, /* more than there is */
		MEMORY | 0x40,			  /* a bit that must be zero */
		MEMORY + PAGE_BYTES,
		MEMORY + PAGE_BYTES, /* twice */
	};

	driver_up(&v, UINT64_MAX);
	ranges(INFLATE, list, ARRAY_SIZE(list));
	cr_assert_eq(counters().bad_frames, 7u);
	cr_assert_eq(counters().inflated_pages, 1u);
	cr_assert(page_is_gone(1));
	cr_assert(page_is_there(0) && page_is_there(2));
}

Test(virtio_balloon, hostile_frames)
{
	u32 ram = DRIVER_RAM / PAGE_BYTES;
	u32 list[] = { ram - 1, ram, ram + 1, UINT32_MAX, 0xc0000, 1024, 1024, 1024, 1025 };
	u32 last[] = { UINT32_MAX, UINT32_MAX - 1, 0xd0000 };

	memset(driver_at(&v, DRIVER_RAM - PAGE_BYTES), 0x55, PAGE_BYTES);
	driver_up(&v, ALL);
	frames(INFLATE, list, ARRAY_SIZE(list));
	cr_assert_eq(*(u8 *)driver_at(&v, DRIVER_RAM - PAGE_BYTES), 0);
	cr_assert(page_is_gone(0) && page_is_gone(1) && page_is_there(2));
	cr_assert_eq(counters().bad_frames, 6u);
	frames(INFLATE, last, 3);
	cr_assert_eq(counters().bad_frames, 9u);
	/* Half a frame number at the end is none. */
	driver_request(&v, INFLATE, &(struct driver_buf){ FRAMES, 3, false }, 1);
	driver_request(&v, INFLATE, &(struct driver_buf){ FRAMES, 64, true }, 1);
	cr_assert_eq(counters().inflated_pages, 12u);
	cr_assert(page_is_there(2));
}

Test(virtio_balloon, long_buffer)
{
	u32 *list = driver_at(&v, FRAMES);
	unsigned char resident[512];

	for (u32 i = 0; i < 4000; i++)
		list[i] = 1024 + (i * 7) % 512;
	driver_up(&v, ALL);
	driver_request(&v, INFLATE, &(struct driver_buf){ FRAMES, 16000, false }, 1);
	/* Not one by one: to look into the first brings a huge page of zeros. */
	cr_assert_eq(mincore(driver_at(&v, MEMORY), MIB(2), resident), 0);
	for (u32 i = 0; i < 512; i++)
		cr_assert(!(resident[i] & 1), "page %u", i);
	cr_assert_eq(counters().inflated_pages, 4000u);
}

Test(virtio_balloon, target_and_actual)
{
	driver_up(&v, ALL);
	cr_assert_eq(balloon_target(v.d), DRIVER_RAM);
	balloon_set_target(v.d, MIB(5));
	cr_assert_eq(balloon_target(v.d), MIB(5));
	cr_assert_eq(config_u32(0), (DRIVER_RAM - MIB(5)) / PAGE_BYTES);
	cr_assert(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
	cr_assert_eq(balloon_actual(v.d), DRIVER_RAM);
	set_config_u32(4, 256);
	driver_run(&v);
	cr_assert_eq(changes, 1u);
	cr_assert_eq(changed_to, DRIVER_RAM - MIB(1));
	cr_assert_eq(balloon_actual(v.d), DRIVER_RAM - MIB(1));
	/* The guest cannot set our target, nor have more in the balloon than there is. */
	set_config_u32(0, 1);
	cr_assert_eq(balloon_target(v.d), MIB(5));
	set_config_u32(4, UINT32_MAX);
	cr_assert_eq(balloon_actual(v.d), 0u);
	balloon_set_target(v.d, UINT64_MAX);
	cr_assert_eq(config_u32(0), 0u);
	/* A new driver has an empty balloon. */
	driver_up(&v, ALL);
	cr_assert_eq(balloon_actual(v.d), DRIVER_RAM);
}

static void give_stats(u64 free_bytes)
{
	struct virtio_balloon_stat *s = driver_at(&v, FRAMES);
	const struct driver_buf buf = { FRAMES, 3 * sizeof(*s) + 3, false };

	s[0] = (struct virtio_balloon_stat){ VIRTIO_BALLOON_S_MEMFREE, free_bytes };
	s[1] = (struct virtio_balloon_stat){ 999, 1 }; /* of a future kernel */
	s[2] = (struct virtio_balloon_stat){ VIRTIO_BALLOON_S_MEMTOT, 77 };
	driver_queue(&v, STATS, &buf, 1);
	driver_kick(&v, STATS);
	driver_run(&v);
}

Test(virtio_balloon, statistics)
{
	struct balloon_guest_stats s;

	driver_up(&v, ALL);
	balloon_guest_stats(v.d, &s);
	cr_assert_eq(s.last_update_s, 0u);
	cr_assert_eq(s.value[VIRTIO_BALLOON_S_MEMFREE], BALLOON_STAT_NONE);
	give_stats(1234);
	balloon_guest_stats(v.d, &s);
	cr_assert_gt(s.last_update_s, 1000000u);
	cr_assert_eq(s.value[VIRTIO_BALLOON_S_MEMFREE], 1234u);
	cr_assert_eq(s.value[VIRTIO_BALLOON_S_MEMTOT], 77u);
	cr_assert_eq(s.value[VIRTIO_BALLOON_S_SWAP_IN], BALLOON_STAT_NONE);
	/* Held until somebody wants to know. */
	cr_assert_eq(driver_used(&v, STATS)->idx, 0);
	cr_assert_eq(balloon_set_stats_period(v.d, 1), 0);
	driver_wait(&v, STATS);
	give_stats(4321);
	balloon_guest_stats(v.d, &s);
	cr_assert_eq(s.value[VIRTIO_BALLOON_S_MEMFREE], 4321u);
	/* Once a second. */
	driver_wait(&v, STATS);
	cr_assert_eq(balloon_set_stats_period(v.d, 0), 0);
	give_stats(1);
	cr_assert_eq(driver_used(&v, STATS)->idx, 2);
	/* A second buffer while we hold one: the first goes back. */
	give_stats(2);
	cr_assert_eq(driver_used(&v, STATS)->idx, 3);
}

static void report(u64 gpa, u32 bytes)
{
	const struct driver_buf bufs[] = { { gpa, bytes, true },
					   { gpa + MIB(1), PAGE_BYTES, true } };

	driver_request(&v, REPORT, bufs, 2);
}

Test(virtio_balloon, free_page_reporting)
{
	driver_up(&v, ALL);
	report(MEMORY, 4 * PAGE_BYTES);
	cr_assert(page_is_gone(0) && page_is_gone(3) && page_is_there(4) && page_is_gone(256));
	cr_assert_eq(counters().reported_bytes, 5 * PAGE_BYTES);
	/* Not whole pages: left alone. */
	report(MEMORY + 5 * PAGE_BYTES + 1, 2 * PAGE_BYTES);
	cr_assert(page_is_there(5) && page_is_there(6) && page_is_there(7));
	cr_assert_gt(counters().bad_frames, 0u);
	/* A guest that poisons free pages wants to find the poison again. */
	set_config_u32(12, 0xaaaaaaaa);
	report(MEMORY + 8 * PAGE_BYTES, PAGE_BYTES);
	cr_assert(page_is_there(8));
}

static void hint_command(u32 id)
{
	const struct driver_buf buf = { FRAMES, 4, false };

	*(u32 *)driver_at(&v, FRAMES) = id;
	driver_request(&v, HINT, &buf, 1);
}

static void hint_block(u32 page)
{
	const struct driver_buf buf = { MEMORY + page * PAGE_BYTES, PAGE_BYTES, true };

	driver_request(&v, HINT, &buf, 1);
}

Test(virtio_balloon, free_page_hinting)
{
	u32 id;

	cr_assert_eq(balloon_hint_start(v.d), -EOPNOTSUPP);
	driver_up(&v, ALL);
	/* Nobody asked. */
	hint_block(0);
	cr_assert(page_is_there(0));
	cr_assert_eq(balloon_hint_start(v.d), 0);
	cr_assert_eq(balloon_hint_start(v.d), -EBUSY);
	id = config_u32(8);
	cr_assert_gt(id, (u32)VIRTIO_BALLOON_CMD_ID_DONE);
	hint_command(id + 1);
	hint_block(1);
	cr_assert(page_is_there(1));
	hint_command(id);
	hint_block(2);
	cr_assert(page_is_gone(2));
	hint_command(VIRTIO_BALLOON_CMD_ID_STOP);
	driver_run(&v);
	cr_assert_eq(hints_done, 1u);
	cr_assert_eq(config_u32(8), (u32)VIRTIO_BALLOON_CMD_ID_DONE);
	hint_block(3);
	cr_assert(page_is_there(3));
	cr_assert_eq(counters().hinted_bytes, PAGE_BYTES);
	cr_assert_eq(balloon_hint_start(v.d), 0);
	cr_assert_neq(config_u32(8), id);
}

/* Linux numbers only the queues that exist; the specification gives each role its own index. */
Test(virtio_balloon, queue_numbers)
{
	const struct driver_buf buf = { MEMORY, PAGE_BYTES, true };
	u64 no_hint = ALL & ~(1ULL << VIRTIO_BALLOON_F_FREE_PAGE_HINT);

	/* All five ready: by number. */
	driver_up(&v, no_hint);
	driver_request(&v, REPORT, &buf, 1);
	cr_assert(page_is_gone(0));
	/* The first four: in a row. */
	driver_negotiate(&v, no_hint);
	driver_queues(&v);
	driver_write(&v, VIRTIO_MMIO_QUEUE_SEL, 4);
	driver_write(&v, VIRTIO_MMIO_QUEUE_READY, 0);
	driver_write(&v, VIRTIO_MMIO_STATUS, 15);
	memset(driver_at(&v, MEMORY), 0x55, PAGE_BYTES);
	driver_request(&v, 3, &buf, 1);
	cr_assert(page_is_gone(0));
}

Test(virtio_balloon, state_goes_to_another_machine)
{
	struct state_writer w = { 0 };
	struct state_reader r;
	struct balloon_guest_stats s;
	struct driver first;

	driver_up(&v, ALL);
	balloon_set_target(v.d, MIB(6));
	set_config_u32(4, 512);
	give_stats(99);
	cr_assert_eq(balloon_set_stats_period(v.d, 1), 0);
	virtio_quiesce(v.d);
	cr_assert_eq(virtio_save(v.d, &w), 0);
	cr_assert_eq(state_reader_init(&r, w.data, w.bytes), 0);
	first = v;
	setup();
	memcpy(v.vm.mem.slots[0].hva, first.vm.mem.slots[0].hva, DRIVER_RAM);
	memcpy(v.next_desc, first.next_desc, sizeof(v.next_desc));
	memcpy(v.seen_used, first.seen_used, sizeof(v.seen_used));
	cr_assert_eq(virtio_load(v.d, &r), 0);
	cr_assert_eq(balloon_target(v.d), MIB(6));
	cr_assert_eq(balloon_actual(v.d), DRIVER_RAM - MIB(2));
	cr_assert_eq(balloon_stats_period(v.d), 1u);
	balloon_guest_stats(v.d, &s);
	cr_assert_eq(s.value[VIRTIO_BALLOON_S_MEMFREE], 99u);
	virtio_resume(v.d);
	/* The buffer that was held then comes back now. */
	driver_wait(&v, STATS);
	driver_end(&first);
	state_reader_free(&r);
}
