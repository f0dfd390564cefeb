/* SPDX-License-Identifier: MIT */
/*
 * Regions: the guest memory that an agent has told of, and what is kept of each of its pages.
 */
#include <errno.h>
#include <stdlib.h>
#include "ksmd/core.h"

/* Beyond is the kernel's, with five-level page tables too
 * (Documentation/arch/x86/x86_64/5level-paging.rst). */
#define USER_ADDRESS_END ((u64)1 << 56)

void region_free(struct ksm_region *r)
{
	if (!r)
		return;
	if (r->gpn != GPN_NONE) {
		gpn_release(&r->vm->engine->gpns, r->gpn, r->nr_pages);
		r->vm->engine->nr_windows -= DIV_ROUND_UP(r->nr_pages, WINDOW_PAGES);
	}
	free(r->link);
	free(r->state);
	free(r->windows);
	free(r->chunks);
	free(r->heat);
	free(r);
}

static int region_new(struct ksm_vm *vm, u64 hva, u64 bytes, struct ksm_region **ret)
{
	struct ksm_region *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->vm = vm;
	r->hva = hva;
	r->bytes = bytes;
	r->first_pass = true;
	r->gpn = GPN_NONE;
	r->nr_pages = (u32)(bytes >> PAGE_SHIFT);
	r->link = calloc(r->nr_pages, sizeof(r->link[0]));
	r->state = calloc(r->nr_pages, sizeof(r->state[0]));
	r->windows = calloc(DIV_ROUND_UP(r->nr_pages, WINDOW_PAGES), sizeof(r->windows[0]));
	r->chunks = calloc(huge_chunks_of(hva, r->nr_pages), sizeof(r->chunks[0]));
	if (r->link && r->state && r->windows && r->chunks)
		r->gpn = gpn_alloc(&vm->engine->gpns, r->nr_pages, r);
	if (r->gpn == GPN_NONE) {
		region_free(r);
		return -ENOMEM;
	}
	vm->engine->nr_windows += DIV_ROUND_UP(r->nr_pages, WINDOW_PAGES);
	*ret = r;
	return 0;
}

u64 region_bytes(const struct ksm_region *r)
{
	return sizeof(*r) + r->nr_pages * (sizeof(r->link[0]) + sizeof(r->state[0])) +
	       DIV_ROUND_UP(r->nr_pages, WINDOW_PAGES) * sizeof(r->windows[0]) +
	       huge_chunks_of(r->hva, r->nr_pages) * sizeof(r->chunks[0]) +
	       (r->heat ? r->nr_pages * sizeof(r->heat[0]) : 0);
}

void region_rouse(struct ksm_region *r)
{
	for (u32 w = 0; w < DIV_ROUND_UP(r->nr_pages, WINDOW_PAGES); w++)
		pace_window_rouse(&r->windows[w]);
	huge_rouse(r);
}

void region_look_anew(struct ksm_region *r)
{
	r->first_pass = true;
	region_rouse(r);
	r->vm->in_pass = false;
	r->vm->cursor_region = r->vm->cursor_page = 0;
	vm_rouse(r->vm);
}

struct ksm_region *vm_region_at(struct ksm_vm *vm, u64 hva, u64 bytes)
{
	for (u32 i = 0; i < vm->nr_regions; i++) {
		struct ksm_region *r = vm->regions[i];

		if (hva >= r->hva && bytes <= r->bytes && hva - r->hva <= r->bytes - bytes)
			return r;
	}
	return NULL;
}

void regions_read(struct ksm_vm *vm)
{
	bool all = true;

	for (u32 i = 0; i < vm->nr_regions; i++)
		all = (vm->regions[i]->read || region_resync(vm->regions[i]) == 0) && all;
	if (all && vm->cancel_due) {
		ops_cancel_outstanding(vm);
		vm->cancel_due = false;
	}
}

void regions_reap(struct ksm_vm *vm)
{
	for (u32 i = vm->nr_regions; i-- > 0;) {
		struct ksm_region *r = vm->regions[i];

		if (!r->gone || vm->op_busy)
			continue;
		ops_cancel_queue(vm);
		if (region_resync(r) < 0 || r->nr_mapped)
			continue;
		for (u32 p = 0; p < r->nr_pages; p++)
			page_set(r, p, PG_NONE);
		region_free(r);
		vm->regions[i] = vm->regions[--vm->nr_regions];
	}
}

static u64 vm_bytes(const struct ksm_vm *vm)
{
	u64 bytes = 0;

	for (u32 i = 0; i < vm->nr_regions; i++)
		bytes += ROUND_UP(vm->regions[i]->bytes,
				  CHUNK_BYTES); /* page numbers come in chunks */
	return bytes;
}

int engine_region_add(struct ksm_vm *vm, u64 hva, u64 bytes)
{
	struct ksm_region **grown, *r = vm_region_at(vm, hva, bytes);
	const struct engine *e = vm->engine;
	int err;

	if (r && r->hva == hva && r->bytes == bytes) {
		/* Known from before the agent lost its connection, or given up and taken again:
		 * then it may be other memory by now. */
		r->gone = false;
		r->read = false;
		region_look_anew(r);
		regions_read(vm);
		return 0;
	}
	regions_reap(vm);
	for (u32 i = 0; i < vm->nr_regions; i++) {
		r = vm->regions[i];
		/* Over a region that is given up but not accounted for yet: later. */
		if (hva < r->hva + r->bytes && r->hva < hva + bytes)
			return r->gone ? -EAGAIN : -EEXIST;
	}
	if (hva + bytes > USER_ADDRESS_END)
		return -EINVAL;
	/* A hostile VMM may have any amount of address space; our metadata for it is real memory.
	 */
	if (vm->nr_regions >= ENGINE_REGIONS_MAX || bytes > (u64)GPN_MAX << PAGE_SHIFT ||
	    vm_bytes(vm) + ROUND_UP(bytes, CHUNK_BYTES) > e->cfg.vm_max_bytes)
		return -E2BIG;
	err = region_new(vm, hva, bytes, &r);
	if (err < 0)
		return err;
	grown = realloc(vm->regions, (vm->nr_regions + 1) * sizeof(grown[0]));
	if (!grown) {
		region_free(r);
		return -ENOMEM;
	}
	vm->regions = grown;
	vm->regions[vm->nr_regions++] = r;
	/* If it cannot be read now it is tried again in every pass. */
	regions_read(vm);
	return 0;
}

int engine_region_del(struct ksm_vm *vm, u64 hva, u64 bytes)
{
	struct ksm_region *r = vm_region_at(vm, hva, bytes);

	/* Perhaps one that was refused. */
	if (!r || r->hva != hva || r->bytes != bytes)
		return 0;
	/* Its pages are settled when the kernel shows that the mappings are gone: regions_reap().
	 */
	r->gone = true;
	return 0;
}

int engine_discard(struct ksm_vm *vm, u64 hva, u64 bytes)
{
	struct ksm_region *r = vm_region_at(vm, hva, bytes);

	/* Perhaps one that was refused, or is gone by now. Agents tell only of merged pages. */
	if (!r || !r->nr_mapped)
		return 0;
	for (u64 p = (hva - r->hva) >> PAGE_SHIFT, end = p + (bytes >> PAGE_SHIFT); p < end; p++) {
		/* An answer that is on its way settles pending pages. */
		if (r->state[p] == PG_PENDING || r->state[p] == PG_BROKEN_PENDING)
			continue;
		page_set(r, (u32)p, PG_NONE);
		vm->stats.discarded_total++;
	}
	return 0;
}
