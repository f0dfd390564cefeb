/* SPDX-License-Identifier: MIT */
/*
 * A stand-in for a VM whose memory does not fit (make bench-tiers):
 *
 *   tierguest NAME plain|agent MIB HOT_PERCENT FILL_MIB_PER_S WARM_S MEASURE_S
 *
 * fills MIB of memory with content that compresses to some 40%, as fast as it is told to; then
 * accesses random pages, 95% of them in a hot part of HOT_PERCENT that lies scattered, a tenth of
 * all being writes, and checks what it reads. "agent": with Ballast's agent, so that pages of it
 * can be paged out. Prints "FILLED", and after WARM_S and MEASURE_S seconds "TIER ops_per_s=N
 * p50_ns=N p99_ns=N p999_ns=N max_us=N errors=N out=N in=N".
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bench/latency.h"
#include "common/clock.h"
#include "hypervisor-hooks/hooks.h"

#define PAGE_WORDS   (PAGE_BYTES / sizeof(u64))
#define RANDOM_WORDS 190 /* the others of a page repeat */
#define COUNTER	     (PAGE_WORDS - 1)
#define HOT_PERMILLE 950

struct guest {
	u64 *ram;
	u64 pages, hot;
	u64 x; /* the generator's state */
	u64 ops, errors, max_ns, sum;
	u64 classes[LATENCY_CLASSES];
};

static u64 mix(u64 x)
{
	x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ULL;
	x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44dULL;
	return x ^ (x >> 33);
}

static u64 word_of(u64 page, u64 word)
{
	return mix(page << 10 | (word < RANDOM_WORDS ? word : word % 8));
}

static u64 next(struct guest *g)
{
	g->x ^= g->x << 13;
	g->x ^= g->x >> 7;
	g->x ^= g->x << 17;
	return g->x;
}

/* A bijection, so that hot pages lie everywhere. */
static u64 scatter(const struct guest *g, u64 n)
{
	return n * 7919 % g->pages;
}

static void fill(struct guest *g, u64 mib_per_s)
{
	u64 t0 = now_us();

	for (u64 p = 0; p < g->pages; p++) {
		u64 *page = g->ram + p * PAGE_WORDS;

		for (u64 w = 0; w < PAGE_WORDS; w++)
			page[w] = word_of(p, w);
		while ((now_us() - t0) * mib_per_s * 256 < p * 1000000)
			usleep(5000);
	}
}

static void run(struct guest *g, u64 until_us)
{
	u64 last = now_ns();

	while (last < until_us * 1000) {
		u64 r = next(g), n = next(g), now, page, word = r >> 32 & (PAGE_WORDS - 1);
		u64 *at;

		page = scatter(g, n % (r % 1000 < HOT_PERMILLE ? g->hot : g->pages));
		at = g->ram + page * PAGE_WORDS;
		if (r >> 20 & 7)
			g->errors += word != COUNTER &&
				     *(volatile u64 *)&at[word] != word_of(page, word);
		else
			((volatile u64 *)at)[COUNTER]++;
		now = now_ns();
		g->classes[latency_class(now - last)]++;
		g->max_ns = MAX(g->max_ns, now - last);
		g->ops++;
		last = now;
	}
}

static u64 percentile(const struct guest *g, double share)
{
	u64 seen = 0;
	u32 c;

	for (c = 0; c < LATENCY_CLASSES; c++) {
		seen += g->classes[c];
		if ((double)seen >= (double)g->ops * share)
			break;
	}
	return latency_class_ns(c);
}

static int attach(const char *name, struct guest *g, struct bh_agent **ret)
{
	struct bh_config cfg = { .name = name };
	int r = bh_new(&cfg, ret);

	if (r == 0)
		r = bh_region_add(*ret, g->ram, g->pages << PAGE_SHIFT, 0, "ram");
	if (r == 0)
		bh_region_advise(*ret, g->ram, g->pages << PAGE_SHIFT, MADV_DONTFORK);
	return r;
}

int main(int argc, char **argv)
{
	static struct guest g = { .x = 88172645463325252ull };
	struct bh_agent *agent = NULL;
	struct bh_stats s = { 0 };
	u64 warm_s, measure_s;
	int r;

	if (argc != 8) {
		fprintf(stderr,
			"usage: tierguest NAME plain|agent MIB HOT_PERCENT FILL_MIB_PER_S WARM_S MEASURE_S\n");
		return 2;
	}
	g.pages = strtoull(argv[3], NULL, 10) << 8;
	g.hot = g.pages * strtoull(argv[4], NULL, 10) / 100;
	warm_s = strtoull(argv[6], NULL, 10);
	measure_s = strtoull(argv[7], NULL, 10);
	g.ram = mmap(NULL, g.pages << PAGE_SHIFT, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g.ram == MAP_FAILED || !g.hot)
		return 1;
	madvise(g.ram, g.pages << PAGE_SHIFT, MADV_NOHUGEPAGE);
	madvise(g.ram, g.pages << PAGE_SHIFT, MADV_DONTFORK);
	r = strcmp(argv[2], "agent") == 0 ? attach(argv[1], &g, &agent) : 0;
	if (r < 0) {
		fprintf(stderr, "tierguest: %s\n", strerror(-r));
		return 1;
	}
	fill(&g, strtoull(argv[5], NULL, 10));
	puts("FILLED");
	fflush(stdout);
	run(&g, now_us() + warm_s * 1000000);
	memset(g.classes, 0, sizeof(g.classes));
	g.ops = g.max_ns = 0;
	run(&g, now_us() + measure_s * 1000000);
	if (agent)
		bh_stats(agent, &s);
	printf("TIER ops_per_s=%" PRIu64 " p50_ns=%" PRIu64 " p99_ns=%" PRIu64 " p999_ns=%" PRIu64
	       " max_us=%" PRIu64 " errors=%" PRIu64 " out=%" PRIu64 " in=%" PRIu64 "\n",
	       g.ops / MAX(measure_s, 1), percentile(&g, 0.5), percentile(&g, 0.99),
	       percentile(&g, 0.999), g.max_ns / 1000, g.errors, (u64)s.paged_out_pages,
	       (u64)s.paged_in_pages);
	return 0;
}
