/* SPDX-License-Identifier: MIT */
/*
 * make bench-sim: the policy engine (tiering/policy.h) against hosts that exist only as numbers, a
 * step a second.
 *
 * A guest touches what it needs (its demand) and keeps what it touched, as guests do: memory comes
 * back only by balloon, and then only what it does not need. A guest whose demand does not fit
 * beside its balloon is under pressure. Demand beyond the host's memory is counted as starved.
 *
 *   step      twenty guests, half of which want four times as much from one second on: how long
 * until all have it, and how often does a balloon turn round while nothing changes any more burst
 * one of twenty idle guests wants all of its memory at once fair      guests of different shares
 * that hoard idle memory: what each has in the end against what the closed form says
 * (entitlement.h) turns     eight guests on half their memory, two of which at a time use three
 * quarters of theirs, most of it as page cache, which they give without a sign of pressure: how
 * much of what they want do the busy ones have, on average diurnal   a thousand guests (VMS=) whose
 * loads peak at different times, for a day
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "tiering/entitlement.h"
#include "tiering/policy.h"

#define SECOND	1000000ULL
#define RESERVE MIB(64)

struct guest {
	u64 size, demand, resident, balloon;
	u64 cache;     /* of the demand: what it can do without, though slowly */
	s64 last_move; /* of the balloon: its direction */
	u64 turns, below_floor, starved;
};

struct sim {
	struct policy_config cfg;
	struct policy p;
	u64 memory;
	u32 nr;
	struct guest *guests;
	struct policy_vm *vms;
	struct policy_action *actions;
	u64 *entitled;
	u64 ns; /* spent in policy_step() */
	u64 low_steps;
};

static void *must(void *p)
{
	if (!p) {
		fprintf(stderr, "bench-sim: out of memory\n");
		exit(1);
	}
	return p;
}

static void sim_init(struct sim *s, u32 nr, u64 memory, u64 size)
{
	static const struct policy_config defaults = POLICY_CONFIG_DEFAULT;

	*s = (struct sim){ .cfg = defaults, .memory = memory, .nr = nr };
	s->guests = must(calloc(nr, sizeof(s->guests[0])));
	s->vms = must(calloc(nr, sizeof(s->vms[0])));
	s->actions = must(calloc(POLICY_ACTIONS_MAX((size_t)nr), sizeof(s->actions[0])));
	s->entitled = must(calloc(nr, sizeof(s->entitled[0])));
	for (u32 i = 0; i < nr; i++) {
		s->guests[i].size = size;
		s->vms[i] = (struct policy_vm){ .min_bytes = MIB(256),
						.shares = 1000,
						.allowed = 1 << POLICY_BALLOON,
						.has_balloon = true,
						.has_stats = true };
	}
}

static void sim_free(struct sim *s)
{
	free(s->guests);
	free(s->vms);
	free(s->actions);
	free(s->entitled);
}

static u64 available(const struct sim *s)
{
	u64 used = 0;

	for (u32 i = 0; i < s->nr; i++)
		used += s->guests[i].resident + s->cfg.vm_overhead_bytes;
	return s->memory - MIN(used, s->memory);
}

static void move(struct guest *g, s64 bytes)
{
	if (g->last_move && (bytes > 0) != (g->last_move > 0))
		g->turns++;
	g->last_move = bytes;
	g->balloon = (u64)((s64)g->balloon + bytes);
}

/* The guests touch what they need, as far as the host has it. */
static void touch(struct sim *s)
{
	u64 left = available(s);

	for (u32 i = 0; i < s->nr; i++) {
		struct guest *g = &s->guests[i];
		u64 fits = g->size - g->balloon, want = MIN(g->demand, fits);
		u64 need = g->demand - g->cache;
		u64 more = want > g->resident ? MIN(want - g->resident, left) : 0;

		g->resident += more;
		left -= more;
		g->starved += g->resident < want;
		s->vms[i].resident_bytes = g->resident;
		s->vms[i].working_set_bytes = g->demand;
		s->vms[i].taken_bytes[POLICY_BALLOON] = g->balloon;
		/* Untouched memory is available to the guest, and so is what it touched and does
		 * not need. */
		s->vms[i].guest_spare_bytes = fits > need + RESERVE ? fits - need - RESERVE : 0;
		s->vms[i].pressure = g->balloon && need + RESERVE / 2 > fits;
	}
}

static void step(struct sim *s)
{
	struct policy_input in = { .elapsed_us = SECOND, .vms = s->vms, .nr_vms = s->nr };
	struct policy_plan plan = { .actions = s->actions, .entitled = s->entitled };
	u64 start;

	touch(s);
	in.host =
		(struct policy_host){ .memory_bytes = s->memory, .available_bytes = available(s) };
	start = now_ns();
	policy_step(&s->p, &s->cfg, &in, &plan);
	s->ns += now_ns() - start;
	s->low_steps += plan.state == POLICY_LOW;
	for (u32 i = 0; i < plan.nr_actions; i++) {
		const struct policy_action *a = &plan.actions[i];
		struct guest *g = &s->guests[a->vm];

		move(g, a->take ? (s64)a->bytes : -(s64)a->bytes);
		/* What the guest never touched is nothing to the host. */
		g->resident = MIN(g->resident, g->size - g->balloon);
	}
	for (u32 i = 0; i < s->nr; i++)
		s->guests[i].below_floor += s->guests[i].size - s->guests[i].balloon <
					    s->vms[i].min_bytes;
}

static bool satisfied(const struct sim *s)
{
	for (u32 i = 0; i < s->nr; i++)
		if (s->guests[i].resident < s->guests[i].demand)
			return false;
	return true;
}

static u64 sum_turns(struct sim *s)
{
	u64 sum = 0;

	for (u32 i = 0; i < s->nr; i++) {
		sum += s->guests[i].turns;
		s->guests[i].turns = 0;
	}
	return sum;
}

static u64 sum_of(const struct sim *s, bool starved)
{
	u64 sum = 0;

	for (u32 i = 0; i < s->nr; i++)
		sum += starved ? s->guests[i].starved : s->guests[i].below_floor;
	return sum;
}

/* Guests that once used all of their memory, and now need little. */
static void hoard(struct sim *s, u64 demand)
{
	for (u32 i = 0; i < s->nr; i++)
		s->guests[i].demand = s->guests[i].size;
	for (u32 t = 0; t < 30; t++)
		step(s);
	for (u32 i = 0; i < s->nr; i++)
		s->guests[i].demand = demand;
	for (u32 t = 0; t < 300; t++)
		step(s);
}

static void absorb(const char *name, u32 rising, u64 demand)
{
	struct sim s;
	u32 seconds = 0;
	u64 turns;

	sim_init(&s, 20, MIB(24 * 1024), MIB(2048));
	hoard(&s, MIB(400));
	for (u32 i = 0; i < s.nr; i++)
		s.guests[i].starved = 0;
	/* Those that have nothing: the first ones hoard it. */
	for (u32 i = s.nr - rising; i < s.nr; i++)
		s.guests[i].demand = demand;
	do
		step(&s);
	while (!satisfied(&s) && ++seconds < 600);
	for (u32 t = 0; t < 60; t++)
		step(&s);
	sum_turns(&s);
	for (u32 t = 0; t < 600; t++)
		step(&s);
	turns = sum_turns(&s);
	printf("RESULT sim scenario=%s guests=20 rising=%u seconds_to_absorb=%u turns_at_rest=%llu below_floor=%llu starved_guest_seconds=%llu\n",
	       name, rising, seconds, (unsigned long long)turns,
	       (unsigned long long)sum_of(&s, false), (unsigned long long)sum_of(&s, true));
	sim_free(&s);
}

static void fair(void)
{
	struct claim claims[16];
	u64 entitled[16], had = 0, left = 0;
	double worst = 0;
	struct sim s;

	sim_init(&s, 16, MIB(24 * 1024), MIB(2048));
	for (u32 i = 0; i < s.nr; i++) {
		s.vms[i].shares = 500 * (1 + i % 4);
		s.guests[i].demand = s.guests[i].resident = s.guests[i].size;
	}
	/* They fit while they are loaded by no other limit than their own sizes; then they idle. */
	for (u32 i = 0; i < s.nr; i++)
		s.guests[i].demand = MIB(300 + 50 * (i % 5));
	for (u32 t = 0; t < 600; t++)
		step(&s);
	for (u32 i = 0; i < s.nr; i++) {
		claims[i] =
			(struct claim){ .bytes = s.guests[i].size,
					.floor_bytes = MAX(s.guests[i].demand + RESERVE, MIB(256)),
					.active_bytes = s.guests[i].demand,
					.shares = s.vms[i].shares };
		had += s.guests[i].size;
		left += s.guests[i].resident;
	}
	entitlement(claims, s.nr, s.cfg.idle_tax_permille, had - left, entitled);
	for (u32 i = 0; i < s.nr; i++)
		worst = MAX(worst, fabs((double)s.guests[i].resident / (double)entitled[i] - 1));
	printf("RESULT sim scenario=fair guests=%u taken_mib=%llu worst_error_percent=%.2f below_floor=%llu\n",
	       s.nr, (unsigned long long)(had - left) >> 20, worst * 100,
	       (unsigned long long)sum_of(&s, false));
	sim_free(&s);
}

static void in_turns(void)
{
	const u64 busy = MIB(1536), need = MIB(300), rest = MIB(150);
	double had = 0;
	struct sim s;
	u32 n = 0;

	sim_init(&s, 8, MIB(8 * 1024), MIB(2048));
	for (u32 t = 0; t < 16 * 60; t++) {
		for (u32 i = 0; i < s.nr; i++) {
			bool on = t / 60 % 4 == i % 4;

			s.guests[i].demand = on ? busy : rest;
			s.guests[i].cache = on ? busy - need : 0;
		}
		step(&s);
		/* The first four fill an empty host. */
		for (u32 i = 0; i < s.nr && t >= 4 * 60; i++) {
			if (!s.guests[i].cache)
				continue;
			had += (double)MIN(s.guests[i].resident, busy) / (double)busy;
			n++;
		}
	}
	printf("RESULT sim scenario=turns guests=%u has_percent_of_wanted=%.1f balloon_turns=%llu below_floor=%llu low_steps=%llu\n",
	       s.nr, had / n * 100, (unsigned long long)sum_turns(&s),
	       (unsigned long long)sum_of(&s, false), (unsigned long long)s.low_steps);
	sim_free(&s);
}

static void diurnal(u32 nr)
{
	struct sim s;

	/* Half of what they are configured with. */
	sim_init(&s, nr, (u64)nr * MIB(1024), MIB(2048));
	for (u32 t = 0; t < 86400; t += 20) {
		for (u32 i = 0; i < nr; i++) {
			double phase = 2 * M_PI * ((double)t / 86400 + (double)i / nr);

			s.guests[i].demand =
				MIB(300) + (u64)((double)MIB(1000) * (1 + sin(phase)) / 2);
		}
		step(&s);
	}
	printf("RESULT sim scenario=diurnal guests=%u steps=%u us_per_step=%.0f ns_per_guest=%.0f below_floor=%llu starved_guest_steps=%llu low_steps=%llu\n",
	       nr, 86400u / 20, (double)s.ns / 1000 / (86400.0 / 20),
	       (double)s.ns / (86400.0 / 20) / nr, (unsigned long long)sum_of(&s, false),
	       (unsigned long long)sum_of(&s, true), (unsigned long long)s.low_steps);
	sim_free(&s);
}

int main(void)
{
	const char *vms = getenv("VMS");

	absorb("step", 10, MIB(1600));
	absorb("burst", 1, MIB(1900));
	fair();
	in_turns();
	diurnal(vms && atoi(vms) > 0 ? (u32)atoi(vms) : 1000);
	return 0;
}
