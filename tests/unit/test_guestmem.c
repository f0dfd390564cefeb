/* SPDX-License-Identifier: MIT */
/* `ballastctl analyze` reads a child of ours, whose every page we know. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/procfs.h"
#include "ctl/guestmem.h"

#define RANGE_BYTES MIB(64)
/* Pages of the range: what is not named is never touched. */
#define UNIQUE	  0   /* 100 pages, all different */
#define ZEROED	  200 /* 50 pages, zeros that were written */
#define READ_ONLY 300 /* 25 pages, only read: the kernel's zero page */
#define TWICE	  400 /* 100 pages, the same as UNIQUE */
#define STORE	  600 /* 10 pages of a Ballast store, the same as the first of UNIQUE */
#define BROKEN	  604 /* of them: written since */

static u8 *range;
static pid_t child;

static void fill(u8 *page, u32 content)
{
	for (size_t i = 0; i < PAGE_BYTES; i += 4)
		memcpy(page + i, &content, 4);
}

static void make_range(void)
{
	int fd = memfd_create("ballast-store", 0);
	u8 page[PAGE_BYTES];
	volatile u8 sink;

	madvise(range, RANGE_BYTES, MADV_NOHUGEPAGE);
	for (u32 i = 0; i < 100; i++) {
		fill(range + (UNIQUE + i) * PAGE_BYTES, i + 1);
		fill(range + (TWICE + i) * PAGE_BYTES, i + 1);
	}
	memset(range + ZEROED * PAGE_BYTES, 0, 50 * PAGE_BYTES);
	for (u32 i = 0; i < 25; i++)
		sink = range[(READ_ONLY + i) * PAGE_BYTES];
	for (u32 i = 0; i < 10; i++) {
		fill(page, i + 1);
		if (write(fd, page, sizeof(page)) != sizeof(page))
			_exit(1);
	}
	if (mmap(range + STORE * PAGE_BYTES, 10 * PAGE_BYTES, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED)
		_exit(1);
	for (u32 i = 0; i < 10; i++)
		sink = range[(STORE + i) * PAGE_BYTES];
	fill(range + BROKEN * PAGE_BYTES, 0xffffffff);
	(void)sink;
}

static void start_child(void)
{
	int ready[2];
	char c;

	/* A gap on both sides, so that no other mapping lies next to it. */
	range = mmap(NULL, RANGE_BYTES + 2 * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	cr_assert(range != MAP_FAILED);
	range += PAGE_BYTES;
	mprotect(range, RANGE_BYTES, PROT_READ | PROT_WRITE);
	cr_assert_eq(pipe(ready), 0);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		make_range();
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	cr_assert_eq(read(ready[0], &c, 1), 1, "the child failed");
	close(ready[0]);
}

static void end_child(void)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

TestSuite(guestmem, .init = start_child, .fini = end_child, .timeout = 60);

/* Finds the child's memory and leaves only the range that we made: sanitizers and malloc() have
 * large ones too. */
static void find(struct guest *g)
{
	struct guest_range ours = { 0 };

	cr_assert_eq(guestmem_find(child, g), 0);
	for (u32 i = 0; i < g->nr_ranges; i++) {
		if (g->ranges[i].start == (uintptr_t)range)
			ours = g->ranges[i];
	}
	cr_assert_eq(ours.end, (uintptr_t)range + RANGE_BYTES, "not found, or not whole");
	cr_expect(ours.ballast);
	cr_expect_not(ours.mergeable);
	g->ranges[0] = ours;
	g->nr_ranges = 1;
}

static void read_and_check(enum guestmem_method method)
{
	struct analysis_counts counts[2];
	struct proc_memory before, after;
	struct guest_pages pages = { 0 };
	struct analysis a;
	struct guest g;

	cr_assert_eq(proc_memory(child, &before), 0);
	find(&g);
	cr_assert_eq(guestmem_read(&g, 1, method, &pages), 0);
	cr_assert_eq(proc_memory(child, &after), 0);
	cr_expect_eq(before.rss, after.rss, "looking has brought pages in");
	/* Without CAP_SYS_ADMIN frame numbers are hidden, and /proc/PID/pagemap cannot tell the
	 * two apart. */
	cr_expect_eq(g.zero + g.kernel_zero, 75);
	if (method == GUESTMEM_AUTO || geteuid() == 0)
		cr_expect_eq(g.kernel_zero, 25);
	cr_expect_eq(g.resident + g.kernel_zero, 100 + 50 + 25 + 100 + 10);
	cr_expect_eq(g.unreadable, 0);
	cr_assert_eq(pages.nr, 210);
	analysis_run(pages.v, pages.nr, counts, 2, &a);
	cr_expect_eq(counts[0].pages, 0);
	cr_expect_eq(counts[1].distinct, 101);
	cr_expect_eq(counts[1].already_shared, 9);
	/* Of the first 10 contents, 9 are in the store, so both private copies may go; and one
	 * of the others. */
	cr_expect_eq(counts[1].dup_within + counts[1].dup_across, 9 * 2 + 91);
	free(pages.v);
	guestmem_free(&g);
}

Test(guestmem, with_pagemap_scan)
{
	read_and_check(GUESTMEM_AUTO);
}

Test(guestmem, on_old_kernels)
{
	read_and_check(GUESTMEM_PAGEMAP);
}

Test(guestmem, marked_ranges_only)
{
	struct guest g;
	u8 *marked;

	/* In our own process: once something is marked, unmarked memory is left out, however
	 * large. */
	marked = mmap(NULL, MIB(32), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert(marked != MAP_FAILED);
	if (madvise(marked, MIB(32), MADV_MERGEABLE) != 0)
		cr_skip_test("this kernel has no KSM");
	cr_assert_eq(guestmem_find(getpid(), &g), 0);
	cr_assert_eq(g.nr_ranges, 1);
	cr_expect_eq(g.ranges[0].start, (uintptr_t)marked);
	cr_expect_eq(g.ranges[0].end, (uintptr_t)marked + MIB(32));
	cr_expect(g.ranges[0].mergeable);
	guestmem_free(&g);
	guestmem_free(NULL);
}

Test(guestmem, a_process_that_ends)
{
	struct guest_pages pages = { 0 };
	struct guest g, none = { .pid = -1 };

	/* What others have added before must survive the failure. */
	pages.v = calloc(1, sizeof(*pages.v));
	pages.nr = pages.cap = 1;
	find(&g);
	end_child();
	cr_expect_eq(guestmem_read(&g, 0, GUESTMEM_AUTO, &pages), -ESRCH);
	cr_expect_eq(guestmem_read(&g, 0, GUESTMEM_PAGEMAP, &pages), -ESRCH);
	cr_expect_eq(pages.nr, 1);
	guestmem_free(&g);
	cr_expect_eq(guestmem_find(child, &none), -ESRCH);
	cr_expect_eq(none.pid, -1, "written to on failure");
	free(pages.v);
	start_child();
}
