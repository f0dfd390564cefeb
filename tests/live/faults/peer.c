/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "tests/live/faults/world.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* All with the lock. */
static int sock = -1;	  /* the connection, which has been welcomed */
static u64 nr_connection; /* counts them */
static struct wire_range known[WIRE_REGIONS_MAX];
static u32 nr_known;
static u32 seq_asked, seq_done;
static struct wire_message done; /* the answer to seq_done */

static u32 seq_image; /* of the runs of an IMAGE; 0: none is asked for */

static int listener, store_fd, store_ro_fd, offered_fd = -1, swap_fd = -1;
static u64 store_bytes;
static struct wire_message rx, tx;

static void forget(u64 hva)
{
	for (u32 i = 0; i < nr_known; i++)
		if (known[i].hva == hva) {
			known[i] = known[--nr_known];
			return;
		}
}

/* What the agent wants there is what the store has at the file's offset: in two runs, of which the
 * second may fail where the first did not. */
static void give_image(void)
{
	const struct wire_image want = rx.image;
	u32 nr = (u32)(want.bytes >> PAGE_SHIFT);

	wire_init(&tx, WIRE_IMAGE_RUNS, ++seq_asked, 2 * sizeof(tx.runs[0]));
	tx.runs[0] = (struct wire_run){ want.hva, want.offset, nr / 2, WIRE_RUN_STORE };
	tx.runs[1] = (struct wire_run){ want.hva + nr / 2 * PAGE_BYTES,
					want.offset + nr / 2 * PAGE_BYTES, nr - nr / 2,
					WIRE_RUN_STORE };
	seq_image = seq_asked;
	(void)wire_send(sock, &tx, -1, PATIENCE_MS);
}

static void end_image(void)
{
	s32 worst = 0;

	for (u32 i = 0; i < wire_count(&rx); i++)
		worst = rx.segments[i].status ? rx.segments[i].status : worst;
	wire_init(&tx, WIRE_IMAGE_END, 0, sizeof(tx.image_end));
	tx.image_end = (struct wire_image_end){ .status = worst };
	seq_image = 0;
	(void)wire_send(sock, &tx, -1, PATIENCE_MS);
}

static void take_message(void)
{
	pthread_mutex_lock(&lock);
	switch (rx.h.type) {
	case WIRE_REGION_ADD:
		if (nr_known < WIRE_REGIONS_MAX)
			known[nr_known++] = (struct wire_range){ rx.region.hva, rx.region.bytes };
		break;
	case WIRE_REGION_DEL:
		forget(rx.range.hva);
		break;
	case WIRE_IMAGE:
		give_image();
		break;
	case WIRE_DONE:
		if (seq_image && rx.h.seq == seq_image)
			end_image();
		done = rx;
		seq_done = rx.h.seq;
		break;
	}
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static bool next_message(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	const char *why;
	int got = -1;
	bool right = poll(&p, 1, -1) == 1 && wire_recv(fd, &rx, &got, &why) == 0;

	if (got >= 0)
		close(got);
	return right;
}

static bool welcome(int fd)
{
	struct wire_message *m = &tx;

	if (!next_message(fd) || rx.h.type != WIRE_HELLO)
		return false;
	pthread_mutex_lock(&lock);
	memset(m, 0, sizeof(*m));
	wire_init(m, WIRE_WELCOME, 0, sizeof(m->welcome));
	m->welcome.version = WIRE_VERSION;
	m->welcome.store_bytes = store_bytes;
	nr_known = seq_image = 0;
	sock = fd;
	nr_connection++;
	pthread_cond_broadcast(&changed);
	bool sent = wire_send(fd, m, offered_fd < 0 ? store_ro_fd : offered_fd, PATIENCE_MS) == 0;
	pthread_mutex_unlock(&lock);
	return sent;
}

static void *peer_main(void *arg)
{
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			continue;
		if (welcome(fd))
			while (next_message(fd))
				take_message();
		pthread_mutex_lock(&lock);
		sock = -1;
		nr_known = 0;
		nr_connection++;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
		close(fd);
	}
	return NULL;
}

int peer_start(const char *socket_path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char path[64];
	pthread_t t;

	store_fd = memfd_create("store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (store_fd < 0 || write(store_fd, contents, sizeof(contents)) != sizeof(contents) ||
	    fcntl(store_fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
		return -errno;
	store_bytes = sizeof(contents);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", store_fd);
	store_ro_fd = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", socket_path);
	unlink(socket_path); /* of one that was stopped */
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (store_ro_fd < 0 || listener < 0 ||
	    bind(listener, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(listener, 16) < 0)
		return -errno;
	return -pthread_create(&t, NULL, peer_main, NULL);
}

void peer_store_grow(void)
{
	pthread_mutex_lock(&lock);
	if (ftruncate(store_fd, (off_t)(store_bytes + PAGE_BYTES)) == 0)
		store_bytes += PAGE_BYTES;
	pthread_mutex_unlock(&lock);
}

void peer_offer(int fd)
{
	pthread_mutex_lock(&lock);
	offered_fd = fd;
	pthread_mutex_unlock(&lock);
}

u64 peer_store_bytes(void)
{
	return store_bytes;
}

/* Waits with the lock held until @fn says so. */
static bool wait_until(bool (*fn)(u64 arg), u64 arg)
{
	struct timespec end;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += PATIENCE_MS / 1000;
	while (!fn(arg) && r == 0)
		r = pthread_cond_timedwait(&changed, &lock, &end);
	return fn(arg);
}

static bool is_known(u64 hva)
{
	for (u32 i = 0; sock >= 0 && i < nr_known; i++)
		if (known[i].hva == hva)
			return true;
	return false;
}

static bool is_unknown(u64 hva)
{
	return sock >= 0 && !is_known(hva);
}

bool peer_knows(u64 hva)
{
	pthread_mutex_lock(&lock);
	bool yes = wait_until(is_known, hva);
	pthread_mutex_unlock(&lock);
	return yes;
}

bool peer_forgets(u64 hva)
{
	pthread_mutex_lock(&lock);
	bool yes = wait_until(is_unknown, hva);
	pthread_mutex_unlock(&lock);
	return yes;
}

static bool is_answered(u64 connection)
{
	return nr_connection != connection || seq_done == seq_asked;
}

/* With the lock held: sends what is in @tx as the next request, waits for the answer. */
static int ask(void)
{
	u64 connection = nr_connection;

	tx.h.seq = ++seq_asked;
	if (sock < 0 || wire_send(sock, &tx, -1, PATIENCE_MS) < 0) {
		/* Nothing is known any more, until the agent connects again. */
		sock = -1;
		return -ECONNRESET;
	}
	if (!wait_until(is_answered, connection))
		return -ETIMEDOUT;
	return seq_done == seq_asked ? 0 : -ECONNRESET;
}

/* The answer names the pages asked for, each once and in order. */
static int read_answer(const struct wire_run *runs, u32 nr, s32 *status)
{
	const struct wire_segment *s = done.segments, *end = s + wire_count(&done);
	u32 used = 0, n = 0;

	for (u32 i = 0; i < nr; i++)
		for (u32 p = 0; p < runs[i].nr_pages; p++, used++) {
			if (s < end && used == s->nr_pages) {
				used = 0;
				s++;
			}
			if (s == end || s->hva + used * PAGE_BYTES != runs[i].hva + p * PAGE_BYTES)
				return -EPROTO;
			status[n++] = s->status;
		}
	return s < end && s + 1 == end && used == s->nr_pages ? 0 : -EPROTO;
}

static int ask_for_runs(u16 type, const struct wire_run *runs, u32 nr, s32 *status)
{
	int r;

	pthread_mutex_lock(&lock);
	wire_init(&tx, type, 0, nr * sizeof(*runs));
	memcpy(tx.runs, runs, nr * sizeof(*runs));
	r = ask();
	if (r == 0)
		r = read_answer(runs, nr, status);
	pthread_mutex_unlock(&lock);
	return r;
}

int peer_merge(const struct wire_run *runs, u32 nr, s32 *status)
{
	return ask_for_runs(WIRE_MERGE, runs, nr, status);
}

int peer_page_out(const struct wire_run *runs, u32 nr, s32 *status)
{
	return ask_for_runs(WIRE_PAGE_OUT, runs, nr, status);
}

void peer_swap_out(u64 bytes)
{
	pthread_mutex_lock(&lock);
	if (swap_fd >= 0 && sock >= 0) {
		wire_init(&tx, WIRE_SWAP_FILE, 0, 0);
		(void)wire_send(sock, &tx, swap_fd, PATIENCE_MS);
		wire_init(&tx, WIRE_SWAP_OUT, 0, sizeof(tx.swap_out));
		tx.swap_out = (struct wire_swap_out){ .bytes = bytes };
		(void)wire_send(sock, &tx, -1, PATIENCE_MS);
	}
	pthread_mutex_unlock(&lock);
}

void peer_swap_clear(void)
{
	if (swap_fd < 0)
		swap_fd = memfd_create("swap", MFD_CLOEXEC);
	if (ftruncate(swap_fd, 0) < 0)
		perror("ftruncate");
}

int peer_unmerge(u64 hva, u64 bytes)
{
	int r;

	pthread_mutex_lock(&lock);
	wire_init(&tx, WIRE_UNMERGE, 0, sizeof(tx.ranges[0]));
	tx.ranges[0] = (struct wire_range){ hva, bytes };
	r = ask();
	pthread_mutex_unlock(&lock);
	return r;
}
