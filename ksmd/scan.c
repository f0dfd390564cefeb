/* SPDX-License-Identifier: MIT */
/*
 * One window of one VM: which pages were written, which merged ones broke, which are huge.
 *
 * All looking into the VM is done in reader jobs (reader.h); between the jobs the engine's thread
 * decides. What is read here is only a hint: pages change at any time, and the agent compares every
 * byte once they cannot (invariant 2).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "ksmd/core.h"
#include "ksmd/jobs.h"

#define SLOW_WINDOW_US 200000
#define SLOW_PAUSES    20

/* The questions of a scan, in their order (jobs.h). */
enum {
	ASK_BROKEN,
	ASK_HUGE,
	ASK_WRITTEN
};

/* Pages that were written since they were last protected (and anonymous, since only those are
 * registered): protects them. Not in huge pages: protecting one means that the next write splits
 * it. */
static const struct pagemap_query query_written = {
	.flags = PM_SCAN_WP_MATCHING,
	.inverted = PAGE_IS_HUGE,
	.all = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_HUGE,
	.ret_mask = PAGE_IS_PFNZERO,
};

/* All present pages: the first time that a region is looked at. What an earlier daemon protected
 * would not be reported by the query above. */
static const struct pagemap_query query_present = {
	.flags = PM_SCAN_WP_MATCHING,
	.inverted = PAGE_IS_HUGE,
	.all = PAGE_IS_WPALLOWED | PAGE_IS_PRESENT | PAGE_IS_HUGE,
	.ret_mask = PAGE_IS_PFNZERO,
};

static const struct pagemap_query query_huge = {
	.all = PAGE_IS_WPALLOWED | PAGE_IS_PRESENT | PAGE_IS_HUGE,
	.ret_mask = PAGE_IS_PFNZERO,
};

/*
 * Pages of file mappings (what is not anonymous is not registered with the asynchronous context)
 * that are not the file's any more. WRITTEN: not write-protected. While an agent replaces pages in
 * a mapping it protects them with its second context, which leaves a marker in the place of a page
 * that is not there; to this query a marker is a page swapped out, and no file's. To take it for
 * broken would drop a reference that is in use (invariant 4).
 */
static const struct pagemap_query query_broken = {
	.inverted = PAGE_IS_WPALLOWED | PAGE_IS_FILE,
	.all = PAGE_IS_WPALLOWED | PAGE_IS_FILE | PAGE_IS_WRITTEN,
	.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.ret_mask = PAGE_IS_FILE,
};

/* Kept between windows, so that none allocates. */
struct scan_buffers {
	struct scan_job *job;
	u64 written[WINDOW_PAGES / 64];
};

int scan_buffers_new(struct scan_buffers **ret)
{
	struct scan_buffers *b = calloc(1, sizeof(*b));

	if (!b)
		return -ENOMEM;
	*ret = b;
	return 0;
}

void scan_buffers_free(struct scan_buffers *b)
{
	if (!b)
		return;
	scan_job_free(b->job);
	free(b);
}

/* --- scanning --------------------------------------------------------------------------------- */

static u32 range_first(const struct ksm_region *r, const struct page_region *range)
{
	return (u32)((range->start - r->hva) >> PAGE_SHIFT);
}

static u32 range_end(const struct ksm_region *r, const struct page_region *range)
{
	return (u32)((range->end - r->hva) >> PAGE_SHIFT);
}

/* Asks the questions of b->job about [page, page + nr). Returns about how many pages they were
 * answered; 0: the VM cannot be scanned now. */
static u32 run_scan(struct ksm_region *r, u32 page, u32 nr, struct scan_buffers *b)
{
	struct scan_job *j = b->job;
	struct reader_job *jobs[1] = { &j->job };
	int stage, err;

	j->start = page_hva(r, page);
	j->end = page_hva(r, page + nr);
	j->target = target_get(r->vm->target);
	err = reader_run(r->vm->engine->readers, jobs, 1, READ_TIMEOUT_US, &stage);
	if (!jobs[0]) {
		b->job = NULL; /* the hung reader's now */
		vm_set_blocked(r->vm);
		return 0;
	}
	target_put(j->target);
	j->target = NULL;
	if (err < 0 || j->err < 0)
		return 0;
	return (u32)((j->walk_end - j->start) >> PAGE_SHIFT);
}

static bool ask(struct scan_buffers *b, const struct pagemap_query *broken,
		const struct pagemap_query *huge, const struct pagemap_query *written)
{
	if (!b->job)
		b->job = scan_job_new();
	if (!b->job)
		return false;
	b->job->parts[ASK_BROKEN].query = broken;
	b->job->parts[ASK_HUGE].query = huge;
	b->job->parts[ASK_WRITTEN].query = written;
	return true;
}

int scan_broken(struct ksm_region *r, u32 page, u32 nr,
		void (*fn)(struct ksm_region *r, u32 page, u32 nr))
{
	struct scan_buffers *b = r->vm->engine->scan;
	u32 end = page + nr;

	while (page < end) {
		const struct scan_part *found;
		u32 walked = 0;

		if (ask(b, &query_broken, NULL, NULL))
			walked = run_scan(r, page, end - page, b);
		if (!walked)
			return -EIO;
		found = &b->job->parts[ASK_BROKEN];
		for (int i = 0; i < found->nr; i++)
			fn(r, range_first(r, &found->ranges[i]),
			   range_end(r, &found->ranges[i]) - range_first(r, &found->ranges[i]));
		page += walked;
	}
	return 0;
}

static void note_broken(struct ksm_region *r, const struct scan_part *found)
{
	for (int i = 0; i < found->nr; i++) {
		for (u32 p = range_first(r, &found->ranges[i]); p < range_end(r, &found->ranges[i]);
		     p++) {
			if (r->state[p] == PG_SHARED)
				page_broke(r, p);
		}
	}
}

int scan_states(struct ksm_region *r, u32 page, u32 nr)
{
	struct scan_buffers *b = r->vm->engine->scan;
	u32 end = page + nr, walked;

	for (; page < end; page += walked) {
		walked = 0;
		if (ask(b, r->nr_mapped ? &query_broken : NULL, &query_huge, NULL))
			walked = run_scan(r, page, end - page, b);
		if (!walked)
			return -EIO;
		note_broken(r, &b->job->parts[ASK_BROKEN]);
		huge_note(r, page, walked, &b->job->parts[ASK_HUGE]);
	}
	return 0;
}

/* Also fills b->written, for pages from @window on. */
static void note_written(struct ksm_region *r, u32 window, struct scan_buffers *b)
{
	const struct scan_part *found = &b->job->parts[ASK_WRITTEN];
	struct pace_look *look = &r->vm->look;

	memset(b->written, 0, sizeof(b->written));
	for (int i = 0; i < found->nr; i++) {
		bool zero = found->ranges[i].categories & PAGE_IS_PFNZERO;

		for (u32 p = range_first(r, &found->ranges[i]); p < range_end(r, &found->ranges[i]);
		     p++) {
			u8 state = r->state[p];

			b->written[(p - window) / 64] |= (u64)1 << ((p - window) % 64);
			look->written++;
			look->rewritten += state == PG_FRESH;
			if (state == PG_PENDING || state == PG_BROKEN_PENDING)
				continue; /* the answer will tell */
			/* A page that we hold for mapped, but that is anonymous: the VMM replaced
			 * the mapping. Its word for that (DISCARD) may still be on its way; the
			 * kernel's counts. */
			if (!zero && state != PG_FRESH)
				page_set(r, p, PG_FRESH);
			else if (zero && state != PG_ZERO && state != PG_ZERO_FOUND)
				page_set(r, p, PG_ZERO_FOUND);
		}
	}
}

/* --- one window ------------------------------------------------------------------------------- */

struct wish {
	const struct scan_buffers *b;
	u32 window;
	bool broken; /* it is the broken pages' turn */
};

static bool wants_hash(const struct ksm_region *r, u32 page, void *arg)
{
	const struct wish *w = arg;
	u32 bit = page - w->window;

	switch (r->state[page]) {
	case PG_FRESH:
		return !(w->b->written[bit / 64] >> (bit % 64) & 1);
	case PG_BROKEN:
	case PG_BROKEN_SEEN:
	case PG_BROKEN_CANDIDATE:
		return w->broken;
	default:
		return false;
	}
}

static void retry_held(struct ksm_region *r, u32 page, u32 nr)
{
	for (u32 p = page; p < page + nr; p++)
		if (r->state[p] == PG_HELD)
			page_set(r, p, PG_FRESH);
}

/* Moves the cursor to the next window that this pass looks at. False: there is none. */
static bool find_window(struct ksm_vm *vm)
{
	for (; vm->cursor_region < vm->nr_regions; vm->cursor_region++, vm->cursor_page = 0) {
		struct ksm_region *r = vm->regions[vm->cursor_region];

		if (r->gone)
			continue;
		while (vm->cursor_page < r->nr_pages) {
			/* In the middle of one: its look goes on. */
			if (vm->cursor_page % WINDOW_PAGES ||
			    pace_window_due(page_window(r, vm->cursor_page)))
				return true;
			vm->cursor_page += WINDOW_PAGES;
		}
		if (vm->mode != KSM_OFF)
			r->first_pass = false;
	}
	return false;
}

static u32 count_fresh(const struct ksm_region *r, u32 page, u32 nr)
{
	u32 n = 0;

	for (u32 p = page; r->nr_fresh && p < page + nr; p++)
		n += r->state[p] == PG_FRESH;
	return n;
}

/* Broken pages of which it is not known yet whether they stay as they are. */
static bool has_broken(const struct ksm_region *r, u32 page, u32 nr)
{
	for (u32 p = page; p < page + nr; p++)
		if (r->state[p] == PG_BROKEN || r->state[p] == PG_BROKEN_SEEN)
			return true;
	return false;
}

void vm_note_slow(struct ksm_vm *vm, u64 started_us)
{
	u64 took = now_us() - started_us;

	if (took > SLOW_WINDOW_US)
		vm->slow_until_us = now_us() + SLOW_PAUSES * took;
}

/* What of [page, page + nr) can be merged is found, and queued for the agent. */
static void find_sharing(struct ksm_region *r, u32 page, u32 nr, struct scan_buffers *b)
{
	struct pace_window *w = page_window(r, page);
	struct pace_limits limits = engine_pace(r->vm->engine);
	struct wish wish = { .b = b, .window = page };
	u64 started = now_us();
	bool news = false;

	if (r->nr_held && pace_held_due(w))
		retry_held(r, page, nr);
	/* Only KSM_ON can use what a broken page now holds, but for zeros, which are not worth the
	 * reading. */
	wish.broken = r->nr_broken && r->vm->mode == KSM_ON && pace_broken_due(w);
	if (r->nr_fresh || wish.broken)
		match_pages(r, page, nr, wants_hash, &wish, &news);
	if (wish.broken)
		pace_broken_looked(w, &limits, news);
	r->vm->look.broken = r->vm->look.broken || (r->nr_broken && has_broken(r, page, nr));
	huge_survey(r, page, nr);
	vm_note_slow(r->vm, started);
}

bool scan_window(struct ksm_vm *vm)
{
	struct scan_buffers *b = vm->engine->scan;
	struct pace_limits limits = engine_pace(vm->engine);
	bool active = vm->mode != KSM_OFF, broken, huge;
	struct ksm_region *r;
	u32 page, nr, end;

	if (!find_window(vm))
		return false;
	r = vm->regions[vm->cursor_region];
	page = vm->cursor_page;
	end = MIN((page / WINDOW_PAGES + 1) * WINDOW_PAGES, r->nr_pages);
	if (page % WINDOW_PAGES == 0)
		vm->look = (struct pace_look){ .pages = end - page };
	broken = r->nr_mapped && vm->full_pass;
	huge = active && (vm->full_pass || r->first_pass);
	nr = 0;
	if (!active && !broken)
		nr = end - page;
	else if (ask(b, broken ? &query_broken : NULL, huge ? &query_huge : NULL,
		     !active	     ? NULL
		     : r->first_pass ? &query_present
				     : &query_written))
		nr = run_scan(r, page, end - page, b);
	if (!nr) {
		/* Not to be scanned now (dying, hung): end this pass. */
		vm->cursor_region = vm->nr_regions;
		return true;
	}
	vm->cursor_page += nr;
	if (active || broken) {
		note_broken(r, &b->job->parts[ASK_BROKEN]);
		huge_note(r, page, nr, &b->job->parts[ASK_HUGE]);
		note_written(r, page, b);
		vm->stats.scanned_total += nr;
	}
	/* A VM that is slow to read is still accounted for. */
	if (active && !vm->unmerged && vm->conn && vm->engine->cfg.enabled &&
	    now_us() >= vm->slow_until_us)
		find_sharing(r, page, nr, b);
	vm->look.waiting += count_fresh(r, page, nr);
	if (vm->cursor_page >= end && pace_window_looked(page_window(r, page), &limits, &vm->look))
		vm->rouse = true;
	return true;
}
