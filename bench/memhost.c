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
 *   write NR STEP PAUSE_US
 *           writes a word to each of the next NR pages of a random order of every
 *           STEP-th page, with a pause between; prints "WRITTEN NR", then NR u32: the
 *           ns that each took
 *   fork    has all memory in a child too; prints "FORKED"
 *   check   prints "WRONG N": pages that differ from content and writes
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <xxhash.h>
#include "bench/content.h"
#include "bench/latency.h"
#include "common/clock.h"
#include "hypervisor-hooks/hooks.h"

/* Writes go to this part of the memory: a guest's working set is not all of it. */
#define HOT_SHARE 16

struct load {
	u8 *memory;
	u64 pages;
	u32 write_permille;
	atomic_bool stop;
	_Atomic u64 ops, max_ns;
	_Atomic u64 classes[LATENCY_CLASSES];
	u64 since_us;
};

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
		l->classes[latency_class(now - last)]++;
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

	for (u32 c = 0; c < LATENCY_CLASSES; c++) {
		seen += l->classes[c];
		if ((double)seen >= (double)ops * share)
			return latency_class_ns(c);
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
	for (u32 c = 0; c < LATENCY_CLASSES; c++)
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

/* --- single writes -----------------------------------------------------------------------------
 */

struct writes {
	const char *content;
	u8 *memory;
	u64 pages;
	u32 *order, nr, done; /* the first @done of @order are written */
};

/* Where in a page, and what: by the page alone, so that check() knows it. */
static u64 written_word(u64 page)
{
	return page * 2654435761u % (PAGE_BYTES / 8);
}

static u64 written_value(u64 page)
{
	return ~page * 0x9e3779b97f4a7c15ull;
}

static int shuffle_pages(struct writes *w, u32 step)
{
	u64 x = 88172645463325252ull;

	w->order = malloc(w->pages * sizeof(*w->order));
	if (!w->order)
		return -ENOMEM;
	for (u64 page = 0; page < w->pages; page += step) {
		u32 other;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		other = (u32)((x >> 20) % (w->nr + 1));
		w->order[w->nr] = w->order[other];
		w->order[other] = (u32)page;
		w->nr++;
	}
	return 0;
}

/* A plain store: it reads nothing, so a page that is not mapped takes one fault. */
static int write_pages(struct writes *w, u32 nr, u32 step, u32 pause_us)
{
	u32 *ns = calloc(nr, sizeof(*ns));
	int r = w->order ? 0 : shuffle_pages(w, step);

	if (r < 0 || !ns || nr > w->nr - w->done) {
		free(ns);
		return -EINVAL;
	}
	for (u32 i = 0; i < nr; i++) {
		u64 page = w->order[w->done++], value = written_value(page), t;
		volatile u64 *word = (u64 *)(w->memory + page * PAGE_BYTES) + written_word(page);

		t = now_ns();
		*word = value;
		t = now_ns() - t;
		ns[i] = (u32)MIN(t, UINT32_MAX);
		if (pause_us)
			usleep(pause_us);
	}
	printf("WRITTEN %u\n", nr);
	fwrite(ns, sizeof(*ns), nr, stdout);
	fflush(stdout);
	free(ns);
	return 0;
}

static int check_pages(struct writes *w)
{
	int fd = open(w->content, O_RDONLY | O_CLOEXEC);
	bool *written = calloc(w->pages, sizeof(*written));
	u64 page[PAGE_BYTES / 8], wrong = 0;

	if (fd < 0 || !written) {
		free(written);
		return -EIO;
	}
	for (u32 i = 0; i < w->done; i++)
		written[w->order[i]] = true;
	for (u64 i = 0; i < w->pages; i++) {
		memset(page, 0, sizeof(page)); /* holes of the file, and what is behind it */
		if (pread(fd, page, PAGE_BYTES, (off_t)(i * PAGE_BYTES)) < 0)
			wrong++;
		if (written[i])
			page[written_word(i)] = written_value(i);
		wrong += memcmp(page, w->memory + i * PAGE_BYTES, PAGE_BYTES) != 0;
	}
	close(fd);
	free(written);
	printf("WRONG %llu\n", (unsigned long long)wrong);
	return 0;
}

static int fork_memory(void)
{
	pid_t parent = getpid(), pid = fork();

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(0);
	}
	printf("FORKED\n");
	return 0;
}

static int serve(struct load *l, struct writes *w, u64 bytes, const char *mode, const char *name)
{
	u32 nr, step, pause_us;
	char line[64];
	int r;

	while (fgets(line, sizeof(line), stdin)) {
		r = 0;
		if (strcmp(line, "load\n") == 0)
			print_load(l);
		else if (strcmp(line, "sum\n") == 0)
			printf("SUM %016llx\n", (unsigned long long)XXH3_64bits(l->memory, bytes));
		else if (strcmp(line, "fork\n") == 0)
			r = fork_memory();
		else if (strcmp(line, "check\n") == 0)
			r = check_pages(w);
		else if (sscanf(line, "write %u %u %u", &nr, &step, &pause_us) == 3 && step)
			r = write_pages(w, nr, step, pause_us);
		else if (strcmp(line, "offer\n") == 0) {
			r = offer(mode, name, l->memory, bytes);
			if (r == 0)
				printf("OFFERED\n");
		}
		if (r < 0) {
			fprintf(stderr, "memhost: %s: %.*s: %s\n", mode, (int)strcspn(line, "\n"),
				line, strerror(-r));
			return 1;
		}
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
	struct writes writes = { 0 };
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
	writes.content = content;
	writes.memory = load.memory;
	writes.pages = bytes >> PAGE_SHIFT;
	return serve(&load, &writes, bytes, mode, name);
}
