/* SPDX-License-Identifier: MIT */
/*
 * CPUID: what KVM supports on this host, less what a snapshot could not carry (nested
 * virtualization, performance counters), with a topology of one socket of single-threaded cores.
 */
#include <asm/kvm.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include "vmm/vcpu.h"

#define CPUID_MAX	      256

#define BIT(n)		      (1u << (n))
#define L1_ECX_VMX	      BIT(5)
#define L1_ECX_PDCM	      BIT(15)
#define L1_ECX_TSC_DEADLINE   BIT(24)
#define L1_ECX_HYPERVISOR     BIT(31)
#define L1_EDX_HTT	      BIT(28)
#define LX1_ECX_CMP_LEGACY    BIT(1)
#define LX1_ECX_SVM	      BIT(2)
#define LX1_ECX_PERFCTR	      (BIT(23) | BIT(24) | BIT(28))
#define LEVEL_SMT	      1
#define LEVEL_CORE	      2

#define MSR_MTRR_DEF_TYPE     0x2ff
#define MTRR_ENABLE_WRITEBACK (BIT(11) | 6)
#define MSR_MISC_ENABLE	      0x1a0
#define MISC_ENABLE_FAST_STR  1

/* Bits of an APIC id that number @nr cores. */
static u32 core_bits(u32 nr)
{
	u32 bits = 0;

	while (1u << bits < nr)
		bits++;
	return bits;
}

/* Intel SDM 2A, CPUID leaf 0BH and 1FH; AMD has the same 0BH. */
static void topology_leaf(struct kvm_cpuid_entry2 *e, const struct vcpu *v)
{
	u32 nr = v->vm->nr_vcpus;

	e->eax = e->ebx = 0;
	e->ecx = e->index & 0xff;
	e->edx = v->index;
	if (e->index == 0) {
		e->ebx = 1;
		e->ecx |= LEVEL_SMT << 8;
	} else if (e->index == 1) {
		e->eax = core_bits(nr);
		e->ebx = nr;
		e->ecx |= LEVEL_CORE << 8;
	}
}

/* Threads that share a cache, less one: one core each, but for the last level. */
static u32 cache_sharing(u32 level, u32 nr)
{
	return level >= 3 ? (1u << core_bits(nr)) - 1 : 0;
}

static void patch(struct kvm_cpuid_entry2 *e, const struct vcpu *v, bool tsc_deadline)
{
	u32 nr = v->vm->nr_vcpus;

	switch (e->function) {
	case 1:
		e->ebx = (e->ebx & 0xffff) | v->index << 24 | nr << 16;
		e->ecx |= L1_ECX_HYPERVISOR | (tsc_deadline ? L1_ECX_TSC_DEADLINE : 0);
		e->ecx &= ~(L1_ECX_VMX | L1_ECX_PDCM);
		e->edx = nr > 1 ? e->edx | L1_EDX_HTT : e->edx & ~L1_EDX_HTT;
		break;
	case 4:
		e->eax &= ~(0x3fu << 26 | 0xfffu << 14);
		if (e->eax & 0x1f)
			e->eax |= ((1u << core_bits(nr)) - 1) << 26 |
				  cache_sharing(e->eax >> 5 & 7, nr) << 14;
		break;
	case 0xa: /* performance counters */
	case 0x80000022:
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0xb:
	case 0x1f:
		topology_leaf(e, v);
		break;
	case 0x80000001:
		e->ecx &= ~(LX1_ECX_SVM | LX1_ECX_PERFCTR | LX1_ECX_CMP_LEGACY);
		e->ecx |= nr > 1 ? LX1_ECX_CMP_LEGACY : 0;
		break;
	case 0x80000008:
		e->ecx = (e->ecx & ~0xf0ffu) | core_bits(nr) << 12 | (nr - 1);
		break;
	case 0x8000000a: /* SVM's features */
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0x8000001d:
		e->eax &= ~(0xfffu << 14);
		e->eax |= cache_sharing(e->eax >> 5 & 7, nr) << 14;
		break;
	case 0x8000001e:
		e->eax = v->index;
		e->ebx = v->index & 0xff; /* one thread a core */
		e->ecx = 0;		  /* one node */
		break;
	default:
		break;
	}
}

static int set_cpuid(const struct vcpu *v)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + CPUID_MAX * sizeof(c->entries[0]));
	bool tsc_deadline = ioctl(v->vm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) >
			    0;
	int r;

	if (!c)
		return -ENOMEM;
	c->nent = CPUID_MAX;
	r = ioctl(v->vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, c) < 0 ? -errno : 0;
	if (r == 0) {
		for (u32 i = 0; i < c->nent; i++)
			patch(&c->entries[i], v, tsc_deadline);
		r = ioctl(v->fd, KVM_SET_CPUID2, c) < 0 ? -errno : 0;
	}
	free(c);
	return r;
}

int cpu_setup(const struct vcpu *v)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry entries[2];
	} msrs = {
		.h.nmsrs = 2,
		.entries = {
			/* Without MTRRs older kernels do without PAT too. */
			{ .index = MSR_MTRR_DEF_TYPE, .data = MTRR_ENABLE_WRITEBACK },
			{ .index = MSR_MISC_ENABLE, .data = MISC_ENABLE_FAST_STR },
		},
	};
	int r = set_cpuid(v);

	if (r < 0)
		return r;
	/* Returns how many it set; the guest runs without them, too. */
	return ioctl(v->fd, KVM_SET_MSRS, &msrs) < 0 ? -errno : 0;
}

int cpu_msr_list(int kvm_fd, u32 *ret, u32 max)
{
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + max * sizeof(list->indices[0]));
	int r;

	if (!list)
		return -ENOMEM;
	list->nmsrs = max;
	r = ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, list) < 0 ? -errno : (int)list->nmsrs;
	for (int i = 0; i < r; i++)
		ret[i] = list->indices[i];
	free(list);
	return r;
}
