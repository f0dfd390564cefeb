/* SPDX-License-Identifier: MIT */
/*
 * The machine. How the folder divides it:
 *
 *   main.c, options.c   command line -> struct vm_config
 *   vm.c                life: create, start, pause, resume, stop; the main loop
 *   vcpu.c, cpu.c       vCPU threads and exits; CPUID, MSRs, registers
 *   memory.c            guest RAM and the hooks
 *   boot*.c, acpi.c     kernel images, boot protocols, tables
 *   bus.c               port and MMIO accesses; serial.c, i8042.c, pm.c answer them
 *   virtqueue.c, virtio_mmio.c, virtio_*.c	devices
 *   qmp*.c              control socket;   snapshot.c, state.c   save, restore, clone
 *
 * Threads: the main thread runs one sd-event loop (control socket, console, timers, kicks of
 * devices without a thread of their own); each vCPU has a thread "vcpu-N"; block devices have one
 * each; Ballast's agent has two. @lock guards @state and what says so below; who holds it never
 * waits for a vCPU thread, except vm_pause() which is only called on the main thread.
 */
#ifndef BALLAST_VMM_VM_H
#define BALLAST_VMM_VM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <systemd/sd-event.h>
#include "vmm/bus.h"
#include "vmm/layout.h"
#include "vmm/memory.h"

#define VM_VCPUS_MAX 16

enum vm_state {
	VM_PRELAUNCH, /* built; vCPUs wait for the first resume */
	VM_RUNNING,
	VM_PAUSED,
	VM_ENDED, /* by the guest or by us; why: vm->end */
};

/* Exit status of ballast-vmm, documented in its usage text. */
enum vm_end {
	VM_END_POWEROFF = 0, /* also a quit by the control socket, and a signal */
	VM_END_FAILED = 1,   /* our own failure: said on stderr */
	VM_END_USAGE = 2,
	VM_END_GUEST_CRASH = 3, /* triple fault, or an exit that KVM cannot continue from */
	VM_END_REBOOT = 4,	/* only with --no-reboot; else the machine starts anew */
	VM_END_NO_KVM = 77,	/* this machine has no usable /dev/kvm */
};

struct vcpu;
struct virtio_device;

/* Exits by reason (index: KVM_EXIT_*), counted by each vCPU alone and summed by who asks. */
#define VM_EXIT_REASONS 64

struct vm {
	int kvm_fd, vm_fd;
	struct guest_memory mem;
	struct bus ports, mmio;
	sd_event *loop;

	struct vcpu *vcpus[VM_VCPUS_MAX];
	u32 nr_vcpus;
	struct virtio_device *devices[LAYOUT_VIRTIO_MAX];
	u32 nr_devices;

	pthread_mutex_t lock;
	_Atomic enum vm_state state;
	_Atomic enum vm_end end;
	const struct vm_config *cfg; /* options.h */
	char name[64];
};

/* From any thread: asks the main loop to end the machine. The first one counts. */
void vm_end(struct vm *vm, enum vm_end why);

/* On the main thread. After vm_pause() no vCPU runs guest code and no device has a request under
 * way. */
int vm_pause(struct vm *vm);
int vm_resume(struct vm *vm);

/* One line to stderr, with the VM's name; for what an operator must see. From any thread. */
void vm_log(const struct vm *vm, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
