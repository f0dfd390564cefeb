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
#include "common/clock.h"
#include "ksmd/core.h"
#include "ksmd/hash.h"

/* A VMM that does not let itself be read for this long is left alone until it does. */
#define READ_TIMEOUT_US 1000000
#define SLOW_WINDOW_US	200000
#define SLOW_PAUSES	20
/* Ranges that one PAGEMAP_SCAN can return; when there are more the window gets shorter. */
#define SCAN_RANGES 2048
/* Pages of one hash job, so that the threads share a window's work, and of one promotion. */
#define HASH_JOB_PAGES	1024
#define PROMOTION_PAGES 256
/* Pages read at once before they are hashed or compared: they are still in the cache then. */
#define READ_BATCH_PAGES 64
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

struct scan_job {
	struct reader_job job;
	struct target *target;
	const struct pagemap_query *query;
	u64 start, end;
	u64 walk_end; /* how far it got */
	int nr;	      /* ranges, or -errno */
	struct page_region ranges[SCAN_RANGES];
};

struct hash_job {
	struct reader_job job;
	struct target *target;
	u32 nr;
	u64 hva[HASH_JOB_PAGES];
	u32 page[HASH_JOB_PAGES];
	u64 hash[HASH_JOB_PAGES];
	bool ok[HASH_JOB_PAGES], zero[HASH_JOB_PAGES];
	u8 *buf; /* READ_BATCH_PAGES pages */
};

struct promote_job {
	struct reader_job job;
	struct target *target[2]; /* of the pages and of their partners */
	const struct store *store;
	u32 spn, nr;
	u64 hva[2][PROMOTION_PAGES];
	bool ok[2][PROMOTION_PAGES]; /* of the pages: was read; of the partners: was read, and is
					equal */
	u64 hash[PROMOTION_PAGES];
	int err;		 /* the store could not be written */
	u8 *buf[2];		 /* READ_BATCH_PAGES pages */
	struct late_pages *late; /* told when the job ends after it was given up */
};

/* Kept between windows, so that none allocates. */
struct scan_buffers {
	struct hash_job *hash_jobs[WINDOW_PAGES / HASH_JOB_PAGES];
	u64 written[WINDOW_PAGES / 64];
	struct match matches[WINDOW_PAGES];
	struct promotion promotions[WINDOW_PAGES];
	struct placement own[WINDOW_PAGES], partners[WINDOW_PAGES];
	struct run runs[WINDOW_PAGES];
};

int scan_buffers_new(struct scan_buffers **ret)
{
	struct scan_buffers *b = calloc(1, sizeof(*b));

	if (!b)
		return -ENOMEM;
	*ret = b;
	return 0;
}

/* --- reader jobs ------------------------------------------------------------------------------ */

static void scan_job_run(struct reader_job *job)
{
	struct scan_job *j = container_of(job, struct scan_job, job);

	j->nr = pagemap_scan(j->target->pagemap_fd, j->start, j->end, j->query, j->ranges,
			     SCAN_RANGES, &j->walk_end);
}

static void scan_job_free(struct reader_job *job)
{
	struct scan_job *j = container_of(job, struct scan_job, job);

	target_put(j->target);
	free(j);
}

static void hash_batch(struct hash_job *j, u32 first, u32 nr)
{
	/* A page that cannot be read is simply not hashed. */
	if (target_read(j->target, j->hva + first, nr, j->buf, j->ok + first) < 0)
		memset(j->ok + first, 0, nr * sizeof(j->ok[0]));
	for (u32 i = 0; i < nr; i++) {
		const u8 *page = j->buf + i * PAGE_BYTES;

		if (!j->ok[first + i])
			continue;
		j->zero[first + i] = page_is_zero(page);
		j->hash[first + i] = j->zero[first + i] ? 0 : page_hash(page);
	}
}

static void hash_job_run(struct reader_job *job)
{
	struct hash_job *j = container_of(job, struct hash_job, job);

	for (u32 i = 0; i < j->nr; i += READ_BATCH_PAGES)
		hash_batch(j, i, MIN(j->nr - i, READ_BATCH_PAGES));
}

static void hash_job_free(struct reader_job *job)
{
	struct hash_job *j = container_of(job, struct hash_job, job);

	target_put(j->target);
	free(j->buf);
	free(j);
}

static struct hash_job *hash_job_new(void)
{
	struct hash_job *j = calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	j->job = (struct reader_job){ .run = hash_job_run, .free = hash_job_free };
	j->buf = aligned_alloc(PAGE_BYTES, READ_BATCH_PAGES * PAGE_BYTES);
	if (!j->buf) {
		free(j);
		return NULL;
	}
	return j;
}

void scan_buffers_free(struct scan_buffers *b)
{
	if (!b)
		return;
	for (u32 i = 0; i < ARRAY_SIZE(b->hash_jobs); i++)
		if (b->hash_jobs[i])
			hash_job_free(&b->hash_jobs[i]->job);
	free(b);
}

/* Step 4 of the engine's overview, for a batch: read both, compare, write what is equal into the
 * store. */
static int promote_batch(struct promote_job *j, u32 first, u32 nr)
{
	int err = 0;

	for (int side = 0; side < 2; side++) {
		j->job.stage = side; /* who is to blame if it hangs */
		if (target_read(j->target[side], j->hva[side] + first, nr, j->buf[side],
				j->ok[side] + first) < 0)
			memset(j->ok[side] + first, 0, nr * sizeof(j->ok[side][0]));
	}
	for (u32 i = 0; i < nr; i++) {
		const u8 *page = j->buf[0] + i * PAGE_BYTES;
		bool *read = &j->ok[0][first + i], *equal = &j->ok[1][first + i];

		/* The hash is taken from the copy that the store gets. */
		if (*read)
			j->hash[first + i] = page_hash(page);
		*equal = *read && *equal &&
			 memcmp(page, j->buf[1] + i * PAGE_BYTES, PAGE_BYTES) == 0;
	}
	for (u32 i = 0, n; i < nr && err == 0; i += n) {
		for (n = 1; i + n < nr && j->ok[1][first + i + n] == j->ok[1][first + i]; n++)
			;
		if (j->ok[1][first + i])
			err = store_write(j->store, j->spn + first + i, j->buf[0] + i * PAGE_BYTES,
					  n);
	}
	return err;
}

static void promote_job_run(struct reader_job *job)
{
	struct promote_job *j = container_of(job, struct promote_job, job);

	for (u32 i = 0; i < j->nr && j->err == 0; i += READ_BATCH_PAGES)
		j->err = promote_batch(j, i, MIN(j->nr - i, READ_BATCH_PAGES));
}

static void promote_job_free(struct reader_job *job)
{
	struct promote_job *j = container_of(job, struct promote_job, job);

	target_put(j->target[0]);
	target_put(j->target[1]);
	free(j->buf[0]);
	free(j->buf[1]);
	if (j->late)
		j->late->ended = true;
	free(j);
}

/* The VMM that a reader hangs in is left alone until that reader is back. */
static void set_blocked(struct ksm_vm *vm)
{
	vm->blocked = true;
	vm->nr_hangs++;
	vm->engine->ops->blocked(vm->conn, true);
}

/* --- scanning --------------------------------------------------------------------------------- */

static struct scan_job *run_scan(struct ksm_region *r, u32 page, u32 nr,
				 const struct pagemap_query *q)
{
	struct scan_job *j = calloc(1, sizeof(*j));
	struct reader_job *jobs[1];
	int stage;

	if (!j)
		return NULL;
	*j = (struct scan_job){
		.job = { .run = scan_job_run, .free = scan_job_free },
		.target = target_get(r->vm->target),
		.query = q,
		.start = page_hva(r, page),
		.end = page_hva(r, page + nr),
	};
	jobs[0] = &j->job;
	if (reader_run(r->vm->engine->readers, jobs, 1, READ_TIMEOUT_US, &stage) < 0) {
		if (jobs[0])
			scan_job_free(&j->job);
		else
			set_blocked(r->vm);
		return NULL;
	}
	if (j->nr < 0) {
		scan_job_free(&j->job);
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
		scan_job_free(&j->job);
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
	scan_job_free(&j->job);
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
		set_blocked(vm);
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

/* --- promoting -------------------------------------------------------------------------------- */

static struct promote_job *promote_job_new(struct ksm_domain *d, const struct match *m, u32 nr)
{
	struct promote_job *j = calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	j->job = (struct reader_job){ .run = promote_job_run, .free = promote_job_free };
	j->store = d->store;
	j->nr = nr;
	for (int side = 0; side < 2; side++) {
		j->buf[side] = aligned_alloc(PAGE_BYTES, READ_BATCH_PAGES * PAGE_BYTES);
		for (u32 i = 0; i < nr; i++) {
			u32 gpn = side ? m[i].partner : m[i].gpn;
			const struct ksm_region *r = gpn_region(d->engine, gpn);

			j->hva[side][i] = page_hva(r, gpn - r->gpn);
			/* All of one side are of one VM: promote() sees to that. */
			if (i == 0)
				j->target[side] = target_get(r->vm->target);
		}
	}
	if (j->buf[0] && j->buf[1])
		return j;
	promote_job_free(&j->job);
	return NULL;
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

void scan_collect_late(struct engine *e)
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
 * Promotes matches [0, nr), consecutive pages of one VM whose partners are of one VM. Appends to
 * the placements; returns how many were promoted.
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
	j = promote_job_new(d, m, nr);
	late = calloc(1, sizeof(*late));
	if (!j || !late) {
		if (j)
			promote_job_free(&j->job);
		free(late);
		store_release(d->store, spn, nr);
		return 0;
	}
	*late = (struct late_pages){ .domain = d, .spn = spn, .nr = nr };
	j->late = late;
	j->spn = spn;
	jobs[0] = &j->job;
	err = reader_run(vm->engine->readers, jobs, 1, READ_TIMEOUT_US, &stage);
	if (!jobs[0]) {
		keep_late(vm->engine, late);
		set_blocked(stage ? gpn_region(vm->engine, m[0].partner)->vm : vm);
		return 0;
	}
	j->late = NULL;
	free(late);
	if (err < 0) {
		promote_job_free(&j->job);
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
	promote_job_free(&j->job);
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

static void merge_window(struct ksm_vm *vm, struct scan_buffers *b, u32 nr)
{
	struct engine *e = vm->engine;
	u32 own = 0, partners = 0, nr_promotions;

	/* Content that is in the store already. */
	for (u32 i = 0; i < nr; i++) {
		struct match *m = &b->matches[i];
		struct ksm_region *r = gpn_region(e, m->gpn);

		if (m->spn == SPN_NONE || is_pending(e, m->gpn))
			continue;
		store_ref(vm->domain->store, m->spn);
		page_set_pending(r, m->gpn - r->gpn);
		b->own[own++] = (struct placement){ m->gpn, m->spn };
	}
	nr_promotions = plan_promotions(b->matches, nr, PROMOTION_PAGES, b->promotions);
	for (u32 i = 0; i < nr_promotions; i++) {
		struct match *m = &b->matches[b->promotions[i].first];

		/* A promotion is cut where the partners' VM changes. */
		for (u32 k = 0, n; k < b->promotions[i].nr; k += n) {
			const struct ksm_vm *q = gpn_region(e, m[k].partner)->vm;
			u32 done;

			for (n = 1; k + n < b->promotions[i].nr; n++)
				if (gpn_region(e, m[k + n].partner)->vm != q)
					break;
			if (!vm_may_share(q))
				continue;
			done = promote(vm, m + k, n, b->own + own, b->partners + partners);
			own += done;
			partners += done;
		}
	}
	queue_runs(e, b->own, own, b->runs);
	queue_runs(e, b->partners, partners, b->runs);
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
	merge_window(vm, b, match_window(r, b, nr_jobs));
	/* Reading that takes long makes all others wait: who is slow gets a small share of the
	 * time. */
	if (now_us() - started > SLOW_WINDOW_US)
		vm->slow_until_us = now_us() + SLOW_PAUSES * (now_us() - started);
	return true;
}
