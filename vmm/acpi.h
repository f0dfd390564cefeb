/* SPDX-License-Identifier: MIT */
/*
 * The ACPI tables (ACPI 6.5, chapter 5) that tell a guest what the machine has: RSDP, XSDT, FADT,
 * FACS, MADT, and a DSDT with the serial port, the virtio-mmio transports and the generation id.
 * Written once a boot, before the first vCPU runs, to LAYOUT_ACPI.
 */
#ifndef BALLAST_VMM_ACPI_H
#define BALLAST_VMM_ACPI_H

#include "common/types.h"

struct acpi_config {
	u32 nr_vcpus;
	u32 nr_virtio; /* transports 0 .. nr_virtio - 1 of layout.h */
};

/* Builds the tables for guest address @gpa into @buf. -ENOSPC. */
int acpi_build(const struct acpi_config *cfg, u64 gpa, u8 *buf, size_t bytes);

#endif
