/* SPDX-License-Identifier: MIT */
/*
 * The machine. How the folder divides it:
 *
 *   main.c, options.c   command line -> struct vm_config
 *   vm.c                life: create, start, pause, resume, reset, stop; the main loop
 *   kvm.c, guest.c      steps of that: KVM and its chips; what a guest begins with
 *   vcpu.c, cpu.c       vCPU threads and exits; CPUID, MSRs, registers
 *   memory.c            guest RAM and the hooks
 *   boot*.c, acpi.c     kernel images, boot protocols, tables
 *   bus.c               port and MMIO accesses; serial.c, pm.c answer them
 *   machine.c           the state of all that is not a vCPU: reset, snapshot
 *   console.c           stdin and stdout
 *   sandbox.c           seccomp, privileges
 *   virtqueue.c, virtio_mmio.c, virtio_*.c	devices
 *   devices.c           which of them a command line asks for
 *   monitor*.c          control socket (QMP)
 *   snapshot.c, state.c save, restore, clone
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
#include "vmm/options.h"
#include "vmm/pm.h"
#include "vmm/serial.h"

#define VM_VCPUS_MAX 16

enum vm_state {
	VM_PRELAUNCH, /* built; vCPUs wait for the first resume */
	VM_RUNNING,
	VM_PAUSED,
	VM_ENDED, /* by the guest or by us; why: vm->end */
};

/* Exit status of ballast-vmm, documented in its usage text. */
enum vm_end {
	VM_END_NONE = -1,
	VM_END_POWEROFF = 0, /* also a quit by the control socket, and a signal */
	VM_END_FAILED = 1,   /* our own failure: said on stderr */
	VM_END_USAGE = 2,
	VM_END_GUEST_CRASH = 3, /* triple fault, or an exit that KVM cannot continue from */
	VM_END_REBOOT = 4,	/* only with --no-reboot; else the machine starts anew */
	VM_END_NO_KVM = 77,	/* this machine has no usable /dev/kvm */
};

struct vcpu;
struct vcpu_state;
struct virtio_device;
struct console;
struct monitor;

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
	struct serial serial;
	struct pm pm;
	struct console *console;
	struct monitor *monitor;	/* NULL: no control socket */
	sd_event_source *balloon_timer; /* monitor_qom.c: the next BALLOON_CHANGE */
	u64 balloon_told_us;

	pthread_mutex_t lock;
	pthread_cond_t parked;	/* a vCPU parked, or may go on; with @lock */
	u32 nr_parked;		/* vCPUs that run no guest code; under @lock */
	atomic_bool stop_vcpus; /* they shall park; written under @lock */
	_Atomic enum vm_state state;
	atomic_int end;		/* enum vm_end, or VM_END_NONE; see vm_end() */
	const char *end_reason; /* written before wake_fd, read after it */
	int wake_fd;		/* eventfd: the main loop looks at @end */

	const struct vm_config *cfg; /* options.h */
	int kernel_fd, initrd_fd;    /* kept open: a reboot reads them again */
	struct machine_state *reset_state;
	struct backends *backends; /* vm.c: what its own devices call */
	u8 generation_id[16];
	u64 nr_resets;
	u64 created_us, start_us; /* start: from vm_new() until vCPUs ran first */
	char name[64];
};

/* Builds the machine of @cfg, ready to run. On failure *ret_end is the exit status that it
 * deserves, and @error one line. @cfg must live as long as the VM. */
#define VM_ERROR_MAX 256
int vm_new(const struct vm_config *cfg, struct vm **ret, enum vm_end *ret_end,
	   char error[VM_ERROR_MAX]);
void vm_free(struct vm *vm); /* NULL is fine */

/* Runs the main loop until the machine ends. */
enum vm_end vm_run(struct vm *vm);

/* From any thread: asks the main loop to end the machine (VM_END_REBOOT: to start it anew, unless
 * --no-reboot). The first one counts. @reason is one of QEMU's, for the SHUTDOWN or RESET event
 * ("guest-shutdown", "host-signal"; those that begin with "guest" are the guest's doing); constant.
 */
void vm_end(struct vm *vm, enum vm_end why, const char *reason);

/* On the main thread. After vm_pause() no vCPU runs guest code and no device has a request under
 * way. Both are 0 when there is nothing to do; -EINVAL: not in a state for it. */
int vm_pause(struct vm *vm);
int vm_resume(struct vm *vm);

/* Sets an interrupt line. From any thread. */
void vm_irq(struct vm *vm, u32 gsi, bool level);

/* Writes the line that explains an error to @error (VM_ERROR_MAX), and returns @r. */
int vm_fail(char *error, int r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* One line to stderr, with the VM's name; for what an operator must see. From any thread. */
void vm_log(const struct vm *vm, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
