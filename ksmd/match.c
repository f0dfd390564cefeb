/* SPDX-License-Identifier: MIT */
/*
 * Hashing, and looking up what was hashed (steps 2 and 3 of engine.h). Reading is done in reader
 * jobs; a page that cannot be read is simply not hashed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "ksmd/core.h"
#include "ksmd/jobs.h"

/* Lookups in a large index miss the cache, and need not wait for each other. */
#define PREFETCH_AHEAD 8

/* Kept between windows, so that none allocates. */
struct match_buffers {
	struct hash_job *jobs[WINDOW_PAGES / HASH_JOB_PAGES];
	struct match matches[WINDOW_PAGES];
	u32 nr_hashed; /* jobs that match_hash() did last */
};

struct match_buffers *match_buffers_new(void)
{
	return calloc(1, sizeof(struct match_buffers));
}

void match_buffers_free(struct match_buffers *b)
{
	if (!b)
		return;
	for (u32 i = 0; i < ARRAY_SIZE(b->jobs); i++)
		if (b->jobs[i])
			hash_job_free(b->jobs[i]);
	free(b);
}

/* --- hashing ---------------------------------------------------------------------------------- */

/* Puts a page into the jobs; false: no job could be had. */
static bool add_page(struct ksm_region *r, u32 page, struct match_buffers *b, u32 *nr_jobs)
{
	struct hash_job *j = *nr_jobs ? b->jobs[*nr_jobs - 1] : NULL;

	if (!j || j->nr == HASH_JOB_PAGES) {
		if (*nr_jobs == ARRAY_SIZE(b->jobs))
			return false;
		if (!b->jobs[*nr_jobs])
			b->jobs[*nr_jobs] = hash_job_new();
		j = b->jobs[*nr_jobs];
		if (!j)
			return false;
		j->nr = 0;
		j->target = target_get(r->vm->target);
		(*nr_jobs)++;
	}
	j->hva[j->nr] = page_hva(r, page);
	j->page[j->nr++] = page;
	return true;
}

/* Returns how many jobs were done, all or none. */
static u32 run_jobs(struct ksm_vm *vm, struct match_buffers *b, u32 nr_jobs)
{
	struct reader_job *jobs[ARRAY_SIZE(b->jobs)];
	int err, stage;

	if (!nr_jobs)
		return 0;
	for (u32 i = 0; i < nr_jobs; i++)
		jobs[i] = &b->jobs[i]->job;
	err = reader_run(vm->engine->readers, jobs, nr_jobs, READ_TIMEOUT_US, &stage);
	for (u32 i = 0; i < nr_jobs; i++) {
		if (!jobs[i]) {
			b->jobs[i] = NULL; /* the hung reader's now */
			continue;
		}
		target_put(b->jobs[i]->target);
		b->jobs[i]->target = NULL;
		if (err == 0) {
			vm->stats.hashed_total += b->jobs[i]->nr;
			vm->pass.hashed += b->jobs[i]->nr;
		}
	}
	if (err == -ETIMEDOUT)
		vm_set_blocked(vm);
	return err < 0 ? 0 : nr_jobs;
}

void match_hash(struct ksm_region *r, u32 page, u32 nr,
		void (*fn)(struct ksm_region *r, u32 page, u64 hash, bool zero, void *arg),
		void *arg)
{
	struct match_buffers *b = r->vm->engine->match;
	u32 nr_jobs = 0;

	for (u32 p = page; p < page + nr; p++)
		if (!add_page(r, p, b, &nr_jobs))
			break;
	nr_jobs = b->nr_hashed = run_jobs(r->vm, b, nr_jobs);
	for (u32 k = 0; k < nr_jobs; k++)
		for (u32 i = 0; i < b->jobs[k]->nr; i++)
			if (b->jobs[k]->ok[i])
				fn(r, b->jobs[k]->page[i], b->jobs[k]->hash[i], b->jobs[k]->zero[i],
				   arg);
}

/* --- looking up ------------------------------------------------------------------------------- */

struct lookup {
	const struct ksm_domain *domain;
	u64 hash;
	u32 self;
	bool huge;	/* a candidate in a huge page that is kept counts, too */
	u32 huge_found; /* where it does not: such a one */
};

static bool is_match(u32 value, void *arg)
{
	struct lookup *l = arg;
	const struct ksm_region *r;

	if (value & INDEX_STORE_FLAG)
		return store_hash(l->domain->store, value & ~INDEX_STORE_FLAG) ==
		       store_hash_kept(l->hash);
	r = gpn_region(l->domain->engine, value);
	if (value == l->self || !vm_may_share(r->vm))
		return false;
	if (l->huge || !huge_kept(r, value - r->gpn))
		return true;
	l->huge_found = value;
	return false;
}

u32 match_find(struct ksm_region *r, u32 page, u64 hash, bool huge)
{
	struct lookup l = { .domain = r->vm->domain,
			    .hash = hash,
			    .self = r->gpn + page,
			    .huge = huge,
			    .huge_found = GPN_NONE };
	u32 found = index_find(l.domain->index, hash_tag(hash), is_match, &l);

	if (found == INDEX_NONE && l.huge_found != GPN_NONE) {
		struct ksm_region *q = gpn_region(l.domain->engine, l.huge_found);

		huge_wanted(q, l.huge_found - q->gpn);
	}
	return found;
}

/* A broken page is not watched for writes: only one that looks the same twice is taken for still.
 */
static bool still(struct ksm_region *r, u32 page, u32 tag, bool *ret_news)
{
	if (!page_is_mapped(r, page))
		return true;
	if (r->state[page] != PG_BROKEN && r->link[page] == tag)
		return true;
	page_note_broken_tag(r, page, tag);
	*ret_news = true;
	return false;
}

/* Returns 1 if @ret was filled: the content was seen before. */
static int match_page(struct ksm_region *r, u32 page, u64 hash, struct match *ret, bool *ret_news)
{
	u32 tag = hash_tag(hash), found;

	if (!still(r, page, tag, ret_news))
		return 0;
	found = match_find(r, page, hash, false);
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
	r->vm->pass.found += nr;
	if (ops_queue(r->vm, &run) == 0)
		return;
	for (u32 p = page; p < page + nr; p++)
		page_unpend(r, p, PG_FRESH);
}

/* Looks up what was hashed. Returns the number of matches. */
static u32 match_jobs(struct ksm_region *r, struct match_buffers *b, u32 nr_jobs, bool *ret_news)
{
	u32 nr = 0, zero_at = 0, zero_nr = 0;

	for (u32 k = 0; k < nr_jobs; k++) {
		const struct hash_job *j = b->jobs[k];

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
				nr += (u32)match_page(r, p, j->hash[i], &b->matches[nr], ret_news);
			} else if (r->state[p] == PG_FRESH) {
				page_set(r, p, PG_QUIET);
			}
		}
	}
	if (zero_nr)
		queue_zero(r, zero_at, zero_nr);
	return nr;
}

static void match_and_merge(struct ksm_region *r, struct match_buffers *b, u32 nr_jobs,
			    bool *ret_news)
{
	u32 nr_matches = match_jobs(r, b, nr_jobs, ret_news);

	r->vm->pass.found += nr_matches;
	merge_matches(r->vm, b->matches, nr_matches);
}

void match_pages(struct ksm_region *r, u32 page, u32 nr,
		 bool (*wants)(const struct ksm_region *r, u32 page, void *arg), void *arg,
		 bool *ret_news)
{
	struct match_buffers *b = r->vm->engine->match;
	u32 nr_jobs = 0;

	for (u32 p = page; p < page + nr; p++)
		if (wants(r, p, arg) && !add_page(r, p, b, &nr_jobs))
			break;
	nr_jobs = run_jobs(r->vm, b, nr_jobs);
	match_and_merge(r, b, nr_jobs, ret_news);
}

void match_hashed(struct ksm_region *r)
{
	struct match_buffers *b = r->vm->engine->match;
	u32 nr_jobs = b->nr_hashed;
	bool news;

	b->nr_hashed = 0;
	match_and_merge(r, b, nr_jobs, &news);
}
