/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include "tiering/entitlement.h"
#include "tiering/policy.h"

/* Less is not worth to be moved. */
#define MIN_MOVE_BYTES MIB(16)

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

/*
 * What available memory will have fallen by in the next step, if it goes on as since the last one:
 * where guests grow by more in a step than lies between two states, what is taken only once it is
 * needed is taken too late. Nothing while there is enough, since what is given back then falls too.
 */
static u64 falling(const struct policy *p, enum policy_state now, u64 available_bytes)
{
	return now >= POLICY_SOFT && p->knows_available ? above(p->available_bytes, available_bytes)
							: 0;
}

/*
 * A host in the state hard has what is between that and nothing to live on until more is taken. How
 * fast it goes shrinks with its square, so that it is never gone, and settles where as much is
 * taken as comes back: at the beginning of hard it is more than any guest faults for, at the
 * beginning of low, by default, a quarter of that.
 */
#define PACE_MOST  65536
#define PACE_LEAST 100

static u32 page_in_pace(const struct policy_config *cfg, enum policy_state state,
			const struct policy_host *h)
{
	u64 hard = MAX(part(h->memory_bytes, cfg->hard_permille), (u64)PAGE_BYTES);
	u64 left = MIN(h->available_bytes, hard) * 1000 / hard;

	if (state < POLICY_HARD)
		return 0;
	return MAX((u32)(PACE_MOST * left / 1000 * left / 1000), (u32)PACE_LEAST);
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

/* What compression and the kernel's swap together may take: what is not in use, nor compressed; in
 * the low state, where there is no other way left, also what is in use. */
static u64 out_of_use(const struct step *s, const struct policy_vm *vm)
{
	u64 active = MIN(vm->working_set_bytes, vm->resident_bytes);

	if (s->plan->state == POLICY_LOW)
		active = 0;
	return above(vm->resident_bytes, MAX(active, vm->pinned_bytes) + vm->pool_bytes);
}

/* Takes pages out of the guest: two such mechanisms cannot take the same. */
static bool takes_pages(const struct policy_vm *vm, enum policy_mechanism m)
{
	return m == POLICY_COMPRESS || (m == POLICY_SWAP && !vm->has_swap_file);
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
		return vm->guest_spare_bytes;
	default:
		if (s->plan->state < POLICY_HARD || vm->pressure)
			return 0;
		return MIN(takes_pages(vm, m) ? out_of_use(s, vm) : vm->pool_bytes,
			   m == POLICY_SWAP ? MIN(s->tier_free[m], vm->swap_room_bytes)
					    : s->tier_free[m]);
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
		if (takes_pages(vm, m))
			n = MIN(n, idle);
		n = ROUND_DOWN(n, PAGE_BYTES);
		idle -= takes_pages(vm, m) ? n : 0;
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
			*(takes_pages(vm, m) ? &out : &sum) += can_take(s, vm, m);
	return sum + MIN(out, out_of_use(s, vm));
}

/* The class (of equal priority) after @from, upwards (@up 1) or downwards (-1). CLASS_NONE: there
 * is none. To begin with: CLASS_LOWEST, CLASS_HIGHEST. */
#define CLASS_NONE    (-2)
#define CLASS_LOWEST  (-1)
#define CLASS_HIGHEST ((s64)UINT32_MAX + 1)

static s64 next_class(const struct policy_input *in, s64 from, int up)
{
	s64 next = CLASS_NONE;

	for (u32 i = 0; i < in->nr_vms; i++) {
		s64 p = in->vms[i].priority;

		if ((p - from) * up > 0 && (next == CLASS_NONE || (next - p) * up > 0))
			next = p;
	}
	return next;
}

static struct claim claim_of(const struct step *s, const struct policy_vm *vm)
{
	bool below_min = s->plan->state == POLICY_LOW &&
			 s->cfg->last_resort == POLICY_RESORT_BELOW_MIN;
	u64 keeps = above(vm->resident_bytes, could_take(s, vm));

	return (struct claim){
		.bytes = vm->resident_bytes,
		.floor_bytes = MAX(below_min ? vm->pinned_bytes : floor_of(vm), keeps),
		.active_bytes = vm->working_set_bytes,
		.shares = MAX(vm->shares, 1u),
	};
}

/* What everyone is entitled to, class by class: each gives all that it may, but for the last one,
 * which is solved. Returns what goes. */
static u64 entitle(struct step *s, u64 bytes, struct claim *claims, const u64 *floors)
{
	const struct policy_input *in = s->in;
	u64 *entitled = s->plan->entitled, going = 0;

	for (s64 class = next_class(in, CLASS_LOWEST, 1); class != CLASS_NONE && going < bytes;
	     class = next_class(in, class, 1)) {
		u64 most = 0;

		for (u32 i = 0; i < in->nr_vms; i++) {
			bool gives = in->vms[i].priority == class;

			/* Who is not of the class keeps what it has by now. */
			claims[i].bytes = entitled[i];
			claims[i].floor_bytes = gives ? floors[i] : entitled[i];
			most += claims[i].bytes - claims[i].floor_bytes;
		}
		if (most > bytes - going)
			return going + entitlement(claims, in->nr_vms, s->cfg->idle_tax_permille,
						   bytes - going, entitled);
		for (u32 i = 0; i < in->nr_vms; i++)
			entitled[i] = claims[i].floor_bytes;
		going += most;
	}
	return going;
}

static int take(struct step *s, u64 bytes)
{
	const struct policy_input *in = s->in;
	struct claim *claims = calloc(in->nr_vms, sizeof(claims[0]));
	u64 *floors = calloc(in->nr_vms, sizeof(floors[0]));
	u64 *entitled = s->plan->entitled;

	if (!claims || !floors) {
		free(claims);
		free(floors);
		return -1;
	}
	for (u32 i = 0; i < in->nr_vms; i++) {
		claims[i] = claim_of(s, &in->vms[i]);
		floors[i] = MIN(claims[i].floor_bytes, claims[i].bytes);
	}
	s->plan->unmet_bytes = bytes - entitle(s, bytes, claims, floors);
	for (u32 i = 0; i < in->nr_vms; i++) {
		const struct policy_vm *vm = &in->vms[i];
		/* A maximum is no reason to go below the minimum. */
		u64 most = vm->max_bytes ? MAX(vm->max_bytes, MAX(floors[i], floor_of(vm)))
					 : UINT64_MAX;
		enum policy_reason reason = POLICY_HOST_SHORT;
		u64 n;

		if (entitled[i] > most) {
			entitled[i] = most;
			reason = POLICY_OVER_MAX;
		}
		n = vm->resident_bytes - entitled[i];
		if (n > above(vm->resident_bytes, floor_of(vm)))
			reason = POLICY_LAST_RESORT;
		if (n)
			take_from(s, i, n, reason);
	}
	free(claims);
	free(floors);
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

/* What the VM could get back and have use for. */
static u64 room_of(const struct step *s, const struct policy_vm *vm)
{
	u64 taken = 0;

	if (vm->pressure || frozen(vm))
		return 0;
	for (u32 m = POLICY_SHARE + 1; m < POLICY_MECHANISMS; m++)
		taken += MIN(vm->taken_bytes[m], rate(s, m));
	return vm->max_bytes ? MIN(taken, above(vm->max_bytes, vm->resident_bytes)) : taken;
}

/*
 * As it would be with @more bytes. Whoever gets memory is taken to use as large a part of it as of
 * what it has, so that all of it has one price: f + k (1 - f), as in ESX's own formula
 * (entitlement.h). It is put into the shares.
 */
static struct claim claim_with(const struct step *s, const struct policy_vm *vm, u64 more)
{
	u64 has = MAX(vm->resident_bytes, (u64)PAGE_BYTES), used = MIN(vm->working_set_bytes, has);
	double f = (double)used / (double)has,
	       k = 1000.0 / (1000 - MIN(s->cfg->idle_tax_permille, 999u));

	return (struct claim){
		.bytes = vm->resident_bytes + more,
		.floor_bytes = vm->resident_bytes,
		.active_bytes = UINT64_MAX,
		.shares = (u32)(MAX(vm->shares, 1u) * 1000.0 / (f + k * (1 - f))),
	};
}

/* Arrays of one for each VM. */
struct dealing {
	struct claim *claims;
	u64 *room, *entitled;
};

static bool dealing_new(const struct policy_input *in, struct dealing *d)
{
	*d = (struct dealing){
		.claims = calloc(in->nr_vms + 1, sizeof(d->claims[0])),
		.room = calloc(in->nr_vms + 1, sizeof(d->room[0])),
		.entitled = calloc(in->nr_vms + 1, sizeof(d->entitled[0])),
	};
	return d->claims && d->room && d->entitled;
}

static void dealing_free(struct dealing *d)
{
	free(d->claims);
	free(d->room);
	free(d->entitled);
}

/* Divides @bytes among the VMs of a class, to none more than its room: where it is worth most, so
 * that in the end all have it as memory is taken (entitlement.h). Returns what is left. */
static u64 give_class(struct step *s, u64 bytes, s64 class, struct dealing *d)
{
	const struct policy_input *in = s->in;
	u64 all = 0;

	for (u32 i = 0; i < in->nr_vms; i++) {
		u64 room = in->vms[i].priority == class ? d->room[i] : 0;

		d->claims[i] = claim_with(s, &in->vms[i], room);
		all += room;
	}
	entitlement(d->claims, in->nr_vms, s->cfg->idle_tax_permille, all - MIN(all, bytes),
		    d->entitled);
	for (u32 i = 0; i < in->nr_vms; i++) {
		u64 n = ROUND_DOWN(d->entitled[i] - in->vms[i].resident_bytes, PAGE_BYTES);

		n = MIN(n, bytes);
		if (n)
			bytes -= give_to(s, i, n, POLICY_HOST_HAS);
	}
	return bytes;
}

/* The highest priority first, as it was taken from the lowest first. */
static void give(struct step *s, u64 bytes)
{
	const struct policy_input *in = s->in;
	struct dealing d;

	if (dealing_new(in, &d)) {
		for (u32 i = 0; i < in->nr_vms; i++)
			d.room[i] = room_of(s, &in->vms[i]);
		for (s64 class = next_class(in, CLASS_HIGHEST, -1);
		     class != CLASS_NONE && bytes >= PAGE_BYTES; class = next_class(in, class, -1))
			bytes = give_class(s, bytes, class, &d);
	}
	dealing_free(&d); /* without memory: in the next step, then */
}

/* --- dividing anew ------------------------------------------------------------------------------
 */

/* What is not worth to be moved: an estimate is off by so much. */
static u64 deadband(const struct policy_vm *vm)
{
	return MAX(vm->resident_bytes / 8, (u64)MIN_MOVE_BYTES);
}

/* May take part: it is known how much it uses. Who has nothing to spare may get all the same. */
static bool divides(const struct policy_vm *vm, s64 class)
{
	return vm->priority == class && vm->working_set_bytes != UINT64_MAX && !vm->pressure &&
	       !frozen(vm);
}

/*
 * A host that has enough, but with memory idle in some VMs that was taken from others which use
 * theirs: those that are entitled to less give half of what is between. What that frees is given
 * back in the next steps, to those that are entitled to it (give()).
 */
static void divide_class(struct step *s, s64 class, struct dealing *d)
{
	const struct policy_input *in = s->in;
	bool wanted = false;
	u64 all = 0;

	for (u32 i = 0; i < in->nr_vms; i++) {
		const struct policy_vm *vm = &in->vms[i];
		bool takes_part = divides(vm, class);
		u64 room = takes_part ? vm->taken_bytes[POLICY_BALLOON] : 0;

		if (vm->max_bytes)
			room = MIN(room, above(vm->max_bytes, vm->resident_bytes));
		d->claims[i] = claim_with(s, vm, room);
		if (takes_part)
			d->claims[i].floor_bytes =
				MAX(above(vm->resident_bytes, can_take(s, vm, POLICY_BALLOON)),
				    floor_of(vm));
		all += room;
	}
	entitlement(d->claims, in->nr_vms, s->cfg->idle_tax_permille, all, d->entitled);
	for (u32 i = 0; i < in->nr_vms; i++)
		wanted |= d->entitled[i] >= in->vms[i].resident_bytes + deadband(&in->vms[i]);
	for (u32 i = 0; i < in->nr_vms && wanted; i++) {
		const struct policy_vm *vm = &in->vms[i];
		u64 n = above(vm->resident_bytes, d->entitled[i]);

		/* What is taken of it anyway is enough for a step. */
		if (n < deadband(vm) || s->plan->entitled[i] != vm->resident_bytes)
			continue;
		s->plan->entitled[i] = d->entitled[i];
		n = ROUND_DOWN(MIN(n / 2, rate(s, POLICY_BALLOON)), PAGE_BYTES);
		if (n)
			act(s, i, true, POLICY_BALLOON, n, POLICY_USED_LESS);
	}
}

static void divide(struct step *s)
{
	const struct policy_input *in = s->in;
	struct dealing d;

	if (dealing_new(in, &d))
		for (s64 class = next_class(in, CLASS_LOWEST, 1); class != CLASS_NONE;
		     class = next_class(in, class, 1))
			divide_class(s, class, &d);
	dealing_free(&d);
}

/* --- a step
 * --------------------------------------------------------------------------------------- */

void policy_step(struct policy *p, const struct policy_config *cfg, const struct policy_input *in,
		 struct policy_plan *plan)
{
	struct policy_action *actions = plan->actions;
	const struct policy_host *h = &in->host;
	u64 *entitled = plan->entitled, wanted, reserve, enough, available, fall;
	bool waits = cfg->psi_permille && h->psi_some_permille >= cfg->psi_permille;
	struct step s = { .cfg = cfg,
			  .in = in,
			  .plan = plan,
			  /* These put memory nowhere. */
			  .tier_free = {
				  [POLICY_SHARE] = UINT64_MAX, [POLICY_BALLOON] = UINT64_MAX } };

	*plan = (struct policy_plan){ .actions = actions, .entitled = entitled };
	plan->state = policy_next_state(cfg, p->state, h->memory_bytes, h->available_bytes);
	if (waits)
		plan->state = MAX(plan->state, POLICY_SOFT);
	fall = falling(p, plan->state, h->available_bytes);
	/* Hard may begin a step early, low never: that takes what is in use. */
	if (policy_next_state(cfg, plan->state, h->memory_bytes, above(h->available_bytes, fall)) >=
	    POLICY_HARD)
		plan->state = MAX(plan->state, POLICY_HARD);
	plan->page_in_pace = page_in_pace(cfg, plan->state, h);
	*p = (struct policy){ plan->state, h->available_bytes, true };
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
	wanted = plan->state == POLICY_HIGH ? 0 : above(enough, above(available, fall));
	if (waits)
		wanted = MAX(wanted, part(h->memory_bytes, cfg->hysteresis_permille));
	plan->wanted_bytes = wanted;
	if (in->nr_vms && take(&s, wanted) < 0)
		plan->unmet_bytes = wanted;
	/* Twice the hysteresis above: what is given back does not bring the soft state. */
	enough += part(h->memory_bytes, cfg->hysteresis_permille);
	if (plan->state == POLICY_HIGH && available > enough)
		give(&s, available - enough);
	/* Short by next to nothing is where taking ends. */
	if (plan->state <= POLICY_SOFT && !s.given_bytes &&
	    wanted <= part(h->memory_bytes, cfg->hysteresis_permille) / 4)
		divide(&s);
	available = above(h->available_bytes, s.given_bytes);
	plan->admit_bytes = above(above(available, enough), cfg->vm_overhead_bytes);
}
