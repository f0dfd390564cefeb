/* SPDX-License-Identifier: MIT */
/*
 * Repair of fragmented sharing. Pages that merged at different times lie in the store in the order
 * in which they came, and then each is a mapping of its own in every VM. Where the VMs show them in
 * the same order, a copy of them that lies in that order frees most of those mappings.
 *
 * A stretch of a VM's pages is worth it when all VMs together lose enough mappings, so everyone who
 * shows one of its store pages is looked at: there is no list of them, the metadata of all pages is
 * walked instead (about 1 ns a page), for up to REPAIR_PAGES pages at a time and at most a fiftieth
 * of the time. The agents do the rest: the new mapping replaces the old one after they compared the
 * bytes, as when a broken page merges again. A page is SHARED all the while, with the old store
 * page until the answer comes (invariant 4).
 */
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "ksmd/core.h"

#define REPAIR_PAGES	 WINDOW_PAGES
#define PLACEMENTS_MAX	 (16 * REPAIR_PAGES)
#define REFS_MAX	 64 /* content that all have is no part of anybody's order */
#define FIRST_PAUSE_US	 1000000
#define LONGEST_PAUSE_US 3600000000ULL
#define WORK_SHARE	 50

/* Where a store page of a stretch goes. */
struct move {
	u32 spn;
	u32 stretch, pos;
};

struct repair {
	struct ksm_domain *domain;
	u32 spn[REPAIR_PAGES]; /* of the pages that are looked at */
	struct stretch stretches[REPAIR_PAGES];
	struct stretch_cost cost[REPAIR_PAGES];
	u32 nr_stretches;
	struct move moves[REPAIR_PAGES]; /* by spn */
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

/* The store pages that may move: @w->spn[]. */
static void find_movable(struct repair *w, const struct ksm_region *r, u32 page, u32 nr)
{
	const struct store *store = w->domain->store;
	u32 n = 0;

	for (u32 i = 0; i < nr; i++) {
		bool may = r->state[page + i] == PG_SHARED &&
			   store_refs(store, r->link[page + i]) <= REFS_MAX;

		w->spn[i] = may ? r->link[page + i] : SPN_NONE;
		if (may)
			w->moves[n++] = (struct move){ .spn = w->spn[i], .pos = i };
	}
	/* What is twice in the window has no one place. */
	qsort(w->moves, n, sizeof(w->moves[0]), by_spn);
	for (u32 i = 1; i < n; i++)
		if (w->moves[i].spn == w->moves[i - 1].spn)
			w->spn[w->moves[i].pos] = w->spn[w->moves[i - 1].pos] = SPN_NONE;
}

/* The stretches of a window of the VM, and where their pages would go. */
static void find_stretches(struct repair *w, const struct ksm_region *r, u32 page, u32 nr)
{
	find_movable(w, r, page, nr);
	w->nr_stretches = plan_stretches(w->spn, nr, w->stretches);
	for (u32 s = 0; s < w->nr_stretches; s++) {
		for (u32 i = 0; i < w->stretches[s].nr; i++) {
			u32 spn = w->spn[w->stretches[s].first + i];

			w->moves[w->nr_moves++] = (struct move){ spn, s, i };
			w->filter[spn % 65536 / 64] |= (u64)1 << (spn % 64);
		}
	}
	qsort(w->moves, w->nr_moves, sizeof(w->moves[0]), by_spn);
}

/* The mappings at the seam of two pages, the first of which has @below, now and then. */
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

/* Looks at one window, and at all that shows the same store pages. */
static u32 repair_window(struct ksm_vm *vm, const struct ksm_region *r, u32 page, u32 nr)
{
	struct repair *w = calloc(1, sizeof(*w));
	u32 freed = 0;

	if (!w)
		return 0;
	w->domain = vm->domain;
	find_stretches(w, r, page, nr);
	for (struct ksm_vm *v = w->nr_moves ? vm->engine->vms : NULL; v; v = v->next)
		for (u32 i = 0; v->domain == w->domain && i < v->nr_regions; i++)
			look_at_region(w, v->regions[i]);
	if (w->nr_moves)
		freed = carry_out(w, vm->engine);
	free(w);
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
		*ret_nr = MIN(r->nr_pages - vm->repair_page, (u32)REPAIR_PAGES);
		vm->repair_page += *ret_nr;
		return true;
	}
	vm->repair_region = vm->repair_page = 0;
	return false;
}

void repair_step(struct ksm_vm *vm, u64 now)
{
	struct ksm_region *r;
	u32 page, nr;
	u64 took;

	if (!vm_may_share(vm) || vm->repair_refused || vm->queue_nr || vm->op_nr)
		return;
	/* Something has merged since it was given up. */
	if (vm->stats.merged_total != vm->repair_merged) {
		vm->repair_pause_us = 0;
		vm->repair_due_us = MIN(vm->repair_due_us, now + FIRST_PAUSE_US);
		vm->repair_merged = vm->stats.merged_total;
	}
	if (now < vm->repair_due_us)
		return;
	if (next_window(vm, &r, &page, &nr)) {
		vm->repair_found = repair_window(vm, r, page, nr) || vm->repair_found;
		took = now_us() - now;
		vm->repair_due_us = now + took * WORK_SHARE;
		return;
	}
	/* All of it was looked at: again at once if that helped, else ever later. */
	vm->repair_pause_us = vm->repair_found || !vm->repair_pause_us
				      ? FIRST_PAUSE_US
				      : MIN(vm->repair_pause_us * 2, (u64)LONGEST_PAUSE_US);
	vm->repair_due_us = now + vm->repair_pause_us;
	vm->repair_found = false;
}
