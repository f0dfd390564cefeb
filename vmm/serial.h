/* SPDX-License-Identifier: MIT */
/*
 * A 16550A UART (National Semiconductor PC16550D data sheet), as much of it as drivers look at:
 * FIFOs, interrupts, loopback. No bit times: what is written is sent at once, or waits for room
 * where it goes, and the transmitter is not empty meanwhile.
 *
 * Registers are used on vCPU threads, serial_input() and serial_output_ready() on the main thread.
 * Callbacks are called with the lock held and must not call back.
 */
#ifndef BALLAST_VMM_SERIAL_H
#define BALLAST_VMM_SERIAL_H

#include <pthread.h>
#include "vmm/bus.h"

#define SERIAL_PORTS	8
#define SERIAL_RX_BYTES 64

struct state_reader;
struct state_writer;

struct serial_backend {
	void (*irq)(void *arg, bool level);
	bool (*transmit)(void *arg, u8 byte); /* false: no room now */
	void (*input_ready)(void *arg);	      /* there is room for input again */
	void *arg;
};

/* What the guest can see of it: the state in a snapshot. */
struct serial_regs {
	u8 ier, lcr, mcr, lsr_errors, scratch, fcr, dll, dlm;
	u8 thr; /* waits for room when thr_full */
	u8 thr_full;
	u8 thri_pending; /* the transmitter became empty, and the driver has not read so */
	u8 nr_rx;
	u8 rx[SERIAL_RX_BYTES];
};

struct serial {
	const struct serial_backend *backend;
	pthread_mutex_t lock;
	struct serial_regs regs;
	bool irq_level, input_waits;
};

extern const struct bus_ops serial_bus_ops; /* its device is a struct serial */

void serial_init(struct serial *s, const struct serial_backend *backend);
void serial_reset(struct serial *s); /* what is to be sent is lost */

/* Takes what there is room for, and returns how much; calls input_ready() later if that is not
 * all. */
size_t serial_input(struct serial *s, const u8 *data, size_t bytes);
/* There is room for output again. */
void serial_output_ready(struct serial *s);

int serial_save(struct serial *s, struct state_writer *w);
int serial_load(struct serial *s, const struct state_reader *r);

#endif
