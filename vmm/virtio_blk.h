/* SPDX-License-Identifier: MIT */
/*
 * Block device (virtio 1.2, section 5.2): one queue, a thread of its own with an io_uring, which
 * reads and writes guest RAM in place. Flush, discard, write zeroes, get-id. What fails on the host
 * fails in the guest with VIRTIO_BLK_S_IOERR, and is counted.
 *
 * Direct I/O reaches guest RAM past the page tables: its pages are pinned (memory_pin()) while a
 * request is under way. Buffers that are not aligned for it go through a buffer of ours.
 *
 * reset() and quiesce() wait for the requests that the host has begun, as long as the host takes: a
 * file on a server that does not answer holds up the main loop.
 */
#ifndef BALLAST_VMM_VIRTIO_BLK_H
#define BALLAST_VMM_VIRTIO_BLK_H

#include "vmm/blk_image.h"
#include "vmm/virtio.h"

struct virtio_blk_stats {
	u64 read_requests, read_bytes;
	u64 write_requests, write_bytes;
	u64 flushes, discards;
	u64 errors;	     /* requests answered with VIRTIO_BLK_S_IOERR */
	u64 disk_read_pages; /* pages of base images that the agent was told of */
};

/* @serial is what the guest sees as the disk's serial number (at most 20 characters are used; NULL:
 * none). Takes @img over, on failure, too. -ENOSYS, -EPERM: no io_uring on this host. */
int virtio_blk_new(struct vm *vm, struct blk_image *img, const char *serial,
		   struct virtio_device **ret);

/* From any thread. */
void virtio_blk_stats(struct virtio_device *d, struct virtio_blk_stats *ret);

#endif
