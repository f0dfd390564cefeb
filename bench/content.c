/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include "bench/content.h"
#include "common/procfs.h"
#include "ctl/guestmem.h"

#define BATCH_PAGES 256

static int write_all(int fd, const u8 *data, u64 bytes, u64 at)
{
	for (u64 done = 0; done < bytes;) {
		ssize_t n = pwrite(fd, data + done, bytes - done, (off_t)(at + done));

		if (n < 0)
			return -errno;
		done += (u64)n;
	}
	return 0;
}

/* Present pages of [start, end) go to the file from @at on. */
static int record_range(pid_t pid, int pagemap, u64 start, u64 end, int fd, u64 at, u8 *buf)
{
	static const struct pagemap_query present = { .any = PAGE_IS_PRESENT };
	struct page_region found[64];
	u64 walked = start;

	while (walked < end) {
		u64 from = walked;
		int n = pagemap_scan(pagemap, from, end, &present, found, ARRAY_SIZE(found),
				     &walked);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			for (u64 a = found[i].start; a < found[i].end;
			     a += BATCH_PAGES * PAGE_BYTES) {
				u64 bytes = MIN(found[i].end - a, BATCH_PAGES * PAGE_BYTES);
				struct iovec local = { buf, bytes },
					     remote = { (void *)(uintptr_t)a, bytes };
				int r;

				if (process_vm_readv(pid, &local, 1, &remote, 1, 0) !=
				    (ssize_t)bytes)
					return -EFAULT;
				r = write_all(fd, buf, bytes, at + (a - start));
				if (r < 0)
					return r;
			}
		}
		if (walked <= from)
			return -EIO;
	}
	return 0;
}

int record_guest(pid_t pid, const char *path)
{
	struct guest g;
	u64 at = 0;
	u8 *buf;
	int fd, pagemap, r = guestmem_find(pid, &g);

	if (r < 0)
		return r;
	pagemap = pagemap_open(pid);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	buf = malloc(BATCH_PAGES * PAGE_BYTES);
	if (pagemap < 0 || fd < 0 || !buf)
		r = -EIO;
	for (u32 i = 0; r == 0 && i < g.nr_ranges; i++) {
		r = record_range(pid, pagemap, g.ranges[i].start, g.ranges[i].end, fd, at, buf);
		at += g.ranges[i].end - g.ranges[i].start;
	}
	if (r == 0 && ftruncate(fd, (off_t)at) < 0)
		r = -errno;
	free(buf);
	if (fd >= 0)
		close(fd);
	if (pagemap >= 0)
		close(pagemap);
	guestmem_free(&g);
	return r;
}

/* --- made content ------------------------------------------------------------------------------
 */

static u64 mix(u64 x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void fill_page(u8 *page, u64 seed)
{
	u64 x = mix(seed) | 1;

	for (u32 i = 0; i < PAGE_BYTES / 8; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(page + i * 8, &x, 8);
	}
}

/* Which content page @i of guest @guest has: a number below 2^40 is common to all guests of a kind,
 * others are its own, and of no guest of another kind. */
static u64 content_of(enum content_kind kind, u32 guest, u64 i, u64 pages)
{
	u64 own = ((u64)(guest + 1 + (u32)kind * 64) << 40) + i;

	switch (kind) {
	case CONTENT_SCATTERED:
		/* The common pages stand in another order in each guest: an odd stride is a
		 * permutation of 2^n. */
		return i % 2 ? own : (i / 2 * (2 * guest + 2654435761u)) & (pages / 2 - 1);
	case CONTENT_MIXED: {
		/* Blocks of 64 pages: in one of 4, a run of 1 to 64 pages is common; 15% of all on
		 * average. */
		u64 block = i / 64, h = mix(block * 7 + 5);
		u64 run = 1 + h % 64, from = (h >> 8) % (65 - run);

		return (h >> 16) % 100 < 30 && i % 64 >= from && i % 64 < from + run ? i : own;
	}
	case CONTENT_SAME:
		return i;
	default:
		return own;
	}
}

int make_content(enum content_kind kind, u32 guest, u64 pages, const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), r = 0;
	u8 page[PAGE_BYTES];

	if (fd < 0)
		return -errno;
	for (u64 i = 0; r == 0 && i < pages; i++) {
		fill_page(page, content_of(kind, guest, i, pages));
		r = write_all(fd, page, PAGE_BYTES, i * PAGE_BYTES);
	}
	close(fd);
	return r;
}

int content_bytes(const char *path, u64 *ret_bytes)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return -errno;
	*ret_bytes = (u64)st.st_size;
	return 0;
}

int load_content(const char *path, u8 *memory, u64 bytes, u64 *ret_pages)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t data = 0;
	u64 pages = 0;

	if (fd < 0)
		return -errno;
	while ((data = lseek(fd, data, SEEK_DATA)) >= 0) {
		off_t hole = lseek(fd, data, SEEK_HOLE);

		while (data < hole && (u64)data < bytes) {
			ssize_t n = pread(fd, memory + data,
					  MIN((u64)(hole - data), bytes - (u64)data), data);

			if (n <= 0) {
				close(fd);
				return -EIO;
			}
			data += n;
			pages += DIV_ROUND_UP((u64)n, PAGE_BYTES);
		}
	}
	close(fd);
	*ret_pages = pages;
	return 0;
}
