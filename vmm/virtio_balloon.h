/* SPDX-License-Identifier: MIT */
/*
 * Memory balloon (virtio 1.2, section 5.5): how the guest gives memory back.
 *
 *	inflate, deflate	frame by frame, up to a target that we set; what is inflated is
 *				discarded (memory_discard()), in ranges where frames are neighbours
 *	statistics		the guest's own, asked for every so many seconds
 *	free page reporting	the guest tells of free blocks as it goes, which are discarded
 *	free page hinting	the same once, of all free memory, when we ask: before a snapshot
 *
 * The guest is hostile: it may name frames that are not RAM, or its own in use. What is not RAM is
 * counted and passed over; what is discarded reads as zeros, and is the guest's own loss. It may
 * also inflate nothing at all: "actual" is what it says, not what we know.
 *
 * DEFLATE_ON_OOM is offered: a guest that would have to kill a process takes pages back by itself
 * (invariant 10). MUST_TELL_HOST is not: nothing has to be done before a page is used again.
 * A guest that poisons its free pages (PAGE_POISON with a value that is not 0) relies on their
 * content; its free pages are left alone.
 *
 * All functions below: on the main thread.
 */
#ifndef BALLAST_VMM_VIRTIO_BALLOON_H
#define BALLAST_VMM_VIRTIO_BALLOON_H

#include <linux/virtio_balloon.h>
#include "vmm/virtio.h"

/*
 * Inflate and deflate pass ranges instead of frames: docs/BALLOON-RANGES.md. Our guest driver takes
 * it. An entry is 64 bits: the address, and in the bits of its page offset the order.
 */
#define BALLOON_F_RANGES	57
#define BALLOON_RANGE_ORDER	0x3full
#define BALLOON_RANGE_MBZ	0xfc0ull
#define BALLOON_RANGE_ORDER_MAX 18 /* 1 GiB */

/* Linux 6.12 has 16, indexed by VIRTIO_BALLOON_S_*; behind them come our driver's own, whose tags
 * begin with BALLOON_S_OURS (docs/BALLOON-RANGES.md). Other tags are passed over. */
#define BALLOON_STATS_STANDARD 16
#define BALLOON_STATS_MAX      19
#define BALLOON_S_OURS	       0xba00
/* Of a statistic that the guest has not given. QEMU's word for it. */
#define BALLOON_STAT_NONE UINT64_MAX

struct balloon_guest_stats {
	u64 last_update_s; /* CLOCK_REALTIME; 0: never */
	u64 value[BALLOON_STATS_MAX];
};

struct balloon_counters {
	u64 inflated_pages, deflated_pages; /* as the guest told, since the start */
	u64 reported_bytes, hinted_bytes;   /* discarded by reporting, hinting */
	u64 discards;			    /* ranges discarded, of whatever reason */
	u64 bad_frames;			    /* not RAM, or named twice in one buffer */
	u64 failed_discards;
};

struct balloon_callbacks {
	/* The guest's "actual" has changed: RAM less balloon, in bytes. */
	void (*changed)(void *arg, u64 actual_bytes);
	/* Free page hinting has ended (with or without success). */
	void (*hint_done)(void *arg);
	void *arg;
};

int virtio_balloon_new(struct vm *vm, struct virtio_device **ret);
/* NULL in @cb: none. */
void balloon_set_callbacks(struct virtio_device *d, const struct balloon_callbacks *cb);

/* The guest shall have @bytes of its RAM: the rest goes into the balloon. More than RAM is RAM.
 * Rounded down to pages. */
void balloon_set_target(struct virtio_device *d, u64 bytes);
u64 balloon_target(struct virtio_device *d);
/* What the guest has now, as it says. */
u64 balloon_actual(struct virtio_device *d);

/* Asks every @seconds; 0: not at all, which is how it starts. */
int balloon_set_stats_period(struct virtio_device *d, u32 seconds);
u32 balloon_stats_period(struct virtio_device *d);
void balloon_guest_stats(struct virtio_device *d, struct balloon_guest_stats *ret);
void balloon_counters(struct virtio_device *d, struct balloon_counters *ret);

/* Asks for all free memory, and discards it. -EOPNOTSUPP: the driver does not do that; -EBUSY: it
 * is at it. balloon_callbacks.hint_done tells of the end; the guest has its pages back then. */
int balloon_hint_start(struct virtio_device *d);

#endif
