/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_mem.h>
#include <string.h>
#include <sys/mman.h>
#include "tests/unit/vmm_driver.h"
#include "vmm/virtio_mem.h"

#define ALL   UINT64_MAX
#define AREA  MIB(32) /* 16 blocks */
#define BLOCK VIRTIO_MEM_BLOCK
#define REQ   DRIVER_DATA
#define RESP  (DRIVER_DATA + 256)

static struct driver v;
static u64 area, changed_to;

static void changed(void *arg, u64 plugged)
{
	changed_to = plugged;
}

static void setup(void)
{
	struct virtio_mem_info info;
	struct virtio_device *d;

	driver_machine(&v, AREA);
	cr_assert_eq(virtio_mem_new(&v.vm, &d), 0);
	driver_attach(&v, d);
	virtio_mem_on_change(d, changed, NULL);
	virtio_mem_info(d, &info);
	area = info.gpa;
	cr_assert_eq(info.max_bytes, AREA);
}

static void teardown(void)
{
	driver_end(&v);
}

TestSuite(virtio_mem, .init = setup, .fini = teardown, .timeout = 30);

static u16 request(u16 type, u64 addr, u16 nr)
{
	struct virtio_mem_req req = { .type = type, .u.plug = { .addr = addr, .nb_blocks = nr } };
	const struct driver_buf bufs[] = { { REQ, sizeof(req), false },
					   { RESP, sizeof(struct virtio_mem_resp), true } };

	memcpy(driver_at(&v, REQ), &req, sizeof(req));
	memset(driver_at(&v, RESP), 0xff, sizeof(struct virtio_mem_resp));
	cr_assert_eq(driver_request(&v, 0, bufs, 2), sizeof(struct virtio_mem_resp));
	return ((struct virtio_mem_resp *)driver_at(&v, RESP))->type;
}

static u16 block_state(u64 addr, u16 nr)
{
	cr_assert_eq(request(VIRTIO_MEM_REQ_STATE, addr, nr), VIRTIO_MEM_RESP_ACK);
	return ((struct virtio_mem_resp *)driver_at(&v, RESP))->u.state.state;
}

static u64 plugged(void)
{
	struct virtio_mem_config c;
	struct virtio_mem_info info;

	virtio_mem_info(v.d, &info);
	for (u32 i = 0; i < sizeof(c); i += 4)
		bus_read(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + i, (u8 *)&c + i, 4);
	cr_assert_eq(info.plugged_bytes, c.plugged_size);
	cr_assert_eq(info.requested_bytes, c.requested_size);
	cr_assert_eq(c.addr, area);
	return c.plugged_size;
}

Test(virtio_mem, plugs_up_to_what_is_requested)
{
	driver_up(&v, ALL);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area, 1), VIRTIO_MEM_RESP_NACK);
	cr_assert_eq(virtio_mem_request(v.d, 4 * BLOCK), 0);
	cr_assert(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + 2 * BLOCK, 3), VIRTIO_MEM_RESP_ACK);
	cr_assert_eq(plugged(), 3 * BLOCK);
	cr_assert_eq(changed_to, 3 * BLOCK);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + 8 * BLOCK, 2), VIRTIO_MEM_RESP_NACK);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + 15 * BLOCK, 1), VIRTIO_MEM_RESP_ACK);
	cr_assert_eq(plugged(), 4 * BLOCK);
	cr_assert_eq(block_state(area, 2), VIRTIO_MEM_STATE_UNPLUGGED);
	cr_assert_eq(block_state(area + 2 * BLOCK, 3), VIRTIO_MEM_STATE_PLUGGED);
	cr_assert_eq(block_state(area, 16), VIRTIO_MEM_STATE_MIXED);
}

Test(virtio_mem, unplugged_block_costs_nothing)
{
	unsigned char resident;
	u8 *p;

	driver_up(&v, ALL);
	cr_assert_eq(virtio_mem_request(v.d, AREA), 0);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area, 16), VIRTIO_MEM_RESP_ACK);
	p = driver_at(&v, area);
	memset(p, 0x55, AREA);
	cr_assert_eq(request(VIRTIO_MEM_REQ_UNPLUG, area + BLOCK, 1), VIRTIO_MEM_RESP_ACK);
	cr_assert_eq(mincore(p + BLOCK, PAGE_BYTES, &resident), 0);
	cr_assert(!(resident & 1));
	cr_assert_eq(p[BLOCK], 0);
	cr_assert_eq(p[BLOCK - 1], 0x55);
	cr_assert_eq(p[2 * BLOCK], 0x55);
	/* Written while it was unplugged, and plugged again: zeros. */
	p[BLOCK] = 1;
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + BLOCK, 1), VIRTIO_MEM_RESP_ACK);
	cr_assert_eq(p[BLOCK], 0);
	cr_assert_eq(request(VIRTIO_MEM_REQ_UNPLUG_ALL, 0, 0), VIRTIO_MEM_RESP_ACK);
	cr_assert_eq(plugged(), 0u);
	cr_assert_eq(p[0], 0);
	cr_assert_eq(p[AREA - 1], 0);
}

Test(virtio_mem, hostile_requests)
{
	static const struct {
		u64 offset;
		u16 nr;
	} bad[] = {
		{ 0, 0 },	    { 1, 1 },	       { BLOCK / 2, 1 },      { 16 * BLOCK, 1 },
		{ 15 * BLOCK, 2 },  { 0, 17 },	       { 0, UINT16_MAX },     { -(u64)BLOCK, 1 },
		{ -(u64)BLOCK, 2 }, { 1ULL << 63, 1 }, { BLOCK, UINT16_MAX },
	};
	struct virtio_mem_info info;

	driver_up(&v, ALL);
	cr_assert_eq(virtio_mem_request(v.d, AREA), 0);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + 4 * BLOCK, 2), VIRTIO_MEM_RESP_ACK);
	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		for (u16 type = VIRTIO_MEM_REQ_PLUG; type <= VIRTIO_MEM_REQ_STATE; type++) {
			if (type != VIRTIO_MEM_REQ_UNPLUG_ALL)
				cr_assert_eq(request(type, area + bad[i].offset, bad[i].nr),
					     VIRTIO_MEM_RESP_ERROR, "%u type %u", i, type);
		}
	}
	/* Twice, and what is not plugged. */
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + 5 * BLOCK, 2), VIRTIO_MEM_RESP_ERROR);
	cr_assert_eq(request(VIRTIO_MEM_REQ_UNPLUG, area + 5 * BLOCK, 2), VIRTIO_MEM_RESP_ERROR);
	cr_assert_eq(request(77, area, 1), VIRTIO_MEM_RESP_ERROR);
	cr_assert_eq(plugged(), 2 * BLOCK);
	virtio_mem_info(v.d, &info);
	cr_assert_eq(info.refused, 3 * ARRAY_SIZE(bad) + 3);
	/* Half a request. */
	cr_assert_eq(driver_request(&v, 0,
				    (struct driver_buf[]){ { REQ, 5, false }, { RESP, 3, true } },
				    2),
		     3u);
}

Test(virtio_mem, requested_size_is_checked)
{
	cr_assert_eq(virtio_mem_request(v.d, AREA + BLOCK), -EINVAL);
	cr_assert_eq(virtio_mem_request(v.d, BLOCK / 2), -EINVAL);
	cr_assert_eq(virtio_mem_request(v.d, AREA), 0);
}

Test(virtio_mem, needs_an_area)
{
	struct virtio_device *d;

	driver_end(&v);
	driver_machine(&v, 0);
	cr_assert_eq(virtio_mem_new(&v.vm, &d), -ENODEV);
}

Test(virtio_mem, state_goes_to_another_machine)
{
	struct state_writer w = { 0 };
	struct state_reader r;
	struct driver first;

	driver_up(&v, ALL);
	cr_assert_eq(virtio_mem_request(v.d, 8 * BLOCK), 0);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + 3 * BLOCK, 3), VIRTIO_MEM_RESP_ACK);
	virtio_quiesce(v.d);
	cr_assert_eq(virtio_save(v.d, &w), 0);
	cr_assert_eq(state_reader_init(&r, w.data, w.bytes), 0);
	first = v;
	setup();
	memcpy(v.vm.mem.slots[0].hva, first.vm.mem.slots[0].hva, DRIVER_RAM);
	memcpy(v.next_desc, first.next_desc, sizeof(v.next_desc));
	memcpy(v.seen_used, first.seen_used, sizeof(v.seen_used));
	cr_assert_eq(virtio_load(v.d, &r), 0);
	virtio_resume(v.d);
	cr_assert_eq(plugged(), 3 * BLOCK);
	cr_assert_eq(block_state(area + 3 * BLOCK, 3), VIRTIO_MEM_STATE_PLUGGED);
	cr_assert_eq(request(VIRTIO_MEM_REQ_PLUG, area + 6 * BLOCK, 6), VIRTIO_MEM_RESP_NACK);
	driver_end(&first);
	state_reader_free(&r);
}
