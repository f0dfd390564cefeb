/* SPDX-License-Identifier: MIT */
/* What sharing did to memory, counted from outside: contents of files, page frames of processes. */
#ifndef BALLAST_BENCH_FRAMES_H
#define BALLAST_BENCH_FRAMES_H

#include <sys/types.h>
#include "common/types.h"

struct duplicates {
	u64 pages;	/* with content or zeros: what a host touches */
	u64 zero_pages; /* all zeros */
	u64 can_save;	/* frames that exact sharing, and the zero page, can save */
};

/* Of all pages in the files (content.h), by XXH3. 0 or negative errno. */
int count_duplicates(const char *const *files, u32 nr, struct duplicates *ret);

/* A range of a process's memory. */
struct frames_range {
	pid_t pid;
	u64 start, bytes;
};

/* Page frames that the ranges take together: each frame once, the kernel's zero page not at all.
 * Needs root (page frame numbers of /proc/PID/pagemap). */
int count_frames(const struct frames_range *ranges, u32 nr, u64 *ret_frames);

#endif
