/* SPDX-License-Identifier: MIT */
/*
 * How guest memory is registered.
 *
 * A region starts TRACKED: registered for asynchronous write-protection alone, which costs the
 * guest no trap, keeps huge pages on first touch, and lets the daemon ask the kernel which pages
 * were written. A 2 MiB chunk is ADOPTED (MISSING as well) just before pages of it are moved,
 * because a page may leave the guest only while accesses to the hole wait (invariant 1). Adopted
 * memory traps on first touch, so a chunk that turns out to be full of holes is released again.
 * Where registering fails a chunk is UNWATCHED: parts of it may be registered with MISSING, or not
 * at all. No page is moved out of it then, and the link thread tries again.
 *
 * Pages in a mapping of the store (the mapped bit) are registered with neither context.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "hypervisor-hooks/agent.h"

#define MODE_TRACKED UFFDIO_REGISTER_MODE_WP
#define MODE_ADOPTED (UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING)

/* A second: what does not pass in that time is no shortage that passes. */
#define UNPROTECT_TRIES	   1000
#define UNPROTECT_PAUSE_US 1000

static u64 chunk_first(u64 chunk)
{
	return chunk * CHUNK_PAGES;
}

static u64 chunk_end(const struct bh_region *r, u64 chunk)
{
	return MIN((chunk + 1) * CHUNK_PAGES, r->bytes >> PAGE_SHIFT);
}

int region_track(struct bh_agent *a, struct bh_region *r)
{
	return uffd_register(a->uffd, r->hva, r->bytes, MODE_TRACKED);
}

/* Registers the anonymous parts of [page, end). */
static int register_anon(struct bh_agent *a, struct bh_region *r, u64 page, u64 end, u64 mode)
{
	for (u64 nr; page < end; page += nr) {
		int err;

		nr = same_kind(r, page, end);
		if (page_kind(r, page) != PAGE_ANONYMOUS)
			continue;
		err = uffd_register(a->uffd, page_hva(r, page), nr << PAGE_SHIFT, mode);
		if (err < 0)
			return err;
	}
	return 0;
}

int region_adopt(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	for (u64 c = page / CHUNK_PAGES; c <= (page + nr - 1) / CHUNK_PAGES; c++) {
		int err;

		if (r->chunk_state[c] == CHUNK_ADOPTED)
			continue;
		err = register_anon(a, r, chunk_first(c), chunk_end(r, c), MODE_ADOPTED);
		if (err < 0)
			return err;
		r->chunk_state[c] = CHUNK_ADOPTED;
		r->chunk_faults[c] = 0;
	}
	return 0;
}

/* What a chunk is registered for when nothing is about to be moved out of it: where pages are out
 * already (pager.c), their holes must trap on. */
static u64 resting_mode(const struct bh_region *r, u64 chunk)
{
	return r->out_nr[chunk] ? MODE_ADOPTED : MODE_TRACKED;
}

/* On failure the memory is merely not watched: its pages stay private (invariant 7) until the link
 * thread has tried again. */
static void chunk_watch(struct bh_agent *a, struct bh_region *r, u64 chunk)
{
	u64 mode = resting_mode(r, chunk);
	bool watched = register_anon(a, r, chunk_first(chunk), chunk_end(r, chunk), mode) == 0;

	r->chunk_state[chunk] = !watched	       ? CHUNK_UNWATCHED
				: mode == MODE_ADOPTED ? CHUNK_ADOPTED
						       : CHUNK_TRACKED;
	if (!watched)
		a->unwatched = true;
}

void chunk_release(struct bh_agent *a, struct bh_region *r, u64 chunk)
{
	u64 end = chunk_end(r, chunk);

	if (r->chunk_state[chunk] != CHUNK_ADOPTED || r->out_nr[chunk])
		return;
	/*
	 * The kernel has no way to take MISSING off a registration but to drop it all. That wakes
	 * those who wait for a hole to be filled: they fault again and get their zero page from the
	 * kernel, which is right, since with @lock held no page is out of the guest. What the chunk
	 * forgets (which pages are unwritten) only makes the daemon look at it again.
	 */
	for (u64 p = chunk_first(chunk), nr; p < end; p += nr) {
		nr = same_kind(r, p, end);
		if (page_kind(r, p) == PAGE_ANONYMOUS)
			uffd_unregister(a->uffd, page_hva(r, p), nr << PAGE_SHIFT);
	}
	chunk_watch(a, r, chunk);
}

void regions_watch(struct bh_agent *a)
{
	a->unwatched = false;
	for (u32 i = 0; i < a->nr_regions; i++) {
		struct bh_region *r = a->regions[i];

		for (u64 c = 0; c < DIV_ROUND_UP(r->bytes, CHUNK_BYTES); c++)
			if (r->chunk_state[c] == CHUNK_UNWATCHED)
				chunk_watch(a, r, c);
	}
}

void region_unprotect(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	for (u32 tries = 0; tries < UNPROTECT_TRIES; tries++) {
		bool lifted = true;
		int err;

		if (uffd_unregister(a->uffd_sync, page_hva(r, page), nr << PAGE_SHIFT) == 0)
			return;
		/* It takes a split of a mapping, for which memory or the number of mappings may not
		 * suffice. Registered but not protected is harmless. ENOENT: a page that is not
		 * registered any more. */
		for (u64 p = page; p < page + nr; p++) {
			err = uffd_writeprotect(a->uffd_sync, page_hva(r, p), PAGE_BYTES, false);
			lifted = lifted && (err == 0 || err == -ENOENT);
		}
		if (lifted)
			return;
		usleep(UNPROTECT_PAUSE_US);
	}
	agent_log(a, "cannot lift the protection of guest pages: stopping the VM rather than "
		     "letting it hang");
	abort();
}

/* The VMM's wishes for its guest RAM hold for the mappings that we put in their place. */
static void repeat_attributes(const struct bh_region *r, void *at, size_t bytes, bool anonymous)
{
	if (r->dont_fork)
		kernel_madvise(at, bytes, MADV_DONTFORK);
	if (r->dont_dump)
		kernel_madvise(at, bytes, MADV_DONTDUMP);
	if (anonymous && r->huge)
		kernel_madvise(at, bytes, MADV_HUGEPAGE);
}

int region_replace_store(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr,
			 u64 store_offset)
{
	void *at = (void *)(uintptr_t)page_hva(r, page);
	size_t bytes = nr << PAGE_SHIFT;

	/* MAP_PRIVATE of a read-only descriptor: a guest write breaks copy-on-write, never reaches
	 * the store (invariant 3). */
	if (kernel_mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, a->store_fd,
			(off_t)store_offset) == MAP_FAILED)
		return errno == ENOMEM ? -ENOSPC : -errno;
	page_set_mapped(r, page, nr, true);
	repeat_attributes(r, at, bytes, false);
	return 0;
}

int region_replace_anon(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	void *at = (void *)(uintptr_t)page_hva(r, page);
	size_t bytes = nr << PAGE_SHIFT;

	if (kernel_mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS,
			-1, 0) == MAP_FAILED)
		return errno == ENOMEM ? -ENOSPC : -errno;
	repeat_attributes(r, at, bytes, true);
	/*
	 * Registered as their chunk says: a page may be moved out of an adopted chunk without a
	 * further look (invariant 1). Where that fails the chunk is not adopted any more.
	 */
	page_set_mapped(r, page, nr, false);
	for (u64 p = page, end = page + nr, n; p < end; p += n) {
		u64 c = p / CHUNK_PAGES;
		u64 mode = r->chunk_state[c] == CHUNK_ADOPTED ? MODE_ADOPTED : resting_mode(r, c);

		n = MIN(end, (c + 1) * CHUNK_PAGES) - p;
		if (uffd_register(a->uffd, page_hva(r, p), n << PAGE_SHIFT, mode) < 0) {
			r->chunk_state[c] = CHUNK_UNWATCHED;
			a->unwatched = true;
		}
	}
	return 0;
}
