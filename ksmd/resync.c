/* SPDX-License-Identifier: MIT */
/*
 * Reads from the kernel which pages of a region map the store, and corrects the account: when a VM
 * attaches (after a restart of the daemon its memory may be merged already), when its agent comes
 * back, and when it gave a region up.
 *
 * New references and covers are taken before old ones are dropped, so that no page is freed in
 * between.
 */
#include <errno.h>
#include <stdlib.h>
#include "ksmd/core.h"

struct walk {
	struct ksm_region *r;
	u64 dev, ino;
	u32 page;    /* pages before this one are done */
	bool passed; /* a mapping beyond the region was seen: the list did not end before it */
	/* A bit for each page whose mapping the first walk did not see; NULL: there is none. */
	u64 *missed;
	bool again; /* the second walk */
	int err;
};

/*
 * The list is no snapshot, and a VM runs on meanwhile. A reference that is dropped wrongly would
 * show the guest zeros (invariant 4), one that is kept costs a page: so only what two walks did not
 * see is dropped.
 */
static bool surely_gone(struct walk *w, u32 page)
{
	u64 bit = (u64)1 << (page % 64);

	if (w->again)
		return w->missed[page / 64] & bit;
	if (!w->missed)
		w->missed = calloc(DIV_ROUND_UP(w->r->nr_pages, 64), sizeof(w->missed[0]));
	if (w->missed)
		w->missed[page / 64] |= bit;
	else
		w->err = -ENOMEM;
	return false;
}

static void reconcile(struct walk *w, u32 page, u32 spn)
{
	struct ksm_region *r = w->r;
	struct store *s = r->vm->domain->store;
	u8 state = r->state[page];

	/* The agent is at work on it, and its answer will tell. */
	if ((state == PG_PENDING || state == PG_BROKEN_PENDING) && !r->vm->cancel_due)
		return;
	if (spn == SPN_NONE) {
		/* Anonymous: whatever it was, it is looked at anew. */
		if (state == PG_PENDING || (page_is_mapped(r, page) && surely_gone(w, page)))
			page_set(r, page, PG_NONE);
		return;
	}
	if (page_mapped_spn(r, page) == spn && r->state[page] != PG_BROKEN_PENDING)
		return;
	if (!store_has_content(s, spn)) {
		/* A hole of the store: this mapping can only be that of a broken page. */
		(void)page_set_covered(r, page, spn);
		return;
	}
	store_ref(s, spn);
	page_set_shared(r, page, spn);
}

/* What lies between two mappings of the store does not map it. */
static void reconcile_gap(struct walk *w, u32 end)
{
	for (; w->page < MIN(end, w->r->nr_pages); w->page++)
		reconcile(w, w->page, SPN_NONE);
}

static int note_mapping(const struct procmap *m, void *arg)
{
	struct walk *w = arg;
	struct ksm_region *r = w->r;
	u64 start = MAX(m->start, r->hva), end = MIN(m->end, r->hva + r->bytes);

	if (m->start >= r->hva + r->bytes) {
		w->passed = true;
		return 1;
	}
	/* The file is read in parts, and mappings change meanwhile: a part may begin before the
	 * last one ended. */
	start = MAX(start, page_hva(r, w->page));
	if (start >= end || m->ino != w->ino || m->dev != w->dev)
		return 0;
	reconcile_gap(w, (u32)((start - r->hva) >> PAGE_SHIFT));
	for (u64 at = start; at < end; at += PAGE_BYTES, w->page++) {
		u64 spn = (m->offset + (at - m->start)) >> PAGE_SHIFT;

		/* Beyond the store's end nothing of ours can be: the VMM's own doing. */
		if (spn >= store_max_pages(r->vm->domain->store))
			spn = SPN_NONE;
		reconcile(w, w->page, (u32)spn);
	}
	return 0;
}

static void note_broken(struct ksm_region *r, u32 page, u32 nr)
{
	for (u32 p = page; p < page + nr; p++)
		if (r->state[p] == PG_SHARED)
			(r->known ? page_broke : page_set_broken)(r, p);
}

/* One reading of the list. */
static int walk(struct walk *w)
{
	int err;

	w->page = 0;
	w->passed = false;
	err = procmaps_walk(w->r->vm->target->pid, note_mapping, w);
	if (err < 0)
		return err;
	/* A stack, at least, lies above all guest memory: this list was cut short. */
	if (!w->passed)
		return -EAGAIN;
	reconcile_gap(w, w->r->nr_pages);
	return w->err;
}

int region_resync(struct ksm_region *r)
{
	struct walk w = { .r = r };
	int err;

	r->read = false;
	store_identity(r->vm->domain->store, &w.dev, &w.ino);
	err = walk(&w);
	if (err == 0 && w.missed) {
		w.again = true;
		err = walk(&w);
	}
	free(w.missed);
	if (err < 0)
		return err;
	/* Its mappings are accounted for now. If the broken ones cannot be told yet, the next scan
	 * will. */
	r->read = true;
	if (r->nr_mapped)
		(void)scan_broken(r, 0, r->nr_pages, note_broken);
	r->known = true;
	return 0;
}

struct accounted {
	const struct ksm_vm *vm;
	u64 dev, ino;
};

static int check_known(const struct procmap *m, void *arg)
{
	const struct accounted *a = arg;
	u64 at = m->start;

	if (m->ino != a->ino || m->dev != a->dev)
		return 0;
	/* A mapping may span two regions that are neighbours. */
	while (at < m->end) {
		u64 covered = at;

		for (u32 i = 0; i < a->vm->nr_regions; i++) {
			const struct ksm_region *r = a->vm->regions[i];

			if (r->read && r->hva <= at && at < r->hva + r->bytes)
				covered = r->hva + r->bytes;
		}
		if (covered == at)
			return -ENOENT;
		at = covered;
	}
	return 0;
}

bool engine_vm_accounted(const struct ksm_vm *vm)
{
	struct accounted a = { .vm = vm };

	store_identity(vm->domain->store, &a.dev, &a.ino);
	return procmaps_walk(vm->target->pid, check_known, &a) == 0;
}
