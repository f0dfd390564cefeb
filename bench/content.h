/* SPDX-License-Identifier: MIT */
/*
 * Page contents for benchmarks, as files: byte N of the file is byte N of a guest's memory. Holes
 * of the file are pages that the guest never touched. Recorded from stock guests (record_guest) or
 * made (make_content).
 */
#ifndef BALLAST_BENCH_CONTENT_H
#define BALLAST_BENCH_CONTENT_H

#include <sys/types.h>
#include "common/types.h"

/* Copies the present pages of a running VMM's guest RAM to @path, its ranges one behind the other.
 */
int record_guest(pid_t pid, const char *path);

enum content_kind {
	/* Every second page has a twin in every other guest, no two of them neighbours in both:
	 * runs of one page. */
	CONTENT_SCATTERED,
	/* 15% of the pages have twins, in runs of 1 to 64 pages; the rest is unique. */
	CONTENT_MIXED,
	/* No twins at all. */
	CONTENT_UNIQUE,
	/* All pages have twins, in the same order: one run. */
	CONTENT_SAME,
};

/* Writes @pages pages for guest number @guest. */
int make_content(enum content_kind kind, u32 guest, u64 pages, const char *path);

/* Fills @memory from @path. *ret_pages: how many pages were touched. */
int load_content(const char *path, u8 *memory, u64 bytes, u64 *ret_pages);

/* Size of the file. */
int content_bytes(const char *path, u64 *ret_bytes);

#endif
