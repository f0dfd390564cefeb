/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "daemon/plan.h"

TestSuite(plan, .timeout = 10);

static struct vm_view vm_of(const char *name)
{
	struct vm_view vm = { .connected = true, .configured_bytes = MIB(2048) };

	strcpy(vm.name, name);
	strcpy(vm.share, "on");
	strcpy(vm.balloon.run, "running");
	vm.shares = 1000;
	vm.may_balloon = true;
	vm.working_set_bytes = UINT64_MAX;
	vm.resident_bytes = MIB(1500);
	vm.balloon.linked = vm.balloon.has_actual = vm.balloon.has_stats = true;
	vm.balloon.ram_bytes = MIB(2048);
	vm.balloon.actual_bytes = MIB(1948);
	vm.balloon.floor_bytes = MIB(256);
	vm.balloon.spare_bytes = MIB(900);
	return vm;
}

static int plan_of(const struct view *v, struct plan *p)
{
	static const struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy state = { 0 };

	return plan_view(v, &cfg, &state, 1000000, p);
}

Test(plan, a_short_host_takes_from_who_can_spare)
{
	struct vm_view vms[] = { vm_of("a"), vm_of("frozen"), vm_of("stale") };
	struct view v = { .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(500) },
			  .vms = vms,
			  .nr_vms = 3 };
	struct plan p;

	strcpy(vms[1].balloon.run, "migrating");
	vms[2].balloon.stats_age_us = 3600000000;
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_expect_eq(p.policy.state, POLICY_SOFT);
	cr_expect_eq(p.policy.wanted_bytes, MIB(200));
	cr_assert_eq(p.policy.nr_actions, 1u);
	cr_expect_eq(p.policy.actions[0].vm, 0u);
	cr_expect_eq(p.policy.actions[0].mechanism, POLICY_BALLOON);
	cr_expect_eq(p.policy.actions[0].bytes, MIB(200));
	cr_expect_eq(p.vms[0].taken_bytes[POLICY_BALLOON], MIB(100));
	cr_expect_eq(p.vms[0].min_bytes, MIB(256));
	plan_free(&p);
	/* What splitting huge pages would let it share goes before a guest's memory. */
	vms[0].huge_saving_pages = MIB(300) / PAGE_BYTES;
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_assert_eq(p.policy.nr_actions, 1u);
	cr_expect_eq(p.policy.actions[0].mechanism, POLICY_SHARE);
	plan_free(&p);
	strcpy(vms[0].share, "off");
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_expect_eq(p.policy.actions[0].mechanism, POLICY_BALLOON);
	plan_free(&p);
}

Test(plan, a_guest_under_pressure_gets_its_memory)
{
	struct vm_view vm = vm_of("a");
	struct view v = { .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(100) },
			  .vms = &vm,
			  .nr_vms = 1 };
	struct plan p;

	vm.balloon.reason = CONTROLLER_PRESSURE;
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_assert_eq(p.policy.nr_actions, 1u);
	cr_expect(!p.policy.actions[0].take && p.policy.actions[0].bytes == MIB(100));
	plan_free(&p);
}

Test(plan, nothing_is_planned_without_the_hosts_memory)
{
	struct view v = { .nr_vms = 0 };
	struct plan p;

	cr_expect_eq(plan_of(&v, &p), -ENODATA);
	v.host.memory_bytes = v.host.available_bytes = MIB(1000);
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_expect_eq(p.policy.nr_actions, 0u);
	cr_expect_eq(p.policy.state, POLICY_HIGH);
	plan_free(&p);
}

/* Who may not be asked now is not counted on, and the others give instead. */
Test(plan, held_balloons_give_nothing)
{
	static const enum controller_reason reasons[] = { CONTROLLER_HOLDOFF, CONTROLLER_STUCK,
							  CONTROLLER_REBOOT, CONTROLLER_SILENT,
							  CONTROLLER_STALE };
	struct vm_view vms[] = { vm_of("a"), vm_of("b") };
	struct view v = { .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(500) },
			  .vms = vms,
			  .nr_vms = 2 };
	struct plan p;

	for (u32 i = 0; i < ARRAY_SIZE(reasons) + 2; i++) {
		vms[0] = vm_of("a");
		if (i < ARRAY_SIZE(reasons))
			vms[0].balloon.reason = reasons[i];
		else if (i == ARRAY_SIZE(reasons))
			vms[0].may_balloon = false;
		else
			vms[0].balloon.has_wish = true; /* the administrator's */
		cr_assert_eq(plan_of(&v, &p), 0);
		cr_assert_eq(p.policy.nr_actions, 1u, "%u", i);
		cr_expect(p.policy.actions[0].vm == 1 && p.policy.actions[0].bytes == MIB(200));
		plan_free(&p);
	}
	/* Its own wish is no obstacle. */
	vms[0].balloon.policy_wish = true;
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_expect_eq(p.policy.nr_actions, 2u);
	plan_free(&p);
}

/* What an administrator took stays taken, also on a host that has plenty. */
Test(plan, the_administrators_wish_stands)
{
	struct vm_view vm = vm_of("a");
	struct view v = { .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(9000) },
			  .vms = &vm,
			  .nr_vms = 1 };
	struct plan p;

	cr_assert_eq(plan_of(&v, &p), 0);
	cr_expect_eq(p.policy.nr_actions, 1u);
	plan_free(&p);
	vm.balloon.has_wish = true;
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_expect_eq(p.policy.nr_actions, 0u);
	plan_free(&p);
}

Test(plan, a_cgroups_limit_is_what_is_divided)
{
	struct vm_view vm = vm_of("a");
	struct view v = { .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(9000) },
			  .vms = &vm,
			  .nr_vms = 1 };
	struct plan p;

	v.host.policy.memory_bytes = MIB(2000);
	v.host.policy.available_bytes = MIB(100);
	cr_assert_eq(plan_of(&v, &p), 0);
	cr_expect_eq(p.policy.state, POLICY_SOFT);
	cr_expect_eq(p.policy.wanted_bytes, MIB(40));
	plan_free(&p);
}

Test(plan, resident_counts_the_part_of_the_store)
{
	struct domain_view d = { .store_pages = 100, .store_refs = 400 };
	struct vm_view vm = vm_of("a");
	struct view v = { .vms = &vm, .nr_vms = 1, .domains = &d, .nr_domains = 1 };

	strcpy(d.name, "default");
	strcpy(vm.domain, "default");
	vm.shared_pages = 200;
	vm.zero_pages = 50;
	/* 200 pages mapped that are a quarter of them each its own; 10 pages that are not the
	 * store's. */
	cr_expect_eq(
		plan_resident(&v, &vm,
			      &(struct proc_rss){ .anon = MIB(100), .shmem = 210 * PAGE_BYTES }),
		MIB(100) + (10 + 50) * PAGE_BYTES);
	/* Not all of it is mapped yet. */
	cr_expect_eq(
		plan_resident(&v, &vm,
			      &(struct proc_rss){ .anon = MIB(100), .shmem = 20 * PAGE_BYTES }),
		MIB(100) + 50 * PAGE_BYTES);
}

/* A host in the state hard, and a VM that no balloon can help. */
static struct view hard_host(struct vm_view *vm)
{
	vm->may_balloon = false;
	vm->may_page_out = vm->has_pager = true;
	vm->working_set_bytes = MIB(1000);
	return (struct view){ .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(300) },
			      .vms = vm,
			      .nr_vms = 1 };
}

/* In the state hard idle pages are compressed, where the agent can and somebody knows which. */
Test(plan, idle_pages_are_compressed_where_they_are_known)
{
	struct vm_view vm = vm_of("a");
	struct view v = hard_host(&vm);
	struct plan p;

	cr_assert_eq(plan_of(&v, &p), 0);
	cr_assert_eq(p.policy.nr_actions, 1u);
	cr_expect_eq(p.policy.actions[0].mechanism, POLICY_COMPRESS);
	plan_free(&p);
	for (u32 i = 0; i < 4; i++) {
		vm.may_page_out = i != 0;
		vm.has_pager = i != 1;
		strcpy(vm.share, i == 2 ? "off" : "on");
		/* Not known: all of it is in use. */
		vm.working_set_bytes = i == 3 ? UINT64_MAX : MIB(1000);
		cr_assert_eq(plan_of(&v, &p), 0);
		cr_expect_eq(p.policy.nr_actions, 0u, "%u", i);
		plan_free(&p);
	}
}

/* What compression's rate leaves goes to swap, where the host has any. */
Test(plan, the_rest_is_swapped)
{
	struct vm_view vm = vm_of("a");
	struct view v = hard_host(&vm);
	struct plan p;

	for (u32 i = 0; i < 3; i++) {
		v.host.swap_free_bytes = i == 0 ? 0 : MIB(20);
		vm.may_swap = i != 1;
		cr_assert_eq(plan_of(&v, &p), 0);
		cr_assert_eq(p.policy.nr_actions, i == 2 ? 2u : 1u, "%u", i);
		cr_expect_eq(p.policy.actions[0].mechanism, POLICY_COMPRESS);
		if (i == 2) {
			cr_expect_eq(p.policy.actions[1].mechanism, POLICY_SWAP);
			cr_expect_eq(p.policy.actions[1].bytes, MIB(20));
		}
		plan_free(&p);
	}
}
