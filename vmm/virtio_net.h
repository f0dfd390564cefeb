/* SPDX-License-Identifier: MIT */
/*
 * Network device (virtio 1.2, section 5.1): one pair of queues, on the main loop, and a back end
 * (net_backend.h). A packet goes from the guest's buffers to a tap, and from it by way of a buffer
 * of ours to the guest's, several of them if need be (MRG_RXBUF). With a tap checksums and
 * segmentation are the host kernel's (TUNSETOFFLOAD) as far as the driver agrees; it also checks
 * what the guest says of them in each packet's header.
 *
 * No control queue: filters are the tap's or the bridge's business.
 */
#ifndef BALLAST_VMM_VIRTIO_NET_H
#define BALLAST_VMM_VIRTIO_NET_H

#include "vmm/net_backend.h"
#include "vmm/virtio.h"

#define NET_MAC_BYTES 6

struct virtio_net_stats {
	u64 rx_packets, rx_bytes; /* to the guest; bytes without the virtio header */
	u64 tx_packets, tx_bytes;
	u64 rx_dropped; /* too large for the guest's buffers */
	u64 tx_dropped; /* malformed, or refused by the back end */
};

/* Takes the back end over, on failure, too. */
int virtio_net_new(struct vm *vm, struct net_backend *backend, const u8 mac[NET_MAC_BYTES],
		   struct virtio_device **ret);

void virtio_net_stats(struct virtio_device *d, struct virtio_net_stats *ret);

#endif
