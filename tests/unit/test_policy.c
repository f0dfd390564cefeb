/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include "tiering/entitlement.h"
#include "tiering/policy.h"

#define SECOND 1000000ULL
#define VMS    12
#define FREE   UINT64_MAX

TestSuite(policy, .timeout = 60);

static u64 seed;

static u64 rnd(u64 below)
{
	seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (seed >> 20) % below;
}

/* --- entitlement ---------------------------------------------------------------------------------
 */

static struct claim claim(u64 mib, u64 active_mib, u32 shares)
{
	return (struct claim){ .bytes = MIB(mib),
			       .active_bytes = MIB(active_mib),
			       .shares = shares };
}

static void check_mib(const u64 *entitled, u32 i, u64 mib)
{
	s64 off = (s64)entitled[i] - (s64)MIB(mib);

	cr_expect(off >= -2 * (s64)PAGE_BYTES && off <= 2 * (s64)PAGE_BYTES,
		  "%u: %llu KiB, wanted %llu MiB", i, (unsigned long long)entitled[i] >> 10,
		  (unsigned long long)mib);
}

Test(policy, equals_give_equally)
{
	struct claim c[] = { claim(1000, 1000, 100), claim(1000, 1000, 100) };
	u64 e[2];

	cr_expect_eq(entitlement(c, 2, 750, MIB(400), e), MIB(400));
	check_mib(e, 0, 800);
	check_mib(e, 1, 800);
	cr_expect_eq(entitlement(c, 2, 750, 0, e), 0u);
	check_mib(e, 0, 1000);
}

Test(policy, memory_follows_shares)
{
	struct claim c[] = { claim(1000, 1000, 300), claim(1000, 1000, 100) };
	u64 e[2];

	/* 1000 are left, 3 to 1. */
	cr_expect_eq(entitlement(c, 2, 750, MIB(1000), e), MIB(1000));
	check_mib(e, 0, 750);
	check_mib(e, 1, 250);
}

/* Waldspurger, section 5.3: with a tax of 75% an idle page costs four times an active one. */
Test(policy, idle_memory_is_taxed)
{
	struct claim c[] = { claim(1000, 1000, 100), claim(1000, 0, 100) };
	u64 e[2];

	cr_expect_eq(entitlement(c, 2, 750, MIB(750), e), MIB(750));
	check_mib(e, 0, 1000);
	check_mib(e, 1, 250);
	/* Without the tax who is idle does not matter. */
	cr_expect_eq(entitlement(c, 2, 0, MIB(1000), e), MIB(1000));
	check_mib(e, 0, 500);
	check_mib(e, 1, 500);
}

Test(policy, floors_hold)
{
	struct claim c[] = { claim(1000, 1000, 100), claim(1000, 0, 100) };
	u64 e[2];

	c[1].floor_bytes = MIB(900);
	cr_expect_eq(entitlement(c, 2, 750, MIB(500), e), MIB(500));
	check_mib(e, 0, 600);
	check_mib(e, 1, 900);
	c[0].floor_bytes = MIB(5000);
	cr_expect_eq(entitlement(c, 2, 750, MIB(500), e), MIB(100));
	check_mib(e, 0, 1000);
}

/* Who gave has one price; who kept all has a higher one; who is at its floor may have any. */
Test(policy, prices_are_equal)
{
	seed = 1;
	for (u32 round = 0; round < 3000; round++) {
		struct claim c[VMS];
		u64 e[VMS], take = 0, sum = 0, went, most = 0;
		double price = 0;

		for (u32 i = 0; i < VMS; i++) {
			c[i] = claim(100 + rnd(4000), rnd(4000), (u32)(1 + rnd(1000)));
			c[i].floor_bytes = MIB(rnd(500));
			most += c[i].bytes - MIN(c[i].floor_bytes, c[i].bytes);
		}
		take = rnd(most + MIB(100));
		went = entitlement(c, VMS, 750, take, e);
		for (u32 i = 0; i < VMS; i++) {
			sum += c[i].bytes - e[i];
			cr_assert(e[i] <= c[i].bytes && e[i] >= MIN(c[i].floor_bytes, c[i].bytes));
			if (e[i] < c[i].bytes && e[i] > c[i].floor_bytes + MIB(1))
				price = MAX(price, claim_price(&c[i], e[i], 750));
		}
		cr_assert_eq(sum, went);
		cr_assert(went <= take && went + VMS * PAGE_BYTES >= MIN(take, most), "%u", round);
		for (u32 i = 0; i < VMS && price > 0; i++) {
			double p = claim_price(&c[i], e[i], 750);

			if (e[i] == c[i].bytes && e[i] > c[i].floor_bytes)
				cr_assert(p > price * 0.98, "%u: %u kept all at %g, others pay %g",
					  round, i, p, price);
			else if (e[i] > c[i].floor_bytes + MIB(1))
				cr_assert(p > price * 0.95, "%u: %u pays %g of %g", round, i, p,
					  price);
		}
	}
}

/* --- states --------------------------------------------------------------------------------------
 */

Test(policy, states_have_hysteresis)
{
	static const struct {
		enum policy_state old;
		u32 available;
		enum policy_state next;
	} table[] = {
		{ POLICY_HIGH, 61, POLICY_HIGH }, { POLICY_HIGH, 59, POLICY_SOFT },
		{ POLICY_SOFT, 61, POLICY_SOFT }, { POLICY_SOFT, 69, POLICY_SOFT },
		{ POLICY_SOFT, 70, POLICY_HIGH }, { POLICY_SOFT, 41, POLICY_SOFT },
		{ POLICY_SOFT, 39, POLICY_HARD }, { POLICY_HARD, 49, POLICY_HARD },
		{ POLICY_HARD, 50, POLICY_SOFT }, { POLICY_HARD, 19, POLICY_LOW },
		{ POLICY_LOW, 29, POLICY_LOW },	  { POLICY_LOW, 30, POLICY_HARD },
		{ POLICY_LOW, 500, POLICY_HIGH }, { POLICY_HIGH, 0, POLICY_LOW },
	};
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;

	for (u32 i = 0; i < ARRAY_SIZE(table); i++)
		cr_expect_eq(
			policy_next_state(&cfg, table[i].old, MIB(1000), MIB(table[i].available)),
			table[i].next, "%s at %u", policy_state_name(table[i].old),
			table[i].available);
}

/* --- steps ---------------------------------------------------------------------------------------
 */

static struct policy_vm plain_vm(u64 mib)
{
	return (struct policy_vm){
		.min_bytes = MIB(256),
		.shares = 1000,
		.allowed = 15,
		.resident_bytes = MIB(mib),
		.has_balloon = true,
		.has_stats = true,
		.guest_spare_bytes = MIB(mib) / 2,
		.working_set_bytes = MIB(mib) / 2,
		.swap_room_bytes = UINT64_MAX,
	};
}

static struct policy_action actions[POLICY_ACTIONS_MAX(VMS)];
static u64 entitled[VMS];

static struct policy_plan run(struct policy *p, const struct policy_config *cfg, u64 available_mib,
			      const struct policy_vm *vms, u32 nr, u64 swap_mib)
{
	struct policy_input in = {
		.elapsed_us = SECOND,
		.host = { .memory_bytes = MIB(10000),
			  .available_bytes = MIB(available_mib),
			  .compress_free_bytes = MIB(swap_mib),
			  .swap_free_bytes = MIB(swap_mib) },
		.vms = vms,
		.nr_vms = nr,
	};
	struct policy_plan plan = { .actions = actions, .entitled = entitled };

	policy_step(p, cfg, &in, &plan);
	return plan;
}

Test(policy, a_host_with_enough_takes_nothing)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(2000);
	struct policy p = { 0 };
	struct policy_plan plan = run(&p, &cfg, 5000, &vm, 1, 0);

	cr_expect_eq(plan.state, POLICY_HIGH);
	cr_expect_eq(plan.nr_actions, 0u);
	/* 6% and twice 1% of 10000, and the VMM's own. */
	cr_expect_eq(plan.admit_bytes, MIB(5000 - 800 - 8));
}

Test(policy, takes_by_the_cheapest_first)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(2000);
	struct policy p = { 0 };
	struct policy_plan plan = run(&p, &cfg, 500, &vm, 1, 1000);

	cr_expect_eq(plan.state, POLICY_SOFT);
	cr_expect_eq(plan.wanted_bytes, MIB(200));
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect(actions[0].take && actions[0].mechanism == POLICY_BALLOON &&
		  actions[0].bytes == MIB(200));
	/* Sharing that yields something and is cheaper goes before it. */
	vm.share_yield_bytes = MIB(150);
	vm.cost_us_per_mib[POLICY_SHARE] = 100;
	vm.cost_us_per_mib[POLICY_BALLOON] = 500;
	plan = run(&p, &cfg, 500, &vm, 1, 1000);
	cr_assert_eq(plan.nr_actions, 2u);
	cr_expect(actions[0].mechanism == POLICY_SHARE && actions[0].bytes == MIB(150));
	cr_expect(actions[1].mechanism == POLICY_BALLOON && actions[1].bytes == MIB(50));
	/* And not when it turned out dearer. */
	vm.cost_us_per_mib[POLICY_SHARE] = 900;
	plan = run(&p, &cfg, 500, &vm, 1, 1000);
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect_eq(actions[0].mechanism, POLICY_BALLOON);
}

/* Guests that grow by more in a step than lies between soft and low are not waited for. */
Test(policy, looks_a_step_ahead)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(2000);
	struct policy p = { 0 };
	struct policy_plan plan;

	vm.allowed = 1u << POLICY_COMPRESS;
	/* With enough it does not look: what was given back falls like that, too. */
	run(&p, &cfg, 1500, &vm, 1, 1000);
	plan = run(&p, &cfg, 750, &vm, 1, 1000);
	cr_expect(plan.state == POLICY_HIGH && plan.nr_actions == 0);
	/* 500 would be soft; 250 less than that will be hard. */
	plan = run(&p, &cfg, 500, &vm, 1, 1000);
	cr_expect_eq(plan.state, POLICY_HARD);
	cr_expect_eq(plan.wanted_bytes, MIB(200 + 250));
	cr_expect(plan.nr_actions == 1 && actions[0].mechanism == POLICY_COMPRESS);
	/* It has stopped, or even risen: as the state says. */
	plan = run(&p, &cfg, 510, &vm, 1, 1000);
	cr_expect_eq(plan.state, POLICY_SOFT);
	cr_expect_eq(plan.wanted_bytes, MIB(190));
	/* Not even a fall to nothing is low before it is there. */
	plan = run(&p, &cfg, 210, &vm, 1, 1000);
	cr_expect_eq(plan.state, POLICY_HARD);
}

/* What comes back comes ever more slowly as memory runs out, and never stops. */
Test(policy, page_ins_are_paced_on_a_host_that_runs_out)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(2000);
	u32 before = UINT32_MAX;

	for (u64 mib = 800; mib <= 800; mib -= 8) {
		struct policy p = { 0 };
		struct policy_plan plan = run(&p, &cfg, mib, &vm, 1, 0);

		cr_assert_eq(plan.page_in_pace != 0, plan.state >= POLICY_HARD, "%llu MiB",
			     (unsigned long long)mib);
		if (plan.state < POLICY_HARD)
			continue;
		cr_assert_leq(plan.page_in_pace, before);
		cr_assert_geq(plan.page_in_pace, 100u);
		before = plan.page_in_pace;
	}
	cr_expect_eq(before, 100u);
}

/* To a swap file of its own goes what is compressed; the kernel's swap takes what is not. */
Test(policy, a_swap_file_takes_the_pool)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(2000);
	struct policy p = { 0 };
	struct policy_plan plan;

	vm.allowed = 1u << POLICY_COMPRESS | 1u << POLICY_SWAP;
	vm.working_set_bytes = MIB(1900);
	vm.pool_bytes = MIB(60);
	/* 2000 - 1900 - 60 may still be compressed; then what is. */
	vm.has_swap_file = true;
	plan = run(&p, &cfg, 300, &vm, 1, 1000);
	cr_assert_eq(plan.nr_actions, 2u);
	cr_expect(actions[0].mechanism == POLICY_COMPRESS && actions[0].bytes == MIB(40));
	cr_expect(actions[1].mechanism == POLICY_SWAP && actions[1].bytes == MIB(60));
	cr_expect_eq(plan.unmet_bytes, MIB(300));
	/* The file's medium is full. */
	vm.swap_room_bytes = 0;
	plan = run(&p, &cfg, 300, &vm, 1, 1000);
	cr_expect(plan.nr_actions == 1 && actions[0].mechanism == POLICY_COMPRESS);
	/* Without a file the two are after the same pages. */
	vm.has_swap_file = false;
	vm.swap_room_bytes = UINT64_MAX;
	plan = run(&p, &cfg, 300, &vm, 1, 1000);
	cr_expect(plan.nr_actions == 1 && actions[0].bytes == MIB(40));
}

Test(policy, stale_statistics_take_nothing)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(2000);
	struct policy p = { 0 };
	struct policy_plan plan;

	vm.stats_age_us = 11 * SECOND;
	plan = run(&p, &cfg, 500, &vm, 1, 1000);
	cr_expect_eq(plan.nr_actions, 0u);
	cr_expect_eq(plan.unmet_bytes, MIB(200));
	/* In the hard state there are other ways. */
	plan = run(&p, &cfg, 300, &vm, 1, 1000);
	cr_assert_eq(plan.nr_actions, 2u);
	cr_expect(actions[0].mechanism == POLICY_COMPRESS && actions[1].mechanism == POLICY_SWAP);
}

Test(policy, guest_pressure_comes_first)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(1000);
	struct policy p = { 0 };
	struct policy_plan plan;

	vm.pressure = true;
	vm.taken_bytes[POLICY_BALLOON] = MIB(700);
	vm.taken_bytes[POLICY_SWAP] = MIB(300);
	/* Even on a host that has nothing. */
	plan = run(&p, &cfg, 10, &vm, 1, 1000);
	cr_assert_eq(plan.nr_actions, 2u);
	cr_expect(!actions[0].take && actions[0].mechanism == POLICY_SWAP &&
		  actions[0].bytes == MIB(300));
	cr_expect(!actions[1].take && actions[1].mechanism == POLICY_BALLOON &&
		  actions[1].bytes == MIB(700));
	cr_expect_eq(plan.unmet_bytes, plan.wanted_bytes);
}

Test(policy, gives_back_when_there_is_enough)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vms[2] = { plain_vm(1000), plain_vm(1000) };
	struct policy p = { 0 };
	struct policy_plan plan;

	vms[0].taken_bytes[POLICY_BALLOON] = MIB(2000);
	vms[1].run = POLICY_MIGRATING;
	vms[1].taken_bytes[POLICY_BALLOON] = MIB(2000);
	plan = run(&p, &cfg, 900, vms, 2, 0);
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect(!actions[0].take && actions[0].vm == 0 && actions[0].reason == POLICY_HOST_HAS);
	cr_expect_eq(actions[0].bytes, MIB(100));
}

/* The same hands, by shares; what one has no use for is for the others, whatever their order. */
Test(policy, gives_back_by_shares)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vms[3] = { plain_vm(1000), plain_vm(1000), plain_vm(1000) };
	struct policy p = { 0 };
	struct policy_plan plan;

	cfg.rate_bytes[POLICY_BALLOON] = MIB(2000);
	for (u32 i = 0; i < 3; i++)
		vms[i].taken_bytes[POLICY_BALLOON] = MIB(1000);
	vms[0].taken_bytes[POLICY_BALLOON] = MIB(10);
	vms[1].resident_bytes = MIB(500);
	vms[1].working_set_bytes = MIB(250);
	vms[1].shares = 500;
	for (u32 turned = 0; turned < 2; turned++) {
		u64 got[3] = { 0 };

		/* 310 to give: 10 to the first, 100 and 200 to the others. */
		plan = run(&p, &cfg, 800 + 310, vms, 3, 0);
		for (u32 i = 0; i < plan.nr_actions; i++)
			got[actions[i].vm] += actions[i].bytes;
		cr_expect_eq(got[turned ? 2 : 0], MIB(10));
		cr_expect_eq(got[1], MIB(100));
		cr_expect_eq(got[turned ? 0 : 2], MIB(200));
		{
			struct policy_vm first = vms[0];

			vms[0] = vms[2];
			vms[2] = first;
		}
	}
}

/* Who uses all that it has gets it, and not who has memory idle. */
Test(policy, gives_back_where_it_is_used)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vms[2] = { plain_vm(1000), plain_vm(1000) };
	struct policy p = { 0 };
	struct policy_plan plan;

	for (u32 i = 0; i < 2; i++)
		vms[i].taken_bytes[POLICY_BALLOON] = MIB(1000);
	vms[0].working_set_bytes = MIB(100);
	vms[1].working_set_bytes = MIB(1000);
	plan = run(&p, &cfg, 900, vms, 2, 0);
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect(!actions[0].take && actions[0].vm == 1 && actions[0].bytes == MIB(100));
	/* Not known: all is in use. */
	vms[0].working_set_bytes = UINT64_MAX;
	plan = run(&p, &cfg, 900, vms, 2, 0);
	cr_assert_eq(plan.nr_actions, 2u);
	cr_expect_eq(actions[0].bytes, MIB(50));
}

/* Nothing is wanted, nothing to spare: idle memory goes to who was squeezed and uses what it has.
 */
Test(policy, idle_memory_moves_to_who_uses_it)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vms[2] = { plain_vm(1000), plain_vm(500) }, v;
	struct policy p = { 0 };
	struct policy_plan plan;

	vms[0].working_set_bytes = MIB(100);
	vms[1].working_set_bytes = MIB(500);
	vms[1].taken_bytes[POLICY_BALLOON] = MIB(500);
	vms[1].guest_spare_bytes = 0; /* it uses all that it has */
	plan = run(&p, &cfg, 750, vms, 2, 0);
	cr_assert_eq(plan.state, POLICY_HIGH);
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect(actions[0].take && actions[0].vm == 0 && actions[0].mechanism == POLICY_BALLOON &&
		  actions[0].reason == POLICY_USED_LESS);
	/* Worth the same at 319 and 1181, of which the other may have 1000, and the guest can spare
	 * 500: that goes, half in a step, no faster than the rate. */
	cr_expect_eq(entitled[0], MIB(500));
	cr_expect_eq(actions[0].bytes, MIB(250));
	v = vms[0];
	for (u32 i = 0; i < 5; i++) {
		vms[0] = v;
		vms[1].working_set_bytes = MIB(500);
		vms[1].taken_bytes[POLICY_BALLOON] = MIB(500);
		switch (i) {
		case 0: /* nobody knows */
			vms[0].working_set_bytes = UINT64_MAX;
			break;
		case 1: /* it is in use, too */
			vms[0].working_set_bytes = MIB(1000);
			vms[1].taken_bytes[POLICY_BALLOON] = MIB(40);
			break;
		case 2: /* nobody was squeezed */
			vms[1].taken_bytes[POLICY_BALLOON] = 0;
			break;
		case 3: /* what it got would lie idle */
			vms[1].working_set_bytes = MIB(5);
			vms[0].working_set_bytes = MIB(500);
			break;
		case 4:
			vms[0].run = POLICY_PAUSED;
			break;
		}
		plan = run(&p, &cfg, 750, vms, 2, 0);
		cr_expect_eq(plan.nr_actions, 0u, "%u", i);
	}
}

Test(policy, a_lower_priority_gives_first_and_gets_last)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vms[2] = { plain_vm(1000), plain_vm(1000) };
	struct policy p = { 0 };
	struct policy_plan plan;

	cfg.rate_bytes[POLICY_BALLOON] = MIB(2000);
	vms[0].priority = 1;
	plan = run(&p, &cfg, 400, vms, 2, 0);
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect(actions[0].vm == 1 && actions[0].bytes == MIB(300));
	/* 500 is what its guest can spare; the other gives what is left. */
	p = (struct policy){ 0 };
	plan = run(&p, &cfg, 150, vms, 2, 0);
	cr_assert_eq(plan.nr_actions, 2u);
	cr_expect(actions[1].vm == 1 && actions[1].bytes == MIB(500));
	cr_expect(actions[0].vm == 0 && actions[0].bytes == MIB(50));
	vms[0].taken_bytes[POLICY_BALLOON] = vms[1].taken_bytes[POLICY_BALLOON] = MIB(300);
	plan = run(&p, &cfg, 800 + 400, vms, 2, 0);
	cr_assert_eq(plan.nr_actions, 2u);
	cr_expect(actions[0].vm == 0 && actions[0].bytes == MIB(300));
	cr_expect(actions[1].vm == 1 && actions[1].bytes == MIB(100));
}

Test(policy, the_maximum_holds_on_a_host_that_has_enough)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(1000);
	struct policy p = { 0 };
	struct policy_plan plan;
	char text[512];

	vm.max_bytes = MIB(900);
	plan = run(&p, &cfg, 5000, &vm, 1, 0);
	cr_expect(plan.state == POLICY_HIGH && plan.wanted_bytes == 0);
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect(actions[0].take && actions[0].bytes == MIB(100) &&
		  actions[0].reason == POLICY_OVER_MAX);
	policy_explain(&actions[0], "web1", text, sizeof(text));
	cr_expect(strstr(text, "its maximum is 900 MiB"), "%s", text);
	/* Nor does it get more back than that. */
	vm.resident_bytes = MIB(880);
	vm.taken_bytes[POLICY_BALLOON] = MIB(500);
	plan = run(&p, &cfg, 5000, &vm, 1, 0);
	cr_assert_eq(plan.nr_actions, 1u);
	cr_expect(!actions[0].take && actions[0].bytes == MIB(20));
}

/* Tasks wait for memory though some is available: as when a cgroup is full. */
Test(policy, waiting_tasks_are_a_sign_too)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(2000);
	struct policy p = { 0 };
	struct policy_input in = { .elapsed_us = SECOND,
				   .host = { .memory_bytes = MIB(10000),
					     .available_bytes = MIB(5000),
					     .psi_some_permille = 60 },
				   .vms = &vm,
				   .nr_vms = 1 };
	struct policy_plan plan = { .actions = actions, .entitled = entitled };

	policy_step(&p, &cfg, &in, &plan);
	cr_expect_eq(plan.state, POLICY_SOFT);
	cr_expect_eq(plan.planned_bytes, MIB(100));
	cfg.psi_permille = 0;
	p.state = POLICY_HIGH;
	policy_step(&p, &cfg, &in, &plan);
	cr_expect_eq(plan.state, POLICY_HIGH);
}

Test(policy, the_last_resort_is_said)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy_vm vm = plain_vm(260);
	struct policy p = { 0 };
	struct policy_plan plan;
	char text[512];

	vm.has_balloon = false;
	plan = run(&p, &cfg, 100, &vm, 1, 5000);
	cr_expect_eq(plan.state, POLICY_LOW);
	cr_expect_eq(plan.planned_bytes, MIB(4));
	cfg.last_resort = POLICY_RESORT_BELOW_MIN;
	plan = run(&p, &cfg, 100, &vm, 1, 5000);
	cr_assert_gt(plan.nr_actions, 0u);
	cr_expect_eq(actions[0].reason, POLICY_LAST_RESORT);
	policy_explain(&actions[0], "web1", text, sizeof(text));
	cr_expect(strstr(text, "web1 gives 256 MiB (compression") &&
			  strstr(text, "of the 260 MiB") && strstr(text, "below its minimum"),
		  "%s", text);
}

/* --- whatever comes ------------------------------------------------------------------------------
 */

static void random_vm(struct policy_vm *vm)
{
	*vm = plain_vm(50 + rnd(3000));
	vm->min_bytes = MIB(rnd(600));
	vm->pinned_bytes = rnd(4) ? 0 : MIB(rnd(800));
	vm->shares = (u32)rnd(2000); /* 0 counts as 1 */
	vm->priority = (u32)rnd(3);
	vm->max_bytes = rnd(4) ? 0 : MIB(100 + rnd(2000));
	vm->allowed = (u32)rnd(16);
	vm->run = rnd(5) ? POLICY_RUNNING : (enum policy_run)rnd(3);
	vm->share_yield_bytes = MIB(rnd(300));
	vm->has_balloon = rnd(4);
	vm->has_stats = rnd(6);
	vm->stats_age_us = rnd(15 * SECOND);
	vm->guest_spare_bytes = MIB(rnd(3000));
	vm->pressure = !rnd(5);
	vm->working_set_bytes = rnd(3) ? MIB(rnd(3000)) : UINT64_MAX;
	vm->pool_bytes = rnd(2) ? 0 : MIB(rnd(500));
	vm->has_swap_file = rnd(2);
	vm->swap_room_bytes = rnd(2) ? MIB(rnd(500)) : UINT64_MAX;
	for (u32 m = 0; m < POLICY_MECHANISMS; m++) {
		vm->taken_bytes[m] = rnd(2) ? 0 : MIB(rnd(500));
		vm->cost_us_per_mib[m] = rnd(3) ? rnd(100000) : 0;
	}
}

static void check_plan(const struct policy_config *cfg, const struct policy_input *in,
		       const struct policy_plan *plan)
{
	u64 taken[VMS] = { 0 }, given[VMS] = { 0 }, sum = 0, tier[POLICY_MECHANISMS] = { 0 };
	u64 out[VMS] = { 0 }, back = 0, over_max = 0, moved = 0, enough;
	bool host_takes = false, host_gives = false;

	cr_assert_leq(plan->nr_actions, POLICY_ACTIONS_MAX(in->nr_vms));
	for (u32 i = 0; i < plan->nr_actions; i++) {
		const struct policy_action *a = &plan->actions[i];
		const struct policy_vm *vm = &in->vms[a->vm];

		cr_assert_gt(a->bytes, 0u);
		cr_assert_eq(vm->run, POLICY_RUNNING, "a VM that does not run");
		if (!a->take) {
			host_gives |= a->reason == POLICY_HOST_HAS;
			given[a->vm] += a->bytes;
			back += a->bytes;
			cr_assert_leq(a->bytes, vm->taken_bytes[a->mechanism]);
			continue;
		}
		host_takes |= a->reason != POLICY_OVER_MAX;
		if (a->reason == POLICY_USED_LESS) {
			cr_assert(plan->nr_actions && !plan->wanted_bytes &&
				  a->mechanism == POLICY_BALLOON);
			moved += a->bytes;
		}
		if (a->reason == POLICY_OVER_MAX) {
			cr_assert(vm->max_bytes && vm->resident_bytes > vm->max_bytes);
			over_max += a->bytes;
		}
		cr_assert(vm->allowed >> a->mechanism & 1);
		cr_assert_leq(a->bytes, cfg->rate_bytes[a->mechanism] * in->elapsed_us / SECOND);
		cr_assert(plan->state != POLICY_HIGH || a->reason == POLICY_OVER_MAX ||
			  a->reason == POLICY_USED_LESS);
		taken[a->vm] += a->bytes;
		tier[a->mechanism] += a->bytes;
		sum += a->bytes;
		if (a->mechanism == POLICY_BALLOON) {
			cr_assert(vm->has_balloon && vm->has_stats && !vm->pressure);
			cr_assert_leq(vm->stats_age_us, cfg->stats_max_age_us);
			cr_assert_leq(a->bytes, vm->guest_spare_bytes);
		}
		if (a->mechanism >= POLICY_COMPRESS)
			cr_assert(plan->state >= POLICY_HARD && !vm->pressure);
		if (a->mechanism == POLICY_SWAP)
			cr_assert_leq(a->bytes, vm->swap_room_bytes);
		/* To its own file goes what is compressed, and so out of use. */
		if (a->mechanism == POLICY_SWAP && vm->has_swap_file)
			cr_assert_leq(a->bytes, vm->pool_bytes);
		else if (a->mechanism >= POLICY_COMPRESS)
			out[a->vm] += a->bytes;
	}
	for (u32 i = 0; i < in->nr_vms; i++) {
		const struct policy_vm *vm = &in->vms[i];
		bool resort = plan->state == POLICY_LOW &&
			      cfg->last_resort == POLICY_RESORT_BELOW_MIN;
		u64 floor = MAX(resort ? 0 : vm->min_bytes, vm->pinned_bytes);

		cr_assert(!taken[i] || vm->resident_bytes - taken[i] >= floor, "below its floor");
		cr_assert(given[i] == 0 || vm->pressure || !vm->max_bytes ||
				  vm->resident_bytes + given[i] <= vm->max_bytes,
			  "back beyond its maximum");
		/* Only the low state touches what is in use. */
		cr_assert(plan->state == POLICY_LOW || !out[i] ||
				  vm->resident_bytes - out[i] >=
					  MIN(vm->working_set_bytes, vm->resident_bytes),
			  "out of what is in use");
		if (vm->pressure && vm->run == POLICY_RUNNING)
			cr_assert_eq(given[i],
				     vm->taken_bytes[1] + vm->taken_bytes[2] + vm->taken_bytes[3]);
	}
	cr_assert_eq(sum, plan->planned_bytes);
	cr_assert_leq(sum, plan->wanted_bytes + over_max + moved);
	cr_assert_leq(plan->unmet_bytes, plan->wanted_bytes);
	cr_assert(!(host_takes && host_gives));
	/* What was given back is neither given twice nor promised to a new VM. */
	enough =
		in->host.memory_bytes * (cfg->soft_permille + 2 * cfg->hysteresis_permille) / 1000 +
		in->host.cow_debt_bytes * cfg->cow_reserve_permille / 1000;
	cr_assert(!host_gives || back + enough <= in->host.available_bytes + 4096);
	cr_assert(!plan->admit_bytes ||
		  plan->admit_bytes + back + enough <= in->host.available_bytes + 4096);
	cr_assert_leq(tier[POLICY_COMPRESS], in->host.compress_free_bytes);
	cr_assert_leq(tier[POLICY_SWAP], in->host.swap_free_bytes);
}

Test(policy, whatever_comes)
{
	static struct policy_action again[POLICY_ACTIONS_MAX(VMS)];
	static u64 entitled_again[VMS];
	u32 acted = 0;

	seed = 7;
	for (u32 round = 0; round < 30000; round++) {
		struct policy_config cfg = POLICY_CONFIG_DEFAULT;
		struct policy p = { .state = (enum policy_state)rnd(4),
				    .available_bytes = MIB(rnd(1500)),
				    .knows_available = rnd(2) },
			      q = p;
		struct policy_vm vms[VMS];
		struct policy_input in = {
			.elapsed_us = rnd(3 * SECOND),
			.host = { .memory_bytes = MIB(10000),
				  .available_bytes = MIB(rnd(1500)),
				  .cow_debt_bytes = MIB(rnd(1000)),
				  .compress_free_bytes = MIB(rnd(300)),
				  .swap_free_bytes = rnd(2) ? 0 : MIB(rnd(3000)) },
			.vms = vms,
			.nr_vms = (u32)rnd(VMS + 1),
		};
		struct policy_plan plan = { .actions = actions, .entitled = entitled };
		struct policy_plan same = { .actions = again, .entitled = entitled_again };

		cfg.last_resort = (enum policy_last_resort)rnd(2);
		cfg.rate_bytes[rnd(4)] = rnd(2) ? 0 : MIB(rnd(1000));
		for (u32 i = 0; i < in.nr_vms; i++)
			random_vm(&vms[i]);
		policy_step(&p, &cfg, &in, &plan);
		check_plan(&cfg, &in, &plan);
		policy_step(&q, &cfg, &in, &same);
		cr_assert_eq(plan.nr_actions, same.nr_actions);
		cr_assert(memcmp(actions, again, plan.nr_actions * sizeof(actions[0])) == 0);
		acted += plan.nr_actions > 0;
	}
	cr_expect_gt(acted, 15000u, "hardly any plan had an action: %u", acted);
}
