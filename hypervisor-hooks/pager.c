/* SPDX-License-Identifier: MIT */
/*
 * The pager: pages that were taken out of the guest and wait, compressed, in this process's memory
 * or, where the daemon gave it a swap file, in that (swap.c).
 *
 * Out: a page leaves by UFFDIO_MOVE as one that is to be merged does (merge.c), so no access can
 * see it half gone (invariant 1), and none that is under DMA leaves. Its content is compressed
 * (LZ4) from the staging area into the pool; one of zeros is dropped, since a hole reads as zeros;
 * one that does not compress well goes back, or with a swap file is kept as it is. Only then is the
 * copy in the staging area freed.
 *
 * In: the guest's access to the hole is an event for the thread "ballast-fault", which puts the
 * page back by UFFDIO_COPY, or for one that has to be read leaves it to swap.c. All that this takes
 * is in this process, or its file: no daemon is asked, and its death changes nothing (invariants 6
 * and 8).
 *
 * What hangs on a page that is out, and who takes care of it:
 *   - its chunk stays adopted (chunk_release() is not called for it): the hole must trap;
 *   - a discard drops the content: the page reads as zeros then (region.c);
 *   - a region that is taken back gets its pages back first; one that is replaced does not;
 *   - fork(): a child would find zeros. So pages are taken only out of memory that children do not
 *     get (MADV_DONTFORK, as QEMU and ballast-vmm have it), and are back before they do.
 *
 * Cost: 4 bytes a page in chunks of which pages are out, and the pool's (pool.h).
 */
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include "hypervisor-hooks/agent.h"
#include "hypervisor-hooks/pool.h"

/* For a shortage of memory that passes; the guest waits. */
#define FILL_TRIES    10000
#define FILL_PAUSE_US 1000

/* What compresses to more is not worth it: three quarters of a page. */
#define PACKED_MAX 3064

/* In r->out[chunk][page]: an object of the pool, and whether it is a sample of the working set. */
#define OUT_SAMPLE ((u32)1 << 31)

static u64 all_bytes(const struct bh_agent *a)
{
	u64 bytes = 0;

	for (u32 i = 0; i < a->nr_regions; i++)
		bytes += a->regions[i]->bytes;
	return bytes;
}

/* Rule iii of agent.h: allocated without the lock, installed with it. */
static int pool_prepare(struct bh_agent *a)
{
	struct pool *p = NULL;
	void *state = NULL;
	u64 bytes;
	int err;

	if (a->pool)
		return 0;
	lock_step(a);
	bytes = all_bytes(a);
	pthread_mutex_unlock(&a->lock);
	/* A page that is kept as it is takes somewhat more. */
	err = pool_new(bytes + bytes / 8, &p);
	if (err == 0) {
		state = malloc((size_t)LZ4_sizeofState());
		err = state ? 0 : -ENOMEM;
	}
	if (err < 0) {
		pool_free(p);
		return err;
	}
	lock_step(a);
	a->pool = p;
	a->lz4_state = state;
	pthread_mutex_unlock(&a->lock);
	return 0;
}

static int chunk_prepare(struct bh_agent *a, u64 hva)
{
	u32 *table = NULL;
	int err = -EAGAIN;

	while (err == -EAGAIN) {
		struct bh_region *r;
		u64 c;

		lock_step(a);
		r = region_find(a, hva, PAGE_BYTES);
		c = r ? (hva - r->hva) >> CHUNK_SHIFT : 0;
		if (r && !r->out[c] && table) {
			r->out[c] = table;
			table = NULL;
		}
		if (!r || r->out[c])
			err = r && !r->dont_fork ? -ENOTSUP : 0;
		pthread_mutex_unlock(&a->lock);
		if (err == -EAGAIN) {
			table = calloc(CHUNK_PAGES, sizeof(*table));
			err = table ? -EAGAIN : -ENOMEM;
		}
	}
	free(table);
	return err;
}

int pager_prepare(struct bh_agent *a, u64 hva, u32 nr)
{
	int err = pool_prepare(a);

	_Static_assert(PAGER_STEP_PAGES <= CHUNK_PAGES, "they lie in two chunks at most");
	if (err == 0)
		err = chunk_prepare(a, hva);
	if (err == 0)
		err = chunk_prepare(a, hva + ((u64)(nr - 1) << PAGE_SHIFT));
	return err;
}

static u32 *out_slot(const struct bh_region *r, u64 page)
{
	u32 *table = r->out[page / CHUNK_PAGES];

	return table ? &table[page % CHUNK_PAGES] : NULL;
}

u32 pager_object(const struct bh_region *r, u64 page)
{
	const u32 *slot = out_slot(r, page);

	return slot ? *slot & ~OUT_SAMPLE : POOL_NONE;
}

bool pager_holds(const struct bh_region *r, u64 page)
{
	return pager_object(r, page) != POOL_NONE;
}

bool pager_on_medium(const struct bh_agent *a, const struct bh_region *r, u64 page)
{
	return pager_holds(r, page) && pool_on_medium(a->pool, pager_object(r, page));
}

/* The first page from @page on, below @end, whose chunk has pages out; @end: there is none. */
static u64 skip_to_out(const struct bh_region *r, u64 page, u64 end)
{
	while (page < end && !r->out_nr[page / CHUNK_PAGES])
		page = ROUND_DOWN(page, CHUNK_PAGES) + CHUNK_PAGES;
	return MIN(page, end);
}

static bool is_zero(const u8 *page)
{
	return page[0] == 0 && memcmp(page, page + 1, PAGE_BYTES - 1) == 0;
}

/* A new round: the samples of the last one are pages like others from here on. */
static void begin_round(struct bh_agent *a, u64 round)
{
	for (u32 i = 0; i < a->pager.nr_sample_at; i++) {
		struct bh_region *r = region_find(a, a->pager.sample_at[i], PAGE_BYTES);
		u64 page = r ? (a->pager.sample_at[i] - r->hva) >> PAGE_SHIFT : 0;

		if (r && pager_holds(r, page))
			*out_slot(r, page) &= ~OUT_SAMPLE;
	}
	a->pager.round = round;
	a->pager.sampled = a->pager.sample_faults = 0;
	a->pager.nr_sample_at = 0;
}

/* True: it shall be marked. One of zeros is none: it is not kept anywhere. */
static bool note_sample(struct bh_agent *a, const struct bh_region *r, u64 page, u64 round)
{
	if (!round)
		return false;
	if (round != a->pager.round)
		begin_round(a, round);
	if (a->pager.nr_sample_at == PAGER_SAMPLES_MAX)
		return false;
	a->pager.sample_at[a->pager.nr_sample_at++] = page_hva(r, page);
	a->pager.sampled++;
	return true;
}

void pager_note(struct bh_agent *a)
{
	a->pager.pool_bytes = pool_bytes(a->pool);
	a->swap.medium_bytes = pool_medium_bytes(a->pool);
}

/* The page's content as it is kept; POOL_NONE: it is not. */
static u32 keep(struct bh_agent *a, const void *content, int *err)
{
	char packed[PACKED_MAX];
	int bytes = LZ4_compress_fast_extState(a->lz4_state, content, packed, PAGE_BYTES,
					       sizeof(packed), 1);
	u32 object;

	*err = -EFBIG;
	if (bytes <= 0 && !swap_takes(a))
		return POOL_NONE;
	*err = -ENOSPC;
	if (bytes > 0)
		return pool_add(a->pool, packed, (u32)bytes);
	/* It saves nothing while it is in memory, so as much goes to the file. */
	object = pool_add(a->pool, content, PAGE_BYTES);
	if (object != POOL_NONE)
		swap_out(a, PAGE_BYTES);
	return object;
}

int pager_put(struct bh_agent *a, struct bh_region *r, u64 page, const void *content, u64 round)
{
	u32 *slot = out_slot(r, page), object;
	int err;

	if (!slot || *slot || !r->dont_fork)
		return -EAGAIN; /* the region is not the one that was prepared for */
	if (is_zero(content)) {
		a->pager.zero_total++;
		return 0;
	}
	object = keep(a, content, &err);
	if (object == POOL_NONE)
		return err;
	pager_note(a);
	*slot = object | (note_sample(a, r, page, round) ? OUT_SAMPLE : 0);
	r->out_nr[page / CHUNK_PAGES]++;
	a->pager.pages++;
	a->pager.out_total++;
	return 0;
}

static void forget(struct bh_agent *a, struct bh_region *r, u64 page, u32 *slot)
{
	pool_del(a->pool, *slot & ~OUT_SAMPLE);
	pager_note(a);
	*slot = 0;
	r->out_nr[page / CHUNK_PAGES]--;
	a->pager.pages--;
}

void pager_drop(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	u64 end = page + nr;

	for (u64 p = skip_to_out(r, page, end); p < end; p = skip_to_out(r, p + 1, end))
		if (pager_holds(r, p))
			forget(a, r, p, out_slot(r, p));
}

static void unpack(struct bh_agent *a, const void *packed, u32 bytes)
{
	if (bytes == PAGE_BYTES) {
		memcpy(a->fill, packed, PAGE_BYTES);
		return;
	}
	if (LZ4_decompress_safe(packed, (char *)a->fill, (int)bytes, PAGE_BYTES) == PAGE_BYTES)
		return;
	/* Only a stray write of the VMM into the pool does that. */
	agent_log(a,
		  "a guest page that was paged out cannot be decompressed: stopping the VM rather "
		  "than letting it read wrong bytes");
	abort();
}

int pager_fill_read(struct bh_agent *a, struct bh_region *r, u64 page, const void *packed,
		    u32 bytes)
{
	u32 *slot = out_slot(r, page);
	int err;

	unpack(a, packed, bytes);
	/*
	 * The content exists nowhere else, so it is kept until it is in the guest again (invariant
	 * 8). EEXIST cannot last: in an adopted chunk only we fill holes, and with the lock held.
	 */
	for (u32 tries = 0;; tries++) {
		err = uffd_copy(a->uffd, page_hva(r, page), a->fill, PAGE_BYTES);
		if (err == 0 || err == -ENOENT || err == -ESRCH || tries > FILL_TRIES)
			break;
		if (err != -EAGAIN)
			usleep(FILL_PAUSE_US);
	}
	/* The process is being torn down; or the VMM has just mapped something else there, which it
	 * tells next (bh_replace_end()): the event was of what was there before. */
	if (err == -ESRCH || err == -ENOENT)
		return err;
	if (err < 0) {
		agent_log(a,
			  "cannot bring a guest page back (%s): stopping the VM rather than "
			  "letting it read wrong bytes",
			  strerror(-err));
		abort();
	}
	a->pager.in_total++;
	a->pager.sample_faults += (*slot & OUT_SAMPLE) != 0;
	forget(a, r, page, slot);
	if (a->pager.in_total - a->pager.in_woken >= PAGER_NEWS_PAGES) {
		a->pager.in_woken = a->pager.in_total;
		a->pager.wake = true;
		agent_kick(a);
	}
	return 0;
}

int pager_fill(struct bh_agent *a, struct bh_region *r, u64 page)
{
	u8 blocks[POOL_PLACE_BLOCKS * POOL_BLOCK_BYTES] __attribute__((aligned(POOL_BLOCK_BYTES)));
	u32 object = pager_object(r, page), bytes;
	struct pool_place at;
	const void *packed;
	int err;

	if (object == POOL_NONE)
		return -ENOENT;
	if (!pool_on_medium(a->pool, object)) {
		packed = pool_get(a->pool, object, &bytes);
		return pager_fill_read(a, r, page, packed, bytes);
	}
	pool_read_begin(a->pool, object, &at);
	packed = swap_read(a, &at, blocks, &bytes);
	err = pager_fill_read(a, r, page, packed, bytes);
	pool_read_end(a->pool, object);
	pager_note(a);
	return err;
}

void pager_restore(struct bh_agent *a, struct bh_region *r)
{
	u64 end = r->bytes >> PAGE_SHIFT;

	for (u64 p = skip_to_out(r, 0, end); p < end; p = skip_to_out(r, p + 1, end))
		if (pager_fill(a, r, p) == 0)
			uffd_wake(a->uffd, page_hva(r, p), PAGE_BYTES);
}

void pager_free(struct bh_agent *a)
{
	pool_free(a->pool);
	free(a->lz4_state);
}
