/* SPDX-License-Identifier: MIT */
/*
 * A small virtio driver for unit tests: a machine without KVM (memory, bus, main loop), on whose
 * bus a device is driven by its registers and queues as a guest would.
 */
#ifndef BALLAST_TESTS_UNIT_VMM_DRIVER_H
#define BALLAST_TESTS_UNIT_VMM_DRIVER_H

#include <linux/virtio_mmio.h>
#include "vmm/virtio.h"
#include "vmm/vm.h"

#define DRIVER_RAM   (4 * CHUNK_BYTES)
#define DRIVER_RINGS 0x10000  /* GPA; 64 KiB a queue */
#define DRIVER_DATA  0x200000 /* GPA: the tests' own from here on */

struct driver {
	struct vm vm;
	struct virtio_device *d;
	u64 base;
	u16 next_desc[VIRTIO_QUEUES_MAX], seen_used[VIRTIO_QUEUES_MAX];
};

/* One buffer of a request. */
struct driver_buf {
	u64 gpa;
	u32 bytes;
	bool writable;
};

/* A machine with DRIVER_RAM of RAM and @hotplug_bytes of hotplug area. */
void driver_machine(struct driver *v, u64 hotplug_bytes);
void driver_end(struct driver *v); /* frees the device, too */

/* Registers. */
u32 driver_read(struct driver *v, u64 offset);
void driver_write(struct driver *v, u64 offset, u32 value);

/* Adds the device, which is the machine's then, and brings it up with those of @features that it
 * offers: all queues, DRIVER_OK. */
void driver_attach(struct driver *v, struct virtio_device *d);
void driver_up(struct driver *v, u64 features);
/* The same in steps: status up to FEATURES_OK; the queues. */
void driver_negotiate(struct driver *v, u64 features);
void driver_queues(struct driver *v);

/* The parts of a queue. */
struct vring_desc *driver_desc(struct driver *v, u32 q);
struct vring_avail *driver_avail(struct driver *v, u32 q);
struct vring_used *driver_used(struct driver *v, u32 q);

/* Queues a request, without telling; returns its head. */
u16 driver_queue(struct driver *v, u32 q, const struct driver_buf *bufs, u32 nr);
void driver_kick(struct driver *v, u32 q);
/* Waits (running the main loop) until one more request is answered; its used element. */
struct vring_used_elem driver_wait(struct driver *v, u32 q);
/* One turn of the main loop, which does not wait. */
void driver_run(struct driver *v);
/* All three. */
u32 driver_request(struct driver *v, u32 q, const struct driver_buf *bufs, u32 nr);

void *driver_at(struct driver *v, u64 gpa);

#endif
