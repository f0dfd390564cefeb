/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "vmm/acpi.h"
#include "vmm/acpi_aml.h"
#include "vmm/layout.h"
#include "vmm/pm.h"

#define OEM_ID	     "BALLST"
#define OEM_TABLE_ID "BALLSTVM"
#define CREATOR_ID   "BLST"
#define TABLE_ALIGN  64 /* the FACS wants it */

/* ACPI 6.5, section 5.2.6. */
struct acpi_header {
	char signature[4];
	u32 length;
	u8 revision, checksum;
	char oem_id[6], oem_table_id[8];
	u32 oem_revision;
	char creator_id[4];
	u32 creator_revision;
} __attribute__((packed));

/* 5.2.5.3 */
struct acpi_rsdp {
	char signature[8];
	u8 checksum;
	char oem_id[6];
	u8 revision;
	u32 rsdt;
	u32 length;
	u64 xsdt;
	u8 extended_checksum, reserved[3];
} __attribute__((packed));

/* 5.2.3.2 */
struct acpi_address {
	u8 space, bits, bit_offset, access;
	u64 address;
} __attribute__((packed));

#define SPACE_IO    1
#define ACCESS_BYTE 1
#define ACCESS_WORD 2

/* 5.2.9; blocks that the machine does not have stay zero. */
struct acpi_fadt {
	struct acpi_header h;
	u32 facs, dsdt;
	u8 reserved0, profile;
	u16 sci;
	u32 smi_command;
	u8 acpi_enable, acpi_disable, s4bios, pstate;
	u32 pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer, gpe0, gpe1;
	u8 pm1_event_bytes, pm1_control_bytes, pm2_control_bytes, pm_timer_bytes;
	u8 gpe0_bytes, gpe1_bytes, gpe1_base, cst;
	u16 c2_latency, c3_latency, flush_size, flush_stride;
	u8 duty_offset, duty_width, day_alarm, month_alarm, century;
	u16 boot_arch;
	u8 reserved1;
	u32 flags;
	struct acpi_address reset;
	u8 reset_value;
	u16 arm_boot_arch;
	u8 minor;
	u64 x_facs, x_dsdt;
	struct acpi_address x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control;
	struct acpi_address x_pm2_control, x_pm_timer, x_gpe0, x_gpe1;
	struct acpi_address sleep_control, sleep_status;
	u64 hypervisor;
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_fadt) == 276, "FADT of revision 6");

#define FADT_WBINVD	 (1 << 0)
#define FADT_PROC_C1	 (1 << 2)
#define FADT_NO_SLP_BTN	 (1 << 5)
#define FADT_NO_FIX_RTC	 (1 << 6)
#define FADT_RESET	 (1 << 10)
#define FADT_HEADLESS	 (1 << 12)
#define BOOT_NO_VGA	 (1 << 2)
#define BOOT_NO_MSI	 (1 << 3) /* interrupts come by the IOAPIC */
#define BOOT_NO_CMOS_RTC (1 << 5)

/* 5.2.10 */
struct acpi_facs {
	char signature[4];
	u32 length, hardware_signature, waking_vector, global_lock, flags;
	u64 x_waking_vector;
	u8 version, reserved[31];
} __attribute__((packed));
_Static_assert(sizeof(struct acpi_facs) == 64, "FACS");

/* 5.2.12 */
struct acpi_madt {
	struct acpi_header h;
	u32 lapic_address, flags;
} __attribute__((packed));

struct madt_lapic {
	u8 type, length, processor, apic_id;
	u32 flags;
} __attribute__((packed));

struct madt_ioapic {
	u8 type, length, id, reserved;
	u32 address, gsi_base;
} __attribute__((packed));

struct madt_override {
	u8 type, length, bus, source;
	u32 gsi;
	u16 flags;
} __attribute__((packed));

struct madt_lapic_nmi {
	u8 type, length, processor;
	u16 flags;
	u8 lint;
} __attribute__((packed));

#define MADT_PCAT_COMPAT 1
#define MADT_ENABLED	 1
#define MADT_LEVEL_HIGH	 0xd

struct builder {
	u8 *buf;
	u64 gpa;
	size_t bytes, capacity;
};

static u8 checksum(const void *data, size_t bytes)
{
	u8 sum = 0;

	for (size_t i = 0; i < bytes; i++)
		sum += ((const u8 *)data)[i];
	return (u8)-sum;
}

/* Room for a table, aligned and zeroed; NULL when there is none. */
static void *reserve(struct builder *b, size_t bytes, u64 *ret_gpa)
{
	size_t at = ROUND_UP(b->bytes, TABLE_ALIGN);

	if (at > b->capacity || b->capacity - at < bytes)
		return NULL;
	b->bytes = at + bytes;
	*ret_gpa = b->gpa + at;
	return memset(b->buf + at, 0, bytes);
}

static void seal(struct acpi_header *h, const char *signature, u8 revision, size_t bytes)
{
	memcpy(h->signature, signature, sizeof(h->signature));
	h->length = (u32)bytes;
	h->revision = revision;
	memcpy(h->oem_id, OEM_ID, sizeof(h->oem_id));
	memcpy(h->oem_table_id, OEM_TABLE_ID, sizeof(h->oem_table_id));
	h->oem_revision = 1;
	memcpy(h->creator_id, CREATOR_ID, sizeof(h->creator_id));
	h->creator_revision = 1;
	h->checksum = 0;
	h->checksum = checksum(h, bytes);
}

static void add_serial(struct aml *a)
{
	size_t device = aml_device_begin(a, "COM1"), resources;

	aml_name(a, "_HID");
	aml_eisa_id(a, "PNP0501");
	aml_name(a, "_UID");
	aml_integer(a, 1);
	aml_name(a, "_CRS");
	resources = aml_resources_begin(a);
	aml_io(a, LAYOUT_PORT_SERIAL, 8);
	aml_irq_isa(a, LAYOUT_IRQ_SERIAL);
	aml_resources_end(a, resources);
	aml_end(a, device);
}

/* "LNRO0005" is what Linux and others know a virtio-mmio transport by. */
static void add_virtio(struct aml *a, u32 index)
{
	char name[16];
	size_t device, resources;

	snprintf(name, sizeof(name), "VR%02X", index);
	device = aml_device_begin(a, name);
	aml_name(a, "_HID");
	aml_string(a, "LNRO0005");
	aml_name(a, "_UID");
	aml_integer(a, index);
	/* DMA is coherent: without _CCA there would be no DMA at all on some architectures; x86
	 * does not ask, and it costs nothing to say. */
	aml_name(a, "_CCA");
	aml_integer(a, 1);
	aml_name(a, "_CRS");
	resources = aml_resources_begin(a);
	aml_memory32(a, (u32)(LAYOUT_VIRTIO + (u64)index * LAYOUT_VIRTIO_STRIDE),
		     LAYOUT_VIRTIO_STRIDE);
	aml_interrupt(a, layout_virtio_irq(index));
	aml_resources_end(a, resources);
	aml_end(a, device);
}

/* "Virtual Machine Generation ID" (Microsoft, 2012): the id's address in ADDR, and a notification
 * 0x80 when it has changed. */
static void add_vmgenid(struct aml *a)
{
	size_t device = aml_device_begin(a, "VGEN"), package;

	aml_name(a, "_HID");
	aml_string(a, "BLST0001");
	aml_name(a, "_CID");
	aml_string(a, "VM_Gen_Counter");
	aml_name(a, "_DDN");
	aml_string(a, "VM_Gen_Counter");
	aml_name(a, "ADDR");
	package = aml_package_begin(a, 2);
	aml_integer(a, LAYOUT_VMGENID);
	aml_integer(a, 0);
	aml_end(a, package);
	aml_end(a, device);
}

static u64 build_dsdt(struct builder *b, const struct acpi_config *cfg)
{
	u64 gpa;
	struct acpi_header *h = reserve(b, sizeof(*h), &gpa);
	struct aml a = { 0 };
	size_t scope, inner;

	if (!h)
		return 0;
	a.buf = (u8 *)(h + 1);
	a.capacity = b->capacity - b->bytes;

	scope = aml_scope_begin(&a, "\\_SB_");
	add_serial(&a);
	add_vmgenid(&a);
	for (u32 i = 0; i < cfg->nr_virtio; i++)
		add_virtio(&a, i);
	aml_end(&a, scope);

	/* General purpose event 0, an edge, is the generation id's (5.6.4.1). */
	scope = aml_scope_begin(&a, "\\_GPE");
	inner = aml_method_begin(&a, "_E00");
	aml_notify(&a, "\\_SB_.VGEN", 0x80);
	aml_end(&a, inner);
	aml_end(&a, scope);

	aml_name(&a, "_S5_");
	inner = aml_package_begin(&a, 4);
	aml_integer(&a, PM_SLP_TYP_S5);
	for (int i = 0; i < 3; i++)
		aml_integer(&a, 0);
	aml_end(&a, inner);
	if (a.overflow)
		return 0;
	b->bytes += a.bytes;
	seal(h, "DSDT", 2, sizeof(*h) + a.bytes);
	return gpa;
}

static u64 build_facs(struct builder *b)
{
	u64 gpa;
	struct acpi_facs *f = reserve(b, sizeof(*f), &gpa);

	if (!f)
		return 0;
	memcpy(f->signature, "FACS", sizeof(f->signature));
	f->length = sizeof(*f);
	f->version = 2;
	return gpa;
}

static struct acpi_address io_address(u16 port, u8 bytes, u8 access)
{
	return (struct acpi_address){
		.space = SPACE_IO, .bits = (u8)(bytes * 8), .access = access, .address = port
	};
}

static u64 build_fadt(struct builder *b, u64 facs, u64 dsdt)
{
	u64 gpa;
	struct acpi_fadt *f = reserve(b, sizeof(*f), &gpa);

	if (!f)
		return 0;
	f->facs = (u32)facs;
	f->dsdt = (u32)dsdt;
	f->x_dsdt = dsdt;
	f->sci = LAYOUT_IRQ_SCI;
	f->pm1a_event = LAYOUT_PORT_ACPI + PM_EVENT;
	f->pm1_event_bytes = 4;
	f->pm1a_control = LAYOUT_PORT_ACPI + PM_CONTROL;
	f->pm1_control_bytes = 2;
	f->gpe0 = LAYOUT_PORT_ACPI + PM_GPE0;
	f->gpe0_bytes = 2;
	f->x_pm1a_event = io_address(LAYOUT_PORT_ACPI + PM_EVENT, 4, ACCESS_WORD);
	f->x_pm1a_control = io_address(LAYOUT_PORT_ACPI + PM_CONTROL, 2, ACCESS_WORD);
	f->x_gpe0 = io_address(LAYOUT_PORT_ACPI + PM_GPE0, 2, ACCESS_BYTE);
	f->reset = io_address(LAYOUT_PORT_ACPI + PM_RESET, 1, ACCESS_BYTE);
	f->reset_value = PM_RESET_VALUE;
	f->c2_latency = 101;  /* more than 100: no C2 (5.2.9) */
	f->c3_latency = 1001; /* more than 1000: no C3 */
	f->boot_arch = BOOT_NO_VGA | BOOT_NO_MSI | BOOT_NO_CMOS_RTC;
	f->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLP_BTN | FADT_NO_FIX_RTC | FADT_RESET |
		   FADT_HEADLESS;
	memcpy(&f->hypervisor, "Ballast", 8);
	f->minor = 5;
	seal(&f->h, "FACP", 6, sizeof(*f));
	return gpa;
}

static u64 build_madt(struct builder *b, const struct acpi_config *cfg)
{
	size_t bytes = sizeof(struct acpi_madt) + cfg->nr_vcpus * sizeof(struct madt_lapic) +
		       sizeof(struct madt_ioapic) + sizeof(struct madt_override) +
		       sizeof(struct madt_lapic_nmi);
	u64 gpa;
	struct acpi_madt *m = reserve(b, bytes, &gpa);
	u8 *p;

	if (!m)
		return 0;
	m->lapic_address = (u32)LAYOUT_LAPIC;
	m->flags = MADT_PCAT_COMPAT;
	p = (u8 *)(m + 1);
	for (u32 i = 0; i < cfg->nr_vcpus; i++) {
		struct madt_lapic lapic = { .type = 0,
					    .length = sizeof(lapic),
					    .processor = (u8)i,
					    .apic_id = (u8)i,
					    .flags = MADT_ENABLED };

		p = mempcpy(p, &lapic, sizeof(lapic));
	}
	p = mempcpy(p,
		    &(struct madt_ioapic){ .type = 1,
					   .length = sizeof(struct madt_ioapic),
					   .address = (u32)LAYOUT_IOAPIC },
		    sizeof(struct madt_ioapic));
	/* ISA interrupts are edges unless it says otherwise. */
	p = mempcpy(p,
		    &(struct madt_override){ .type = 2,
					     .length = sizeof(struct madt_override),
					     .source = LAYOUT_IRQ_SCI,
					     .gsi = LAYOUT_IRQ_SCI,
					     .flags = MADT_LEVEL_HIGH },
		    sizeof(struct madt_override));
	memcpy(p,
	       &(struct madt_lapic_nmi){ .type = 4,
					 .length = sizeof(struct madt_lapic_nmi),
					 .processor = 0xff,
					 .lint = 1 },
	       sizeof(struct madt_lapic_nmi));
	seal(&m->h, "APIC", 5, bytes);
	return gpa;
}

static u64 build_xsdt(struct builder *b, u64 fadt, u64 madt)
{
	u64 gpa, tables[2] = { fadt, madt };
	struct acpi_header *h = reserve(b, sizeof(*h) + sizeof(tables), &gpa);

	if (!h)
		return 0;
	memcpy(h + 1, tables, sizeof(tables));
	seal(h, "XSDT", 1, sizeof(*h) + sizeof(tables));
	return gpa;
}

int acpi_build(const struct acpi_config *cfg, u64 gpa, u8 *buf, size_t bytes)
{
	struct builder b = { .buf = buf, .gpa = gpa, .capacity = bytes };
	u64 at, facs, dsdt, fadt, madt, xsdt;
	struct acpi_rsdp *rsdp = reserve(&b, sizeof(*rsdp), &at);

	facs = build_facs(&b);
	dsdt = build_dsdt(&b, cfg);
	fadt = build_fadt(&b, facs, dsdt);
	madt = build_madt(&b, cfg);
	xsdt = build_xsdt(&b, fadt, madt);
	if (!rsdp || !facs || !dsdt || !fadt || !madt || !xsdt)
		return -ENOSPC;
	memcpy(rsdp->signature, "RSD PTR ", sizeof(rsdp->signature));
	memcpy(rsdp->oem_id, OEM_ID, sizeof(rsdp->oem_id));
	rsdp->revision = 2;
	rsdp->length = sizeof(*rsdp);
	rsdp->xsdt = xsdt;
	/* The first covers what ACPI 1.0 knew. */
	rsdp->checksum = checksum(rsdp, 20);
	rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
	return 0;
}
