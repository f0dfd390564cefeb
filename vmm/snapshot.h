/* SPDX-License-Identifier: MIT */
/*
 * A snapshot is a folder with two files: "state" (state.h) and "memory", all slots one after the
 * other, pages of zeros as holes. Disks are not in it: who restores a snapshot gives the images and
 * overlays as they were then.
 *
 * A restored VM is the same guest a second time. It gets a new generation id at once, of which it
 * is told by an interrupt.
 *
 * A snapshot that is restored is hostile, like a guest: what it says is checked, and memory and
 * registers can be no more than a guest could have made them. The memory file must not be cut short
 * while a VM runs from it.
 */
#ifndef BALLAST_VMM_SNAPSHOT_H
#define BALLAST_VMM_SNAPSHOT_H

#include "vmm/vm.h"

/* Of a VM that is paused. @dir is made, and removed again on failure. One line in @error. */
int snapshot_save(struct vm *vm, const char *dir, char error[VM_ERROR_MAX]);

/* Before vm_new(): memory and vCPUs of a configuration that does not name them, or -EINVAL where it
 * names others. */
int snapshot_complete_config(const char *dir, struct vm_config *cfg, char error[VM_ERROR_MAX]);

/* Into a machine that was just built of such a configuration, before its vCPUs run. */
int snapshot_load(struct vm *vm, const char *dir, char error[VM_ERROR_MAX]);

#endif
