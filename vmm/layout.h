/* SPDX-License-Identifier: MIT */
/* Fixed places of the machine: guest physical addresses, ports and interrupt lines, in one list. */
#ifndef BALLAST_VMM_LAYOUT_H
#define BALLAST_VMM_LAYOUT_H

#include "common/types.h"

/* Low memory, as the boot protocol and ACPI want it. */
#define LAYOUT_GDT	   0x500
#define LAYOUT_PVH_START   0x6000 /* struct hvm_start_info and its tables */
#define LAYOUT_ZERO_PAGE   0x7000 /* struct boot_params */
#define LAYOUT_BOOT_STACK  0x8ff0
#define LAYOUT_PAGE_TABLES 0x9000 /* PML4, PDPT, PD: identity map of the first GiB */
#define LAYOUT_CMDLINE	   0x20000
#define LAYOUT_CMDLINE_MAX 0x10000
#define LAYOUT_EBDA	   0x9fc00 /* RAM ends here below 1 MiB */
#define LAYOUT_ACPI	   0xe0000 /* RSDP and all tables */
#define LAYOUT_ACPI_BYTES  0x1f000
#define LAYOUT_VMGENID	   0xff000 /* a page of its own: the generation id that acpi.c tells of */
#define LAYOUT_KERNEL	   0x100000

/* Devices. */
#define LAYOUT_HOLE	     0xc0000000ULL /* RAM ends here below 4 GiB */
#define LAYOUT_VIRTIO	     0xd0000000ULL /* virtio-mmio transports, one a page */
#define LAYOUT_VIRTIO_STRIDE 0x1000
#define LAYOUT_VIRTIO_MAX    16
#define LAYOUT_IOAPIC	     0xfec00000ULL
#define LAYOUT_LAPIC	     0xfee00000ULL
#define LAYOUT_TSS	     0xfffbd000ULL /* three pages for KVM (Intel) */
#define LAYOUT_IDENTITY_MAP  0xfffbc000ULL
#define LAYOUT_HIGH_RAM	     0x100000000ULL

/* Interrupt lines of the IOAPIC. */
#define LAYOUT_IRQ_SERIAL  4
#define LAYOUT_IRQ_SCI	   9
#define LAYOUT_IRQ_VIRTIO  5 /* the first; one a device: 5..8, then 10..21 (layout_virtio_irq()) */

#define LAYOUT_PORT_SERIAL 0x3f8
#define LAYOUT_PORT_I8042  0x60	 /* and 0x64: reset */
#define LAYOUT_PORT_ACPI   0x600 /* pm.h: PM1a event and control, GPE0, reset */

/* Skips the SCI. */
static inline u32 layout_virtio_irq(u32 index)
{
	u32 irq = LAYOUT_IRQ_VIRTIO + index;

	return irq < LAYOUT_IRQ_SCI ? irq : irq + 1;
}

#endif
