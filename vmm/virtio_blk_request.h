/* SPDX-License-Identifier: MIT */
/*
 * One request of a block device, from the queue to its answer. Private to virtio_blk*.c. All of it
 * happens on the device's thread; a request has one operation under way at a time:
 *
 *	begin() ---> step() ---> submitted ---> complete() ---> step() ---> ... ---> answered
 *		       |			    ^
 *		       +---> deferred: waits until another request has ended --+
 */
#ifndef BALLAST_VMM_VIRTIO_BLK_REQUEST_H
#define BALLAST_VMM_VIRTIO_BLK_REQUEST_H

#include <liburing.h>
#include <linux/virtio_blk.h>
#include "vmm/virtio_blk.h"

/* Requests under way at a time. What the guest queues beyond that waits in the queue. */
#define BLK_REQUESTS 128
/* Ranges of one discard. */
#define BLK_DISCARD_SEGMENTS 16
/* Sectors of one range: 64 MiB, since zeros may have to be written one by one. */
#define BLK_ZERO_SECTORS_MAX (MIB(64) / BLK_SECTOR)
/* Buffers that are not aligned for direct I/O are copied, in pieces of this. */
#define BLK_BOUNCE_BYTES KIB(256)

enum blk_thread_state {
	BLK_STOPPED,
	BLK_RUN,
	BLK_EXIT
};

enum blk_phase {
	BLK_DATA,  /* read or write */
	BLK_ZERO,  /* discard or write zeroes, range by range */
	BLK_FLUSH, /* alone, or after a write that must be safe */
};

struct blk_request {
	struct virtqueue_request vq;
	struct blk_request *next; /* free or deferred */
	enum blk_phase phase;
	bool write, need_zero;
	bool begun;		 /* between the image's begin_ and end_ */
	u64 offset, bytes, done; /* on the disk */

	/* The operation under way. */
	struct blk_place place;
	u64 part; /* its bytes */
	u32 nr_iov;
	bool direct;
	void *bounce; /* instead of iov */
	struct iovec iov[VIRTQUEUE_SEGMENTS_MAX];

	u32 range, nr_ranges; /* BLK_ZERO; offset and bytes are of the current one */
	struct virtio_blk_discard_write_zeroes ranges[BLK_DISCARD_SEGMENTS];
};

struct blk_counters {
	_Atomic u64 read_requests, read_bytes, write_requests, write_bytes, flushes, discards,
		errors, disk_read_pages;
};

struct virtio_blk {
	struct virtio_device d;
	struct virtio_blk_config config;
	struct blk_image *img;
	char serial[VIRTIO_BLK_ID_BYTES + 1];
	bool writethrough;

	pthread_t thread;
	bool has_thread;
	pthread_mutex_t control; /* of want, state, ring_error */
	pthread_cond_t changed;
	enum blk_thread_state want, state;
	int ring_error;
	int wake_fd;

	/* The thread's. */
	struct io_uring ring;
	u64 kick_count, wakes;
	bool kick_armed, wake_armed, kicked;
	struct blk_request *requests, *free, *deferred;
	bool ended;  /* a request did, since it was last asked */
	u32 nr_busy; /* requests that are neither free nor answered */

	struct blk_counters counters;
};

/* virtio_blk.c */
struct io_uring_sqe *blk_sqe(struct virtio_blk *b);

/* virtio_blk_request.c */
void blk_request_begin(struct virtio_blk *b, struct blk_request *r); /* @r->vq is filled */
void blk_request_step(struct virtio_blk *b, struct blk_request *r);
void blk_request_complete(struct virtio_blk *b, struct blk_request *r, int result);

#endif
