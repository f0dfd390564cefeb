/* SPDX-License-Identifier: MIT */
/*
 * The thread "ballast-agent": keeps the connection to the daemon, does what it asks, tells it what
 * changed.
 *
 * When the connection breaks nothing happens to the guest: mappings stay, and the thread tries to
 * connect again once a second for as long as the VM lives.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"
#include "hypervisor-hooks/agent.h"

#define HANDSHAKE_MS                                                                          \
	1000 /* a VM's start may wait this long, once, for a daemon that accepts but does not \
		answer */
#define RETRY_MS 1000
/* How often PAGER is sent at most. */
#define PAGER_TELL_US 500000
#define SEND_MS	      5000

static int open_socket(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const struct timeval wait = { .tv_sec = HANDSHAKE_MS / 1000 };
	int fd, err;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* When the daemon's backlog is full, for a moment. */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0) {
		fcntl(fd, F_SETFL, O_NONBLOCK);
		return fd;
	}
	err = errno;
	close(fd);
	return -err;
}

static int wait_readable(int fd, int timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int n = poll(&p, 1, timeout_ms);

	return n > 0 ? 0 : n == 0 ? -ETIMEDOUT : -errno;
}

/* Takes the store's descriptor of a WELCOME. The mappings of an earlier store stay: the daemon sees
 * them. */
static int adopt_store(struct bh_agent *a, int fd, u64 bytes)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (fstat(fd, &st) < 0 || (u64)st.st_size < bytes ||
	    (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
		return -EPROTO;
	/* Without this seal the file could shrink under the guest's mappings, and accesses would be
	 * SIGBUS. What is no memfd has none (-1). */
	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return -EPROTO;
	if (a->store_fd >= 0)
		close(a->store_fd);
	a->store_fd = fd;
	a->store_bytes = (u64)st.st_size;
	return 0;
}

static int shake_hands(struct bh_agent *a, int sock)
{
	const char *why;
	int fd = -1, r;

	wire_init(a->tx, WIRE_HELLO, 0, sizeof(a->tx->hello));
	a->tx->hello = (struct wire_hello){
		.version_lowest = WIRE_VERSION_LOWEST,
		.version_highest = WIRE_VERSION,
		.page_bytes = PAGE_BYTES,
	};
	memcpy(a->tx->hello.name, a->name, sizeof(a->name));
	memcpy(a->tx->hello.uuid, a->uuid, sizeof(a->uuid));
	r = wire_send(sock, a->tx, -1, HANDSHAKE_MS);
	if (r == 0)
		r = wait_readable(sock, HANDSHAKE_MS);
	if (r == 0)
		r = wire_recv(sock, a->rx, &fd, &why);
	if (r < 0) {
		if (fd >= 0)
			close(fd);
		return r;
	}
	if (a->rx->h.type == WIRE_REFUSE) {
		agent_log(a, "the daemon refused this VM: %s", a->rx->refuse.reason);
		return -ECONNABORTED;
	}
	if (a->rx->h.type != WIRE_WELCOME) {
		return -EPROTO;
	}
	if (a->rx->welcome.version < WIRE_VERSION_LOWEST || a->rx->welcome.version > WIRE_VERSION ||
	    adopt_store(a, fd, a->rx->welcome.store_bytes) < 0) {
		close(fd);
		return -EPROTO;
	}
	return 0;
}

int link_connect(struct bh_agent *a)
{
	int sock = open_socket(a->socket_path), r;

	if (sock < 0)
		return sock;
	r = shake_hands(a, sock);
	if (r < 0) {
		close(sock);
		return r;
	}
	/* A new connection knows of no region, and reads the state of mappings by itself. */
	pthread_mutex_lock(&a->lock);
	for (u32 i = 0; i < a->nr_regions; i++)
		a->regions[i]->announced = false;
	a->nr_discards = a->nr_deleted = 0;
	a->resync = false;
	pthread_mutex_unlock(&a->lock);
	reads_forget(a);
	a->pager_told = (struct wire_pager){ 0 };
	/* Like none that there is: whether it has a file is told at once. */
	a->swap_told = (struct wire_swap){ .has_file = UINT64_MAX };
	a->figures_told_us = 0;
	a->latency_told = (struct wire_latency){ 0 };
	a->version = a->rx->welcome.version;
	a->sock = sock;
	a->connected = true;
	return 0;
}

static int tell_deleted(struct bh_agent *a)
{
	struct wire_range gone[WIRE_REGIONS_MAX];
	u32 n;
	int r = 0;

	pthread_mutex_lock(&a->lock);
	n = a->nr_deleted;
	memcpy(gone, a->deleted, n * sizeof(gone[0]));
	a->nr_deleted = 0;
	pthread_mutex_unlock(&a->lock);
	for (u32 i = 0; i < n && r == 0; i++) {
		wire_init(a->tx, WIRE_REGION_DEL, 0, sizeof(a->tx->range));
		a->tx->range = gone[i];
		r = wire_send(a->sock, a->tx, -1, SEND_MS);
	}
	return r;
}

static int tell_regions(struct bh_agent *a)
{
	for (;;) {
		struct bh_region *r = NULL;

		pthread_mutex_lock(&a->lock);
		for (u32 i = 0; i < a->nr_regions && !r; i++)
			if (!a->regions[i]->announced)
				r = a->regions[i];
		if (r) {
			wire_init(a->tx, WIRE_REGION_ADD, 0, sizeof(a->tx->region));
			a->tx->region = (struct wire_region){ .hva = r->hva,
							      .bytes = r->bytes,
							      .gpa = r->gpa };
			memcpy(a->tx->region.name, r->name, sizeof(r->name));
			r->announced = true;
		}
		pthread_mutex_unlock(&a->lock);
		if (!r)
			return 0;
		int err = wire_send(a->sock, a->tx, -1, SEND_MS);
		if (err < 0)
			return err;
	}
}

static int tell_discards(struct bh_agent *a)
{
	u32 n;

	pthread_mutex_lock(&a->lock);
	n = a->nr_discards;
	memcpy(a->tx->ranges, a->discards, n * sizeof(a->tx->ranges[0]));
	a->nr_discards = 0;
	pthread_mutex_unlock(&a->lock);
	if (!n)
		return 0;
	wire_init(a->tx, WIRE_DISCARD, 0, n * sizeof(a->tx->ranges[0]));
	return wire_send(a->sock, a->tx, -1, SEND_MS);
}

/* What the pager did, if that is news and was not told a moment ago. */
static int tell_pager(struct bh_agent *a, bool at_once)
{
	const struct wire_pager now = {
		.pages = a->pager.pages,
		.pool_bytes = a->pager.pool_bytes,
		.out_total = a->pager.out_total,
		.in_total = a->pager.in_total,
		.zero_total = a->pager.zero_total,
		.sample_round = a->pager.round,
		.sampled = a->pager.sampled,
		.sample_faults = a->pager.sample_faults,
	};

	if (a->version < WIRE_PAGER_VERSION || memcmp(&now, &a->pager_told, sizeof(now)) == 0 ||
	    (!at_once && now_us() - a->pager_told_us < PAGER_TELL_US))
		return 0;
	a->pager_told = now;
	a->pager_told_us = now_us();
	wire_init(a->tx, WIRE_PAGER, 0, sizeof(a->tx->pager));
	a->tx->pager = now;
	return wire_send(a->sock, a->tx, -1, SEND_MS);
}

/* Once the pause after a failure is over it is to be tried again: nobody asks for what fails. */
static s64 swap_error(const struct bh_agent *a)
{
	return a->swap.fd < 0 || swap_takes(a) ? 0 : a->swap.error;
}

static int tell_swap(struct bh_agent *a)
{
	const struct wire_swap now = {
		.has_file = a->swap.fd >= 0,
		.bytes = a->swap.medium_bytes,
		.written_bytes = a->swap.written_bytes,
		.read_pages = a->swap.read_pages,
		.failures = a->swap.failures,
		.error = swap_error(a),
	};

	if (memcmp(&now, &a->swap_told, sizeof(now)) == 0)
		return 0;
	a->swap_told = now;
	wire_init(a->tx, WIRE_SWAP, 0, sizeof(a->tx->swap));
	a->tx->swap = now;
	return wire_send(a->sock, a->tx, -1, SEND_MS);
}

_Static_assert(WIRE_LATENCY_BUCKETS == BH_LATENCY_BUCKETS && WIRE_LATENCY_KINDS == BH_FAULT_KINDS,
	       "they are told as they are");

static int tell_latency(struct bh_agent *a)
{
	struct wire_latency *now = &a->tx->latency;

	wire_init(a->tx, WIRE_LATENCY, 0, sizeof(*now));
	for (u32 k = 0; k < BH_FAULT_KINDS; k++) {
		now->kinds[k].sum_ns = a->latency[k].sum_ns;
		for (u32 i = 0; i < BH_LATENCY_BUCKETS; i++)
			now->kinds[k].buckets[i] = a->latency[k].buckets[i];
	}
	if (memcmp(now, &a->latency_told, sizeof(*now)) == 0)
		return 0;
	a->latency_told = *now;
	return wire_send(a->sock, a->tx, -1, SEND_MS);
}

/* Figures of no urgency. */
static int tell_figures(struct bh_agent *a)
{
	int r;

	if (a->version < WIRE_SWAP_VERSION || now_us() - a->figures_told_us < PAGER_TELL_US)
		return 0;
	a->figures_told_us = now_us();
	r = tell_swap(a);
	return r < 0 ? r : tell_latency(a);
}

/* All that the daemon has to know, in the order in which it must know it. */
static int tell_news(struct bh_agent *a)
{
	int r;

	if (a->resync)
		return -ESTALE;
	if (a->unwatched) {
		lock_step(a);
		regions_watch(a);
		pthread_mutex_unlock(&a->lock);
	}
	r = tell_deleted(a);
	if (r == 0)
		r = tell_regions(a);
	if (r == 0)
		r = tell_discards(a);
	if (r == 0)
		r = reads_tell(a);
	if (r == 0)
		r = image_tell(a);
	if (r == 0)
		r = tell_pager(a, atomic_exchange(&a->pager.wake, false));
	if (r == 0)
		r = tell_figures(a);
	return r;
}

/* Appends pages with their status to a DONE, equal neighbours as one segment. */
static u32 add_segments(struct bh_agent *a, u32 nr_segments, u64 hva, const s32 *status, u32 nr)
{
	for (u32 i = 0; i < nr; i++, hva += PAGE_BYTES) {
		struct wire_segment *last = nr_segments ? &a->tx->segments[nr_segments - 1] : NULL;

		if (last && last->status == status[i] &&
		    last->hva + ((u64)last->nr_pages << PAGE_SHIFT) == hva)
			last->nr_pages++;
		else
			a->tx->segments[nr_segments++] = (struct wire_segment){
				.hva = hva, .nr_pages = 1, .status = status[i]
			};
	}
	return nr_segments;
}

static int send_done(struct bh_agent *a, u32 seq, u32 nr_segments)
{
	wire_init(a->tx, WIRE_DONE, seq,
		  sizeof(a->tx->done) + nr_segments * sizeof(a->tx->segments[0]));
	a->tx->done = (struct wire_done){
		.cpu_us = agent_cpu_us(a),
		.wait_faults = a->wait_faults,
		.fill_faults = a->fill_faults,
	};
	return wire_send(a->sock, a->tx, -1, SEND_MS);
}

/* While pages are out, what comes back is told soon, the last of them too. */
static bool has_figures(const struct bh_agent *a)
{
	if (a->version >= WIRE_SWAP_VERSION &&
	    (a->swap.medium_bytes != a->swap_told.bytes ||
	     a->swap.read_pages != a->swap_told.read_pages || swap_error(a) || a->swap_told.error))
		return true;
	return a->version >= WIRE_PAGER_VERSION &&
	       (a->pager.pages || a->pager.in_total != a->pager_told.in_total);
}

/* < 0: nothing to wake up for. */
static int wait_ms(const struct bh_agent *a, int reads_ms)
{
	int pager_ms = has_figures(a) ? PAGER_TELL_US / 1000 : -1;

	if (reads_ms < 0 || pager_ms < 0)
		return MAX(reads_ms, pager_ms);
	return MIN(reads_ms, pager_ms);
}

/* MERGE, IMAGE_RUNS and PAGE_OUT. */
static int do_runs(struct bh_agent *a)
{
	u32 nr_segments = 0, pages = 0;
	int r = 0;

	if (a->rx->h.type == WIRE_IMAGE_RUNS)
		image_map(a, a->rx->runs, wire_count(a->rx), a->status);
	else
		merge_runs(a, a->rx->runs, wire_count(a->rx), a->status);
	/* Before @tx is filled with the answer. */
	if (a->rx->h.type == WIRE_PAGE_OUT)
		r = tell_pager(a, true);
	if (r < 0)
		return r;
	for (u32 i = 0; i < wire_count(a->rx) && !a->stop; i++) {
		const struct wire_run *run = &a->rx->runs[i];

		nr_segments =
			add_segments(a, nr_segments, run->hva, a->status + pages, run->nr_pages);
		pages += run->nr_pages;
	}
	/* Cut short by bh_free(): that would be no answer to what was asked. */
	return a->stop ? -ECANCELED : send_done(a, a->rx->h.seq, nr_segments);
}

static int do_unmerge(struct bh_agent *a)
{
	u32 nr_segments = 0;

	for (u32 i = 0; i < wire_count(a->rx) && !a->stop; i++) {
		u64 pages = a->rx->ranges[i].bytes >> PAGE_SHIFT;

		for (u64 done = 0, n; done < pages && !a->stop; done += n) {
			n = MIN(pages - done, WIRE_PAGES_MAX);
			unmerge_range(a, a->rx->ranges[i].hva + (done << PAGE_SHIFT), n, a->status);
		}
	}
	return a->stop ? -ECANCELED : send_done(a, a->rx->h.seq, nr_segments);
}

/* Takes over @fd. */
static void do_swap_file(struct bh_agent *a, int fd)
{
	int r = swap_use(a, fd);

	if (r == 0)
		return;
	close(fd);
	if (r != -EEXIST)
		agent_log(a, "the daemon's swap file is not used: %s", strerror(-r));
}

static void do_swap_out(struct bh_agent *a, u64 bytes)
{
	lock_step(a);
	swap_out(a, bytes);
	pthread_mutex_unlock(&a->lock);
}

static int serve(struct bh_agent *a)
{
	const char *why;
	int fd = -1, r = wire_recv(a->sock, a->rx, &fd, &why);

	if (fd >= 0 && (r < 0 || a->rx->h.type != WIRE_SWAP_FILE)) {
		close(fd);
		r = -EPROTO;
	}
	if (r < 0)
		return r == -EAGAIN ? 0 : r;
	switch (a->rx->h.type) {
	case WIRE_MERGE:
	case WIRE_IMAGE_RUNS:
	case WIRE_PAGE_OUT:
		return do_runs(a);
	case WIRE_IMAGE_END:
		image_end(a, a->rx->image_end.status, false);
		return 0;
	case WIRE_UNMERGE:
		return do_unmerge(a);
	case WIRE_SWAP_FILE:
		do_swap_file(a, fd);
		return 0;
	case WIRE_PACE:
		a->pager.pace = a->rx->pace.pages;
		a->pager.pace_until_us = now_us() + a->rx->pace.ms * 1000ull;
		return 0;
	case WIRE_SWAP_OUT:
		do_swap_out(a, a->rx->swap_out.bytes);
		return 0;
	default:
		return -EPROTO;
	}
}

static void drain(int fd)
{
	u64 count;

	if (read(fd, &count, sizeof(count)) < 0)
		return;
}

void *link_main(void *agent)
{
	struct bh_agent *a = agent;

	while (!a->stop) {
		struct pollfd p[] = {
			{ .fd = a->wake_fd, .events = POLLIN },
			{ .fd = a->sock, .events = POLLIN },
		};
		int r;

		if (a->sock < 0) {
			poll(p, 1, RETRY_MS);
			drain(a->wake_fd);
			if (!a->stop && link_connect(a) == 0)
				agent_log(a, "connected to the daemon again");
			else
				continue;
			p[1].fd = a->sock;
		}
		r = tell_news(a);
		if (r == 0 && poll(p, 2, wait_ms(a, reads_wait_ms(a))) > 0) {
			if (p[0].revents)
				drain(a->wake_fd);
			if (p[1].revents)
				r = serve(a);
		}
		if (r < 0) {
			close(a->sock);
			a->sock = -1;
			a->connected = false;
			a->version = 0;
			image_end(a, -ECONNRESET, true);
			/* ESTALE: our own wish, to have all told anew. */
			if (!a->stop && r != -ESTALE)
				agent_log(
					a,
					"lost the daemon (%s): merged memory stays as it is, trying "
					"again every second",
					strerror(-r));
		}
	}
	image_end(a, -ECONNRESET, true);
	return NULL;
}
