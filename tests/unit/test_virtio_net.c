/* SPDX-License-Identifier: MIT */
/* The network device on a socket instead of a tap. */
#include <criterion/criterion.h>
#include <arpa/inet.h>
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
	struct net_backend *backend;
	struct virtio_device *d;
	int fds[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds), 0);
	peer = fds[1];
	driver_machine(&v, 0);
	cr_assert_eq(net_tap_adopt(fds[0], &backend), 0);
	cr_assert_eq(virtio_net_new(&v.vm, backend, mac, &d), 0);
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
	struct net_backend *b;

	cr_assert_eq(net_tap_open("", &b), -EINVAL);
	cr_assert_eq(net_tap_open("a-name-that-is-too-long", &b), -EINVAL);
}

Test(virtio_net, link_goes_down_with_the_other_side)
{
	u16 status;

	driver_up(&v, ALL);
	give_buffers(10, 1000);
	close(peer);
	driver_run(&v);
	bus_read(&v.vm.mmio, v.base + VIRTIO_MMIO_CONFIG + 6, &status, 2);
	cr_assert_eq(status, 0);
	cr_assert(driver_read(&v, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
	peer = dup(0);
}

/* --- passt's stream --- */

static struct net_backend *passt;

static void passt_setup(void)
{
	int fds[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	peer = fds[1];
	cr_assert_eq(net_passt_adopt(fds[0], &passt), 0);
	for (u32 i = 0; i < sizeof(packet); i++)
		packet[i] = (u8)(i * 13 + i / 256);
}

static void passt_teardown(void)
{
	net_backend_free(passt);
	close(peer);
}

TestSuite(net_passt, .init = passt_setup, .fini = passt_teardown, .timeout = 30);

/* A frame's length, and as much of the frame. */
static void put_frame(u32 length, u32 bytes)
{
	u32 be = htonl(length);

	cr_assert_eq(send(peer, &be, 4, 0), 4);
	cr_assert_eq(send(peer, packet, bytes, 0), (ssize_t)bytes);
}

Test(net_passt, receives_frames_in_pieces)
{
	static u8 got[NET_PACKET_MAX];

	cr_assert_eq(passt->ops->receive(passt, got), 0);
	put_frame(100, 60);
	cr_assert_eq(passt->ops->receive(passt, got), 0);
	cr_assert_eq(send(peer, packet + 60, 40, 0), 40);
	put_frame(14, 14);
	cr_assert_eq(send(peer, "\0", 2, 0), 2);
	memset(got, 0xff, sizeof(got));
	cr_assert_eq(passt->ops->receive(passt, got), HDR + 100);
	cr_assert_eq(memcmp(got + HDR, packet, 100), 0);
	cr_assert_eq(got[0] | got[11], 0);
	cr_assert_eq(passt->ops->receive(passt, got), HDR + 14);
	cr_assert_eq(passt->ops->receive(passt, got), 0);
	close(peer);
	cr_assert_eq(passt->ops->receive(passt, got), -EPIPE);
	peer = dup(0);
}

Test(net_passt, nonsense_ends_the_link)
{
	static u8 got[NET_PACKET_MAX];

	put_frame(13, 13);
	cr_assert_eq(passt->ops->receive(passt, got), -EPROTO);
	cr_assert_eq(passt->ops->receive(passt, got), -EPROTO);
}

Test(net_passt, frame_too_large_ends_the_link)
{
	static u8 got[NET_PACKET_MAX];

	put_frame(65535 + 19, 100);
	cr_assert_eq(passt->ops->receive(passt, got), -EPROTO);
}

/* A full socket: a frame is sent whole or not at all, and the stream stays in step. */
Test(net_passt, sends_whole_frames)
{
	const struct iovec iov[] = { { packet, 5 }, { packet + 5, 7 + 30 }, { packet + 42, 58 } };
	const struct iovec large[] = { { packet, NET_PACKET_MAX } };
	static u8 in[KIB(512)], rest[NET_PACKET_MAX];
	size_t bytes = 0, at;
	u32 sent = 0, seen = 0, lost = 0;

	cr_assert_eq(passt->ops->send(passt, iov, 3, 100), 0);
	cr_assert_eq(recv(peer, in, sizeof(in), 0), 4 + 88);
	cr_assert_eq(memcmp(in, "\0\0\0\x58", 4), 0);
	cr_assert_eq(memcmp(in + 4, packet + 12, 88), 0);
	for (u32 i = 0; i < 200; i++) {
		if (passt->ops->send(passt, large, 1, NET_PACKET_MAX) == 0)
			sent++;
		else
			lost++;
	}
	cr_assert(sent > 0 && lost > 0);
	for (u32 i = 0; i < 1000; i++) {
		ssize_t n = recv(peer, in + bytes, sizeof(in) - bytes, 0);
		u32 length = 0;

		if (n > 0)
			bytes += (size_t)n;
		else if (i >= 900) /* what is left goes when something comes */
			cr_assert_eq(passt->ops->receive(passt, rest), 0);
		else if (passt->ops->send(passt, iov, 3, 100) == 0)
			sent++;
		for (at = 0; bytes - at >= 4; at += 4 + length) {
			memcpy(&length, in + at, 4);
			length = ntohl(length);
			cr_assert(length == NET_PACKET_MAX - HDR || length == 88);
			if (bytes - at < 4 + length)
				break;
			cr_assert_eq(memcmp(in + at + 4, packet + 12, length), 0);
			seen++;
		}
		memmove(in, in + at, bytes - at);
		bytes -= at;
	}
	cr_assert_eq(bytes, 0u);
	cr_assert_eq(seen, sent);
}
