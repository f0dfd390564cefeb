/* SPDX-License-Identifier: MIT */
/* Linux's 64-bit boot protocol: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol". */
#include <asm/bootparam.h>
#include <stddef.h>
#include <string.h>
#include "vmm/boot.h"
#include "vmm/layout.h"

#define SETUP_SECTOR	 512
#define SETUP_HEADER	 0x1f1
#define BOOT_FLAG	 0xaa55
#define PROTOCOL_2_12	 0x20c /* the first with xloadflags, by which we see a 64-bit entry */
#define PROTOCOL_2_14	 0x20e /* acpi_rsdp_addr */
#define ENTRY_64	 0x200
#define LOADER_UNDEFINED 0xff
#define MAPPED_MAX	 GIB(1) /* what boot.c maps for the kernel's first steps */
#define KERNEL_ALIGN_MAX MIB(16)

/* Reads the setup header and checks what stands in it alone. */
static int read_header(int fd, struct setup_header *h, char *error)
{
	u8 sector[2];
	u64 bytes;
	int r;

	memset(h, 0, sizeof(*h));
	/* The header's end is told by the jump over it: 0x202 + the byte at 0x201. */
	r = boot_read(fd, sector, sizeof(sector), 0x200, "kernel", error);
	if (r < 0)
		return r;
	bytes = 0x202 + (u64)sector[1] - SETUP_HEADER;
	bytes = MIN(bytes, sizeof(*h));
	if (bytes < offsetof(struct setup_header, kernel_info_offset))
		return boot_bad(error, "the kernel's setup header is too short (%llu bytes)",
				(unsigned long long)bytes);
	r = boot_read(fd, h, bytes, SETUP_HEADER, "kernel", error);
	if (r < 0)
		return r;
	if (h->boot_flag != BOOT_FLAG)
		return boot_bad(error, "the kernel has no boot flag: not a bzImage");
	if (h->version < PROTOCOL_2_12)
		return boot_bad(error, "the kernel speaks boot protocol %u.%02u; 2.12 is needed",
				h->version >> 8, h->version & 0xff);
	if (!(h->loadflags & LOADED_HIGH))
		return boot_bad(error, "the kernel is a zImage; a bzImage is needed");
	if (!(h->xloadflags & XLF_KERNEL_64))
		return boot_bad(error, "the kernel has no 64-bit entry point");
	return 0;
}

/* Where it goes: where it likes to be, or, if that is no RAM, as low as it may. */
static int place(const struct guest_memory *m, const struct setup_header *h, u64 payload,
		 u64 *ret_gpa, u64 *ret_bytes, char *error)
{
	/* It decompresses itself inside init_size. */
	u64 bytes = MAX((u64)h->init_size, payload), gpa = h->pref_address;
	u64 align = h->kernel_alignment;

	if (h->relocatable_kernel &&
	    (align < PAGE_BYTES || align > KERNEL_ALIGN_MAX || (align & (align - 1))))
		return boot_bad(error, "the kernel asks for an alignment of %#llx",
				(unsigned long long)align);
	if (h->relocatable_kernel && (gpa < LAYOUT_KERNEL || !memory_at(m, gpa, bytes)))
		gpa = ROUND_UP(LAYOUT_KERNEL, align);
	if (gpa < LAYOUT_KERNEL || gpa > MAPPED_MAX || bytes > MAPPED_MAX - gpa)
		return boot_bad(error,
				"the kernel asks for %llu bytes at %#llx, above the first GiB",
				(unsigned long long)bytes, (unsigned long long)gpa);
	if (!memory_at(m, gpa, bytes))
		return boot_bad(error, "the kernel needs %llu MiB of --memory",
				(unsigned long long)(DIV_ROUND_UP(gpa + bytes, MIB(1))));
	*ret_gpa = gpa;
	*ret_bytes = bytes;
	return 0;
}

static void put_memory_map(const struct guest_memory *m, struct boot_params *zero)
{
	struct boot_range map[BOOT_MAP_MAX];
	u32 n = boot_memory_map(m, map);

	for (u32 i = 0; i < n; i++)
		zero->e820_table[i] = (struct boot_e820_entry){ .addr = map[i].start,
								.size = map[i].bytes,
								.type = map[i].type };
	zero->e820_entries = (u8)n;
}

int boot_load_bzimage(const struct guest_memory *m, const struct boot_source *src, u64 kernel_bytes,
		      struct boot_entry *ret, char *error)
{
	struct boot_params *zero = memory_at(m, LAYOUT_ZERO_PAGE, sizeof(*zero));
	u64 setup, payload, gpa = 0, bytes = 0, initrd = 0, initrd_bytes = 0;
	struct setup_header h;
	int r;

	r = read_header(src->kernel_fd, &h, error);
	if (r < 0)
		return r;
	/* 0 means 4, for reasons of history (boot.rst). */
	setup = ((u64)(h.setup_sects ? h.setup_sects : 4) + 1) * SETUP_SECTOR;
	if (setup + ENTRY_64 >= kernel_bytes)
		return boot_bad(
			error, "the kernel is truncated: %llu bytes, its setup code alone has %llu",
			(unsigned long long)kernel_bytes, (unsigned long long)setup);
	payload = kernel_bytes - setup;
	/* syssize is in units of 16 bytes; more than that may follow (a signature). */
	if ((u64)h.syssize * 16 > ROUND_UP(payload, 16))
		return boot_bad(error, "the kernel is truncated: %llu bytes of %llu are there",
				(unsigned long long)payload, (unsigned long long)h.syssize * 16);
	r = place(m, &h, payload, &gpa, &bytes, error);
	if (r < 0)
		return r;
	r = boot_read(src->kernel_fd, memory_at(m, gpa, payload), payload, setup, "kernel", error);
	if (r < 0)
		return r;
	r = boot_put_cmdline(m, src->cmdline, h.cmdline_size, error);
	if (r < 0)
		return r;
	r = boot_load_initrd(m, src->initrd_fd, gpa + bytes, (u64)h.initrd_addr_max + 1, &initrd,
			     &initrd_bytes, error);
	if (r < 0)
		return r;

	memset(zero, 0, sizeof(*zero));
	zero->hdr = h;
	zero->hdr.type_of_loader = LOADER_UNDEFINED;
	zero->hdr.cmd_line_ptr = LAYOUT_CMDLINE;
	zero->hdr.ramdisk_image = (u32)initrd;
	zero->hdr.ramdisk_size = (u32)initrd_bytes;
	zero->hdr.code32_start = (u32)gpa;
	if (h.version >= PROTOCOL_2_14)
		zero->acpi_rsdp_addr = src->acpi_rsdp;
	put_memory_map(m, zero);
	*ret = (struct boot_entry){ .long_mode = true,
				    .rip = gpa + ENTRY_64,
				    .rsi = LAYOUT_ZERO_PAGE,
				    .rsp = LAYOUT_BOOT_STACK };
	return 0;
}
