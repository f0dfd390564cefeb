/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/plan.h"

struct policy_config plan_config(const struct config *c)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;

	cfg.soft_permille = c->policy_soft_permille;
	cfg.hard_permille = c->policy_hard_permille;
	cfg.low_permille = c->policy_low_permille;
	cfg.hysteresis_permille = c->policy_hysteresis_permille;
	cfg.idle_tax_permille = c->policy_idle_tax_permille;
	cfg.cow_reserve_permille = c->policy_cow_reserve_permille;
	cfg.psi_permille = c->pressure_some_permille;
	cfg.last_resort = c->policy_below_min ? POLICY_RESORT_BELOW_MIN : POLICY_RESORT_NONE;
	return cfg;
}

u64 plan_resident(const struct view *v, const struct vm_view *vm, const struct proc_rss *rss)
{
	u64 shared = vm->shared_pages * PAGE_BYTES, part = shared;
	s64 saved;

	/* saved = shared and zero pages, less the part of the store. */
	if (view_vm_saved_bytes(v, vm, &saved))
		part = (u64)MAX((s64)(shared + vm->zero_pages * PAGE_BYTES) - saved, 0);
	return rss->anon + (rss->shmem > shared ? rss->shmem - shared : 0) + part;
}

static enum policy_run run_of(const struct balloon_view *b)
{
	if (strcmp(b->run, "paused") == 0)
		return POLICY_PAUSED;
	return strcmp(b->run, "migrating") == 0 ? POLICY_MIGRATING : POLICY_RUNNING;
}

/* Would its controller (balloon/controller.h) follow a smaller target now? */
static bool balloon_follows(const struct balloon_view *b)
{
	/* The administrator's wish is not overruled. */
	if (b->has_wish && !b->policy_wish)
		return false;
	switch (b->reason) {
	case CONTROLLER_HOLDOFF:
	case CONTROLLER_STUCK:
	case CONTROLLER_REBOOT:
	case CONTROLLER_SILENT:
	case CONTROLLER_PRESSURE:
	case CONTROLLER_STALE:
		return false;
	default:
		return true;
	}
}

static void fill(struct policy_vm *p, const struct vm_view *vm, const struct host_view *h)
{
	const struct balloon_view *b = &vm->balloon;

	*p = (struct policy_vm){
		.min_bytes = b->floor_bytes,
		.max_bytes = vm->max_bytes,
		.shares = vm->shares,
		.priority = vm->priority,
		.run = run_of(b),
		.resident_bytes = vm->resident_bytes,
		.pool_bytes = vm->pool_bytes,
		.has_swap_file = vm->has_swap_file,
		.swap_room_bytes = !vm->has_swap_file	 ? h->swap_free_bytes
				   : vm->swap_file_fails ? 0
							 : h->swap_file_free_bytes,
		.share_yield_bytes = vm->huge_saving_pages * PAGE_BYTES,
		.has_balloon = b->linked && b->has_actual,
		.has_stats = b->has_stats,
		.stats_age_us = b->stats_age_us,
		/* Nor is its balloon blown up further than leaves it its minimum. */
		.guest_spare_bytes = MIN(b->spare_bytes, b->actual_bytes > b->floor_bytes
								 ? b->actual_bytes - b->floor_bytes
								 : 0),
		.pressure = b->reason == CONTROLLER_PRESSURE,
		.working_set_bytes = vm->working_set_bytes,
	};
	/* What the administrator took is not the policy's to give back. */
	if (b->has_actual && b->ram_bytes > b->actual_bytes && (!b->has_wish || b->policy_wish))
		p->taken_bytes[POLICY_BALLOON] = b->ram_bytes - b->actual_bytes;
	if (strcmp(vm->share, "on") == 0 && !vm->unmerged && vm->connected)
		p->allowed |= 1u << POLICY_SHARE;
	/* Of what is not scanned nobody knows which pages are idle (ksmd/pageout.c). */
	if (vm->may_page_out && vm->has_pager && strcmp(vm->share, "off") != 0 && !vm->unmerged)
		p->allowed |= 1u << POLICY_COMPRESS;
	if (vm->may_swap && strcmp(vm->share, "off") != 0 && !vm->unmerged)
		p->allowed |= 1u << POLICY_SWAP;
	if (vm->may_balloon && balloon_follows(b))
		p->allowed |= 1u << POLICY_BALLOON;
}

int plan_view(const struct view *v, const struct policy_config *cfg, struct policy *state,
	      u64 elapsed_us, struct plan *ret)
{
	struct policy_input in = { .elapsed_us = elapsed_us, .nr_vms = v->nr_vms };
	const struct policy_view *divided = &v->host.policy;
	struct plan p = { 0 };
	struct view_totals t;

	if (!divided->memory_bytes && !v->host.memory_bytes)
		return -ENODATA;
	p.vms = calloc(v->nr_vms + 1, sizeof(p.vms[0]));
	p.policy.entitled = calloc(v->nr_vms + 1, sizeof(u64));
	p.policy.actions =
		calloc(POLICY_ACTIONS_MAX((size_t)v->nr_vms) + 1, sizeof(p.policy.actions[0]));
	if (!p.vms || !p.policy.entitled || !p.policy.actions) {
		plan_free(&p);
		return -ENOMEM;
	}
	for (u32 i = 0; i < v->nr_vms; i++)
		fill(&p.vms[i], &v->vms[i], &v->host);
	view_totals(v, &t);
	in.vms = p.vms;
	in.host = (struct policy_host){
		.memory_bytes = divided->memory_bytes ?: v->host.memory_bytes,
		.available_bytes = divided->memory_bytes ? divided->available_bytes
							 : v->host.available_bytes,
		.psi_some_permille = v->host.pressure_some_permille,
		.cow_debt_bytes = (u64)MAX(t.cow_debt, 0),
		/* The VMMs' own memory: what it takes there is less than what it frees. */
		.compress_free_bytes = v->host.memory_bytes,
		.swap_free_bytes = v->host.swap_free_bytes + v->host.swap_file_free_bytes,
	};
	policy_step(state, cfg, &in, &p.policy);
	*ret = p;
	return 0;
}

void plan_free(struct plan *p)
{
	free(p->vms);
	free(p->policy.entitled);
	free(p->policy.actions);
	free(p->decisions);
	*p = (struct plan){ 0 };
}
