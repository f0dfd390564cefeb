/* SPDX-License-Identifier: MIT */
#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vmm/boot.h"
#include "vmm/layout.h"

#define RAM	 MIB(64)
#define PREF	 MIB(16)
#define SETUP	 1024 /* boot sector and one sector of setup code */
#define CODE	 4096
#define IMAGE	 (SETUP + CODE)
#define INIT_MIB 8

static struct guest_memory mem;
static char error[BOOT_ERROR_MAX];
static u8 image[65536];
static size_t image_bytes;
static const char *cmdline;
static int initrd_fd;

static struct setup_header *header(void)
{
	return (struct setup_header *)(image + 0x1f1);
}

static void set_up(void)
{
	cr_assert_eq(memory_init(&mem, RAM, 0), 0);
	error[0] = '\0';
	cmdline = "console=ttyS0";
	initrd_fd = -1;
	memset(image, 0, sizeof(image));
	image_bytes = IMAGE;
	*header() = (struct setup_header){
		.setup_sects = 1,
		.syssize = CODE / 16,
		.boot_flag = 0xaa55,
		.jump = 0x66eb,
		.header = 0x53726448,
		.version = 0x20f,
		.loadflags = LOADED_HIGH,
		.initrd_addr_max = 0x7fffffff,
		.kernel_alignment = MIB(2),
		.relocatable_kernel = 1,
		.xloadflags = XLF_KERNEL_64,
		.cmdline_size = 2047,
		.pref_address = PREF,
		.init_size = MIB(INIT_MIB),
	};
	memset(image + SETUP, 0xcd, CODE);
}

static void tear_down(void)
{
	memory_free(&mem);
	if (initrd_fd >= 0)
		close(initrd_fd);
}

static int file_of(const void *data, size_t bytes)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(write(fd, data, bytes), (ssize_t)bytes);
	return fd;
}

static int load(struct boot_entry *entry)
{
	struct boot_source src = { .kernel_fd = file_of(image, image_bytes),
				   .initrd_fd = initrd_fd,
				   .cmdline = cmdline,
				   .acpi_rsdp = LAYOUT_ACPI };
	int r = boot_load(&mem, &src, entry, error);

	close(src.kernel_fd);
	return r;
}

static void refused(int wanted, const char *text)
{
	struct boot_entry entry;
	int r = load(&entry);

	cr_assert_eq(r, wanted, "%d, not %d: %s", r, wanted, error);
	cr_assert_not_null(strstr(error, text), "\"%s\" says nothing of \"%s\"", error, text);
	cr_assert_null(strchr(error, '\n'));
}

Test(vmm_boot, loads_a_bzimage, .init = set_up, .fini = tear_down)
{
	struct boot_params *zero = memory_at(&mem, LAYOUT_ZERO_PAGE, sizeof(*zero));
	struct boot_entry entry;
	u8 initrd[5000];
	u64 at;

	memset(initrd, 0x1d, sizeof(initrd));
	initrd_fd = file_of(initrd, sizeof(initrd));
	cr_assert_eq(load(&entry), 0, "%s", error);
	cr_assert(entry.long_mode);
	cr_assert_eq(entry.rip, PREF + 0x200);
	cr_assert_eq(entry.rsi, LAYOUT_ZERO_PAGE);
	cr_assert_eq(*(u8 *)memory_at(&mem, PREF, 1), 0xcd);
	cr_assert_eq(*(u8 *)memory_at(&mem, PREF + CODE - 1, 1), 0xcd);
	cr_assert_eq(*(u8 *)memory_at(&mem, PREF + CODE, 1), 0);
	cr_assert_str_eq(memory_at(&mem, zero->hdr.cmd_line_ptr, 1), "console=ttyS0");
	at = zero->hdr.ramdisk_image;
	cr_assert_eq(zero->hdr.ramdisk_size, sizeof(initrd));
	cr_assert_geq(at, PREF + MIB(INIT_MIB));
	cr_assert_eq(memcmp(memory_at(&mem, at, sizeof(initrd)), initrd, sizeof(initrd)), 0);
	cr_assert_eq(zero->acpi_rsdp_addr, LAYOUT_ACPI);
	cr_assert_eq(zero->hdr.type_of_loader, 0xff);
	cr_assert_eq(zero->e820_entries, 4);
	cr_assert_eq(zero->e820_table[3].addr + zero->e820_table[3].size, RAM);
}

/* Where the preferred place is no RAM, it goes as low as it may. */
Test(vmm_boot, relocates, .init = set_up, .fini = tear_down)
{
	struct boot_entry entry;

	header()->pref_address = GIB(2);
	cr_assert_eq(load(&entry), 0, "%s", error);
	cr_assert_eq(entry.rip, MIB(2) + 0x200);
	header()->pref_address = 0;
	cr_assert_eq(load(&entry), 0, "%s", error);
	header()->pref_address = UINT64_MAX;
	cr_assert_eq(load(&entry), 0, "%s", error);
	header()->relocatable_kernel = 0;
	refused(-ENOEXEC, "above the first GiB");
	header()->pref_address = 4096;
	refused(-ENOEXEC, "above the first GiB");
}

Test(vmm_boot, refuses_malformed_bzimages, .init = set_up, .fini = tear_down)
{
	header()->boot_flag = 0;
	refused(-ENOEXEC, "boot flag");
	header()->boot_flag = 0xaa55;
	header()->version = 0x204;
	refused(-ENOEXEC, "2.04");
	header()->version = 0x20f;
	header()->loadflags = 0;
	refused(-ENOEXEC, "zImage");
	header()->loadflags = LOADED_HIGH;
	header()->xloadflags = 0;
	refused(-ENOEXEC, "64-bit");
	header()->xloadflags = XLF_KERNEL_64;
	header()->kernel_alignment = 0;
	refused(-ENOEXEC, "alignment");
	header()->kernel_alignment = MIB(3);
	refused(-ENOEXEC, "alignment");
	header()->kernel_alignment = 0x80000000;
	refused(-ENOEXEC, "alignment");
	header()->kernel_alignment = MIB(2);
	header()->init_size = (u32)RAM;
	refused(-ENOEXEC, "--memory");
	header()->init_size = UINT32_MAX;
	refused(-ENOEXEC, "first GiB");
	header()->init_size = MIB(INIT_MIB);
	header()->syssize = CODE / 16 + 1;
	refused(-ENOEXEC, "truncated");
	header()->syssize = UINT32_MAX;
	refused(-ENOEXEC, "truncated");
	header()->syssize = CODE / 16;
	header()->setup_sects = 255;
	refused(-ENOEXEC, "truncated");
	header()->setup_sects = 0; /* means 4 */
	refused(-ENOEXEC, "truncated");
	header()->setup_sects = 1;
	header()->jump = 0x00eb;
	refused(-ENOEXEC, "too short");
	header()->jump = 0x66eb;
	header()->cmdline_size = 5;
	refused(-ENOEXEC, "--cmdline");
}

Test(vmm_boot, refuses_what_is_cut_short, .init = set_up, .fini = tear_down)
{
	/* Every length: an error, and one line; never a crash. (The size is told in units of 16.)
	 */
	for (image_bytes = 0; image_bytes <= IMAGE - 16; image_bytes += 7) {
		struct boot_entry entry;

		error[0] = '\0';
		cr_assert_lt(load(&entry), 0, "%zu bytes", image_bytes);
		cr_assert_neq(error[0], '\0');
	}
}

Test(vmm_boot, refuses_an_initrd_without_room, .init = set_up, .fini = tear_down)
{
	int fd = memfd_create("initrd", MFD_CLOEXEC);
	struct boot_entry entry;

	initrd_fd = fd;
	cr_assert_eq(ftruncate(fd, RAM - PREF - MIB(INIT_MIB)), 0);
	cr_assert_eq(load(&entry), 0, "%s", error);
	cr_assert_eq(ftruncate(fd, RAM - PREF - MIB(INIT_MIB) + 1), 0);
	refused(-ENOEXEC, "initrd");
	cr_assert_eq(ftruncate(fd, 5000), 0);
	header()->initrd_addr_max = PREF;
	refused(-ENOEXEC, "initrd");
	header()->initrd_addr_max = UINT32_MAX;
	cr_assert_eq(load(&entry), 0, "%s", error);
}

/* --- ELF ---------------------------------------------------------------------------------------
 */

#define ELF_TEXT 0x1000
#define ELF_NOTE 0x2000

struct note {
	Elf64_Nhdr h;
	char name[4];
	u64 entry;
};

static Elf64_Ehdr *ehdr(void)
{
	return (Elf64_Ehdr *)image;
}

static Elf64_Phdr *phdr(int i)
{
	return (Elf64_Phdr *)(image + sizeof(Elf64_Ehdr)) + i;
}

static struct note *note(void)
{
	return (struct note *)(image + ELF_NOTE);
}

static void set_up_elf(void)
{
	set_up();
	memset(image, 0, sizeof(image));
	image_bytes = 0x3000;
	*ehdr() = (Elf64_Ehdr){
		.e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_phoff = sizeof(Elf64_Ehdr),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 2,
	};
	*phdr(0) = (Elf64_Phdr){ .p_type = PT_LOAD,
				 .p_offset = ELF_TEXT,
				 .p_paddr = PREF,
				 .p_filesz = 0x1000,
				 .p_memsz = 0x3000 };
	*phdr(1) = (Elf64_Phdr){ .p_type = PT_NOTE,
				 .p_offset = ELF_NOTE,
				 .p_filesz = sizeof(struct note),
				 .p_align = 4 };
	*note() = (struct note){
		.h = { .n_namesz = 4, .n_descsz = 8, .n_type = 18 },
		.name = "Xen",
		.entry = PREF + 0x10,
	};
	memset(image + ELF_TEXT, 0xcd, 0x1000);
	memset(memory_at(&mem, PREF, 0x3000), 0x99, 0x3000);
}

Test(vmm_boot_elf, loads_by_pvh, .init = set_up_elf, .fini = tear_down)
{
	struct boot_entry entry;
	u32 *info = memory_at(&mem, LAYOUT_PVH_START, 64);

	cr_assert_eq(load(&entry), 0, "%s", error);
	cr_assert_not(entry.long_mode);
	cr_assert_eq(entry.rip, PREF + 0x10);
	cr_assert_eq(entry.rbx, LAYOUT_PVH_START);
	cr_assert_eq(info[0], 0x336ec578);
	cr_assert_eq(info[3], 0);  /* modules */
	cr_assert_eq(info[12], 4); /* memory map */
	cr_assert_eq(*(u8 *)memory_at(&mem, PREF + 0xfff, 1), 0xcd);
	cr_assert_eq(*(u8 *)memory_at(&mem, PREF + 0x1000, 1), 0, "bss is zeroed");
	cr_assert_eq(*(u8 *)memory_at(&mem, PREF + 0x2fff, 1), 0);
	note()->h.n_descsz = 4;
	cr_assert_eq(load(&entry), 0, "%s", error);
	cr_assert_eq(entry.rip, PREF + 0x10);
}

Test(vmm_boot_elf, refuses_malformed_headers, .init = set_up_elf, .fini = tear_down)
{
	ehdr()->e_ident[EI_CLASS] = ELFCLASS32;
	refused(-ENOEXEC, "x86-64");
	ehdr()->e_ident[EI_CLASS] = ELFCLASS64;
	ehdr()->e_machine = EM_AARCH64;
	refused(-ENOEXEC, "x86-64");
	ehdr()->e_machine = EM_X86_64;
	ehdr()->e_type = ET_CORE;
	refused(-ENOEXEC, "executable");
	ehdr()->e_type = ET_EXEC;
	ehdr()->e_phnum = 0;
	refused(-ENOEXEC, "program headers");
	ehdr()->e_phnum = UINT16_MAX;
	refused(-ENOEXEC, "program headers");
	ehdr()->e_phnum = 2;
	ehdr()->e_phentsize = 8;
	refused(-ENOEXEC, "program headers");
	ehdr()->e_phentsize = sizeof(Elf64_Phdr);
	ehdr()->e_phoff = UINT64_MAX;
	refused(-ENOEXEC, "outside the file");
	ehdr()->e_phoff = image_bytes - 8;
	refused(-ENOEXEC, "outside the file");
}

Test(vmm_boot_elf, refuses_segments_out_of_place, .init = set_up_elf, .fini = tear_down)
{
	static const struct {
		u64 offset, paddr, filesz, memsz;
	} bad[] = {
		{ UINT64_MAX, PREF, 0x1000, 0x3000 },
		{ ELF_TEXT, PREF, UINT64_MAX, UINT64_MAX },
		{ ELF_TEXT, PREF, 0x3000, 0x3000 }, /* past the file's end */
		{ ELF_TEXT, PREF, 0x1000, 0x800 },
		{ ELF_TEXT, 0, 0x1000, 0x1000 },
		{ ELF_TEXT, LAYOUT_KERNEL - 1, 0x1000, 0x1000 },
		{ ELF_TEXT, RAM - 0x1000, 0x1000, 0x1001 },
		{ ELF_TEXT, UINT64_MAX - 0x800, 0x1000, 0x1000 },
		{ ELF_TEXT, GIB(5), 0x1000, 0x1000 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		phdr(0)->p_offset = bad[i].offset;
		phdr(0)->p_paddr = bad[i].paddr;
		phdr(0)->p_filesz = bad[i].filesz;
		phdr(0)->p_memsz = bad[i].memsz;
		refused(-ENOEXEC, "a segment of the kernel");
	}
}

Test(vmm_boot_elf, refuses_bad_notes, .init = set_up_elf, .fini = tear_down)
{
	note()->entry = PREF + 0x3000;
	refused(-ENOEXEC, "entry point");
	note()->entry = 0x1000;
	refused(-ENOEXEC, "entry point");
	note()->entry = PREF;
	note()->h.n_type = 1;
	refused(-ENOEXEC, "CONFIG_PVH");
	note()->h.n_type = 18;
	note()->h.n_descsz = 12; /* past the end */
	refused(-ENOEXEC, "CONFIG_PVH");
	note()->h.n_descsz = UINT32_MAX;
	refused(-ENOEXEC, "CONFIG_PVH");
	note()->h.n_descsz = 8;
	note()->h.n_namesz = UINT32_MAX;
	refused(-ENOEXEC, "CONFIG_PVH");
	note()->h.n_namesz = 4;
	phdr(1)->p_filesz = sizeof(Elf64_Nhdr) + 3;
	refused(-ENOEXEC, "CONFIG_PVH");
	phdr(1)->p_filesz = UINT64_MAX;
	refused(-ENOEXEC, "notes");
	phdr(1)->p_offset = UINT64_MAX - 4;
	phdr(1)->p_filesz = 16;
	refused(-ENOEXEC, "notes");
}

/* Whatever the bytes: an error or an entry point inside RAM. */
Test(vmm_boot_elf, survives_random_changes, .init = set_up_elf, .fini = tear_down, .timeout = 60)
{
	u8 good[sizeof(image)];
	u32 ok = 0;

	memcpy(good, image, sizeof(image));
	srand(4);
	for (int i = 0; i < 3000; i++) {
		struct boot_entry entry;

		for (int n = rand() % 4; n >= 0; n--) {
			size_t at = (size_t)rand() % 200;

			at = at < 176 ? at : ELF_NOTE + at - 176;
			image[at] = (u8)rand();
		}
		if (load(&entry) == 0) {
			ok++;
			cr_assert_not_null(memory_at(&mem, entry.rip, 1));
		}
		memcpy(image, good, sizeof(image));
	}
	cr_assert_gt(ok, 100);
}
