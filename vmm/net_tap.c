/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "vmm/net_backend.h"

_Static_assert(sizeof(struct virtio_net_hdr_v1) == 12, "TUNSETVNETHDRSZ");

/* What the driver agrees to, as the tap knows it. */
static const struct {
	u32 feature, tun;
} guest_offloads[] = {
	{ VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM },
	{ VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4 },
	{ VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6 },
};

static ssize_t tap_receive(struct net_backend *b, u8 *packet)
{
	ssize_t got = read(b->fd, packet, NET_PACKET_MAX);

	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	/* A tap gives none without a header. The end of a socket. */
	return got < (ssize_t)NET_HEADER_BYTES ? -EPIPE : got;
}

static int tap_send(struct net_backend *b, const struct iovec *iov, u32 nr, size_t bytes)
{
	ssize_t sent = writev(b->fd, iov, (int)nr);

	if (sent < 0)
		return -errno;
	return sent == (ssize_t)bytes ? 0 : -EIO;
}

static void tap_set_offloads(struct net_backend *b, u64 features)
{
	unsigned int flags = 0;

	for (u32 i = 0; i < ARRAY_SIZE(guest_offloads); i++) {
		if (features >> guest_offloads[i].feature & 1)
			flags |= guest_offloads[i].tun;
	}
	/* Without TUN_F_CSUM the tap takes none of the others. */
	if (!(flags & TUN_F_CSUM))
		flags = 0;
	if (b->offloads)
		ioctl(b->fd, TUNSETOFFLOAD, flags);
}

static void tap_free(struct net_backend *b)
{
	close(b->fd);
	free(b);
}

static const struct net_backend_ops tap_ops = {
	.name = "tap",
	.receive = tap_receive,
	.send = tap_send,
	.set_offloads = tap_set_offloads,
	.free = tap_free,
};

int net_tap_adopt(int fd, struct net_backend **ret)
{
	struct net_backend *b = calloc(1, sizeof(*b));

	if (!b || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) {
		int r = b ? -errno : -ENOMEM;

		free(b);
		close(fd);
		return r;
	}
	b->ops = &tap_ops;
	b->fd = fd;
	b->offloads = ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) == 0;
	tap_set_offloads(b, 0);
	*ret = b;
	return 0;
}

int net_tap_open(const char *name, struct net_backend **ret)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int header = NET_HEADER_BYTES, fd, r;

	if (!*name || strlen(name) >= sizeof(ifr.ifr_name))
		return -EINVAL;
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	strcpy(ifr.ifr_name, name);
	if (ioctl(fd, TUNSETIFF, &ifr) < 0 || ioctl(fd, TUNSETVNETHDRSZ, &header) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return net_tap_adopt(fd, ret);
}

void net_backend_free(struct net_backend *b)
{
	if (b)
		b->ops->free(b);
}
