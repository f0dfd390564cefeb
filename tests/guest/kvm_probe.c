/* SPDX-License-Identifier: MIT */
/*
 * Does /dev/kvm run a kernel? Exits with 0 if a tiny VM in 64-bit ring 0 takes a breakpoint trap
 * through its IDT and returns from it, as every Linux kernel does while it boots (text patching);
 * with 1 if not, saying why.
 *
 * The VM runs in a child with a time-out, since a KVM that cannot emulate an instruction may also
 * spin.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "common/types.h"

#define TIMEOUT_MS    2000
#define RAM_BYTES     0x10000
#define CPUID_ENTRIES 256

/* Where things lie in the probe's guest memory. */
enum {
	AT_GDT = 0x1000,
	AT_IDT = 0x2000,
	AT_PML4 = 0x3000,
	AT_PDPT = 0x4000,
	AT_PD = 0x5000,
	AT_CODE = 0x6000,
	AT_HANDLER = 0x6100,
	AT_STACK = 0x8000,
};

#define PORT_TRAPPED  0x81
#define PORT_RETURNED 0x80
#define SEL_CODE      0x08
#define SEL_DATA      0x10

/* int3; out PORT_RETURNED, al; hlt */
static const u8 code[] = { 0xcc, 0xe6, PORT_RETURNED, 0xf4 };
/* out PORT_TRAPPED, al; iretq */
static const u8 handler[] = { 0xe6, PORT_TRAPPED, 0x48, 0xcf };

static int failed(const char *what)
{
	fprintf(stderr, "kvm-probe: %s: %s\n", what, strerror(errno));
	return 1;
}

static void fill_ram(u8 *ram)
{
	u64 *gdt = (u64 *)(ram + AT_GDT), *idt = (u64 *)(ram + AT_IDT);

	gdt[SEL_CODE / 8] = 0x00af9b000000ffff; /* 64-bit code, ring 0 */
	gdt[SEL_DATA / 8] = 0x00cf93000000ffff;
	idt[3 * 2] = (AT_HANDLER & 0xffff) | (SEL_CODE << 16) |
		     (0x8eULL << 40); /* interrupt gate */
	*(u64 *)(ram + AT_PML4) = AT_PDPT | 3;
	*(u64 *)(ram + AT_PDPT) = AT_PD | 3;
	*(u64 *)(ram + AT_PD) = 0x83; /* 2 MiB page at 0 */
	memcpy(ram + AT_CODE, code, sizeof(code));
	memcpy(ram + AT_HANDLER, handler, sizeof(handler));
}

/* Without the host's CPUID the VM has a processor that knows no long mode. */
static int set_cpuid(int kvm, int vcpu)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[CPUID_ENTRIES];
	} cpuid = { .head.nent = CPUID_ENTRIES };

	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0)
		return -1;
	return ioctl(vcpu, KVM_SET_CPUID2, &cpuid);
}

static int set_registers(int vcpu)
{
	struct kvm_segment cs = { .limit = 0xffffffff,
				  .selector = SEL_CODE,
				  .type = 11,
				  .present = 1,
				  .s = 1,
				  .l = 1,
				  .g = 1 };
	struct kvm_segment ds = { .limit = 0xffffffff,
				  .selector = SEL_DATA,
				  .type = 3,
				  .present = 1,
				  .db = 1,
				  .s = 1,
				  .g = 1 };
	struct kvm_regs regs = { .rip = AT_CODE, .rsp = AT_STACK, .rflags = 2 };
	struct kvm_sregs s;

	if (ioctl(vcpu, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.cs = cs;
	s.ds = s.es = s.fs = s.gs = s.ss = ds;
	s.gdt.base = AT_GDT;
	s.gdt.limit = 0xff;
	s.idt.base = AT_IDT;
	s.idt.limit = 0xfff;
	s.cr3 = AT_PML4;
	s.cr4 = 0x20;	    /* PAE */
	s.cr0 = 0x80050033; /* PG, AM, WP, NE, ET, MP, PE */
	s.efer = 0x500;	    /* LMA, LME */
	if (ioctl(vcpu, KVM_SET_SREGS, &s) < 0)
		return -1;
	return ioctl(vcpu, KVM_SET_REGS, &regs);
}

static int run_vm(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = RAM_BYTES };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu, size;
	bool trapped = false;
	struct kvm_run *run;
	u8 *ram;

	if (kvm < 0)
		return failed("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		return failed("KVM_CREATE_VM");
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ram == MAP_FAILED)
		return failed("mmap");
	fill_ram(ram);
	region.userspace_addr = (u64)(uintptr_t)ram;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return failed("KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vcpu < 0 || size < 0)
		return failed("KVM_CREATE_VCPU");
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED || set_cpuid(kvm, vcpu) < 0 || set_registers(vcpu) < 0)
		return failed("vCPU state");

	while (ioctl(vcpu, KVM_RUN, 0) == 0) {
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_TRAPPED) {
			trapped = true;
		} else if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_RETURNED) {
			return trapped ? 0 : 1;
		} else {
			fprintf(stderr, "kvm-probe: exit reason %u\n", run->exit_reason);
			return 1;
		}
	}
	return failed("KVM_RUN");
}

int main(void)
{
	const struct timespec ms = { .tv_nsec = 1000000 };
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return failed("fork");
	if (pid == 0)
		_exit(run_vm());
	for (int i = 0; i < TIMEOUT_MS; i++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
		nanosleep(&ms, NULL);
	}
	fprintf(stderr, "kvm-probe: the VM does not get past its first trap\n");
	kill(pid, SIGKILL);
	return 1;
}
