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
#include "ksmd/core.h"

struct walk {
	struct ksm_region *r;
	u64 dev, ino;
	u32 page; /* pages before this one are done */
};

static void reconcile(struct ksm_region *r, u32 page, u32 spn)
{
	struct store *s = r->vm->domain->store;

	if (spn == SPN_NONE) {
		/* Anonymous: whatever it was, it is looked at anew. */
		if (page_is_mapped(r, page) || r->state[page] == PG_PENDING)
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
		reconcile(w->r, w->page, SPN_NONE);
}

static int note_mapping(const struct procmap *m, void *arg)
{
	struct walk *w = arg;
	struct ksm_region *r = w->r;
	u64 start = MAX(m->start, r->hva), end = MIN(m->end, r->hva + r->bytes);

	if (m->start >= r->hva + r->bytes)
		return 1;
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
		reconcile(r, w->page, (u32)spn);
	}
	return 0;
}

static void note_broken(struct ksm_region *r, u32 page, u32 nr)
{
	for (u32 p = page; p < page + nr; p++)
		if (r->state[p] == PG_SHARED)
			(r->known ? page_broke : page_set_broken)(r, p);
}

int region_resync(struct ksm_region *r)
{
	struct walk w = { .r = r };
	int err;

	r->read = false;
	store_identity(r->vm->domain->store, &w.dev, &w.ino);
	err = procmaps_walk(r->vm->target->pid, note_mapping, &w);
	if (err < 0)
		return err;
	reconcile_gap(&w, r->nr_pages);
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
