/* SPDX-License-Identifier: MIT */
/* What devices have in common, whatever transport they sit on. Registers are in virtio_mmio.c. */
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "vmm/virtio.h"
#include "vmm/vm.h"

#define FEATURES_ALWAYS                                                 \
	(1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_RING_F_EVENT_IDX | \
	 1ULL << VIRTIO_RING_F_INDIRECT_DESC)

#define STATE_TAG "virtio"

/* The record of transport and queues in a state file. */
struct queue_state {
	u64 desc_gpa, avail_gpa, used_gpa;
	u16 size, last_avail, used_idx, signalled;
	u8 ready, pad[7];
};

struct device_state {
	u32 id, nr_queues;
	u64 features, driver_features;
	u32 feature_select, driver_feature_select, queue_select;
	u32 status, interrupt_status, config_generation;
	struct queue_state queues[VIRTIO_QUEUES_MAX];
};
_Static_assert(sizeof(struct device_state) == 48 + VIRTIO_QUEUES_MAX * 40, "no hidden padding");

void virtio_device_init(struct virtio_device *d, struct vm *vm, const struct virtio_ops *ops,
			u64 offered, u32 config_bytes)
{
	memset(d, 0, sizeof(*d));
	d->ops = ops;
	d->vm = vm;
	d->offered = offered | FEATURES_ALWAYS;
	d->config_bytes = config_bytes;
	d->irq_fd = -1;
	pthread_mutex_init(&d->lock, NULL);
	for (u32 q = 0; q < VIRTIO_QUEUES_MAX; q++) {
		d->kick_fds[q] = -1;
		virtqueue_init(&d->queues[q], &vm->mem, ops->queue_size);
	}
}

void virtio_device_fini(struct virtio_device *d)
{
	for (u32 q = 0; q < VIRTIO_QUEUES_MAX; q++) {
		sd_event_source_unref(d->kick_sources[q]);
		if (d->kick_fds[q] >= 0)
			close(d->kick_fds[q]);
	}
	if (d->irq_fd >= 0)
		close(d->irq_fd);
	pthread_mutex_destroy(&d->lock);
}

void virtio_free(struct virtio_device *d)
{
	if (d)
		d->ops->free(d);
}

/* --- to the driver ------------------------------------------------------------------------------
 */

static void raise_interrupt(struct virtio_device *d, u32 cause)
{
	atomic_fetch_or(&d->interrupt_status, cause);
	atomic_fetch_add_explicit(&d->interrupts, 1, memory_order_relaxed);
	eventfd_write(d->irq_fd, 1);
}

void virtio_interrupt(struct virtio_device *d, struct virtqueue *q)
{
	if (virtqueue_wants_interrupt(q))
		raise_interrupt(d, VIRTIO_MMIO_INT_VRING);
}

void virtio_config_changed(struct virtio_device *d)
{
	atomic_fetch_add(&d->config_generation, 1);
	if (atomic_load(&d->status) & VIRTIO_CONFIG_S_DRIVER_OK)
		raise_interrupt(d, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_broken(struct virtio_device *d, const char *why)
{
	u32 before = atomic_fetch_or(&d->status, VIRTIO_CONFIG_S_NEEDS_RESET);

	if (before & VIRTIO_CONFIG_S_NEEDS_RESET)
		return;
	vm_log(d->vm, "virtio %s, device %u, stands still until the guest resets it: %s",
	       d->ops->name, d->index, why);
	/* Section 2.1.2: tell, if the driver has said that it is there. */
	if (before & VIRTIO_CONFIG_S_DRIVER_OK)
		raise_interrupt(d, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_kick(struct virtio_device *d, u32 q)
{
	eventfd_write(d->kick_fds[q], 1);
}

/* --- life ---------------------------------------------------------------------------------------
 */

static void enable_sources(struct virtio_device *d, bool on)
{
	for (u32 q = 0; q < d->ops->nr_queues; q++) {
		if (d->kick_sources[q])
			sd_event_source_set_enabled(d->kick_sources[q],
						    on ? SD_EVENT_ON : SD_EVENT_OFF);
	}
}

void virtio_quiesce(struct virtio_device *d)
{
	enable_sources(d, false);
	pthread_mutex_lock(&d->lock);
	if (!d->quiesced) {
		d->quiesced = true;
		if (d->live && d->ops->quiesce)
			d->ops->quiesce(d);
	}
	pthread_mutex_unlock(&d->lock);
}

void virtio_resume(struct virtio_device *d)
{
	pthread_mutex_lock(&d->lock);
	if (d->quiesced) {
		d->quiesced = false;
		if (d->live && d->ops->resume)
			d->ops->resume(d);
	}
	for (u32 q = 0; d->live && q < d->ops->nr_queues; q++) {
		if (d->queues[q].ready)
			virtio_kick(d, q);
	}
	/* An edge may have been lost on the way through a snapshot. One too many hurts nobody. */
	if (atomic_load(&d->interrupt_status))
		eventfd_write(d->irq_fd, 1);
	pthread_mutex_unlock(&d->lock);
	enable_sources(d, true);
}

/* With the lock held. */
static void reset_locked(struct virtio_device *d)
{
	if (d->live && d->ops->reset)
		d->ops->reset(d);
	d->live = false;
	d->features = d->driver_features = 0;
	d->feature_select = d->driver_feature_select = d->queue_select = 0;
	atomic_store(&d->status, 0);
	atomic_store(&d->interrupt_status, 0);
	for (u32 q = 0; q < d->ops->nr_queues; q++)
		virtqueue_reset(&d->queues[q]);
}

void virtio_reset(struct virtio_device *d)
{
	pthread_mutex_lock(&d->lock);
	reset_locked(d);
	pthread_mutex_unlock(&d->lock);
}

/* Section 2.2: nothing that was not offered, and no legacy driver. */
static bool features_fit(const struct virtio_device *d, u64 features)
{
	return !(features & ~d->offered) && features >> VIRTIO_F_VERSION_1 & 1;
}

static void start_locked(struct virtio_device *d)
{
	int r;

	for (u32 q = 0; q < d->ops->nr_queues; q++) {
		d->queues[q].event_idx = virtio_has(d, VIRTIO_RING_F_EVENT_IDX);
		d->queues[q].indirect = virtio_has(d, VIRTIO_RING_F_INDIRECT_DESC);
	}
	r = d->ops->start ? d->ops->start(d) : 0;
	d->live = true;
	if (r < 0)
		virtio_broken(d, strerror(-r));
	/* Linux's balloon driver fills a queue, and kicks, before it says DRIVER_OK. */
	for (u32 q = 0; r >= 0 && !d->quiesced && q < d->ops->nr_queues; q++) {
		if (d->queues[q].ready)
			virtio_kick(d, q);
	}
}

void virtio_set_status(struct virtio_device *d, u32 status)
{
	u32 before, added;

	pthread_mutex_lock(&d->lock);
	if (status == 0) {
		reset_locked(d);
		goto out;
	}
	before = atomic_load(&d->status);
	/* Bits are only added (2.1.1); NEEDS_RESET is ours. */
	added = status & ~before & ~VIRTIO_CONFIG_S_NEEDS_RESET;
	if (added & VIRTIO_CONFIG_S_FEATURES_OK) {
		if (features_fit(d, d->driver_features))
			d->features = d->driver_features;
		else
			added &= ~VIRTIO_CONFIG_S_FEATURES_OK;
	}
	if (added & VIRTIO_CONFIG_S_DRIVER_OK && !((before | added) & VIRTIO_CONFIG_S_FEATURES_OK))
		added &= ~VIRTIO_CONFIG_S_DRIVER_OK;
	atomic_fetch_or(&d->status, added);
	if (added & VIRTIO_CONFIG_S_DRIVER_OK && !(before & VIRTIO_CONFIG_S_NEEDS_RESET))
		start_locked(d);
out:
	pthread_mutex_unlock(&d->lock);
}

/* --- snapshots ----------------------------------------------------------------------------------
 */

int virtio_save(struct virtio_device *d, struct state_writer *w)
{
	struct device_state s = {
		.id = d->ops->id,
		.nr_queues = d->ops->nr_queues,
		.features = d->features,
		.driver_features = d->driver_features,
		.feature_select = d->feature_select,
		.driver_feature_select = d->driver_feature_select,
		.queue_select = d->queue_select,
		.config_generation = atomic_load(&d->config_generation),
	};
	int r;

	pthread_mutex_lock(&d->lock);
	s.status = atomic_load(&d->status);
	s.interrupt_status = atomic_load(&d->interrupt_status);
	for (u32 i = 0; i < d->ops->nr_queues; i++) {
		const struct virtqueue *q = &d->queues[i];

		s.queues[i] = (struct queue_state){
			.desc_gpa = q->desc_gpa,
			.avail_gpa = q->avail_gpa,
			.used_gpa = q->used_gpa,
			.size = q->size,
			.last_avail = q->last_avail,
			.used_idx = q->used_idx,
			.signalled = q->signalled,
			.ready = q->ready,
		};
	}
	r = state_put(w, STATE_TAG, d->index, &s, sizeof(s));
	if (r == 0 && d->ops->save)
		r = d->ops->save(d, w);
	pthread_mutex_unlock(&d->lock);
	return r;
}

static int load_queue(struct virtqueue *q, const struct queue_state *s)
{
	virtqueue_reset(q);
	q->desc_gpa = s->desc_gpa;
	q->avail_gpa = s->avail_gpa;
	q->used_gpa = s->used_gpa;
	q->size = s->size;
	q->last_avail = q->seen_avail = s->last_avail;
	q->used_idx = s->used_idx;
	q->signalled = s->signalled;
	if (s->ready && virtqueue_enable(q) < 0)
		return -EBADMSG;
	/* What is under way: the pieces that a device holds on to (balloon statistics). */
	if ((u16)(q->last_avail - q->used_idx) > q->size)
		return -EBADMSG;
	return 0;
}

static int load_locked(struct virtio_device *d, struct state_reader *r)
{
	struct device_state s;
	int e = state_get_exact(r, STATE_TAG, d->index, &s, sizeof(s));

	if (e < 0)
		return e;
	if (s.id != d->ops->id || s.nr_queues != d->ops->nr_queues || s.features & ~d->offered)
		return -EBADMSG;
	if (s.status & VIRTIO_CONFIG_S_FEATURES_OK && !features_fit(d, s.features))
		return -EBADMSG;
	if (s.status & VIRTIO_CONFIG_S_DRIVER_OK && !(s.status & VIRTIO_CONFIG_S_FEATURES_OK))
		return -EBADMSG;
	for (u32 q = 0; q < s.nr_queues; q++) {
		e = load_queue(&d->queues[q], &s.queues[q]);
		if (e < 0)
			return e;
	}
	d->features = s.features;
	d->driver_features = s.driver_features;
	d->feature_select = s.feature_select;
	d->driver_feature_select = s.driver_feature_select;
	d->queue_select = s.queue_select;
	atomic_store(&d->status, s.status & 0xff);
	atomic_store(&d->interrupt_status,
		     s.interrupt_status & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG));
	atomic_store(&d->config_generation, s.config_generation);
	e = d->ops->load ? d->ops->load(d, r) : 0;
	if (e < 0)
		return e;
	d->quiesced = true;
	if (s.status & VIRTIO_CONFIG_S_DRIVER_OK && !(s.status & VIRTIO_CONFIG_S_NEEDS_RESET))
		start_locked(d);
	return 0;
}

int virtio_load(struct virtio_device *d, struct state_reader *r)
{
	int e;

	enable_sources(d, false);
	pthread_mutex_lock(&d->lock);
	e = load_locked(d, r);
	if (e < 0)
		reset_locked(d);
	pthread_mutex_unlock(&d->lock);
	return e;
}
