/* SPDX-License-Identifier: MIT */
/*
 * Memory that begins as a snapshot's: a private mapping of the store, page for page, which the
 * daemon has filled from the snapshot's file (ksmd/image.c).
 *
 * A VMM's thread waits in bh_region_from_image(); the link thread asks the daemon, maps what it
 * says, and wakes the thread up. From then on the pages are as if they had been merged.
 *
 * Nothing is compared, since there is nothing yet to compare with, so more is asked for: the pages
 * are in the range that the VMM gave, while it waits; the kernel says that they are empty; and none
 * is foreign, pinned or mapped. The guest does not run, so nothing is hidden from it by the one
 * mmap() that replaces an empty mapping (invariant 1).
 *
 * All or nothing: where a page fails, the range is made empty again.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "hypervisor-hooks/agent.h"

#define IMAGE_VERSION 2
/* For reading some GiB from a disk. */
#define WAIT_S 60
/* The daemon takes no file that may have been written in the same tick of the clock as it was
 * looked at; this is for a snapshot that was finished just now. */
#define YOUNG_US 50000
#define SEND_MS	 5000

/* Is nothing in the range? What was touched cannot be replaced without a look. */
static bool is_empty(int pagemap_fd, u64 hva, u64 bytes)
{
	const struct pagemap_query query = { .any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED };
	struct page_region found;
	u64 end;

	return pagemap_scan(pagemap_fd, hva, hva + bytes, &query, &found, 1, &end) == 0 &&
	       end == hva + bytes;
}

/* With @lock held. */
static bool is_free(const struct bh_region *r, u64 page, u64 nr)
{
	for (u64 p = page; p < page + nr; p++)
		if (page_kind(r, p) != PAGE_ANONYMOUS || page_pinned(r, p) || pager_holds(r, p))
			return false;
	return true;
}

static int map_run(struct bh_agent *a, const struct wire_run *run)
{
	const struct bh_image *image = &a->image;
	u64 bytes = (u64)run->nr_pages << PAGE_SHIFT, page;
	struct bh_region *r = region_find(a, run->hva, bytes);
	struct stat st;

	if (image->state != IMAGE_ASKED || run->hva < image->hva ||
	    run->hva + bytes > image->hva + image->bytes)
		return -EPERM;
	if (!r)
		return -ENOENT;
	/* The file grows, and never shrinks. */
	if (run->store_offset + bytes > a->store_bytes && fstat(a->store_fd, &st) == 0)
		a->store_bytes = (u64)st.st_size;
	if (run->store_offset + bytes > a->store_bytes)
		return -ERANGE;
	page = (run->hva - r->hva) >> PAGE_SHIFT;
	if (!is_free(r, page, run->nr_pages) || !is_empty(image->pagemap_fd, run->hva, bytes))
		return -EBUSY;
	return region_replace_store(a, r, page, run->nr_pages, run->store_offset);
}

void image_map(struct bh_agent *a, const struct wire_run *runs, u32 nr_runs, s32 *status)
{
	for (u32 i = 0; i < nr_runs; i++) {
		s32 err;

		lock_step(a);
		err = map_run(a, &runs[i]);
		pthread_mutex_unlock(&a->lock);
		if (err == 0)
			a->image_pages += runs[i].nr_pages;
		else
			a->failed_pages += runs[i].nr_pages;
		for (u32 k = 0; k < runs[i].nr_pages; k++)
			*status++ = err;
	}
}

int image_tell(struct bh_agent *a)
{
	const struct bh_image *image = &a->image;
	int fd = -1;

	pthread_mutex_lock(&a->lock);
	/* With @resync an earlier request's end may still come on this connection. */
	if (image->state == IMAGE_WANTED && !a->resync) {
		a->image.state = IMAGE_ASKED;
		fd = image->fd;
		wire_init(a->tx, WIRE_IMAGE, 0, sizeof(a->tx->image));
		a->tx->image = (struct wire_image){
			.hva = image->hva,
			.bytes = image->bytes,
			.offset = image->offset,
		};
	}
	pthread_mutex_unlock(&a->lock);
	if (fd < 0)
		return 0;
	/* The descriptor is the waiting thread's. Should that give up meanwhile, it is of another
	 * file at worst, and the connection is closed before the daemon can be believed. */
	return wire_send(a->sock, a->tx, fd, SEND_MS);
}

void image_end(struct bh_agent *a, s32 status, bool lost)
{
	pthread_mutex_lock(&a->lock);
	/* What was not asked yet is not what the daemon speaks of. */
	if (a->image.state == IMAGE_ASKED || (a->image.state == IMAGE_WANTED && lost)) {
		a->image.state = IMAGE_OVER;
		a->image.status = status;
		pthread_cond_signal(&a->image.over);
	}
	pthread_mutex_unlock(&a->lock);
}

static s64 us_since(const struct timespec *t)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (s64)(now.tv_sec - t->tv_sec) * 1000000 + (now.tv_nsec - t->tv_nsec) / 1000;
}

/* Not all daemons say no to what is no file, and this costs less. */
static int check_file(int fd, u64 offset, u64 bytes)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || (u64)st.st_size < offset || (u64)st.st_size - offset < bytes)
		return -EINVAL;
	if (us_since(&st.st_ctim) < YOUNG_US || us_since(&st.st_mtim) < YOUNG_US)
		usleep(YOUNG_US);
	return 0;
}

/* The request becomes the agent's one; it is over when the status is there, or the time. Without
 * *ret_asked nothing was done. */
static int ask(struct bh_agent *a, const struct bh_image *wanted, bool *ret_asked)
{
	struct timespec until;
	struct bh_region *r;
	int err = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += WAIT_S;
	lock_urgent(a);
	r = region_find(a, wanted->hva, wanted->bytes);
	if (!r)
		err = -EINVAL;
	else if (a->image.state != IMAGE_NONE ||
		 !is_free(r, (wanted->hva - r->hva) >> PAGE_SHIFT, wanted->bytes >> PAGE_SHIFT))
		err = -EBUSY;
	else if (!a->connected)
		err = -ENOTCONN;
	else if (a->version < IMAGE_VERSION)
		err = -ENOTSUP;
	if (err < 0) {
		pthread_mutex_unlock(&a->lock);
		return err;
	}
	*ret_asked = true;
	a->image.hva = wanted->hva;
	a->image.bytes = wanted->bytes;
	a->image.offset = wanted->offset;
	a->image.fd = wanted->fd;
	a->image.pagemap_fd = wanted->pagemap_fd;
	a->image.state = IMAGE_WANTED;
	agent_kick(a);
	while (a->image.state != IMAGE_OVER && err == 0)
		err = -pthread_cond_timedwait(&a->image.over, &a->lock, &until);
	if (a->image.state == IMAGE_OVER) {
		err = a->image.status;
	} else {
		/* The daemon may still be at it: another request on this connection could be taken
		 * for this one. */
		a->resync = true;
		agent_kick(a);
	}
	a->image.state = IMAGE_NONE;
	pthread_mutex_unlock(&a->lock);
	return err;
}

int bh_region_from_image(struct bh_agent *a, void *at, size_t bytes, int fd, uint64_t offset)
{
	struct bh_image wanted = {
		.hva = (u64)(uintptr_t)at,
		.bytes = bytes,
		.offset = offset,
		.fd = fd,
	};
	bool asked = false;
	int err;

	if (a->dead)
		return -ENOTCONN;
	if (!page_aligned(wanted.hva) || !page_aligned(bytes) || !page_aligned(offset) || !bytes ||
	    wanted.hva + bytes < wanted.hva || offset > ((u64)1 << 61))
		return -EINVAL;
	err = check_file(fd, offset, bytes);
	if (err < 0)
		return err;
	wanted.pagemap_fd = pagemap_open(getpid());
	if (wanted.pagemap_fd < 0)
		return wanted.pagemap_fd;
	err = -EBUSY;
	if (is_empty(wanted.pagemap_fd, wanted.hva, bytes))
		err = ask(a, &wanted, &asked);
	close(wanted.pagemap_fd);
	/* What was mapped must not be taken for all of it. */
	if (err < 0 && asked && !region_unmap(a, wanted.hva, bytes))
		return -ENOTRECOVERABLE;
	return err;
}
