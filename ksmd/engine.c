/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "ksmd/core.h"
#include "ksmd/hash.h"
#include "ksmd/jobs.h"

/* Pages of a dead VM that are settled in one step. */
#define EXIT_STEP_PAGES 16384
/*
 * A VMM that hangs a reader is left alone until that is back, and from the second time on for a
 * while longer, doubled each time: each hang costs all others a second. Forgotten after an hour
 * without one.
 */
#define HANG_PAUSE_US	   10000000
#define HANG_PAUSES_MAX	   8
#define HANGS_FORGOTTEN_US 3600000000
/* Waiting for readers costs no CPU, but time that the sockets wait too. */
#define SLICE_WALL_US 50000
#define TRIM_US	      5000000
/* Intervals between two comparisons of the whole account with the kernel's. */
#define REREAD_INTERVALS 128

int engine_new(const struct engine_config *cfg, const struct engine_ops *ops, struct engine **ret)
{
	struct engine *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->cfg = *cfg;
	e->ops = ops;
	r = page_hash_init();
	if (r == 0)
		r = scan_buffers_new(&e->scan);
	e->match = match_buffers_new();
	e->merge = merge_buffers_new();
	if (r == 0 && (!e->match || !e->merge))
		r = -ENOMEM;
	if (r == 0)
		r = reader_pool_new(cfg->threads, &e->readers);
	if (r < 0) {
		engine_free(e);
		return r;
	}
	*ret = e;
	return 0;
}

static void vm_free(struct ksm_vm *vm)
{
	for (u32 i = 0; i < vm->nr_regions; i++)
		region_free(vm->regions[i]);
	target_put(vm->target);
	if (vm->image_request.fd >= 0)
		close(vm->image_request.fd);
	free(vm->regions);
	free(vm->queue);
	free(vm->line);
	free(vm);
}

void engine_free(struct engine *e)
{
	if (!e)
		return;
	while (e->vms) {
		struct ksm_vm *vm = e->vms;

		e->vms = vm->next;
		vm_free(vm);
	}
	/* The stores' memory lives on in the guests that map it; only our descriptors close. */
	for (u32 i = 0; i < e->nr_domains; i++) {
		index_free(e->domains[i]->index);
		index_free(e->domains[i]->broken);
		blocks_free(e->domains[i]->blocks);
		images_free(e->domains[i]);
		store_free(e->domains[i]->store);
		free(e->domains[i]);
	}
	reader_pool_free(e->readers);
	scan_buffers_free(e->scan);
	match_buffers_free(e->match);
	merge_buffers_free(e->merge);
	image_job_free(e->image_job);
	swap_job_free(e->swap_job);
	gpn_space_free(&e->gpns);
	free(e);
}

void vm_rouse(struct ksm_vm *vm)
{
	struct pace_limits l = engine_pace(vm->engine);

	vm->rouse = true;
	vm->interval_us = pace_first_interval(&l);
	vm->pass_due_us = vm->full_due_us = 0;
}

void engine_configure(struct engine *e, const struct engine_config *cfg)
{
	bool rouse = (cfg->pressure && !e->cfg.pressure) || (cfg->enabled && !e->cfg.enabled);

	e->cfg.interval_us = cfg->interval_us;
	e->cfg.idle_interval_us = cfg->idle_interval_us;
	e->cfg.thp_split_min_saving = cfg->thp_split_min_saving;
	e->cfg.pressure = cfg->pressure;
	e->cfg.enabled = cfg->enabled;
	e->cfg.request_pages = cfg->request_pages;
	e->cfg.maps_limit = cfg->maps_limit;
	e->cfg.vm_max_bytes = cfg->vm_max_bytes;
	e->cfg.image_max_bytes = cfg->image_max_bytes;
	for (struct ksm_vm *vm = e->vms; rouse && vm; vm = vm->next)
		vm_rouse(vm);
}

u64 engine_given_up(const struct engine *e)
{
	return reader_pool_given_up(e->readers);
}

/* --- VMs -------------------------------------------------------------------------------------- */

static u64 first_interval(const struct engine *e)
{
	struct pace_limits l = engine_pace(e);

	return pace_first_interval(&l);
}

/* Where a VM that comes, or comes back, stands in line: with the others, not before them. */
static u64 least_cpu(const struct engine *e)
{
	u64 least = e->vms ? UINT64_MAX : 0;

	for (const struct ksm_vm *vm = e->vms; vm; vm = vm->next)
		least = MIN(least, vm->cpu_us);
	return least;
}

int engine_vm_add(struct engine *e, pid_t pid, struct ksm_domain *d, enum ksm_mode mode,
		  struct ksm_vm **ret)
{
	struct ksm_vm *vm = calloc(1, sizeof(*vm));
	int r;

	if (!vm)
		return -ENOMEM;
	r = target_new(pid, &vm->target);
	if (r < 0) {
		free(vm);
		return r;
	}
	vm->engine = e;
	vm->domain = d;
	vm->mode = mode;
	vm->interval_us = first_interval(e);
	vm->cpu_us = least_cpu(e);
	vm->image_request.fd = -1;
	/* Not a number of before a restart, which its agent may still be counting. */
	vm->sample_round = (u32)now_us();
	vm->next = e->vms;
	e->vms = vm;
	*ret = vm;
	return 0;
}

void engine_vm_connect(struct ksm_vm *vm, void *conn)
{
	vm->conn = conn;
	/* The agent tells its regions anew; one that it does not tell again is gone. */
	for (u32 i = 0; i < vm->nr_regions; i++) {
		vm->regions[i]->gone = true;
		vm->regions[i]->read = false;
	}
	/* It connects after it has finished what it was asked before: now its mappings tell what
	 * became of that. */
	vm->cancel_due = true;
	vm->repair_refused = false;
	vm->out_refused = false;
	regions_read(vm);
}

void engine_vm_disconnect(struct ksm_vm *vm)
{
	vm->conn = NULL;
	image_lose(vm);
	ops_cancel_queue(vm);
}

void engine_vm_exit(struct ksm_vm *vm)
{
	vm->conn = NULL;
	vm->dying = true;
	vm->cursor_region = vm->cursor_page = 0;
	ops_cancel_queue(vm);
	ops_cancel_outstanding(vm);
	image_vm_exit(vm);
}

/* The VMM that a reader hangs in is left alone until that reader is back. */
void vm_set_blocked(struct ksm_vm *vm)
{
	vm->blocked = true;
	if (now_us() > vm->hang_us + HANGS_FORGOTTEN_US)
		vm->nr_hangs = 0;
	vm->hang_us = now_us();
	vm->unblock_us = vm->hang_us;
	if (vm->nr_hangs)
		vm->unblock_us += HANG_PAUSE_US << MIN(vm->nr_hangs, (u32)HANG_PAUSES_MAX);
	vm->nr_hangs++;
	vm->engine->ops->blocked(vm->conn, true);
}

void engine_vm_set_mode(struct ksm_vm *vm, enum ksm_mode mode)
{
	if (mode == vm->mode)
		return;
	/* What was looked at under the old mode is looked at again, and what was planned is
	 * dropped. */
	ops_cancel_queue(vm);
	for (u32 i = 0; i < vm->nr_regions; i++)
		region_look_anew(vm->regions[i]);
	vm->interval_us = first_interval(vm->engine);
	vm->mode = mode;
}

int engine_unmerge(struct ksm_vm *vm, u64 *ret_pages)
{
	if (!vm->conn)
		return -ENOTCONN;
	vm->unmerged = true;
	ops_cancel_queue(vm);
	vm->unmerge_due = true;
	*ret_pages = vm->stats.shared_pages;
	ops_pump(vm);
	return 0;
}

void engine_share(struct ksm_vm *vm)
{
	vm->unmerged = vm->unmerge_due = false;
	vm_rouse(vm);
}

bool vm_may_share(const struct ksm_vm *vm)
{
	return vm->conn && vm->mode == KSM_ON && !vm->unmerged && !vm->dying && !vm->blocked;
}

void engine_vm_stats(const struct ksm_vm *vm, struct ksm_vm_stats *ret)
{
	*ret = vm->stats;
	ret->mappings = vm->boundaries;
	ret->unmerged = vm->unmerged;
	ret->blocked = vm->blocked;
	for (u32 i = 0; i < vm->nr_regions; i++) {
		ret->configured_pages += vm->regions[i]->nr_pages;
		ret->meta_bytes += region_bytes(vm->regions[i]);
	}
	ret->meta_bytes += sizeof(*vm) + vm->queue_cap * sizeof(vm->queue[0]) +
			   vm->line_cap * sizeof(vm->line[0]);
}

/* --- slices of work ----------------------------------------------------------------------------
 */

/* True when there is nothing left of the dead VM. */
static bool exit_step(struct ksm_vm *vm)
{
	for (u32 budget = EXIT_STEP_PAGES; vm->cursor_region < vm->nr_regions;) {
		struct ksm_region *r = vm->regions[vm->cursor_region];

		for (; vm->cursor_page < r->nr_pages; vm->cursor_page++, budget--) {
			if (!budget)
				return false;
			page_set(r, vm->cursor_page, PG_NONE);
		}
		vm->cursor_region++;
		vm->cursor_page = 0;
	}
	return true;
}

static void unlink_vm(struct engine *e, struct ksm_vm *vm)
{
	struct ksm_vm **p = &e->vms;

	while (*p != vm)
		p = &(*p)->next;
	*p = vm->next;
	vm_free(vm);
}

static void end_pass(struct ksm_vm *vm, u64 now)
{
	struct pace_limits limits = engine_pace(vm->engine);

	vm->in_pass = false;
	vm->cursor_region = vm->cursor_page = 0;
	vm->interval_us = pace_next_interval(&limits, vm->interval_us, &vm->pass);
	vm->pass = (struct pace_pass){ 0 };
	vm->pass_due_us = MAX(now, vm->pass_started_us + vm->interval_us);
	vm->stats.passes_total++;
	/* One request did not hold all ranges, or some page was merged meanwhile. */
	if (vm->unmerged && vm->stats.shared_pages)
		vm->unmerge_due = true;
	/* What agents said is compared with what the kernel says now and then. */
	for (u32 i = 0; i < vm->nr_regions && now >= vm->reread_due_us; i++)
		vm->regions[i]->read = vm->regions[i]->read && !vm->regions[i]->nr_mapped;
	if (now >= vm->reread_due_us)
		vm->reread_due_us = now + REREAD_INTERVALS * vm->engine->cfg.interval_us;
	regions_read(vm);
	regions_reap(vm);
	/* Not while there is better to do. */
	if (vm->interval_us >= vm->engine->cfg.interval_us)
		repair_step(vm, now_us());
}

/* When there is something to do for the VM; at @now or before: now. */
static u64 vm_due(struct ksm_vm *vm, u64 now)
{
	u64 due;

	if (vm->dying)
		return now;
	/* A hung reader holds the target until it is back. */
	if (vm->blocked && vm->target->refs == 1 && now >= vm->unblock_us) {
		vm->blocked = false;
		vm->engine->ops->blocked(vm->conn, false);
	}
	if (vm->blocked)
		return now + 1000000;
	/* The answer to a request wakes the engine up. */
	if (vm->conn && !vm->op_busy && (vm->unmerge_due || vm->op_nr || vm->queue_nr))
		return MAX(now, vm->pump_due_us);
	/* Let the agent catch up before finding it more to do. */
	if (vm->queue_nr > ENGINE_RUNS_MAX)
		return now + 10000;
	if (image_has_work(vm))
		return MAX(now, vm->pump_due_us);
	if (vm->in_pass || vm->swap_wanted)
		return now;
	due = vm->nr_regions ? vm->pass_due_us : UINT64_MAX;
	return vm->line_nr ? MIN(due, MAX(now, vm->slow_until_us)) : due;
}

/* One step for one VM that is due. */
static void vm_step(struct ksm_vm *vm, u64 now)
{
	ops_pump(vm);
	if (vm->queue_nr > ENGINE_RUNS_MAX)
		return;
	if (image_has_work(vm)) {
		image_step(vm);
		ops_pump(vm);
		return;
	}
	if (vm->line_nr && now >= vm->slow_until_us) {
		readshare_step(vm);
		ops_pump(vm);
		return;
	}
	/* In turns with the scan, which must not wait for all of it. */
	if (vm->swap_wanted)
		swap_step(vm);
	if (vm->blocked)
		return;
	if (!vm->in_pass) {
		if (now < vm->pass_due_us || !vm->nr_regions)
			return;
		vm->in_pass = true;
		vm->pass_started_us = now;
		for (u32 i = 0; i < vm->nr_regions && vm->rouse; i++)
			region_rouse(vm->regions[i]);
		vm->rouse = false;
		/* While passes follow each other quickly not each of them asks everything. */
		vm->full_pass = now >= vm->full_due_us;
		if (vm->full_pass)
			vm->full_due_us = now + vm->engine->cfg.interval_us;
	}
	if (!scan_window(vm))
		end_pass(vm, now);
	ops_pump(vm);
}

/* The VM that has used least among those that have something to do; NULL: none has before *ret_due.
 */
static struct ksm_vm *next_vm(struct engine *e, u64 now, u64 *ret_due)
{
	struct ksm_vm *best = NULL;

	*ret_due = UINT64_MAX;
	for (struct ksm_vm *vm = e->vms; vm; vm = vm->next) {
		u64 due = vm_due(vm, now);

		if (due > now)
			*ret_due = MIN(*ret_due, due);
		else if (!best || vm->cpu_us < best->cpu_us)
			best = vm;
	}
	return best;
}

u64 engine_run(struct engine *e, u64 cpu_us)
{
	u64 cpu = process_cpu_us(), end = cpu + cpu_us, due = 0, now = now_us();
	u64 wall_end = now + SLICE_WALL_US;
	struct ksm_vm *vm = NULL;
	bool more;

	collect_late(e);
	/* One window at a time, so that no VM keeps the others waiting. */
	while (cpu < end && now < wall_end && (vm = next_vm(e, now, &due))) {
		/* A hung reader may still use a dead VM's target, but that has its own life. */
		bool gone = vm->dying && exit_step(vm);
		u64 before = cpu;

		if (!vm->dying)
			vm_step(vm, now);
		cpu = process_cpu_us();
		now = now_us();
		if (gone)
			unlink_vm(e, vm);
		else
			vm->cpu_us += MAX(cpu - before, (u64)1);
	}
	more = images_reap(e);
	for (u32 i = 0; i < e->nr_domains; i++)
		store_flush(e->domains[i]->store);
	if (now >= e->trim_due_us) {
		for (u32 i = 0; i < e->nr_domains; i++)
			store_trim(e->domains[i]->store);
		e->trim_due_us = now + TRIM_US;
	}
	/* With @vm the slice ended before the work did. */
	return vm || more ? now : due;
}
