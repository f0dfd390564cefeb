/* SPDX-License-Identifier: MIT */
/*
 * Where a network device's packets go to and come from. Packets here have a virtio_net_hdr_v1 in
 * front, 12 bytes, whatever the other side knows of it. On the main loop, never waiting.
 *
 *	tap	an interface of the host (net_tap.c): a descriptor that keeps packets apart
 *	passt	a process of its own user that has sockets and no privileges (net_passt.c;
 *passt(1)): a stream socket, each packet with its length in front, no offloads
 */
#ifndef BALLAST_VMM_NET_BACKEND_H
#define BALLAST_VMM_NET_BACKEND_H

#include <linux/virtio_net.h>
#include <sys/types.h>
#include <sys/uio.h>
#include "common/types.h"

#define NET_HEADER_BYTES sizeof(struct virtio_net_hdr_v1)
#define NET_ETHER_MIN	 14
/* The largest packet: 64 KiB of IP to be segmented, Ethernet and VLAN headers. */
#define NET_PACKET_MAX (NET_HEADER_BYTES + 65535 + 18)

struct net_backend;

struct net_backend_ops {
	const char *name;
	/* One packet into @packet (NET_PACKET_MAX bytes): its bytes; 0: none now; negative errno:
	 * the other side is gone, or talks nonsense. */
	ssize_t (*receive)(struct net_backend *b, u8 *packet);
	/* 0, or negative errno: the packet is lost. @bytes in all, at least header and Ethernet,
	 * at most NET_PACKET_MAX. */
	int (*send)(struct net_backend *b, const struct iovec *iov, u32 nr, size_t bytes);
	/* May be NULL. Which VIRTIO_NET_F_GUEST_* the driver has agreed to. */
	void (*set_offloads)(struct net_backend *b, u64 features);
	void (*free)(struct net_backend *b);
};

struct net_backend {
	const struct net_backend_ops *ops;
	int fd;	       /* readable when a packet may be there */
	bool offloads; /* computes checksums and segments */
};

/* Opens the tap interface @name, which exists or is made (then it needs CAP_NET_ADMIN). -ENOENT: no
 * /dev/net/tun; -EPERM: not ours; -EBUSY: in use; -EINVAL: no tap. */
int net_tap_open(const char *name, struct net_backend **ret);
/* The same on a descriptor that is there: a tap with such headers, or a packet socket of any kind
 * (then without offloads). It is taken over, on failure, too. */
int net_tap_adopt(int fd, struct net_backend **ret);

/* Connects to the socket that passt(1) made. -ENOENT, -ECONNREFUSED: nobody there. */
int net_passt_open(const char *path, struct net_backend **ret);
int net_passt_adopt(int fd, struct net_backend **ret);

void net_backend_free(struct net_backend *b); /* NULL is fine */

#endif
