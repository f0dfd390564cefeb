/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vmm/vcpu.h"

#define KICK_SIGNAL (SIGRTMIN + 1)

static void on_kick(int sig)
{
	/* Its purpose is that KVM_RUN returns. */
}

int vcpu_init_signal(void)
{
	struct sigaction a = { .sa_handler = on_kick };

	sigemptyset(&a.sa_mask);
	return sigaction(KICK_SIGNAL, &a, NULL) < 0 ? -errno : 0;
}

void vcpu_kick(struct vcpu *v)
{
	/* Before KVM_RUN this stops it, inside it the signal does. */
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (v->started)
		pthread_kill(v->thread, KICK_SIGNAL);
}

int vcpu_new(struct vm *vm, u32 index, struct vcpu **ret)
{
	int r, run_bytes = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct vcpu *v = calloc(1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	v->vm = vm;
	v->index = index;
	v->fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, index);
	if (v->fd < 0 || run_bytes < 0) {
		r = -errno;
		goto fail;
	}
	v->run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		r = -errno;
		v->run = NULL;
		goto fail;
	}
	*ret = v;
	return 0;
fail:
	vcpu_free(v);
	return r;
}

void vcpu_free(struct vcpu *v)
{
	if (!v)
		return;
	if (v->started) {
		pthread_mutex_lock(&v->vm->lock);
		v->quit = true;
		pthread_cond_broadcast(&v->vm->parked);
		pthread_mutex_unlock(&v->vm->lock);
		vcpu_kick(v);
		pthread_join(v->thread, NULL);
	}
	if (v->run)
		munmap(v->run, (size_t)ioctl(v->vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0));
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

/* The guest is at an end that it did not ask for: one line, and where it was. */
static void crash(const struct vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void crash(const struct vcpu *v, const char *fmt, ...)
{
	struct kvm_regs regs = { 0 };
	char what[128];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (ioctl(v->fd, KVM_GET_REGS, &regs) < 0)
		regs.rip = 0;
	vm_log(v->vm, "guest stopped: %s (vCPU %u, rip %#llx)", what, v->index,
	       (unsigned long long)regs.rip);
	vm_end(v->vm, VM_END_GUEST_CRASH, "guest-panic");
}

static void handle_io(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	u8 *data = (u8 *)run + run->io.data_offset;

	/* A string instruction is many accesses to one port. */
	for (u32 i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_IN)
			bus_read(&v->vm->ports, run->io.port, data, run->io.size);
		else
			bus_write(&v->vm->ports, run->io.port, data, run->io.size);
	}
}

static void handle_mmio(struct vcpu *v)
{
	struct kvm_run *run = v->run;

	if (run->mmio.len > sizeof(run->mmio.data))
		return;
	if (run->mmio.is_write)
		bus_write(&v->vm->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
	else
		bus_read(&v->vm->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

static void handle_exit(struct vcpu *v)
{
	struct kvm_run *run = v->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		handle_io(v);
		break;
	case KVM_EXIT_MMIO:
		handle_mmio(v);
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		break;
	case KVM_EXIT_SHUTDOWN:
		/* AMD processors forget where it happened: rip is then the reset vector. */
		crash(v, "triple fault");
		break;
	case KVM_EXIT_FAIL_ENTRY:
		crash(v, "the processor refuses to enter it, hardware reason %#llx",
		      (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		crash(v, "KVM internal error %u", run->internal.suberror);
		break;
	default:
		crash(v, "unexpected KVM exit %u", run->exit_reason);
		break;
	}
}

/* Waits while vCPUs shall not run. False: the thread ends. */
static bool park(struct vcpu *v)
{
	struct vm *vm = v->vm;
	bool quit;

	pthread_mutex_lock(&vm->lock);
	vm->nr_parked++;
	pthread_cond_broadcast(&vm->parked);
	while (vm->stop_vcpus && !v->quit)
		pthread_cond_wait(&vm->parked, &vm->lock);
	quit = v->quit;
	if (!quit)
		vm->nr_parked--;
	pthread_mutex_unlock(&vm->lock);
	return !quit;
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	struct kvm_run *run = v->run;

	while (park(v)) {
		__atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		for (;;) {
			/* It may have been kicked before the line above. */
			if (v->vm->stop_vcpus)
				__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
			if (ioctl(v->fd, KVM_RUN, 0) < 0) {
				/* Here the last access is done, and the state complete. */
				if (errno == EINTR && v->vm->stop_vcpus)
					break;
				if (errno == EINTR || errno == EAGAIN) {
					v->exits[KVM_EXIT_INTR]++;
					__atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
					continue;
				}
				/* A page of guest memory that the host cannot give: poisoned, or
				 * a snapshot's file that was cut short. */
				crash(v, "KVM cannot go on: %s", strerror(errno));
				break;
			}
			v->exits[MIN(run->exit_reason, VM_EXIT_REASONS - 1)]++;
			handle_exit(v);
		}
	}
	return NULL;
}

int vcpu_start(struct vcpu *v)
{
	char name[16];
	sigset_t all, kick, old;
	int r;

	/* Signals are the main thread's, but for the kick. */
	sigfillset(&all);
	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	sigdelset(&all, KICK_SIGNAL);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSYS);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(&v->thread, NULL, vcpu_main, v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0)
		return r;
	v->started = true;
	snprintf(name, sizeof(name), "vcpu-%u", v->index);
	pthread_setname_np(v->thread, name);
	return 0;
}
