/* SPDX-License-Identifier: MIT */
/*
 * Steps of building a machine (vm.c), in this order: KVM and its chips, images, then memory and
 * vCPUs, and last what the guest begins with. All return negative errno, with one line in @error.
 */
#ifndef BALLAST_VMM_GUEST_H
#define BALLAST_VMM_GUEST_H

#include "vmm/vm.h"

/* kvm.c. An error means that this machine has no usable KVM. Whether it can run a kernel's own
 * instructions shows only when it does (VM_END_GUEST_CRASH, or a guest that goes nowhere). */
int kvm_open(struct vm *vm, char error[VM_ERROR_MAX]);
int kvm_create_chips(struct vm *vm, char error[VM_ERROR_MAX]);

/* guest.c */
int guest_open_images(struct vm *vm, char error[VM_ERROR_MAX]);
/* Puts kernel and tables into memory, and the first vCPU at its entry; at start and at each
 * reset. */
int guest_load(struct vm *vm, char error[VM_ERROR_MAX]);
/* Instead: the guest goes on from a snapshot. */
int guest_restore(struct vm *vm, char error[VM_ERROR_MAX]);

#endif
