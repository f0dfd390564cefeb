/* SPDX-License-Identifier: MIT */
/*
 * Power management: ACPI's fixed registers (ACPI 6.5, section 4.8.3), as far as a guest without
 * sleep states needs them, the reset register, and the keyboard controller's reset line, which is
 * what is tried where ACPI is off.
 *
 *	PORT_ACPI + 0	PM1a status, enable (16 bits each): the power button
 *		  + 4	PM1a control: sleep type, sleep enable
 *		  + 8	GPE0 status, enable (8 bits each): PM_GPE_VMGENID
 *		  + 12	reset
 *
 * Registers are used on vCPU threads; the calls below may come from any.
 */
#ifndef BALLAST_VMM_PM_H
#define BALLAST_VMM_PM_H

#include <pthread.h>
#include "vmm/bus.h"

#define PM_PORTS       13
#define PM_EVENT       0
#define PM_CONTROL     4
#define PM_GPE0	       8
#define PM_RESET       12
#define PM_RESET_VALUE 6
#define PM_SLP_TYP_S5  5
#define PM_GPE_VMGENID 0

struct state_reader;
struct state_writer;

struct pm_backend {
	void (*irq)(void *arg, bool level);
	void (*poweroff)(void *arg);
	void (*reset)(void *arg);
	void *arg;
};

struct pm_regs {
	u16 pm1_status, pm1_enable, pm1_control;
	u8 gpe_status, gpe_enable;
};

struct pm {
	const struct pm_backend *backend;
	pthread_mutex_t lock;
	struct pm_regs regs;
	bool irq_level;
};

/* Gives it its places on the bus. */
int pm_init(struct pm *p, struct bus *ports, const struct pm_backend *backend);
void pm_machine_reset(struct pm *p);

void pm_power_button(struct pm *p);
void pm_gpe(struct pm *p, u32 bit);

int pm_save(struct pm *p, struct state_writer *w);
int pm_load(struct pm *p, const struct state_reader *r);

#endif
