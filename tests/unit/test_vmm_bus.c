/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "vmm/bus.h"

struct probe {
	u64 offset;
	u32 bytes, reads, writes;
	u8 last[8];
};

static void probe_read(void *dev, u64 offset, void *data, u32 bytes)
{
	struct probe *p = dev;

	p->offset = offset;
	p->bytes = bytes;
	p->reads++;
	memset(data, 0x5a, bytes);
}

static void probe_write(void *dev, u64 offset, const void *data, u32 bytes)
{
	struct probe *p = dev;

	p->offset = offset;
	p->bytes = bytes;
	p->writes++;
	memcpy(p->last, data, bytes);
}

static const struct bus_ops probe_ops = { .read = probe_read, .write = probe_write };

Test(vmm_bus, finds_who_answers)
{
	struct probe a = { 0 }, b = { 0 };
	struct bus bus = { 0 };
	u64 v = 0;

	cr_assert_eq(bus_add(&bus, 0x2000, 0x10, &probe_ops, &b), 0);
	cr_assert_eq(bus_add(&bus, 0x1000, 0x10, &probe_ops, &a), 0);
	bus_read(&bus, 0x100c, &v, 4);
	cr_assert_eq(v, 0x5a5a5a5a);
	cr_assert_eq(a.offset, 0xc);
	v = 0x1234;
	bus_write(&bus, 0x2000, &v, 2);
	cr_assert_eq(b.writes, 1);
	cr_assert_eq(b.last[0], 0x34);
	cr_assert_eq(a.writes, 0);
}

Test(vmm_bus, nobody_reads_as_ones_and_ignores_writes)
{
	struct probe a = { 0 };
	struct bus bus = { 0 };
	u64 v = 0;

	bus_read(&bus, 0, &v, 4);
	cr_assert_eq(v, 0xffffffff);
	cr_assert_eq(bus_add(&bus, 0x1000, 0x10, &probe_ops, &a), 0);
	/* across either end, and past it */
	bus_read(&bus, 0x0ffe, &v, 4);
	bus_read(&bus, 0x100e, &v, 4);
	bus_write(&bus, 0x1009, &v, 8);
	bus_read(&bus, 0x1010, &v, 1);
	bus_read(&bus, UINT64_MAX, &v, 8);
	cr_assert_eq(v, UINT64_MAX);
	cr_assert_eq(a.reads + a.writes, 0);
	bus_read(&bus, 0x1008, &v, 8);
	cr_assert_eq(a.reads, 1);
}

Test(vmm_bus, refuses_overlaps)
{
	struct bus bus = { 0 };

	cr_assert_eq(bus_add(&bus, 0x1000, 0x10, &probe_ops, NULL), 0);
	cr_assert_eq(bus_add(&bus, 0x100f, 1, &probe_ops, NULL), -EEXIST);
	cr_assert_eq(bus_add(&bus, 0x0fff, 2, &probe_ops, NULL), -EEXIST);
	cr_assert_eq(bus_add(&bus, 0x1000, 0x10, &probe_ops, NULL), -EEXIST);
	cr_assert_eq(bus_add(&bus, 0, 0x2000, &probe_ops, NULL), -EEXIST);
	cr_assert_eq(bus_add(&bus, 0x1010, 1, &probe_ops, NULL), 0);
	cr_assert_eq(bus_add(&bus, 0x0fff, 1, &probe_ops, NULL), 0);
	cr_assert_eq(bus_add(&bus, 0x5000, 0, &probe_ops, NULL), -EINVAL);
	cr_assert_eq(bus_add(&bus, UINT64_MAX, 2, &probe_ops, NULL), -EINVAL);
	cr_assert_eq(bus.nr, 3);
}

Test(vmm_bus, is_bounded)
{
	struct bus bus = { 0 };

	for (u64 i = 0; i < BUS_RANGES_MAX; i++)
		cr_assert_eq(bus_add(&bus, (BUS_RANGES_MAX - i) * 16, 16, &probe_ops, NULL), 0);
	cr_assert_eq(bus_add(&bus, 0x100000, 1, &probe_ops, NULL), -ENOSPC);
}
