/* SPDX-License-Identifier: MIT */
/*
 * Repair of fragmented sharing. Pages that merged at different times lie in the store in the order
 * in which they came, and then each is a mapping of its own in every VM. Where the VMs show them in
 * the same order, a copy of them that lies in that order frees most of those mappings.
 *
 * A stretch of a VM's pages is worth it when all VMs together lose enough mappings, so everyone who
 * shows one of its store pages is looked at: there is no list of them, the metadata of all pages is
 * walked instead (about 1 ns a page), for up to MOVES_MAX pages at a time and at most a fiftieth of
 * the time. The agents do the rest: the new mapping replaces the old one after they compared the
 * bytes, as when a broken page merges again. A page is SHARED all the while, with the old store
 * page until the answer comes (invariant 4). One whose agent goes away meanwhile keeps the old one:
 * that content is in the store twice then.
 */
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "ksmd/core.h"

#define MOVES_MAX      (4 * WINDOW_PAGES)
#define PLACEMENTS_MAX (4 * MOVES_MAX)
#define REFS_MAX       64 /* content that all have is no part of anybody's order */
#define FIRST_PAUSE_US 1000000
/* From one look at all of a VM to the next: when it found something, when it did not the first
 * time, and at most. */
#define FOUND_PAUSE_US	 10000000
#define VAIN_PAUSE_US	 120000000ULL
#define LONGEST_PAUSE_US 3600000000ULL
/* Merged since the last time: so many pages, and this share of all, may have changed the picture.
 */
#define NEWS_PAGES 1024
#define NEWS_SHARE 8
#define WORK_SHARE 50
/* Pages a mapping, on the average, with which nothing needs repair. */
#define GOOD_RUN 16

/* Where a store page of a stretch goes. */
struct move {
	u32 spn;
	u32 stretch, pos;
};

struct repair {
	struct ksm_domain *domain;
	u32 window[WINDOW_PAGES];	/* spn of the pages that are looked at */
	struct move seen[WINDOW_PAGES]; /* the same, sorted */
	/* The stretches found, each [first, first + nr) of @spn. */
	struct stretch stretches[MOVES_MAX / 2];
	struct stretch_cost cost[MOVES_MAX / 2];
	u32 nr_stretches;
	u32 spn[MOVES_MAX];
	struct move moves[MOVES_MAX]; /* of the same pages, by spn */
	u32 nr_moves;
	u64 filter[1024]; /* bits: some move's spn has these low 16 bits */
	struct place {
		u32 gpn, move;
	} places[PLACEMENTS_MAX];
	u32 nr_places;
	struct placement placements[PLACEMENTS_MAX];
	struct run runs[PLACEMENTS_MAX];
};

static int by_spn(const void *a, const void *b)
{
	const struct move *x = a, *y = b;

	return x->spn < y->spn ? -1 : x->spn > y->spn;
}

static const struct move *find_move(const struct repair *w, u32 spn)
{
	struct move key = { .spn = spn };

	if (!(w->filter[spn % 65536 / 64] >> (spn % 64) & 1))
		return NULL;
	return bsearch(&key, w->moves, w->nr_moves, sizeof(key), by_spn);
}

static const struct move *move_of(const struct repair *w, const struct ksm_region *r, u32 page)
{
	return r->state[page] == PG_SHARED ? find_move(w, r->link[page]) : NULL;
}

/* The store pages of a window that may move: @w->window[]. */
static void find_movable(struct repair *w, const struct ksm_region *r, u32 page, u32 nr)
{
	const struct store *store = w->domain->store;
	u32 n = 0;

	for (u32 i = 0; i < nr; i++) {
		bool may = r->state[page + i] == PG_SHARED &&
			   store_refs(store, r->link[page + i]) <= REFS_MAX;

		w->window[i] = may ? r->link[page + i] : SPN_NONE;
		if (may)
			w->seen[n++] = (struct move){ .spn = w->window[i], .pos = i };
	}
	/* What is twice in the window has no one place. */
	qsort(w->seen, n, sizeof(w->seen[0]), by_spn);
	for (u32 i = 1; i < n; i++)
		if (w->seen[i].spn == w->seen[i - 1].spn)
			w->window[w->seen[i].pos] = w->window[w->seen[i - 1].pos] = SPN_NONE;
}

/* Adds the stretches of a window of the VM, and where their pages would go. */
static void find_stretches(struct repair *w, const struct ksm_region *r, u32 page, u32 nr)
{
	struct stretch *t = &w->stretches[w->nr_stretches];
	u32 n;

	find_movable(w, r, page, nr);
	n = plan_stretches(w->window, nr, t);
	for (; n; n--, t++, w->nr_stretches++) {
		u32 from = t->first;

		t->first = w->nr_moves;
		for (u32 i = 0; i < t->nr; i++) {
			u32 spn = w->window[from + i];

			w->spn[w->nr_moves] = spn;
			w->moves[w->nr_moves++] = (struct move){ spn, w->nr_stretches, i };
			w->filter[spn % 65536 / 64] |= (u64)1 << (spn % 64);
		}
	}
}

static void sort_moves(struct repair *w)
{
	qsort(w->moves, w->nr_moves, sizeof(w->moves[0]), by_spn);
	/* The same content in two windows. */
	for (u32 i = 1; i < w->nr_moves; i++)
		if (w->moves[i].spn == w->moves[i - 1].spn)
			w->cost[w->moves[i].stretch].refused =
				w->cost[w->moves[i - 1].stretch].refused = true;
}

/* Whether @page and its neighbour below need two mappings: now, and with the copies. */
static void add_seam(struct repair *w, const struct ksm_region *r, u32 page)
{
	const struct move *below, *here;
	struct stretch_cost *c;
	bool joined;

	if (page == 0 || page >= r->nr_pages)
		return;
	below = move_of(w, r, page - 1);
	here = move_of(w, r, page);
	c = &w->cost[(here ? here : below)->stretch];
	joined = below && here && below->stretch == here->stretch && below->pos + 1 == here->pos;
	c->before += plan_boundary(page_mapped_spn(r, page - 1), page_mapped_spn(r, page));
	c->after += !joined;
}

static void look_at_region(struct repair *w, const struct ksm_region *r)
{
	bool may = vm_may_share(r->vm) && !r->vm->repair_refused && r->read && !r->gone;

	for (u32 p = 0; r->nr_mapped && p < r->nr_pages; p++) {
		const struct move *m = move_of(w, r, p);
		struct stretch_cost *c;

		if (!m)
			continue;
		c = &w->cost[m->stretch];
		c->pages++;
		if (!may || w->nr_places == PLACEMENTS_MAX) {
			c->refused = true;
			continue;
		}
		w->places[w->nr_places++] = (struct place){ r->gpn + p, (u32)(m - w->moves) };
		add_seam(w, r, p);
		if (p + 1 < r->nr_pages && !move_of(w, r, p + 1))
			add_seam(w, r, p + 1);
	}
}

/* A copy of the stretch, in its order. */
static void copy_stretch(struct repair *w, u32 s, u32 *ret_spn)
{
	struct ksm_domain *d = w->domain;
	struct stretch *t = &w->stretches[s];
	u32 spn = SPN_NONE;
	u8 *pages = malloc(t->nr * PAGE_BYTES);
	int err = pages ? 0 : -1;

	for (u32 i = 0; err == 0 && i < t->nr; i++)
		err = store_read(d->store, w->spn[t->first + i], pages + i * PAGE_BYTES, 1);
	if (err == 0)
		spn = store_alloc(d->store, t->nr);
	if (spn != SPN_NONE && store_write(d->store, spn, pages, t->nr) < 0) {
		store_release(d->store, spn, t->nr);
		spn = SPN_NONE;
	}
	free(pages);
	*ret_spn = spn;
	for (u32 i = 0; spn != SPN_NONE && i < t->nr; i++) {
		u32 old = w->spn[t->first + i];
		u64 hash = store_hash(d->store, old);

		/* Whoever comes finds the copy; what still shows the old page keeps it. */
		store_set_hash(d->store, spn + i, hash);
		if (index_add(d->index, hash_tag(hash), INDEX_STORE_FLAG | (spn + i)) == 0)
			index_del(d->index, hash_tag(hash), INDEX_STORE_FLAG | old);
		store_ref(d->store, spn + i); /* until the requests have theirs */
	}
}

/* Has the agents show the copies. Returns how many mappings that is hoped to free. */
static u32 carry_out(struct repair *w, struct engine *e)
{
	u32 *spn = malloc((w->nr_stretches + 1) * sizeof(*spn)), nr = 0, freed = 0;

	for (u32 s = 0; spn && s < w->nr_stretches; s++) {
		spn[s] = SPN_NONE;
		if (!plan_worth_repair(&w->cost[s]))
			continue;
		copy_stretch(w, s, &spn[s]);
		if (spn[s] != SPN_NONE)
			freed += w->cost[s].before - w->cost[s].after;
	}
	for (u32 i = 0; spn && i < w->nr_places; i++) {
		const struct move *m = &w->moves[w->places[i].move];

		if (spn[m->stretch] == SPN_NONE)
			continue;
		store_ref(w->domain->store, spn[m->stretch] + m->pos);
		w->placements[nr++] =
			(struct placement){ w->places[i].gpn, spn[m->stretch] + m->pos };
	}
	queue_runs(e, w->placements, nr, w->runs);
	for (u32 s = 0; spn && s < w->nr_stretches; s++)
		for (u32 i = 0; spn[s] != SPN_NONE && i < w->stretches[s].nr; i++)
			domain_unref(w->domain, spn[s] + i);
	free(spn);
	return freed;
}

/* The next window of the VM that has pages in the store; false: there is none left. */
static bool next_window(struct ksm_vm *vm, struct ksm_region **ret, u32 *ret_page, u32 *ret_nr)
{
	while (vm->repair_region < vm->nr_regions) {
		struct ksm_region *r = vm->regions[vm->repair_region];

		if (!r->nr_mapped || vm->repair_page >= r->nr_pages) {
			vm->repair_region++;
			vm->repair_page = 0;
			continue;
		}
		*ret = r;
		*ret_page = vm->repair_page;
		*ret_nr = MIN(r->nr_pages - vm->repair_page, (u32)WINDOW_PAGES);
		vm->repair_page += *ret_nr;
		return true;
	}
	vm->repair_region = vm->repair_page = 0;
	return false;
}

/* Looks at some windows of the VM, and at all that shows the same store pages. True: it was the
 * last of them. */
static bool repair_some(struct ksm_vm *vm)
{
	struct repair *w = calloc(1, sizeof(*w));
	struct ksm_region *r;
	bool more = true;
	u32 page, nr;

	if (!w)
		return true;
	w->domain = vm->domain;
	while (w->nr_moves + WINDOW_PAGES <= MOVES_MAX && (more = next_window(vm, &r, &page, &nr)))
		find_stretches(w, r, page, nr);
	sort_moves(w);
	for (struct ksm_vm *v = w->nr_moves ? vm->engine->vms : NULL; v; v = v->next)
		for (u32 i = 0; v->domain == w->domain && i < v->nr_regions; i++)
			look_at_region(w, v->regions[i]);
	if (w->nr_moves && carry_out(w, vm->engine))
		vm->repair_found = true;
	free(w);
	return !more;
}

void repair_step(struct ksm_vm *vm, u64 now)
{
	u64 news;

	/* While recovery lasts not all who show a store page are known; while the host is short of
	 * memory there is none for copies. */
	if (!vm_may_share(vm) || vm->repair_refused || vm->queue_nr || vm->op_nr ||
	    vm->engine->cfg.pressure || store_in_recovery(vm->domain->store))
		return;
	news = vm->stats.merged_total - vm->repair_merged;
	if (news >= NEWS_PAGES && news * NEWS_SHARE >= vm->stats.shared_pages) {
		vm->repair_pause_us = 0;
		vm->repair_due_us = MIN(vm->repair_due_us, now + FIRST_PAUSE_US);
		vm->repair_merged = vm->stats.merged_total;
	}
	if (now < vm->repair_due_us)
		return;
	/* Not fragmented. */
	if (vm->boundaries * GOOD_RUN <= vm->stats.shared_pages)
		return;
	if (!repair_some(vm)) {
		vm->repair_due_us = now + (now_us() - now) * WORK_SHARE;
		return;
	}
	if (vm->repair_found)
		vm->repair_pause_us = FOUND_PAUSE_US;
	else if (vm->repair_pause_us < VAIN_PAUSE_US)
		vm->repair_pause_us = VAIN_PAUSE_US;
	else
		vm->repair_pause_us = MIN(vm->repair_pause_us * 2, LONGEST_PAUSE_US);
	vm->repair_due_us = now + vm->repair_pause_us;
	vm->repair_found = false;
}
