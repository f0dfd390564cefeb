/* SPDX-License-Identifier: MIT */
/*
 * What the policy wants swapped out goes by the kernel's own swap: process_madvise(MADV_PAGEOUT) on
 * pages that the scan has seen unwritten for long. It works for any VMM, also while its agent is
 * not connected; the kernel does the writing, on whatever swap the host has (a disk, zram, zswap).
 *
 * It happens a step at a time, on a reader thread: writing can wait for a disk, and who looks into
 * a VMM may hang.
 */
#include <errno.h>
#include "common/clock.h"
#include "ksmd/core.h"
#include "ksmd/jobs.h"

/* 4 MiB: some milliseconds where swap compresses. */
#define STEP_PAGES 1024
#define STEP_LOOKS (16 * STEP_PAGES)

static u32 put_range(struct hand *h, struct ksm_region *r, u32 page, u32 nr)
{
	struct swap_job *j = h->arg;

	if (j->nr == SWAP_JOB_RANGES)
		return 0;
	j->range[j->nr++] =
		(struct iovec){ (void *)(uintptr_t)page_hva(r, page), (u64)nr << PAGE_SHIFT };
	return nr;
}

/* 0, or why nothing more of this VM is to be swapped out now. *ret: pages that the kernel was asked
 * for. */
static int run(struct ksm_vm *vm, struct swap_job *j, u64 *ret)
{
	struct reader_job *jobs[1] = { &j->job };
	int stage, r;

	if (!j->nr)
		return 0;
	j->target = target_get(vm->target);
	r = reader_run(vm->engine->readers, jobs, 1, READ_TIMEOUT_US, &stage);
	if (!jobs[0]) {
		vm->engine->swap_job = NULL; /* the hung reader's now */
		vm_set_blocked(vm);
		return -ETIMEDOUT;
	}
	target_put(j->target);
	j->target = NULL;
	*ret = j->pages;
	return r < 0 ? r : j->err;
}

void swap_step(struct ksm_vm *vm)
{
	struct engine *e = vm->engine;
	struct hand h = { .at = &vm->swap_place, .looks = STEP_LOOKS, .put = put_range };
	u64 pages = 0, asked = 0;
	bool quiet;
	int r;

	if (!e->swap_job)
		e->swap_job = swap_job_new();
	if (!e->swap_job || vm->target->pidfd < 0 || vm->dying || vm->mode == KSM_OFF) {
		vm->swap_wanted = 0;
		return;
	}
	for (u32 i = 0; i < vm->nr_regions; i++)
		pages += vm->regions[i]->nr_pages;
	h.missing = MIN(vm->swap_wanted, (u64)STEP_PAGES);
	h.arg = e->swap_job;
	e->swap_job->nr = 0;
	/* Around once for what is quiet, then once for all that may leave. */
	quiet = vm->swap_looked < pages;
	hand_round(vm, quiet ? QUIET_LOOKS : 0, &h);
	vm->swap_looked += STEP_LOOKS - h.looks;
	if (!e->swap_job->nr && h.looks)
		vm->swap_looked = quiet ? pages : 2 * pages;
	r = run(vm, e->swap_job, &asked);
	vm->stats.swap_asked_total += asked;
	vm->swap_wanted -= MIN(vm->swap_wanted, asked);
	if (r < 0 || vm->swap_looked >= 2 * pages)
		vm->swap_wanted = 0;
}

void engine_swap_out(struct ksm_vm *vm, u64 pages)
{
	vm->swap_wanted = pages;
	vm->swap_looked = 0;
}
