/* SPDX-License-Identifier: MIT */
/*
 * Which pages leave a guest (hypervisor-hooks/pager.c) when the policy wants memory of it, and
 * which are samples of its working set. Chosen from what the scan knows anyway: no question to the
 * kernel, no look at a page.
 */
#include <stdlib.h>
#include "common/clock.h"
#include "ksmd/core.h"

/* Pages that are looked at in one call: a millisecond of the main thread. The next call goes on
 * from there. */
#define LOOKS_MAX (1u << 20)
/* Guesses for one sample: memory is mostly there, and mostly private. */
#define SAMPLE_TRIES 16

/* There, private, and known to be so. */
static bool is_private(u8 state)
{
	return state == PG_QUIET || state == PG_CANDIDATE;
}

static bool may_page_out(const struct ksm_vm *vm)
{
	return vm->conn && !vm->dying && !vm->blocked && !vm->out_refused && vm->mode != KSM_OFF &&
	       vm->queue_nr < ENGINE_RUNS_MAX;
}

static bool queue_out(struct ksm_region *r, u32 page, u32 nr, u32 sample)
{
	const struct ksm_op_run run = {
		.gpn = r->gpn + page, .nr = nr, .out = true, .sample = sample
	};

	if (ops_queue(r->vm, &run) < 0)
		return false;
	for (u32 p = page; p < page + nr; p++)
		page_set_pending(r, p);
	return true;
}

/*
 * Nobody sees a guest read a page that is there. What is seen is that it comes back for one that
 * was taken: before the hand was round once, and the page is in use, and passed over for 15 turns;
 * later, and it is passed over once, and 3, 7 and 15 times when it came back again (a clock with a
 * counter). Each time that the hand passes one that stayed out, that counts for less.
 *
 * A byte a page: how many times it is still passed over; how often it came back; whether it is out,
 * and then in place of the first whether the hand has not passed it since.
 */
#define HEAT_PASSES   0x0f
#define HEAT_RECENT   0x01
#define HEAT_BACK     0x10 /* counts, up to HEAT_BACK_MAX */
#define HEAT_OUT      0x80

#define HEAT_BACK_MAX 4

static u8 heat_of(u32 times_back, u8 rest)
{
	return (u8)(times_back * HEAT_BACK | rest);
}

static u32 times_back(u8 heat)
{
	return (heat & ~HEAT_OUT) / HEAT_BACK;
}

void heat_left(struct ksm_region *r, u32 page)
{
	if (!r->heat)
		r->heat = calloc(r->nr_pages, sizeof(r->heat[0]));
	if (r->heat)
		r->heat[page] = heat_of(times_back(r->heat[page]), HEAT_OUT | HEAT_RECENT);
}

void heat_is_back(struct ksm_region *r, u32 page)
{
	u8 *h = &r->heat[page];
	u32 times = *h & HEAT_RECENT ? HEAT_BACK_MAX : MIN(times_back(*h) + 1, (u32)HEAT_BACK_MAX);

	if (*h & HEAT_OUT)
		*h = heat_of(times, (u8)((1u << times) - 1));
}

static bool is_hot(const struct ksm_region *r, u32 page)
{
	return r->heat && r->heat[page] & HEAT_PASSES;
}

/* The hand passes a page that it does not take. */
static void cool(struct ksm_region *r, u32 page)
{
	u8 *h = r->heat ? &r->heat[page] : NULL;

	if (h && *h & HEAT_OUT)
		*h = heat_of(times_back(*h) ? times_back(*h) - 1 : 0, HEAT_OUT);
	else if (h && *h & HEAT_PASSES)
		(*h)--;
}

static bool may_leave(const struct ksm_region *r, u32 page, const struct hand *h)
{
	return (is_private(r->state[page]) || (h->in_use && r->state[page] == PG_FRESH)) &&
	       !is_hot(r, page) && !huge_kept(r, page);
}

/* The run of pages from @page on that may leave, below @end; 0: @page may not. */
static u32 run_from(const struct ksm_region *r, u32 page, u32 end, const struct hand *h)
{
	u32 n = 0;

	while (page + n < end && may_leave(r, page + n, h))
		n++;
	return n;
}

static bool goes_on(const struct hand *h)
{
	return h->missing && h->looks && !h->full;
}

/* Of one window. Returns where it stopped. */
static u32 window_out(struct ksm_region *r, u32 page, u32 end, struct hand *h)
{
	while (page < end && goes_on(h)) {
		u32 run = MIN(run_from(r, page, end, h), h->looks);
		u32 nr = (u32)MIN((u64)run, h->missing), taken = 1;

		h->looks -= MIN(h->looks, MAX(nr, 1u));
		if (nr) {
			taken = h->put(h, r, page, nr);
			h->missing -= taken;
			h->full = taken < nr;
		} else {
			cool(r, page);
		}
		page += taken;
	}
	return page;
}

void hand_round(struct ksm_vm *vm, u32 quiet, struct hand *h)
{
	struct hand_place *at = h->at;

	for (u32 turns = 0; goes_on(h) && vm->nr_regions && turns <= vm->nr_regions; turns++) {
		struct ksm_region *r;

		if (at->region >= vm->nr_regions)
			at->region = at->page = 0;
		r = vm->regions[at->region];
		while (!r->gone && at->page < r->nr_pages && goes_on(h)) {
			u32 end =
				MIN(ROUND_DOWN(at->page, WINDOW_PAGES) + WINDOW_PAGES, r->nr_pages);
			bool skip = page_window(r, at->page)->quiet < quiet;

			at->page = skip ? end : window_out(r, at->page, end, h);
		}
		if (goes_on(h)) {
			at->region++;
			at->page = 0;
		}
	}
}

static u32 put_out(struct hand *h, struct ksm_region *r, u32 page, u32 nr)
{
	return queue_out(r, page, nr, 0) ? nr : 0;
}

u64 engine_page_out(struct ksm_vm *vm, u64 pages, bool in_use)
{
	struct hand h = {
		.at = &vm->out_place, .missing = pages, .looks = LOOKS_MAX, .put = put_out
	};

	if (!may_page_out(vm))
		return 0;
	hand_round(vm, QUIET_LOOKS, &h);
	/* A page that was not written for a pass lies among others that were, if it must be; and
	 * what is in use is taken of all alike, since nobody sees a guest read. */
	h.in_use = in_use;
	hand_round(vm, 0, &h);
	ops_pump(vm);
	return pages - h.missing;
}

static u64 pages_out_of(const struct ksm_op_run *runs, u32 nr)
{
	u64 pages = 0;

	for (u32 i = 0; i < nr; i++)
		if (runs[i].out && !runs[i].sample)
			pages += runs[i].nr;
	return pages;
}

u64 engine_going_out(const struct ksm_vm *vm)
{
	return pages_out_of(vm->op, vm->op_nr) + pages_out_of(vm->queue, vm->queue_nr);
}

static u64 next_random(u64 *seed)
{
	/* Knuth's MMIX; its upper bits. */
	*seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return *seed >> 24;
}

/* The page that is @at pages into the VM's memory. */
static struct ksm_region *region_of(struct ksm_vm *vm, u64 at, u32 *ret_page)
{
	for (u32 i = 0; i < vm->nr_regions; i++) {
		struct ksm_region *r = vm->regions[i];

		if (at < r->nr_pages) {
			*ret_page = (u32)at;
			return r->gone ? NULL : r;
		}
		at -= r->nr_pages;
	}
	return NULL;
}

u32 engine_sample(struct ksm_vm *vm, u32 nr, u64 *seed, u64 *ret_known_pages)
{
	u32 found = 0, known = 0, tries = 0;
	u64 pages = 0;

	vm->sample_round = vm->sample_round + 1 ?: 1;
	for (u32 i = 0; i < vm->nr_regions; i++)
		pages += vm->regions[i]->nr_pages;
	while (pages && may_page_out(vm) && found < nr && tries < nr * SAMPLE_TRIES) {
		struct ksm_region *r;
		u32 page;

		tries++;
		r = region_of(vm, next_random(seed) % pages, &page);
		known += r && r->state[page] != PG_NONE;
		/* Written a moment ago is as good as any: it is what a working set is made of. */
		if (!r || huge_kept(r, page) ||
		    (!is_private(r->state[page]) && r->state[page] != PG_FRESH))
			continue;
		if (!queue_out(r, page, 1, vm->sample_round))
			break;
		found++;
	}
	ops_pump(vm);
	*ret_known_pages = tries ? pages * known / tries : 0;
	return found;
}
