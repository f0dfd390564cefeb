/* SPDX-License-Identifier: MIT */
/* The parts of the flat test VMM. flat_vmm.c has the story. Functions return 0 or a negative errno.
 */
#ifndef BALLAST_TESTS_LIVE_FLAT_VMM_H
#define BALLAST_TESTS_LIVE_FLAT_VMM_H

#include <pthread.h>
#include "hypervisor-hooks/hooks.h"
#include "tests/live/flat/abi.h"

#define FLAT_MAX_VCPUS 2
#define FLAT_LANES     (FLAT_MAX_VCPUS + 1) /* and the device's, always the last */

struct flat_options {
	const char *name, *socket;
	u32 seconds, nr_pages, seed, nr_vcpus, write_permille, dwell_ms;
	bool discard, no_agent, threads, corrupt;
};

/* Who runs a lane. The lane itself belongs to the guest; what others may look at is copied here at
 * each tick. */
struct flat_runner {
	struct flat_vm *vm;
	struct flat_lane *lane;
	struct flat_vcpu *vcpu; /* NULL: hosted */
	pthread_t thread;

	pthread_mutex_t lock;
	struct flat_lane seen; /* the lane at its last tick */
	u64 ticks, last_tick_us, max_stall_us;
	u64 call_errors;
	bool resting; /* between two rounds on purpose, not stalled */
	bool ended;
};

struct flat_vm {
	struct flat_options opt;
	u8 *ctl; /* page tables, code, lanes, shadows: not Ballast's */
	u8 *ram; /* Ballast's */
	struct flat_kvm *kvm;
	struct bh_agent *agent;
	int disk_fd; /* memfd: page N is content N */
	u64 start_us;
	bool stop; /* atomic */
	struct flat_runner runner[FLAT_LANES];
	u32 nr_runners; /* the device is the last of them */
};

static inline size_t flat_ram_bytes(const struct flat_vm *vm)
{
	return (size_t)vm->opt.nr_pages << PAGE_SHIFT;
}

/* memory.c: allocation, contents, who owns which block. */
void *flat_alloc(size_t bytes); /* 2 MiB aligned private anonymous memory; NULL if there is none */
int flat_memory_new(struct flat_vm *vm);
/* Every word of every page, by the caller's thread when no lane runs. Returns the number of wrong
 * ones. */
u64 flat_memory_check(struct flat_vm *vm);

/* device.c: the host's own accesses to guest memory, as a device model makes them. */
int flat_device_new(struct flat_vm *vm);
void flat_device_round(struct flat_vm *vm, struct flat_runner *r);
/* A disk read into guest page @p. */
int flat_device_read(struct flat_vm *vm, u64 p, u64 content);
/* Flips bits in guest memory behind the guest's back; all checks must notice. */
void flat_device_corrupt(struct flat_vm *vm);

/* outside.c: what the kernel says of the VM's memory. */
struct flat_sharing {
	u64 mappings;	  /* of the store */
	u64 shared_pages; /* in them, and still the store's */
	u64 broken_pages; /* in them, but written since */
};
int flat_sharing(const struct flat_vm *vm, struct flat_sharing *ret);

/* kvm.c */
struct flat_kvm;
struct flat_vcpu;
/* Runs a CPL 3 guest of two instructions. 0, or why it cannot, in *ret_why too. */
int flat_kvm_probe(const char **ret_why);
int flat_kvm_new(u8 *ctl, u8 *ram, size_t ram_bytes, struct flat_kvm **ret);
/* The guest's code is put in place; the vCPU starts with @lane_gpa as its argument. */
int flat_vcpu_new(struct flat_kvm *kvm, u32 index, u64 lane_gpa, struct flat_vcpu **ret);
/* Runs until the guest's next OUT. -EIO: another exit (*ret_call is its reason); else the errno of
 * KVM_RUN. */
int flat_vcpu_run(struct flat_vcpu *v, u32 *ret_call);

#endif
