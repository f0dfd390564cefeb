/* SPDX-License-Identifier: MIT */
#include <string.h>
#include "vmm/layout.h"
#include "vmm/pm.h"
#include "vmm/state.h"

/* ACPI 6.5, tables 4.15 to 4.18. */
#define PM1_PWRBTN	    (1 << 8)
#define PM1_STATUS_BITS	    ((1 << 0) | (1 << 4) | (1 << 5) | PM1_PWRBTN | (1 << 15))
#define PM1_SCI_EN	    (1 << 0)
#define PM1_SLP_TYP(v)	    ((v) >> 10 & 7)
#define PM1_SLP_EN	    (1 << 13)

#define I8042_COMMAND_RESET 0xfe
#define I8042_STATUS	    4 /* from LAYOUT_PORT_I8042 */

/* The registers as they lie in the ports. */
union pm_image {
	u8 bytes[PM_PORTS];
	struct {
		u16 pm1_status, pm1_enable, pm1_control, none;
		u8 gpe_status, gpe_enable;
	} __attribute__((packed)) r;
};

static union pm_image image_of(const struct pm_regs *r)
{
	union pm_image image = { 0 };

	image.r.pm1_status = r->pm1_status;
	image.r.pm1_enable = r->pm1_enable;
	/* There is no legacy mode: SCI_EN is always set, and SLP_EN reads as zero. */
	image.r.pm1_control = (u16)((r->pm1_control & ~PM1_SLP_EN) | PM1_SCI_EN);
	image.r.gpe_status = r->gpe_status;
	image.r.gpe_enable = r->gpe_enable;
	return image;
}

/* The SCI is a level: on while anything enabled has happened. */
static void update_irq(struct pm *p)
{
	const struct pm_regs *r = &p->regs;
	bool level = (r->pm1_status & r->pm1_enable & PM1_STATUS_BITS) ||
		     (r->gpe_status & r->gpe_enable);

	if (level == p->irq_level)
		return;
	p->irq_level = level;
	p->backend->irq(p->backend->arg, level);
}

static void pm_read(void *dev, u64 offset, void *data, u32 bytes)
{
	struct pm *p = dev;
	union pm_image image;

	pthread_mutex_lock(&p->lock);
	image = image_of(&p->regs);
	pthread_mutex_unlock(&p->lock);
	memcpy(data, image.bytes + offset, bytes); /* the bus keeps it inside PM_PORTS */
}

static void pm_write(void *dev, u64 offset, const void *data, u32 bytes)
{
	struct pm *p = dev;
	union pm_image before, image, clear = { 0 };
	bool off, reset;

	pthread_mutex_lock(&p->lock);
	before = image = image_of(&p->regs);
	memcpy(image.bytes + offset, data, bytes);
	/* Status bits are cleared by writing ones to them. */
	if (offset < PM_EVENT + 2 || offset + bytes > PM_GPE0)
		memcpy(clear.bytes + offset, data, bytes);
	p->regs.pm1_status = before.r.pm1_status & (u16)~clear.r.pm1_status;
	p->regs.gpe_status = before.r.gpe_status & (u8)~clear.r.gpe_status;
	p->regs.pm1_enable = image.r.pm1_enable & PM1_STATUS_BITS;
	p->regs.pm1_control = (u16)(image.r.pm1_control & ~PM1_SLP_EN);
	p->regs.gpe_enable = image.r.gpe_enable;
	off = (image.r.pm1_control & PM1_SLP_EN) &&
	      PM1_SLP_TYP(image.r.pm1_control) == PM_SLP_TYP_S5;
	reset = image.bytes[PM_RESET] == PM_RESET_VALUE;
	update_irq(p);
	pthread_mutex_unlock(&p->lock);
	if (off)
		p->backend->poweroff(p->backend->arg);
	else if (reset)
		p->backend->reset(p->backend->arg);
}

static const struct bus_ops pm_bus_ops = {
	.read = pm_read,
	.write = pm_write,
};

/* A keyboard controller with no keyboard: never busy, never anything to read. */
static void i8042_read(void *dev, u64 offset, void *data, u32 bytes)
{
	memset(data, 0, bytes);
}

static void i8042_write(void *dev, u64 offset, const void *data, u32 bytes)
{
	struct pm *p = dev;

	if (*(const u8 *)data == I8042_COMMAND_RESET)
		p->backend->reset(p->backend->arg);
}

static const struct bus_ops i8042_bus_ops = {
	.read = i8042_read,
	.write = i8042_write,
};

int pm_init(struct pm *p, struct bus *ports, const struct pm_backend *backend)
{
	int r;

	memset(p, 0, sizeof(*p));
	p->backend = backend;
	pthread_mutex_init(&p->lock, NULL);
	r = bus_add(ports, LAYOUT_PORT_ACPI, PM_PORTS, &pm_bus_ops, p);
	if (r == 0)
		r = bus_add(ports, LAYOUT_PORT_I8042 + I8042_STATUS, 1, &i8042_bus_ops, p);
	return r;
}

void pm_machine_reset(struct pm *p)
{
	pthread_mutex_lock(&p->lock);
	memset(&p->regs, 0, sizeof(p->regs));
	update_irq(p);
	pthread_mutex_unlock(&p->lock);
}

void pm_power_button(struct pm *p)
{
	pthread_mutex_lock(&p->lock);
	p->regs.pm1_status |= PM1_PWRBTN;
	update_irq(p);
	pthread_mutex_unlock(&p->lock);
}

void pm_gpe(struct pm *p, u32 bit)
{
	pthread_mutex_lock(&p->lock);
	p->regs.gpe_status |= (u8)(1 << bit);
	update_irq(p);
	pthread_mutex_unlock(&p->lock);
}

int pm_save(struct pm *p, struct state_writer *w)
{
	struct pm_regs regs;

	pthread_mutex_lock(&p->lock);
	regs = p->regs;
	pthread_mutex_unlock(&p->lock);
	return state_put(w, "pm", 0, &regs, sizeof(regs));
}

int pm_load(struct pm *p, const struct state_reader *r)
{
	struct pm_regs regs;
	int rc = state_get_exact(r, "pm", 0, &regs, sizeof(regs));

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&p->lock);
	p->regs = regs;
	p->irq_level = false;
	update_irq(p);
	pthread_mutex_unlock(&p->lock);
	return 0;
}
