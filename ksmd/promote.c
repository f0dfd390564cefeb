/* SPDX-License-Identifier: MIT */
/*
 * From matches to requests: content that was seen in two pages is promoted into the store, and runs
 * of pages that shall show store pages are queued for the agents (steps 4 and 5 of engine.h).
 */
#include <errno.h>
#include <stdlib.h>
#include "ksmd/core.h"
#include "ksmd/jobs.h"

/* Kept between windows, so that none allocates. */
struct merge_buffers {
	struct promotion promotions[WINDOW_PAGES];
	struct placement own[WINDOW_PAGES], partners[WINDOW_PAGES];
	struct run runs[WINDOW_PAGES];
};

struct merge_buffers *merge_buffers_new(void)
{
	return calloc(1, sizeof(struct merge_buffers));
}

static struct promote_job *job_of(struct ksm_domain *d, const struct match *m, u32 nr, u32 spn)
{
	struct promote_job *j = promote_job_new(d->store, nr);

	if (!j)
		return NULL;
	j->spn = spn;
	for (int side = 0; side < 2; side++) {
		for (u32 i = 0; i < nr; i++) {
			u32 gpn = side ? m[i].partner : m[i].gpn;
			const struct ksm_region *r = gpn_region(d->engine, gpn);

			j->hva[side][i] = page_hva(r, gpn - r->gpn);
			/* All of one side are of one VM: plan_promotions() sees to that. */
			if (i == 0)
				j->target[side] = target_get(r->vm->target);
		}
	}
	return j;
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

/*
 * Promotes matches [0, nr), pages of one VM whose partners are of one VM. Appends to the
 * placements; returns how many were promoted.
 */
static u32 promote(struct ksm_vm *vm, struct match *m, u32 nr, struct placement *own,
		   struct placement *partners)
{
	struct ksm_domain *d = vm->domain;
	struct reader_job *jobs[1];
	struct promote_job *j;
	u32 spn = store_alloc(d->store, nr), n = 0;
	struct late_pages *late;
	int stage, err;

	if (spn == SPN_NONE)
		return 0;
	j = job_of(d, m, nr, spn);
	late = calloc(1, sizeof(*late));
	if (!j || !late) {
		if (j)
			promote_job_free(j);
		free(late);
		store_release(d->store, spn, nr);
		return 0;
	}
	*late = (struct late_pages){ .domain = d, .spn = spn, .nr = nr };
	j->late = late;
	jobs[0] = &j->job;
	err = reader_run(vm->engine->readers, jobs, 1, READ_TIMEOUT_US, &stage);
	if (!jobs[0]) {
		keep_late(vm->engine, late);
		vm_set_blocked(stage ? gpn_region(vm->engine, m[0].partner)->vm : vm);
		return 0;
	}
	j->late = NULL;
	free(late);
	if (err < 0) {
		promote_job_free(j);
		store_release(d->store, spn, nr);
		return 0;
	}
	for (u32 i = 0; i < nr; i++) {
		if (j->err == 0 && j->ok[1][i] && partner_free(vm->engine, m[i].partner) &&
		    !is_pending(vm->engine, m[i].gpn)) {
			publish(d, &m[i], spn + i, j->hash[i], &own[n], &partners[n]);
			n++;
			continue;
		}
		store_release(d->store, spn + i, 1);
		/* What stays FRESH is hashed again in the next pass. */
		if (j->err == 0 && j->ok[0][i] && partner_free(vm->engine, m[i].partner) &&
		    !is_pending(vm->engine, m[i].gpn)) {
			/* Equal tags, other content: this page is a candidate of its own. */
			struct ksm_region *r = gpn_region(vm->engine, m[i].gpn);

			(void)page_set_candidate(r, m[i].gpn - r->gpn, hash_tag(m[i].hash));
		}
	}
	promote_job_free(j);
	return n;
}

static void queue_runs(struct engine *e, struct placement *p, u32 nr, struct run *runs)
{
	u32 n = plan_runs(p, nr, ENGINE_PAGES_MAX, runs);

	for (u32 i = 0; i < n; i++) {
		struct ksm_region *r = gpn_region(e, runs[i].gpn);
		/* Numbers of two regions can be neighbours; a run ends with its region. */
		u32 in_region = MIN(runs[i].nr, r->gpn + r->nr_pages - runs[i].gpn);
		struct ksm_op_run run = { .gpn = runs[i].gpn, .spn = runs[i].spn, .nr = in_region };

		if (ops_queue(r->vm, &run) < 0) {
			for (u32 k = 0; k < in_region; k++) {
				domain_unref(r->vm->domain, run.spn + k);
				page_unpend(r, run.gpn - r->gpn + k, PG_FRESH);
			}
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
	u32 own = 0, partners = 0, nr_promotions;

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
	nr_promotions = plan_promotions(matches, nr, PROMOTION_PAGES, b->promotions);
	for (u32 i = 0; i < nr_promotions; i++) {
		struct match *m = &matches[b->promotions[i].first];
		u32 done;

		/* Since it was looked up its VM may have been found to hang. */
		if (!vm_may_share(gpn_region(e, m->partner)->vm))
			continue;
		done = promote(vm, m, b->promotions[i].nr, b->own + own, b->partners + partners);
		own += done;
		partners += done;
	}
	queue_runs(e, b->own, own, b->runs);
	queue_runs(e, b->partners, partners, b->runs);
}
