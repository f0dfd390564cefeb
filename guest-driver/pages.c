// SPDX-License-Identifier: GPL-2.0
/*
 * Which memory the balloon takes and gives back.
 *
 * Taken: free blocks of 2 MiB first, without any reclaim or compaction, so that the host gets whole
 * huge pages and the guest loses no page cache for them; only then small pages, for which kswapd
 * may reclaim in the background. The driver never reclaims itself: that would be a stall of a task
 * for want of memory, which is what makes it give memory back. Given back: small pages first, so
 * that blocks stay whole.
 *
 * The host is told before a page is given back: it discards what it was told is taken, and must not
 * discard a page that is in use again.
 *
 * Small pages are of the kernel's balloon compaction (mm/balloon_compaction.c), so that they do not
 * stand in the way of huge pages and of memory unplug.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/vmstat.h>
#include "balloon.h"

/* The page allocator's free lists or nothing. */
#define HUGE_FLAGS \
	((GFP_HIGHUSER & ~__GFP_RECLAIM) | __GFP_NORETRY | __GFP_NOMEMALLOC | __GFP_NOWARN)

#define SMALL_FLAGS                                                                                \
	((balloon_mapping_gfp_mask() & ~__GFP_DIRECT_RECLAIM) | __GFP_NORETRY | __GFP_NOMEMALLOC | \
	 __GFP_NOWARN)

static u64 frame_of(struct page *page)
{
	return (u64)page_to_pfn(page) << (PAGE_SHIFT - VIRTIO_BALLOON_PFN_SHIFT);
}

/* The guest's own figure for its memory; as the stock driver, not where the host may be asked for
 * everything back at any time. */
static void account(struct bb *b, struct page *page, long nr)
{
	if (!virtio_has_feature(b->vdev, VIRTIO_BALLOON_F_DEFLATE_ON_OOM))
		adjust_managed_page_count(page, nr);
}

/* Sends what is in the buffer. */
static bool flush(struct bb *b, struct virtqueue *vq)
{
	unsigned int entry = b->ranges ? sizeof(__le64) : sizeof(__le32), nr = b->nr_buf;

	b->nr_buf = 0;
	return !nr || bb_tell(b, vq, b->buf, nr * entry);
}

/* Says that the block of 1 << @order frames is taken, or given back. */
static bool say(struct bb *b, struct virtqueue *vq, struct page *page, unsigned int order)
{
	u64 frame = frame_of(page);
	unsigned int i;

	if (b->ranges) {
		b->buf->ranges[b->nr_buf++] =
			cpu_to_le64(frame << VIRTIO_BALLOON_PFN_SHIFT | order);
		return b->nr_buf < BB_RANGES || flush(b, vq);
	}
	for (i = 0; i < 1u << order; i++) {
		b->buf->pfns[b->nr_buf++] = cpu_to_le32((u32)(frame + i));
		if (b->nr_buf == BB_PFNS && !flush(b, vq))
			return false;
	}
	return true;
}

/* Is there so much left that the guest can do without @nr more? */
static bool can_spare(unsigned long nr)
{
	return (unsigned long)max(si_mem_available(), 0L) >= bb_reserve() + nr;
}

unsigned long bb_inflate(struct bb *b, unsigned long nr)
{
	struct virtqueue *vq = b->vq[BB_VQ_INFLATE];
	unsigned long done = 0;
	bool huge = true;

	while (done < nr) {
		unsigned int order = huge && nr - done >= BB_HUGE_PAGES ? BB_HUGE_ORDER : 0;
		struct page *page = NULL;

		if (can_spare(1ul << order))
			page = alloc_pages(order ? HUGE_FLAGS : SMALL_FLAGS, order);
		if (!page && order) {
			huge = false; /* not in this round */
			continue;
		}
		if (!page)
			break;
		if (order) {
			list_add(&page->lru, &b->huge);
			b->nr_huge++;
		} else {
			balloon_page_enqueue(&b->small, page);
			b->nr_small++;
		}
		account(b, page, -(1l << order));
		done += 1ul << order;
		if (!say(b, vq, page, order))
			return done;
		cond_resched();
	}
	flush(b, vq);
	return done;
}

/* The host knows that these are ours again: now they may be. */
static void release(struct bb *b, struct list_head *pages, unsigned int order)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, pages, lru)
	{
		list_del(&page->lru);
		account(b, page, 1l << order);
		__free_pages(page, order);
	}
}

static unsigned long give_back_small(struct bb *b, unsigned long nr)
{
	struct virtqueue *vq = b->vq[BB_VQ_DEFLATE];
	unsigned long done = 0;

	while (done < nr) {
		LIST_HEAD(leaving);
		struct page *page;
		/* Fewer than asked for while the kernel moves some. */
		size_t n = balloon_page_list_dequeue(&b->small, &leaving,
						     min_t(size_t, nr - done, BB_PFNS / 2));

		if (!n)
			break;
		list_for_each_entry(page, &leaving, lru) say(b, vq, page, 0);
		flush(b, vq);
		release(b, &leaving, 0);
		b->nr_small -= n;
		done += n;
		cond_resched();
	}
	return done;
}

static unsigned long give_back_huge(struct bb *b, unsigned long nr)
{
	struct virtqueue *vq = b->vq[BB_VQ_DEFLATE];
	unsigned long done = 0;
	LIST_HEAD(leaving);

	while (done < nr && !list_empty(&b->huge)) {
		struct page *page = list_first_entry(&b->huge, struct page, lru);

		list_move(&page->lru, &leaving);
		say(b, vq, page, BB_HUGE_ORDER);
		b->nr_huge--;
		done++;
	}
	flush(b, vq);
	release(b, &leaving, BB_HUGE_ORDER);
	return done << BB_HUGE_ORDER;
}

unsigned long bb_deflate(struct bb *b, unsigned long nr)
{
	unsigned long done = give_back_small(b, nr);

	/* A part of a block cannot be given back. */
	if (done < nr)
		done += give_back_huge(b, DIV_ROUND_UP(nr - done, BB_HUGE_PAGES));
	return done;
}

#ifdef CONFIG_BALLOON_COMPACTION
/* As drivers/virtio/virtio_balloon.c, virtballoon_migratepage(). */
static int migrate(struct balloon_dev_info *info, struct page *to, struct page *from,
		   enum migrate_mode mode)
{
	struct bb *b = container_of(info, struct bb, small);
	unsigned long flags;

	/* The holder may be waiting for this very migration. */
	if (!mutex_trylock(&b->lock))
		return -EAGAIN;
	get_page(to);
	if (page_zone(from) != page_zone(to)) {
		account(b, from, 1);
		account(b, to, -1);
	}
	spin_lock_irqsave(&info->pages_lock, flags);
	balloon_page_insert(info, to);
	info->isolated_pages--;
	__count_vm_event(BALLOON_MIGRATE);
	spin_unlock_irqrestore(&info->pages_lock, flags);
	say(b, b->vq[BB_VQ_INFLATE], to, 0);
	flush(b, b->vq[BB_VQ_INFLATE]);

	say(b, b->vq[BB_VQ_DEFLATE], from, 0);
	flush(b, b->vq[BB_VQ_DEFLATE]);
	mutex_unlock(&b->lock);
	balloon_page_finalize(from);
	put_page(from);
	return MIGRATEPAGE_SUCCESS;
}
#endif

void bb_pages_init(struct bb *b)
{
	INIT_LIST_HEAD(&b->huge);
	balloon_devinfo_init(&b->small);
#ifdef CONFIG_BALLOON_COMPACTION
	b->small.migratepage = migrate;
#endif
}
