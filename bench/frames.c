/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "bench/frames.h"
#include "common/procfs.h"

#define BATCH 4096

/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT    ((u64)1 << 63)
#define PM_FRAME_MASK (((u64)1 << 55) - 1)

/* Numbers that are sorted to find how many differ. */
struct numbers {
	u64 *values;
	u64 nr, cap;
};

static int add_number(struct numbers *n, u64 value)
{
	if (n->nr == n->cap) {
		u64 cap = n->cap ? n->cap * 2 : 65536;
		u64 *grown = realloc(n->values, cap * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		n->values = grown;
		n->cap = cap;
	}
	n->values[n->nr++] = value;
	return 0;
}

static int by_value(const void *a, const void *b)
{
	const u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static u64 count_distinct(struct numbers *n)
{
	u64 distinct = 0;

	qsort(n->values, n->nr, sizeof(n->values[0]), by_value);
	for (u64 i = 0; i < n->nr; i++)
		distinct += i == 0 || n->values[i] != n->values[i - 1];
	return distinct;
}

static int hash_file(const char *path, struct numbers *hashes, u64 *zero)
{
	static const u8 zeros[PAGE_BYTES];
	int fd = open(path, O_RDONLY | O_CLOEXEC), r = 0;
	u8 page[PAGE_BYTES];
	off_t data = 0;

	if (fd < 0)
		return -errno;
	while (r == 0 && (data = lseek(fd, data, SEEK_DATA)) >= 0) {
		off_t hole = lseek(fd, data, SEEK_HOLE);

		for (; r == 0 && data < hole; data += (off_t)PAGE_BYTES) {
			if (pread(fd, page, PAGE_BYTES, data) != (ssize_t)PAGE_BYTES)
				r = -EIO;
			else if (memcmp(page, zeros, PAGE_BYTES) == 0)
				(*zero)++;
			else
				r = add_number(hashes, XXH3_64bits(page, PAGE_BYTES));
		}
	}
	close(fd);
	return r;
}

int count_duplicates(const char *const *files, u32 nr, struct duplicates *ret)
{
	struct numbers hashes = { 0 };
	u64 zero = 0;
	int r = 0;

	for (u32 i = 0; r == 0 && i < nr; i++)
		r = hash_file(files[i], &hashes, &zero);
	if (r == 0)
		*ret = (struct duplicates){
			.pages = hashes.nr + zero,
			.zero_pages = zero,
			.can_save = hashes.nr - count_distinct(&hashes) + zero,
		};
	free(hashes.values);
	return r;
}

/* The frame behind a page that reads as zeros and that nobody wrote: known by looking at one. */
static int zero_frame(u64 *ret)
{
	volatile u8 *page = aligned_alloc(PAGE_BYTES, CHUNK_BYTES * 2);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), r = -EIO;
	u64 at = ROUND_UP((u64)(uintptr_t)page, PAGE_BYTES), entry = 0;

	/* A read fault in fresh memory maps it. */
	if (page && fd >= 0 && madvise((void *)(uintptr_t)at, PAGE_BYTES, MADV_DONTNEED) == 0) {
		(void)*(volatile u8 *)(uintptr_t)at;
		if (pread(fd, &entry, sizeof(entry), (off_t)(at / PAGE_BYTES * sizeof(entry))) ==
		    (ssize_t)sizeof(entry))
			r = 0;
	}
	if (fd >= 0)
		close(fd);
	free((void *)page);
	*ret = entry & PM_FRAME_MASK;
	return r == 0 && *ret ? 0 : -EACCES;
}

static int add_batch(struct numbers *frames, const u64 *entries, u64 nr, u64 zero)
{
	int r = 0;

	for (u64 i = 0; r == 0 && i < nr; i++)
		if (entries[i] & PM_PRESENT && (entries[i] & PM_FRAME_MASK) != zero)
			r = add_number(frames, entries[i] & PM_FRAME_MASK);
	return r;
}

static int add_frames(const struct frames_range *range, u64 zero, struct numbers *frames)
{
	u64 at = range->start >> PAGE_SHIFT, end = at + (range->bytes >> PAGE_SHIFT);
	int fd = pagemap_open(range->pid), r = 0;
	u64 entries[BATCH];

	if (fd < 0)
		return fd;
	while (r == 0 && at < end) {
		ssize_t n = pread(fd, entries, MIN(end - at, BATCH) * sizeof(entries[0]),
				  (off_t)(at * sizeof(entries[0])));

		if (n < (ssize_t)sizeof(entries[0])) {
			r = -EIO;
			break;
		}
		r = add_batch(frames, entries, (u64)n / sizeof(entries[0]), zero);
		at += (u64)n / sizeof(entries[0]);
	}
	close(fd);
	return r;
}

int count_frames(const struct frames_range *ranges, u32 nr, u64 *ret_frames)
{
	struct numbers frames = { 0 };
	u64 zero;
	int r = zero_frame(&zero);

	for (u32 i = 0; r == 0 && i < nr; i++)
		r = add_frames(&ranges[i], zero, &frames);
	if (r == 0)
		*ret_frames = count_distinct(&frames);
	free(frames.values);
	return r;
}
