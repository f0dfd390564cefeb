/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "common/clock.h"
#include "vmm/console.h"
#include "vmm/devices.h"
#include "vmm/guest.h"
#include "vmm/machine.h"
#include "vmm/monitor.h"
#include "vmm/sandbox.h"
#include "vmm/vcpu.h"
#include "vmm/virtio.h"

void vm_log(const struct vm *vm, const char *fmt, ...)
{
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	/* One write, so that lines of several threads do not mix. */
	fprintf(stderr, "ballast-vmm %s: %s\n", vm->name, line);
}

int vm_fail(char *error, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error, VM_ERROR_MAX, fmt, ap);
	va_end(ap);
	return r;
}

/* --- pausing and ending ------------------------------------------------------------------------
 */

static void stop_vcpus(struct vm *vm, bool wait)
{
	pthread_mutex_lock(&vm->lock);
	vm->stop_vcpus = true;
	for (u32 i = 0; i < vm->nr_vcpus; i++)
		vcpu_kick(vm->vcpus[i]);
	while (wait && vm->nr_parked < vm->nr_vcpus)
		pthread_cond_wait(&vm->parked, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

static void let_vcpus_run(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->stop_vcpus = false;
	pthread_cond_broadcast(&vm->parked);
	pthread_mutex_unlock(&vm->lock);
}

void vm_end(struct vm *vm, enum vm_end why, const char *reason)
{
	int none = VM_END_NONE;
	u64 one = 1;

	if (!atomic_compare_exchange_strong(&vm->end, &none, (int)why))
		return;
	vm->end_reason = reason;
	/* The guest does nothing after it asked for its end. */
	stop_vcpus(vm, false);
	if (write(vm->wake_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd that was just made cannot be full */
}

int vm_pause(struct vm *vm)
{
	if (vm->state == VM_PAUSED || vm->state == VM_PRELAUNCH)
		return 0;
	if (vm->state != VM_RUNNING)
		return -EINVAL;
	stop_vcpus(vm, true);
	for (u32 i = 0; i < vm->nr_devices; i++)
		virtio_quiesce(vm->devices[i]);
	vm->state = VM_PAUSED;
	monitor_event(vm->monitor, "STOP", NULL);
	return 0;
}

int vm_resume(struct vm *vm)
{
	if (vm->state == VM_RUNNING)
		return 0;
	if (vm->state == VM_ENDED)
		return -EINVAL;
	/* So that the guest's watchdogs do not take the pause for a hang; fails where the guest
	 * does not use kvmclock. */
	for (u32 i = 0; i < vm->nr_vcpus; i++)
		ioctl(vm->vcpus[i]->fd, KVM_KVMCLOCK_CTRL, 0);
	if (vm->state == VM_PAUSED) {
		for (u32 i = 0; i < vm->nr_devices; i++)
			virtio_resume(vm->devices[i]);
	}
	if (!vm->start_us)
		vm->start_us = now_us() - vm->created_us;
	vm->state = VM_RUNNING;
	monitor_event(vm->monitor, "RESUME", NULL);
	if (vm->end == VM_END_NONE)
		let_vcpus_run(vm);
	return 0;
}

/* --- what devices call -------------------------------------------------------------------------
 */

void vm_irq(struct vm *vm, u32 gsi, bool level)
{
	struct kvm_irq_level irq = { .irq = gsi, .level = level };

	/* Fails only for a line that does not exist. */
	ioctl(vm->vm_fd, KVM_IRQ_LINE, &irq);
}

static void serial_irq(void *arg, bool level)
{
	vm_irq(arg, LAYOUT_IRQ_SERIAL, level);
}

static bool serial_transmit(void *arg, u8 byte)
{
	struct vm *vm = arg;

	return console_put(vm->console, byte);
}

static void serial_input_ready(void *arg)
{
	struct vm *vm = arg;

	console_input_ready(vm->console);
}

static size_t console_input(void *arg, const u8 *data, size_t bytes)
{
	struct vm *vm = arg;

	return serial_input(&vm->serial, data, bytes);
}

static void console_output_ready(void *arg)
{
	struct vm *vm = arg;

	serial_output_ready(&vm->serial);
}

static void console_quit(void *arg)
{
	vm_end(arg, VM_END_POWEROFF, "host-ui");
}

static void sci_irq(void *arg, bool level)
{
	vm_irq(arg, LAYOUT_IRQ_SCI, level);
}

static void guest_poweroff(void *arg)
{
	vm_end(arg, VM_END_POWEROFF, "guest-shutdown");
}

static void guest_reset(void *arg)
{
	vm_end(arg, VM_END_REBOOT, "guest-reset");
}

/* --- building ----------------------------------------------------------------------------------
 */

static void agent_log(void *arg, const char *line)
{
	vm_log(arg, "%s", line);
}

static int create_memory(struct vm *vm, char *error)
{
	const struct vm_config *cfg = vm->cfg;
	struct bh_config bh = { .socket_path = cfg->agent_socket,
				.name = vm->name,
				.uuid = cfg->uuid,
				.pins_exactly = true,
				.log = agent_log,
				.log_arg = vm };
	const char *why = NULL;
	int r = memory_init(&vm->mem, cfg->memory_bytes, cfg->hotplug_bytes);

	if (r < 0)
		return vm_fail(error, r, "no memory for the guest: %s", strerror(-r));
	for (u32 i = 0; i < vm->mem.nr_slots; i++) {
		const struct memory_slot *s = &vm->mem.slots[i];
		struct kvm_userspace_memory_region region = { .slot = i,
							      .guest_phys_addr = s->gpa,
							      .memory_size = s->bytes,
							      .userspace_addr = (uintptr_t)s->hva };

		if (ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
			return vm_fail(error, -errno, "KVM refuses the guest's memory: %s",
				       strerror(errno));
	}
	if (cfg->no_agent)
		return 0;
	r = memory_attach(&vm->mem, &bh, &why);
	if (why)
		vm_log(vm, "memory is not shared: %s", why);
	return r;
}

static int create_vcpus(struct vm *vm, char *error)
{
	int r = vcpu_init_signal();

	/* The topology is part of each one's CPUID. */
	vm->stop_vcpus = true;
	for (u32 i = 0; i < vm->cfg->cpus && r == 0; i++) {
		r = vcpu_new(vm, i, &vm->vcpus[i]);
		if (r == 0)
			vm->nr_vcpus++;
	}
	for (u32 i = 0; i < vm->nr_vcpus && r == 0; i++)
		r = cpu_setup(vm->vcpus[i]);
	if (r < 0)
		return vm_fail(error, r, "cannot create the vCPUs: %s", strerror(-r));
	return 0;
}

static const struct console_client console_client_ops = {
	.input = console_input,
	.output_ready = console_output_ready,
	.quit = console_quit,
};

/* The tables with a pointer to the VM in them. */
struct backends {
	struct serial_backend serial;
	struct pm_backend pm;
	struct console_client console;
};

/* What is always there. */
static int create_board(struct vm *vm, char *error)
{
	struct backends *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return vm_fail(error, -ENOMEM, "out of memory");
	vm->backends = b;
	b->serial = (struct serial_backend){ .irq = serial_irq,
					     .transmit = serial_transmit,
					     .input_ready = serial_input_ready,
					     .arg = vm };
	b->pm = (struct pm_backend){
		.irq = sci_irq, .poweroff = guest_poweroff, .reset = guest_reset, .arg = vm
	};
	b->console = console_client_ops;
	b->console.arg = vm;
	serial_init(&vm->serial, &b->serial);
	r = bus_add(&vm->ports, LAYOUT_PORT_SERIAL, SERIAL_PORTS, &serial_bus_ops, &vm->serial);
	if (r == 0)
		r = pm_init(&vm->pm, &vm->ports, &b->pm);
	if (r == 0)
		r = console_new(vm->loop, &b->console, &vm->console);
	if (r < 0)
		return vm_fail(error, r, "cannot create the console: %s", strerror(-r));
	return 0;
}

/* --- main loop ---------------------------------------------------------------------------------
 */

/* The guest asked for a reset: all as it was when the machine was new. */
static int reset(struct vm *vm, char *error)
{
	int r = 0;

	stop_vcpus(vm, true);
	for (u32 i = 0; i < vm->nr_devices; i++)
		virtio_reset(vm->devices[i]);
	for (u32 i = 0; i < vm->mem.nr_slots && r == 0; i++)
		r = memory_discard(&vm->mem, vm->mem.slots[i].gpa, vm->mem.slots[i].bytes);
	if (r == 0)
		r = machine_reset(vm, vm->reset_state);
	if (r < 0)
		return vm_fail(error, r, "cannot reset the machine: %s", strerror(-r));
	r = guest_load(vm, error);
	if (r < 0)
		return r;
	vm->nr_resets++;
	vm->end = VM_END_NONE;
	if (vm->state == VM_RUNNING)
		let_vcpus_run(vm);
	return 0;
}

static json_t *end_data(const struct vm *vm)
{
	return json_pack("{s:b,s:s}", "guest", strncmp(vm->end_reason, "guest", 5) == 0, "reason",
			 vm->end_reason);
}

static int on_wake(sd_event_source *s, int fd, uint32_t events, void *arg)
{
	struct vm *vm = arg;
	char error[VM_ERROR_MAX];
	u64 n;

	if (read(fd, &n, sizeof(n)) < 0 || vm->end == VM_END_NONE)
		return 0;
	if (vm->end == VM_END_REBOOT && !vm->cfg->no_reboot && vm->kernel_fd >= 0) {
		monitor_event(vm->monitor, "RESET", end_data(vm));
		if (reset(vm, error) == 0)
			return 0;
		vm_log(vm, "%s", error);
		vm->end = VM_END_FAILED;
	}
	if (vm->end == VM_END_REBOOT && !vm->cfg->no_reboot && vm->kernel_fd < 0)
		vm_log(vm, "the guest reboots, and there is no --kernel to start");
	stop_vcpus(vm, true);
	vm->state = VM_ENDED;
	monitor_event(vm->monitor, "SHUTDOWN", end_data(vm));
	return sd_event_exit(vm->loop, vm->end);
}

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	vm_end(arg, VM_END_POWEROFF, "host-signal");
	return 0;
}

static int create_loop(struct vm *vm, char *error)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	sigset_t set;
	int r;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i]);
	/* Before any thread exists: all inherit it, and the loop's signalfd gets them. */
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	r = sd_event_new(&vm->loop);
	for (size_t i = 0; i < ARRAY_SIZE(signals) && r >= 0; i++)
		r = sd_event_add_signal(vm->loop, NULL, signals[i], on_signal, vm);
	if (r >= 0) {
		vm->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = vm->wake_fd < 0 ? -errno : 0;
	}
	if (r >= 0)
		r = sd_event_add_io(vm->loop, NULL, vm->wake_fd, EPOLLIN, on_wake, vm);
	return r < 0 ? vm_fail(error, r, "cannot create the main loop: %s", strerror(-r)) : 0;
}

static int build(struct vm *vm, char *error)
{
	int r;

	r = create_loop(vm, error);
	if (r == 0)
		r = guest_open_images(vm, error);
	if (r == 0)
		r = kvm_create_chips(vm, error);
	if (r == 0)
		r = create_memory(vm, error);
	if (r == 0)
		r = create_vcpus(vm, error);
	if (r == 0)
		r = create_board(vm, error);
	if (r == 0)
		r = devices_add(vm, error);
	if (r < 0)
		return r;
	r = machine_reset_state(vm, &vm->reset_state);
	if (r < 0)
		return vm_fail(error, r, "cannot read the machine's state: %s", strerror(-r));
	r = vm->cfg->restore ? guest_restore(vm, error) : guest_load(vm, error);
	if (r == 0 && vm->cfg->qmp) {
		r = monitor_watch_balloon(vm);
		if (r == 0)
			r = monitor_new(vm, vm->cfg->qmp, &vm->monitor);
		if (r < 0)
			vm_fail(error, r, "cannot listen on --qmp %s: %s", vm->cfg->qmp,
				strerror(-r));
	}
	for (u32 i = 0; i < vm->nr_vcpus && r == 0; i++) {
		r = vcpu_start(vm->vcpus[i]);
		if (r < 0)
			vm_fail(error, r, "cannot start the vCPUs: %s", strerror(-r));
	}
	if (r == 0 && !vm->cfg->no_sandbox) {
		r = sandbox_lock();
		if (r < 0)
			vm_fail(error, r, "cannot install the seccomp filter: %s", strerror(-r));
	}
	return r;
}

int vm_new(const struct vm_config *cfg, struct vm **ret, enum vm_end *ret_end,
	   char error[VM_ERROR_MAX])
{
	struct vm *vm = calloc(1, sizeof(*vm));
	int r;

	*ret_end = VM_END_FAILED;
	if (!vm)
		return vm_fail(error, -ENOMEM, "out of memory");
	vm->kvm_fd = vm->vm_fd = vm->wake_fd = vm->kernel_fd = vm->initrd_fd = -1;
	vm->created_us = now_us();
	vm->cfg = cfg;
	vm->end = VM_END_NONE;
	snprintf(vm->name, sizeof(vm->name), "%s", cfg->name);
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->parked, NULL);
	r = kvm_open(vm, error);
	if (r < 0)
		*ret_end = VM_END_NO_KVM;
	else
		r = build(vm, error);
	if (r < 0) {
		vm_free(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

enum vm_end vm_run(struct vm *vm)
{
	int r;

	if (!vm->cfg->paused) {
		r = vm_resume(vm);
		if (r < 0)
			return VM_END_FAILED;
	}
	r = sd_event_loop(vm->loop);
	if (r < 0) {
		vm_log(vm, "the main loop failed: %s", strerror(-r));
		return VM_END_FAILED;
	}
	return (enum vm_end)r;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void vm_free(struct vm *vm)
{
	if (!vm)
		return;
	stop_vcpus(vm, false);
	for (u32 i = 0; i < vm->nr_vcpus; i++)
		vcpu_free(vm->vcpus[i]);
	for (u32 i = 0; i < vm->nr_devices; i++)
		virtio_free(vm->devices[i]);
	monitor_free(vm->monitor);
	sd_event_source_disable_unref(vm->balloon_timer);
	console_free(vm->console);
	free(vm->backends);
	free(vm->reset_state);
	memory_free(&vm->mem);
	sd_event_unref(vm->loop);
	close_fd(vm->kernel_fd);
	close_fd(vm->initrd_fd);
	close_fd(vm->wake_fd);
	close_fd(vm->vm_fd);
	close_fd(vm->kvm_fd);
	pthread_cond_destroy(&vm->parked);
	pthread_mutex_destroy(&vm->lock);
	free(vm);
}
