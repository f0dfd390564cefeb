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
	vm.balloon.linked = vm.balloon.has_actual = vm.balloon.has_stats = true;
	vm.balloon.ram_bytes = MIB(2048);
	vm.balloon.actual_bytes = MIB(1948);
	vm.balloon.floor_bytes = MIB(256);
	vm.balloon.present = 1 << GUEST_STAT_AVAILABLE;
	vm.balloon.stats[GUEST_STAT_AVAILABLE] = MIB(1000);
	return vm;
}

Test(plan, a_short_host_takes_from_who_can_spare)
{
	struct vm_view vms[] = { vm_of("a"), vm_of("frozen"), vm_of("stale") };
	const u64 resident[] = { MIB(1500), MIB(1500), MIB(1500) };
	struct view v = { .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(500) },
			  .vms = vms,
			  .nr_vms = 3 };
	struct plan p;

	strcpy(vms[1].balloon.run, "migrating");
	vms[2].balloon.stats_age_us = 3600000000;
	cr_assert_eq(plan_view(&v, resident, &p), 0);
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
	cr_assert_eq(plan_view(&v, resident, &p), 0);
	cr_assert_eq(p.policy.nr_actions, 1u);
	cr_expect_eq(p.policy.actions[0].mechanism, POLICY_SHARE);
	plan_free(&p);
	strcpy(vms[0].share, "off");
	cr_assert_eq(plan_view(&v, resident, &p), 0);
	cr_expect_eq(p.policy.actions[0].mechanism, POLICY_BALLOON);
	plan_free(&p);
}

Test(plan, a_guest_under_pressure_gets_its_memory)
{
	struct vm_view vm = vm_of("a");
	const u64 resident = MIB(1500);
	struct view v = { .host = { .memory_bytes = MIB(10000), .available_bytes = MIB(100) },
			  .vms = &vm,
			  .nr_vms = 1 };
	struct plan p;

	strcpy(vm.balloon.reason, "pressure");
	cr_assert_eq(plan_view(&v, &resident, &p), 0);
	cr_assert_eq(p.policy.nr_actions, 1u);
	cr_expect(!p.policy.actions[0].take && p.policy.actions[0].bytes == MIB(100));
	plan_free(&p);
}

Test(plan, nothing_is_planned_without_the_hosts_memory)
{
	struct view v = { .nr_vms = 0 };
	struct plan p;

	cr_expect_eq(plan_view(&v, NULL, &p), -ENODATA);
	v.host.memory_bytes = v.host.available_bytes = MIB(1000);
	cr_assert_eq(plan_view(&v, NULL, &p), 0);
	cr_expect_eq(p.policy.nr_actions, 0u);
	cr_expect_eq(p.policy.state, POLICY_HIGH);
	plan_free(&p);
}
