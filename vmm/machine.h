/* SPDX-License-Identifier: MIT */
/*
 * The state of the whole machine but for its memory and its virtio devices: vCPUs, interrupt
 * controllers, timers, clock, serial line, power management. Taken once when the machine is new,
 * and put back when it is reset; and what a snapshot holds.
 *
 * On the main thread, while all vCPUs are parked.
 */
#ifndef BALLAST_VMM_MACHINE_H
#define BALLAST_VMM_MACHINE_H

#include "vmm/vm.h"

struct state_reader;
struct state_writer;

/* The state of a reset: taken before any vCPU has run. */
int machine_reset_state(struct vm *vm, struct machine_state **ret);
/* All as it was then. Time goes on. */
int machine_reset(struct vm *vm, const struct machine_state *s);

int machine_save(struct vm *vm, struct state_writer *w);
/* -EBADMSG: not this machine's state (another number of vCPUs, a record is missing); -EINVAL: KVM
 * refuses it. */
int machine_load(struct vm *vm, const struct state_reader *r);

#endif
