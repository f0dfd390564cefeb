/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include "vmm/acpi.h"
#include "vmm/boot.h"
#include "vmm/guest.h"
#include "vmm/snapshot.h"
#include "vmm/vcpu.h"

/* A new generation: Linux stirs it into its random numbers. */
static int new_generation(struct vm *vm)
{
	if (getrandom(vm->generation_id, sizeof(vm->generation_id), 0) < 0)
		return -errno;
	memcpy(memory_at(&vm->mem, LAYOUT_VMGENID, sizeof(vm->generation_id)), vm->generation_id,
	       sizeof(vm->generation_id));
	return 0;
}

/* Puts kernel and tables into memory, and the first vCPU at its entry. */
int guest_load(struct vm *vm, char error[VM_ERROR_MAX])
{
	struct acpi_config acpi = { .nr_vcpus = vm->nr_vcpus, .nr_virtio = vm->nr_devices };
	struct boot_source src = { .kernel_fd = vm->kernel_fd,
				   .initrd_fd = vm->initrd_fd,
				   .cmdline = vm->cfg->cmdline,
				   .acpi_rsdp = LAYOUT_ACPI };
	struct boot_entry entry;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	int r = vm->cfg->flat ? boot_load_flat(&vm->mem, vm->kernel_fd, &entry, error)
			      : boot_load(&vm->mem, &src, &entry, error);

	if (r < 0)
		return r;
	r = acpi_build(&acpi, LAYOUT_ACPI, memory_at(&vm->mem, LAYOUT_ACPI, LAYOUT_ACPI_BYTES),
		       LAYOUT_ACPI_BYTES);
	if (r == 0)
		r = new_generation(vm);
	if (r < 0)
		return vm_fail(error, r, "cannot describe the machine to the guest: %s",
			       strerror(-r));
	if (ioctl(vm->vcpus[0]->fd, KVM_GET_SREGS, &sregs) < 0)
		return vm_fail(error, -errno, "cannot read the vCPU's registers: %s",
			       strerror(errno));
	boot_registers(&vm->mem, &entry, &regs, &sregs);
	if (ioctl(vm->vcpus[0]->fd, KVM_SET_SREGS, &sregs) < 0 ||
	    ioctl(vm->vcpus[0]->fd, KVM_SET_REGS, &regs) < 0)
		return vm_fail(error, -errno, "KVM refuses the boot registers: %s",
			       strerror(errno));
	return 0;
}

/* The guest goes on from a snapshot. It was told of another generation: this one is news. */
int guest_restore(struct vm *vm, char error[VM_ERROR_MAX])
{
	int r = snapshot_load(vm, vm->cfg->restore, error);

	if (r < 0)
		return r;
	r = new_generation(vm);
	if (r < 0)
		return vm_fail(error, r, "no random numbers: %s", strerror(-r));
	pm_gpe(&vm->pm, PM_GPE_VMGENID);
	/* Like a VM that was paused: its devices wait for vm_resume(). */
	vm->state = VM_PAUSED;
	return 0;
}

static int open_image(const char *path, const char *what, int *ret, char *error)
{
	*ret = open(path, O_RDONLY | O_CLOEXEC);
	if (*ret < 0)
		return vm_fail(error, -errno, "cannot open the %s %s: %s", what, path,
			       strerror(errno));
	return 0;
}

int guest_open_images(struct vm *vm, char error[VM_ERROR_MAX])
{
	int r = 0;

	if (vm->cfg->flat)
		r = open_image(vm->cfg->flat, "flat image", &vm->kernel_fd, error);
	if (vm->cfg->kernel)
		r = open_image(vm->cfg->kernel, "kernel", &vm->kernel_fd, error);
	if (r == 0 && vm->cfg->initrd)
		r = open_image(vm->cfg->initrd, "initrd", &vm->initrd_fd, error);
	return r;
}
