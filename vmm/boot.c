/* SPDX-License-Identifier: MIT */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "vmm/boot.h"
#include "vmm/layout.h"

/* A segment descriptor of the GDT (Intel SDM 3A, 3.4.5), flat, from limit 0xfffff in pages. */
#define GDT_CODE64 0x00af9b000000ffffULL
#define GDT_CODE32 0x00cf9b000000ffffULL
#define GDT_DATA   0x00cf93000000ffffULL
#define GDT_TSS	   0x00008b0000000067ULL
#define GDT_DPL3   0x0000600000000000ULL
/* What Linux's boot protocol asks for; PVH asks for none in particular. */
#define SEL_CODE 0x10
#define SEL_DATA 0x18
#define SEL_TSS	 0x20
/* Those of Linux's own user mode: a KVM that runs guests in its host's CPL 3 knows no others. */
#define SEL_USER_DATA 0x2b
#define SEL_USER_CODE 0x33
#define GDT_NR	      5

#define CR0_PE	      (1ULL << 0)
#define CR0_ET	      (1ULL << 4)
#define CR0_PG	      (1ULL << 31)
#define CR4_PAE	      (1ULL << 5)
#define CR0_USER      (1ULL << 1 | 1ULL << 5 | 1ULL << 16 | 1ULL << 18) /* MP, NE, WP, AM */
#define CR4_USER      (1ULL << 9 | 1ULL << 10)				/* OSFXSR, OSXMMEXCPT */
#define EFER_LME      (1ULL << 8)
#define EFER_LMA      (1ULL << 10)

#define PTE_PRESENT   1
#define PTE_WRITABLE  2
#define PTE_USER      4
#define PTE_LARGE     0x80
#define PTES	      512

#define HDRS_OFFSET   0x202

#define RFLAGS_ALWAYS 2
#define RFLAGS_IOPL3  0x3000

int boot_bad(char *error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error, BOOT_ERROR_MAX, fmt, ap);
	va_end(ap);
	return -ENOEXEC;
}

int boot_read(int fd, void *buf, u64 bytes, u64 offset, const char *what, char *error)
{
	u8 *p = buf;

	while (bytes) {
		/* Larger calls are cut short by the kernel anyway. */
		ssize_t n = pread(fd, p, MIN(bytes, GIB(1)), (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int r = -errno;

			boot_bad(error, "cannot read the %s: %s", what, strerror(errno));
			return r;
		}
		if (n == 0) {
			boot_bad(error, "the %s is shorter than it says it is", what);
			return -EIO;
		}
		p += n;
		offset += (u64)n;
		bytes -= (u64)n;
	}
	return 0;
}

static int file_bytes(int fd, const char *what, u64 *ret, char *error)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return boot_bad(error, "cannot read the %s: %s", what, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return boot_bad(error, "the %s is not a regular file", what);
	*ret = (u64)st.st_size;
	return 0;
}

int boot_load_initrd(const struct guest_memory *m, int fd, u64 min, u64 max, u64 *ret_gpa,
		     u64 *ret_bytes, char *error)
{
	u64 bytes, gpa, top = MIN(max, m->slots[0].bytes);
	void *p;
	int r;

	*ret_gpa = *ret_bytes = 0;
	if (fd < 0)
		return 0;
	r = file_bytes(fd, "initrd", &bytes, error);
	if (r < 0 || bytes == 0)
		return r;
	gpa = top > bytes ? ROUND_DOWN(top - bytes, BOOT_INITRD_ALIGN) : 0;
	p = gpa >= min ? memory_at(m, gpa, bytes) : NULL;
	if (!p)
		return boot_bad(error,
				"the initrd (%llu bytes) does not fit behind the kernel: "
				"give the VM more --memory",
				(unsigned long long)bytes);
	r = boot_read(fd, p, bytes, 0, "initrd", error);
	if (r < 0)
		return r;
	*ret_gpa = gpa;
	*ret_bytes = bytes;
	return 0;
}

int boot_put_cmdline(const struct guest_memory *m, const char *cmdline, u64 max, char *error)
{
	u64 bytes = strlen(cmdline) + 1;
	void *p = memory_at(m, LAYOUT_CMDLINE, LAYOUT_CMDLINE_MAX);

	max = MIN(max, LAYOUT_CMDLINE_MAX - 1);
	if (bytes - 1 > max)
		return boot_bad(error, "--cmdline is longer than the %llu bytes this kernel takes",
				(unsigned long long)max);
	memcpy(p, cmdline, bytes);
	return 0;
}

u32 boot_memory_map(const struct guest_memory *m, struct boot_range ret[BOOT_MAP_MAX])
{
	u32 n = 0;

	ret[n++] = (struct boot_range){ 0, LAYOUT_EBDA, BOOT_RAM };
	ret[n++] = (struct boot_range){ LAYOUT_EBDA, 0xa0000 - LAYOUT_EBDA, BOOT_RESERVED };
	ret[n++] = (struct boot_range){ LAYOUT_ACPI, LAYOUT_KERNEL - LAYOUT_ACPI, BOOT_RESERVED };
	for (u32 i = 0; i < m->nr_slots && n < BOOT_MAP_MAX; i++) {
		const struct memory_slot *s = &m->slots[i];
		u64 start = MAX(s->gpa, (u64)LAYOUT_KERNEL);

		if (!s->hotplug)
			ret[n++] =
				(struct boot_range){ start, s->gpa + s->bytes - start, BOOT_RAM };
	}
	return n;
}

/* The first GiB as it is, in 2 MiB pages: kernels map the rest themselves. */
static void put_page_tables(const struct guest_memory *m, bool user)
{
	u64 flags = PTE_PRESENT | PTE_WRITABLE | (user ? PTE_USER : 0);
	u64 *tables = memory_at(m, LAYOUT_PAGE_TABLES, 3 * PAGE_BYTES);
	u64 *pdpt = tables + PTES, *pd = pdpt + PTES;

	memset(tables, 0, 3 * PAGE_BYTES);
	tables[0] = (LAYOUT_PAGE_TABLES + PAGE_BYTES) | flags;
	pdpt[0] = (LAYOUT_PAGE_TABLES + 2 * PAGE_BYTES) | flags;
	for (u64 i = 0; i < PTES; i++)
		pd[i] = i << CHUNK_SHIFT | flags | PTE_LARGE;
}

static struct kvm_segment segment(u64 descriptor, u16 selector)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = descriptor >> 40 & 0xf,
		.present = descriptor >> 47 & 1,
		.dpl = descriptor >> 45 & 3,
		.s = descriptor >> 44 & 1,
		.l = descriptor >> 53 & 1,
		.db = descriptor >> 54 & 1,
		.g = descriptor >> 55 & 1,
	};
}

static void set_data_segments(struct kvm_sregs *sregs, struct kvm_segment data)
{
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
}

static void put_segments(const struct guest_memory *m, const struct boot_entry *entry,
			 struct kvm_sregs *sregs)
{
	u64 code = entry->long_mode ? GDT_CODE64 : GDT_CODE32;
	u64 gdt[GDT_NR] = { 0, 0, code, GDT_DATA, GDT_TSS };

	/* User mode never loads a segment, and has no use for tables: they stay as after a reset.
	 */
	if (entry->user) {
		sregs->cs = segment(code | GDT_DPL3, SEL_USER_CODE);
		set_data_segments(sregs, segment(GDT_DATA | GDT_DPL3, SEL_USER_DATA));
		return;
	}
	memcpy(memory_at(m, LAYOUT_GDT, sizeof(gdt)), gdt, sizeof(gdt));
	sregs->gdt.base = LAYOUT_GDT;
	sregs->gdt.limit = sizeof(gdt) - 1;
	/* No interrupt is taken before the kernel has its own. */
	sregs->idt.base = 0;
	sregs->idt.limit = 0;
	sregs->cs = segment(code, SEL_CODE);
	set_data_segments(sregs, segment(GDT_DATA, SEL_DATA));
	sregs->tr = segment(GDT_TSS, SEL_TSS);
	sregs->tr.limit = 0x67;
}

void boot_registers(const struct guest_memory *m, const struct boot_entry *entry,
		    struct kvm_regs *ret_regs, struct kvm_sregs *sregs)
{
	put_segments(m, entry, sregs);
	sregs->cr0 = CR0_PE | CR0_ET;
	if (entry->long_mode) {
		put_page_tables(m, entry->user);
		sregs->cr0 |= CR0_PG;
		sregs->cr3 = LAYOUT_PAGE_TABLES;
		sregs->cr4 = CR4_PAE;
		sregs->efer = EFER_LME | EFER_LMA;
	}
	/* What user mode finds under any system, SSE among it. */
	if (entry->user) {
		sregs->cr0 |= CR0_USER;
		sregs->cr4 |= CR4_USER;
	}
	*ret_regs = (struct kvm_regs){
		.rflags = RFLAGS_ALWAYS | (entry->user ? RFLAGS_IOPL3 : 0),
		.rip = entry->rip,
		.rdi = entry->rdi,
		.rsi = entry->rsi,
		.rbx = entry->rbx,
		.rsp = entry->rsp,
	};
}

int boot_load_flat(const struct guest_memory *m, int fd, struct boot_entry *ret,
		   char error[BOOT_ERROR_MAX])
{
	u64 bytes;
	void *p;
	int r = file_bytes(fd, "flat image", &bytes, error);

	if (r < 0)
		return r;
	p = bytes ? memory_at(m, LAYOUT_KERNEL, bytes) : NULL;
	if (!p)
		return boot_bad(error,
				"the flat image has %llu bytes, which do not fit into --memory",
				(unsigned long long)bytes);
	r = boot_read(fd, p, bytes, 0, "flat image", error);
	if (r == 0)
		*ret = (struct boot_entry){ .long_mode = true,
					    .user = true,
					    .rip = LAYOUT_KERNEL,
					    .rdi = m->ram_bytes,
					    .rsp = LAYOUT_BOOT_STACK };
	return r;
}

int boot_load(const struct guest_memory *m, const struct boot_source *src, struct boot_entry *ret,
	      char error[BOOT_ERROR_MAX])
{
	u8 head[HDRS_OFFSET + 4] = { 0 };
	u64 bytes;
	int r = file_bytes(src->kernel_fd, "kernel", &bytes, error);

	if (r < 0)
		return r;
	/* What is written below without asking: all of low memory. */
	if (!memory_at(m, 0, LAYOUT_KERNEL))
		return boot_bad(error, "a kernel needs more than 1 MiB of --memory");
	r = boot_read(src->kernel_fd, head, MIN(bytes, sizeof(head)), 0, "kernel", error);
	if (r < 0)
		return r;
	if (memcmp(head, ELFMAG, SELFMAG) == 0)
		return boot_load_elf(m, src, bytes, ret, error);
	if (memcmp(head + HDRS_OFFSET, "HdrS", 4) == 0)
		return boot_load_bzimage(m, src, bytes, ret, error);
	return boot_bad(error, "the kernel is neither a bzImage nor an ELF file");
}
