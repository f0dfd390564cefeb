/* SPDX-License-Identifier: MIT */
/*
 * One window of one VM: which pages were written, which of the others to hash, what they match.
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

/* Lookups in a large index miss the cache, and need not wait for each other. */
#define PREFETCH_AHEAD 8
#define SLOW_WINDOW_US 200000
#define SLOW_PAUSES    20
/* Every so many passes: BROKEN pages are looked at, HELD ones tried again. */
#define BROKEN_PASSES 4
#define HELD_PASSES   32

/* Pages that were written since they were last protected (and anonymous, since only those are
 * registered): protects them. */
static const struct pagemap_query query_written = {
	.flags = PM_SCAN_WP_MATCHING,
	.all = PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN | PAGE_IS_PRESENT,
	.ret_mask = PAGE_IS_PFNZERO | PAGE_IS_HUGE,
};

/* All present pages: the first time that a region is looked at. What an earlier daemon protected
 * would not be reported by the query above. */
static const struct pagemap_query query_present = {
	.flags = PM_SCAN_WP_MATCHING,
	.all = PAGE_IS_WPALLOWED | PAGE_IS_PRESENT,
	.ret_mask = PAGE_IS_PFNZERO | PAGE_IS_HUGE,
};

/* Pages of file mappings (what is not anonymous is not registered) that are not the file's any
 * more. */
static const struct pagemap_query query_broken = {
	.inverted = PAGE_IS_WPALLOWED | PAGE_IS_FILE,
	.all = PAGE_IS_WPALLOWED | PAGE_IS_FILE,
	.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	.ret_mask = PAGE_IS_FILE,
};

/* Kept between windows, so that none allocates. */
struct scan_buffers {
	struct hash_job *hash_jobs[WINDOW_PAGES / HASH_JOB_PAGES];
	u64 written[WINDOW_PAGES / 64];
	struct match matches[WINDOW_PAGES];
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
	for (u32 i = 0; i < ARRAY_SIZE(b->hash_jobs); i++)
		if (b->hash_jobs[i])
			hash_job_free(b->hash_jobs[i]);
	free(b);
}

/* --- scanning --------------------------------------------------------------------------------- */

static struct scan_job *run_scan(struct ksm_region *r, u32 page, u32 nr,
				 const struct pagemap_query *q)
{
	struct scan_job *j =
		scan_job_new(r->vm->target, q, page_hva(r, page), page_hva(r, page + nr));
	struct reader_job *jobs[1];
	int stage;

	if (!j)
		return NULL;
	jobs[0] = &j->job;
	if (reader_run(r->vm->engine->readers, jobs, 1, READ_TIMEOUT_US, &stage) < 0) {
		if (jobs[0])
			scan_job_free(j);
		else
			vm_set_blocked(r->vm);
		return NULL;
	}
	if (j->nr < 0) {
		scan_job_free(j);
		return NULL;
	}
	return j;
}

int scan_broken(struct ksm_region *r, u32 page, u32 nr,
		void (*fn)(struct ksm_region *r, u32 page, u32 nr))
{
	u32 end = page + nr;

	while (page < end) {
		struct scan_job *j = run_scan(r, page, end - page, &query_broken);
		u32 walked;

		if (!j)
			return -EIO;
		for (int i = 0; i < j->nr; i++)
			fn(r, (u32)((j->ranges[i].start - r->hva) >> PAGE_SHIFT),
			   (u32)((j->ranges[i].end - j->ranges[i].start) >> PAGE_SHIFT));
		walked = (u32)((j->walk_end - j->start) >> PAGE_SHIFT);
		scan_job_free(j);
		if (!walked)
			return -EIO;
		page += walked;
	}
	return 0;
}

static void note_broken(struct ksm_region *r, u32 page, u32 nr)
{
	for (u32 p = page; p < page + nr; p++) {
		if (r->state[p] != PG_SHARED)
			continue;
		page_set_broken(r, p);
		if (r->vm->unmerged)
			r->vm->stats.unmerged_total++;
		else
			r->vm->stats.broken_total++;
	}
}

/* Returns how many pages the window really has, having filled b->written; 0: the VM cannot be
 * scanned now. */
static u32 scan_written(struct ksm_region *r, u32 page, u32 nr, struct scan_buffers *b)
{
	struct scan_job *j = run_scan(r, page, nr, r->first_pass ? &query_present : &query_written);

	if (!j)
		return 0;
	nr = (u32)((j->walk_end - j->start) >> PAGE_SHIFT);
	memset(b->written, 0, sizeof(b->written));
	for (int i = 0; i < j->nr; i++) {
		u32 first = (u32)((j->ranges[i].start - r->hva) >> PAGE_SHIFT);
		u32 end = (u32)((j->ranges[i].end - r->hva) >> PAGE_SHIFT);
		bool zero = j->ranges[i].categories & PAGE_IS_PFNZERO;

		for (u32 p = first; p < end; p++) {
			b->written[(p - page) / 64] |= (u64)1 << ((p - page) % 64);
			if (r->state[p] == PG_PENDING || r->state[p] == PG_BROKEN_PENDING)
				continue; /* the answer will tell */
			/* A page that we hold for mapped, but that is anonymous: the VMM replaced
			 * the mapping. Its word for that (DISCARD) may still be on its way; the
			 * kernel's counts. */
			if (zero != (r->state[p] == PG_ZERO) || (!zero && r->state[p] != PG_FRESH))
				page_set(r, p, zero ? PG_ZERO : PG_FRESH);
		}
	}
	scan_job_free(j);
	r->vm->stats.scanned_total += nr;
	return nr;
}

/* --- hashing ---------------------------------------------------------------------------------- */

static bool wants_hash(const struct ksm_region *r, u32 page, u32 window,
		       const struct scan_buffers *b, bool broken_turn)
{
	switch (r->state[page]) {
	case PG_FRESH:
		return !(b->written[(page - window) / 64] >> ((page - window) % 64) & 1);
	case PG_BROKEN:
	case PG_BROKEN_SEEN:
	case PG_BROKEN_CANDIDATE:
		return broken_turn;
	default:
		return false;
	}
}

/* Fills and runs the hash jobs for a window. Returns how many jobs were used. */
static u32 hash_window(struct ksm_region *r, u32 window, u32 nr, struct scan_buffers *b)
{
	struct ksm_vm *vm = r->vm;
	/* Only KSM_ON can use what a broken page now holds, but for zeros, which are not worth the
	 * reading. */
	bool broken_turn = r->nr_broken && vm->mode == KSM_ON &&
			   vm->stats.passes_total % BROKEN_PASSES == 0;
	struct reader_job *jobs[ARRAY_SIZE(b->hash_jobs)];
	u32 nr_jobs = 0;
	int err, stage;

	for (u32 p = window; p < window + nr; p++) {
		struct hash_job *j = nr_jobs ? b->hash_jobs[nr_jobs - 1] : NULL;

		if (!wants_hash(r, p, window, b, broken_turn))
			continue;
		if (!j || j->nr == HASH_JOB_PAGES) {
			if (!b->hash_jobs[nr_jobs] && !(b->hash_jobs[nr_jobs] = hash_job_new()))
				break;
			j = b->hash_jobs[nr_jobs];
			j->nr = 0;
			j->target = target_get(vm->target);
			jobs[nr_jobs++] = &j->job;
		}
		j->hva[j->nr] = page_hva(r, p);
		j->page[j->nr++] = p;
	}
	if (!nr_jobs)
		return 0;
	err = reader_run(vm->engine->readers, jobs, nr_jobs, READ_TIMEOUT_US, &stage);
	for (u32 i = 0; i < nr_jobs; i++) {
		if (!jobs[i]) {
			b->hash_jobs[i] = NULL; /* the hung reader's now */
			continue;
		}
		target_put(b->hash_jobs[i]->target);
		b->hash_jobs[i]->target = NULL;
		vm->stats.hashed_total += err == 0 ? b->hash_jobs[i]->nr : 0;
	}
	if (err == -ETIMEDOUT)
		vm_set_blocked(vm);
	return err < 0 ? 0 : nr_jobs;
}

/* --- matching --------------------------------------------------------------------------------- */

struct lookup {
	const struct ksm_domain *domain;
	u64 hash;
	u32 self;
};

static bool is_match(u32 value, void *arg)
{
	const struct lookup *l = arg;

	if (value & INDEX_STORE_FLAG)
		return store_hash(l->domain->store, value & ~INDEX_STORE_FLAG) == l->hash;
	return value != l->self && vm_may_share(gpn_region(l->domain->engine, value)->vm);
}

/* A broken page is not watched for writes: only one that looks the same twice is taken for still.
 */
static bool still(struct ksm_region *r, u32 page, u32 tag)
{
	if (!page_is_mapped(r, page))
		return true;
	if (r->state[page] != PG_BROKEN && r->link[page] == tag)
		return true;
	page_note_broken_tag(r, page, tag);
	return false;
}

/* Returns 1 if @ret was filled: the content was seen before. */
static int match_page(struct ksm_region *r, u32 page, u64 hash, struct match *ret)
{
	struct ksm_domain *d = r->vm->domain;
	struct lookup l = { .domain = d, .hash = hash, .self = r->gpn + page };
	u32 tag = hash_tag(hash), found;

	if (!still(r, page, tag))
		return 0;
	found = index_find(d->index, tag, is_match, &l);
	if (found == INDEX_NONE) {
		if (r->state[page] == PG_BROKEN_CANDIDATE)
			return 0;
		if (page_set_candidate(r, page, tag) < 0 && r->state[page] == PG_FRESH)
			page_set(r, page, PG_QUIET);
		return 0;
	}
	*ret = (struct match){
		.gpn = r->gpn + page, .spn = SPN_NONE, .partner = GPN_NONE, .hash = hash
	};
	if (found & INDEX_STORE_FLAG)
		ret->spn = found & ~INDEX_STORE_FLAG;
	else
		ret->partner = found;
	return 1;
}

static void queue_zero(struct ksm_region *r, u32 page, u32 nr)
{
	struct ksm_op_run run = { .gpn = r->gpn + page, .nr = nr, .zero = true };

	for (u32 p = page; p < page + nr; p++)
		page_set_pending(r, p);
	if (ops_queue(r->vm, &run) == 0)
		return;
	for (u32 p = page; p < page + nr; p++)
		page_unpend(r, p, PG_FRESH);
}

/* Looks up what was hashed. Returns the number of matches. */
static u32 match_window(struct ksm_region *r, struct scan_buffers *b, u32 nr_jobs)
{
	u32 nr = 0, zero_at = 0, zero_nr = 0;

	for (u32 k = 0; k < nr_jobs; k++) {
		const struct hash_job *j = b->hash_jobs[k];

		for (u32 i = 0; i < j->nr; i++) {
			u32 p = j->page[i];

			if (i + PREFETCH_AHEAD < j->nr)
				index_prefetch(r->vm->domain->index,
					       hash_tag(j->hash[i + PREFETCH_AHEAD]));
			if (!j->ok[i]) {
				if (r->state[p] == PG_FRESH)
					page_set(r, p, PG_NONE);
			} else if (j->zero[i]) {
				if (zero_nr && zero_at + zero_nr == p) {
					zero_nr++;
					continue;
				}
				if (zero_nr)
					queue_zero(r, zero_at, zero_nr);
				zero_at = p;
				zero_nr = 1;
			} else if (r->vm->mode == KSM_ON) {
				nr += (u32)match_page(r, p, j->hash[i], &b->matches[nr]);
			} else if (r->state[p] == PG_FRESH) {
				page_set(r, p, PG_QUIET);
			}
		}
	}
	if (zero_nr)
		queue_zero(r, zero_at, zero_nr);
	return nr;
}

/* --- one window ------------------------------------------------------------------------------- */

static void retry_held(struct ksm_region *r, u32 page, u32 nr)
{
	for (u32 p = page; p < page + nr; p++)
		if (r->state[p] == PG_HELD)
			page_set(r, p, PG_FRESH);
}

bool scan_window(struct ksm_vm *vm)
{
	struct scan_buffers *b = vm->engine->scan;
	struct ksm_region *r;
	u32 page, nr, nr_jobs;
	u64 started;

	while (vm->cursor_region < vm->nr_regions &&
	       vm->cursor_page >= vm->regions[vm->cursor_region]->nr_pages) {
		vm->cursor_region++;
		vm->cursor_page = 0;
	}
	if (vm->cursor_region >= vm->nr_regions)
		return false;
	r = vm->regions[vm->cursor_region];
	page = vm->cursor_page;
	nr = MIN(r->nr_pages - page, WINDOW_PAGES);
	if (r->gone) {
		vm->cursor_page = r->nr_pages;
		return true;
	}
	if (r->nr_mapped && scan_broken(r, page, nr, note_broken) < 0)
		nr = 0;
	if (nr && vm->mode != KSM_OFF)
		nr = scan_written(r, page, nr, b);
	if (!nr) {
		/* Not to be scanned now (dying, hung): end this pass. */
		vm->cursor_region = vm->nr_regions;
		return true;
	}
	vm->cursor_page += nr;
	if (vm->cursor_page >= r->nr_pages && vm->mode != KSM_OFF)
		r->first_pass = false;
	if (vm->mode == KSM_OFF || vm->unmerged || !vm->conn || !vm->engine->cfg.enabled)
		return true;
	started = now_us();
	if (r->nr_held && vm->stats.passes_total % HELD_PASSES == HELD_PASSES - 1)
		retry_held(r, page, nr);
	if (!r->nr_fresh && !r->nr_broken)
		return true;
	nr_jobs = hash_window(r, page, nr, b);
	merge_matches(vm, b->matches, match_window(r, b, nr_jobs));
	/* Reading that takes long makes all others wait: who is slow gets a small share of the
	 * time. */
	if (now_us() - started > SLOW_WINDOW_US)
		vm->slow_until_us = now_us() + SLOW_PAUSES * (now_us() - started);
	return true;
}
