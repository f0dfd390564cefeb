/* SPDX-License-Identifier: MIT */
/*
 * Loads a kernel, its initrd and its command line into guest RAM, by one of two protocols:
 *
 *   bzImage	Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst): boot_bzimage.c
 *   ELF	PVH (Xen's docs/misc/pvh.pandoc; entry point in a XEN_ELFNOTE_PHYS32_ENTRY note):
 * boot_elf.c
 *
 * Images are hostile: every field is checked against the file's size and the guest's RAM before
 * it is used. What is wrong comes back as one line for the user.
 */
#ifndef BALLAST_VMM_BOOT_H
#define BALLAST_VMM_BOOT_H

#include <linux/kvm.h>
#include "vmm/memory.h"

#define BOOT_ERROR_MAX	  200
#define BOOT_MAP_MAX	  8
#define BOOT_RAM	  1 /* E820 types; PVH has the same */
#define BOOT_RESERVED	  2
#define BOOT_INITRD_ALIGN PAGE_BYTES

struct boot_source {
	int kernel_fd, initrd_fd; /* initrd_fd < 0: none. Only read, by pread() */
	const char *cmdline;
	u64 acpi_rsdp; /* guest address */
};

/* How the boot processor starts. */
struct boot_entry {
	bool long_mode; /* else 32-bit protected mode, paging off */
	bool user;	/* CPL 3 with IOPL 3, in long mode: a flat image */
	u64 rip, rdi, rsi, rbx, rsp;
};

struct boot_range {
	u64 start, bytes;
	u32 type;
};

/* -ENOEXEC: an image that is malformed or that this machine cannot boot; -EIO and others of
 * pread(). @error says which, without a final newline. */
int boot_load(const struct guest_memory *m, const struct boot_source *src, struct boot_entry *ret,
	      char error[BOOT_ERROR_MAX]);

/*
 * A flat image: raw code for tests and experiments, at LAYOUT_KERNEL, which is also its entry. It
 * runs in user mode (CPL 3) and may use ports (IOPL 3); the first GiB is mapped as it is, %rdi is
 * the size of RAM, and there is a small stack. There are no interrupts, and any exception is a
 * triple fault. Even a KVM that cannot run kernels runs this.
 */
int boot_load_flat(const struct guest_memory *m, int fd, struct boot_entry *ret,
		   char error[BOOT_ERROR_MAX]);

/* Registers for @entry; @sregs as KVM gave them. Writes descriptor and page tables to guest RAM. */
void boot_registers(const struct guest_memory *m, const struct boot_entry *entry,
		    struct kvm_regs *ret_regs, struct kvm_sregs *sregs);

/* For the two protocols. */
int boot_load_bzimage(const struct guest_memory *m, const struct boot_source *src, u64 kernel_bytes,
		      struct boot_entry *ret, char *error);
int boot_load_elf(const struct guest_memory *m, const struct boot_source *src, u64 kernel_bytes,
		  struct boot_entry *ret, char *error);
/* Writes @error, and returns -ENOEXEC. */
int boot_bad(char *error, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* All of it, or -EIO (also at the end of the file), and @error. */
int boot_read(int fd, void *buf, u64 bytes, u64 offset, const char *what, char *error);
/* As high as it goes below @max (exclusive), but not below @min. No initrd: 0, 0. */
int boot_load_initrd(const struct guest_memory *m, int fd, u64 min, u64 max, u64 *ret_gpa,
		     u64 *ret_bytes, char *error);
/* To LAYOUT_CMDLINE; @max without the final NUL. */
int boot_put_cmdline(const struct guest_memory *m, const char *cmdline, u64 max, char *error);
/* RAM and what is reserved in it, ordered. Returns how many. */
u32 boot_memory_map(const struct guest_memory *m, struct boot_range ret[BOOT_MAP_MAX]);

#endif
