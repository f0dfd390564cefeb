/* SPDX-License-Identifier: MIT */
/* Queues as a good driver makes them, and every way to break the rules that we know of. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "vmm/virtqueue.h"

#define SIZE  8
#define RAM   CHUNK_BYTES
#define DESC  0x1000
#define AVAIL 0x2000
#define USED  0x3000
#define TABLE 0x4000
#define DATA  0x10000

static struct guest_memory mem;
static struct virtqueue q;
static struct virtqueue_request req;
static struct vring_desc *desc, *table;
static struct vring_avail *avail;
static struct vring_used *used;

static void setup(void)
{
	cr_assert_eq(memory_init(&mem, RAM, 0), 0);
	virtqueue_init(&q, &mem, SIZE);
	q.desc_gpa = DESC;
	q.avail_gpa = AVAIL;
	q.used_gpa = USED;
	q.indirect = true;
	cr_assert_eq(virtqueue_enable(&q), 0);
	desc = memory_at(&mem, DESC, PAGE_BYTES);
	avail = memory_at(&mem, AVAIL, PAGE_BYTES);
	used = memory_at(&mem, USED, PAGE_BYTES);
	table = memory_at(&mem, TABLE, PAGE_BYTES);
}

static void teardown(void)
{
	memory_free(&mem);
}

TestSuite(virtqueue, .init = setup, .fini = teardown, .timeout = 20);

static void set(struct vring_desc *d, u64 addr, u32 len, u16 flags, u16 next)
{
	*d = (struct vring_desc){ .addr = addr, .len = len, .flags = flags, .next = next };
}

static void offer(u16 head)
{
	avail->ring[avail->idx % SIZE] = head;
	avail->idx++;
}

static void expect_broken(const char *why)
{
	cr_assert_eq(virtqueue_pop(&q, &req), -EBADMSG);
	cr_assert(q.broken);
	cr_assert_str_eq(q.why_broken, why);
	/* And stays so, whatever the guest mends. */
	set(&desc[0], DATA, 16, 0, 0);
	avail->idx = 1;
	cr_assert_eq(virtqueue_pop(&q, &req), -EBADMSG);
	cr_assert(!virtqueue_wants_interrupt(&q));
	cr_assert(!virtqueue_kicks_on(&q));
	virtqueue_push(&q, 0, 0);
	cr_assert_eq(used->idx, 0);
}

/* One request from descriptor 0, which breaks the rule @why. */
static void expect_broken_chain(const char *why)
{
	offer(0);
	expect_broken(why);
}

Test(virtqueue, takes_a_chain_and_gives_it_back)
{
	set(&desc[3], DATA, 16, VRING_DESC_F_NEXT, 5);
	set(&desc[5], DATA + 100, 200, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
	set(&desc[1], DATA + 4096, 1, VRING_DESC_F_WRITE, 9999);
	cr_assert_eq(virtqueue_pop(&q, &req), 0);
	offer(3);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(req.head, 3);
	cr_assert_eq(req.nr_out, 1u);
	cr_assert_eq(req.nr_in, 2u);
	cr_assert_eq(req.out_bytes, 16u);
	cr_assert_eq(req.in_bytes, 201u);
	cr_assert_eq(req.iov[1].iov_base, memory_at(&mem, DATA + 100, 200));
	cr_assert_eq(req.iov[2].iov_len, 1u);
	cr_assert_eq(virtqueue_pop(&q, &req), 0);
	virtqueue_push(&q, 3, 201);
	cr_assert_eq(used->idx, 1);
	cr_assert_eq(used->ring[0].id, 3u);
	cr_assert_eq(used->ring[0].len, 201u);
}

Test(virtqueue, indices_wrap)
{
	set(&desc[2], DATA, 16, 0, 0);
	avail->idx = q.last_avail = q.seen_avail = q.used_idx = q.signalled = 65530;
	used->idx = 65530;
	for (u32 i = 0; i < 20; i++) {
		offer(2);
		cr_assert_eq(virtqueue_pop(&q, &req), 1);
		virtqueue_push(&q, 2, i);
		cr_assert_eq(used->idx, (u16)(65531 + i));
		cr_assert_eq(used->ring[(u16)(65530 + i) % SIZE].len, i);
		cr_assert(virtqueue_wants_interrupt(&q));
		cr_assert(!virtqueue_wants_interrupt(&q));
	}
}

Test(virtqueue, follows_an_indirect_table)
{
	set(&table[0], DATA, 16, VRING_DESC_F_NEXT, 2);
	set(&table[2], DATA + 512, 512, VRING_DESC_F_WRITE, 0);
	/* The write flag of what leads to a table means nothing (2.7.5.3.2). */
	set(&desc[0], DATA, 8, VRING_DESC_F_NEXT, 1);
	set(&desc[1], TABLE, 3 * sizeof(*table), VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(req.nr_out, 2u);
	cr_assert_eq(req.nr_in, 1u);
	cr_assert_eq(req.out_bytes, 24u);
	cr_assert_eq(req.iov[2].iov_base, memory_at(&mem, DATA + 512, 1));
}

Test(virtqueue, indirect_table_need_not_be_aligned)
{
	struct vring_desc d = { .addr = DATA, .len = 16 };

	memcpy((u8 *)table + 3, &d, sizeof(d));
	set(&desc[0], TABLE + 3, sizeof(d), VRING_DESC_F_INDIRECT, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(req.iov[0].iov_base, memory_at(&mem, DATA, 1));
}

/* More descriptors than the queue has, as Linux does with indirect tables. */
Test(virtqueue, indirect_table_may_be_longer_than_the_queue)
{
	for (u32 i = 0; i < VIRTQUEUE_SEGMENTS_MAX; i++)
		set(&table[i], DATA + i * 16, 16, VRING_DESC_F_NEXT, (u16)(i + 1));
	table[VIRTQUEUE_SEGMENTS_MAX - 1].flags = 0;
	set(&desc[0], TABLE, VIRTQUEUE_SEGMENTS_MAX * sizeof(*table), VRING_DESC_F_INDIRECT, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(req.nr_out, (u32)VIRTQUEUE_SEGMENTS_MAX);
}

Test(virtqueue, too_many_buffers)
{
	for (u32 i = 0; i <= VIRTQUEUE_SEGMENTS_MAX; i++)
		set(&table[i], DATA, 16, VRING_DESC_F_NEXT, (u16)(i + 1));
	set(&desc[0], TABLE, (VIRTQUEUE_SEGMENTS_MAX + 1) * sizeof(*table), VRING_DESC_F_INDIRECT,
	    0);
	expect_broken_chain("a request of too many buffers");
}

Test(virtqueue, loop)
{
	set(&desc[0], DATA, 16, VRING_DESC_F_NEXT, 1);
	set(&desc[1], DATA, 16, VRING_DESC_F_NEXT, 0);
	expect_broken_chain("a chain of descriptors that loops");
}

Test(virtqueue, loop_in_an_indirect_table)
{
	set(&table[0], DATA, 16, VRING_DESC_F_NEXT, 0);
	set(&desc[0], TABLE, 2 * sizeof(*table), VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("a chain of descriptors that loops");
}

Test(virtqueue, indirect_in_indirect)
{
	set(&table[0], TABLE, 16, VRING_DESC_F_INDIRECT, 0);
	set(&desc[0], TABLE, 16, VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("an indirect descriptor in an indirect table");
}

/* A table that is the queue's own would be entered for ever. */
Test(virtqueue, indirect_to_the_queue_itself)
{
	set(&desc[0], DESC, SIZE * 16, VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("an indirect descriptor in an indirect table");
}

Test(virtqueue, indirect_that_was_not_negotiated)
{
	q.indirect = false;
	set(&desc[0], TABLE, 16, VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("an indirect descriptor that was not negotiated");
}

Test(virtqueue, indirect_and_chained)
{
	set(&desc[0], TABLE, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1);
	expect_broken_chain("a descriptor both indirect and chained");
}

Test(virtqueue, indirect_table_of_a_wrong_size)
{
	set(&desc[0], TABLE, 24, VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("an indirect table of a wrong size");
}

Test(virtqueue, empty_indirect_table)
{
	set(&desc[0], TABLE, 0, VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("an indirect table of a wrong size");
}

Test(virtqueue, indirect_table_outside_ram)
{
	set(&desc[0], RAM - 16, 32, VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("an indirect table that is not in RAM");
}

Test(virtqueue, next_outside_the_table)
{
	set(&desc[0], DATA, 16, VRING_DESC_F_NEXT, SIZE);
	expect_broken_chain("a descriptor outside its table");
}

Test(virtqueue, next_outside_an_indirect_table)
{
	set(&table[0], DATA, 16, VRING_DESC_F_NEXT, 1);
	set(&table[1], DATA, 16, 0, 0); /* there, but not in the table */
	set(&desc[0], TABLE, 16, VRING_DESC_F_INDIRECT, 0);
	expect_broken_chain("a descriptor outside its table");
}

Test(virtqueue, head_outside_the_table)
{
	offer(SIZE);
	expect_broken("a descriptor outside its table");
}

Test(virtqueue, buffer_outside_ram)
{
	set(&desc[0], RAM, 1, 0, 0);
	expect_broken_chain("a buffer that is not in RAM");
}

Test(virtqueue, buffer_across_the_end_of_ram)
{
	set(&desc[0], RAM - 16, 17, 0, 0);
	expect_broken_chain("a buffer that is not in RAM");
}

Test(virtqueue, buffer_that_wraps)
{
	set(&desc[0], UINT64_MAX - 15, 32, 0, 0);
	expect_broken_chain("a buffer that wraps around the address space");
}

Test(virtqueue, buffer_of_no_bytes)
{
	set(&desc[0], DATA, 0, 0, 0);
	expect_broken_chain("a buffer of no bytes");
}

Test(virtqueue, sum_of_lengths_overflows)
{
	struct guest_memory big = mem;

	/* Never touched: a slot that claims 3 GiB. */
	big.slots[0].bytes = GIB(3);
	q.mem = &big;
	set(&desc[0], 0, UINT32_MAX / 2, VRING_DESC_F_NEXT, 1);
	set(&desc[1], 0, UINT32_MAX / 2, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2);
	set(&desc[2], 0, 2, VRING_DESC_F_WRITE, 0);
	expect_broken_chain("a request of 4 GiB or more");
}

Test(virtqueue, readable_after_writable)
{
	set(&desc[0], DATA, 16, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
	set(&desc[1], DATA, 16, 0, 0);
	expect_broken_chain("a readable buffer after a writable one");
}

Test(virtqueue, index_jumps)
{
	avail->idx = SIZE + 1;
	expect_broken("more requests than the queue has room for");
}

Test(virtqueue, index_goes_back)
{
	set(&desc[0], DATA, 16, 0, 0);
	offer(0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	avail->idx = 0;
	cr_assert_eq(virtqueue_pop(&q, &req), -EBADMSG);
	cr_assert(q.broken);
}

Test(virtqueue, more_under_way_than_there_are_descriptors)
{
	set(&desc[0], DATA, 16, 0, 0);
	for (u32 i = 0; i < SIZE; i++) {
		offer(0);
		cr_assert_eq(virtqueue_pop(&q, &req), 1);
	}
	offer(0);
	cr_assert_eq(virtqueue_pop(&q, &req), -EBADMSG);
	cr_assert_str_eq(q.why_broken, "more requests under way than the queue has room for");
}

/* Low and high RAM touch in this memory: one buffer becomes two. */
Test(virtqueue, buffer_across_two_slots)
{
	struct guest_memory two = mem;

	two.slots[0].bytes = DATA;
	two.slots[1] = (struct memory_slot){ .gpa = DATA, .bytes = 64, .hva = mem.slots[0].hva };
	two.nr_slots = 2;
	q.mem = &two;
	set(&desc[0], DATA - 16, 32, VRING_DESC_F_WRITE, 0);
	set(&desc[1], DATA - 16, 16 + 65, VRING_DESC_F_WRITE, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(req.nr_in, 2u);
	cr_assert_eq(req.iov[0].iov_len, 16u);
	cr_assert_eq(req.iov[1].iov_base, mem.slots[0].hva);
	offer(1);
	cr_assert_eq(virtqueue_pop(&q, &req), -EBADMSG);
}

Test(virtqueue, rings_must_be_ram_and_aligned)
{
	static const struct {
		u64 desc, avail, used;
		u16 size;
	} bad[] = {
		{ DESC + 8, AVAIL, USED, SIZE }, { DESC, AVAIL + 1, USED, SIZE },
		{ DESC, AVAIL, USED + 2, SIZE }, { RAM, AVAIL, USED, SIZE },
		{ RAM - 16, AVAIL, USED, SIZE }, { DESC, RAM - 4, USED, SIZE },
		{ DESC, AVAIL, RAM - 4, SIZE },	 { UINT64_MAX - 15, AVAIL, USED, SIZE },
		{ DESC, AVAIL, USED, 0 },	 { DESC, AVAIL, USED, 3 },
		{ DESC, AVAIL, USED, 2 * SIZE },
	};

	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		q.desc_gpa = bad[i].desc;
		q.avail_gpa = bad[i].avail;
		q.used_gpa = bad[i].used;
		q.size = bad[i].size;
		cr_assert_eq(virtqueue_enable(&q), -EINVAL, "%u", i);
		cr_assert(!q.ready);
		cr_assert_eq(virtqueue_pop(&q, &req), 0);
	}
}

Test(virtqueue, interrupts_by_flag)
{
	cr_assert(!virtqueue_wants_interrupt(&q));
	virtqueue_push(&q, 0, 0);
	avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	cr_assert(!virtqueue_wants_interrupt(&q));
	virtqueue_push(&q, 0, 0);
	avail->flags = 0;
	cr_assert(virtqueue_wants_interrupt(&q));
	cr_assert(!virtqueue_wants_interrupt(&q));
}

Test(virtqueue, interrupts_by_event_index)
{
	q.event_idx = true;
	avail->ring[SIZE] = 2; /* used_event: when the third is there */
	virtqueue_push(&q, 0, 0);
	cr_assert(!virtqueue_wants_interrupt(&q));
	virtqueue_push(&q, 0, 0);
	cr_assert(!virtqueue_wants_interrupt(&q));
	virtqueue_push(&q, 0, 0);
	virtqueue_push(&q, 0, 0);
	cr_assert(virtqueue_wants_interrupt(&q));
	virtqueue_push(&q, 0, 0);
	cr_assert(!virtqueue_wants_interrupt(&q));
}

Test(virtqueue, kicks_by_flag)
{
	virtqueue_kicks_off(&q);
	cr_assert_eq(used->flags, VRING_USED_F_NO_NOTIFY);
	cr_assert(!virtqueue_kicks_on(&q));
	cr_assert_eq(used->flags, 0);
	virtqueue_kicks_off(&q);
	set(&desc[0], DATA, 16, 0, 0);
	offer(0);
	cr_assert(virtqueue_kicks_on(&q));
}

Test(virtqueue, kicks_by_event_index)
{
	u16 *event = (u16 *)&used->ring[SIZE];

	q.event_idx = true;
	set(&desc[0], DATA, 16, 0, 0);
	offer(0);
	virtqueue_kicks_off(&q);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(*event, 0);
	cr_assert(!virtqueue_kicks_on(&q));
	cr_assert_eq(*event, 1);
	cr_assert_eq(used->flags, 0);
}

/* Two buffers that are too few are put back; a third must be told of. */
Test(virtqueue, kick_for_one_more)
{
	u16 *event = (u16 *)&used->ring[SIZE];

	q.event_idx = true;
	set(&desc[0], DATA, 16, VRING_DESC_F_WRITE, 0);
	offer(0);
	offer(0);
	for (u32 i = 0; i < 2; i++)
		cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(virtqueue_pop(&q, &req), 0);
	virtqueue_unpop(&q, 2);
	cr_assert(!virtqueue_kicks_on(&q));
	cr_assert(vring_need_event(*event, 3, 2));
	offer(0);
	cr_assert(virtqueue_kicks_on(&q));
}

Test(virtqueue, several_appear_at_once)
{
	set(&desc[0], DATA, 16, VRING_DESC_F_WRITE, 0);
	set(&desc[1], DATA, 16, VRING_DESC_F_WRITE, 0);
	offer(0);
	offer(1);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	virtqueue_fill(&q, 0, 0, 5);
	virtqueue_fill(&q, 1, 1, 6);
	cr_assert_eq(used->idx, 0);
	virtqueue_publish(&q, 2);
	cr_assert_eq(used->idx, 2);
	cr_assert_eq(used->ring[0].len, 5u);
	cr_assert_eq(used->ring[1].id, 1u);
}

Test(virtqueue, what_was_put_back_comes_again)
{
	set(&desc[0], DATA, 16, VRING_DESC_F_WRITE, 0);
	set(&desc[1], DATA, 17, VRING_DESC_F_WRITE, 0);
	offer(0);
	offer(1);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	virtqueue_unpop(&q, 2);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(req.in_bytes, 16u);
}

Test(virtqueue, copies_stop_where_buffers_end)
{
	u8 buf[64], *data = memory_at(&mem, DATA, 4096);
	struct iovec part[4];

	for (u32 i = 0; i < 64; i++)
		data[i] = (u8)i;
	set(&desc[0], DATA, 3, VRING_DESC_F_NEXT, 1);
	set(&desc[1], DATA + 10, 4, VRING_DESC_F_NEXT, 2);
	set(&desc[2], DATA + 100, 2, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 3);
	set(&desc[3], DATA + 200, 2, VRING_DESC_F_WRITE, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&q, &req), 1);
	cr_assert_eq(virtqueue_read(&req, 0, buf, sizeof(buf)), 7u);
	cr_assert_arr_eq(buf, ((u8[]){ 0, 1, 2, 10, 11, 12, 13 }), 7);
	cr_assert_eq(virtqueue_read(&req, 2, buf, 3), 3u);
	cr_assert_arr_eq(buf, ((u8[]){ 2, 10, 11 }), 3);
	cr_assert_eq(virtqueue_read(&req, 7, buf, 3), 0u);
	cr_assert_eq(virtqueue_write(&req, 1, "abcd", 4), 3u);
	cr_assert_eq(data[101], 'a');
	cr_assert_eq(data[200], 'b');
	cr_assert_eq(data[201], 'c');
	cr_assert_eq(data[202], 0);

	cr_assert_eq(virtqueue_slice(req.iov, req.nr_out, 2, 3, part), 2u);
	cr_assert_eq(part[0].iov_len, 1u);
	cr_assert_eq(part[1].iov_base, data + 10);
	cr_assert_eq(part[1].iov_len, 2u);
	cr_assert_eq(virtqueue_slice(req.iov, req.nr_out, 7, 3, part), 0u);
}
