/* SPDX-License-Identifier: MIT */
/*
 * Split virtqueues (virtio 1.2, section 2.7), the device's side. Everything in them is written by
 * the guest at any time, also while we read: each descriptor is copied once, checked, and only the
 * copy is used. A queue that breaks the rules is broken from then on (virtqueue.broken): the device
 * asks for a reset (VIRTIO_CONFIG_S_NEEDS_RESET) and touches it no more.
 *
 * One thread at a time uses a queue: the device's. How it empties one, so that no notification is
 * lost:
 *
 *	do {
 *		virtqueue_kicks_off(q);
 *		while (virtqueue_pop(q, &r) == 1)
 *			... virtqueue_push(q, r.head, written);
 *	} while (virtqueue_kicks_on(q));
 *	virtio_interrupt(d, q);
 *
 * The layout of the rings is little-endian, as is every machine that Ballast runs on (types.h).
 */
#ifndef BALLAST_VMM_VIRTQUEUE_H
#define BALLAST_VMM_VIRTQUEUE_H

#include <linux/virtio_ring.h>
#include <sys/uio.h>
#include "vmm/memory.h"

#define VIRTQUEUE_SIZE_MAX 256
/* Buffers of one request. Linux's virtio-blk uses at most seg_max (which we offer) + 2: so 1 MiB of
 * pages that lie apart is nearly one request. */
#define VIRTQUEUE_SEGMENTS_MAX 256

struct virtqueue {
	/* What the driver set, checked when it is made ready. */
	u16 size; /* a power of two, at most size_max */
	u16 size_max;
	bool ready, broken;
	u64 desc_gpa, avail_gpa, used_gpa;
	bool event_idx, indirect; /* VIRTIO_RING_F_* that were negotiated */

	const struct guest_memory *mem;
	/* The rings, while ready. Read and written by atomic accesses only. */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;

	/* Ours. They count without end, modulo 2^16. */
	u16 last_avail; /* next to take */
	u16 seen_avail; /* the driver's index when we last asked for a request */
	u16 used_idx;	/* next to give back; as the guest sees it once published */
	u16 signalled;	/* used_idx at the last interrupt (EVENT_IDX) */
	const char *why_broken;
};

/* One request: readable buffers first, then writable ones, as the specification demands. */
struct virtqueue_request {
	u16 head;
	u32 nr_out, nr_in;	 /* iov[0 .. nr_out) the device reads, then nr_in it writes */
	u64 out_bytes, in_bytes; /* in all; their sum is below 4 GiB */
	struct iovec iov[VIRTQUEUE_SEGMENTS_MAX];
};

void virtqueue_init(struct virtqueue *q, const struct guest_memory *mem, u16 size_max);

/* The driver says the queue is ready: checks size and alignment, and that all three rings are RAM.
 * -EINVAL: it stays off. */
int virtqueue_enable(struct virtqueue *q);
/* As after virtqueue_init(). */
void virtqueue_reset(struct virtqueue *q);

/*
 * Takes the next request. 1: *ret is filled; 0: none; -EBADMSG: the guest broke the rules, the
 * queue is broken. Follows indirect descriptors (one level). Every buffer is RAM. Never more than
 * q->size requests are out at a time: who would make more is broken.
 */
int virtqueue_pop(struct virtqueue *q, struct virtqueue_request *ret);
/* The last @n requests taken were not, and come again. Nothing of them was written or pushed. */
void virtqueue_unpop(struct virtqueue *q, u16 n);

/* Gives a request back with @written bytes put into its writable buffers. */
void virtqueue_push(struct virtqueue *q, u16 head, u32 written);
/* The same for several requests which the driver has to see at once (merged receive buffers):
 * virtqueue_fill() with @ahead 0, 1, ..., n - 1, then virtqueue_publish(n). */
void virtqueue_fill(struct virtqueue *q, u16 ahead, u16 head, u32 written);
void virtqueue_publish(struct virtqueue *q, u16 n);

/* After pushes: does the driver want an interrupt? (EVENT_IDX, or VRING_AVAIL_F_NO_INTERRUPT) */
bool virtqueue_wants_interrupt(struct virtqueue *q);

/* Turn kicks off while the queue is worked on, and on again: true if more came since
 * virtqueue_pop() was last called. So what was there then, and was put back, is waited for to grow.
 */
void virtqueue_kicks_off(struct virtqueue *q);
bool virtqueue_kicks_on(struct virtqueue *q);

/* Gather and scatter: copy between @buf and a request's readable or writable buffers, from byte
 * @offset of them on. Return bytes copied, less than @bytes where the buffers end. */
size_t virtqueue_read(const struct virtqueue_request *r, size_t offset, void *buf, size_t bytes);
size_t virtqueue_write(const struct virtqueue_request *r, size_t offset, const void *buf,
		       size_t bytes);

/* Of @nr buffers at @src, the part [offset, offset + bytes) as buffers of their own. @dst has room
 * for @nr. Returns how many there are, fewer bytes than asked for where @src ends. */
u32 virtqueue_slice(const struct iovec *src, u32 nr, u64 offset, u64 bytes, struct iovec *dst);

#endif
