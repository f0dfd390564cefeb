/* SPDX-License-Identifier: MIT */
/*
 * PVH: a 64-bit ELF image with a 32-bit entry point in a note, and struct hvm_start_info in %ebx
 * (Xen's public header arch-x86/hvm/start_info.h). Linux has it with CONFIG_PVH, which
 * distributions set.
 */
#include <elf.h>
#include <string.h>
#include "vmm/boot.h"
#include "vmm/layout.h"

#define PHDRS_MAX	   64
#define NOTES_BYTES_MAX	   KIB(64)
#define XEN_NOTE_PHYS32	   18 /* XEN_ELFNOTE_PHYS32_ENTRY */
#define START_INFO_MAGIC   0x336ec578
#define START_INFO_VERSION 1 /* the first with a memory map */

struct start_info {
	u32 magic, version, flags, nr_modules;
	u64 modlist, cmdline, rsdp, memmap;
	u32 memmap_entries, reserved;
};

struct start_module {
	u64 start, bytes, cmdline, reserved;
};

struct start_memory {
	u64 start, bytes;
	u32 type, reserved;
};

/* What lies at LAYOUT_PVH_START. */
struct start_page {
	struct start_info info;
	struct start_module module;
	struct start_memory map[BOOT_MAP_MAX];
};

static int check_header(const Elf64_Ehdr *e, u64 file_bytes, char *error)
{
	if (e->e_ident[EI_CLASS] != ELFCLASS64 || e->e_ident[EI_DATA] != ELFDATA2LSB ||
	    e->e_machine != EM_X86_64)
		return boot_bad(error, "the kernel is an ELF file, but not one for x86-64");
	if (e->e_type != ET_EXEC && e->e_type != ET_DYN)
		return boot_bad(error, "the kernel is an ELF file, but not an executable one");
	if (e->e_phentsize != sizeof(Elf64_Phdr) || e->e_phnum == 0 || e->e_phnum > PHDRS_MAX)
		return boot_bad(error, "the kernel's ELF header has %u program headers of %u bytes",
				e->e_phnum, e->e_phentsize);
	if (e->e_phoff > file_bytes || file_bytes - e->e_phoff < e->e_phnum * sizeof(Elf64_Phdr))
		return boot_bad(error, "the kernel's program headers are outside the file");
	return 0;
}

/* Checks a segment and copies it to where it wants to be; *end grows to its end. */
static int load_segment(const struct guest_memory *m, int fd, u64 file_bytes, const Elf64_Phdr *p,
			u64 *end, char *error)
{
	u8 *to;

	if (p->p_memsz == 0)
		return 0;
	if (p->p_filesz > p->p_memsz || p->p_offset > file_bytes ||
	    p->p_filesz > file_bytes - p->p_offset)
		return boot_bad(error, "a segment of the kernel is outside the file");
	to = p->p_paddr >= LAYOUT_KERNEL ? memory_at(m, p->p_paddr, p->p_memsz) : NULL;
	if (!to || p->p_paddr > LAYOUT_HOLE)
		return boot_bad(
			error,
			"a segment of the kernel (%#llx, %llu bytes) is outside the guest's "
			"RAM: more --memory may help",
			(unsigned long long)p->p_paddr, (unsigned long long)p->p_memsz);
	memset(to + p->p_filesz, 0, p->p_memsz - p->p_filesz);
	*end = MAX(*end, p->p_paddr + p->p_memsz);
	return boot_read(fd, to, p->p_filesz, p->p_offset, "kernel", error);
}

/* Looks for the entry point among the notes in @buf. */
static bool find_entry(const u8 *buf, u64 bytes, u32 align, u64 *ret)
{
	while (bytes >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;
		u64 name, desc, skip;

		memcpy(&n, buf, sizeof(n));
		name = sizeof(n);
		/* 32-bit sizes: no overflow in 64 bits. */
		desc = ROUND_UP(name + n.n_namesz, align);
		skip = ROUND_UP(desc + n.n_descsz, align);
		if (desc + n.n_descsz > bytes)
			return false;
		if (n.n_type == XEN_NOTE_PHYS32 && n.n_namesz == 4 &&
		    memcmp(buf + name, "Xen", 4) == 0 && (n.n_descsz == 4 || n.n_descsz == 8)) {
			*ret = 0;
			memcpy(ret, buf + desc, n.n_descsz);
			return true;
		}
		if (skip > bytes)
			return false;
		buf += skip;
		bytes -= skip;
	}
	return false;
}

static int read_notes(int fd, u64 file_bytes, const Elf64_Phdr *p, u64 *ret_entry, char *error)
{
	static u8 buf[NOTES_BYTES_MAX]; /* used on the main thread only */
	int r;

	if (p->p_filesz > sizeof(buf) || p->p_offset > file_bytes ||
	    p->p_filesz > file_bytes - p->p_offset)
		return boot_bad(error, "the notes of the kernel are outside the file, or too long");
	r = boot_read(fd, buf, p->p_filesz, p->p_offset, "kernel", error);
	if (r == 0 && *ret_entry == 0)
		find_entry(buf, p->p_filesz, p->p_align == 8 ? 8 : 4, ret_entry);
	return r;
}

static void put_start_info(const struct guest_memory *m, u64 rsdp, u64 initrd, u64 initrd_bytes)
{
	struct start_page *s = memory_at(m, LAYOUT_PVH_START, sizeof(*s));
	struct boot_range map[BOOT_MAP_MAX];
	u32 n = boot_memory_map(m, map);

	memset(s, 0, sizeof(*s));
	s->info = (struct start_info){
		.magic = START_INFO_MAGIC,
		.version = START_INFO_VERSION,
		.cmdline = LAYOUT_CMDLINE,
		.rsdp = rsdp,
		.memmap = LAYOUT_PVH_START + offsetof(struct start_page, map),
		.memmap_entries = n,
	};
	if (initrd_bytes) {
		s->info.nr_modules = 1;
		s->info.modlist = LAYOUT_PVH_START + offsetof(struct start_page, module);
		s->module = (struct start_module){ .start = initrd, .bytes = initrd_bytes };
	}
	for (u32 i = 0; i < n; i++)
		s->map[i] = (struct start_memory){ .start = map[i].start,
						   .bytes = map[i].bytes,
						   .type = map[i].type };
}

int boot_load_elf(const struct guest_memory *m, const struct boot_source *src, u64 kernel_bytes,
		  struct boot_entry *ret, char *error)
{
	Elf64_Phdr phdrs[PHDRS_MAX];
	u64 entry = 0, end = LAYOUT_KERNEL, initrd = 0, initrd_bytes = 0;
	Elf64_Ehdr e;
	int r;

	r = boot_read(src->kernel_fd, &e, sizeof(e), 0, "kernel", error);
	if (r == 0)
		r = check_header(&e, kernel_bytes, error);
	if (r == 0)
		r = boot_read(src->kernel_fd, phdrs, e.e_phnum * sizeof(phdrs[0]), e.e_phoff,
			      "kernel", error);
	for (u32 i = 0; r == 0 && i < e.e_phnum; i++) {
		if (phdrs[i].p_type == PT_LOAD)
			r = load_segment(m, src->kernel_fd, kernel_bytes, &phdrs[i], &end, error);
		else if (phdrs[i].p_type == PT_NOTE)
			r = read_notes(src->kernel_fd, kernel_bytes, &phdrs[i], &entry, error);
	}
	if (r < 0)
		return r;
	if (entry == 0)
		return boot_bad(error, "the kernel is an ELF file without a PVH entry point "
				       "(CONFIG_PVH): give its bzImage");
	if (entry < LAYOUT_KERNEL || entry >= end)
		return boot_bad(error, "the kernel's entry point %#llx is outside its segments",
				(unsigned long long)entry);
	r = boot_put_cmdline(m, src->cmdline, LAYOUT_CMDLINE_MAX, error);
	if (r == 0)
		r = boot_load_initrd(m, src->initrd_fd, end, LAYOUT_HOLE, &initrd, &initrd_bytes,
				     error);
	if (r < 0)
		return r;
	put_start_info(m, src->acpi_rsdp, initrd, initrd_bytes);
	*ret = (struct boot_entry){
		.long_mode = false, .rip = entry, .rbx = LAYOUT_PVH_START, .rsp = LAYOUT_BOOT_STACK
	};
	return 0;
}
