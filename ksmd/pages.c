/* SPDX-License-Identifier: MIT */
/*
 * Page states and what hangs on them. The rules, kept by this file alone:
 *
 *   CANDIDATE, BROKEN_CANDIDATE   one index entry (link -> gpn)
 *   SHARED                        one reference and one cover of the store page in link
 *   BROKEN*                       one cover of the store page in domain->broken, and that entry
 *   all others                    nothing
 *
 * A reference is dropped only for a page that the kernel shows to be broken, or after the agent
 * replaced its mapping, or when the process is gone; a cover only in the last two cases (invariant
 * 4).
 */
#include <errno.h>
#include "ksmd/core.h"

/* domain->broken uses the index as a map; its homes follow the key's high bits, so keys must be
 * spread. Odd: no two pages share a key. */
static u32 broken_key(u32 gpn)
{
	return gpn * 2654435761u;
}

static bool state_is_mapped(u8 state)
{
	return state >= PG_SHARED;
}

bool page_is_mapped(const struct ksm_region *r, u32 page)
{
	return state_is_mapped(r->state[page]);
}

u32 page_mapped_spn(const struct ksm_region *r, u32 page)
{
	if (r->state[page] == PG_SHARED)
		return r->link[page];
	if (!state_is_mapped(r->state[page]))
		return SPN_NONE;
	return index_find(r->vm->domain->broken, broken_key(r->gpn + page), NULL, NULL);
}

/* Does the kernel need a new mapping at @page, other than its neighbour below? */
static u32 boundary(const struct ksm_region *r, u32 page)
{
	if (page == 0 || page >= r->nr_pages)
		return 0;
	/* The usual case, without a lookup. */
	if (!page_is_mapped(r, page - 1) && !page_is_mapped(r, page))
		return 0;
	return plan_boundary(page_mapped_spn(r, page - 1), page_mapped_spn(r, page));
}

void domain_unref(struct ksm_domain *d, u32 spn)
{
	u32 tag = hash_tag(store_hash(d->store, spn));

	if (store_unref(d->store, spn))
		index_del(d->index, tag, INDEX_STORE_FLAG | spn);
}

static void count_state(struct ksm_region *r, u32 page, u8 state, int by)
{
	struct ksm_vm_stats *s = &r->vm->stats;

	switch (state) {
	case PG_FRESH:
		r->nr_fresh += (u32)by;
		/* There is something to do in the window, whatever the last look at it said. */
		page_window(r, page)->skip = 0;
		break;
	case PG_HELD:
		r->nr_held += (u32)by;
		break;
	case PG_CANDIDATE:
		s->candidate_pages += (u64)by;
		break;
	case PG_ZERO:
		s->zero_pages += (u64)by;
		break;
	case PG_SHARED:
		s->shared_pages += (u64)by;
		r->nr_mapped += (u32)by;
		break;
	case PG_BROKEN:
	case PG_BROKEN_SEEN:
	case PG_BROKEN_CANDIDATE:
	case PG_BROKEN_PENDING:
		s->broken_pages += (u64)by;
		r->nr_broken += (u32)by;
		r->nr_mapped += (u32)by;
		break;
	}
}

static void set_state(struct ksm_region *r, u32 page, u8 state)
{
	count_state(r, page, r->state[page], -1);
	r->state[page] = state;
	count_state(r, page, state, 1);
}

/* Ends the page's mapping of the store, or only its index entry if it has none. Leaves it NONE. */
static void drop(struct ksm_region *r, u32 page)
{
	struct ksm_domain *d = r->vm->domain;
	u8 state = r->state[page];
	u32 spn;

	if (state == PG_CANDIDATE || state == PG_BROKEN_CANDIDATE)
		index_del(d->index, r->link[page], r->gpn + page);
	if (!state_is_mapped(state)) {
		set_state(r, page, PG_NONE);
		return;
	}
	spn = page_mapped_spn(r, page);
	r->vm->boundaries -= boundary(r, page) + boundary(r, page + 1);
	if (state == PG_SHARED)
		domain_unref(d, spn);
	else
		index_del(d->broken, broken_key(r->gpn + page), spn);
	store_uncover(d->store, spn);
	set_state(r, page, PG_NONE);
	r->vm->boundaries += boundary(r, page) + boundary(r, page + 1);
}

void page_set(struct ksm_region *r, u32 page, enum page_state state)
{
	if (state == PG_FRESH && r->heat)
		heat_is_back(r, page);
	drop(r, page);
	set_state(r, page, (u8)state);
}

int page_set_candidate(struct ksm_region *r, u32 page, u32 tag)
{
	bool mapped = page_is_mapped(r, page);
	int err;

	if (!mapped) {
		drop(r, page);
	} else if (r->state[page] == PG_BROKEN_CANDIDATE) {
		if (r->link[page] == tag)
			return 0;
		page_note_broken_tag(r, page, tag);
	}
	err = index_add(r->vm->domain->index, tag, r->gpn + page);
	if (err < 0)
		return err;
	r->link[page] = tag;
	set_state(r, page, mapped ? PG_BROKEN_CANDIDATE : PG_CANDIDATE);
	return 0;
}

void page_set_pending(struct ksm_region *r, u32 page)
{
	u8 state = r->state[page];

	if (state == PG_CANDIDATE || state == PG_BROKEN_CANDIDATE)
		index_del(r->vm->domain->index, r->link[page], r->gpn + page);
	set_state(r, page, state_is_mapped(state) ? PG_BROKEN_PENDING : PG_PENDING);
}

void page_unpend(struct ksm_region *r, u32 page, enum page_state state)
{
	if (r->state[page] == PG_BROKEN_PENDING)
		set_state(r, page, PG_BROKEN);
	else if (r->state[page] == PG_PENDING)
		set_state(r, page, (u8)state);
}

void page_set_shared(struct ksm_region *r, u32 page, u32 spn)
{
	store_cover(r->vm->domain->store, spn);
	drop(r, page);
	r->vm->boundaries -= boundary(r, page) + boundary(r, page + 1);
	r->link[page] = spn;
	set_state(r, page, PG_SHARED);
	r->vm->boundaries += boundary(r, page) + boundary(r, page + 1);
}

void page_set_broken(struct ksm_region *r, u32 page)
{
	struct ksm_domain *d = r->vm->domain;
	u32 spn = r->link[page];

	/* Without a place to note the cover the page stays SHARED: the store page is kept too long,
	 * which is safe. */
	if (index_add(d->broken, broken_key(r->gpn + page), spn) < 0)
		return;
	set_state(r, page, PG_BROKEN);
	domain_unref(d, spn);
}

int page_set_covered(struct ksm_region *r, u32 page, u32 spn)
{
	struct ksm_domain *d = r->vm->domain;
	int err;

	store_cover(d->store, spn);
	drop(r, page);
	err = index_add(d->broken, broken_key(r->gpn + page), spn);
	if (err < 0)
		return err; /* the cover stays: the offset is never used again, which is safe */
	r->vm->boundaries -= boundary(r, page) + boundary(r, page + 1);
	set_state(r, page, PG_BROKEN);
	r->vm->boundaries += boundary(r, page) + boundary(r, page + 1);
	return 0;
}

void page_note_broken_tag(struct ksm_region *r, u32 page, u32 tag)
{
	if (r->state[page] == PG_BROKEN_CANDIDATE)
		index_del(r->vm->domain->index, r->link[page], r->gpn + page);
	r->link[page] = tag;
	set_state(r, page, PG_BROKEN_SEEN);
}

void page_broke(struct ksm_region *r, u32 page)
{
	struct ksm_vm *vm = r->vm;

	page_set_broken(r, page);
	if (r->state[page] != PG_BROKEN)
		return;
	pace_broken_rouse(page_window(r, page));
	if (vm->unmerged)
		vm->stats.unmerged_total++;
	else
		vm->stats.broken_total++;
}
