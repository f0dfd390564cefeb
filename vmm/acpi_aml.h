/* SPDX-License-Identifier: MIT */
/*
 * Writes ACPI Machine Language (ACPI 6.5, chapter 20) into a buffer: just the terms that acpi.c
 * needs. A term that does not fit sets .overflow, and what follows is dropped: checked once at the
 * end.
 *
 * Packages (scopes, devices, methods, buffers) are nested by a mark:
 *
 *	mark = aml_device_begin(a, "COM1");
 *	...
 *	aml_end(a, mark);
 */
#ifndef BALLAST_VMM_ACPI_AML_H
#define BALLAST_VMM_ACPI_AML_H

#include "common/types.h"

struct aml {
	u8 *buf;
	size_t bytes, capacity;
	bool overflow;
};

/* Names are segments of at most 4 characters, padded here; paths are "\\_SB_.COM1" with or without
 * the root, dots between segments (20.2.2). */
size_t aml_scope_begin(struct aml *a, const char *path);
size_t aml_device_begin(struct aml *a, const char *name);
size_t aml_method_begin(struct aml *a, const char *name); /* no arguments, not serialized */
size_t aml_package_begin(struct aml *a, u8 elements);
void aml_end(struct aml *a, size_t mark); /* fills in the length (20.2.4) */

void aml_name(struct aml *a, const char *name); /* Name(name, what is written next) */
void aml_integer(struct aml *a, u64 v);		/* the shortest form (20.2.3) */
void aml_string(struct aml *a, const char *s);
void aml_eisa_id(struct aml *a, const char *id); /* "PNP0501" (19.3.4) */
void aml_notify(struct aml *a, const char *path, u8 value);

/* A resource template (6.4), between which come its descriptors. */
size_t aml_resources_begin(struct aml *a);
void aml_io(struct aml *a, u16 port, u8 ports);
void aml_irq_isa(struct aml *a, u8 irq);		/* edge, active high */
void aml_interrupt(struct aml *a, u32 gsi);		/* edge, active high, exclusive */
void aml_memory32(struct aml *a, u32 start, u32 bytes); /* read and write */
void aml_resources_end(struct aml *a, size_t mark);

#endif
