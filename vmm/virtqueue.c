/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include "vmm/virtqueue.h"

/* The guest's other processors write what we read: each value is loaded once. */
#define LOAD(p)	    __atomic_load_n(p, __ATOMIC_RELAXED)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)

/* Alignment of the three parts, virtio 1.2, section 2.7. */
#define DESC_ALIGN  16
#define AVAIL_ALIGN 2
#define USED_ALIGN  4

_Static_assert(sizeof(struct vring_desc) == 16, "the wire's layout");
_Static_assert(sizeof(struct vring_used_elem) == 8, "the wire's layout");

/* A table of descriptors: the queue's own or an indirect one. */
struct table {
	const struct vring_desc *desc;
	u32 nr;
	bool indirect;
};

static int broken(struct virtqueue *q, const char *why)
{
	q->broken = true;
	q->why_broken = why;
	return -EBADMSG;
}

void virtqueue_init(struct virtqueue *q, const struct guest_memory *mem, u16 size_max)
{
	*q = (struct virtqueue){ .mem = mem, .size_max = size_max, .size = size_max };
}

void virtqueue_reset(struct virtqueue *q)
{
	virtqueue_init(q, q->mem, q->size_max);
}

int virtqueue_enable(struct virtqueue *q)
{
	u16 n = q->size;

	q->ready = false;
	if (n == 0 || n > q->size_max || (n & (n - 1)))
		return -EINVAL;
	if (q->desc_gpa % DESC_ALIGN || q->avail_gpa % AVAIL_ALIGN || q->used_gpa % USED_ALIGN)
		return -EINVAL;
	/* Both rings end with the event index, which is there only with EVENT_IDX. Ask for its
	 * two bytes in any case: a ring that ends with the last byte of RAM is not worth a case. */
	q->desc = memory_at(q->mem, q->desc_gpa, n * sizeof(q->desc[0]));
	q->avail = memory_at(q->mem, q->avail_gpa, sizeof(*q->avail) + (n + 1) * sizeof(u16));
	q->used = memory_at(q->mem, q->used_gpa,
			    sizeof(*q->used) + n * sizeof(q->used->ring[0]) + sizeof(u16));
	if (!q->desc || !q->avail || !q->used)
		return -EINVAL;
	q->ready = true;
	return 0;
}

/* Where the driver says from which used index on it wants an interrupt, and we from which available
 * index on we want a kick. */
static u16 *used_event(const struct virtqueue *q)
{
	return &q->avail->ring[q->size];
}

static u16 *avail_event(const struct virtqueue *q)
{
	return (u16 *)&q->used->ring[q->size];
}

/* Like memory_at(), but where the slot ends *bytes becomes smaller: two slots may touch, and a
 * guest that joins neighbouring pages does not know where. */
static void *span_at(const struct guest_memory *m, u64 gpa, u64 *bytes)
{
	for (u32 i = 0; i < m->nr_slots; i++) {
		const struct memory_slot *s = &m->slots[i];

		if (gpa < s->gpa || gpa - s->gpa >= s->bytes)
			continue;
		*bytes = MIN(*bytes, s->bytes - (gpa - s->gpa));
		return memory_at(m, gpa, *bytes);
	}
	return NULL;
}

static int add_buffer(struct virtqueue *q, struct virtqueue_request *r, u64 gpa, u32 len,
		      bool writable)
{
	u64 left = len;

	if (!len)
		return broken(q, "a buffer of no bytes");
	if (!writable && r->nr_in)
		return broken(q, "a readable buffer after a writable one");
	if (gpa + len < gpa)
		return broken(q, "a buffer that wraps around the address space");
	if (r->out_bytes + r->in_bytes + len > UINT32_MAX)
		return broken(q, "a request of 4 GiB or more");
	while (left) {
		u32 nr = r->nr_out + r->nr_in;
		u64 bytes = left;
		void *p = span_at(q->mem, gpa, &bytes);

		if (!p)
			return broken(q, "a buffer that is not in RAM");
		if (nr == VIRTQUEUE_SEGMENTS_MAX)
			return broken(q, "a request of too many buffers");
		r->iov[nr] = (struct iovec){ .iov_base = p, .iov_len = bytes };
		if (writable) {
			r->nr_in++;
			r->in_bytes += bytes;
		} else {
			r->nr_out++;
			r->out_bytes += bytes;
		}
		gpa += bytes;
		left -= bytes;
	}
	return 0;
}

static struct vring_desc copy_desc(const struct table *t, u32 i)
{
	struct vring_desc d;

	memcpy(&d, (const u8 *)t->desc + (size_t)i * sizeof(d), sizeof(d));
	/* From here on only the copy is read. No atomic loads: an indirect table need not be
	 * aligned, and values that are torn are the guest's own. */
	__asm__ volatile("" : "+m"(d));
	return d;
}

static int enter_indirect(struct virtqueue *q, const struct vring_desc *d, struct table *t)
{
	if (!q->indirect)
		return broken(q, "an indirect descriptor that was not negotiated");
	if (t->indirect)
		return broken(q, "an indirect descriptor in an indirect table");
	if (d->flags & VRING_DESC_F_NEXT)
		return broken(q, "a descriptor both indirect and chained");
	if (!d->len || d->len % sizeof(struct vring_desc))
		return broken(q, "an indirect table of a wrong size");
	t->desc = memory_at(q->mem, d->addr, d->len);
	if (!t->desc)
		return broken(q, "an indirect table that is not in RAM");
	t->nr = d->len / sizeof(struct vring_desc);
	t->indirect = true;
	return 0;
}

static int follow_chain(struct virtqueue *q, u16 head, struct virtqueue_request *ret)
{
	struct table t = { .desc = q->desc, .nr = q->size };
	u32 i = head, steps = 0;
	int r;

	ret->head = head;
	ret->nr_out = ret->nr_in = 0;
	ret->out_bytes = ret->in_bytes = 0;
	for (;;) {
		struct vring_desc d;

		if (i >= t.nr)
			return broken(q, "a descriptor outside its table");
		/* A chain is no longer than its table, or it loops. */
		if (steps++ == t.nr)
			return broken(q, "a chain of descriptors that loops");
		d = copy_desc(&t, i);
		if (d.flags & VRING_DESC_F_INDIRECT) {
			r = enter_indirect(q, &d, &t);
			if (r < 0)
				return r;
			i = steps = 0;
			continue;
		}
		r = add_buffer(q, ret, d.addr, d.len, d.flags & VRING_DESC_F_WRITE);
		if (r < 0)
			return r;
		if (!(d.flags & VRING_DESC_F_NEXT))
			return 0;
		i = d.next;
	}
}

int virtqueue_pop(struct virtqueue *q, struct virtqueue_request *ret)
{
	u16 waiting, head;
	int r;

	if (q->broken)
		return -EBADMSG;
	if (!q->ready)
		return 0;
	/* Pairs with the driver's write barrier: what it wrote before the index is seen. */
	q->seen_avail = __atomic_load_n(&q->avail->idx, __ATOMIC_ACQUIRE);
	waiting = (u16)(q->seen_avail - q->last_avail);
	if (!waiting)
		return 0;
	if (waiting > q->size)
		return broken(q, "more requests than the queue has room for");
	if ((u16)(q->last_avail - q->used_idx) >= q->size)
		return broken(q, "more requests under way than the queue has room for");
	head = LOAD(&q->avail->ring[q->last_avail & (q->size - 1)]);
	r = follow_chain(q, head, ret);
	if (r < 0)
		return r;
	q->last_avail++;
	return 1;
}

void virtqueue_unpop(struct virtqueue *q, u16 n)
{
	q->last_avail -= n;
}

void virtqueue_fill(struct virtqueue *q, u16 ahead, u16 head, u32 written)
{
	struct vring_used_elem *e;

	if (!q->ready || q->broken)
		return;
	e = &q->used->ring[(u16)(q->used_idx + ahead) & (q->size - 1)];
	STORE(&e->id, head);
	STORE(&e->len, written);
}

void virtqueue_publish(struct virtqueue *q, u16 n)
{
	if (!q->ready || q->broken)
		return;
	q->used_idx += n;
	/* The elements, and all that was put into the buffers, before the index. */
	__atomic_store_n(&q->used->idx, q->used_idx, __ATOMIC_RELEASE);
}

void virtqueue_push(struct virtqueue *q, u16 head, u32 written)
{
	virtqueue_fill(q, 0, head, written);
	virtqueue_publish(q, 1);
}

bool virtqueue_wants_interrupt(struct virtqueue *q)
{
	u16 before = q->signalled;

	if (!q->ready || q->broken || q->used_idx == before)
		return false;
	/* The index is out before we ask: a driver that turns interrupts on looks at it after. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	q->signalled = q->used_idx;
	if (q->event_idx)
		return vring_need_event(LOAD(used_event(q)), q->used_idx, before);
	return !(LOAD(&q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
}

void virtqueue_kicks_off(struct virtqueue *q)
{
	/* With EVENT_IDX a driver kicks once, when it passes the event index: as long as that is
	 * left behind, there are none. */
	if (q->ready && !q->broken && !q->event_idx)
		STORE(&q->used->flags, VRING_USED_F_NO_NOTIFY);
}

bool virtqueue_kicks_on(struct virtqueue *q)
{
	if (!q->ready || q->broken)
		return false;
	if (q->event_idx)
		STORE(avail_event(q), q->seen_avail);
	else
		STORE(&q->used->flags, 0);
	/* The driver sees that before we look for what came while kicks were off. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return LOAD(&q->avail->idx) != q->seen_avail;
}

u32 virtqueue_slice(const struct iovec *src, u32 nr, u64 offset, u64 bytes, struct iovec *dst)
{
	u32 n = 0;

	for (u32 i = 0; i < nr && bytes; i++) {
		u64 part;

		if (offset >= src[i].iov_len) {
			offset -= src[i].iov_len;
			continue;
		}
		part = MIN(bytes, src[i].iov_len - offset);
		dst[n++] = (struct iovec){ .iov_base = (u8 *)src[i].iov_base + offset,
					   .iov_len = part };
		bytes -= part;
		offset = 0;
	}
	return n;
}

/* A copy from or to the buffers, in pieces. */
static size_t copy(const struct iovec *iov, u32 nr, size_t offset, u8 *buf, size_t bytes,
		   bool to_guest)
{
	size_t done = 0;

	for (u32 i = 0; i < nr && done < bytes; i++) {
		size_t part;
		u8 *p = iov[i].iov_base;

		if (offset >= iov[i].iov_len) {
			offset -= iov[i].iov_len;
			continue;
		}
		part = MIN(bytes - done, iov[i].iov_len - offset);
		if (to_guest)
			memcpy(p + offset, buf + done, part);
		else
			memcpy(buf + done, p + offset, part);
		done += part;
		offset = 0;
	}
	return done;
}

size_t virtqueue_read(const struct virtqueue_request *r, size_t offset, void *buf, size_t bytes)
{
	return copy(r->iov, r->nr_out, offset, buf, bytes, false);
}

size_t virtqueue_write(const struct virtqueue_request *r, size_t offset, const void *buf,
		       size_t bytes)
{
	return copy(r->iov + r->nr_out, r->nr_in, offset, (u8 *)buf, bytes, true);
}
