/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/serial_reg.h>
#include <string.h>
#include "vmm/pm.h"
#include "vmm/serial.h"
#include "vmm/layout.h"
#include "vmm/state.h"

struct host {
	bool level, full;
	u32 edges, input_ready;
	char out[256];
	size_t nr_out;
};

static void host_irq(void *arg, bool level)
{
	struct host *h = arg;

	h->level = level;
	h->edges += level;
}

static bool host_transmit(void *arg, u8 byte)
{
	struct host *h = arg;

	if (h->full || h->nr_out == sizeof(h->out))
		return false;
	h->out[h->nr_out++] = (char)byte;
	return true;
}

static void host_input_ready(void *arg)
{
	((struct host *)arg)->input_ready++;
}

static struct host host;
static const struct serial_backend backend = {
	.irq = host_irq, .transmit = host_transmit, .input_ready = host_input_ready, .arg = &host
};
static struct serial uart;

static void set_up(void)
{
	memset(&host, 0, sizeof(host));
	serial_init(&uart, &backend);
}

static u8 in(u64 reg)
{
	u8 v;

	serial_bus_ops.read(&uart, reg, &v, 1);
	return v;
}

static void out(u64 reg, u8 v)
{
	serial_bus_ops.write(&uart, reg, &v, 1);
}

Test(vmm_serial, sends_at_once, .init = set_up)
{
	cr_assert_eq(in(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
	out(UART_TX, 'h');
	out(UART_TX, 'i');
	cr_assert_eq(host.nr_out, 2);
	cr_assert_eq(memcmp(host.out, "hi", 2), 0);
	cr_assert_eq(host.edges, 0);
}

Test(vmm_serial, waits_for_room, .init = set_up)
{
	host.full = true;
	out(UART_IER, UART_IER_THRI);
	cr_assert(host.level);
	cr_assert_eq(in(UART_IIR), UART_IIR_THRI);
	cr_assert_not(host.level);
	out(UART_TX, 'x');
	cr_assert_eq(in(UART_LSR)&UART_LSR_THRE, 0);
	cr_assert_not(host.level);
	host.full = false;
	serial_output_ready(&uart);
	cr_assert(host.level);
	cr_assert_eq(in(UART_LSR)&UART_LSR_THRE, UART_LSR_THRE);
	cr_assert_eq(host.out[0], 'x');
}

Test(vmm_serial, receives_with_interrupts, .init = set_up)
{
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	out(UART_IER, UART_IER_RDI);
	cr_assert_not(host.level);
	cr_assert_eq(serial_input(&uart, (const u8 *)"abc", 3), 3);
	cr_assert(host.level);
	cr_assert_eq(in(UART_IIR), UART_IIR_RDI | 0xc0);
	cr_assert_eq(in(UART_RX), 'a');
	cr_assert_eq(in(UART_RX), 'b');
	cr_assert(host.level);
	cr_assert_eq(in(UART_RX), 'c');
	cr_assert_not(host.level);
	cr_assert_eq(in(UART_IIR), UART_IIR_NO_INT | 0xc0);
	cr_assert_eq(in(UART_LSR)&UART_LSR_DR, 0);
	cr_assert_eq(in(UART_RX), 0);
}

Test(vmm_serial, takes_no_more_than_it_holds, .init = set_up)
{
	u8 data[2 * SERIAL_RX_BYTES] = { 0 };
	u32 taken;

	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	for (u32 i = 0; i < sizeof(data); i++)
		data[i] = (u8)i;
	taken = (u32)serial_input(&uart, data, sizeof(data));
	cr_assert_eq(taken, SERIAL_RX_BYTES);
	cr_assert_eq(serial_input(&uart, data, 1), 0);
	for (u32 i = 0; i < SERIAL_RX_BYTES / 2 - 1; i++)
		cr_assert_eq(in(UART_RX), i);
	cr_assert_eq(host.input_ready, 0);
	in(UART_RX);
	cr_assert_eq(host.input_ready, 1);
	/* Nothing was lost to an overrun. */
	cr_assert_eq(in(UART_LSR)&UART_LSR_OE, 0);
	/* Without FIFOs there is room for one. */
	out(UART_FCR, 0);
	cr_assert_eq(in(UART_LSR)&UART_LSR_DR, 0);
	cr_assert_eq(serial_input(&uart, data, sizeof(data)), 1);
}

/* What Linux's 8250 driver looks at before it believes in a 16550A. */
Test(vmm_serial, passes_for_a_16550a, .init = set_up)
{
	out(UART_IER, 0xff);
	cr_assert_eq(in(UART_IER), 0x0f);
	out(UART_IER, 0);
	out(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2 | UART_MCR_RTS);
	cr_assert_eq(in(UART_MSR)&0xf0, UART_MSR_DCD | UART_MSR_CTS);
	out(UART_TX, 'l');
	cr_assert_eq(in(UART_RX), 'l');
	cr_assert_eq(host.nr_out, 0);
	out(UART_MCR, UART_MCR_OUT2);
	cr_assert_eq(in(UART_MSR)&0xf0, UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS);
	out(UART_LCR, UART_LCR_DLAB);
	out(UART_DLL, 0x34);
	out(UART_DLM, 0x12);
	cr_assert_eq(in(UART_DLL), 0x34);
	cr_assert_eq(in(UART_DLM), 0x12);
	out(UART_LCR, UART_LCR_WLEN8);
	cr_assert_eq(in(UART_IER), 0);
	out(UART_SCR, 0xae);
	cr_assert_eq(in(UART_SCR), 0xae);
	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	cr_assert_eq(in(UART_IIR)&0xc0, 0xc0);
	cr_assert_eq(host.nr_out, 0);
}

Test(vmm_serial, state_survives, .init = set_up)
{
	struct serial_regs *stored;
	struct state_reader r;
	struct state_writer w = { 0 };
	u8 *bytes;

	out(UART_FCR, UART_FCR_ENABLE_FIFO);
	out(UART_IER, UART_IER_RDI);
	serial_input(&uart, (const u8 *)"xy", 2);
	cr_assert_eq(serial_save(&uart, &w), 0);
	bytes = malloc(w.bytes);
	memcpy(bytes, w.data, w.bytes);
	set_up();
	cr_assert_eq(state_reader_init(&r, bytes, w.bytes), 0);
	cr_assert_eq(serial_load(&uart, &r), 0);
	cr_assert(host.level);
	cr_assert_eq(in(UART_RX), 'x');
	/* A count that is none is refused. */
	stored = (struct serial_regs *)(bytes + w.bytes - ROUND_UP(sizeof(*stored), 8));
	cr_assert_eq(stored->nr_rx, 2);
	stored->nr_rx = SERIAL_RX_BYTES + 1;
	cr_assert_eq(serial_load(&uart, &r), -EBADMSG);
	state_reader_free(&r);
	state_writer_free(&w);
}

/* --- pm ----------------------------------------------------------------------------------------
 */

struct board {
	bool sci;
	u32 offs, resets;
};

static void board_irq(void *arg, bool level)
{
	((struct board *)arg)->sci = level;
}

static void board_off(void *arg)
{
	((struct board *)arg)->offs++;
}

static void board_reset(void *arg)
{
	((struct board *)arg)->resets++;
}

static struct board board;
static const struct pm_backend pm_backend = {
	.irq = board_irq, .poweroff = board_off, .reset = board_reset, .arg = &board
};
static struct bus ports;
static struct pm pm;

static void set_up_pm(void)
{
	memset(&board, 0, sizeof(board));
	memset(&ports, 0, sizeof(ports));
	cr_assert_eq(pm_init(&pm, &ports, &pm_backend), 0);
}

static u32 pm_in(u64 reg, u32 bytes)
{
	u32 v = 0;

	bus_read(&ports, LAYOUT_PORT_ACPI + reg, &v, bytes);
	return v;
}

static void pm_out(u64 reg, u32 v, u32 bytes)
{
	bus_write(&ports, LAYOUT_PORT_ACPI + reg, &v, bytes);
}

Test(vmm_pm, power_button_is_an_event, .init = set_up_pm)
{
	pm_power_button(&pm);
	cr_assert_not(board.sci);
	pm_out(PM_EVENT + 2, 1 << 8, 2);
	cr_assert(board.sci);
	cr_assert_eq(pm_in(PM_EVENT, 2), 1 << 8);
	/* Writing other ones clears nothing of it; its own clears it. */
	pm_out(PM_EVENT, 1, 2);
	cr_assert(board.sci);
	pm_out(PM_EVENT, 1 << 8, 2);
	cr_assert_not(board.sci);
	cr_assert_eq(pm_in(PM_EVENT, 4), (u32)1 << 24);
}

Test(vmm_pm, generation_event, .init = set_up_pm)
{
	pm_out(PM_GPE0 + 1, 1, 1);
	cr_assert_not(board.sci);
	pm_gpe(&pm, PM_GPE_VMGENID);
	cr_assert(board.sci);
	pm_out(PM_GPE0 + 1, 1, 1);
	cr_assert(board.sci);
	pm_out(PM_GPE0, 1, 1);
	cr_assert_not(board.sci);
}

Test(vmm_pm, sleeps_and_resets, .init = set_up_pm)
{
	cr_assert_eq(pm_in(PM_CONTROL, 2), 1);
	pm_out(PM_CONTROL, PM_SLP_TYP_S5 << 10, 2);
	pm_out(PM_CONTROL, 1 << 13 | 3 << 10, 2);
	cr_assert_eq(board.offs, 0);
	pm_out(PM_CONTROL, 1 << 13 | PM_SLP_TYP_S5 << 10, 2);
	cr_assert_eq(board.offs, 1);
	cr_assert_eq(pm_in(PM_CONTROL, 2) & 1 << 13, 0);
	pm_out(PM_RESET, 1, 1);
	cr_assert_eq(board.resets, 0);
	pm_out(PM_RESET, PM_RESET_VALUE, 1);
	cr_assert_eq(board.resets, 1);
	/* The keyboard controller's way. */
	bus_write(&ports, 0x64, &(u8){ 0xfe }, 1);
	cr_assert_eq(board.resets, 2);
}
