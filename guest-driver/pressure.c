// SPDX-License-Identifier: GPL-2.0
/*
 * The guest's own need comes before the host's wish (invariant 10). Four signs, the earliest first:
 *
 * - stalls: allocations wait for reclaim, or pages that were just dropped are read again
 * - available: less than the reserve is left
 * - shrinker: reclaim runs while less than the reserve is left
 * - OOM: the kernel is about to kill a process
 *
 * Each gives memory back at once, and nothing is taken again for a time.
 *
 * PSI would be the better first sign, but a module has no way to it: its triggers are not exported,
 * and /proc/pressure/memory cannot be read inside the kernel (it has no read_iter).
 */
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmstat.h>
#include "balloon.h"

static unsigned int reserve_mib = 16;
module_param(reserve_mib, uint, 0644);
MODULE_PARM_DESC(
	reserve_mib,
	"memory that stays available to the guest beyond the kernel's own reserves (16; never less than a 32nd of it all)");

static unsigned int stalls = 10;
module_param(stalls, uint, 0644);
MODULE_PARM_DESC(
	stalls,
	"give memory back when so many allocations a second wait for reclaim (10; 0: never)");

static unsigned int refault_mib = 16;
module_param(refault_mib, uint, 0644);
MODULE_PARM_DESC(refault_mib,
		 "or so much a second is read again that was just dropped (16; 0: never)");

static unsigned int hold_off_s = 60;
module_param(hold_off_s, uint, 0644);
MODULE_PARM_DESC(hold_off_s, "take nothing for so long after memory was given back (60)");

#define WATCH HZ
/* Given back at a time: an eighth of the balloon, 64 MiB at least. */
#define PART	   8
#define PART_LEAST (64ul << 20 >> VIRTIO_BALLOON_PFN_SHIFT)
/* A guest that is out of memory gets that at once. */
#define OOM_PAGES (64ul << 20 >> VIRTIO_BALLOON_PFN_SHIFT)

unsigned long bb_reserve(void)
{
	return max(totalram_pages() / 32, (unsigned long)reserve_mib << (20 - PAGE_SHIFT));
}

static unsigned long available(void)
{
	return (unsigned long)max(si_mem_available(), 0L);
}

bool bb_may_inflate(struct bb *b)
{
	if (b->held && time_before(jiffies, b->hold_until))
		return false;
	b->held = false;
	return true;
}

/* With @lock held. */
static unsigned long give_back(struct bb *b, unsigned long nr, enum bb_reason reason)
{
	unsigned long done = bb_deflate(b, nr);

	if (!done)
		return 0;
	b->reason = reason;
	b->given_back += (u64)done << VIRTIO_BALLOON_PFN_SHIFT;
	b->hold_until = jiffies + hold_off_s * HZ;
	b->held = true;
	bb_update_actual(b);
	return done;
}

static unsigned long stalls_total(void)
{
	unsigned long events[NR_VM_EVENT_ITEMS], sum = 0;
	unsigned int zone;

	all_vm_events(events);
	for (zone = 0; zone < MAX_NR_ZONES; zone++)
		sum += events[ALLOCSTALL_NORMAL - ZONE_NORMAL + zone];
	return sum;
}

static unsigned long refaults_total(void)
{
	return global_node_page_state(WORKINGSET_REFAULT_ANON) +
	       global_node_page_state(WORKINGSET_REFAULT_FILE);
}

/* So many more than at the last look, a second ago? */
static bool grew(unsigned long *last, unsigned long now, unsigned long limit)
{
	unsigned long by = now - *last;

	*last = now;
	return limit && by >= limit;
}

static void on_watch(struct work_struct *work)
{
	struct bb *b = container_of(to_delayed_work(work), struct bb, watch);
	bool stalled = grew(&b->stalls, stalls_total(), stalls);
	bool refaulted = grew(&b->refaults, refaults_total(),
			      (unsigned long)refault_mib << (20 - PAGE_SHIFT));
	enum bb_reason reason = BB_NONE;

	if (b->watched && (stalled || refaulted))
		reason = BB_STALLS;
	b->watched = true;
	if (available() < bb_reserve() / 2)
		reason = BB_AVAILABLE;
	if (reason != BB_NONE) {
		mutex_lock(&b->lock);
		give_back(b, max(bb_size(b) / PART, PART_LEAST), reason);
		mutex_unlock(&b->lock);
	}
	queue_delayed_work(b->wq, &b->watch, WATCH);
}

static int on_oom(struct notifier_block *nb, unsigned long unused, void *freed)
{
	struct bb *b = container_of(nb, struct bb, oom);

	/* Who holds it may be allocating, and then it was that allocation that found no memory: it
	 * fails by itself, as it asks for no more than there is. */
	if (!mutex_trylock(&b->lock))
		return NOTIFY_OK;
	*(unsigned long *)freed += give_back(b, OOM_PAGES, BB_OOM);
	mutex_unlock(&b->lock);
	return NOTIFY_OK;
}

static struct bb *shrinker_bb(struct shrinker *s)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
	return s->private_data;
#else
	return container_of(s, struct bb, shrinker_old);
#endif
}

/* Ordinary reclaim of the page cache is what a balloon is for; below the reserve it is not. */
static unsigned long count_objects(struct shrinker *s, struct shrink_control *sc)
{
	struct bb *b = shrinker_bb(s);

	return available() < bb_reserve()
		       ? READ_ONCE(b->nr_small) + READ_ONCE(b->nr_huge) * BB_HUGE_PAGES
		       : 0;
}

static unsigned long scan_objects(struct shrinker *s, struct shrink_control *sc)
{
	struct bb *b = shrinker_bb(s);
	unsigned long done;

	/* Who waits for the host sleeps. */
	if (!(sc->gfp_mask & __GFP_DIRECT_RECLAIM) || !mutex_trylock(&b->lock))
		return SHRINK_STOP;
	done = give_back(b, sc->nr_to_scan, BB_SHRINKER);
	mutex_unlock(&b->lock);
	return done ?: SHRINK_STOP;
}

static int start_shrinker(struct bb *b)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
	b->shrinker = shrinker_alloc(0, "ballast-balloon");
	if (!b->shrinker)
		return -ENOMEM;
	b->shrinker->private_data = b;
#else
	b->shrinker = &b->shrinker_old;
#endif
	b->shrinker->count_objects = count_objects;
	b->shrinker->scan_objects = scan_objects;
	b->shrinker->seeks = DEFAULT_SEEKS;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
	shrinker_register(b->shrinker);
	return 0;
#else
	return register_shrinker(b->shrinker, "ballast-balloon");
#endif
}

static void stop_shrinker(struct bb *b)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
	shrinker_free(b->shrinker);
#else
	unregister_shrinker(b->shrinker);
#endif
}

int bb_pressure_start(struct bb *b)
{
	int err = start_shrinker(b);

	if (err)
		return err;
	b->oom.notifier_call = on_oom;
	err = register_oom_notifier(&b->oom);
	if (err) {
		stop_shrinker(b);
		return err;
	}
	INIT_DELAYED_WORK(&b->watch, on_watch);
	queue_delayed_work(b->wq, &b->watch, WATCH);
	return 0;
}

void bb_pressure_stop(struct bb *b)
{
	cancel_delayed_work_sync(&b->watch);
	unregister_oom_notifier(&b->oom);
	stop_shrinker(b);
}
