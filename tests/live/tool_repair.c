// SPDX-License-Identifier: MIT
/*
 * A VMM without a guest, on the real agent library, whose sharing fragments: the same contents in
 * the same places as all others of its kind, but written in a scattered order, a few pages at a
 * time, so that they merge in that order.
 *
 *   tool_repair NAME [FILE]   prints "attached", "filled" when all pages are written, and, once
 *                             SIGUSR1 comes, "checked" when every byte of them was right, again
 *                             and again. It has FILE open with O_DIRECT: the agent replaces no
 *                             mapped page then, since DMA might be writing it.
 *
 * Between signals it writes pages all along, with what they hold.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "common/types.h"
#include "hypervisor-hooks/hooks.h"

#define NR_PAGES   4096u
#define PAGE_WORDS (PAGE_BYTES / sizeof(u64))
/* Written together, and then left alone for longer than the daemon takes to merge them. */
#define GROUPS	 32u
#define GROUP_US 200000
/* A page's turn: every so manieth, which visits all since it is odd. */
#define STEP 1579u
/* From then on: a write in so many us. */
#define WRITE_US 5000

static u8 *ram;

static void __attribute__((noreturn)) die(const char *what, int error)
{
	printf("failed: %s: %s\n", what, strerror(error));
	exit(1);
}

static u64 word(u64 page, u64 w)
{
	u64 x = (page * PAGE_WORDS + w + 1) * 0x9e3779b97f4a7c15;

	return x ^ x >> 29;
}

static volatile u64 *words(u64 page)
{
	return (volatile u64 *)(ram + page * PAGE_BYTES);
}

/* Says what is wrong in a page: whose content it has, if anybody's. */
static bool check_page(u64 page)
{
	u64 wrong = 0, zero = 0, first = 0, whose = NR_PAGES;

	for (u64 w = 0; w < PAGE_WORDS; w++) {
		u64 got = words(page)[w];

		if (got == word(page, w))
			continue;
		if (!wrong++)
			first = w;
		zero += got == 0;
	}
	for (u64 p = 0; wrong && p < NR_PAGES; p++)
		if (words(page)[first] == word(p, first))
			whose = p;
	if (wrong)
		printf("failed: page %llu: %llu words wrong from word %llu on, %llu of them zero, "
		       "like page %llu\n",
		       (unsigned long long)page, (unsigned long long)wrong,
		       (unsigned long long)first, (unsigned long long)zero,
		       (unsigned long long)whose);
	return !wrong;
}

static void check_all(void)
{
	bool right = true;

	for (u64 p = 0; p < NR_PAGES; p++)
		right = check_page(p) && right;
	if (right)
		puts("checked");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct bh_config cfg = { .name = argc > 1 ? argv[1] : "vm" };
	const struct timespec pause = { .tv_nsec = WRITE_US * 1000 };
	struct bh_agent *a;
	sigset_t set;
	int err;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (argc > 2 && open(argv[2], O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600) < 0)
		die(argv[2], errno);
	ram = mmap(NULL, NR_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (ram == MAP_FAILED)
		die("mmap", errno);
	madvise(ram, NR_PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
	err = bh_new(&cfg, &a);
	if (err == 0)
		err = bh_region_add(a, ram, NR_PAGES * PAGE_BYTES, 0, "ram");
	if (err < 0)
		die("agent", -err);
	puts("attached");
	fflush(stdout);
	for (u32 n = 0; n < NR_PAGES; n++) {
		u32 page = n * STEP % NR_PAGES;

		for (u64 w = 0; w < PAGE_WORDS; w++)
			words(page)[w] = word(page, w);
		if (n % (NR_PAGES / GROUPS) == NR_PAGES / GROUPS - 1)
			usleep(GROUP_US);
	}
	puts("filled");
	fflush(stdout);
	for (u64 n = 0;; n++) {
		u64 page = word(n, 0) % NR_PAGES, w = word(n, 1) % PAGE_WORDS;

		words(page)[w] = word(page, w);
		if (sigtimedwait(&set, NULL, &pause) == SIGUSR1)
			check_all();
	}
}
