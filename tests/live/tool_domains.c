// SPDX-License-Identifier: MIT
/*
 * VMMs without guests, on the real agent library, and the observer that tells from outside which
 * page frames they share.
 *
 *   tool_domains vm NAME HOME     holds contents common to all, zeros, and contents that only the
 *                                 VMs of the same HOME have; runs until it is ended
 *   tool_domains probe NAME OTHER OWN
 *                                 holds, in turn, contents of the home OTHER, contents that are
 *                                 nowhere, and contents of the home OWN. At SIGUSR1 it writes each
 *                                 page once, and prints for each kind how many pages were mapped to
 *                                 a store, how many changed their frame, and what a write took
 *   tool_domains frames PID...    as root: "vm PID key=N ..." for each, and "pair PID PID common=N"
 *
 * What a page is mapped to is the kernel's word: /proc/PID/pagemap and /proc/kpageflags.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "common/types.h"
#include "hypervisor-hooks/hooks.h"

/* The same in all VMs, so that the observer need not be told. */
#define RAM		((u8 *)0x600000000000)
#define NR_PAGES	2048
#define COMMON_PAGES	1024
#define ZERO_PAGES	512
#define HOME_PAGES	(NR_PAGES - COMMON_PAGES - ZERO_PAGES)
#define PAGE_WORDS	(PAGE_BYTES / sizeof(u64))

#define PAGEMAP_PRESENT ((u64)1 << 63)
#define PAGEMAP_FILE	((u64)1 << 61)
#define PAGEMAP_PFN	(((u64)1 << 55) - 1)
#define KPF_ZERO_PAGE	24

static void __attribute__((noreturn)) die(const char *what, int error)
{
	printf("failed: %s: %s\n", what, strerror(error));
	exit(1);
}

static u64 mix(u64 x)
{
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93UL;
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93UL;
	return x ^ x >> 32;
}

static u64 text_id(const char *s)
{
	u64 id = 1;

	for (; *s; s++)
		id = mix(id + (u8)*s);
	return id;
}

static u64 word(u64 set, u64 page, u64 w)
{
	return mix(set + mix(page * PAGE_WORDS + w + 1));
}

static void fill(u64 page, u64 set, u64 n)
{
	u64 *at = (u64 *)(RAM + page * PAGE_BYTES);

	for (u64 w = 0; w < PAGE_WORDS; w++)
		at[w] = set ? word(set, n, w) : 0;
}

static void check(u64 page, u64 set, u64 n)
{
	const u64 *at = (const u64 *)(RAM + page * PAGE_BYTES);

	for (u64 w = 0; w < PAGE_WORDS; w++)
		if (at[w] != (set ? word(set, n, w) : 0))
			die("a page changed", EILSEQ);
}

static void map_ram(void)
{
	if (mmap(RAM, NR_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != RAM)
		die("mmap", errno);
	madvise(RAM, NR_PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
}

static void attach(const char *name)
{
	const struct bh_config cfg = { .name = name };
	struct bh_agent *a;
	int r = bh_new(&cfg, &a);

	if (r < 0)
		die("bh_new", -r);
	r = bh_region_add(a, RAM, NR_PAGES * PAGE_BYTES, 0, "ram");
	if (r < 0)
		die("bh_region_add", -r);
	puts("attached");
	fflush(stdout);
}

static void read_pagemap(pid_t pid, u64 *entries)
{
	int fd = pagemap_open(pid);

	if (fd < 0 || pread(fd, entries, NR_PAGES * sizeof(*entries),
			    (off_t)((u64)(uintptr_t)RAM / PAGE_BYTES * sizeof(*entries))) !=
			      NR_PAGES * sizeof(*entries))
		die("pagemap", fd < 0 ? -fd : errno);
	close(fd);
}

/* --- vm --------------------------------------------------------------------------------------- */

static void plain_page(u64 page, u64 home, u64 *ret_set)
{
	*ret_set = page < COMMON_PAGES		      ? text_id("common")
		   : page < COMMON_PAGES + ZERO_PAGES ? 0
						      : home;
}

static int run_vm(const char *name, const char *home, int sig)
{
	sigset_t set;
	u64 id;
	int got;

	sigemptyset(&set);
	sigaddset(&set, sig);
	map_ram();
	for (u64 p = 0; p < NR_PAGES; p++) {
		plain_page(p, text_id(home), &id);
		fill(p, id, p);
	}
	attach(name);
	/* At each signal all of memory is read, and must be what it was. */
	while (sigwait(&set, &got) == 0) {
		for (u64 p = 0; p < NR_PAGES; p++) {
			plain_page(p, text_id(home), &id);
			check(p, id, p);
		}
		puts("checked");
		fflush(stdout);
	}
	return 1;
}

/* --- probe ------------------------------------------------------------------------------------ */

enum kind {
	KIND_OTHER,
	KIND_NOWHERE,
	KIND_OWN,
	NR_KINDS,
};

static const char *const kind_names[] = { "other", "nowhere", "own" };

static int compare_u64(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* Contents of a home are on the pages behind common ones and zeros. */
static u64 home_page(u64 n)
{
	return COMMON_PAGES + ZERO_PAGES + n % HOME_PAGES;
}

/*
 * One of each kind in any three pages, so that whatever disturbs the clock disturbs all kinds
 * alike, and in all orders: a write that breaks a page also slows down the next one.
 */
static enum kind kind_of(u64 page)
{
	static const u8 orders[][NR_KINDS] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 },
					       { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };

	return orders[mix(page / NR_KINDS + 1) % ARRAY_SIZE(orders)][page % NR_KINDS];
}

static int run_probe(const char *name, const char *other, const char *own, int sig)
{
	static u64 first[NR_PAGES], before[NR_PAGES], after[NR_PAGES];
	static u64 ns[NR_KINDS][NR_PAGES];
	const u64 sets[] = { text_id(other), text_id(name), text_id(own) };
	u64 nr[NR_KINDS] = { 0 };
	sigset_t set;
	int got;

	sigemptyset(&set);
	sigaddset(&set, sig);
	map_ram();
	for (u64 p = 0; p < NR_KINDS * HOME_PAGES; p++)
		fill(p, sets[kind_of(p)], home_page(p / NR_KINDS));
	read_pagemap(getpid(), first);
	attach(name);
	sigwait(&set, &got);
	/* A page of the store is not in the page table before it was read. */
	for (u64 p = 0; p < NR_KINDS * HOME_PAGES; p++)
		check(p, sets[kind_of(p)], home_page(p / NR_KINDS));
	read_pagemap(getpid(), before);
	for (u64 p = 0; p < NR_KINDS * HOME_PAGES; p++) {
		volatile u64 *at = (volatile u64 *)(RAM + p * PAGE_BYTES);
		enum kind k = kind_of(p);
		u64 t = now_ns();

		*at = p;
		ns[k][nr[k]++] = now_ns() - t;
	}
	read_pagemap(getpid(), after);
	for (u64 k = 0; k < NR_KINDS; k++) {
		u64 stored = 0, moved = 0, broke = 0;

		for (u64 p = 0; p < NR_KINDS * HOME_PAGES; p++) {
			if (kind_of(p) != k)
				continue;
			stored += !!(before[p] & PAGEMAP_FILE);
			moved += (first[p] & PAGEMAP_PFN) != (before[p] & PAGEMAP_PFN);
			broke += (before[p] & PAGEMAP_PFN) != (after[p] & PAGEMAP_PFN);
		}
		qsort(ns[k], nr[k], sizeof(ns[k][0]), compare_u64);
		printf("PROBE kind=%s pages=%" PRIu64 " in_store=%" PRIu64 " frame_changed=%" PRIu64
		       " frame_changed_by_write=%" PRIu64 " write_ns_p25=%" PRIu64
		       " write_ns_median=%" PRIu64 " write_ns_p75=%" PRIu64 "\n",
		       kind_names[k], nr[k], stored, moved, broke, ns[k][nr[k] / 4],
		       ns[k][nr[k] / 2], ns[k][nr[k] * 3 / 4]);
	}
	puts("probed");
	fflush(stdout);
	sigwait(&set, &got);
	return 0;
}

/* --- frames ----------------------------------------------------------------------------------- */

struct frames {
	u64 pfn[NR_PAGES]; /* sorted; frames of the zero page left out */
	u64 nr, distinct;
};

static void look(const char *pid, int kpageflags, struct frames *f)
{
	u64 entries[NR_PAGES], zero = 0, in_store = 0;

	memset(f, 0, sizeof(*f));
	read_pagemap((pid_t)atoi(pid), entries);
	for (u64 p = 0; p < NR_PAGES; p++) {
		u64 pfn = entries[p] & PAGEMAP_PFN, flags;

		if (!(entries[p] & PAGEMAP_PRESENT))
			continue;
		if (!pfn)
			die("page frame numbers are hidden", EPERM);
		if (pread(kpageflags, &flags, sizeof(flags), (off_t)(pfn * sizeof(flags))) !=
		    sizeof(flags))
			die("kpageflags", errno);
		in_store += !!(entries[p] & PAGEMAP_FILE);
		if (flags >> KPF_ZERO_PAGE & 1)
			zero++;
		else
			f->pfn[f->nr++] = pfn;
	}
	qsort(f->pfn, f->nr, sizeof(f->pfn[0]), compare_u64);
	for (u64 i = 0; i < f->nr; i++)
		f->distinct += i == 0 || f->pfn[i] != f->pfn[i - 1];
	printf("vm %s present=%" PRIu64 " zero=%" PRIu64 " in_store=%" PRIu64 " distinct=%" PRIu64
	       "\n",
	       pid, f->nr + zero, zero, in_store, f->distinct);
}

static u64 common_frames(const struct frames *a, const struct frames *b)
{
	u64 common = 0, i = 0, k = 0;

	while (i < a->nr && k < b->nr) {
		if (a->pfn[i] < b->pfn[k]) {
			i++;
		} else if (a->pfn[i] > b->pfn[k]) {
			k++;
		} else {
			common++;
			i++;
			k++;
		}
	}
	return common;
}

static int run_frames(char **pids, int nr)
{
	struct frames *f = calloc((size_t)nr, sizeof(*f));
	int kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);

	if (!f || kpageflags < 0)
		die("kpageflags", errno);
	for (int i = 0; i < nr; i++)
		look(pids[i], kpageflags, &f[i]);
	for (int i = 0; i < nr; i++)
		for (int k = i + 1; k < nr; k++)
			printf("pair %s %s common=%" PRIu64 "\n", pids[i], pids[k],
			       common_frames(&f[i], &f[k]));
	close(kpageflags);
	free(f);
	return 0;
}

int main(int argc, char **argv)
{
	sigset_t set;

	/* Before the agent's threads: the signal is waited for. */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (argc == 4 && strcmp(argv[1], "vm") == 0)
		return run_vm(argv[2], argv[3], SIGUSR1);
	if (argc == 5 && strcmp(argv[1], "probe") == 0)
		return run_probe(argv[2], argv[3], argv[4], SIGUSR1);
	if (argc > 2 && strcmp(argv[1], "frames") == 0)
		return run_frames(argv + 2, argc - 2);
	fprintf(stderr, "usage: see the head of tool_domains.c\n");
	return 2;
}
