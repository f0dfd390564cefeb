/* SPDX-License-Identifier: MIT */
#include <string.h>
#include "vmm/acpi_aml.h"

/* ACPI 6.5, table 20.1 and section 20.2. */
enum {
	OP_ZERO = 0x00,
	OP_ONE = 0x01,
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_DUAL_NAME = 0x2e,
	OP_MULTI_NAME = 0x2f,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
	OP_NOTIFY = 0x86,
};

#define SEGMENT 4

/* Section 6.4.2 and 6.4.3. */
#define DESC_IRQ       0x22 /* two bytes: edge, active high */
#define DESC_IO	       0x47
#define DESC_END       0x79
#define DESC_MEMORY32  0x86
#define DESC_INTERRUPT 0x89

static void put(struct aml *a, const void *data, size_t bytes)
{
	if (a->overflow || a->capacity - a->bytes < bytes) {
		a->overflow = true;
		return;
	}
	memcpy(a->buf + a->bytes, data, bytes);
	a->bytes += bytes;
}

static void put_u8(struct aml *a, u8 v)
{
	put(a, &v, 1);
}

static void put_u16(struct aml *a, u16 v)
{
	put(a, &v, 2);
}

static void put_u32(struct aml *a, u32 v)
{
	put(a, &v, 4);
}

static void put_segment(struct aml *a, const char *s, size_t len)
{
	char segment[SEGMENT] = { '_', '_', '_', '_' };

	memcpy(segment, s, MIN(len, (size_t)SEGMENT));
	put(a, segment, SEGMENT);
}

static void put_path(struct aml *a, const char *path)
{
	u8 segments = 1;

	if (*path == '\\')
		put_u8(a, (u8)*path++);
	for (const char *p = path; *p; p++)
		segments += *p == '.';
	if (segments == 2) {
		put_u8(a, OP_DUAL_NAME);
	} else if (segments > 2) {
		put_u8(a, OP_MULTI_NAME);
		put_u8(a, segments);
	}
	for (;;) {
		size_t len = strcspn(path, ".");

		put_segment(a, path, len);
		if (path[len] == '\0')
			return;
		path += len + 1;
	}
}

void aml_end(struct aml *a, size_t mark)
{
	size_t body = a->bytes - mark, total, lead;
	u8 length[4];

	if (a->overflow)
		return;
	/* The length counts its own bytes. One byte holds 63; else 4 bits and 8 in each that
	 * follows. */
	for (lead = 1; lead < sizeof(length); lead++) {
		total = body + lead;
		if (total < (lead == 1 ? 1u << 6 : 1u << (8 * lead - 4)))
			break;
	}
	total = body + lead;
	if (lead == 1) {
		length[0] = (u8)total;
	} else {
		length[0] = (u8)((lead - 1) << 6 | (total & 0xf));
		for (size_t i = 1; i < lead; i++)
			length[i] = (u8)(total >> (8 * i - 4));
	}
	put(a, length, lead); /* makes sure of the room */
	if (a->overflow)
		return;
	memmove(a->buf + mark + lead, a->buf + mark, body);
	memcpy(a->buf + mark, length, lead);
}

size_t aml_scope_begin(struct aml *a, const char *path)
{
	size_t mark;

	put_u8(a, OP_SCOPE);
	mark = a->bytes;
	put_path(a, path);
	return mark;
}

size_t aml_device_begin(struct aml *a, const char *name)
{
	size_t mark;

	put_u8(a, OP_EXT);
	put_u8(a, OP_EXT_DEVICE);
	mark = a->bytes;
	put_path(a, name);
	return mark;
}

size_t aml_method_begin(struct aml *a, const char *name)
{
	size_t mark;

	put_u8(a, OP_METHOD);
	mark = a->bytes;
	put_path(a, name);
	put_u8(a, 0);
	return mark;
}

size_t aml_package_begin(struct aml *a, u8 elements)
{
	size_t mark;

	put_u8(a, OP_PACKAGE);
	mark = a->bytes;
	put_u8(a, elements);
	return mark;
}

void aml_name(struct aml *a, const char *name)
{
	put_u8(a, OP_NAME);
	put_path(a, name);
}

void aml_integer(struct aml *a, u64 v)
{
	if (v == 0) {
		put_u8(a, OP_ZERO);
	} else if (v == 1) {
		put_u8(a, OP_ONE);
	} else if (v <= UINT8_MAX) {
		put_u8(a, OP_BYTE);
		put_u8(a, (u8)v);
	} else if (v <= UINT16_MAX) {
		put_u8(a, OP_WORD);
		put_u16(a, (u16)v);
	} else if (v <= UINT32_MAX) {
		put_u8(a, OP_DWORD);
		put_u32(a, (u32)v);
	} else {
		put_u8(a, OP_QWORD);
		put(a, &v, 8);
	}
}

void aml_string(struct aml *a, const char *s)
{
	put_u8(a, OP_STRING);
	put(a, s, strlen(s) + 1);
}

static u32 hex_digit(char c)
{
	return (u32)(c <= '9' ? c - '0' : c - 'A' + 10) & 0xf;
}

void aml_eisa_id(struct aml *a, const char *id)
{
	u32 v = 0;

	/* Three letters of five bits, four hex digits, the bytes swapped. */
	for (int i = 0; i < 3; i++)
		v = v << 5 | ((u32)(id[i] - 0x40) & 0x1f);
	for (int i = 3; i < 7; i++)
		v = v << 4 | hex_digit(id[i]);
	put_u8(a, OP_DWORD);
	put_u32(a, __builtin_bswap32(v));
}

void aml_notify(struct aml *a, const char *path, u8 value)
{
	put_u8(a, OP_NOTIFY);
	put_path(a, path);
	aml_integer(a, value);
}

/* The size of the buffer comes before its bytes, as a byte constant that aml_resources_end()
 * fills in: templates here are shorter than 256 bytes. */
size_t aml_resources_begin(struct aml *a)
{
	size_t mark;

	put_u8(a, OP_BUFFER);
	mark = a->bytes;
	put_u8(a, OP_BYTE);
	put_u8(a, 0);
	return mark;
}

void aml_resources_end(struct aml *a, size_t mark)
{
	put_u8(a, DESC_END);
	put_u8(a, 0); /* no checksum */
	if (a->overflow)
		return;
	if (a->bytes - mark - 2 > UINT8_MAX) {
		a->overflow = true;
		return;
	}
	a->buf[mark + 1] = (u8)(a->bytes - mark - 2);
	aml_end(a, mark);
}

void aml_io(struct aml *a, u16 port, u8 ports)
{
	put_u8(a, DESC_IO);
	put_u8(a, 1); /* all 16 bits are decoded */
	put_u16(a, port);
	put_u16(a, port);
	put_u8(a, 1);
	put_u8(a, ports);
}

void aml_irq_isa(struct aml *a, u8 irq)
{
	put_u8(a, DESC_IRQ);
	put_u16(a, (u16)(1 << irq));
}

void aml_interrupt(struct aml *a, u32 gsi)
{
	put_u8(a, DESC_INTERRUPT);
	put_u16(a, 6);
	put_u8(a, 3); /* consumer, edge, active high, exclusive */
	put_u8(a, 1);
	put_u32(a, gsi);
}

void aml_memory32(struct aml *a, u32 start, u32 bytes)
{
	put_u8(a, DESC_MEMORY32);
	put_u16(a, 9);
	put_u8(a, 1); /* writable */
	put_u32(a, start);
	put_u32(a, bytes);
}
