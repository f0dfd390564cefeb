/* SPDX-License-Identifier: MIT */
/*
 * Which guest pages came from which block of a base image: noted by the VMM's I/O threads, told to
 * the daemon by the link thread. The daemon finds two guests that read the same block, and has both
 * pages looked at without waiting for a scan (ksmd/blocks.h).
 *
 * All of it is hints. What does not fit in the queue, or in the daemon's socket, is dropped, and
 * nobody ever waits: the queue has a lock of its own, which is held for a few instructions, or for
 * copying the queue out.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include "common/clock.h"
#include "hypervisor-hooks/agent.h"

/* So long a note waits for others, so that many are one message, and that the guest can begin to
 * use what it has read: a page that it changes at once is not worth sharing. */
#define TELL_AFTER_US 10000
/* From then on a note does not wait. */
#define TELL_AT	      (WIRE_READS_MAX / 2)
#define TELL_AT_PAGES (WIRE_READ_PAGES_MAX / 2)
/* What version has DISK_READ. */
#define READS_VERSION 2
#define SECTOR_BYTES  512

/* Half of SplitMix64: enough to spread what identifies a file over 64 bits. */
static u64 mix(u64 x, u64 value)
{
	x = (x ^ value) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

int bh_disk_identity(int fd, struct bh_disk *ret)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	for (u32 i = 0; i < ARRAY_SIZE(ret->id); i++) {
		u64 x = mix(i + 1, st.st_dev);

		x = mix(x, st.st_ino);
		x = mix(x, (u64)st.st_size);
		x = mix(x, (u64)st.st_ctim.tv_sec);
		x = mix(x, (u64)st.st_ctim.tv_nsec);
		x = mix(x, (u64)st.st_mtim.tv_sec);
		ret->id[i] = mix(x, (u64)st.st_mtim.tv_nsec);
	}
	return 0;
}

/* @last goes on in @r. */
static bool continues(const struct wire_read *last, const struct wire_read *r)
{
	u64 bytes = (u64)last->nr_pages << PAGE_SHIFT;

	return last->hva + bytes == r->hva && last->sector + bytes / SECTOR_BYTES == r->sector &&
	       memcmp(last->disk, r->disk, sizeof(r->disk)) == 0;
}

/* True: the link thread has to know. */
static bool add(struct bh_reads *q, const struct wire_read *r)
{
	struct wire_read *last = q->nr ? &q->queue[q->nr - 1] : NULL;
	u32 nr = q->nr, pages = q->pages;

	if (q->pages + r->nr_pages > WIRE_READ_PAGES_MAX) {
		q->dropped += r->nr_pages;
		return false;
	}
	if (last && continues(last, r)) {
		last->nr_pages += r->nr_pages;
	} else if (q->nr < WIRE_READS_MAX) {
		q->queue[q->nr++] = *r;
	} else {
		q->dropped += r->nr_pages;
		return false;
	}
	q->pages += r->nr_pages;
	if (!pages)
		q->since_us = now_us();
	/* Once when there is one, and once when there are many. */
	return !pages || (nr < TELL_AT && q->nr >= TELL_AT) ||
	       (pages < TELL_AT_PAGES && q->pages >= TELL_AT_PAGES);
}

void bh_note_disk_read(struct bh_agent *a, const void *from, size_t bytes,
		       const struct bh_disk *disk, uint64_t sector)
{
	u64 hva = (u64)(uintptr_t)from, end = ROUND_DOWN(hva + bytes, PAGE_BYTES);
	u64 first = ROUND_UP(hva, PAGE_BYTES), nr;
	struct wire_read r;
	bool kick;

	if (!a || a->dead || a->version < READS_VERSION || hva + bytes < hva || end <= first ||
	    first < hva || (first - hva) % SECTOR_BYTES)
		return;
	nr = (end - first) >> PAGE_SHIFT;
	if (nr > WIRE_READ_PAGES_MAX || sector > (u64)1 << 61) {
		a->reads.dropped += nr;
		return;
	}
	r = (struct wire_read){
		.hva = first,
		.disk = { disk->id[0], disk->id[1] },
		.sector = sector + (first - hva) / SECTOR_BYTES,
		.nr_pages = (u32)nr,
	};
	pthread_mutex_lock(&a->reads.lock);
	kick = add(&a->reads, &r);
	pthread_mutex_unlock(&a->reads.lock);
	if (kick)
		agent_kick(a);
}

void bh_note_written(struct bh_agent *a, const void *from, size_t bytes)
{
	u64 hva = (u64)(uintptr_t)from;
	struct bh_reads *q;

	if (!a || a->dead)
		return;
	q = &a->reads;
	pthread_mutex_lock(&q->lock);
	/* Only what was not told yet: the daemon finds out by itself. */
	for (u32 i = q->nr; i-- > 0;) {
		const struct wire_read *r = &q->queue[i];

		if (r->hva >= hva + bytes || hva >= r->hva + ((u64)r->nr_pages << PAGE_SHIFT))
			continue;
		q->pages -= r->nr_pages;
		q->dropped += r->nr_pages;
		q->queue[i] = q->queue[--q->nr];
	}
	pthread_mutex_unlock(&q->lock);
}

void reads_forget(struct bh_agent *a)
{
	pthread_mutex_lock(&a->reads.lock);
	a->reads.dropped += a->reads.pages;
	a->reads.nr = a->reads.pages = 0;
	pthread_mutex_unlock(&a->reads.lock);
}

int reads_wait_ms(struct bh_agent *a)
{
	struct bh_reads *q = &a->reads;
	int ms = -1;

	pthread_mutex_lock(&q->lock);
	if (q->nr) {
		u64 now = now_us(), due = q->since_us + TELL_AFTER_US;

		if (q->nr >= TELL_AT || q->pages >= TELL_AT_PAGES || now >= due)
			ms = 0;
		else
			ms = (int)DIV_ROUND_UP(due - now, 1000);
	}
	pthread_mutex_unlock(&q->lock);
	return ms;
}

int reads_tell(struct bh_agent *a)
{
	struct bh_reads *q = &a->reads;
	u32 nr, pages;
	int err;

	if (reads_wait_ms(a) != 0)
		return 0;
	pthread_mutex_lock(&q->lock);
	nr = q->nr;
	pages = q->pages;
	memcpy(a->tx->reads, q->queue, nr * sizeof(q->queue[0]));
	q->nr = q->pages = 0;
	pthread_mutex_unlock(&q->lock);
	if (!nr)
		return 0;
	wire_init(a->tx, WIRE_DISK_READ, 0, nr * sizeof(a->tx->reads[0]));
	err = wire_send(a->sock, a->tx, -1, 0);
	*(err == 0 ? &q->noted : &q->dropped) += pages;
	return err == -EAGAIN ? 0 : err;
}
