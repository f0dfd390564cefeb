/* SPDX-License-Identifier: MIT */
/* The transport: registers, the order of a driver's steps, what is refused; a device that echoes.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include "tests/unit/vmm_driver.h"

#define ECHO_FEATURE 3
#define ALL	     UINT64_MAX

static struct driver v;
static u32 starts, resets;
static int start_error;
static u8 config[12];

static void echo_kick(struct virtio_device *d, u32 i)
{
	struct virtqueue *q = &d->queues[i];
	struct virtqueue_request r;
	u8 buf[64];
	int e;

	do {
		virtqueue_kicks_off(q);
		while ((e = virtqueue_pop(q, &r)) == 1) {
			size_t n = virtqueue_read(&r, 0, buf, sizeof(buf));

			virtqueue_push(q, r.head, (u32)virtqueue_write(&r, 0, buf, n));
		}
		if (e < 0)
			virtio_broken(d, q->why_broken);
	} while (virtqueue_kicks_on(q));
	virtio_interrupt(d, q);
}

static int echo_start(struct virtio_device *d)
{
	starts++;
	return start_error;
}

static void echo_reset(struct virtio_device *d)
{
	resets++;
}

static void echo_config_read(struct virtio_device *d, u32 offset, void *data, u32 bytes)
{
	memcpy(data, config + offset, bytes);
}

static void echo_config_write(struct virtio_device *d, u32 offset, const void *data, u32 bytes)
{
	memcpy(config + offset, data, bytes);
}

static void echo_free(struct virtio_device *d)
{
	virtio_device_fini(d);
	free(d);
}

static const struct virtio_ops echo_ops = {
	.name = "echo",
	.id = 77,
	.nr_queues = 2,
	.queue_size = 16,
	.kick = echo_kick,
	.start = echo_start,
	.reset = echo_reset,
	.config_read = echo_config_read,
	.config_write = echo_config_write,
	.free = echo_free,
};

static void setup(void)
{
	struct virtio_device *d = calloc(1, sizeof(*d));

	cr_assert(d);
	driver_machine(&v, 0);
	virtio_device_init(d, &v.vm, &echo_ops, 1ULL << ECHO_FEATURE, sizeof(config));
	driver_attach(&v, d);
}

static void teardown(void)
{
	driver_end(&v);
}

TestSuite(virtio_mmio, .init = setup, .fini = teardown, .timeout = 30);

static u32 echo(u32 q)
{
	const struct driver_buf bufs[] = { { DRIVER_DATA, 5, false },
					   { DRIVER_DATA + 0x1000, 16, true } };

	memcpy(driver_at(&v, DRIVER_DATA), "hello", 5);
	memset(driver_at(&v, DRIVER_DATA + 0x1000), 0, 16);
	driver_request(&v, q, bufs, 2);
	return (u32)memcmp(driver_at(&v, DRIVER_DATA + 0x1000), "hello\0", 6);
}

static u32 interrupt_count(void)
{
	eventfd_t n;

	return eventfd_read(v.d->irq_fd, &n) == 0 ? (u32)n : 0;
}

Test(virtio_mmio, says_what_it_is)
{
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976u);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_VERSION), 2u);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_DEVICE_ID), 77u);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_QUEUE_NUM_MAX), 16u);
	driver_write(&v, VIRTIO_MMIO_QUEUE_SEL, 2);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_QUEUE_NUM_MAX), 0u);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_SHM_LEN_LOW), UINT32_MAX);
}

Test(virtio_mmio, answers_a_good_driver)
{
	driver_up(&v, ALL);
	cr_assert_eq(starts, 1u);
	cr_assert(virtio_has(v.d, ECHO_FEATURE));
	for (u32 i = 0; i < 40; i++)
		cr_assert_eq(echo(i % 2), 0u);
	cr_assert_gt(interrupt_count(), 0u);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS), (u32)VIRTIO_MMIO_INT_VRING);
	driver_write(&v, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS), 0u);
}

/* Without EVENT_IDX and indirect descriptors, too. */
Test(virtio_mmio, answers_a_simple_driver)
{
	driver_up(&v, 1ULL << VIRTIO_F_VERSION_1);
	cr_assert(!virtio_has(v.d, ECHO_FEATURE));
	for (u32 i = 0; i < 40; i++)
		cr_assert_eq(echo(0), 0u);
}

/* Linux's balloon driver does so. */
Test(virtio_mmio, kick_before_the_driver_is_ready)
{
	const struct driver_buf bufs[] = { { DRIVER_DATA, 5, false },
					   { DRIVER_DATA + 0x1000, 16, true } };

	driver_negotiate(&v, ALL);
	driver_queues(&v);
	driver_queue(&v, 1, bufs, 2);
	driver_kick(&v, 1);
	driver_run(&v);
	cr_assert_eq(driver_used(&v, 1)->idx, 0);
	driver_write(&v, VIRTIO_MMIO_STATUS, 15);
	driver_wait(&v, 1);
}

Test(virtio_mmio, legacy_driver_is_refused)
{
	driver_write(&v, VIRTIO_MMIO_STATUS, 3);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES, 1 << ECHO_FEATURE);
	driver_write(&v, VIRTIO_MMIO_STATUS, 3 | VIRTIO_CONFIG_S_FEATURES_OK);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_STATUS), 3u);
	/* And does not get the device to run. */
	driver_write(&v, VIRTIO_MMIO_STATUS, 3 | VIRTIO_CONFIG_S_DRIVER_OK);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_STATUS), 3u);
	cr_assert_eq(starts, 0u);
}

Test(virtio_mmio, feature_that_was_not_offered_is_refused)
{
	driver_write(&v, VIRTIO_MMIO_STATUS, 3);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES, 1 << 5);
	driver_write(&v, VIRTIO_MMIO_STATUS, 3 | VIRTIO_CONFIG_S_FEATURES_OK);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_STATUS), 3u);
}

Test(virtio_mmio, features_are_fixed_once_agreed)
{
	driver_negotiate(&v, ALL);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	driver_write(&v, VIRTIO_MMIO_DRIVER_FEATURES, 0);
	driver_queues(&v);
	driver_write(&v, VIRTIO_MMIO_STATUS, 15);
	cr_assert(virtio_has(v.d, ECHO_FEATURE));
}

Test(virtio_mmio, queues_are_only_set_up_between_features_and_start)
{
	driver_write(&v, VIRTIO_MMIO_STATUS, 3);
	driver_write(&v, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_QUEUE_READY), 0u);
	driver_up(&v, ALL);
	driver_write(&v, VIRTIO_MMIO_QUEUE_SEL, 0);
	driver_write(&v, VIRTIO_MMIO_QUEUE_READY, 0);
	driver_write(&v, VIRTIO_MMIO_QUEUE_DESC_LOW, 0);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_QUEUE_READY), 1u);
	cr_assert_eq(echo(0), 0u);
}

Test(virtio_mmio, queue_outside_ram_needs_reset)
{
	driver_negotiate(&v, ALL);
	driver_write(&v, VIRTIO_MMIO_QUEUE_NUM, 16);
	driver_write(&v, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0xffff);
	driver_write(&v, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_QUEUE_READY), 0u);
	cr_assert(driver_read(&v, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET);
	driver_write(&v, VIRTIO_MMIO_STATUS, 15);
	cr_assert_eq(starts, 0u);
}

Test(virtio_mmio, queue_of_a_wrong_size_needs_reset)
{
	driver_negotiate(&v, ALL);
	driver_write(&v, VIRTIO_MMIO_QUEUE_NUM, 0x10010);
	driver_write(&v, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_QUEUE_READY), 0u);
}

Test(virtio_mmio, broken_queue_stands_still_until_reset)
{
	driver_up(&v, ALL);
	driver_avail(&v, 0)->idx = 1000;
	driver_kick(&v, 0);
	driver_run(&v);
	cr_assert(driver_read(&v, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET);
	cr_assert(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
	cr_assert_eq(driver_used(&v, 0)->idx, 0);
	driver_up(&v, ALL);
	cr_assert_eq(resets, 1u);
	cr_assert_eq(starts, 2u);
	cr_assert_eq(echo(0), 0u);
}

Test(virtio_mmio, device_that_cannot_start_needs_reset)
{
	start_error = -ENOMEM;
	driver_up(&v, ALL);
	cr_assert(driver_read(&v, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

Test(virtio_mmio, reset_forgets_everything)
{
	driver_up(&v, ALL);
	cr_assert_eq(echo(0), 0u);
	driver_write(&v, VIRTIO_MMIO_STATUS, 0);
	cr_assert_eq(resets, 1u);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS), 0u);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_QUEUE_READY), 0u);
	cr_assert_eq(v.d->features, 0u);
	/* A kick that came too late. */
	driver_kick(&v, 0);
	driver_run(&v);
	driver_write(&v, VIRTIO_MMIO_STATUS, 0);
	cr_assert_eq(resets, 1u);
}

Test(virtio_mmio, configuration_space_is_bounded)
{
	u64 wide = 0x1122334455667788;
	u8 byte = 0x5a;

	memset(config, 0xee, sizeof(config));
	bus_write(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG, &wide, 8);
	cr_assert_eq(memcmp(config, &wide, 8), 0);
	bus_write(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + 11, &byte, 1);
	cr_assert_eq(config[11], 0x5a);
	/* One byte too far. */
	bus_write(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + 9, "\0\0\0\0", 4);
	cr_assert_eq(config[9], 0xee);
	cr_assert_eq(config[11], 0x5a);
	bus_read(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + 9, &wide, 4);
	cr_assert_eq((u32)wide, 0u);
	bus_read(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + 8, &wide, 4);
	cr_assert_eq((u32)wide, 0x5aeeeeeeu);
	bus_read(&v.vm.mmio, v.base + 0xffc, &wide, 4);
	cr_assert_eq((u32)wide, 0u);
}

Test(virtio_mmio, narrow_access_to_registers_is_ignored)
{
	u64 value = UINT64_MAX;

	bus_read(&v.vm.mmio, v.base, &value, 1);
	cr_assert_eq(value & 0xff, 0u);
	value = 1;
	bus_write(&v.vm.mmio, v.base + VIRTIO_MMIO_STATUS, &value, 1);
	bus_write(&v.vm.mmio, v.base + VIRTIO_MMIO_STATUS, &value, 8);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_STATUS), 0u);
}

Test(virtio_mmio, change_of_configuration_is_told)
{
	u32 before = driver_read(&v, VIRTIO_MMIO_CONFIG_GENERATION);

	virtio_config_changed(v.d);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS), 0u);
	driver_up(&v, ALL);
	virtio_config_changed(v.d);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS), (u32)VIRTIO_MMIO_INT_CONFIG);
	cr_assert_eq(driver_read(&v, VIRTIO_MMIO_CONFIG_GENERATION), before + 2);
}

Test(virtio_mmio, quiesced_device_works_when_it_is_resumed)
{
	const struct driver_buf bufs[] = { { DRIVER_DATA, 5, false },
					   { DRIVER_DATA + 0x1000, 16, true } };

	driver_up(&v, ALL);
	virtio_quiesce(v.d);
	driver_queue(&v, 0, bufs, 2);
	driver_kick(&v, 0);
	driver_run(&v);
	cr_assert_eq(driver_used(&v, 0)->idx, 0);
	virtio_resume(v.d);
	driver_wait(&v, 0);
}

Test(virtio_mmio, state_goes_to_another_machine)
{
	const struct driver_buf bufs[] = { { DRIVER_DATA, 5, false },
					   { DRIVER_DATA + 0x1000, 16, true } };
	struct state_writer w = { 0 };
	struct state_reader r;
	struct driver first;

	driver_up(&v, ALL);
	for (u32 i = 0; i < 21; i++)
		cr_assert_eq(echo(1), 0u);
	virtio_quiesce(v.d);
	driver_queue(&v, 1, bufs, 2); /* was not kicked: found by resume() */
	cr_assert_eq(virtio_save(v.d, &w), 0);
	cr_assert_eq(state_reader_init(&r, w.data, w.bytes), 0);
	first = v;
	starts = 0;
	setup();
	memcpy(v.vm.mem.slots[0].hva, first.vm.mem.slots[0].hva, DRIVER_RAM);
	memcpy(v.next_desc, first.next_desc, sizeof(v.next_desc));
	memcpy(v.seen_used, first.seen_used, sizeof(v.seen_used));
	cr_assert_eq(virtio_load(v.d, &r), 0);
	cr_assert_eq(starts, 1u);
	cr_assert_eq(v.d->features, first.d->features);
	driver_run(&v);
	cr_assert_eq(driver_used(&v, 1)->idx, 21);
	interrupt_count();
	virtio_resume(v.d);
	/* One that was raised and not seen comes again. */
	cr_assert_gt(interrupt_count(), 0u);
	driver_wait(&v, 1);
	for (u32 i = 0; i < 21; i++)
		cr_assert_eq(echo(1), 0u);
	driver_end(&first);
	state_reader_free(&r);
}
