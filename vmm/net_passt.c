/* SPDX-License-Identifier: MIT */
/*
 * The stream that passt(1) speaks with QEMU ("-netdev stream"): each Ethernet frame behind its
 * length, 32 bits, big-endian. A frame may come in pieces, and ours may go in pieces: what the
 * socket does not take is kept, and until it is gone other packets are lost, as on any full link.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "vmm/net_backend.h"

#define LENGTH_BYTES 4
#define FRAME_MAX    (NET_PACKET_MAX - NET_HEADER_BYTES)

struct passt {
	struct net_backend b;
	u8 in[LENGTH_BYTES + FRAME_MAX];
	size_t in_bytes;
	u8 out[LENGTH_BYTES + FRAME_MAX];
	size_t out_at, out_bytes; /* [out_at, out_bytes) is still to be sent */
};

static struct passt *passt_of(struct net_backend *b)
{
	return container_of(b, struct passt, b);
}

/* 0: nothing is left. */
static int flush_out(struct passt *p)
{
	while (p->out_at < p->out_bytes) {
		ssize_t sent = send(p->b.fd, p->out + p->out_at, p->out_bytes - p->out_at,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return -errno;
		p->out_at += (size_t)sent;
	}
	return 0;
}

static ssize_t passt_receive(struct net_backend *b, u8 *packet)
{
	struct passt *p = passt_of(b);

	/* What a full socket did not take: a chance to get rid of it, if no other packet comes. */
	flush_out(p);
	for (;;) {
		size_t want = LENGTH_BYTES;
		ssize_t got;
		u32 length = 0;

		if (p->in_bytes >= LENGTH_BYTES) {
			memcpy(&length, p->in, LENGTH_BYTES);
			length = ntohl(length);
			if (length < NET_ETHER_MIN || length > FRAME_MAX)
				return -EPROTO;
			want += length;
		}
		if (length && p->in_bytes == want) {
			/* No offloads: a header of zeros says nothing. */
			memset(packet, 0, NET_HEADER_BYTES);
			memcpy(packet + NET_HEADER_BYTES, p->in + LENGTH_BYTES, length);
			p->in_bytes = 0;
			return (ssize_t)(NET_HEADER_BYTES + length);
		}
		got = recv(b->fd, p->in + p->in_bytes, want - p->in_bytes, MSG_DONTWAIT);
		if (got < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		if (got == 0)
			return -EPIPE;
		p->in_bytes += (size_t)got;
	}
}

static int passt_send(struct net_backend *b, const struct iovec *iov, u32 nr, size_t bytes)
{
	struct passt *p = passt_of(b);
	size_t skip = NET_HEADER_BYTES, at = LENGTH_BYTES;
	u32 length = htonl((u32)(bytes - NET_HEADER_BYTES));
	int r = flush_out(p);

	if (r < 0)
		return r;
	memcpy(p->out, &length, LENGTH_BYTES);
	for (u32 i = 0; i < nr; i++) {
		size_t drop = MIN(skip, iov[i].iov_len);

		memcpy(p->out + at, (const u8 *)iov[i].iov_base + drop, iov[i].iov_len - drop);
		at += iov[i].iov_len - drop;
		skip -= drop;
	}
	p->out_at = 0;
	p->out_bytes = at;
	r = flush_out(p);
	/* The rest of it goes before the next packet. */
	return r == -EAGAIN ? 0 : r;
}

static void passt_free(struct net_backend *b)
{
	close(b->fd);
	free(passt_of(b));
}

static const struct net_backend_ops passt_ops = {
	.name = "passt",
	.receive = passt_receive,
	.send = passt_send,
	.free = passt_free,
};

int net_passt_adopt(int fd, struct net_backend **ret)
{
	struct passt *p = calloc(1, sizeof(*p));

	if (!p) {
		close(fd);
		return -ENOMEM;
	}
	p->b.ops = &passt_ops;
	p->b.fd = fd;
	*ret = &p->b;
	return 0;
}

int net_passt_open(const char *path, struct net_backend **ret)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd, r;

	if (!*path || strlen(path) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	strcpy(sa.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return net_passt_adopt(fd, ret);
}
