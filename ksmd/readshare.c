/* SPDX-License-Identifier: MIT */
/*
 * Share on read: a second source of pages to be looked at, besides the scan.
 *
 * VMMs say which guest pages they have just filled from which block of which image. Where another
 * guest of the domain holds the same block, both pages are put in line, and are hashed, looked up
 * and merged at the VM's next turn by what does so for scanned pages (match.c, promote.c): the
 * one that is hashed first becomes a candidate, the second one finds it. So a word that is not true
 * costs a hash, and nothing is merged that the agents did not compare (invariant 2).
 *
 * Pages are looked at once, at once. They may still be written: the guest was only just told of
 * them. That costs one copy-on-write break (1.3 to 2.2 us), which a wait could save, but a wait
 * would keep the memory of two guests that boot side by side occupied twice in the meantime. A page
 * that finds no partner is a candidate like any other until the scan sees that it was written.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "ksmd/core.h"

/* Pages in line; more than that is dropped, and the scan finds them. */
#define LINE_MAX_PAGES 16384

static bool is_pending(u8 state)
{
	return state == PG_PENDING || state == PG_BROKEN_PENDING;
}

static bool is_candidate(u8 state)
{
	return state == PG_CANDIDATE || state == PG_BROKEN_CANDIDATE;
}

static void put_in_line(struct ksm_region *r, u32 page)
{
	struct ksm_vm *vm = r->vm;

	if (is_pending(r->state[page]) || vm->line_nr == LINE_MAX_PAGES)
		return;
	if (vm->line_nr == vm->line_cap) {
		u32 cap = vm->line_cap ? vm->line_cap * 2 : 256;
		u32 *line = realloc(vm->line, cap * sizeof(line[0]));

		if (!line)
			return;
		vm->line = line;
		vm->line_cap = cap;
	}
	vm->line[vm->line_nr++] = r->gpn + page;
}

/* Its region if the number still is that of a page of the domain. */
static struct ksm_region *region_of(const struct ksm_domain *d, u32 gpn)
{
	const struct gpn_space *g = &d->engine->gpns;
	struct ksm_region *r;

	if (gpn / CHUNK_PAGES >= g->nr_chunks)
		return NULL;
	r = gpn_owner(g, gpn);
	return r && gpn - r->gpn < r->nr_pages && r->vm->domain == d && !r->gone ? r : NULL;
}

static void note(struct ksm_region *r, u32 page, u32 before)
{
	u8 state = r->state[page];
	struct ksm_region *q = before == BLOCK_NONE ? NULL : region_of(r->vm->domain, before);
	u32 q_page = q ? before - q->gpn : 0;

	/* To split a huge page is a decision about all of it, and its survey is due. */
	if (huge_kept(r, page)) {
		huge_wanted(r, page);
		return;
	}
	/* What was known of its content is not so any more. If it was shared the VMM must have
	 * broken that, but this is for the kernel to say: look(). */
	if (state == PG_CANDIDATE || state == PG_QUIET || state == PG_HELD)
		page_set(r, page, PG_FRESH);
	else if (page_is_mapped(r, page))
		put_in_line(r, page);
	if (!q || !vm_may_share(q->vm) || huge_kept(q, q_page))
		return;
	/* A guest has a block once: where it had it before is something else by now, if it was not
	 * shared with others. */
	if (q->vm == r->vm && q->state[q_page] != PG_SHARED)
		return;
	if (q->state[q_page] != PG_SHARED && !is_candidate(q->state[q_page]))
		put_in_line(q, q_page);
	if (!page_is_mapped(r, page))
		put_in_line(r, page);
}

int engine_disk_read(struct ksm_vm *vm, u64 hva, u32 nr_pages, const u64 disk[2], u64 sector)
{
	struct ksm_region *r = vm_region_at(vm, hva, (u64)nr_pages << PAGE_SHIFT);
	struct ksm_domain *d = vm->domain;
	u32 page;

	/* Perhaps one that was refused, or is gone by now. */
	if (!r || r->gone || !vm->engine->cfg.enabled || !vm_may_share(vm))
		return 0;
	if (!d->blocks && blocks_new(&d->blocks) < 0)
		return 0;
	page = (u32)((hva - r->hva) >> PAGE_SHIFT);
	for (u32 i = 0; i < nr_pages; i++)
		note(r, page + i,
		     blocks_note(d->blocks, disk, sector + i * PAGE_SECTORS, r->gpn + page + i));
	return 0;
}

/* --- a turn ----------------------------------------------------------------------------------- */

/* Pages of one window that are to be looked at. */
struct wanted {
	u32 window; /* first page */
	u32 first, last;
	u64 bits[WINDOW_PAGES / 64];
};

static void want(struct wanted *w, u32 page, bool on)
{
	u32 bit = page - w->window;

	if (on)
		w->bits[bit / 64] |= (u64)1 << (bit % 64);
	else
		w->bits[bit / 64] &= ~((u64)1 << (bit % 64));
}

static bool is_wanted(const struct ksm_region *r, u32 page, void *arg)
{
	const struct wanted *w = arg;
	u32 bit = page - w->window;

	return w->bits[bit / 64] >> (bit % 64) & 1;
}

static bool is_wanted_again(const struct ksm_region *r, u32 page, void *arg)
{
	return r->state[page] == PG_BROKEN_SEEN && is_wanted(r, page, arg);
}

/* Takes from the line what is of the last one's window. NULL: that is of no region any more. */
static struct ksm_region *take(struct ksm_vm *vm, struct wanted *w)
{
	u32 gpn = vm->line[vm->line_nr - 1], n = 0, left = 0;
	struct ksm_region *r = region_of(vm->domain, gpn);

	*w = (struct wanted){ .first = UINT32_MAX };
	if (!r || r->vm != vm) {
		vm->line_nr--;
		return NULL;
	}
	w->window = ROUND_DOWN(gpn - r->gpn, WINDOW_PAGES);
	for (; n < vm->line_nr; n++) {
		u32 page = vm->line[n] - r->gpn; /* wraps around below the region */

		if (page >= r->nr_pages || page < w->window || page >= w->window + WINDOW_PAGES) {
			vm->line[left++] = vm->line[n];
			continue;
		}
		want(w, page, true);
		w->first = MIN(w->first, page);
		w->last = MAX(w->last, page);
	}
	vm->line_nr = left;
	return r;
}

/* What the kernel knows of them: broken since, huge. Leaves those that may be hashed. */
static bool look(struct ksm_region *r, struct wanted *w)
{
	u32 nr = w->last - w->first + 1, left = 0;

	if (scan_states(r, w->first, nr) < 0)
		return false;
	for (u32 p = w->first; p <= w->last; p++) {
		if (!is_wanted(r, p, w))
			continue;
		if (huge_kept(r, p) || is_pending(r->state[p]) || r->state[p] == PG_SHARED) {
			want(w, p, false);
		} else {
			if (!page_is_mapped(r, p) && r->state[p] != PG_FRESH)
				page_set(r, p, PG_FRESH);
			left++;
		}
	}
	return left;
}

void readshare_step(struct ksm_vm *vm)
{
	struct engine *e = vm->engine;
	struct pace_pass pass = vm->pass;
	u64 started = now_us();
	struct ksm_region *r;
	struct wanted w;
	bool news;

	if (!e->cfg.enabled || !vm_may_share(vm) || started < vm->slow_until_us) {
		vm->line_nr = 0;
		return;
	}
	r = take(vm, &w);
	if (!r || r->gone || !look(r, &w))
		return;
	e->on_read = true;
	match_pages(r, w.first, w.last - w.first + 1, is_wanted, &w, &news);
	/* Nobody watches broken pages for writes: what looks the same twice is taken for still. */
	if (r->nr_broken)
		match_pages(r, w.first, w.last - w.first + 1, is_wanted_again, &w, &news);
	e->on_read = false;
	/* It says nothing about what a pass of the scan would find. */
	vm->pass = pass;
	vm_note_slow(vm, started);
}
