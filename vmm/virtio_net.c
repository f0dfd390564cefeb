/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>
#include "vmm/virtio_net.h"
#include "vmm/vm.h"

#define QUEUE_RX 0
#define QUEUE_TX 1

/* Buffers that one packet may take: Linux's are at least a page or 1,500 bytes. */
#define MERGE_MAX 64
/* Packets a turn of the main loop. */
#define BUDGET 64

#define OFFLOADS                                                             \
	(1ULL << VIRTIO_NET_F_CSUM | 1ULL << VIRTIO_NET_F_GUEST_CSUM |       \
	 1ULL << VIRTIO_NET_F_GUEST_TSO4 | 1ULL << VIRTIO_NET_F_GUEST_TSO6 | \
	 1ULL << VIRTIO_NET_F_HOST_TSO4 | 1ULL << VIRTIO_NET_F_HOST_TSO6)

/* Everything is guarded by the device's lock. */
struct net {
	struct virtio_device d;
	struct virtio_net_config config;
	struct net_backend *backend;
	sd_event_source *source; /* of packets; off while the guest has no buffers */
	size_t pending;		 /* bytes of @packet that wait for buffers */
	struct virtio_net_stats stats;
	u8 packet[NET_PACKET_MAX];
};

static struct net *net_of(struct virtio_device *d)
{
	return container_of(d, struct net, d);
}

/* --- to the guest -------------------------------------------------------------------------------
 */

/* Puts the packet into as many buffers as it takes, and shows them to the driver together. 1: done
 * with the packet; 0: the guest has too few buffers now; negative errno: broken. */
static int deliver(struct net *n, const u8 *packet, size_t bytes)
{
	bool merge = virtio_has(&n->d, VIRTIO_NET_F_MRG_RXBUF);
	struct virtqueue *q = &n->d.queues[QUEUE_RX];
	/* The first, which has the header, and the one that is being filled. */
	struct virtqueue_request requests[2];
	size_t done = 0;
	u16 nr = 0;

	while (done < bytes) {
		struct virtqueue_request *to = &requests[nr > 0];
		size_t part;
		int e;

		if (nr == (merge ? MERGE_MAX : 1)) {
			virtqueue_unpop(q, nr);
			n->stats.rx_dropped++;
			return 1;
		}
		e = virtqueue_pop(q, to);
		if (e < 0)
			return e;
		if (e == 0) {
			virtqueue_unpop(q, nr);
			return 0;
		}
		if (to->in_bytes < NET_HEADER_BYTES) {
			q->broken = true;
			q->why_broken = "a receive buffer smaller than a header";
			return -EBADMSG;
		}
		part = virtqueue_write(to, 0, packet + done, bytes - done);
		virtqueue_fill(q, nr, to->head, (u32)part);
		done += part;
		nr++;
	}
	virtqueue_write(&requests[0], offsetof(struct virtio_net_hdr_v1, num_buffers), &nr,
			sizeof(nr));
	virtqueue_publish(q, nr);
	n->stats.rx_packets++;
	n->stats.rx_bytes += bytes - NET_HEADER_BYTES;
	return 1;
}

/* The other side is gone, and does not come back. */
static void link_down(struct net *n, int why)
{
	if (!(n->config.status & VIRTIO_NET_S_LINK_UP))
		return;
	vm_log(n->d.vm, "virtio net, device %u: the %s is gone: %s", n->d.index,
	       n->backend->ops->name, strerror(-why));
	n->config.status = 0;
	virtio_config_changed(&n->d);
}

/* Packets as long as there are buffers. Returns whether to wait for more packets (and not for
 * buffers). */
static bool receive(struct net *n)
{
	struct virtqueue *q = &n->d.queues[QUEUE_RX];
	u32 budget = BUDGET;
	int e = 1;

	virtqueue_kicks_off(q);
	while (budget--) {
		if (!n->pending) {
			ssize_t got = n->backend->ops->receive(n->backend, n->packet);

			if (got < 0)
				link_down(n, (int)got);
			if (got <= 0)
				break;
			n->pending = (size_t)got;
		}
		e = deliver(n, n->packet, n->pending);
		if (e == 0 && virtqueue_kicks_on(q)) {
			virtqueue_kicks_off(q);
			continue;
		}
		if (e <= 0)
			break;
		n->pending = 0;
	}
	if (e < 0)
		virtio_broken(&n->d, q->why_broken);
	virtio_interrupt(&n->d, q);
	return e > 0 && n->config.status & VIRTIO_NET_S_LINK_UP;
}

static bool may_run(const struct net *n)
{
	return n->d.live && !n->d.quiesced &&
	       !(atomic_load(&n->d.status) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void listen_if(struct net *n, bool on)
{
	sd_event_source_set_enabled(n->source, on ? SD_EVENT_ON : SD_EVENT_OFF);
}

static int on_packet(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct net *n = arg;

	pthread_mutex_lock(&n->d.lock);
	listen_if(n, may_run(n) && receive(n));
	pthread_mutex_unlock(&n->d.lock);
	return 0;
}

/* --- from the guest -----------------------------------------------------------------------------
 */

static void send_packet(struct net *n, const struct virtqueue_request *r)
{
	int e = -EMSGSIZE;

	if (r->out_bytes >= NET_HEADER_BYTES + NET_ETHER_MIN && r->out_bytes <= NET_PACKET_MAX)
		e = n->backend->ops->send(n->backend, r->iov, r->nr_out, r->out_bytes);
	if (e == 0) {
		n->stats.tx_packets++;
		n->stats.tx_bytes += r->out_bytes - NET_HEADER_BYTES;
	} else {
		n->stats.tx_dropped++;
	}
}

static void transmit(struct net *n)
{
	struct virtqueue *q = &n->d.queues[QUEUE_TX];
	struct virtqueue_request r;
	u32 budget = BUDGET;
	int e;

	do {
		virtqueue_kicks_off(q);
		while (budget && (e = virtqueue_pop(q, &r)) != 0) {
			if (e < 0) {
				virtio_broken(&n->d, q->why_broken);
				return;
			}
			send_packet(n, &r);
			virtqueue_push(q, r.head, 0);
			budget--;
		}
		if (!budget) {
			virtio_kick(&n->d, QUEUE_TX);
			break;
		}
	} while (virtqueue_kicks_on(q));
	virtio_interrupt(&n->d, q);
}

/* --- the device ---------------------------------------------------------------------------------
 */

static void net_kick(struct virtio_device *d, u32 q)
{
	struct net *n = net_of(d);

	if (q == QUEUE_TX)
		transmit(n);
	else
		listen_if(n, receive(n));
}

static void set_offloads(struct net *n, u64 features)
{
	if (n->backend->ops->set_offloads)
		n->backend->ops->set_offloads(n->backend, features);
}

static int net_start(struct virtio_device *d)
{
	set_offloads(net_of(d), d->features);
	/* The main loop listens for packets, not the vCPU's thread that we are on. */
	virtio_kick(d, QUEUE_RX);
	return 0;
}

static void net_reset(struct virtio_device *d)
{
	struct net *n = net_of(d);

	n->pending = 0;
	set_offloads(n, 0);
}

static void net_quiesce(struct virtio_device *d)
{
	listen_if(net_of(d), false);
}

static void net_config_read(struct virtio_device *d, u32 offset, void *data, u32 bytes)
{
	memcpy(data, (u8 *)&net_of(d)->config + offset, bytes);
}

static void net_free(struct virtio_device *d)
{
	struct net *n = net_of(d);

	sd_event_source_disable_unref(n->source);
	net_backend_free(n->backend);
	virtio_device_fini(d);
	free(n);
}

static const struct virtio_ops net_ops = {
	.name = "net",
	.id = VIRTIO_ID_NET,
	.nr_queues = 2,
	.queue_size = VIRTQUEUE_SIZE_MAX,
	.kick = net_kick,
	.start = net_start,
	.reset = net_reset,
	.quiesce = net_quiesce,
	/* No resume: the transport kicks the receive queue. */
	.config_read = net_config_read,
	.free = net_free,
};

int virtio_net_new(struct vm *vm, struct net_backend *backend, const u8 mac[NET_MAC_BYTES],
		   struct virtio_device **ret)
{
	struct net *n = calloc(1, sizeof(*n));
	u64 offered = 1ULL << VIRTIO_NET_F_MAC | 1ULL << VIRTIO_NET_F_STATUS |
		      1ULL << VIRTIO_NET_F_MRG_RXBUF;
	int r;

	if (!n) {
		net_backend_free(backend);
		return -ENOMEM;
	}
	n->backend = backend;
	virtio_device_init(&n->d, vm, &net_ops, offered | (backend->offloads ? OFFLOADS : 0),
			   offsetof(struct virtio_net_config, max_virtqueue_pairs));
	memcpy(n->config.mac, mac, NET_MAC_BYTES);
	n->config.status = VIRTIO_NET_S_LINK_UP;
	r = sd_event_add_io(vm->loop, &n->source, backend->fd, EPOLLIN, on_packet, n);
	if (r < 0) {
		virtio_free(&n->d);
		return r;
	}
	listen_if(n, false);
	*ret = &n->d;
	return 0;
}

void virtio_net_stats(struct virtio_device *d, struct virtio_net_stats *ret)
{
	pthread_mutex_lock(&d->lock);
	*ret = net_of(d)->stats;
	pthread_mutex_unlock(&d->lock);
}
