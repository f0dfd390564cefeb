/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include "vmm/guest.h"

#define KVM_DEVICE "/dev/kvm"

/* What the machine is made of; each is in Linux since long before userfaultfd could do what
 * Ballast needs. */
static const struct {
	int cap;
	const char *name;
} needed_caps[] = {
	{ KVM_CAP_USER_MEMORY, "user memory" },
	{ KVM_CAP_IRQCHIP, "an interrupt controller" },
	{ KVM_CAP_PIT2, "a timer (PIT)" },
	{ KVM_CAP_EXT_CPUID, "CPUID" },
	{ KVM_CAP_IRQFD, "irqfd" },
	{ KVM_CAP_IOEVENTFD, "ioeventfd" },
	{ KVM_CAP_IMMEDIATE_EXIT, "immediate exit" },
	{ KVM_CAP_XSAVE, "XSAVE" },
	{ KVM_CAP_XCRS, "XCRs" },
	{ KVM_CAP_DEBUGREGS, "debug registers" },
	{ KVM_CAP_VCPU_EVENTS, "vCPU events" },
	{ KVM_CAP_ADJUST_CLOCK, "its clock" },
};

int kvm_open(struct vm *vm, char error[VM_ERROR_MAX])
{
	vm->kvm_fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd < 0)
		return vm_fail(error, -errno, "cannot open " KVM_DEVICE ": %s", strerror(errno));
	if (ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return vm_fail(error, -ENOTTY,
			       KVM_DEVICE " is not the KVM that this was built for");
	for (size_t i = 0; i < ARRAY_SIZE(needed_caps); i++) {
		if (ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, needed_caps[i].cap) <= 0)
			return vm_fail(error, -ENOSYS, KVM_DEVICE " lacks %s", needed_caps[i].name);
	}
	vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->vm_fd < 0)
		return vm_fail(error, -errno, "cannot create a VM: %s", strerror(errno));
	return 0;
}

int kvm_create_chips(struct vm *vm, char error[VM_ERROR_MAX])
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	u64 identity_map = LAYOUT_IDENTITY_MAP;

	/* Intel's processors without unrestricted guests need the first two. */
	if (ioctl(vm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0 ||
	    ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, LAYOUT_TSS) < 0 ||
	    ioctl(vm->vm_fd, KVM_CREATE_IRQCHIP, 0) < 0 ||
	    ioctl(vm->vm_fd, KVM_CREATE_PIT2, &pit) < 0)
		return vm_fail(error, -errno, "cannot create the interrupt controllers: %s",
			       strerror(errno));
	return 0;
}
