/* SPDX-License-Identifier: MIT */
/* The network device on a socket instead of a tap. */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/unit/vmm_driver.h"
#include "vmm/virtio_net.h"

#define ALL UINT64_MAX
#define HDR 12
#define RX  0
#define TX  1

static struct driver v;
static int peer;
static u8 packet[70000];

static void setup(void)
{
	static const u8 mac[] = { 2, 0, 0, 1, 2, 3 };
	struct virtio_device *d;
	int fds[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds), 0);
	peer = fds[1];
	driver_machine(&v, 0);
	cr_assert_eq(virtio_net_new(&v.vm, fds[0], mac, &d), 0);
	driver_attach(&v, d);
	for (u32 i = 0; i < sizeof(packet); i++)
		packet[i] = (u8)(i * 13 + i / 256);
}

static void teardown(void)
{
	driver_end(&v);
	close(peer);
}

TestSuite(virtio_net, .init = setup, .fini = teardown, .timeout = 30);

static struct virtio_net_stats stats(void)
{
	struct virtio_net_stats s;

	virtio_net_stats(v.d, &s);
	return s;
}

/* @nr buffers of @bytes for packets, one after another from DRIVER_DATA on. */
static void give_buffers(u32 nr, u32 bytes)
{
	for (u32 i = 0; i < nr; i++) {
		const struct driver_buf buf = { DRIVER_DATA + (u64)i * bytes, bytes, true };

		driver_queue(&v, RX, &buf, 1);
	}
	driver_kick(&v, RX);
	driver_run(&v);
}

static void from_outside(u32 bytes)
{
	cr_assert_eq(send(peer, packet, bytes, 0), (ssize_t)bytes);
	driver_run(&v);
}

Test(virtio_net, says_its_address)
{
	u8 mac[6];

	for (u32 i = 0; i < 6; i++)
		bus_read(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + i, &mac[i], 1);
	cr_assert_arr_eq(mac, ((u8[]){ 2, 0, 0, 1, 2, 3 }), 6);
	/* A socket computes no checksums. */
	cr_assert_eq(v.d->offered & 1ULL << VIRTIO_NET_F_CSUM, 0u);
}

Test(virtio_net, sends)
{
	const struct driver_buf bufs[] = { { DRIVER_DATA, HDR, false },
					   { DRIVER_DATA + 100, 60, false } };
	u8 got[2000];

	driver_up(&v, ALL);
	memset(driver_at(&v, DRIVER_DATA), 0, HDR);
	memcpy(driver_at(&v, DRIVER_DATA + 100), packet, 60);
	for (u32 i = 0; i < 300; i++) {
		driver_request(&v, TX, bufs, 2);
		cr_assert_eq(recv(peer, got, sizeof(got), 0), 72);
		cr_assert_eq(memcmp(got + HDR, packet, 60), 0);
	}
	cr_assert_eq(stats().tx_packets, 300u);
	cr_assert_eq(stats().tx_bytes, 18000u);
}

Test(virtio_net, malformed_packets_are_dropped)
{
	const struct driver_buf small = { DRIVER_DATA, HDR + 13, false };
	const struct driver_buf large = { DRIVER_DATA, HDR + 65535 + 19, false };
	const struct driver_buf none = { DRIVER_DATA, 100, true };
	u8 got[64];

	driver_up(&v, ALL);
	driver_request(&v, TX, &small, 1);
	driver_request(&v, TX, &large, 1);
	driver_request(&v, TX, &none, 1);
	cr_assert_eq(recv(peer, got, sizeof(got), 0), -1);
	cr_assert_eq(stats().tx_dropped, 3u);
	/* The other end is gone. */
	close(peer);
	driver_request(&v, TX, &(struct driver_buf){ DRIVER_DATA, 100, false }, 1);
	cr_assert_eq(stats().tx_dropped, 4u);
	peer = dup(0);
}

Test(virtio_net, receives_into_merged_buffers)
{
	struct virtio_net_hdr_v1 *h = driver_at(&v, DRIVER_DATA);

	driver_up(&v, ALL);
	give_buffers(20, 1000);
	from_outside(2500);
	cr_assert_eq(driver_used(&v, RX)->idx, 3);
	cr_assert_eq(h->num_buffers, 3);
	cr_assert_eq(driver_wait(&v, RX).len, 1000u);
	cr_assert_eq(driver_wait(&v, RX).len, 1000u);
	cr_assert_eq(driver_wait(&v, RX).len, 500u);
	cr_assert_eq(memcmp((u8 *)h + HDR, packet + HDR, 2500 - HDR), 0);
	from_outside(1000);
	cr_assert_eq(driver_used(&v, RX)->idx, 4);
	cr_assert_eq(stats().rx_packets, 2u);
	cr_assert_eq(stats().rx_bytes, 3500u - 2 * HDR);
}

/* A packet waits until there are buffers for all of it, and packets keep their order. */
Test(virtio_net, waits_for_buffers)
{
	struct virtio_net_hdr_v1 *h = driver_at(&v, DRIVER_DATA);

	driver_up(&v, ALL);
	from_outside(2500);
	from_outside(100);
	give_buffers(2, 1000);
	cr_assert_eq(driver_used(&v, RX)->idx, 0);
	give_buffers(1, 1000);
	cr_assert_eq(driver_used(&v, RX)->idx, 3);
	cr_assert_eq(driver_wait(&v, RX).len, 1000u);
	give_buffers(1, 1000);
	cr_assert_eq(driver_used(&v, RX)->idx, 4);
	cr_assert_eq(h->num_buffers, 1);
}

Test(virtio_net, largest_packet)
{
	driver_up(&v, ALL);
	give_buffers(50, 4096);
	from_outside(HDR + 65535 + 18);
	cr_assert_eq(driver_used(&v, RX)->idx, 17);
	cr_assert_eq(memcmp((u8 *)driver_at(&v, DRIVER_DATA) + HDR, packet + HDR, 65553), 0);
}

Test(virtio_net, packet_too_large_for_its_buffers_is_dropped)
{
	driver_up(&v, ALL & ~(1ULL << VIRTIO_NET_F_MRG_RXBUF));
	give_buffers(3, 1000);
	from_outside(1001);
	cr_assert_eq(driver_used(&v, RX)->idx, 0);
	cr_assert_eq(stats().rx_dropped, 1u);
	from_outside(1000);
	cr_assert_eq(driver_used(&v, RX)->idx, 1);
	/* Merged ones are bounded, too. */
	driver_up(&v, ALL);
	give_buffers(100, 16);
	from_outside(64 * 16 + 1);
	cr_assert_eq(driver_used(&v, RX)->idx, 0);
	cr_assert_eq(stats().rx_dropped, 2u);
	from_outside(64 * 16);
	cr_assert_eq(driver_used(&v, RX)->idx, 64);
}

Test(virtio_net, buffer_smaller_than_a_header_breaks_the_queue)
{
	driver_up(&v, ALL);
	give_buffers(1, HDR - 1);
	from_outside(100);
	cr_assert(driver_read(&v, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET);
	driver_up(&v, ALL);
	give_buffers(1, 1000);
	from_outside(100);
	cr_assert_eq(driver_used(&v, RX)->idx, 1);
}

Test(virtio_net, more_than_a_turn)
{
	driver_up(&v, ALL);
	for (u32 i = 0; i < 130; i++)
		cr_assert_eq(send(peer, packet, 100, 0), 100);
	give_buffers(200, 1000);
	for (u32 i = 0; i < 130; i++)
		cr_assert_eq(driver_wait(&v, RX).len, 100u);
}

Test(virtio_net, quiesced_device_takes_no_packets)
{
	driver_up(&v, ALL);
	give_buffers(10, 1000);
	virtio_quiesce(v.d);
	from_outside(100);
	cr_assert_eq(driver_used(&v, RX)->idx, 0);
	virtio_resume(v.d);
	driver_run(&v);
	cr_assert_eq(driver_used(&v, RX)->idx, 1);
	/* And one without a driver neither. */
	driver_write(&v, VIRTIO_MMIO_STATUS, 0);
	from_outside(100);
	from_outside(100);
	driver_up(&v, ALL);
	give_buffers(10, 1000);
	cr_assert_eq(driver_used(&v, RX)->idx, 2);
}

Test(virtio_net, tap_that_cannot_be)
{
	cr_assert_eq(net_tap_open(""), -EINVAL);
	cr_assert_eq(net_tap_open("a-name-that-is-too-long"), -EINVAL);
}
