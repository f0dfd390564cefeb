/* SPDX-License-Identifier: MIT */
/* Makes the virtio devices that the command line asks for, and plugs them in, always in the same
 * order: a snapshot's devices are found by their place. Gives up privileges as soon as all that
 * needs them is open (sandbox.h). */
#ifndef BALLAST_VMM_DEVICES_H
#define BALLAST_VMM_DEVICES_H

#include "vmm/vm.h"

/* Negative errno, and one line in @error. What was made before is the VM's. */
int devices_add(struct vm *vm, char error[VM_ERROR_MAX]);

#endif
