/* SPDX-License-Identifier: MIT */
/*
 * The pager's swap file: what of its pool (pool.c) leaves this process's memory.
 *
 * The file is the daemon's gift: it makes it, unlinked, and passes the descriptor. From then on it
 * is ours alone, and lives as long as this process; the daemon is asked for nothing (invariants 6
 * and 8). Slabs are written as they are, up to 2 MiB at a time, each to its own place: offset in
 * the file = offset in the pool.
 *
 * Nothing is lost to a medium that is full or failing: a slab's memory is given back only once all
 * of it was written (past the page cache, or with that flushed). Where writing fails nothing is
 * written for a while, the daemon is told, and pages stay in memory. What is read back carries a
 * sum. A page that cannot be read again after some seconds ends the VM, as the kernel's own swap
 * ends a process: the guest never reads wrong bytes.
 *
 * A few threads, and not io_uring: this runs inside of VMMs whose seccomp filters know pread() and
 * pwrite() and refuse io_uring; there are as many reads as vCPUs that wait; and a write is 2 MiB.
 * They begin with the agent, since such filters may refuse new threads later on.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "hypervisor-hooks/agent.h"
#include "hypervisor-hooks/pool.h"

#define WRITE_SLABS    (MIB(2) / POOL_SLAB_BYTES)
#define WRITE_PAUSE_US 10000000 /* after a failure */
#define READ_TRIES     50
#define READ_PAUSE_US  100000
#define STACK_BYTES    (256 * 1024)

/* --- the file ----------------------------------------------------------------------------------
 */

static int read_all(int fd, void *to, size_t bytes, u64 offset)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n = pread(fd, (u8 *)to + done, bytes - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int write_all(int fd, const void *from, size_t bytes, u64 offset)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n =
			pwrite(fd, (const u8 *)from + done, bytes - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

const void *swap_read(struct bh_agent *a, const struct pool_place *at, void *blocks, u32 *ret_bytes)
{
	int err = 0;

	for (u32 tries = 0; tries < READ_TRIES; tries++) {
		const void *packed = NULL;

		err = read_all(a->swap.fd, blocks, at->bytes, at->offset);
		if (err == 0)
			packed = pool_read_check(at, blocks, ret_bytes);
		if (packed) {
			a->swap.read_pages++;
			return packed;
		}
		a->swap.failures++;
		a->swap.error = err ?: -EILSEQ;
		usleep((useconds_t)a->swap.read_pause_us);
	}
	agent_log(
		a,
		"a guest page cannot be read from the swap file (%s): stopping the VM rather than "
		"letting it read wrong bytes",
		err ? strerror(-err) : "its content is not what was written");
	abort();
}

int swap_use(struct bh_agent *a, int fd)
{
	struct stat st;
	int flags = fcntl(fd, F_GETFL);

	/* One is enough for a VM's life: pages are in it. */
	if (a->swap.fd >= 0)
		return -EEXIST;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (flags & O_ACCMODE) != O_RDWR)
		return -EINVAL;
	lock_step(a);
	a->swap.direct = flags & O_DIRECT;
	a->swap.fd = fd;
	pthread_mutex_unlock(&a->lock);
	return 0;
}

/* --- out ---------------------------------------------------------------------------------------
 */

bool swap_takes(const struct bh_agent *a)
{
	return a->swap.fd >= 0 && (!a->swap.retry_us || now_us() >= a->swap.retry_us);
}

void swap_out(struct bh_agent *a, u64 bytes)
{
	struct bh_swap *s = &a->swap;

	if (!a->pool || !swap_takes(a))
		return;
	s->wanted_bytes = MIN(s->wanted_bytes + bytes, pool_bytes(a->pool));
	if (s->wanted_bytes >= POOL_SLAB_BYTES)
		pthread_cond_signal(&s->work);
}

static void note_written(struct bh_agent *a, u64 bytes, int err)
{
	struct bh_swap *s = &a->swap;

	pager_note(a);
	if (err < 0) {
		s->failures++;
		s->error = err;
		s->wanted_bytes = 0;
		s->retry_us = now_us() + s->write_pause_us;
		return;
	}
	s->written_bytes += bytes;
	s->wanted_bytes -= MIN(s->wanted_bytes, bytes);
	s->error = 0;
	s->retry_us = 0;
}

/* With @lock held, which it leaves while it writes. */
static void write_some(struct bh_agent *a)
{
	struct bh_swap *s = &a->swap;
	u64 max = MIN(s->wanted_bytes / POOL_SLAB_BYTES, (u64)WRITE_SLABS), offset;
	const void *memory;
	u32 nr = pool_write_begin(a->pool, (u32)max, &offset, &memory);
	int err, said = s->error;

	if (!nr) {
		s->wanted_bytes = 0; /* all is out */
		return;
	}
	s->writing = true;
	pthread_mutex_unlock(&a->lock);
	err = write_all(s->fd, memory, (size_t)nr * POOL_SLAB_BYTES, offset);
	/* Only then is it known to have been written. */
	if (err == 0 && !s->direct && fdatasync(s->fd) < 0)
		err = -errno;
	if (err < 0 && err != said)
		agent_log(a,
			  "cannot write to the swap file (%s): pages stay in memory, trying again "
			  "every %u s",
			  strerror(-err), WRITE_PAUSE_US / 1000000);
	lock_step(a);
	s->writing = false;
	/* Invariant 8: until here the content was in memory, and there alone it counted. */
	pool_write_end(a->pool, offset, nr, err == 0);
	note_written(a, (u64)nr * POOL_SLAB_BYTES, err);
}

/* --- in ----------------------------------------------------------------------------------------
 */

bool swap_will_fill(struct bh_agent *a, u64 hva, u64 read_ns)
{
	struct bh_swap *s = &a->swap;
	struct bh_swap_request *room = NULL;

	for (u32 i = 0; i < SWAP_QUEUE; i++) {
		if (s->in[i].hva == hva)
			return true; /* two wait for it */
		if (!s->in[i].hva)
			room = &s->in[i];
	}
	if (!room || !s->threads_started)
		return false;
	*room = (struct bh_swap_request){ .hva = hva, .read_ns = read_ns };
	pthread_cond_signal(&s->work);
	return true;
}

static struct bh_swap_request *oldest_request(struct bh_swap *s)
{
	struct bh_swap_request *oldest = NULL;

	for (u32 i = 0; i < SWAP_QUEUE; i++)
		if (s->in[i].hva && !s->in[i].taken &&
		    (!oldest || s->in[i].read_ns < oldest->read_ns))
			oldest = &s->in[i];
	return oldest;
}

static struct bh_region *region_at(struct bh_agent *a, u64 hva, u64 *ret_page)
{
	struct bh_region *r = region_find(a, hva, PAGE_BYTES);

	*ret_page = r ? (hva - r->hva) >> PAGE_SHIFT : 0;
	return r;
}

/* With @lock held, which it leaves while it reads: the guest may discard the page meanwhile, or
 * somebody else bring it back. */
static void read_one(struct bh_agent *a, struct bh_swap_request *q)
{
	u8 blocks[POOL_PLACE_BLOCKS * POOL_BLOCK_BYTES] __attribute__((aligned(POOL_BLOCK_BYTES)));
	const struct bh_swap_request was = *q;
	struct pool_place at;
	u64 page;
	struct bh_region *r = region_at(a, was.hva, &page);
	u32 object = r ? pager_object(r, page) : POOL_NONE, bytes;

	q->taken = true;
	if (object != POOL_NONE && pool_on_medium(a->pool, object)) {
		const void *packed;

		pool_read_begin(a->pool, object, &at);
		pthread_mutex_unlock(&a->lock);
		packed = swap_read(a, &at, blocks, &bytes);
		lock_urgent(a);
		r = region_at(a, was.hva, &page);
		/* The same name is the same content: its place is not used again before
		 * pool_read_end(). */
		if (r && pager_object(r, page) == object)
			(void)pager_fill_read(a, r, page, packed, bytes);
		pool_read_end(a->pool, object);
		pager_note(a);
	} else if (object != POOL_NONE) {
		(void)pager_fill(a, r, page);
	}
	*q = (struct bh_swap_request){ 0 };
	pthread_mutex_unlock(&a->lock);
	uffd_wake(a->uffd, was.hva, PAGE_BYTES);
	fault_tell(a, was.hva, BH_FAULT_IN, was.read_ns);
	lock_urgent(a);
}

/* --- the threads -------------------------------------------------------------------------------
 */

void *swap_main(void *agent)
{
	struct bh_agent *a = agent;
	struct bh_swap *s = &a->swap;

	lock_urgent(a);
	while (!a->stop) {
		struct bh_swap_request *q = oldest_request(s);

		if (q)
			read_one(a, q); /* a guest waits for it */
		else if (s->wanted_bytes >= POOL_SLAB_BYTES && !s->writing)
			write_some(a);
		else
			pthread_cond_wait(&s->work, &a->lock);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

int swap_start(struct bh_agent *a)
{
	pthread_attr_t attr;
	int err = pthread_attr_init(&attr);

	a->swap.write_pause_us = WRITE_PAUSE_US;
	a->swap.read_pause_us = READ_PAUSE_US;
	if (err)
		return -err;
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	for (u32 i = 0; i < SWAP_THREADS && err == 0; i++) {
		err = pthread_create(&a->swap.threads[i], &attr, swap_main, a);
		if (err == 0) {
			pthread_setname_np(a->swap.threads[i], "ballast-swap");
			a->swap.threads_started++;
		}
	}
	pthread_attr_destroy(&attr);
	return -err;
}

void swap_stop(struct bh_agent *a)
{
	pthread_mutex_lock(&a->lock);
	pthread_cond_broadcast(&a->swap.work);
	pthread_mutex_unlock(&a->lock);
	for (u32 i = 0; i < a->swap.threads_started; i++)
		pthread_join(a->swap.threads[i], NULL);
	a->swap.threads_started = 0;
}
