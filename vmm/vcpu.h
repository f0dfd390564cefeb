/* SPDX-License-Identifier: MIT */
/*
 * Virtual processors. Each has a thread that alternates between KVM_RUN and the bus. It parks, that
 * is waits outside KVM with no access half done, while vm->stop_vcpus is set; then the main thread
 * may read and write its state.
 *
 *	new (parked) -> start -> running <-> parked -> free
 */
#ifndef BALLAST_VMM_VCPU_H
#define BALLAST_VMM_VCPU_H

#include <linux/kvm.h>
#include "vmm/vm.h"

#define VCPU_MSRS_MAX 512

struct vcpu {
	struct vm *vm;
	u32 index; /* and APIC id */
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started, quit; /* quit: under vm->lock */
	_Atomic u64 exits[VM_EXIT_REASONS];
};

/* All that KVM keeps of one. Plain memory: a snapshot writes it as it is, and checks it when it
 * comes back. */
struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_debugregs debugregs;
	struct kvm_xcrs xcrs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_lapic_state lapic;
	u32 nr_msrs, xsave_bytes;
	struct kvm_msr_entry msrs[VCPU_MSRS_MAX];
	u8 xsave[16384]; /* KVM_CAP_XSAVE2 says how much of it; AMX needs 11 KiB */
};

int vcpu_new(struct vm *vm, u32 index, struct vcpu **ret);
int vcpu_start(struct vcpu *v);
/* Ends the thread first. NULL is fine. */
void vcpu_free(struct vcpu *v);

/* Makes it leave the guest soon. From any thread. */
void vcpu_kick(struct vcpu *v);
/* Once, before the first vCPU starts: the signal by which vcpu_kick() works. */
int vcpu_init_signal(void);

/* On the main thread, while it is parked. */
int vcpu_get_state(const struct vcpu *v, struct vcpu_state *ret);
/* @tsc false: the time stamp counter goes on as it is (a reset). -EINVAL: KVM refuses it. */
int vcpu_set_state(const struct vcpu *v, const struct vcpu_state *s, bool tsc);

/* cpu.c: what the processor says it is, and the model-specific registers that firmware would set.
 */
int cpu_setup(const struct vcpu *v);
/* The MSRs that KVM says make up a vCPU's state. Returns how many, or negative errno. */
int cpu_msr_list(int kvm_fd, u32 *ret, u32 max);

#endif
