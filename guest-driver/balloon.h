/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ballast_balloon: a driver for the virtio balloon device (virtio 1.2, section 5.5) that takes and
 * gives memory in blocks of 2 MiB where it can, and gives it back by itself when the guest needs
 *it.
 *
 *	main.c		probe and remove, features, the target, suspend and resume
 *	pages.c		which memory is taken and given back, and how the host is told
 *	pressure.c	the guest's own need: stalls, available memory, shrinker, OOM notifier
 *	stats.c		statistics for the host
 *	reporting.c	free page reporting
 *
 * docs/BALLOON-RANGES.md specifies what is negotiated beyond the standard with a host that offers
 *it.
 *
 * Locking: @lock is held while pages move and while the inflate and deflate queues are used; who
 * comes from memory reclaim only tries it, since the holder may be allocating.
 */
#ifndef BALLAST_BALLOON_H
#define BALLAST_BALLOON_H

#include <linux/balloon_compaction.h>
#include <linux/mutex.h>
#include <linux/oom.h>
#include <linux/page_reporting.h>
#include <linux/shrinker.h>
#include <linux/version.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

/* Feature bit of a device type (virtio 1.2, section 2.2: 50 and up); docs/BALLOON-RANGES.md. */
#define BB_F_RANGES   57

#define BB_HUGE_ORDER 9
#define BB_HUGE_PAGES (1u << BB_HUGE_ORDER) /* frames of 4 KiB in a block of 2 MiB */
/* Entries of a buffer: a page of 32-bit frame numbers, half a page of 64-bit ranges. */
#define BB_PFNS	  1024
#define BB_RANGES 256

/* Why memory was given back against the host's wish; tags and values of docs/BALLOON-RANGES.md. */
enum bb_reason {
	BB_NONE,
	BB_STALLS,
	BB_AVAILABLE,
	BB_SHRINKER,
	BB_OOM,
};

#define BB_STAT_REASON	   0xba00
#define BB_STAT_GIVEN_BACK 0xba02
#define BB_NR_STATS	   20 /* the kernel's and ours, at most */

enum bb_vq {
	BB_VQ_INFLATE,
	BB_VQ_DEFLATE,
	BB_VQ_STATS,
	BB_VQ_FREE_PAGE, /* never used: the hinting feature is not accepted */
	BB_VQ_REPORTING,
	BB_NR_VQS,
};

struct bb {
	struct virtio_device *vdev;
	struct virtqueue *vq[BB_NR_VQS]; /* NULL: not negotiated */
	bool ranges;			 /* BB_F_RANGES */
	wait_queue_head_t acked;

	struct mutex lock;
	struct list_head huge;	       /* blocks taken, by page->lru */
	struct balloon_dev_info small; /* single pages, which the kernel may move */
	unsigned long nr_huge, nr_small;
	union {
		__le32 pfns[BB_PFNS];
		__le64 ranges[BB_RANGES];
	} * buf;
	unsigned int nr_buf; /* entries in @buf */

	struct workqueue_struct *wq;
	struct delayed_work resize;
	bool stopping; /* under @stop_lock: no work is queued any more */
	spinlock_t stop_lock;

	/* pressure.c */
	struct delayed_work watch;
	struct notifier_block oom;
	struct shrinker *shrinker;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
	struct shrinker shrinker_old;
#endif
	unsigned long stalls, refaults; /* as last seen */
	bool watched;
	unsigned long hold_until; /* jiffies: until then nothing is taken */
	bool held;
	enum bb_reason reason; /* of the last time */
	u64 given_back;	       /* bytes, by our own decision */

	/* stats.c */
	struct work_struct stats_work;
	struct virtio_balloon_stat stats[BB_NR_STATS];

	/* reporting.c */
	struct page_reporting_dev_info reporting;
	bool reports;
};

/* main.c */
void bb_queue_resize(struct bb *b, unsigned long delay);
void bb_update_actual(struct bb *b);
/* Adds @nr bytes at @data to a queue and waits until the host has seen them. False: the device is
 * broken. */
bool bb_tell(struct bb *b, struct virtqueue *vq, void *data, unsigned int bytes);

/* pages.c. Frames of 4 KiB; but for the first, with @lock held. */
void bb_pages_init(struct bb *b);
static inline unsigned long bb_size(const struct bb *b)
{
	return b->nr_huge * BB_HUGE_PAGES + b->nr_small;
}
/* Returns how many frames were taken; less than @nr: the guest has no more to spare. */
unsigned long bb_inflate(struct bb *b, unsigned long nr);
/* Gives back small pages first. Returns how many frames. */
unsigned long bb_deflate(struct bb *b, unsigned long nr);

/* pressure.c */
int bb_pressure_start(struct bb *b);
void bb_pressure_stop(struct bb *b);
/* Memory that the guest keeps whatever the host wishes, in frames. */
unsigned long bb_reserve(void);
bool bb_may_inflate(struct bb *b);

/* stats.c */
void bb_stats_init(struct bb *b);
void bb_stats_start(struct bb *b);
void bb_stats_request(struct virtqueue *vq);

/* reporting.c */
int bb_reporting_start(struct bb *b);
void bb_reporting_stop(struct bb *b);

#endif
