/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/plan.h"

static const struct policy_config defaults = POLICY_CONFIG_DEFAULT;

static u64 stat_of(const struct balloon_view *b, enum guest_stat s)
{
	return b->present >> s & 1 ? b->stats[s] : 0;
}

static enum policy_run run_of(const struct balloon_view *b)
{
	if (strcmp(b->run, "paused") == 0)
		return POLICY_PAUSED;
	return strcmp(b->run, "migrating") == 0 ? POLICY_MIGRATING : POLICY_RUNNING;
}

static void fill(struct policy_vm *p, const struct vm_view *vm, u64 resident)
{
	const struct balloon_view *b = &vm->balloon;

	*p = (struct policy_vm){
		.min_bytes = b->floor_bytes,
		.shares = 1000,
		.allowed = 1 << POLICY_SHARE | 1 << POLICY_BALLOON,
		.run = run_of(b),
		.resident_bytes = resident,
		.share_yield_bytes = vm->huge_saving_pages * PAGE_BYTES,
		.has_balloon = b->linked && b->has_actual,
		.has_stats = b->has_stats && b->present >> GUEST_STAT_AVAILABLE & 1,
		.stats_age_us = b->stats_age_us,
		.guest_available_bytes = stat_of(b, GUEST_STAT_AVAILABLE),
		.pressure = strcmp(b->reason, "pressure") == 0,
		.working_set_bytes = UINT64_MAX,
	};
	if (b->has_actual && b->ram_bytes > b->actual_bytes)
		p->taken_bytes[POLICY_BALLOON] = b->ram_bytes - b->actual_bytes;
	if (strcmp(vm->share, "on") != 0 || vm->unmerged || !vm->connected)
		p->allowed &= ~(1u << POLICY_SHARE);
}

int plan_view(const struct view *v, const u64 *resident, struct plan *ret)
{
	struct policy_input in = { .elapsed_us = 1000000, .nr_vms = v->nr_vms };
	struct plan p = { 0 };
	struct policy state = { 0 };
	struct view_totals t;

	if (!v->host.memory_bytes)
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
		fill(&p.vms[i], &v->vms[i], resident[i]);
	view_totals(v, &t);
	in.vms = p.vms;
	in.host = (struct policy_host){
		.memory_bytes = v->host.memory_bytes,
		.available_bytes = v->host.available_bytes,
		.cow_debt_bytes = (u64)MAX(t.cow_debt, 0),
	};
	policy_step(&state, &defaults, &in, &p.policy);
	*ret = p;
	return 0;
}

void plan_free(struct plan *p)
{
	free(p->vms);
	free(p->policy.entitled);
	free(p->policy.actions);
	*p = (struct plan){ 0 };
}
