// SPDX-License-Identifier: GPL-2.0
/*
 * Statistics (virtio 1.2, section 5.5.6.3): one buffer, which the host gives back when it wants new
 * ones. After the standard tags come ours (docs/BALLOON-RANGES.md); a host passes over tags that it
 * does not know.
 */
#include <linux/mm.h>
#include <linux/swap.h>
#include <linux/vmstat.h>
#include "balloon.h"

/* Linux 6.12's; the numbers are the device's (virtio_balloon.h of 6.12). */
enum {
	S_OOM_KILL = 10,
	S_ALLOC_STALL,
	S_ASYNC_SCAN,
	S_DIRECT_SCAN,
	S_ASYNC_RECLAIM,
	S_DIRECT_RECLAIM,
};

static unsigned int add(struct bb *b, unsigned int i, u16 tag, u64 value)
{
	if (WARN_ON_ONCE(i >= BB_NR_STATS))
		return i;
	b->stats[i].tag = cpu_to_virtio16(b->vdev, tag);
	b->stats[i].val = cpu_to_virtio64(b->vdev, value);
	return i + 1;
}

static unsigned int fill(struct bb *b)
{
	unsigned long events[NR_VM_EVENT_ITEMS];
	unsigned long stalls = 0;
	unsigned int n = 0, zone;
	struct sysinfo si;

	all_vm_events(events);
	si_meminfo(&si);
	n = add(b, n, VIRTIO_BALLOON_S_SWAP_IN, (u64)events[PSWPIN] << PAGE_SHIFT);
	n = add(b, n, VIRTIO_BALLOON_S_SWAP_OUT, (u64)events[PSWPOUT] << PAGE_SHIFT);
	n = add(b, n, VIRTIO_BALLOON_S_MAJFLT, events[PGMAJFAULT]);
	n = add(b, n, VIRTIO_BALLOON_S_MINFLT, events[PGFAULT]);
#ifdef CONFIG_HUGETLB_PAGE
	n = add(b, n, VIRTIO_BALLOON_S_HTLB_PGALLOC, events[HTLB_BUDDY_PGALLOC]);
	n = add(b, n, VIRTIO_BALLOON_S_HTLB_PGFAIL, events[HTLB_BUDDY_PGALLOC_FAIL]);
#endif
	n = add(b, n, VIRTIO_BALLOON_S_MEMFREE, (u64)si.freeram << PAGE_SHIFT);
	n = add(b, n, VIRTIO_BALLOON_S_MEMTOT, (u64)si.totalram << PAGE_SHIFT);
	n = add(b, n, VIRTIO_BALLOON_S_AVAIL, (u64)max(si_mem_available(), 0L) << PAGE_SHIFT);
	n = add(b, n, VIRTIO_BALLOON_S_CACHES,
		(u64)global_node_page_state(NR_FILE_PAGES) << PAGE_SHIFT);
	for (zone = 0; zone < MAX_NR_ZONES; zone++)
		stalls += events[ALLOCSTALL_NORMAL - ZONE_NORMAL + zone];
	n = add(b, n, S_OOM_KILL, events[OOM_KILL]);
	n = add(b, n, S_ALLOC_STALL, stalls);
	n = add(b, n, S_ASYNC_SCAN, (u64)events[PGSCAN_KSWAPD] << PAGE_SHIFT);
	n = add(b, n, S_DIRECT_SCAN, (u64)events[PGSCAN_DIRECT] << PAGE_SHIFT);
	n = add(b, n, S_ASYNC_RECLAIM, (u64)events[PGSTEAL_KSWAPD] << PAGE_SHIFT);
	n = add(b, n, S_DIRECT_RECLAIM, (u64)events[PGSTEAL_DIRECT] << PAGE_SHIFT);
	n = add(b, n, BB_STAT_REASON, b->reason);
	return add(b, n, BB_STAT_GIVEN_BACK, b->given_back);
}

static void send(struct bb *b)
{
	struct virtqueue *vq = b->vq[BB_VQ_STATS];
	struct scatterlist sg;

	sg_init_one(&sg, b->stats, fill(b) * sizeof(b->stats[0]));
	if (virtqueue_add_outbuf(vq, &sg, 1, b, GFP_KERNEL) == 0)
		virtqueue_kick(vq);
}

static void on_stats(struct work_struct *work)
{
	struct bb *b = container_of(work, struct bb, stats_work);
	unsigned int len;

	/* Only what the host gave back is ours to fill. */
	if (virtqueue_get_buf(b->vq[BB_VQ_STATS], &len))
		send(b);
}

void bb_stats_request(struct virtqueue *vq)
{
	struct bb *b = vq->vdev->priv;
	unsigned long flags;

	spin_lock_irqsave(&b->stop_lock, flags);
	if (!b->stopping)
		queue_work(b->wq, &b->stats_work);
	spin_unlock_irqrestore(&b->stop_lock, flags);
}

void bb_stats_init(struct bb *b)
{
	INIT_WORK(&b->stats_work, on_stats);
}

/* The host has the buffer from the beginning. */
void bb_stats_start(struct bb *b)
{
	send(b);
}
