/* SPDX-License-Identifier: MIT */
/*
 * A virtio device, without its transport (virtio 1.2, section 2), and the life of one:
 *
 *   reset ---> features agreed ---> queues enabled ---> live ---> reset
 *                                                       | ^
 *                                          quiesce() before pause, snapshot; resume() after
 *
 * The transport (virtio_mmio.c) keeps status, features and queue addresses and calls the ops below,
 * on a vCPU's thread, under the device's lock. What a device does for a queue happens in
 * its own context: kick() is called when the guest has notified queue @q: by an ioeventfd on the
 * VM's main loop, or in the device's own thread if it has one (block).
 */
#ifndef BALLAST_VMM_VIRTIO_H
#define BALLAST_VMM_VIRTIO_H

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <pthread.h>
#include <stdatomic.h>
#include "vmm/virtqueue.h"

#define VIRTIO_QUEUES_MAX 8

struct vm;
struct virtio_device;
struct state_writer; /* state.h: a device's state in a snapshot */
struct state_reader;

struct virtio_ops {
	const char *name; /* "block"; names it in messages, statistics and snapshots */
	u32 id;		  /* VIRTIO_ID_* */
	u32 nr_queues;
	u16 queue_size;

	/* Mandatory. The guest notified queue @q (or the device shall look at it: after resume()).
	 */
	void (*kick)(struct virtio_device *d, u32 q);
	/* All below may be NULL. */
	/* Driver is ready (DRIVER_OK): start. @d->features are what was agreed. */
	int (*start)(struct virtio_device *d);
	/* The device forgets all requests; returns when none is under way. */
	void (*reset)(struct virtio_device *d);
	/* Configuration space. Offsets and lengths are checked against config_bytes by the
	 * transport. */
	void (*config_read)(struct virtio_device *d, u32 offset, void *data, u32 bytes);
	void (*config_write)(struct virtio_device *d, u32 offset, const void *data, u32 bytes);
	/* Returns when no request is under way, and none is begun until resume(). */
	void (*quiesce)(struct virtio_device *d);
	void (*resume)(struct virtio_device *d);
	/* What a snapshot must hold beyond features, status and queues. 0 or negative errno. */
	int (*save)(struct virtio_device *d, struct state_writer *w);
	int (*load)(struct virtio_device *d, struct state_reader *r);
	void (*free)(struct virtio_device *d);
};

struct virtio_device {
	const struct virtio_ops *ops;
	struct vm *vm;
	u64 offered, features; /* VIRTIO_F_VERSION_1 is always offered, and must be taken */
	u32 config_bytes;
	struct virtqueue queues[VIRTIO_QUEUES_MAX];
	pthread_mutex_t lock; /* of what transport and device share; held over all ops but kick */

	/* The transport's. */
	u32 index; /* which transport: layout.h */
	u32 status, feature_select, driver_feature_select, queue_select;
	atomic_uint interrupt_status, config_generation;
	int irq_fd;			 /* eventfd bound to the interrupt line (KVM_IRQFD) */
	int kick_fds[VIRTIO_QUEUES_MAX]; /* KVM_IOEVENTFD of each queue */

	/* Statistics. */
	_Atomic u64 kicks, interrupts;
};

/* virtio_mmio.c: gives the device a place on the bus (the next free one), eventfds and an interrupt
 * line. The device is then owned by the VM, which frees it. On failure the caller still owns it. */
int virtio_add(struct vm *vm, struct virtio_device *d);

/*
 * virtio_mmio.c, for vm.c and snapshot.c: on the main thread, while no vCPU runs.
 * All take the device's lock themselves.
 */
void virtio_quiesce(struct virtio_device *d); /* ops->quiesce; kicks wait in their eventfds */
void virtio_resume(struct virtio_device *d);  /* ops->resume, and looks at every queue again */
void virtio_reset(
	struct virtio_device *d); /* the machine is reset: as status 0, and statistics stay */
void virtio_free(struct virtio_device *d); /* event sources, eventfds, ops->free; NULL is fine */
int virtio_save(struct virtio_device *d, struct state_writer *w); /* transport, queues, ops->save */
int virtio_load(struct virtio_device *d, struct state_reader *r); /* into a device just added */

/* For devices, from any thread. */
void virtio_interrupt(struct virtio_device *d,
		      struct virtqueue *q); /* only if the driver wants one */
void virtio_config_changed(struct virtio_device *d);
void virtio_broken(struct virtio_device *d, const char *why); /* NEEDS_RESET; logged once */

static inline bool virtio_has(const struct virtio_device *d, u32 bit)
{
	return d->features >> bit & 1;
}

#endif
