/* SPDX-License-Identifier: MIT */
/*
 * The device's side of a virtqueue on memory of the fuzzer's making: descriptors, rings and
 * indirect tables. The input chooses size and features of the queue, fills the first pages of guest
 * RAM, and then says what driver and device do next: more memory written, the available index
 * moved, requests taken, given back, put back.
 *
 * Properties, said here again and independently of virtqueue.c: every buffer is guest RAM and not
 * empty, readable ones come first, the sums are right, never more requests are out than the queue
 * has room for, a queue that is broken stays so and writes nothing, and nothing is written to but
 * the used ring.
 */
#include <errno.h>
#include "tests/fuzz/fuzz.h"
#include "vmm/virtqueue.h"

#define RAM	  CHUNK_BYTES
#define DESC	  0x0000
#define AVAIL	  0x1000
#define USED	  0x2000
#define TABLES	  0x3000 /* two pages for indirect tables */
#define FILLED	  0x5000 /* so much is the input's to write */
#define STEPS_MAX 4096

static struct guest_memory mem;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	MUST(memory_init(&mem, RAM, 0) == 0);
	/* A second slot that touches the first: buffers may cross. */
	mem.slots[1] = mem.slots[0];
	mem.slots[0].bytes = RAM / 2;
	mem.slots[1].gpa += RAM / 2;
	mem.slots[1].hva += RAM / 2;
	mem.slots[1].bytes = RAM / 2;
	mem.nr_slots = 2;
	return 0;
}

static u8 *ram(void)
{
	return mem.slots[0].hva;
}

static void must_be_good(const struct virtqueue_request *r, u16 size)
{
	u64 out = 0, in = 0;

	MUST(r->head < size);
	MUST(r->nr_out + r->nr_in > 0 && r->nr_out + r->nr_in <= VIRTQUEUE_SEGMENTS_MAX);
	for (u32 i = 0; i < r->nr_out + r->nr_in; i++) {
		u64 offset = (u64)((u8 *)r->iov[i].iov_base - ram());

		MUST(r->iov[i].iov_len > 0 && offset < RAM && r->iov[i].iov_len <= RAM - offset);
		if (i < r->nr_out)
			out += r->iov[i].iov_len;
		else
			in += r->iov[i].iov_len;
	}
	MUST(out == r->out_bytes && in == r->in_bytes && out + in <= UINT32_MAX);
}

static void scatter_and_gather(struct input *in, const struct virtqueue_request *r)
{
	static u8 buf[4096];
	struct iovec part[VIRTQUEUE_SEGMENTS_MAX];
	u64 offset = input_u32(in) % (r->out_bytes + 2), bytes = 0;
	u32 nr = virtqueue_slice(r->iov, r->nr_out, offset, sizeof(buf), part);
	size_t n = virtqueue_read(r, offset, buf, sizeof(buf));

	for (u32 i = 0; i < nr; i++)
		bytes += part[i].iov_len;
	MUST(n == bytes);
	MUST(n == (offset >= r->out_bytes ? 0 : MIN(sizeof(buf), r->out_bytes - offset)));
}

/* The input writes into the first pages: anywhere, or what looks like a descriptor. */
static void write_memory(struct input *in)
{
	u32 at = input_u32(in) % FILLED, n = input_u8(in);

	if (n & 1) {
		struct vring_desc *d = (struct vring_desc *)(ram() + ROUND_DOWN(at, 16));

		d->addr = input_u8(in) & 1 ? input_u32(in) % (RAM + PAGE_BYTES) : input_u64(in);
		d->len = input_u8(in) & 1 ? input_u8(in) * 16 : input_u32(in);
		d->flags = input_u8(in) & 7;
		d->next = input_u8(in);
	} else {
		input_bytes(in, ram() + at, MIN(n, FILLED - at));
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static struct virtqueue_request r;
	static u8 before[DESC + USED], tables[FILLED - TABLES];
	struct input in = { data, data + size };
	struct vring_avail *avail = (struct vring_avail *)(ram() + AVAIL);
	struct vring_used *used = (struct vring_used *)(ram() + USED);
	struct virtqueue q;
	u16 out[VIRTQUEUE_SIZE_MAX];
	u32 nr_out = 0, steps = 0;

	memset(ram(), 0, FILLED);
	virtqueue_init(&q, &mem, VIRTQUEUE_SIZE_MAX);
	q.size = (u16)(1 << input_u8(&in) % 9);
	q.event_idx = input_u8(&in) & 1;
	q.indirect = input_u8(&in) & 1;
	q.desc_gpa = DESC;
	q.avail_gpa = AVAIL;
	q.used_gpa = USED;
	MUST(virtqueue_enable(&q) == 0);
	q.last_avail = q.seen_avail = q.used_idx = q.signalled = avail->idx = (u16)input_u32(&in);

	while (input_left(&in) && steps++ < STEPS_MAX) {
		bool was_broken = q.broken;
		u16 used_idx = used->idx;
		int e;

		switch (input_u8(&in) % 8) {
		case 0:
		case 1:
			write_memory(&in);
			continue; /* the guest may write the used ring, too */
		case 2:
			avail->idx += input_u8(&in) % 4;
			break;
		case 3:
		case 4:
			memcpy(before, ram(), sizeof(before));
			memcpy(tables, ram() + TABLES, sizeof(tables));
			e = virtqueue_pop(&q, &r);
			MUST(e == 0 || e == 1 || e == -EBADMSG);
			MUST((e == -EBADMSG) == q.broken && (!q.broken || q.why_broken));
			if (e == 1) {
				must_be_good(&r, q.size);
				MUST(nr_out < q.size);
				out[nr_out++] = r.head;
				scatter_and_gather(&in, &r);
			}
			MUST(memcmp(before, ram(), sizeof(before)) == 0);
			MUST(memcmp(tables, ram() + TABLES, sizeof(tables)) == 0);
			break;
		case 5:
			if (!nr_out)
				break;
			virtqueue_push(&q, out[--nr_out], input_u32(&in));
			if (!q.broken)
				MUST(used->idx == q.used_idx);
			break;
		case 6:
			virtqueue_kicks_off(&q);
			if (virtqueue_kicks_on(&q))
				MUST(!q.broken);
			break;
		case 7:
			if (virtqueue_wants_interrupt(&q))
				MUST(!q.broken);
			break;
		}
		MUST(!was_broken || (q.broken && used->idx == used_idx));
		MUST(q.broken || (u16)(q.last_avail - q.used_idx) == nr_out);
	}
	return 0;
}
