/* SPDX-License-Identifier: MIT */
/*
 * A virtio device, without its transport (virtio 1.2, section 2), and the life of one:
 *
 *   reset ---> features agreed ---> queues enabled ---> live ---> reset
 *                                                       | ^
 *                                          quiesce() before pause, snapshot; resume() after
 *
 * The transport (virtio_mmio.c) keeps status, features and queue addresses and calls the ops below.
 *
 * Threads and the lock. A device's queues belong to one thread: the VM's main loop, or its own
 * (ops->own_thread: block). On the main loop the transport waits for kicks and calls ops->kick with
 * the lock held, never before start() nor after reset(), nor between quiesce() and resume(). A
 * device with a thread of its own waits for them itself, on kick_fds, without the lock. All
 * other ops are called with the lock held: start, reset, config_* on a vCPU's thread, the rest on
 * the main thread. So whatever a device on the main loop keeps is guarded by the lock, also in the
 * functions that its header offers.
 */
#ifndef BALLAST_VMM_VIRTIO_H
#define BALLAST_VMM_VIRTIO_H

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <pthread.h>
#include <stdatomic.h>
#include <systemd/sd-event.h>
#include "vmm/state.h"
#include "vmm/virtqueue.h"

#define VIRTIO_QUEUES_MAX 8

/* How many requests a device on the main loop answers before others have their turn. */
#define VIRTIO_BUDGET 256

struct vm;
struct virtio_device;

struct virtio_ops {
	const char *name; /* "block"; names it in messages, statistics and snapshots */
	u32 id;		  /* VIRTIO_ID_* */
	u32 nr_queues;
	u16 queue_size;
	bool own_thread;

	/* Mandatory, but for own_thread. The guest notified queue @q, or the device shall look at
	 * it: after resume(), or after virtio_kick(). */
	void (*kick)(struct virtio_device *d, u32 q);
	/* All below may be NULL. */
	/* Driver is ready (DRIVER_OK): start. @d->features are what was agreed. Negative errno: the
	 * device is broken. While d->quiesced (a restored device) nothing begins before resume().
	 */
	int (*start)(struct virtio_device *d);
	/* The device forgets all requests; returns when none is under way. Only after start(). */
	void (*reset)(struct virtio_device *d);
	/* Configuration space. Offsets and lengths are checked against config_bytes by the
	 * transport; @bytes is 1, 2, 4 or 8. */
	void (*config_read)(struct virtio_device *d, u32 offset, void *data, u32 bytes);
	void (*config_write)(struct virtio_device *d, u32 offset, const void *data, u32 bytes);
	/* Returns when no request is under way, and none is begun until resume(). */
	void (*quiesce)(struct virtio_device *d);
	void (*resume)(struct virtio_device *d);
	/* What a snapshot must hold beyond features, status and queues: records of the state file,
	 * with @d->index as instance. 0 or negative errno. load() comes before start(), into a
	 * device that was just made from the same options; it checks what it reads. */
	int (*save)(struct virtio_device *d, struct state_writer *w);
	int (*load)(struct virtio_device *d, struct state_reader *r);
	/* Frees the device itself. */
	void (*free)(struct virtio_device *d);
};

struct virtio_device {
	const struct virtio_ops *ops;
	struct vm *vm;
	u64 offered, features; /* VIRTIO_F_VERSION_1 is always offered, and must be taken */
	u32 config_bytes;
	struct virtqueue queues[VIRTIO_QUEUES_MAX];
	pthread_mutex_t lock;

	/* The transport's. */
	u32 index; /* which transport: layout.h */
	u32 feature_select, driver_feature_select, queue_select;
	u64 driver_features; /* what the driver wrote; they are @features once accepted */
	atomic_uint status, interrupt_status, config_generation;
	bool live; /* between start() and reset() */
	bool quiesced;
	int irq_fd;			 /* eventfd bound to the interrupt line (KVM_IRQFD) */
	int kick_fds[VIRTIO_QUEUES_MAX]; /* KVM_IOEVENTFD of each queue */
	sd_event_source *kick_sources[VIRTIO_QUEUES_MAX];

	/* Statistics. */
	_Atomic u64 kicks, interrupts;
};

/* For a device's constructor: @offered beyond what the transport and the queues always offer. */
void virtio_device_init(struct virtio_device *d, struct vm *vm, const struct virtio_ops *ops,
			u64 offered, u32 config_bytes);
/* For ops->free: what virtio_device_init() made. */
void virtio_device_fini(struct virtio_device *d);

/* virtio_mmio.c: gives the device a place on the bus (the next free one), eventfds and an interrupt
 * line. The device is then owned by the VM, which frees it. On failure the caller still owns it
 * (virtio_free()). A VM whose vm_fd is negative has no KVM (unit tests): then kicks come by the
 * bus, and interrupts end in irq_fd. */
int virtio_add(struct vm *vm, struct virtio_device *d);

/*
 * For vm.c and snapshot.c: on the main thread, while no vCPU runs.
 * All take the device's lock themselves.
 */
void virtio_quiesce(struct virtio_device *d); /* ops->quiesce; kicks wait in their eventfds */
void virtio_resume(struct virtio_device *d);  /* ops->resume, and looks at every queue again */
/* The machine is reset: as status 0, and statistics stay. */
void virtio_reset(struct virtio_device *d);
void virtio_free(struct virtio_device *d); /* event sources, eventfds, ops->free; NULL is fine */
int virtio_save(struct virtio_device *d, struct state_writer *w); /* transport, queues, ops->save */
/* Into a device just added. It is quiesced afterwards: virtio_resume() when the VM runs. -ENOENT,
 * -EBADMSG: the file has no state for it, or one that does not fit. */
int virtio_load(struct virtio_device *d, struct state_reader *r);

/* For transports: the driver writes the device status (2.1). Takes the lock. */
void virtio_set_status(struct virtio_device *d, u32 status);

/* For devices, from any thread. */
void virtio_interrupt(struct virtio_device *d,
		      struct virtqueue *q); /* only if the driver wants one */
void virtio_config_changed(struct virtio_device *d);
void virtio_broken(struct virtio_device *d, const char *why); /* NEEDS_RESET; logged once */
/* The device looks at queue @q again soon, as if the guest had notified it. */
void virtio_kick(struct virtio_device *d, u32 q);

static inline bool virtio_has(const struct virtio_device *d, u32 bit)
{
	return d->features >> bit & 1;
}

#endif
