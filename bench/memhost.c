/* SPDX-License-Identifier: MIT */
/*
 * A stand-in for a VMM: memory with given content, offered to the kernel's KSM or to Ballast, and,
 * if wanted, a thread that reads and writes it all along, as a guest does. Sharing works on the
 * memory of a process; no guest is needed to compare how two engines share it, and without one
 * nothing else differs between two runs.
 *
 *   memhost --content FILE --mode none|ksm|ballast [--name NAME] [--load WRITE_PERMILLE]
 *
 * Prints "READY pages=N address=HEX bytes=N" once the memory is filled. Then reads lines from
 * stdin, and ends when that does:
 *
 *   offer   offers the memory to the engine of --mode, prints "OFFERED"
 *   load    prints "LOAD ops=N seconds=S p50_ns=N p99_ns=N max_us=N" of the time since the last
 *           such line
 *   sum     prints "SUM hash", of all content, to show that sharing changed none
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>
#include "bench/content.h"
#include "common/clock.h"
#include "hypervisor-hooks/hooks.h"

/* Latencies in classes of 1/8 power of two, from 1 ns to 2^40 ns. */
#define CLASSES (40 * 8)
/* Writes go to this part of the memory: a guest's working set is not all of it. */
#define HOT_SHARE 16

struct load {
	u8 *memory;
	u64 pages;
	u32 write_permille;
	atomic_bool stop;
	_Atomic u64 ops, max_ns;
	_Atomic u64 classes[CLASSES];
	u64 since_us;
};

static u64 now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

static u32 class_of(u64 ns)
{
	u32 log;

	if (ns < 8)
		return (u32)ns;
	log = 63 - (u32)__builtin_clzll(ns);
	return MIN(log * 8 + (u32)((ns >> (log - 3)) & 7), (u32)CLASSES - 1);
}

static u64 class_ns(u32 c)
{
	return c < 24 ? c : (u64)(8 + c % 8) << (c / 8 - 3);
}

/* One access a time stamp: the stamp costs some 25 ns, the same for every engine. */
static void *load_main(void *arg)
{
	struct load *l = arg;
	u64 x = 88172645463325252ull, last = now_ns(), sum = 0;

	while (!l->stop) {
		u64 page, now;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		page = (x >> 20) % l->pages;
		if (x % 1000 < l->write_permille)
			((volatile u64 *)(l->memory + page / HOT_SHARE * PAGE_BYTES))[x >> 55] += 1;
		else
			sum += ((volatile u64 *)(l->memory + page * PAGE_BYTES))[x >> 55];
		now = now_ns();
		l->classes[class_of(now - last)]++;
		if (now - last > l->max_ns)
			l->max_ns = now - last;
		l->ops++;
		last = now;
	}
	return (void *)(uintptr_t)(sum & 1);
}

static u64 percentile(struct load *l, u64 ops, double share)
{
	u64 seen = 0;

	for (u32 c = 0; c < CLASSES; c++) {
		seen += l->classes[c];
		if ((double)seen >= (double)ops * share)
			return class_ns(c);
	}
	return 0;
}

static void print_load(struct load *l)
{
	u64 ops = l->ops, now = now_us();

	printf("LOAD ops=%llu seconds=%.3f p50_ns=%llu p99_ns=%llu max_us=%llu\n",
	       (unsigned long long)ops, (double)(now - l->since_us) / 1e6,
	       (unsigned long long)percentile(l, ops, 0.5),
	       (unsigned long long)percentile(l, ops, 0.99),
	       (unsigned long long)(l->max_ns / 1000));
	for (u32 c = 0; c < CLASSES; c++)
		l->classes[c] = 0;
	l->ops = l->max_ns = 0;
	l->since_us = now;
}

static int offer(const char *mode, const char *name, u8 *memory, u64 bytes)
{
	struct bh_config cfg = { .name = name };
	struct bh_agent *agent;
	int r;

	if (strcmp(mode, "none") == 0)
		return 0;
	if (strcmp(mode, "ksm") == 0)
		return madvise(memory, bytes, MADV_MERGEABLE) < 0 ? -errno : 0;
	if (strcmp(mode, "ballast") != 0)
		return -EINVAL;
	r = bh_new(&cfg, &agent);
	return r < 0 ? r : bh_region_add(agent, memory, bytes, 0, "memory");
}

static int serve(struct load *l, u64 bytes, const char *mode, const char *name)
{
	char line[64];
	int r;

	while (fgets(line, sizeof(line), stdin)) {
		if (strcmp(line, "load\n") == 0)
			print_load(l);
		else if (strcmp(line, "sum\n") == 0)
			printf("SUM %016llx\n", (unsigned long long)XXH3_64bits(l->memory, bytes));
		if (strcmp(line, "offer\n") != 0)
			continue;
		r = offer(mode, name, l->memory, bytes);
		if (r < 0) {
			fprintf(stderr, "memhost: %s: %s\n", mode, strerror(-r));
			return 1;
		}
		printf("OFFERED\n");
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "content", required_argument, NULL, 'c' },
		{ "mode", required_argument, NULL, 'm' },
		{ "name", required_argument, NULL, 'n' },
		{ "load", required_argument, NULL, 'l' },
		{ 0 },
	};
	const char *content = NULL, *mode = "none", *name = "memhost";
	static struct load load;
	pthread_t thread;
	u64 bytes, pages;
	int opt, r;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'c')
			content = optarg;
		else if (opt == 'm')
			mode = optarg;
		else if (opt == 'n')
			name = optarg;
		else if (opt == 'l')
			load.write_permille = (u32)atoi(optarg);
		else
			return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	r = content ? content_bytes(content, &bytes) : -EINVAL;
	if (r < 0) {
		fprintf(stderr, "memhost: content: %s\n", strerror(-r));
		return 1;
	}
	bytes = ROUND_UP(bytes, CHUNK_BYTES);
	load.memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (load.memory == MAP_FAILED)
		return 1;
	/* Base pages for all: what huge pages do to sharing is another question. */
	madvise(load.memory, bytes, MADV_NOHUGEPAGE);
	load.pages = bytes >> PAGE_SHIFT;
	r = load_content(content, load.memory, bytes, &pages);
	if (r < 0) {
		fprintf(stderr, "memhost: %s: %s\n", content, strerror(-r));
		return 1;
	}
	load.since_us = now_us();
	if (load.write_permille && pthread_create(&thread, NULL, load_main, &load) != 0)
		return 1;
	printf("READY pages=%llu address=%llx bytes=%llu\n", (unsigned long long)pages,
	       (unsigned long long)(uintptr_t)load.memory, (unsigned long long)bytes);
	return serve(&load, bytes, mode, name);
}
