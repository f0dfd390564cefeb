/* SPDX-License-Identifier: MIT */
/*
 * Memory hotplug (virtio 1.2, section 5.15): the hotplug area of guest memory in blocks of 2 MiB,
 * which the driver plugs and unplugs up to the size that we ask for. An unplugged block is
 * discarded: it costs nothing.
 *
 * The driver is hostile: it may ask for any blocks at any time, gets no more than what was
 * requested at that moment, and none twice. It may write to unplugged blocks: KVM maps the whole
 * area. What that costs the host is bounded by the area's size, as it would be if all of it were
 * plugged; what is plugged is "plugged", what is used is seen by who counts memory (PSS, cgroup).
 *
 * All functions: on the main thread.
 */
#ifndef BALLAST_VMM_VIRTIO_MEM_H
#define BALLAST_VMM_VIRTIO_MEM_H

#include "vmm/virtio.h"

#define VIRTIO_MEM_BLOCK CHUNK_BYTES

struct virtio_mem_info {
	u64 gpa, max_bytes; /* the area */
	u64 requested_bytes, plugged_bytes;
	u64 refused; /* requests that broke the rules */
};

/* -ENODEV: this machine has no hotplug area. */
int virtio_mem_new(struct vm *vm, struct virtio_device **ret);

/* The guest shall plug (or unplug) until it has @bytes. -EINVAL: not a multiple of 2 MiB, or more
 * than the area. */
int virtio_mem_request(struct virtio_device *d, u64 bytes);
void virtio_mem_info(struct virtio_device *d, struct virtio_mem_info *ret);
/* Called on the main thread when plugged_bytes has changed, with the device's lock held: it must
 * not call the functions above. NULL: nobody. */
void virtio_mem_on_change(struct virtio_device *d, void (*changed)(void *arg, u64 plugged_bytes),
			  void *arg);

#endif
