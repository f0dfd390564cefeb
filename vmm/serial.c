/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <linux/serial_reg.h>
#include <string.h>
#include "vmm/serial.h"
#include "vmm/state.h"

#define IIR_FIFOS 0xc0
#define IER_BITS  (UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI)
#define MCR_BITS  0x1f

static bool dlab(const struct serial *s)
{
	return s->regs.lcr & UART_LCR_DLAB;
}

static bool fifos_on(const struct serial *s)
{
	return s->regs.fcr & UART_FCR_ENABLE_FIFO;
}

static u32 rx_room(const struct serial *s)
{
	u32 size = fifos_on(s) ? SERIAL_RX_BYTES : 1;

	return size > s->regs.nr_rx ? size - s->regs.nr_rx : 0;
}

/* The most urgent interrupt, in the order of the data sheet's table V. */
static u8 pending(const struct serial *s)
{
	const struct serial_regs *r = &s->regs;

	if ((r->ier & UART_IER_RLSI) && r->lsr_errors)
		return UART_IIR_RLSI;
	if ((r->ier & UART_IER_RDI) && r->nr_rx)
		return UART_IIR_RDI;
	if ((r->ier & UART_IER_THRI) && r->thri_pending)
		return UART_IIR_THRI;
	return UART_IIR_NO_INT;
}

static void update_irq(struct serial *s)
{
	bool level = pending(s) != UART_IIR_NO_INT;

	if (level == s->irq_level)
		return;
	s->irq_level = level;
	s->backend->irq(s->backend->arg, level);
}

static void rx_put(struct serial *s, u8 byte)
{
	if (rx_room(s) == 0) {
		s->regs.lsr_errors |= UART_LSR_OE;
		return;
	}
	s->regs.rx[s->regs.nr_rx++] = byte;
}

static u8 rx_get(struct serial *s)
{
	struct serial_regs *r = &s->regs;
	u8 byte = 0;

	if (r->nr_rx) {
		byte = r->rx[0];
		memmove(r->rx, r->rx + 1, --r->nr_rx);
	}
	/* Half empty: not after each byte, because the main thread is woken for it. */
	if (s->input_waits && r->nr_rx <= SERIAL_RX_BYTES / 2) {
		s->input_waits = false;
		s->backend->input_ready(s->backend->arg);
	}
	return byte;
}

static void transmit(struct serial *s)
{
	struct serial_regs *r = &s->regs;

	if (r->mcr & UART_MCR_LOOP)
		rx_put(s, r->thr);
	else if (!s->backend->transmit(s->backend->arg, r->thr))
		return;
	r->thr_full = 0;
	r->thri_pending = 1;
}

/* Loopback connects the modem's outputs to its inputs; else a modem is there and ready. */
static u8 modem_status(const struct serial *s)
{
	u8 mcr = s->regs.mcr, msr = 0;

	if (!(mcr & UART_MCR_LOOP))
		return UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;
	msr |= (mcr & UART_MCR_RTS) ? UART_MSR_CTS : 0;
	msr |= (mcr & UART_MCR_DTR) ? UART_MSR_DSR : 0;
	msr |= (mcr & UART_MCR_OUT1) ? UART_MSR_RI : 0;
	msr |= (mcr & UART_MCR_OUT2) ? UART_MSR_DCD : 0;
	return msr;
}

static u8 read_iir(struct serial *s)
{
	u8 iir = pending(s);

	if (iir == UART_IIR_THRI)
		s->regs.thri_pending = 0;
	return iir | (fifos_on(s) ? IIR_FIFOS : 0);
}

static u8 read_lsr(struct serial *s)
{
	u8 lsr = s->regs.lsr_errors;

	s->regs.lsr_errors = 0;
	lsr |= s->regs.nr_rx ? UART_LSR_DR : 0;
	lsr |= s->regs.thr_full ? 0 : UART_LSR_THRE | UART_LSR_TEMT;
	return lsr;
}

static u8 read_reg(struct serial *s, u64 offset)
{
	switch (offset) {
	case UART_RX:
		return dlab(s) ? s->regs.dll : rx_get(s);
	case UART_IER:
		return dlab(s) ? s->regs.dlm : s->regs.ier;
	case UART_IIR:
		return read_iir(s);
	case UART_LCR:
		return s->regs.lcr;
	case UART_MCR:
		return s->regs.mcr;
	case UART_LSR:
		return read_lsr(s);
	case UART_MSR:
		return modem_status(s);
	default:
		return s->regs.scratch;
	}
}

static void write_thr(struct serial *s, u8 v)
{
	/* One that comes while the last still waits replaces it, as on the real one. */
	s->regs.thr = v;
	s->regs.thr_full = 1;
	s->regs.thri_pending = 0;
	transmit(s);
}

static void write_ier(struct serial *s, u8 v)
{
	bool was = s->regs.ier & UART_IER_THRI;

	s->regs.ier = v & IER_BITS;
	/* Enabling it while the transmitter is empty is an interrupt at once. */
	if (!was && (v & UART_IER_THRI) && !s->regs.thr_full)
		s->regs.thri_pending = 1;
}

static void write_fcr(struct serial *s, u8 v)
{
	if ((v ^ s->regs.fcr) & UART_FCR_ENABLE_FIFO)
		v |= UART_FCR_CLEAR_RCVR;
	if (v & UART_FCR_CLEAR_RCVR) {
		while (s->regs.nr_rx)
			rx_get(s);
	}
	s->regs.fcr = v & (UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_MASK);
}

static void write_reg(struct serial *s, u64 offset, u8 v)
{
	switch (offset) {
	case UART_TX:
		if (dlab(s))
			s->regs.dll = v;
		else
			write_thr(s, v);
		break;
	case UART_IER:
		if (dlab(s))
			s->regs.dlm = v;
		else
			write_ier(s, v);
		break;
	case UART_FCR:
		write_fcr(s, v);
		break;
	case UART_LCR:
		s->regs.lcr = v;
		break;
	case UART_MCR:
		s->regs.mcr = v & MCR_BITS;
		break;
	case UART_SCR:
		s->regs.scratch = v;
		break;
	default: /* LSR and MSR are read-only */
		break;
	}
}

/* A wider access is that many accesses to one register each. */
static void serial_read(void *dev, u64 offset, void *data, u32 bytes)
{
	struct serial *s = dev;

	pthread_mutex_lock(&s->lock);
	for (u32 i = 0; i < bytes; i++)
		((u8 *)data)[i] = read_reg(s, offset + i);
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
}

static void serial_write(void *dev, u64 offset, const void *data, u32 bytes)
{
	struct serial *s = dev;

	pthread_mutex_lock(&s->lock);
	for (u32 i = 0; i < bytes; i++)
		write_reg(s, offset + i, ((const u8 *)data)[i]);
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
}

const struct bus_ops serial_bus_ops = {
	.read = serial_read,
	.write = serial_write,
};

static void reset_regs(struct serial *s)
{
	/* 9600 baud: what a driver that asks finds. */
	s->regs = (struct serial_regs){ .mcr = UART_MCR_OUT2, .dll = 12 };
	s->input_waits = false;
}

void serial_init(struct serial *s, const struct serial_backend *backend)
{
	memset(s, 0, sizeof(*s));
	s->backend = backend;
	pthread_mutex_init(&s->lock, NULL);
	reset_regs(s);
}

void serial_reset(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	reset_regs(s);
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
}

size_t serial_input(struct serial *s, const u8 *data, size_t bytes)
{
	size_t taken = 0;

	pthread_mutex_lock(&s->lock);
	/* In loopback the line is not connected: it waits like a full FIFO. */
	while (taken < bytes && rx_room(s) && !(s->regs.mcr & UART_MCR_LOOP))
		rx_put(s, data[taken++]);
	s->input_waits = taken < bytes;
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	return taken;
}

void serial_output_ready(struct serial *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->regs.thr_full)
		transmit(s);
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
}

int serial_save(struct serial *s, struct state_writer *w)
{
	struct serial_regs regs;

	pthread_mutex_lock(&s->lock);
	regs = s->regs;
	pthread_mutex_unlock(&s->lock);
	return state_put(w, "serial", 0, &regs, sizeof(regs));
}

int serial_load(struct serial *s, const struct state_reader *r)
{
	struct serial_regs regs;
	int rc = state_get_exact(r, "serial", 0, &regs, sizeof(regs));

	if (rc < 0)
		return rc;
	if (regs.nr_rx > SERIAL_RX_BYTES)
		return -EBADMSG;
	regs.ier &= IER_BITS;
	pthread_mutex_lock(&s->lock);
	s->regs = regs;
	s->irq_level = false;
	update_irq(s);
	pthread_mutex_unlock(&s->lock);
	return 0;
}
