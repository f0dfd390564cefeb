/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "ksmd/core.h"
#include "ksmd/hash.h"
#include "ksmd/jobs.h"

/* Of a domain; more are an error of somebody's. */
#define IMAGES_MAX 256
/* Zeros between two stretches that are stored as well: a mapping costs more (view.h). */
#define GAP_PAGES 8
/* Pages queued, or freed, in one step. */
#define STEP_PAGES 16384
/* After an agent did not take the end of its request. */
#define END_RETRY_US 10000

struct stretch_of_image {
	u32 page, nr;
};

struct ksm_image {
	struct ksm_image *next;
	struct image_id id;
	u64 offset;
	u32 spn, nr_pages;
	u32 users; /* VMs; 0: it goes */
	bool ready;
	bool released; /* of its store pages it has only those of the stretches */
	int err;       /* it could not be loaded */
	int fd;	       /* while it is loaded; -1 */
	u32 cursor;    /* pages before it are loaded */
	u32 nr_runs, cap_runs;
	struct stretch_of_image *runs;
};

static u32 run_end(const struct ksm_image *m, u32 i)
{
	return m->runs[i].page + m->runs[i].nr;
}

/* --- looking at files ------------------------------------------------------------------------- */

static struct image_job *get_job(struct ksm_vm *vm)
{
	struct engine *e = vm->engine;

	if (!e->image_job)
		e->image_job = image_job_new();
	return e->image_job;
}

/* Whatever a file does that a VMM has passed, it does to a reader. *fd is lost when that hangs. */
static int run_job(struct ksm_vm *vm, enum image_work what, int *fd, u64 offset, u32 nr)
{
	struct image_job *j = get_job(vm);
	struct reader_job *jobs[1];
	int err, stage;

	if (!j)
		return -ENOMEM;
	j->what = what;
	j->fd = *fd;
	j->offset = offset;
	j->nr = nr;
	j->target = target_get(vm->target);
	jobs[0] = &j->job;
	err = reader_run(vm->engine->readers, jobs, 1, READ_TIMEOUT_US, &stage);
	if (!jobs[0]) {
		vm->engine->image_job = NULL; /* the hung reader's now, and the file with it */
		*fd = -1;
		vm_set_blocked(vm);
		return -ETIMEDOUT;
	}
	target_put(j->target);
	j->target = NULL;
	return err < 0 ? err : j->err;
}

static void close_file(struct ksm_vm *vm, int *fd)
{
	/* Closing may hang, too (a file system of the VMM's own). Without a job it is done here. */
	if (*fd >= 0 && run_job(vm, IMAGE_CLOSE, fd, 0, 0) < 0 && *fd >= 0)
		close(*fd);
	*fd = -1;
}

void engine_close_file(struct ksm_vm *vm, int fd)
{
	close_file(vm, &fd);
}

/* --- life ------------------------------------------------------------------------------------- */

static struct ksm_image *find_image(struct ksm_domain *d, const struct image_id *id, u64 offset,
				    u32 nr_pages)
{
	for (struct ksm_image *m = d->images; m; m = m->next)
		if (m->users && !m->err && m->offset == offset && m->nr_pages == nr_pages &&
		    memcmp(&m->id, id, sizeof(*id)) == 0)
			return m;
	return NULL;
}

static int new_image(struct ksm_domain *d, const struct image_id *id, u64 offset, u32 nr_pages,
		     struct ksm_image **ret)
{
	struct ksm_image *m;

	/* All of it may become memory, and metadata is memory at once. */
	if (d->nr_images == IMAGES_MAX ||
	    ((d->image_pages + nr_pages) << PAGE_SHIFT) > d->engine->cfg.image_max_bytes)
		return -ENOSPC;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->id = *id;
	m->offset = offset;
	m->nr_pages = nr_pages;
	m->fd = -1;
	m->spn = store_alloc(d->store, nr_pages);
	if (m->spn == SPN_NONE) {
		free(m);
		return -ENOSPC;
	}
	m->next = d->images;
	d->images = m;
	d->nr_images++;
	d->image_pages += nr_pages;
	*ret = m;
	return 0;
}

/* A VM has an image once, however often it asks. */
static int use_image(struct ksm_vm *vm, struct ksm_image *m)
{
	for (u32 i = 0; i < vm->nr_images; i++)
		if (vm->images[i] == m)
			return 0;
	if (vm->nr_images == ARRAY_SIZE(vm->images))
		return -ENOSPC;
	vm->images[vm->nr_images++] = m;
	m->users++;
	return 0;
}

static void unuse_image(struct ksm_vm *vm, struct ksm_image *m)
{
	for (u32 i = 0; i < vm->nr_images; i++) {
		if (vm->images[i] != m)
			continue;
		vm->images[i] = vm->images[--vm->nr_images];
		if (--m->users == 0)
			close_file(vm, &m->fd);
		return;
	}
}

/* Store pages that are in no stretch: zeros, or not loaded any more. */
static void release_rest(struct ksm_domain *d, struct ksm_image *m)
{
	u32 at = 0;

	for (u32 i = 0; i <= m->nr_runs; i++) {
		u32 end = i < m->nr_runs ? m->runs[i].page : m->nr_pages;

		if (end > at)
			store_release(d->store, m->spn + at, end - at);
		at = i < m->nr_runs ? run_end(m, i) : end;
	}
	m->released = true;
}

/* Gives back some of what an image holds. True: all of it. */
static bool empty_image(struct ksm_domain *d, struct ksm_image *m, u32 *budget)
{
	if (!m->released)
		release_rest(d, m);
	while (m->nr_runs && *budget) {
		struct stretch_of_image *s = &m->runs[m->nr_runs - 1];

		domain_unref(d, m->spn + s->page + --s->nr);
		d->image_refs--;
		(*budget)--;
		m->nr_runs -= s->nr == 0;
	}
	return !m->nr_runs;
}

bool images_reap(struct engine *e)
{
	u32 budget = STEP_PAGES;

	for (u32 i = 0; i < e->nr_domains; i++) {
		struct ksm_domain *d = e->domains[i];

		for (struct ksm_image **p = &d->images; *p;) {
			struct ksm_image *m = *p;

			if (m->users) {
				p = &m->next;
				continue;
			}
			if (!empty_image(d, m, &budget))
				return true;
			*p = m->next;
			d->nr_images--;
			d->image_pages -= m->nr_pages;
			free(m->runs);
			free(m);
		}
	}
	return false;
}

void images_free(struct ksm_domain *d)
{
	while (d->images) {
		struct ksm_image *m = d->images;

		d->images = m->next;
		if (m->fd >= 0)
			close(m->fd);
		free(m->runs);
		free(m);
	}
}

u64 images_bytes(const struct ksm_domain *d)
{
	u64 bytes = 0;

	for (const struct ksm_image *m = d->images; m; m = m->next)
		bytes += sizeof(*m) + m->cap_runs * sizeof(m->runs[0]);
	return bytes;
}

/* --- loading ---------------------------------------------------------------------------------- */

/* The stretch that @page goes on, over a gap of zeros at most; a new one. */
static struct stretch_of_image *stretch_for(struct ksm_image *m, u32 page)
{
	if (m->nr_runs && page - run_end(m, m->nr_runs - 1) <= GAP_PAGES)
		return &m->runs[m->nr_runs - 1];
	if (m->nr_runs == m->cap_runs) {
		u32 cap = m->cap_runs ? m->cap_runs * 2 : 64;
		struct stretch_of_image *runs = realloc(m->runs, cap * sizeof(runs[0]));

		if (!runs)
			return NULL;
		m->runs = runs;
		m->cap_runs = cap;
	}
	m->runs[m->nr_runs] = (struct stretch_of_image){ .page = page };
	return &m->runs[m->nr_runs++];
}

/* The page's content is in the store: the image's, and from now on to be found by others. */
static void publish(struct ksm_domain *d, u32 spn, u64 hash, bool zero)
{
	store_set_hash(d->store, spn, hash);
	store_ref(d->store, spn);
	d->image_refs++;
	if (!zero)
		(void)index_add(d->index, hash_tag(hash), INDEX_STORE_FLAG | spn);
}

static int take_page(struct ksm_domain *d, struct ksm_image *m, u32 page, u64 hash)
{
	struct stretch_of_image *s = stretch_for(m, page);
	static const u8 zeros[PAGE_BYTES] __attribute__((aligned(16)));

	if (!s)
		return -ENOMEM;
	/* Zeros in between are written as well: who had the store page before may have left
	 * something there (store.c, store_flush()). */
	for (; s->page + s->nr < page; s->nr++) {
		int err = store_write(d->store, m->spn + s->page + s->nr, zeros, 1);

		if (err < 0)
			return err;
		publish(d, m->spn + s->page + s->nr, page_hash(zeros), true);
	}
	publish(d, m->spn + page, hash, false);
	s->nr++;
	return 0;
}

/* Writes what is not zero of the batch in @j, whose first page is the image's @cursor. */
static int store_batch(struct ksm_domain *d, struct ksm_image *m, const struct image_job *j)
{
	int err = 0;

	for (u32 i = 0, n; i < j->nr && err == 0; i += n) {
		for (n = 1; i + n < j->nr && j->zero[i + n] == j->zero[i]; n++)
			;
		if (j->zero[i])
			continue;
		/* Before anybody can be given it (invariant 3). */
		err = store_write(d->store, m->spn + m->cursor + i, j->buf + i * PAGE_BYTES, n);
		for (u32 k = i; k < i + n && err == 0; k++)
			err = take_page(d, m, m->cursor + k, j->hash[k]);
	}
	return err;
}

/* One batch of the image, read by way of @vm, which waits for it. */
static void load(struct ksm_vm *vm, struct ksm_image *m)
{
	u32 nr = MIN(m->nr_pages - m->cursor, IMAGE_JOB_PAGES);
	int err = run_job(vm, IMAGE_READ, &m->fd, m->offset + ((u64)m->cursor << PAGE_SHIFT), nr);
	const struct image_job *j = vm->engine->image_job;

	/* Asked after the read: what was read is of the file that was asked for. */
	if (err == 0 && memcmp(&j->id, &m->id, sizeof(m->id)) != 0)
		err = -ESTALE;
	if (err == 0)
		err = store_batch(vm->domain, m, j);
	m->err = err;
	m->cursor += nr;
	if (err < 0 || m->cursor == m->nr_pages) {
		m->ready = err == 0;
		release_rest(vm->domain, m);
		close_file(vm, &m->fd);
	}
}

/* --- requests --------------------------------------------------------------------------------- */

/* Finds the image that the file is, or makes it. */
static int begin(struct ksm_vm *vm)
{
	struct image_request *q = &vm->image_request;
	u32 nr_pages = (u32)(q->bytes >> PAGE_SHIFT);
	struct ksm_domain *d = vm->domain;
	struct ksm_image *m;
	struct image_id id;
	int err = run_job(vm, IMAGE_STAT, &q->fd, q->offset, nr_pages);

	if (err < 0)
		return err;
	id = vm->engine->image_job->id;
	m = find_image(d, &id, q->offset, nr_pages);
	if (!m) {
		err = new_image(d, &id, q->offset, nr_pages, &m);
		if (err < 0)
			return err;
		m->fd = q->fd;
		q->fd = -1;
	}
	close_file(vm, &q->fd);
	err = use_image(vm, m);
	if (err == 0)
		q->image = m;
	else if (!m->users)
		close_file(vm, &m->fd);
	return err;
}

/* Has the agent map store pages [spn, spn + nr) from @page on, which are empty. */
static int queue(struct ksm_vm *vm, struct ksm_region *r, u32 page, u32 spn, u32 nr)
{
	struct ksm_op_run run = {
		.gpn = r->gpn + page, .spn = spn, .nr = nr, .image = vm->image_request.number
	};
	int err;

	for (u32 p = page; p < page + nr; p++)
		if (page_is_mapped(r, p) || r->state[p] == PG_PENDING)
			return -EBUSY;
	for (u32 i = 0; i < nr; i++) {
		page_set_pending(r, page + i);
		store_ref(vm->domain->store, spn + i);
	}
	err = ops_queue(vm, &run);
	for (u32 i = 0; i < nr && err < 0; i++) {
		domain_unref(vm->domain, spn + i);
		page_unpend(r, page + i, PG_NONE);
	}
	return err;
}

/* Queues some of the image. */
static int map_some(struct ksm_vm *vm)
{
	struct image_request *q = &vm->image_request;
	struct ksm_region *r = vm_region_at(vm, q->hva, q->bytes);
	const struct ksm_image *m = q->image;
	u32 budget = STEP_PAGES;

	if (!r || r->gone)
		return -ENOENT;
	if (!vm_may_share(vm))
		return -EAGAIN;
	/* All of it or nothing: a part would not help. */
	if (!q->nr_queued && vm->boundaries + 2 * (u64)m->nr_runs > vm->engine->cfg.maps_limit)
		return -ENOSPC;
	while (budget && q->run < m->nr_runs && vm->queue_nr <= ENGINE_RUNS_MAX) {
		const struct stretch_of_image *s = &m->runs[q->run];
		u32 nr = MIN(MIN(s->nr - q->page, budget), (u32)ENGINE_PAGES_MAX);
		u32 page = (u32)((q->hva - r->hva) >> PAGE_SHIFT) + s->page + q->page;
		int err = queue(vm, r, page, m->spn + s->page + q->page, nr);

		if (err < 0)
			return err;
		budget -= nr;
		q->outstanding += nr;
		q->nr_queued += nr;
		q->page += nr;
		if (q->page == s->nr) {
			q->run++;
			q->page = 0;
		}
	}
	return 0;
}

static bool is_asked_all(const struct image_request *q)
{
	return q->err < 0 || (q->image && q->image->ready && q->run == q->image->nr_runs);
}

bool image_has_work(const struct ksm_vm *vm)
{
	const struct image_request *q = &vm->image_request;

	return q->active && (q->lost || !is_asked_all(q) || !q->outstanding);
}

void image_settled(struct ksm_vm *vm, u32 number, int status)
{
	struct image_request *q = &vm->image_request;

	/* Or it was of an earlier connection. */
	if (!q->active || number != q->number)
		return;
	q->outstanding--;
	if (status < 0 && q->err == 0)
		q->err = status;
}

/* It did not come to its end, so what there is of it is not used. */
static void drop_request(struct ksm_vm *vm)
{
	struct image_request *q = &vm->image_request;

	close_file(vm, &q->fd);
	if (q->active && q->image)
		unuse_image(vm, q->image);
	q->active = false;
	q->image = NULL;
}

void image_lose(struct ksm_vm *vm)
{
	vm->image_request.lost = true;
}

void image_step(struct ksm_vm *vm)
{
	struct image_request *q = &vm->image_request;

	if (q->lost) {
		drop_request(vm);
		return;
	}
	if (q->err == 0 && !q->image)
		q->err = begin(vm);
	else if (q->err == 0 && !q->image->ready && !q->image->err)
		load(vm, q->image);
	else if (q->err == 0 && q->image->err)
		q->err = q->image->err;
	else if (q->err == 0 && !is_asked_all(q))
		q->err = map_some(vm);
	if (!is_asked_all(q) || q->outstanding)
		return;
	close_file(vm, &q->fd);
	if (q->err < 0 && q->image)
		unuse_image(vm, q->image);
	q->image = q->err < 0 ? NULL : q->image;
	if (vm->engine->ops->image_end(vm->conn, q->err, q->nr_queued) == -EAGAIN)
		vm->pump_due_us = now_us() + END_RETRY_US;
	else
		q->active = false;
}

void image_vm_exit(struct ksm_vm *vm)
{
	drop_request(vm);
	while (vm->nr_images)
		unuse_image(vm, vm->images[0]);
}

int engine_image(struct ksm_vm *vm, int fd, u64 hva, u64 bytes, u64 offset)
{
	struct image_request *q = &vm->image_request;
	const struct ksm_region *r = vm_region_at(vm, hva, bytes);

	if (q->lost)
		drop_request(vm);
	/* One at a time: it must wait for the end. */
	if (q->active) {
		close_file(vm, &fd);
		return -EPROTO;
	}
	*q = (struct image_request){
		.active = true,
		.number = q->number + 1 ? q->number + 1 : 1,
		.fd = fd,
		.hva = hva,
		.bytes = bytes,
		.offset = offset,
	};
	if (!r || r->gone)
		q->err = -ENOENT;
	else if (!vm->engine->cfg.enabled || !vm_may_share(vm))
		q->err = -EAGAIN;
	return 0;
}
