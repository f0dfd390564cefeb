/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include "vmm/balloon_take.h"

/* Frames that are sorted at once. Linux's buffers have 256, ours 1,024. */
#define FRAMES_MAX 1024

bool balloon_discard(struct guest_memory *m, struct balloon_counters *c, u64 gpa, u64 bytes)
{
	int r = memory_discard(m, gpa, bytes);

	if (r == 0)
		c->discards++;
	else if (r == -EINVAL)
		c->bad_frames += MAX(bytes / PAGE_BYTES, 1);
	else
		c->failed_discards++;
	return r == 0;
}

static int compare_frames(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;

	return x < y ? -1 : x > y;
}

/* Neighbours become one range. One that runs out of RAM is tried page by page, so that a bad frame
 * does not save its neighbours. */
static void discard_frames(struct guest_memory *m, struct balloon_counters *c, u32 *frames, u32 nr)
{
	qsort(frames, nr, sizeof(frames[0]), compare_frames);
	for (u32 i = 0, n; i < nr; i += n) {
		u64 gpa = (u64)frames[i] << VIRTIO_BALLOON_PFN_SHIFT, pages = 1;

		for (n = 1; i + n < nr && frames[i + n] - frames[i + n - 1] <= 1; n++) {
			if (frames[i + n] == frames[i + n - 1])
				c->bad_frames++;
			else
				pages++;
		}
		if (memory_at(m, gpa, pages * PAGE_BYTES)) {
			balloon_discard(m, c, gpa, pages * PAGE_BYTES);
			continue;
		}
		for (u64 p = 0; p < pages; p++)
			balloon_discard(m, c, gpa + p * PAGE_BYTES, PAGE_BYTES);
	}
}

void balloon_take_frames(struct guest_memory *m, struct balloon_counters *c,
			 const struct virtqueue_request *r, bool inflate)
{
	u32 frames[FRAMES_MAX];
	size_t at = 0, n;

	while ((n = virtqueue_read(r, at, frames, sizeof(frames)) / sizeof(frames[0])) > 0) {
		at += n * sizeof(frames[0]);
		if (inflate) {
			c->inflated_pages += n;
			discard_frames(m, c, frames, (u32)n);
		} else {
			c->deflated_pages += n;
		}
	}
}

static int compare_entries(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* Neighbours become one range, as long as it lies in one piece of RAM. What does not is counted and
 * passed over, and so is what was named in the same buffer before. */
static void take_sorted(struct guest_memory *m, struct balloon_counters *c, const u64 *entries,
			u32 nr, bool inflate)
{
	u64 start = 0, end = 0;

	for (u32 i = 0; i < nr; i++) {
		u64 order = entries[i] & BALLOON_RANGE_ORDER,
		    gpa = ROUND_DOWN(entries[i], PAGE_BYTES), bytes;

		bytes = PAGE_BYTES << MIN(order, (u64)BALLOON_RANGE_ORDER_MAX);
		if (entries[i] & BALLOON_RANGE_MBZ || order > BALLOON_RANGE_ORDER_MAX ||
		    gpa < end || !memory_at(m, gpa, bytes)) {
			c->bad_frames++;
			continue;
		}
		*(inflate ? &c->inflated_pages : &c->deflated_pages) += 1ull << order;
		if (gpa != end || !memory_at(m, start, end - start + bytes)) {
			if (inflate && end > start)
				balloon_discard(m, c, start, end - start);
			start = gpa;
		}
		end = gpa + bytes;
	}
	if (inflate && end > start)
		balloon_discard(m, c, start, end - start);
}

void balloon_take_ranges(struct guest_memory *m, struct balloon_counters *c,
			 const struct virtqueue_request *r, bool inflate)
{
	u64 entries[FRAMES_MAX / 2];
	size_t at = 0, n;

	while ((n = virtqueue_read(r, at, entries, sizeof(entries)) / sizeof(entries[0])) > 0) {
		at += n * sizeof(entries[0]);
		qsort(entries, n, sizeof(entries[0]), compare_entries);
		take_sorted(m, c, entries, (u32)n, inflate);
	}
}
