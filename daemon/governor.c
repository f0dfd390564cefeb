/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/procfs.h"
#include "daemon/balloons.h"
#include "daemon/cgroup.h"
#include "daemon/core.h"
#include "daemon/governor.h"

/* A host that is short is looked at so much oftener, up to ten times a second: guests that fault as
 * fast as they can fill what is left between hard and nothing in less than a second. */
#define SHORT_OFTENER 8
#define STEP_MIN_US   100000

/* What is said of the pace of page-ins holds until the next step, if that is late. */
#define PACE_MS 500

/* A balloon's deadband (balloon/controller.c): a smaller step is none; four times less is not worth
 * to be made one. */
#define BALLOON_STEP_BYTES MIB(4)

struct governor {
	struct core *core;
	struct policy state;
	enum policy_mode mode; /* as it is carried out */
	u64 last_us, sampled_us;
	u64 seed; /* which pages are samples; no secret */
	bool hurries;
	bool cgroup_failed; /* said once */
	struct policy_view view;
	sd_event_source *timer;
};

/* --- what there is -------------------------------------------------------------------------- */

/* The host's memory, or the cgroup's if less is left in it. */
static void divide(struct governor *g, struct view *v)
{
	const char *path = g->core->config.policy_cgroup;
	struct policy_view *p = &v->host.policy;
	struct cgroup_memory m;
	int r;

	p->memory_bytes = v->host.memory_bytes;
	p->available_bytes = v->host.available_bytes;
	if (strcmp(path, CONFIG_NONE) == 0)
		return;
	r = cgroup_memory(path, &m);
	if (r < 0 && !g->cgroup_failed)
		log_warn("policy: cannot read the memory of cgroup %s: %s ([policy] cgroup = the "
			 "folder that has its memory.max or memory.limit_in_bytes)",
			 path, strerror(-r));
	g->cgroup_failed = r < 0;
	if (r < 0 || m.limit_bytes == UINT64_MAX || m.available_bytes >= p->available_bytes)
		return;
	p->memory_bytes = m.limit_bytes;
	p->available_bytes = m.available_bytes;
}

/* What each VM takes. One look at /proc a VM, some 12 us: smaps_rollup would know exactly, and
 * walks all of its page tables for that. */
static void look_at_vms(struct core *c, struct view *v)
{
	u32 i = 0;

	for (struct vm *vm = c->vms; vm; vm = vm->next, i++) {
		struct proc_rss rss;

		/* One that has ended meanwhile takes nothing. */
		if (proc_rss(vm->pid, &rss) < 0)
			rss = (struct proc_rss){ 0 };
		vm->resident_bytes = plan_resident(v, &v->vms[i], &rss);
		vm->swapped_bytes = rss.swap;
		v->vms[i].swapped_bytes = rss.swap;
		v->vms[i].resident_bytes = vm->resident_bytes;
	}
}

static int make_plan(struct governor *g, struct policy *state, u64 elapsed_us, struct view *v,
		     struct plan *p)
{
	const struct policy_config cfg = plan_config(&g->core->config);
	int r = core_view(g->core, v);

	if (r < 0)
		return r;
	look_at_vms(g->core, v);
	v->host.swap_file_free_bytes = swapfiles_free(g->core);
	divide(g, v);
	r = plan_view(v, &cfg, state, elapsed_us, p);
	if (r < 0)
		view_free(v);
	return r;
}

int governor_plan(struct core *c, struct view *ret_view, struct plan *ret)
{
	struct policy state = c->governor->state;
	int r = make_plan(c->governor, &state, c->config.policy_interval_us, ret_view, ret);
	u32 i = 0;

	if (r < 0)
		return r;
	ret->decisions = calloc(c->nr_vms + 1, sizeof(ret->decisions[0]));
	if (!ret->decisions) {
		plan_free(ret);
		view_free(ret_view);
		return -ENOMEM;
	}
	for (const struct vm *vm = c->vms; vm; vm = vm->next)
		ret->decisions[i++] = vm->decisions;
	return 0;
}

/* --- what is done --------------------------------------------------------------------------- */

/* The part of many VMs in a small shortage is small, and must not be nothing for ever. */
static s64 balloon_step(s64 change)
{
	if (change >= 0 || change <= -(s64)BALLOON_STEP_BYTES)
		return change;
	return change <= -(s64)BALLOON_STEP_BYTES / 4 ? -(s64)BALLOON_STEP_BYTES : 0;
}

/* How many more pages have to go so that @bytes are free: their compressed copies stay. */
static u64 pages_to_free(const struct vm *vm, u64 bytes)
{
	u64 going = engine_going_out(vm->ksm), pages;

	u64 out = vm->pager.pages << PAGE_SHIFT, left, kept = vm->pager.pool_bytes + vm->swap.bytes;

	/* Until it is known: LZ4 halves what guests hold, about. */
	left = out >= MIB(1) && kept < out ? 1000 - kept * 1000 / out : 500;
	pages = (u64)((__uint128_t)bytes * 1000 / MAX(left, 250u)) >> PAGE_SHIFT;
	return pages > going ? pages - going : 0;
}

static bool is_paused(const struct vm *vm)
{
	struct balloon_view b;

	balloon_view(vm, &b);
	return strcmp(b.run, "paused") == 0;
}

/* Of a round that the guest has had time for; the agent's figures are half a second old at most. */
static bool is_round_of(const struct governor *g, const struct vm *vm)
{
	return g->sampled_us && vm->pager.sample_round != vm->sample_round_seen;
}

/* The round of samples has ended for all VMs: a new one begins. */
static void sample(struct governor *g)
{
	struct core *c = g->core;

	for (struct vm *vm = c->vms; vm; vm = vm->next)
		if (is_round_of(g, vm))
			working_set_note(&vm->working_set, vm->pager.sampled,
					 vm->pager.sample_faults);
	if (!c->config.policy_samples ||
	    g->last_us - g->sampled_us < c->config.policy_sample_interval_us)
		return;
	for (struct vm *vm = c->vms; vm; vm = vm->next) {
		u64 known;

		/* A guest that does not run comes back for nothing, and is not idle for that. */
		if (is_paused(vm)) {
			vm->sample_round_seen = vm->pager.sample_round;
			continue;
		}
		if (is_round_of(g, vm))
			working_set_add(&vm->working_set, vm->pager.sampled,
					vm->pager.sample_faults);
		vm->sample_round_seen = vm->pager.sample_round;
		if (vm->may_page_out && agent_has_pager(vm)) {
			engine_sample(vm->ksm, c->config.policy_samples, &g->seed, &known);
			working_set_begin(&vm->working_set, known << PAGE_SHIFT);
		}
	}
	g->sampled_us = g->last_us;
}

static void carry_out(struct governor *g, const struct plan *p)
{
	struct core *c = g->core;
	struct wanted {
		s64 balloon;		   /* > 0: to the guest */
		u64 out_bytes, swap_bytes; /* compressed, swapped out */
	} *wanted = calloc(c->nr_vms + 1, sizeof(wanted[0]));
	/* What is idle is to be found, too, whatever is taken. */
	bool hurries = p->policy.state >= POLICY_HARD;
	u64 to_file;
	u32 i = 0;

	if (!wanted)
		return; /* the next step asks for the same */
	for (u32 k = 0; k < p->policy.nr_actions; k++) {
		const struct policy_action *a = &p->policy.actions[k];
		struct wanted *w = &wanted[a->vm];

		if (a->mechanism == POLICY_BALLOON)
			w->balloon += a->take ? -(s64)a->bytes : (s64)a->bytes;
		else if (a->take && a->mechanism == POLICY_COMPRESS)
			w->out_bytes += a->bytes;
		else if (a->take && a->mechanism == POLICY_SWAP)
			w->swap_bytes += a->bytes;
		hurries |= a->take && a->mechanism == POLICY_SHARE;
	}
	for (struct vm *vm = c->vms; vm; vm = vm->next, i++) {
		balloon_policy(vm, balloon_step(wanted[i].balloon));
		if (p->policy.page_in_pace)
			agent_send_pace(vm, p->policy.page_in_pace, PACE_MS);
		if (wanted[i].out_bytes)
			engine_page_out(vm->ksm, pages_to_free(vm, wanted[i].out_bytes),
					p->policy.state == POLICY_LOW);
		if (swapfile_out(vm, wanted[i].swap_bytes, &to_file) == -ENODEV)
			engine_swap_out(vm->ksm, wanted[i].swap_bytes >> PAGE_SHIFT);
	}
	sample(g);
	free(wanted);
	core_kick(c);
	balloons_save(c);
	if (hurries != g->hurries) {
		g->hurries = hurries;
		core_apply(c);
		core_kick(c);
	}
}

/* Nothing of it goes on. */
static void stop_acting(struct governor *g)
{
	for (struct vm *vm = g->core->vms; vm; vm = vm->next)
		balloon_policy_end(vm);
	balloons_save(g->core);
	if (g->hurries) {
		g->hurries = false;
		core_apply(g->core);
	}
}

/* --- what is kept --------------------------------------------------------------------------- */

static void keep_action(struct governor *g, struct vm *vm, const struct view *v,
			const struct plan *p, const struct policy_action *a)
{
	const struct decision d = {
		.last_us = g->last_us,
		.acted = g->mode == POLICY_ACT,
		.action = *a,
		.taken_bytes = p->vms[a->vm].taken_bytes[a->mechanism],
		.state = p->policy.state,
		.available_bytes = v->host.policy.available_bytes,
		.guest_spare_bytes = p->vms[a->vm].guest_spare_bytes,
		.stats_age_us = p->vms[a->vm].stats_age_us,
	};
	u64 *total = a->take ? g->view.taken_bytes_total : g->view.given_bytes_total;
	char text[512];
	bool fresh;
	u64 more;

	fresh = decisions_add(&vm->decisions, &d, &more);
	total[a->mechanism] += more;
	if (!fresh)
		return;
	policy_explain(a, vm->name, text, sizeof(text));
	if (g->mode == POLICY_ACT)
		log_info_limited("policy: %s", text);
	else
		log_debug("policy (observe): %s", text);
}

/* @vms: room for all VMs, in the view's order. */
static void keep(struct governor *g, const struct view *v, const struct plan *p, struct vm **vms)
{
	const char *state = policy_state_name(p->policy.state);
	struct policy_view *view = &g->view;
	u32 i = 0;

	if (strcmp(view->state, state) != 0 && (*view->state || p->policy.state != POLICY_HIGH))
		log_info_limited("policy: the host is %s (%llu of %llu MiB available%s)", state,
				 (unsigned long long)v->host.policy.available_bytes >> 20,
				 (unsigned long long)v->host.policy.memory_bytes >> 20,
				 g->mode == POLICY_ACT ? "" : "; mode = observe: nothing is done");
	if (p->policy.unmet_bytes && !view->unmet_bytes)
		log_warn_limited(
			"policy: %llu MiB are wanted that no VM may give (`ballastctl plan` "
			"says why)",
			(unsigned long long)p->policy.unmet_bytes >> 20);
	snprintf(view->state, sizeof(view->state), "%s", state);
	view->memory_bytes = v->host.policy.memory_bytes;
	view->available_bytes = v->host.policy.available_bytes;
	view->wanted_bytes = p->policy.wanted_bytes;
	view->unmet_bytes = p->policy.unmet_bytes;
	view->admit_bytes = p->policy.admit_bytes;
	for (struct vm *vm = g->core->vms; vm; vm = vm->next) {
		vm->entitled_bytes = p->policy.entitled[i];
		vms[i++] = vm;
	}
	for (u32 k = 0; k < p->policy.nr_actions; k++)
		keep_action(g, vms[p->policy.actions[k].vm], v, p, &p->policy.actions[k]);
}

/* --- once an interval ----------------------------------------------------------------------- */

static void step(struct governor *g)
{
	u64 now = now_us(), elapsed = now - g->last_us;
	struct vm **vms = calloc(g->core->nr_vms + 1, sizeof(vms[0]));
	struct view v = { 0 };
	struct plan p = { 0 };
	int r;

	/* After a pause no rate is made up for. */
	elapsed = MIN(elapsed, 2 * g->core->config.policy_interval_us);
	g->last_us = now;
	host_refresh(g->core);
	r = vms ? make_plan(g, &g->state, elapsed, &v, &p) : -ENOMEM;
	if (r < 0) {
		/* The host's memory is known a moment after the start. */
		if (r != -ENODATA)
			log_warn_limited("policy: no plan: %s", strerror(-r));
		free(vms);
		return;
	}
	keep(g, &v, &p, vms);
	free(vms);
	if (g->mode == POLICY_ACT)
		carry_out(g, &p);
	plan_free(&p);
	view_free(&v);
}

static int on_step(sd_event_source *s, uint64_t usec, void *arg)
{
	struct governor *g = arg;
	u64 interval = g->core->config.policy_interval_us, cpu = clock_us(CLOCK_THREAD_CPUTIME_ID);

	if (g->mode != POLICY_OFF)
		step(g);
	g->core->policy_cpu_us += clock_us(CLOCK_THREAD_CPUTIME_ID) - cpu;
	if (g->state.state >= POLICY_SOFT)
		interval = MIN(interval, MAX(interval / SHORT_OFTENER, (u64)STEP_MIN_US));
	sd_event_source_set_time(s, now_us() + interval);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

void governor_hurry(struct core *c)
{
	struct governor *g = c->governor;
	u64 at;

	if (g->mode == POLICY_ACT && sd_event_source_get_time(g->timer, &at) >= 0 &&
	    at > g->last_us + STEP_MIN_US)
		sd_event_source_set_time(g->timer, g->last_us + STEP_MIN_US);
}

int governor_start(struct core *c)
{
	struct governor *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	g->core = c;
	g->mode = c->config.policy_mode;
	g->last_us = now_us();
	c->governor = g;
	return sd_event_add_time(c->event, &g->timer, CLOCK_MONOTONIC,
				 now_us() + c->config.policy_interval_us, 0, on_step, g);
}

void governor_reload(struct core *c)
{
	struct governor *g = c->governor;
	enum policy_mode old = g->mode;

	g->mode = c->config.policy_mode;
	if (old == g->mode)
		return;
	g->cgroup_failed = false;
	log_info("policy: mode = %s", policy_mode_name(g->mode));
	if (old == POLICY_ACT)
		stop_acting(g);
	if (g->mode == POLICY_OFF) {
		g->state = (struct policy){ 0 };
		g->view = (struct policy_view){ 0 };
	}
}

void governor_stop(struct core *c)
{
	if (!c->governor)
		return;
	sd_event_source_disable_unref(c->governor->timer);
	free(c->governor);
	c->governor = NULL;
}

struct policy_view governor_view(const struct core *c)
{
	struct policy_view view = { 0 };

	if (c->governor) {
		view = c->governor->view;
		snprintf(view.mode, sizeof(view.mode), "%s", policy_mode_name(c->governor->mode));
	}
	return view;
}

bool governor_hurries(const struct core *c)
{
	return c->governor && c->governor->hurries;
}
