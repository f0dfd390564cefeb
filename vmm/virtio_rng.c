/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include "vmm/virtio_rng.h"

/* Of a longer buffer only this much is used, which the specification allows: Linux asks for 64
 * bytes, and the main loop has others to serve. getrandom() of up to 256 bytes does not fail. */
#define BYTES_MAX 256
/* Buffers a turn. */
#define BUDGET 64

static u32 fill(const struct virtqueue_request *r)
{
	u8 buf[BYTES_MAX];
	ssize_t n = getrandom(buf, MIN(sizeof(buf), r->in_bytes), GRND_NONBLOCK);

	return n > 0 ? (u32)virtqueue_write(r, 0, buf, (size_t)n) : 0;
}

static void rng_kick(struct virtio_device *d, u32 i)
{
	struct virtqueue *q = &d->queues[i];
	struct virtqueue_request r;
	u32 budget = BUDGET;
	int e;

	do {
		virtqueue_kicks_off(q);
		while (budget && (e = virtqueue_pop(q, &r)) != 0) {
			if (e < 0) {
				virtio_broken(d, q->why_broken);
				return;
			}
			virtqueue_push(q, r.head, fill(&r));
			budget--;
		}
		if (!budget) {
			virtio_kick(d, i);
			break;
		}
	} while (virtqueue_kicks_on(q));
	virtio_interrupt(d, q);
}

static void rng_free(struct virtio_device *d)
{
	virtio_device_fini(d);
	free(d);
}

static const struct virtio_ops rng_ops = {
	.name = "rng",
	.id = VIRTIO_ID_RNG,
	.nr_queues = 1,
	.queue_size = 16,
	.kick = rng_kick,
	.free = rng_free,
};

int virtio_rng_new(struct vm *vm, struct virtio_device **ret)
{
	struct virtio_device *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	virtio_device_init(d, vm, &rng_ops, 0, 0);
	*ret = d;
	return 0;
}
