/* SPDX-License-Identifier: MIT */
/*
 * State files of snapshots: any bytes. What must hold: all that is found lies inside the file; what
 * was written is found again; devices refuse what they could not have written.
 */
#include <errno.h>
#include "tests/fuzz/fuzz.h"
#include "vmm/pm.h"
#include "vmm/serial.h"
#include "vmm/state.h"

static bool level;

static void set_irq(void *arg, bool l)
{
	level = l;
}

static bool transmit(void *arg, u8 byte)
{
	return true;
}

static void nothing(void *arg)
{
}

static const struct serial_backend serial_backend = { .irq = set_irq,
						      .transmit = transmit,
						      .input_ready = nothing };
static const struct pm_backend pm_backend = { .irq = set_irq,
					      .poweroff = nothing,
					      .reset = nothing };

static void try_devices(const struct state_reader *r)
{
	struct bus ports = { 0 };
	struct serial s;
	struct pm p;
	u8 v, taken;

	serial_init(&s, &serial_backend);
	if (serial_load(&s, r) == 0) {
		MUST(s.regs.nr_rx <= SERIAL_RX_BYTES);
		taken = (u8)serial_input(&s, (const u8 *)"0123456789", 10);
		MUST(taken <= 10 && s.regs.nr_rx <= SERIAL_RX_BYTES);
		for (u64 reg = 0; reg < SERIAL_PORTS; reg++)
			serial_bus_ops.read(&s, reg, &v, 1);
	}
	MUST(pm_init(&p, &ports, &pm_backend) == 0);
	pm_load(&p, r);
}

static void try_file(const u8 *data, size_t size)
{
	static const char *const tags[] = { "config", "vcpu", "serial", "pm", "virtio", "" };
	struct state_reader r;
	u8 *copy = malloc(size + 1);

	MUST(copy);
	memcpy(copy, data, size);
	if (state_reader_init(&r, copy, size) < 0) {
		MUST(!r.data);
		return;
	}
	for (size_t t = 0; t < ARRAY_SIZE(tags); t++) {
		for (u32 instance = 0; instance < 3; instance++) {
			size_t n = 0;
			const u8 *p = state_get(&r, tags[t], instance, &n);

			if (p)
				MUST(p >= r.data && n <= r.bytes && p + n <= r.data + r.bytes);
		}
	}
	try_devices(&r);
	state_reader_free(&r);
}

/* Records as the input says, and what must then be in the file. */
static void try_writer(struct input *in)
{
	struct state_writer w = { 0 };
	char tags[8][STATE_TAG_BYTES + 2];
	u8 content[8][64], sizes[8];
	u32 nr = 0;

	while (nr < 8 && input_left(in)) {
		u8 len = input_u8(in) % (STATE_TAG_BYTES + 1);
		int r;

		memset(tags[nr], 0, sizeof(tags[nr]));
		for (u8 i = 0; i < len; i++)
			tags[nr][i] = (char)('a' + input_u8(in) % 3);
		sizes[nr] = input_u8(in) % 64;
		input_bytes(in, content[nr], sizes[nr]);
		r = state_put(&w, tags[nr], 0, content[nr], sizes[nr]);
		MUST(r == 0 || r == -EINVAL);
		nr += r == 0;
	}
	if (w.bytes) {
		struct state_reader r;
		u8 *copy = malloc(w.bytes);

		MUST(copy);
		memcpy(copy, w.data, w.bytes);
		MUST(state_reader_init(&r, copy, w.bytes) == 0);
		for (u32 i = 0; i < nr; i++) {
			u8 back[64];

			MUST(state_get_exact(&r, tags[i], 0, back, sizes[i]) == 0);
			MUST(memcmp(back, content[i], sizes[i]) == 0);
		}
		state_reader_free(&r);
	}
	state_writer_free(&w);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = { data, data + size };

	if (size > 65536)
		return 0;
	try_file(data, size);
	try_writer(&in);
	return 0;
}
