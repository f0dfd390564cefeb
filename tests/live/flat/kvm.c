// SPDX-License-Identifier: MIT
/*
 * A KVM machine with nothing in it but memory and vCPUs in 64-bit CPL 3, with IOPL 3 so that an OUT
 * leaves it. There is no interrupt table: any fault of the guest ends in KVM_EXIT_SHUTDOWN, which
 * is an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
#include "tests/live/flat/vmm.h"

extern const u8 flat_guest_image[], flat_guest_image_end[];
asm(".pushsection .rodata\n"
    ".balign 16\n"
    "flat_guest_image: .incbin \"" FLAT_GUEST_BIN "\"\n"
    "flat_guest_image_end: .byte 0\n"
    ".popsection");

#define PDE_FLAGS   0x87UL /* present, writable, user, 2 MiB */
#define TABLE_FLAGS 0x07UL
#define NR_CPUID    256

struct flat_kvm {
	int dev_fd, vm_fd;
	u8 *ctl;
};

struct flat_vcpu {
	int fd;
	struct kvm_run *run;
};

static int set_memory(const struct flat_kvm *k, u32 slot, u64 gpa, u8 *hva, size_t bytes)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (u64)hva,
	};

	return ioctl(k->vm_fd, KVM_SET_USER_MEMORY_REGION, &r) ? -errno : 0;
}

static void map_identity(u8 *ctl)
{
	u64 *pml4 = (u64 *)(ctl + FLAT_PML4_GPA), *pdpt = (u64 *)(ctl + FLAT_PDPT_GPA);
	u64 *pd = (u64 *)(ctl + FLAT_PD_GPA);

	pml4[0] = FLAT_PDPT_GPA | TABLE_FLAGS;
	for (u64 i = 0; i < FLAT_MAX_GIB; i++)
		pdpt[i] = (FLAT_PD_GPA + i * PAGE_BYTES) | TABLE_FLAGS;
	for (u64 i = 0; i < FLAT_MAX_GIB * 512; i++)
		pd[i] = i << CHUNK_SHIFT | PDE_FLAGS;
}

static void kvm_free(struct flat_kvm *k)
{
	if (k->vm_fd >= 0)
		close(k->vm_fd);
	if (k->dev_fd >= 0)
		close(k->dev_fd);
	free(k);
}

int flat_kvm_new(u8 *ctl, u8 *ram, size_t ram_bytes, struct flat_kvm **ret)
{
	struct flat_kvm *k = calloc(1, sizeof(*k));
	int r;

	if (!k)
		return -ENOMEM;
	k->ctl = ctl;
	k->vm_fd = -1;
	k->dev_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (k->dev_fd < 0)
		goto fail_errno;
	k->vm_fd = ioctl(k->dev_fd, KVM_CREATE_VM, 0);
	if (k->vm_fd < 0)
		goto fail_errno;
	/* Intel wants a place for a TSS under 4 GiB that no memory slot uses. Elsewhere this is a
	 * no-op. */
	ioctl(k->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	map_identity(ctl);
	r = set_memory(k, 0, 0, ctl, FLAT_CTL_BYTES);
	if (r == 0)
		r = set_memory(k, 1, FLAT_RAM_GPA, ram, ram_bytes);
	if (r)
		goto fail;
	*ret = k;
	return 0;

fail_errno:
	r = -errno;
fail:
	kvm_free(k);
	return r;
}

static int set_registers(const struct flat_kvm *k, int fd, u32 index, u64 lane_gpa)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[NR_CPUID];
	} *cpuid = calloc(1, sizeof(*cpuid));
	struct kvm_segment code = {
		.limit = 0xffffffff,
		.selector = 0x33,
		.type = 11,
		.present = 1,
		.dpl = 3,
		.s = 1,
		.l = 1,
		.g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff,
		.selector = 0x2b,
		.type = 3,
		.present = 1,
		.dpl = 3,
		.db = 1,
		.s = 1,
		.g = 1,
	};
	struct kvm_regs regs = {
		.rip = FLAT_CODE_GPA,
		.rflags = 0x3002, /* IOPL 3 */
		/* As after a call: 16-byte aligned before the return address. */
		.rsp = FLAT_STACK_GPA - index * FLAT_STACK_BYTES - 8,
		.rdi = lane_gpa,
	};
	struct kvm_sregs s;
	int r = -ENOMEM;

	if (!cpuid)
		return r;
	cpuid->head.nent = NR_CPUID;
	if (ioctl(k->dev_fd, KVM_GET_SUPPORTED_CPUID, cpuid) || ioctl(fd, KVM_SET_CPUID2, cpuid) ||
	    ioctl(fd, KVM_GET_SREGS, &s))
		goto fail_errno;
	s.cr3 = FLAT_PML4_GPA;
	s.cr4 = 0x620;	    /* PAE, OSFXSR, OSXMMEXCPT */
	s.cr0 = 0x80050033; /* PG, AM, WP, NE, ET, MP, PE */
	s.efer = 0x500;	    /* LMA, LME */
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	if (ioctl(fd, KVM_SET_SREGS, &s) || ioctl(fd, KVM_SET_REGS, &regs))
		goto fail_errno;
	free(cpuid);
	return 0;

fail_errno:
	r = -errno;
	free(cpuid);
	return r;
}

static void vcpu_free(struct flat_vcpu *v)
{
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

int flat_vcpu_new(struct flat_kvm *k, u32 index, u64 lane_gpa, struct flat_vcpu **ret)
{
	struct flat_vcpu *v = calloc(1, sizeof(*v));
	void *run;
	int r, bytes;

	if (!v)
		return -ENOMEM;
	memcpy(k->ctl + FLAT_CODE_GPA, flat_guest_image, flat_guest_image_end - flat_guest_image);
	v->fd = ioctl(k->vm_fd, KVM_CREATE_VCPU, index);
	if (v->fd < 0)
		goto fail_errno;
	bytes = ioctl(k->dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (bytes < 0)
		goto fail_errno;
	run = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (run == MAP_FAILED)
		goto fail_errno;
	v->run = run;
	r = set_registers(k, v->fd, index, lane_gpa);
	if (r) {
		munmap(run, bytes);
		goto fail;
	}
	*ret = v;
	return 0;

fail_errno:
	r = -errno;
fail:
	vcpu_free(v);
	return r;
}

int flat_vcpu_run(struct flat_vcpu *v, u32 *ret_call)
{
	if (ioctl(v->fd, KVM_RUN, 0))
		return -errno;
	if (v->run->exit_reason == KVM_EXIT_IO) {
		*ret_call = v->run->io.port;
		return 0;
	}
	*ret_call = v->run->exit_reason;
	return -EIO;
}

static void on_alarm(int sig)
{
}

int flat_kvm_probe(const char **ret_why)
{
	/* mov $1, %eax; out %eax, $FLAT_CALL_TICK; jmp . */
	static const u8 code[] = { 0xb8, 1, 0, 0, 0, 0xe7, FLAT_CALL_TICK, 0xeb, 0xfe };
	/* A KVM that emulates the guest, or spins on what it cannot, must not hang the probe. */
	struct itimerval limit = { .it_value.tv_sec = 5 }, none = { 0 };
	struct sigaction act = { .sa_handler = on_alarm }, old;
	u8 *ctl = flat_alloc(FLAT_CTL_BYTES), *ram = flat_alloc(CHUNK_BYTES);
	struct flat_kvm *k = NULL;
	struct flat_vcpu *v = NULL;
	u32 call = 0;
	int r = -ENOMEM;

	*ret_why = "out of memory";
	if (!ctl || !ram)
		goto out;
	*ret_why = "/dev/kvm cannot be opened, or makes no machine";
	r = flat_kvm_new(ctl, ram, CHUNK_BYTES, &k);
	if (r)
		goto out;
	*ret_why = "no vCPU in 64-bit CPL 3";
	r = flat_vcpu_new(k, 0, 0, &v);
	if (r)
		goto out;
	memcpy(ctl + FLAT_CODE_GPA, code, sizeof(code));
	sigaction(SIGALRM, &act, &old);
	setitimer(ITIMER_REAL, &limit, NULL);
	r = flat_vcpu_run(v, &call);
	setitimer(ITIMER_REAL, &none, NULL);
	sigaction(SIGALRM, &old, NULL);
	*ret_why = r == -EINTR ? "the guest does not run (no exit in 5 s)"
			       : "the guest stops at once";
	if (r == 0 && call != FLAT_CALL_TICK)
		r = -EIO;
	if (r == 0)
		*ret_why = "";
out:
	if (v)
		vcpu_free(v);
	if (k)
		kvm_free(k);
	if (ctl)
		munmap(ctl, FLAT_CTL_BYTES);
	if (ram)
		munmap(ram, CHUNK_BYTES);
	return r;
}
