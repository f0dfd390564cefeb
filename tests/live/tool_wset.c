// SPDX-License-Identifier: MIT
/*
 * A VMM without a guest, on the real agent library, that uses a known part of its memory:
 *
 *   tool_wset NAME MIB PERCENT [raw]
 *
 * fills MIB of memory with content that compresses (raw: does not), and then reads, in an order of
 * its own, pages of a set that is PERCENT of all and lies scattered; each of them several times a
 * second, and checks what it reads. Prints "ready". At each SIGUSR1 it checks all of its memory,
 * each word, and prints "reads=N errors=N out=N" (out: pages that were paged out then). After
 * SIGUSR2 it uses half as much.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/types.h"
#include "hypervisor-hooks/hooks.h"

#define PAUSE_PAGES 256
#define PAUSE_US    1000
#define PAGE_WORDS  (PAGE_BYTES / sizeof(u64))

static volatile sig_atomic_t tell, halve;

static void on_signal(int sig)
{
	*(sig == SIGUSR1 ? &tell : &halve) = 1;
}

static u64 mix(u64 x)
{
	x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ULL;
	x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44dULL;
	return x ^ (x >> 33);
}

static u32 own_words = 64; /* of a page's 512: the others repeat them */

/* Its own in each page, and an eighth of it when compressed. */
static u64 word_of(u64 page, u32 word)
{
	return mix(page << 10 | word % own_words) | 1;
}

static bool is_used(u64 page, u32 percent)
{
	return mix(page + 12345) % 1000 < percent * 10;
}

int main(int argc, char **argv)
{
	struct bh_config cfg = { 0 };
	struct bh_agent *agent;
	u64 pages, reads = 0, errors = 0;
	u32 percent;
	u64 *ram;
	int r;

	if (argc != 4 && (argc != 5 || strcmp(argv[4], "raw") != 0)) {
		fprintf(stderr, "usage: tool_wset NAME MIB PERCENT [raw]\n");
		return 2;
	}
	cfg.name = argv[1];
	if (argc == 5)
		own_words = PAGE_WORDS;
	pages = strtoull(argv[2], NULL, 10) << 8;
	percent = (u32)strtoul(argv[3], NULL, 10);
	ram = mmap(NULL, pages << PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (ram == MAP_FAILED)
		return 1;
	madvise(ram, pages << PAGE_SHIFT, MADV_NOHUGEPAGE);
	madvise(ram, pages << PAGE_SHIFT, MADV_DONTFORK);
	r = bh_new(&cfg, &agent);
	if (r == 0)
		r = bh_region_add(agent, ram, pages << PAGE_SHIFT, 0, "ram");
	if (r < 0) {
		fprintf(stderr, "tool_wset: %s\n", strerror(-r));
		return 1;
	}
	bh_region_advise(agent, ram, pages << PAGE_SHIFT, MADV_DONTFORK);
	for (u64 p = 0; p < pages; p++)
		for (u32 w = 0; w < PAGE_WORDS; w++)
			ram[p * PAGE_WORDS + w] = word_of(p, w);
	signal(SIGUSR1, on_signal);
	signal(SIGUSR2, on_signal);
	printf("ready\n");
	fflush(stdout);
	for (u64 p = 0;; p = (p + 1) % pages) {
		u32 w = (u32)(reads % PAGE_WORDS);

		if (is_used(p, percent)) {
			errors += *(volatile u64 *)&ram[p * PAGE_WORDS + w] != word_of(p, w);
			reads++;
		}
		if (p % PAUSE_PAGES == 0)
			usleep(PAUSE_US);
		if (halve) {
			percent /= 2;
			halve = 0;
		}
		if (tell) {
			struct bh_stats s;

			bh_stats(agent, &s);
			for (u64 q = 0; q < pages; q++)
				for (u32 v = 0; v < PAGE_WORDS; v++)
					errors += ram[q * PAGE_WORDS + v] != word_of(q, v);
			printf("reads=%" PRIu64 " errors=%" PRIu64 " out=%" PRIu64 "\n", reads,
			       errors, s.paged_pages);
			fflush(stdout);
			tell = 0;
		}
	}
}
