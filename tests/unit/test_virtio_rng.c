/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <string.h>
#include "tests/unit/vmm_driver.h"
#include "vmm/virtio_rng.h"

static struct driver v;

static void setup(void)
{
	struct virtio_device *d;

	driver_machine(&v, 0);
	cr_assert_eq(virtio_rng_new(&v.vm, &d), 0);
	driver_attach(&v, d);
	driver_up(&v, UINT64_MAX);
}

static void teardown(void)
{
	driver_end(&v);
}

TestSuite(virtio_rng, .init = setup, .fini = teardown, .timeout = 30);

Test(virtio_rng, fills_buffers)
{
	const struct driver_buf bufs[] = { { DRIVER_DATA, 40, true },
					   { DRIVER_DATA + 40, 24, true } };
	u8 seen[64] = { 0 }, *p = driver_at(&v, DRIVER_DATA);
	u32 zeros = 0;

	for (u32 i = 0; i < 100; i++) {
		cr_assert_eq(driver_request(&v, 0, bufs, 2), 64u);
		cr_assert_neq(memcmp(p, seen, 64), 0);
		memcpy(seen, p, 64);
		for (u32 b = 0; b < 64; b++)
			zeros += p[b] == 0;
	}
	cr_assert_lt(zeros, 100u); /* 25 are expected of 6,400 */
	cr_assert_eq(p[64], 0);
}

Test(virtio_rng, long_buffer_is_filled_in_part)
{
	const struct driver_buf buf = { DRIVER_DATA, MIB(1), true };
	u32 n = driver_request(&v, 0, &buf, 1);

	cr_assert(n > 0 && n <= 256);
	cr_assert_eq(((u8 *)driver_at(&v, DRIVER_DATA))[n], 0);
}

Test(virtio_rng, read_only_buffer_gets_nothing)
{
	const struct driver_buf buf = { DRIVER_DATA, 64, false };

	cr_assert_eq(driver_request(&v, 0, &buf, 1), 0u);
	cr_assert_eq(*(u64 *)driver_at(&v, DRIVER_DATA), 0u);
}

/* More than one turn's budget, and then more than there can be. */
Test(virtio_rng, many_buffers)
{
	const struct driver_buf buf = { DRIVER_DATA, 8, true };

	for (u32 round = 0; round < 20; round++) {
		for (u32 i = 0; i < 16; i++)
			driver_queue(&v, 0, &buf, 1);
		driver_kick(&v, 0);
		for (u32 i = 0; i < 16; i++)
			cr_assert_eq(driver_wait(&v, 0).len, 8u);
	}
}
