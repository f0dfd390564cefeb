/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "vmm/machine.h"
#include "vmm/state.h"
#include "vmm/vcpu.h"

#define IRQCHIPS 3 /* two PICs and the IOAPIC: KVM_IRQCHIP_* */

struct chips {
	struct kvm_irqchip irqchips[IRQCHIPS];
	struct kvm_pit_state2 pit;
};

struct machine_state {
	struct chips chips;
	struct vcpu_state vcpus[];
};

static int get_chips(const struct vm *vm, struct chips *c)
{
	memset(c, 0, sizeof(*c));
	for (u32 i = 0; i < IRQCHIPS; i++) {
		c->irqchips[i].chip_id = i;
		if (ioctl(vm->vm_fd, KVM_GET_IRQCHIP, &c->irqchips[i]) < 0)
			return -errno;
	}
	return ioctl(vm->vm_fd, KVM_GET_PIT2, &c->pit) < 0 ? -errno : 0;
}

static int set_chips(const struct vm *vm, const struct chips *c)
{
	for (u32 i = 0; i < IRQCHIPS; i++) {
		struct kvm_irqchip chip = c->irqchips[i];

		chip.chip_id = i;
		if (ioctl(vm->vm_fd, KVM_SET_IRQCHIP, &chip) < 0)
			return -errno;
	}
	return ioctl(vm->vm_fd, KVM_SET_PIT2, &c->pit) < 0 ? -errno : 0;
}

int machine_reset_state(struct vm *vm, struct machine_state **ret)
{
	struct machine_state *s = calloc(1, sizeof(*s) + vm->nr_vcpus * sizeof(s->vcpus[0]));
	int r;

	if (!s)
		return -ENOMEM;
	r = get_chips(vm, &s->chips);
	for (u32 i = 0; i < vm->nr_vcpus && r == 0; i++)
		r = vcpu_get_state(vm->vcpus[i], &s->vcpus[i]);
	if (r < 0) {
		free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int machine_reset(struct vm *vm, const struct machine_state *s)
{
	int r = set_chips(vm, &s->chips);

	for (u32 i = 0; i < vm->nr_vcpus && r == 0; i++)
		r = vcpu_set_state(vm->vcpus[i], &s->vcpus[i], false);
	if (r == 0) {
		serial_reset(&vm->serial);
		pm_machine_reset(&vm->pm);
	}
	return r;
}

int machine_save(struct vm *vm, struct state_writer *w)
{
	struct kvm_clock_data clock = { 0 };
	struct vcpu_state *s = malloc(sizeof(*s));
	struct chips chips;
	int r;

	if (!s)
		return -ENOMEM;
	r = get_chips(vm, &chips);
	if (r == 0)
		r = state_put(w, "chips", 0, &chips, sizeof(chips));
	if (r == 0 && ioctl(vm->vm_fd, KVM_GET_CLOCK, &clock) < 0)
		r = -errno;
	if (r == 0)
		r = state_put(w, "clock", 0, &clock, sizeof(clock));
	for (u32 i = 0; i < vm->nr_vcpus && r == 0; i++) {
		r = vcpu_get_state(vm->vcpus[i], s);
		if (r == 0)
			r = state_put(w, "vcpu", i, s, sizeof(*s));
	}
	if (r == 0)
		r = serial_save(&vm->serial, w);
	if (r == 0)
		r = pm_save(&vm->pm, w);
	free(s);
	return r;
}

int machine_load(struct vm *vm, const struct state_reader *r)
{
	struct kvm_clock_data clock, set = { 0 };
	struct vcpu_state *s = malloc(sizeof(*s));
	struct chips chips;
	int rc;

	if (!s)
		return -ENOMEM;
	rc = state_get_exact(r, "chips", 0, &chips, sizeof(chips));
	if (rc == 0)
		rc = set_chips(vm, &chips);
	if (rc == 0)
		rc = state_get_exact(r, "clock", 0, &clock, sizeof(clock));
	if (rc == 0) {
		/* The guest's clock goes on where it stopped. The other members are read-only. */
		set.clock = clock.clock;
		rc = ioctl(vm->vm_fd, KVM_SET_CLOCK, &set) < 0 ? -errno : 0;
	}
	for (u32 i = 0; i < vm->nr_vcpus && rc == 0; i++) {
		rc = state_get_exact(r, "vcpu", i, s, sizeof(*s));
		if (rc == 0)
			rc = vcpu_set_state(vm->vcpus[i], s, true);
	}
	if (rc == 0)
		rc = serial_load(&vm->serial, r);
	if (rc == 0)
		rc = pm_load(&vm->pm, r);
	free(s);
	return rc == -ENOENT ? -EBADMSG : rc;
}
