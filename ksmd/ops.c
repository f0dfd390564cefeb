/* SPDX-License-Identifier: MIT */
/*
 * Requests to agents. Each VM has a queue of runs, whose pages are PENDING and whose store pages
 * are referenced, and at most one request outstanding. An answer settles every page of its request.
 * When the connection is lost the agent may still be at work on the request: it is settled only
 * when the agent has connected again and the kernel was asked what became of the pages
 * (region_resync), or when the process is gone.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "ksmd/core.h"

/* Enough for the scan to stay ahead of the agent; more would only go stale. */
#define QUEUE_MAX 16384
/* After an agent did not take a request. */
#define SEND_RETRY_US 10000
/* After the VMM ran out of mappings (or memory for them). */
#define NO_MAPS_PAUSE_US 60000000

/* Pages that are merged already, which shall show a copy that lies better: that frees mappings. */
static bool is_repair(const struct ksm_vm *vm, const struct ksm_op_run *run)
{
	const struct ksm_region *r = gpn_region(vm->engine, run->gpn);

	return !run->zero && r->state[run->gpn - r->gpn] == PG_SHARED;
}

static bool has_mappings_for(const struct ksm_vm *vm, const struct ksm_op_run *run)
{
	u64 limit = vm->engine->cfg.maps_limit;

	if (run->zero || run->image || is_repair(vm, run))
		return true;
	return now_us() >= vm->no_maps_until_us && vm->boundaries + 2 <= limit &&
	       run->nr >= plan_shortest_run(vm->boundaries, limit);
}

int ops_queue(struct ksm_vm *vm, const struct ksm_op_run *run)
{
	if (!vm->conn || vm->dying || vm->unmerged || vm->queue_nr >= QUEUE_MAX)
		return -EAGAIN;
	if (vm->mode == KSM_OFF || (!run->zero && !run->out && vm->mode != KSM_ON))
		return -EPERM;
	if (!run->out && !has_mappings_for(vm, run))
		return -ENOSPC;
	if (vm->queue_nr == vm->queue_cap) {
		u32 cap = vm->queue_cap ? vm->queue_cap * 2 : 64;
		struct ksm_op_run *q = realloc(vm->queue, cap * sizeof(*q));

		if (!q)
			return -ENOMEM;
		vm->queue = q;
		vm->queue_cap = cap;
	}
	vm->queue[vm->queue_nr++] = *run;
	return 0;
}

/* One request has runs of one kind. */
static bool same_request(const struct ksm_op_run *a, const struct ksm_op_run *b)
{
	return !a->image == !b->image && a->out == b->out;
}

/* Moves as many runs as one request may have from the queue to vm->op; a run may be cut in two. */
static void fill_op(struct ksm_vm *vm)
{
	u32 pages = 0, taken = 0;

	vm->op_nr = 0;
	if (!vm->queue_nr)
		return;
	while (taken < vm->queue_nr && vm->op_nr < ENGINE_RUNS_MAX &&
	       pages < vm->engine->cfg.request_pages) {
		struct ksm_op_run *q = &vm->queue[taken];
		u32 nr = MIN(q->nr, vm->engine->cfg.request_pages - pages);

		if (!same_request(q, &vm->queue[0]))
			break;

		vm->op[vm->op_nr++] = (struct ksm_op_run){ .gpn = q->gpn,
							   .spn = q->spn,
							   .nr = nr,
							   .zero = q->zero,
							   .on_read = q->on_read,
							   .out = q->out,
							   .sample = q->sample,
							   .image = q->image };
		pages += nr;
		if (nr < q->nr) {
			q->gpn += nr;
			q->spn += nr;
			q->nr -= nr;
		} else {
			taken++;
		}
	}
	vm->queue_nr -= taken;
	memmove(vm->queue, vm->queue + taken, vm->queue_nr * sizeof(vm->queue[0]));
}

static void try_later(struct ksm_vm *vm)
{
	vm->pump_due_us = now_us() + SEND_RETRY_US;
}

static void pump_unmerge(struct ksm_vm *vm)
{
	struct ksm_range ranges[ENGINE_RUNS_MAX];
	u32 nr = 0;

	/* Whole stretches of mapped pages; those that are broken already cost nothing. */
	for (u32 i = 0; i < vm->nr_regions && nr < ENGINE_RUNS_MAX; i++) {
		struct ksm_region *r = vm->regions[i];

		for (u32 p = 0; r->nr_mapped && p < r->nr_pages && nr < ENGINE_RUNS_MAX; p++) {
			struct ksm_range *last = nr ? &ranges[nr - 1] : NULL;

			if (r->state[p] != PG_SHARED)
				continue;
			if (last && last->hva + last->bytes == page_hva(r, p))
				last->bytes += PAGE_BYTES;
			else
				ranges[nr++] = (struct ksm_range){ page_hva(r, p), PAGE_BYTES };
		}
	}
	vm->unmerge_due = false;
	if (nr == 0)
		return;
	vm->op_nr = 0;
	if (vm->engine->ops->unmerge(vm->conn, ++vm->seq, ranges, nr) == 0)
		vm->op_busy = true;
	else
		try_later(vm);
	vm->unmerge_due = !vm->op_busy;
}

static void cancel(struct ksm_vm *vm, const struct ksm_op_run *runs, u32 nr);

void ops_pump(struct ksm_vm *vm)
{
	const struct engine_ops *ops = vm->engine->ops;
	struct ksm_run runs[ENGINE_RUNS_MAX];
	int err;

	if (!vm->conn || vm->op_busy || vm->dying)
		return;
	if (vm->unmerge_due) {
		pump_unmerge(vm);
		return;
	}
	/* A request that could not be sent is still in vm->op. */
	if (!vm->op_nr)
		fill_op(vm);
	if (!vm->op_nr)
		return;
	for (u32 i = 0; i < vm->op_nr; i++) {
		const struct ksm_op_run *o = &vm->op[i];
		const struct ksm_region *r = gpn_region(vm->engine, o->gpn);

		runs[i] = (struct ksm_run){
			.hva = page_hva(r, o->gpn - r->gpn),
			.store_offset = o->zero || o->out ? 0 : (u64)o->spn << PAGE_SHIFT,
			.nr_pages = o->nr,
			.zero = o->zero,
			.sample = o->sample,
		};
	}
	err = (vm->op[0].image ? ops->map_image
	       : vm->op[0].out ? ops->page_out
			       : ops->merge)(vm->conn, vm->seq + 1, runs, vm->op_nr);
	if (err == 0) {
		vm->seq++;
		vm->op_busy = true;
	} else if (err == -ENOTSUP) {
		vm->out_refused = true;
		cancel(vm, vm->op, vm->op_nr);
		vm->op_nr = 0;
	} else {
		try_later(vm);
	}
}

static void settle_failed(struct ksm_vm *vm, struct ksm_region *r, u32 page, s32 status)
{
	enum page_state next = PG_HELD;

	switch (status) {
	case -EBUSY:
		vm->stats.pinned_total++;
		if (r->state[page] == PG_SHARED)
			vm->repair_refused = true;
		break;
	case -EILSEQ: /* changed meanwhile */
		next = PG_FRESH;
		break;
	case -ENOENT: /* discarded meanwhile */
		next = PG_NONE;
		break;
	case -ECANCELED:
		next = PG_FRESH;
		break;
	case -ENOSPC:
		vm->no_maps_until_us = now_us() + NO_MAPS_PAUSE_US;
		vm->stats.failed_total++;
		break;
	default:
		vm->stats.failed_total++;
	}
	page_unpend(r, page, next);
}

/* Of a page that should leave the guest. */
static void settle_out(struct ksm_vm *vm, struct ksm_region *r, u32 page, s32 status)
{
	/* It does not compress, is pinned, or there is no room: not asked for again for long. */
	enum page_state next = PG_HELD;

	switch (status) {
	case 0: /* it is absent now, and when it comes back the kernel says that it was written */
		heat_left(r, page);
		next = PG_NONE;
		break;
	case -ENOENT:
		next = PG_NONE;
		break;
	case -ENOTSUP: /* nothing of this VM may be taken out */
		vm->out_refused = true;
		next = PG_FRESH;
		break;
	case -EAGAIN: /* it is another kind of page by now */
	case -ECANCELED:
		next = PG_FRESH;
		break;
	}
	page_unpend(r, page, next);
}

static void settle(struct ksm_vm *vm, const struct ksm_op_run *o, u32 i, s32 status)
{
	struct ksm_region *r = gpn_region(vm->engine, o->gpn);
	u32 page = o->gpn + i - r->gpn;

	if (o->out) {
		settle_out(vm, r, page, status);
		return;
	}
	if (o->image)
		image_settled(vm, o->image, status);
	if (status == 0 && o->zero) {
		page_set(r, page, PG_ZERO);
		vm->stats.zeroed_total++;
	} else if (status == 0) {
		(*(o->image			 ? &vm->stats.image_total
		   : r->state[page] == PG_SHARED ? &vm->stats.repaired_total
						 : &vm->stats.merged_total))++;
		vm->stats.read_shared_total += o->on_read;
		page_set_shared(r, page,
				o->spn + i); /* the request's reference becomes the page's */
	} else {
		if (!o->zero)
			domain_unref(vm->domain, o->spn + i);
		settle_failed(vm, r, page, status);
	}
}

/* Is the answer about exactly the pages of the request, in their order? */
static bool answer_fits(struct ksm_vm *vm, const struct ksm_segment *segments, u32 nr)
{
	u32 s = 0, in_segment = 0;

	for (u32 i = 0; i < vm->op_nr; i++) {
		const struct ksm_op_run *o = &vm->op[i];
		const struct ksm_region *r = gpn_region(vm->engine, o->gpn);

		for (u32 k = 0; k < o->nr; k++) {
			if (s == nr || segments[s].hva + ((u64)in_segment << PAGE_SHIFT) !=
					       page_hva(r, o->gpn - r->gpn + k))
				return false;
			if (++in_segment == segments[s].nr_pages) {
				s++;
				in_segment = 0;
			}
		}
	}
	return s == nr && in_segment == 0;
}

int engine_done(struct ksm_vm *vm, u32 seq, const struct ksm_segment *segments, u32 nr)
{
	u32 s = 0, in_segment = 0;

	if (!vm->op_busy || seq != vm->seq || !answer_fits(vm, segments, nr))
		return -EPROTO;
	for (u32 i = 0; i < vm->op_nr; i++) {
		for (u32 k = 0; k < vm->op[i].nr; k++) {
			settle(vm, &vm->op[i], k, segments[s].status);
			if (++in_segment == segments[s].nr_pages) {
				s++;
				in_segment = 0;
			}
		}
	}
	if (vm->op_nr == 0) {
		/* An unmerge: what is private now shows in the next scan; look at once. */
		vm->pass_due_us = vm->full_due_us = 0;
		vm->rouse = true;
	}
	vm->op_nr = 0;
	vm->op_busy = false;
	/* The next request is sent by the next slice of work: the budget is for it too. But for
	 * what the policy wants out, at a rate of its own, of a host that is short of memory now.
	 */
	if (vm->queue_nr && vm->queue[0].out)
		ops_pump(vm);
	return 0;
}

static void cancel(struct ksm_vm *vm, const struct ksm_op_run *runs, u32 nr)
{
	for (u32 i = 0; i < nr; i++)
		for (u32 k = 0; k < runs[i].nr; k++)
			settle(vm, &runs[i], k, -ECANCELED);
}

void ops_cancel_queue(struct ksm_vm *vm)
{
	cancel(vm, vm->queue, vm->queue_nr);
	vm->queue_nr = 0;
	if (vm->op_busy)
		return;
	cancel(vm, vm->op, vm->op_nr); /* filled, but never sent */
	vm->op_nr = 0;
}

void ops_cancel_outstanding(struct ksm_vm *vm)
{
	cancel(vm, vm->op, vm->op_nr);
	vm->op_nr = 0;
	vm->op_busy = false;
}
