/* SPDX-License-Identifier: MIT */
/*
 * From matches to requests: content that was seen in two pages is promoted into the store, and runs
 * of pages that shall show store pages are queued for the agents (steps 4 and 5 of engine.h).
 */
#include <errno.h>
#include <stdlib.h>
#include "ksmd/core.h"
#include "ksmd/jobs.h"

#define PROMOTIONS (WINDOW_PAGES / PROMOTION_PAGES)

/* Kept between windows, so that none allocates. */
struct merge_buffers {
	struct promote_job *jobs[PROMOTIONS];
	struct late_pages *late[PROMOTIONS]; /* of the jobs */
	struct placement own[WINDOW_PAGES], partners[WINDOW_PAGES];
	struct run runs[WINDOW_PAGES];
};

struct merge_buffers *merge_buffers_new(void)
{
	return calloc(1, sizeof(struct merge_buffers));
}

void merge_buffers_free(struct merge_buffers *b)
{
	if (!b)
		return;
	for (u32 i = 0; i < PROMOTIONS; i++)
		promote_job_free(b->jobs[i]);
	free(b);
}

/* A pair whose partner was taken by an earlier pair of this window waits for the next pass: it is
 * in the store then. */
static bool partner_free(const struct engine *e, u32 gpn)
{
	const struct ksm_region *r = gpn_region(e, gpn);
	u8 state = r->state[gpn - r->gpn];

	return (state == PG_CANDIDATE || state == PG_BROKEN_CANDIDATE) && vm_may_share(r->vm);
}

/* Taken as the partner of another page of this window. */
static bool is_pending(const struct engine *e, u32 gpn)
{
	const struct ksm_region *r = gpn_region(e, gpn);
	u8 state = r->state[gpn - r->gpn];

	return state == PG_PENDING || state == PG_BROKEN_PENDING;
}

/* Page content is in the store: both sides may be merged with it. */
static void publish(struct ksm_domain *d, struct match *m, u32 spn, u64 hash, struct placement *own,
		    struct placement *partner)
{
	struct ksm_region *r = gpn_region(d->engine, m->gpn),
			  *q = gpn_region(d->engine, m->partner);

	store_set_hash(d->store, spn, hash);
	/* If the index has no room the page cannot be found by others; these two share it all the
	 * same. */
	(void)index_add(d->index, hash_tag(hash), INDEX_STORE_FLAG | spn);
	page_set_pending(r, m->gpn - r->gpn);
	page_set_pending(q, m->partner - q->gpn);
	store_ref(d->store, spn);
	store_ref(d->store, spn);
	*own = (struct placement){ m->gpn, spn };
	*partner = (struct placement){ m->partner, spn };
}

/* Until the hung reader ends, its store pages must not be anything else: a cover keeps them
 * (invariant 4). */
static void keep_late(struct engine *e, struct late_pages *late)
{
	for (u32 i = 0; i < late->nr; i++)
		store_cover(late->domain->store, late->spn + i);
	late->next = e->late;
	e->late = late;
}

void collect_late(struct engine *e)
{
	for (struct late_pages **p = &e->late; *p;) {
		struct late_pages *late = *p;

		if (!late->ended) {
			p = &late->next;
			continue;
		}
		for (u32 i = 0; i < late->nr; i++)
			store_uncover(late->domain->store, late->spn + i);
		store_release(late->domain->store, late->spn, late->nr);
		*p = late->next;
		free(late);
	}
}

/* A job that promotes [0, nr) of @m, with store pages of its own; NULL: not now. */
static struct promote_job *prepare(struct ksm_vm *vm, const struct match *m, u32 nr,
				   struct promote_job **slot)
{
	struct store *store = vm->domain->store;
	struct promote_job *j;
	u32 spn;

	if (!*slot)
		*slot = promote_job_new();
	j = *slot;
	if (!j)
		return NULL;
	spn = store_alloc(store, nr);
	if (spn == SPN_NONE)
		return NULL;
	j->late = calloc(1, sizeof(*j->late));
	if (!j->late) {
		store_release(store, spn, nr);
		return NULL;
	}
	*j->late = (struct late_pages){ .domain = vm->domain, .spn = spn, .nr = nr };
	j->store = store;
	j->target = target_get(vm->target);
	j->spn = spn;
	j->nr = nr;
	for (u32 i = 0; i < nr; i++) {
		const struct ksm_region *r = gpn_region(vm->engine, m[i].gpn);

		j->hva[i] = page_hva(r, m[i].gpn - r->gpn);
		j->hash[i] = m[i].hash;
		j->ok[i] = false;
	}
	return j;
}

/* The job is done, or was never begun. Appends what it promoted to the placements; returns how many
 * pages that are. */
static u32 settle(struct ksm_vm *vm, struct match *m, struct promote_job *j, struct placement *own,
		  struct placement *partners)
{
	struct ksm_domain *d = vm->domain;
	u32 n = 0;

	for (u32 i = 0; i < j->nr; i++) {
		/* What is not promoted stays FRESH and is looked up again in the next pass. */
		if (j->ok[i] && partner_free(vm->engine, m[i].partner) &&
		    !is_pending(vm->engine, m[i].gpn)) {
			publish(d, &m[i], j->spn + i, j->hash[i], &own[n], &partners[n]);
			n++;
		} else {
			store_release(d->store, j->spn + i, 1);
		}
	}
	target_put(j->target);
	j->target = NULL;
	free(j->late);
	j->late = NULL;
	return n;
}

/* Promotes matches [0, nr), pages of one VM in their order. Appends to the placements; returns how
 * many were promoted. */
static u32 promote(struct ksm_vm *vm, struct match *m, u32 nr, struct placement *own,
		   struct placement *partners)
{
	struct merge_buffers *b = vm->engine->merge;
	struct reader_job *jobs[PROMOTIONS];
	u32 nr_jobs = 0, n = 0;
	int stage;

	for (u32 i = 0; i < nr; i += PROMOTION_PAGES) {
		struct promote_job *j =
			prepare(vm, m + i, MIN(nr - i, PROMOTION_PAGES), &b->jobs[nr_jobs]);

		if (!j)
			break;
		b->late[nr_jobs] = j->late;
		jobs[nr_jobs++] = &j->job;
	}
	if (nr_jobs &&
	    reader_run(vm->engine->readers, jobs, nr_jobs, READ_TIMEOUT_US, &stage) == -ETIMEDOUT)
		vm_set_blocked(vm);
	for (u32 i = 0; i < nr_jobs; i++) {
		struct promote_job *j = b->jobs[i];

		if (jobs[i]) {
			n += settle(vm, m + i * PROMOTION_PAGES, j, own + n, partners + n);
		} else {
			/* The hung reader's now; so is the job's ->late, until that ends. */
			keep_late(vm->engine, b->late[i]);
			b->jobs[i] = NULL;
		}
	}
	return n;
}

void queue_runs(struct engine *e, struct placement *p, u32 nr, struct run *runs)
{
	u32 n = plan_runs(p, nr, ENGINE_PAGES_MAX, runs);

	for (u32 i = 0; i < n; i++) {
		struct ksm_region *r = gpn_region(e, runs[i].gpn);
		/* Numbers of two regions can be neighbours; a run ends with its region. */
		u32 in_region = MIN(runs[i].nr, r->gpn + r->nr_pages - runs[i].gpn);
		struct ksm_op_run run = { .gpn = runs[i].gpn,
					  .spn = runs[i].spn,
					  .nr = in_region,
					  .on_read = e->on_read };
		int err = ops_queue(r->vm, &run);

		for (u32 k = 0; err < 0 && k < in_region; k++) {
			domain_unref(r->vm->domain, run.spn + k);
			page_unpend(r, run.gpn - r->gpn + k, err == -ENOSPC ? PG_HELD : PG_FRESH);
		}
		if (in_region < runs[i].nr) {
			runs[i] = (struct run){ run.gpn + in_region, run.spn + in_region,
						runs[i].nr - in_region };
			i--;
		}
	}
}

void merge_matches(struct ksm_vm *vm, struct match *matches, u32 nr)
{
	struct merge_buffers *b = vm->engine->merge;
	struct engine *e = vm->engine;
	u32 own = 0, partners;

	/* Content that is in the store already. */
	for (u32 i = 0; i < nr; i++) {
		struct match *m = &matches[i];
		struct ksm_region *r = gpn_region(e, m->gpn);

		if (m->spn == SPN_NONE || is_pending(e, m->gpn))
			continue;
		store_ref(vm->domain->store, m->spn);
		page_set_pending(r, m->gpn - r->gpn);
		b->own[own++] = (struct placement){ m->gpn, m->spn };
	}
	partners = promote(vm, matches, plan_promotions(matches, nr), b->own + own, b->partners);
	own += partners;
	queue_runs(e, b->own, own, b->runs);
	queue_runs(e, b->partners, partners, b->runs);
}
