/* SPDX-License-Identifier: MIT */
/*
 * Regions: what the VMM hands over, takes back, discards and replaces.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/procfs.h"
#include "hypervisor-hooks/agent.h"

void bh_region_free(struct bh_region *r)
{
	if (!r)
		return;
	free(r->mapped);
	free(r->pins);
	free(r->foreign);
	free(r->chunk_state);
	free(r->chunk_faults);
	for (u64 c = 0; r->out && c < DIV_ROUND_UP(r->bytes, CHUNK_BYTES); c++)
		free(r->out[c]);
	free(r->out);
	free(r->out_nr);
	free(r);
}

struct bh_region *region_find(struct bh_agent *a, u64 hva, u64 bytes)
{
	for (u32 i = 0; i < a->nr_regions; i++) {
		struct bh_region *r = a->regions[i];

		if (hva >= r->hva && bytes <= r->bytes && hva - r->hva <= r->bytes - bytes)
			return r;
	}
	return NULL;
}

/* Is all of [start, end) private anonymous memory that may be read and written? */
struct anon_check {
	u64 at, end;
	bool ok;
};

static int check_mapping(const struct procmap *m, void *arg)
{
	struct anon_check *c = arg;

	if (m->end <= c->at)
		return 0;
	c->ok = m->start <= c->at && m->ino == 0 && !m->shared && m->readable && m->writable;
	c->at = m->end;
	return !c->ok || c->at >= c->end;
}

static int check_memory(u64 hva, u64 bytes)
{
	struct anon_check c = { .at = hva, .end = hva + bytes };
	int r = procmaps_walk(getpid(), check_mapping, &c);

	if (r < 0)
		return r;
	return c.ok && c.at >= c.end ? 0 : -ENOTSUP;
}

static bool overlaps_region(const struct bh_agent *a, u64 hva, u64 bytes)
{
	for (u32 i = 0; i < a->nr_regions; i++)
		if (hva < a->regions[i]->hva + a->regions[i]->bytes &&
		    a->regions[i]->hva < hva + bytes)
			return true;
	return false;
}

static struct bh_region *region_new(const struct bh_agent *a, u64 hva, u64 bytes, u64 gpa,
				    const char *name)
{
	struct bh_region *r = calloc(1, sizeof(*r));
	u64 chunks = DIV_ROUND_UP(bytes, CHUNK_BYTES);

	if (!r)
		return NULL;
	r->hva = hva;
	r->bytes = bytes;
	r->gpa = gpa;
	snprintf(r->name, sizeof(r->name), "%s", name ? name : "");
	r->mapped = calloc(DIV_ROUND_UP(bytes >> PAGE_SHIFT, 64), sizeof(u64));
	r->foreign = calloc(DIV_ROUND_UP(bytes >> PAGE_SHIFT, 64), sizeof(u64));
	r->chunk_state = calloc(chunks, 1);
	r->chunk_faults = calloc(chunks, 1);
	r->out = calloc(chunks, sizeof(r->out[0]));
	r->out_nr = calloc(chunks, sizeof(r->out_nr[0]));
	/* Large and untouched: it costs memory only where something is pinned. */
	if (a->cfg.pins_exactly)
		r->pins = calloc(bytes >> PAGE_SHIFT, sizeof(r->pins[0]));
	if (r->mapped && r->foreign && r->chunk_state && r->chunk_faults && r->out && r->out_nr &&
	    (r->pins || !a->cfg.pins_exactly))
		return r;
	bh_region_free(r);
	return NULL;
}

int bh_region_add(struct bh_agent *a, void *at, size_t bytes, uint64_t gpa, const char *name)
{
	u64 hva = (u64)(uintptr_t)at;
	struct bh_region *r;
	int err;

	if (!page_aligned(hva) || !page_aligned(bytes) || !bytes || hva + bytes < hva || a->dead)
		return -EINVAL;
	err = check_memory(hva, bytes);
	if (err < 0)
		return err;
	r = region_new(a, hva, bytes, gpa, name);
	if (!r)
		return -ENOMEM;
	lock_urgent(a);
	if (overlaps_region(a, hva, bytes))
		err = -EEXIST;
	else if (a->nr_regions == WIRE_REGIONS_MAX)
		err = -ENOSPC;
	else
		err = region_track(a, r);
	if (err == 0)
		a->regions[a->nr_regions++] = r;
	pthread_mutex_unlock(&a->lock);
	if (err < 0) {
		bh_region_free(r);
		return err;
	}
	agent_kick(a);
	return 0;
}

static struct bh_region *forget_region(struct bh_agent *a, u32 i)
{
	struct bh_region *r = a->regions[i];

	pager_drop(a, r, 0, r->bytes >> PAGE_SHIFT);
	uffd_unregister(a->uffd, r->hva, r->bytes);
	if (r->announced && a->nr_deleted < WIRE_REGIONS_MAX)
		a->deleted[a->nr_deleted++] = (struct wire_range){ r->hva, r->bytes };
	else if (r->announced)
		a->resync = true;
	a->regions[i] = a->regions[--a->nr_regions];
	return r;
}

int bh_region_del(struct bh_agent *a, void *at, size_t bytes)
{
	struct bh_region *gone[WIRE_REGIONS_MAX];
	u64 hva = (u64)(uintptr_t)at;
	u32 nr = 0;

	if (a->dead)
		return -ENOENT;
	lock_urgent(a);
	for (u32 i = a->nr_regions; i-- > 0;) {
		struct bh_region *r = a->regions[i];

		if (hva >= r->hva + r->bytes || r->hva >= hva + bytes)
			continue;
		/* The VMM may go on using it (invariant 8). */
		pager_restore(a, r);
		gone[nr++] = forget_region(a, i);
	}
	pthread_mutex_unlock(&a->lock);
	for (u32 i = 0; i < nr; i++)
		bh_region_free(gone[i]);
	if (nr)
		agent_kick(a);
	return nr ? 0 : -ENOENT;
}

/* Queues a discard of merged pages for the daemon; neighbours become one range. */
static void queue_discard(struct bh_agent *a, const struct bh_region *r, u64 hva, u64 bytes)
{
	struct wire_range *last = a->nr_discards ? &a->discards[a->nr_discards - 1] : NULL;

	if (last && last->hva + last->bytes == hva && hva != r->hva)
		last->bytes += bytes;
	else if (a->nr_discards < BH_DISCARD_QUEUE)
		a->discards[a->nr_discards++] = (struct wire_range){ hva, bytes };
	else
		a->resync = true;
}

static int discard_in_region(struct bh_agent *a, struct bh_region *r, u64 page, u64 end, int advice)
{
	int first_err = 0, err;

	for (u64 nr; page < end; page += nr) {
		nr = same_kind(r, page, end);
		/*
		 * In a mapping of the store the kernel's way would bring back the store's page, or
		 * whatever is there by then (invariant 4). An empty anonymous mapping is what the
		 * VMM asked for: zeros.
		 */
		if (page_kind(r, page) == PAGE_MAPPED) {
			err = region_replace_anon(a, r, page, nr);
			if (err == 0)
				queue_discard(a, r, page_hva(r, page), nr << PAGE_SHIFT);
		} else {
			err = kernel_madvise((void *)(uintptr_t)page_hva(r, page), nr << PAGE_SHIFT,
					     advice) < 0
				      ? -errno
				      : 0;
			/* Only now: what could not be discarded is still the guest's. */
			if (err == 0)
				pager_drop(a, r, page, nr);
		}
		if (first_err == 0)
			first_err = err;
	}
	return first_err;
}

bool region_unmap(struct bh_agent *a, u64 hva, u64 bytes)
{
	u64 page, end;
	struct bh_region *r;
	bool done = true;

	lock_urgent(a);
	r = region_find(a, hva, bytes);
	page = r ? (hva - r->hva) >> PAGE_SHIFT : 0;
	end = r ? page + (bytes >> PAGE_SHIFT) : 0;
	for (u64 nr; page < end; page += nr) {
		nr = same_kind(r, page, end);
		if (page_kind(r, page) != PAGE_MAPPED)
			continue;
		if (region_replace_anon(a, r, page, nr) == 0)
			queue_discard(a, r, page_hva(r, page), nr << PAGE_SHIFT);
		else
			done = false;
	}
	pthread_mutex_unlock(&a->lock);
	agent_kick(a);
	return done;
}

/* The region that holds @at, and how much of [at, end) lies in it; or in none, up to the next one.
 */
static struct bh_region *region_part(struct bh_agent *a, u64 at, u64 end, u64 *ret_end)
{
	*ret_end = end;
	for (u32 i = 0; i < a->nr_regions; i++) {
		struct bh_region *r = a->regions[i];

		if (at >= r->hva && at < r->hva + r->bytes) {
			*ret_end = MIN(end, r->hva + r->bytes);
			return r;
		}
		if (r->hva > at)
			*ret_end = MIN(*ret_end, r->hva);
	}
	return NULL;
}

int bh_discard(struct bh_agent *a, void *from, size_t bytes, int advice)
{
	u64 hva = (u64)(uintptr_t)from, end = hva + ROUND_UP(bytes, PAGE_BYTES), part_end;
	int err = 0;
	bool tell;

	if (a->dead)
		return -ENOENT;
	if (!page_aligned(hva) || end <= hva)
		return -EINVAL;
	lock_urgent(a);
	if (!overlaps_region(a, hva, end - hva))
		err = -ENOENT;
	for (u64 at = hva; err == 0 && at < end; at = part_end) {
		struct bh_region *r = region_part(a, at, end, &part_end);
		u64 page, page_end;

		if (!r) {
			if (kernel_madvise((void *)(uintptr_t)at, part_end - at, advice) < 0)
				err = -errno;
			continue;
		}
		page = (at - r->hva) >> PAGE_SHIFT;
		page_end = (part_end - r->hva) >> PAGE_SHIFT;
		err = discard_in_region(a, r, page, page_end, advice);
		/* An emptied chunk is let go: its first touches shall be the kernel's again. */
		for (u64 c = DIV_ROUND_UP(page, CHUNK_PAGES); (c + 1) * CHUNK_PAGES <= page_end;
		     c++)
			chunk_release(a, r, c);
	}
	tell = a->nr_discards || a->resync;
	pthread_mutex_unlock(&a->lock);
	if (tell)
		agent_kick(a);
	return err;
}

bool region_for_each_part(struct bh_agent *a, const void *from, size_t bytes, region_part_fn fn)
{
	u64 hva = ROUND_DOWN((u64)(uintptr_t)from, PAGE_BYTES);
	u64 end = ROUND_UP((u64)(uintptr_t)from + bytes, PAGE_BYTES), part_end;
	bool found = false;

	if (a->dead)
		return false;
	lock_urgent(a);
	for (u64 at = hva; at < end; at = part_end) {
		struct bh_region *r = region_part(a, at, end, &part_end);

		if (r)
			fn(a, r, (at - r->hva) >> PAGE_SHIFT, (part_end - at) >> PAGE_SHIFT);
		found = found || r;
	}
	pthread_mutex_unlock(&a->lock);
	return found;
}

static void mark_foreign(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	page_set_foreign(r, page, nr);
}

static void tell_replaced(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	/* What was out belongs to what was there before. */
	pager_drop(a, r, page, nr);
	queue_discard(a, r, page_hva(r, page), nr << PAGE_SHIFT);
}

void bh_replace_begin(struct bh_agent *a, void *hva, size_t bytes)
{
	/* No page may be moved out of a mapping that is not registered (invariant 1). */
	region_for_each_part(a, hva, bytes, mark_foreign);
}

void bh_replace_end(struct bh_agent *a, void *hva, size_t bytes)
{
	if (region_for_each_part(a, hva, bytes, tell_replaced))
		agent_kick(a);
}

void bh_region_advise(struct bh_agent *a, void *at, size_t bytes, int advice)
{
	u64 hva = (u64)(uintptr_t)at;
	struct bh_region *r;

	if (a->dead)
		return;
	lock_urgent(a);
	r = region_find(a, hva, bytes);
	if (r) {
		switch (advice) {
		case MADV_DONTFORK:
		case MADV_DOFORK:
			/* A child finds all of it. */
			if (advice == MADV_DOFORK)
				pager_restore(a, r);
			r->dont_fork = advice == MADV_DONTFORK;
			break;
		case MADV_DONTDUMP:
		case MADV_DODUMP:
			r->dont_dump = advice == MADV_DONTDUMP;
			break;
		case MADV_HUGEPAGE:
		case MADV_NOHUGEPAGE:
			r->huge = advice == MADV_HUGEPAGE;
			break;
		}
	}
	pthread_mutex_unlock(&a->lock);
}

/* Marks what bh_invalidate() is about, so that no step touches it meanwhile. -EBUSY: it is under
 * DMA. */
static int invalidate_begin(struct bh_agent *a, u64 hva, u64 bytes, struct wire_range *ret, u32 *nr)
{
	int err = 0;

	*nr = 0;
	lock_urgent(a);
	for (u32 i = 0; i < a->nr_regions && err == 0; i++) {
		const struct bh_region *r = a->regions[i];

		if (hva >= r->hva + r->bytes || r->hva >= hva + bytes)
			continue;
		for (u64 p = 0; r->pins && p < r->bytes >> PAGE_SHIFT && err == 0; p++)
			err = r->pins[p] ? -EBUSY : 0;
		ret[(*nr)++] = (struct wire_range){ r->hva, r->bytes };
	}
	for (u32 i = 0; i < *nr && err == 0; i++) {
		struct bh_region *r = region_find(a, ret[i].hva, ret[i].bytes);

		page_set_foreign(r, 0, r->bytes >> PAGE_SHIFT);
	}
	pthread_mutex_unlock(&a->lock);
	return *nr ? err : -ENOENT;
}

/* The same region once more, as if it had just been handed over. */
static int region_renew(struct bh_agent *a, const struct wire_range *range)
{
	struct bh_region *old, *r = region_new(a, range->hva, range->bytes, 0, NULL);
	int err = r ? check_memory(range->hva, range->bytes) : -ENOMEM;

	lock_urgent(a);
	old = region_find(a, range->hva, range->bytes);
	if (!old || old->bytes != range->bytes) {
		/* bh_region_del() came first. */
		old = NULL;
		err = -ENOENT;
	}
	for (u32 i = 0; old && i < a->nr_regions; i++) {
		if (a->regions[i] == old) {
			forget_region(a, i);
			break;
		}
	}
	if (err == 0) {
		r->gpa = old->gpa;
		memcpy(r->name, old->name, sizeof(r->name));
		r->dont_fork = old->dont_fork;
		r->dont_dump = old->dont_dump;
		r->huge = old->huge;
		err = region_track(a, r);
	}
	/* There is room: its predecessor went. */
	if (err == 0)
		a->regions[a->nr_regions++] = r;
	pthread_mutex_unlock(&a->lock);
	bh_region_free(old);
	if (err < 0)
		bh_region_free(r);
	return err;
}

int bh_invalidate(struct bh_agent *a, void *at, size_t bytes)
{
	struct wire_range ranges[WIRE_REGIONS_MAX];
	int err, first_err;
	u32 nr;

	if (a->dead)
		return -ENOENT;
	first_err = invalidate_begin(a, (u64)(uintptr_t)at, bytes, ranges, &nr);
	if (first_err < 0)
		return first_err;
	for (u32 i = 0; i < nr; i++) {
		err = region_renew(a, &ranges[i]);
		first_err = first_err ? first_err : err;
	}
	agent_kick(a);
	return first_err;
}
