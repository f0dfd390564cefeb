/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "vmm/acpi.h"
#include "vmm/acpi_aml.h"
#include "vmm/layout.h"
#include "vmm/pm.h"

static u8 buf[4096];
static struct aml a;

static void set_up(void)
{
	memset(buf, 0xee, sizeof(buf));
	a = (struct aml){ .buf = buf, .capacity = sizeof(buf) };
}

#define IS(...)                                                              \
	do {                                                                 \
		static const u8 wanted[] = { __VA_ARGS__ };                  \
		cr_assert_not(a.overflow);                                   \
		cr_assert_eq(a.bytes, sizeof(wanted), "%zu bytes", a.bytes); \
		cr_assert_eq(memcmp(buf, wanted, sizeof(wanted)), 0);        \
	} while (0)

Test(vmm_aml, integers, .init = set_up)
{
	aml_integer(&a, 0);
	aml_integer(&a, 1);
	aml_integer(&a, 2);
	aml_integer(&a, 0xff);
	aml_integer(&a, 0x100);
	aml_integer(&a, 0x10000);
	aml_integer(&a, 0x100000000);
	IS(0x00, 0x01, 0x0a, 2, 0x0a, 0xff, 0x0b, 0, 1, 0x0c, 0, 0, 1, 0, 0x0e, 0, 0, 0, 0, 1, 0, 0,
	   0);
}

Test(vmm_aml, names, .init = set_up)
{
	aml_name(&a, "_S5");
	aml_notify(&a, "\\_SB.VGEN", 0x80);
	aml_name(&a, "A.B.CCCC");
	aml_string(&a, "ok");
	IS(0x08, '_', 'S', '5', '_', 0x86, '\\', 0x2e, '_', 'S', 'B', '_', 'V', 'G', 'E', 'N', 0x0a,
	   0x80, 0x08, 0x2f, 3, 'A', '_', '_', '_', 'B', '_', '_', '_', 'C', 'C', 'C', 'C', 0x0d,
	   'o', 'k', 0);
}

/* As in the specification's own example, and ACPICA's compiler. */
Test(vmm_aml, eisa_ids, .init = set_up)
{
	aml_eisa_id(&a, "PNP0501");
	aml_eisa_id(&a, "PNP0C0A");
	IS(0x0c, 0x41, 0xd0, 0x05, 0x01, 0x0c, 0x41, 0xd0, 0x0c, 0x0a);
}

Test(vmm_aml, packages, .init = set_up)
{
	size_t mark = aml_package_begin(&a, 2);

	aml_integer(&a, 5);
	aml_integer(&a, 0);
	aml_end(&a, mark);
	IS(0x12, 5, 2, 0x0a, 5, 0x00);
}

/* The length's own bytes count: 62 fit with one, 63 need two, and so on (20.2.4). */
Test(vmm_aml, package_lengths, .init = set_up)
{
	static const struct {
		size_t body;
		u8 bytes[3], lead;
	} cases[] = {
		{ 62, { 63 }, 1 },
		{ 63, { 0x41, 0x04 }, 2 },
		{ 4093, { 0x4f, 0xff }, 2 },
		{ 4094, { 0x81, 0x00, 0x01 }, 3 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		static u8 big[8192];
		struct aml b = { .buf = big, .capacity = sizeof(big) };
		size_t mark = aml_package_begin(&b, 1);

		/* one byte is the number of elements */
		for (size_t n = 1; n < cases[i].body; n++)
			aml_integer(&b, 0);
		aml_end(&b, mark);
		cr_assert_not(b.overflow);
		cr_assert_eq(b.bytes, 1 + cases[i].lead + cases[i].body);
		cr_assert_eq(memcmp(big + 1, cases[i].bytes, cases[i].lead), 0, "case %zu", i);
		cr_assert_eq(big[1 + cases[i].lead], 1);
	}
}

Test(vmm_aml, resources, .init = set_up)
{
	size_t mark = aml_resources_begin(&a);

	aml_memory32(&a, 0xd0000000, 0x1000);
	aml_interrupt(&a, 5);
	aml_resources_end(&a, mark);
	IS(0x11, 26, 0x0a, 23, 0x86, 9, 0, 1, 0, 0, 0, 0xd0, 0, 0x10, 0, 0, 0x89, 6, 0, 3, 1, 5, 0,
	   0, 0, 0x79, 0);
}

Test(vmm_aml, overflow_is_noticed_and_harmless, .init = set_up)
{
	size_t mark;

	a.capacity = 8;
	mark = aml_device_begin(&a, "COM1");
	aml_string(&a, "does not fit");
	aml_end(&a, mark);
	cr_assert(a.overflow);
	for (size_t i = 8; i < sizeof(buf); i++)
		cr_assert_eq(buf[i], 0xee);
}

/* --- tables ------------------------------------------------------------------------------------
 */

#define GPA 0xe0000

static u8 sum(const u8 *p, size_t bytes)
{
	u8 s = 0;

	while (bytes--)
		s += *p++;
	return s;
}

static u32 get32(const u8 *p)
{
	u32 v;

	memcpy(&v, p, 4);
	return v;
}

static u64 get64(const u8 *p)
{
	u64 v;

	memcpy(&v, p, 8);
	return v;
}

/* Follows an address in the tables, and checks what it finds there. */
static const u8 *table(const u8 *base, size_t bytes, u64 gpa, const char *signature)
{
	const u8 *t = base + (gpa - GPA);

	cr_assert_geq(gpa, GPA);
	cr_assert_lt(gpa - GPA, bytes - 36);
	cr_assert_eq(memcmp(t, signature, 4), 0, "%.4s where %s should be", t, signature);
	cr_assert_leq(gpa - GPA + get32(t + 4), bytes);
	cr_assert_eq(sum(t, get32(t + 4)), 0, "checksum of %s", signature);
	return t;
}

Test(vmm_acpi, tables_hang_together)
{
	static u8 mem[LAYOUT_ACPI_BYTES];
	struct acpi_config cfg = { .nr_vcpus = 3, .nr_virtio = LAYOUT_VIRTIO_MAX };
	const u8 *xsdt, *fadt, *madt, *p;
	u32 lapics = 0, ioapics = 0, overrides = 0;

	cr_assert_eq(acpi_build(&cfg, GPA, mem, sizeof(mem)), 0);
	cr_assert_eq(memcmp(mem, "RSD PTR ", 8), 0);
	cr_assert_eq(sum(mem, 20), 0);
	cr_assert_eq(sum(mem, 36), 0);
	xsdt = table(mem, sizeof(mem), get64(mem + 24), "XSDT");
	cr_assert_eq(get32(xsdt + 4), 36 + 2 * 8);
	fadt = table(mem, sizeof(mem), get64(xsdt + 36), "FACP");
	madt = table(mem, sizeof(mem), get64(xsdt + 44), "APIC");
	table(mem, sizeof(mem), get64(fadt + 140), "DSDT");
	cr_assert_eq(get32(fadt + 40), get64(fadt + 140));
	cr_assert_eq(get32(fadt + 36) % 64, 0);
	cr_assert_eq(memcmp(mem + (get32(fadt + 36) - GPA), "FACS", 4), 0);
	cr_assert_eq(get32(fadt + 56), LAYOUT_PORT_ACPI + PM_EVENT);
	cr_assert_eq(get32(fadt + 64), LAYOUT_PORT_ACPI + PM_CONTROL);
	cr_assert_eq(get32(fadt + 80), LAYOUT_PORT_ACPI + PM_GPE0);
	cr_assert_eq(get64(fadt + 120), LAYOUT_PORT_ACPI + PM_RESET);
	cr_assert_eq(fadt[128], PM_RESET_VALUE);
	for (p = madt + 44; p < madt + get32(madt + 4); p += p[1]) {
		cr_assert_geq(p[1], 2);
		lapics += p[0] == 0;
		ioapics += p[0] == 1;
		overrides += p[0] == 2;
		if (p[0] == 0)
			cr_assert_eq(p[3], lapics - 1);
	}
	cr_assert_eq(p, madt + get32(madt + 4));
	cr_assert_eq(lapics, 3);
	cr_assert_eq(ioapics, 1);
	cr_assert_eq(overrides, 1);
}

Test(vmm_acpi, says_when_there_is_no_room)
{
	static u8 mem[LAYOUT_ACPI_BYTES];
	struct acpi_config cfg = { .nr_vcpus = 16, .nr_virtio = LAYOUT_VIRTIO_MAX };
	size_t need = sizeof(mem);

	/* Whatever the room, nothing is written behind it. */
	for (size_t bytes = 0; bytes < 4096; bytes += 13) {
		memset(mem, 0xee, sizeof(mem));
		if (acpi_build(&cfg, GPA, mem, bytes) == 0 && need == sizeof(mem))
			need = bytes;
		for (size_t i = bytes; i < 4200; i++)
			cr_assert_eq(mem[i], 0xee, "%zu bytes, at %zu", bytes, i);
	}
	cr_assert_gt(need, 1500u);
	cr_assert_eq(acpi_build(&cfg, GPA, mem, 1000), -ENOSPC);
}

Test(vmm_acpi, interrupts_are_free_and_different)
{
	u32 seen = 1u << LAYOUT_IRQ_SCI | 1u << LAYOUT_IRQ_SERIAL;

	for (u32 i = 0; i < LAYOUT_VIRTIO_MAX; i++) {
		u32 irq = layout_virtio_irq(i);

		cr_assert_lt(irq, 24);
		cr_assert_eq(seen >> irq & 1, 0, "irq %u", irq);
		seen |= 1u << irq;
	}
}
