/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include "tiering/entitlement.h"
#include "tiering/policy.h"

static u64 part(u64 bytes, u32 permille)
{
	return (u64)((__uint128_t)bytes * permille / 1000);
}

static u64 above(u64 a, u64 b)
{
	return a > b ? a - b : 0;
}

/* --- states ------------------------------------------------------------------------------------
 */

enum policy_state policy_next_state(const struct policy_config *cfg, enum policy_state old,
				    u64 memory_bytes, u64 available_bytes)
{
	const u32 begins[] = { [POLICY_SOFT] = cfg->soft_permille,
			       [POLICY_HARD] = cfg->hard_permille,
			       [POLICY_LOW] = cfg->low_permille };
	enum policy_state s = POLICY_HIGH;

	for (u32 i = POLICY_SOFT; i <= POLICY_LOW; i++) {
		/* A state that is on is left later than it began. */
		u32 leave = begins[i] + (i <= old ? cfg->hysteresis_permille : 0);

		if (available_bytes < part(memory_bytes, leave))
			s = i;
	}
	return s;
}

/* --- what a VM can give, and has coming ----------------------------------------------------------
 */

struct step {
	const struct policy_config *cfg;
	const struct policy_input *in;
	struct policy_plan *plan;
	u64 tier_free[POLICY_MECHANISMS];
	u64 given_bytes; /* to guests under pressure: the host's memory that this takes */
};

static bool frozen(const struct policy_vm *vm)
{
	return vm->run != POLICY_RUNNING;
}

static u64 floor_of(const struct policy_vm *vm)
{
	return MAX(vm->min_bytes, vm->pinned_bytes);
}

static u64 rate(const struct step *s, enum policy_mechanism m)
{
	return (u64)((__uint128_t)s->cfg->rate_bytes[m] * s->in->elapsed_us / 1000000);
}

/* What compression and swap together may take: what is not in use; in the low state, where there is
 * no other way left, also what is. */
static u64 out_of_use(const struct step *s, const struct policy_vm *vm)
{
	u64 active = MIN(vm->working_set_bytes, vm->resident_bytes);

	if (s->plan->state == POLICY_LOW)
		active = 0;
	return above(vm->resident_bytes, MAX(active, vm->pinned_bytes));
}

/* What a mechanism can take from the VM now, its rate and what others take apart. */
static u64 can_take(const struct step *s, const struct policy_vm *vm, enum policy_mechanism m)
{
	if (!(vm->allowed >> m & 1) || frozen(vm))
		return 0;
	switch (m) {
	case POLICY_SHARE:
		return vm->share_yield_bytes;
	case POLICY_BALLOON:
		if (!vm->has_balloon || !vm->has_stats || vm->pressure ||
		    vm->stats_age_us > s->cfg->stats_max_age_us)
			return 0;
		return above(vm->guest_available_bytes, s->cfg->guest_reserve_bytes);
	default:
		if (s->plan->state < POLICY_HARD || vm->pressure)
			return 0;
		return MIN(out_of_use(s, vm), s->tier_free[m]);
	}
}

static void act(struct step *s, u32 vm, bool take, enum policy_mechanism m, u64 bytes,
		enum policy_reason reason)
{
	struct policy_plan *p = s->plan;

	p->actions[p->nr_actions++] = (struct policy_action){
		.vm = vm,
		.take = take,
		.mechanism = m,
		.bytes = bytes,
		.reason = reason,
		.entitled_bytes = p->entitled[vm],
		.resident_bytes = s->in->vms[vm].resident_bytes,
		.cost_us_per_mib = s->in->vms[vm].cost_us_per_mib[m],
	};
	if (take) {
		p->planned_bytes += bytes;
		s->tier_free[m] -= bytes;
	}
}

/* --- taking -------------------------------------------------------------------------------------
 */

/* Cheapest first; what was never measured comes in the order of enum policy_mechanism, as dear as
 * the dearest that was measured before it. */
static void by_cost(const struct policy_vm *vm, enum policy_mechanism order[POLICY_MECHANISMS])
{
	u64 cost[POLICY_MECHANISMS], least = 0;

	for (u32 m = 0; m < POLICY_MECHANISMS; m++) {
		u32 at = m;

		cost[m] = vm->cost_us_per_mib[m] ? vm->cost_us_per_mib[m] : least;
		least = MAX(least, cost[m]);
		for (; at > 0 && cost[order[at - 1]] > cost[m]; at--)
			order[at] = order[at - 1];
		order[at] = m;
	}
}

static u64 take_from(struct step *s, u32 i, u64 bytes, enum policy_reason reason)
{
	enum policy_mechanism order[POLICY_MECHANISMS] = { 0 };
	const struct policy_vm *vm = &s->in->vms[i];
	u64 missing = bytes, idle = out_of_use(s, vm);

	by_cost(vm, order);
	for (u32 k = 0; k < POLICY_MECHANISMS && missing; k++) {
		enum policy_mechanism m = order[k];
		u64 n = MIN(MIN(missing, can_take(s, vm, m)), rate(s, m));

		/* The same page goes one way only. */
		if (m >= POLICY_COMPRESS)
			n = MIN(n, idle);
		n = ROUND_DOWN(n, PAGE_BYTES);
		idle -= m >= POLICY_COMPRESS ? n : 0;
		if (n)
			act(s, i, true, m, n, reason);
		missing -= n;
	}
	return bytes - missing;
}

/* What all mechanisms together could ever take from the VM. */
static u64 could_take(const struct step *s, const struct policy_vm *vm)
{
	u64 sum = 0, out = 0;

	for (u32 m = 0; m < POLICY_MECHANISMS; m++)
		if (s->cfg->rate_bytes[m])
			*(m >= POLICY_COMPRESS ? &out : &sum) += can_take(s, vm, m);
	return sum + MIN(out, out_of_use(s, vm));
}

static int take(struct step *s, u64 bytes)
{
	const struct policy_input *in = s->in;
	bool below_min = s->plan->state == POLICY_LOW &&
			 s->cfg->last_resort == POLICY_RESORT_BELOW_MIN;
	struct claim *claims = calloc(in->nr_vms, sizeof(claims[0]));
	u64 going;

	if (!claims)
		return -1;
	for (u32 i = 0; i < in->nr_vms; i++) {
		const struct policy_vm *vm = &in->vms[i];
		u64 keeps = above(vm->resident_bytes, could_take(s, vm));

		claims[i] = (struct claim){
			.bytes = vm->resident_bytes,
			.floor_bytes = MAX(below_min ? vm->pinned_bytes : floor_of(vm), keeps),
			.active_bytes = vm->working_set_bytes,
			.shares = MAX(vm->shares, 1u),
		};
	}
	going = entitlement(claims, in->nr_vms, s->cfg->idle_tax_permille, bytes,
			    s->plan->entitled);
	s->plan->unmet_bytes = bytes - going;
	for (u32 i = 0; i < in->nr_vms; i++) {
		u64 n = in->vms[i].resident_bytes - s->plan->entitled[i];
		u64 to_floor = above(in->vms[i].resident_bytes, floor_of(&in->vms[i]));

		if (n)
			take_from(s, i, n, n > to_floor ? POLICY_LAST_RESORT : POLICY_HOST_SHORT);
	}
	free(claims);
	return 0;
}

/* --- giving back
 * ---------------------------------------------------------------------------------- */

/* The dearest first: what is swapped out costs a guest most. What is shared is no loss to it. */
static u64 give_to(struct step *s, u32 i, u64 bytes, enum policy_reason reason)
{
	enum policy_mechanism order[POLICY_MECHANISMS] = { 0 };
	const struct policy_vm *vm = &s->in->vms[i];
	u64 missing = bytes;

	by_cost(vm, order);
	for (u32 k = POLICY_MECHANISMS; k-- > 0 && missing;) {
		enum policy_mechanism m = order[k];
		u64 n;

		if (m == POLICY_SHARE)
			continue;
		n = MIN(missing, vm->taken_bytes[m]);
		/* A guest that needs it is not kept waiting. */
		if (reason != POLICY_GUEST_PRESSURE)
			n = MIN(n, rate(s, m));
		if (n)
			act(s, i, false, m, n, reason);
		missing -= n;
	}
	s->given_bytes += bytes - missing;
	return bytes - missing;
}

static void give(struct step *s, u64 bytes)
{
	const struct policy_input *in = s->in;

	/* To each the same part of what is left; what one has no use for is for those after it. */
	for (u32 i = 0; i < in->nr_vms && bytes >= PAGE_BYTES; i++) {
		const struct policy_vm *vm = &in->vms[i];
		u64 n = ROUND_DOWN(bytes / (in->nr_vms - i), PAGE_BYTES);

		if (!vm->pressure && !frozen(vm))
			bytes -= give_to(s, i, n, POLICY_HOST_HAS);
	}
}

/* --- a step
 * --------------------------------------------------------------------------------------- */

void policy_step(struct policy *p, const struct policy_config *cfg, const struct policy_input *in,
		 struct policy_plan *plan)
{
	struct policy_action *actions = plan->actions;
	const struct policy_host *h = &in->host;
	u64 *entitled = plan->entitled, wanted, reserve, enough, available;
	struct step s = { .cfg = cfg,
			  .in = in,
			  .plan = plan,
			  /* These put memory nowhere. */
			  .tier_free = {
				  [POLICY_SHARE] = UINT64_MAX, [POLICY_BALLOON] = UINT64_MAX } };

	*plan = (struct policy_plan){ .actions = actions, .entitled = entitled };
	plan->state = policy_next_state(cfg, p->state, h->memory_bytes, h->available_bytes);
	p->state = plan->state;
	s.tier_free[POLICY_COMPRESS] = h->compress_free_bytes;
	s.tier_free[POLICY_SWAP] = h->swap_free_bytes;
	for (u32 i = 0; i < in->nr_vms; i++)
		entitled[i] = in->vms[i].resident_bytes;

	for (u32 i = 0; i < in->nr_vms; i++)
		if (in->vms[i].pressure && !frozen(&in->vms[i]))
			give_to(&s, i, UINT64_MAX, POLICY_GUEST_PRESSURE);

	/* What those take is not there any more for others. */
	available = above(h->available_bytes, s.given_bytes);
	/* Up to where the state ends, and so that sharing may break. */
	reserve = part(h->cow_debt_bytes, cfg->cow_reserve_permille);
	enough = part(h->memory_bytes, cfg->soft_permille + cfg->hysteresis_permille) + reserve;
	wanted = plan->state == POLICY_HIGH ? 0 : above(enough, available);
	plan->wanted_bytes = wanted;
	if (wanted && in->nr_vms && take(&s, wanted) < 0)
		plan->unmet_bytes = wanted;
	/* Twice the hysteresis above: what is given back does not bring the soft state. */
	enough += part(h->memory_bytes, cfg->hysteresis_permille);
	if (plan->state == POLICY_HIGH && available > enough)
		give(&s, available - enough);
	available = above(h->available_bytes, s.given_bytes);
	plan->admit_bytes = above(above(available, enough), cfg->vm_overhead_bytes);
}
