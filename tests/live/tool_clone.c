/* SPDX-License-Identifier: MIT */
/*
 * A clone without a guest: a VMM on the real agent library whose memory begins as a snapshot's.
 *
 *   tool_clone make FILE MIB SEED    writes such a snapshot: pages that differ, single zero pages
 *                                    among them, and a long stretch of zeros
 *   tool_clone run NAME FILE SEED    prints "cloned: err=E us=N" when bh_region_from_image() has
 *                                    returned, and obeys commands on stdin, one a line:
 *
 *   check        is every byte what it must be? Prints "check: N wrong"
 *   write AT NR  writes a word of each page
 *   shared       pages that are the store's, by the kernel's word, and how many mappings of it
 *   again        asks for the same once more, with memory that is in use: must be refused
 *   pss          of this process, in KiB
 *   connected    whether the daemon is there
 *
 * Without the image (err is not 0) the memory must be empty, and "check" says so.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "hypervisor-hooks/hooks.h"

#define PAGE_WORDS (PAGE_BYTES / sizeof(u64))
/* A guest boots with what is before it, so that the image does not begin a region. */
#define LEAD_PAGES 16

static struct bh_agent *agent;
static u64 *ram, seed, nr_pages;
static u64 *first_word; /* of each page; what "write" changed */
static int pagemap_fd, file_fd;
static bool have_image;

static void __attribute__((noreturn)) die(const char *what, int error)
{
	printf("failed: %s: %s\n", what, strerror(error));
	fflush(stdout);
	exit(1);
}

/* What the snapshot holds. */
static u64 word(u64 of, u64 page, u64 w)
{
	u64 x = (of << 40 ^ (page * PAGE_WORDS + w + 1)) * 0x9e3779b97f4a7c15;

	if (page % 16 == 5 || (page >= 1024 && page < 3072))
		return 0;
	return x ^ x >> 29;
}

static void make(const char *path, u64 pages, u64 of)
{
	u64 buf[PAGE_WORDS];
	FILE *f = fopen(path, "we");

	if (!f)
		die(path, errno);
	for (u64 p = 0; p < pages; p++) {
		for (u64 w = 0; w < PAGE_WORDS; w++)
			buf[w] = word(of, p, w);
		if (fwrite(buf, PAGE_BYTES, 1, f) != 1)
			die(path, errno);
	}
	if (fclose(f) != 0)
		die(path, errno);
}

static u64 *page_at(u64 page)
{
	return ram + (LEAD_PAGES + page) * PAGE_WORDS;
}

static void check(void)
{
	u64 wrong = 0;

	for (u64 p = 0; p < nr_pages; p++) {
		const volatile u64 *at = page_at(p);
		bool right = at[0] == first_word[p];

		for (u64 w = 1; w < PAGE_WORDS; w++)
			right = right && at[w] == (have_image ? word(seed, p, w) : 0);
		wrong += !right;
	}
	for (u64 w = 0; w < LEAD_PAGES * PAGE_WORDS; w++)
		wrong += ram[w] != 0;
	printf("check: %" PRIu64 " wrong\n", wrong);
}

static int count_mapping(const struct procmap *m, void *arg)
{
	*(u64 *)arg += strstr(m->path, "memfd:ballast-store") != NULL;
	return 0;
}

static void shared(void)
{
	u64 entry, found = 0, maps = 0, first = (u64)(uintptr_t)page_at(0) >> PAGE_SHIFT;

	for (u64 p = 0; p < nr_pages; p++) {
		(void)*(volatile u64 *)page_at(p);
		if (pread(pagemap_fd, &entry, sizeof(entry),
			  (off_t)((first + p) * sizeof(entry))) == sizeof(entry))
			found += entry >> 61 & 1;
	}
	procmaps_walk(getpid(), count_mapping, &maps);
	printf("shared: pages=%" PRIu64 " mappings=%" PRIu64 "\n", found, maps);
}

static int clone_from_image(void)
{
	u64 begin = now_us();
	int err = bh_region_from_image(agent, page_at(0), nr_pages << PAGE_SHIFT, file_fd, 0);

	printf("cloned: err=%d us=%" PRIu64 "\n", -err, now_us() - begin);
	fflush(stdout);
	return err;
}

static void obey(const char *line)
{
	struct proc_memory mem = { 0 };
	struct bh_stats s;
	char what[16] = "";
	u64 at = 0, nr = 0;

	sscanf(line, "%15s %" SCNu64 " %" SCNu64, what, &at, &nr);
	if (strcmp(what, "check") == 0) {
		check();
	} else if (strcmp(what, "write") == 0 && at + nr <= nr_pages) {
		for (u64 p = at; p < at + nr; p++)
			*(volatile u64 *)page_at(p) = first_word[p] = ~(first_word[p] ^ p << 20);
		printf("write: %" PRIu64 " pages\n", nr);
	} else if (strcmp(what, "shared") == 0) {
		shared();
	} else if (strcmp(what, "again") == 0) {
		clone_from_image();
	} else if (strcmp(what, "pss") == 0) {
		proc_memory(getpid(), &mem);
		printf("pss: %" PRIu64 "\n", mem.pss >> 10);
	} else if (strcmp(what, "connected") == 0) {
		bh_stats(agent, &s);
		printf("connected: %d\n", s.connected);
	} else {
		die(line, EINVAL);
	}
	fflush(stdout);
}

static void run(const char *name, const char *path)
{
	const struct bh_config cfg = { .name = name, .pins_exactly = true };
	struct stat st;
	char line[64];
	size_t bytes;
	int err;

	file_fd = open(path, O_RDONLY | O_CLOEXEC);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (file_fd < 0 || pagemap_fd < 0 || fstat(file_fd, &st) < 0)
		die(path, errno);
	nr_pages = (u64)st.st_size >> PAGE_SHIFT;
	bytes = (LEAD_PAGES + nr_pages) << PAGE_SHIFT;
	ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		   -1, 0);
	first_word = calloc(nr_pages, sizeof(first_word[0]));
	if (ram == MAP_FAILED || !first_word)
		die("memory", errno);
	madvise(ram, bytes, MADV_NOHUGEPAGE);
	err = bh_new(&cfg, &agent);
	if (err == 0)
		err = bh_region_add(agent, ram, bytes, 0, "ram");
	if (err < 0)
		die("agent", -err);
	have_image = clone_from_image() == 0;
	for (u64 p = 0; p < nr_pages && have_image; p++)
		first_word[p] = word(seed, p, 0);
	while (fgets(line, sizeof(line), stdin))
		obey(line);
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 2;
	seed = strtoull(argv[4], NULL, 10);
	if (strcmp(argv[1], "make") == 0)
		make(argv[2], MIB(strtoull(argv[3], NULL, 10)) >> PAGE_SHIFT, seed);
	else if (strcmp(argv[1], "run") == 0)
		run(argv[2], argv[3]);
	else
		return 2;
	return 0;
}
