// SPDX-License-Identifier: MIT
/*
 * VMMs without guests whose memory is huge pages, on the real agent library, and the observer that
 * says from outside what became of it.
 *
 *   tool_huge vm NAME SET GROUP...      fills its memory, prints "filled chunks=N huge=N" and then
 *                                       "attached ADDRESS", and runs until it is ended. A thread
 *                                       rewrites some pages all the time. At each SIGUSR1 all
 *                                       pages are checked: "checked errors=N writes=N"
 *   tool_huge small NAME SET GROUP...   the same of small pages, without the thread; at each
 *                                       SIGUSR1 it also writes all twins again, in place
 *   tool_huge look PID ADDRESS GROUP... as root: "group I huge=N merged=N zero=N" for each, and
 *                                       "smaps anon_huge=N" in KiB, for that memory only
 *
 * A GROUP is CHUNKS:TWINS:ZEROS, chunks of 2 MiB that have so many pages of content that all VMs
 * of the SET have at the same place (up to 256), and so many pages of zeros (up to 32), spread all
 * over. Everything else is the VM's own, and four pages of each chunk are rewritten; in chunks of
 * MANY_TWINS four more change between common and own content.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/procfs.h"
#include "common/types.h"
#include "hypervisor-hooks/hooks.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define STORE_PATH "/memfd:ballast-store"
/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT	((u64)1 << 63)
#define PM_SWAP		((u64)1 << 62)
#define PM_FILE		((u64)1 << 61)

#define GROUPS_MAX	16
#define CHUNKS_MAX	256
#define PAGE_WORDS	(PAGE_BYTES / sizeof(u64))
#define MANY_TWINS	128
#define WRITE_PAUSE_US	2000
#define CHANGE_ROUNDS	4
#define COMPLAINTS_MAX	5
#define COLLAPSE_PASSES 3

static struct group {
	u32 chunks, twins, zeros;
} groups[GROUPS_MAX];
static u32 nr_groups, nr_chunks;

static u8 *ram;
static u64 own_id, set_id;
/* How often each page was rewritten. With its content, under the lock. */
static u32 version[CHUNKS_MAX * CHUNK_PAGES];
static u64 errors, writes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

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

/* --- layout ----------------------------------------------------------------------------------- */

enum kind {
	PAGE_OWN,
	PAGE_TWIN,
	PAGE_ZERO,
	PAGE_REWRITTEN,
	PAGE_CHANGING, /* between twin and own */
};

static const struct group *group_of(u32 chunk)
{
	const struct group *g = groups;

	for (; chunk >= g->chunks; g++)
		chunk -= g->chunks;
	return g;
}

static enum kind kind_of(u32 page)
{
	const struct group *g = group_of(page / CHUNK_PAGES);
	u32 p = page % CHUNK_PAGES;

	if (p % 2 == 0)
		return p / 2 * g->twins % 256 < g->twins ? PAGE_TWIN : PAGE_OWN;
	if (p % 16 == 9 && p / 16 < g->zeros)
		return PAGE_ZERO;
	if (p % 128 == 5)
		return PAGE_REWRITTEN;
	return p % 128 == 7 && g->twins >= MANY_TWINS ? PAGE_CHANGING : PAGE_OWN;
}

static void parse_groups(char **args, int nr)
{
	for (int i = 0; i < nr && nr_groups < GROUPS_MAX; i++) {
		struct group *g = &groups[nr_groups++];

		if (sscanf(args[i], "%" SCNu32 ":%" SCNu32 ":%" SCNu32, &g->chunks, &g->twins,
			   &g->zeros) != 3)
			die(args[i], EINVAL);
		if (g->chunks > CHUNKS_MAX - nr_chunks)
			die(args[i], E2BIG);
		nr_chunks += g->chunks;
	}
}

/* --- content ---------------------------------------------------------------------------------- */

/* What the content of a page is made of; 0: zeros. */
static u64 content_id(u32 page)
{
	enum kind kind = kind_of(page);

	if (kind == PAGE_ZERO)
		return 0;
	if (kind == PAGE_TWIN || (kind == PAGE_CHANGING && version[page] % 2 == 0))
		return mix(set_id + page);
	return mix(mix(own_id + page) + version[page]);
}

static u64 word(u64 id, u64 w)
{
	return id ? mix(id + w) : 0;
}

static u64 *page_at(u32 page)
{
	return (u64 *)(void *)(ram + (u64)page * PAGE_BYTES);
}

static void fill(u32 page)
{
	volatile u64 *at = page_at(page);
	u64 id = content_id(page);

	for (u64 w = 0; w < PAGE_WORDS; w++)
		at[w] = word(id, w);
}

static void check(u32 page)
{
	const u64 *at = page_at(page);
	u64 id = content_id(page), wrong = 0;

	for (u64 w = 0; w < PAGE_WORDS; w++)
		wrong += at[w] != word(id, w);
	if (wrong && errors++ < COMPLAINTS_MAX) {
		printf("ERROR page %" PRIu32 " kind %d version %" PRIu32 ": %" PRIu64
		       " wrong words, the first is %" PRIx64 "\n",
		       page, (int)kind_of(page), version[page], wrong, at[0]);
		fflush(stdout);
	}
}

static void *rewrite(void *arg)
{
	for (u64 round = 1;; round++) {
		for (u32 p = 0; p < nr_chunks * CHUNK_PAGES; p++) {
			enum kind kind = kind_of(p);

			if (kind != PAGE_REWRITTEN && kind != PAGE_CHANGING)
				continue;
			pthread_mutex_lock(&lock);
			check(p);
			if (kind == PAGE_REWRITTEN || round % CHANGE_ROUNDS == 0) {
				version[p]++;
				fill(p);
				writes++;
			}
			pthread_mutex_unlock(&lock);
			usleep(WRITE_PAUSE_US);
		}
	}
	return NULL;
}

/* --- vm --------------------------------------------------------------------------------------- */

/* How much of [start, end) is mapped by huge pages. */
static u64 huge_bytes(pid_t pid, u64 start, u64 end)
{
	static const struct pagemap_query query = {
		.all = PAGE_IS_PRESENT | PAGE_IS_HUGE,
		.ret_mask = PAGE_IS_HUGE,
	};
	struct page_region found[CHUNKS_MAX];
	u64 bytes = 0, walk_end;
	int fd = pagemap_open(pid), nr;

	if (fd < 0)
		die("pagemap", -fd);
	nr = pagemap_scan(fd, start, end, &query, found, CHUNKS_MAX, &walk_end);
	if (nr < 0 || walk_end != end)
		die("PAGEMAP_SCAN", nr < 0 ? -nr : E2BIG);
	for (int i = 0; i < nr; i++)
		bytes += found[i].end - found[i].start;
	close(fd);
	return bytes;
}

static void map_ram(bool huge)
{
	u64 bytes = nr_chunks * CHUNK_BYTES;
	u8 *at = mmap(NULL, bytes + CHUNK_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		die("mmap", errno);
	ram = at + (CHUNK_BYTES - (u64)(uintptr_t)at % CHUNK_BYTES) % CHUNK_BYTES;
	madvise(ram, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (u32 p = 0; p < nr_chunks * CHUNK_PAGES; p++)
		fill(p);
	/* The host's memory may have been in pieces. */
	for (int i = 0; huge && i < COLLAPSE_PASSES; i++)
		if (madvise(ram, bytes, MADV_COLLAPSE) == 0)
			break;
	printf("filled chunks=%" PRIu32 " huge=%" PRIu64 "\n", nr_chunks,
	       huge_bytes(getpid(), (u64)(uintptr_t)ram, (u64)(uintptr_t)ram + bytes) /
		       CHUNK_BYTES);
	fflush(stdout);
}

static void attach(const char *name, bool huge)
{
	const struct bh_config cfg = { .name = name };
	struct bh_agent *a;
	int r = bh_new(&cfg, &a);

	if (r < 0)
		die("bh_new", -r);
	r = bh_region_add(a, ram, nr_chunks * CHUNK_BYTES, 0, "ram");
	if (r < 0)
		die("bh_region_add", -r);
	bh_region_advise(a, ram, nr_chunks * CHUNK_BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	printf("attached %" PRIx64 "\n", (u64)(uintptr_t)ram);
	fflush(stdout);
}

static int run_vm(const char *name, const char *set, bool huge)
{
	sigset_t signals;
	pthread_t thread;
	int got;

	own_id = text_id(name);
	set_id = text_id(set);
	/* Before the threads: the signal is waited for. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	map_ram(huge);
	attach(name, huge);
	if (huge && pthread_create(&thread, NULL, rewrite, NULL) != 0)
		die("thread", EAGAIN);
	while (sigwait(&signals, &got) == 0) {
		for (u32 p = 0; p < nr_chunks * CHUNK_PAGES; p++) {
			pthread_mutex_lock(&lock);
			check(p);
			if (!huge && kind_of(p) == PAGE_TWIN)
				fill(p);
			pthread_mutex_unlock(&lock);
		}
		pthread_mutex_lock(&lock);
		printf("checked errors=%" PRIu64 " writes=%" PRIu64 "\n", errors, writes);
		pthread_mutex_unlock(&lock);
		fflush(stdout);
	}
	return 1;
}

/* --- look ------------------------------------------------------------------------------------- */

struct look {
	pid_t pid;
	int pagemap;
	u64 start, end;
	u64 merged; /* pages */
};

/* Pages that show the store: those in a mapping of it, but for what was written since. */
static int count_merged(const struct procmap *m, void *arg)
{
	struct look *l = arg;

	if (strncmp(m->path, STORE_PATH, strlen(STORE_PATH)) != 0)
		return 0;
	for (u64 at = MAX(m->start, l->start); at < MIN(m->end, l->end); at += PAGE_BYTES) {
		u64 entry;

		if (pread(l->pagemap, &entry, sizeof(entry),
			  (off_t)(at / PAGE_BYTES * sizeof(entry))) != sizeof(entry))
			return -EIO;
		l->merged += !(entry & (PM_PRESENT | PM_SWAP)) || entry & PM_FILE;
	}
	return 0;
}

static u64 count_zero(const struct look *l)
{
	static const struct pagemap_query query = { .all = PAGE_IS_PFNZERO,
						    .ret_mask = PAGE_IS_PFNZERO };
	struct page_region found[CHUNK_PAGES];
	u64 pages = 0, walk_end;

	for (u64 at = l->start; at < l->end; at = walk_end) {
		int nr =
			pagemap_scan(l->pagemap, at, l->end, &query, found, CHUNK_PAGES, &walk_end);

		if (nr < 0)
			die("PAGEMAP_SCAN", -nr);
		for (int i = 0; i < nr; i++)
			pages += (found[i].end - found[i].start) / PAGE_BYTES;
	}
	return pages;
}

static u64 smaps_anon_huge_kib(const struct look *l)
{
	u64 start = 0, end = 0, kib, total = 0;
	char path[64], line[512];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)l->pid);
	f = fopen(path, "re");
	if (!f)
		die(path, errno);
	while (fgets(line, sizeof(line), f)) {
		u64 a, b;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &a, &b) == 2) {
			start = a;
			end = b;
		} else if (sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1) {
			total += start >= l->start && end <= l->end ? kib : 0;
		}
	}
	fclose(f);
	return total;
}

static int run_look(const char *pid, const char *address)
{
	struct look l = { .pid = (pid_t)atoi(pid), .start = strtoull(address, NULL, 16) }, all;

	l.pagemap = pagemap_open(l.pid);
	if (l.pagemap < 0)
		die("pagemap", -l.pagemap);
	all = l;
	for (u32 i = 0; i < nr_groups; i++) {
		int r;

		l.end = l.start + groups[i].chunks * CHUNK_BYTES;
		l.merged = 0;
		r = procmaps_walk(l.pid, count_merged, &l);
		if (r < 0)
			die("maps", -r);
		printf("group %" PRIu32 " huge=%" PRIu64 " merged=%" PRIu64 " zero=%" PRIu64 "\n",
		       i, huge_bytes(l.pid, l.start, l.end) / CHUNK_BYTES, l.merged,
		       count_zero(&l));
		l.start = l.end;
	}
	all.end = l.end;
	printf("smaps anon_huge=%" PRIu64 "\n", smaps_anon_huge_kib(&all));
	close(l.pagemap);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 4)
		parse_groups(argv + 4, argc - 4);
	if (argc > 4 && strcmp(argv[1], "vm") == 0)
		return run_vm(argv[2], argv[3], true);
	if (argc > 4 && strcmp(argv[1], "small") == 0)
		return run_vm(argv[2], argv[3], false);
	if (argc > 4 && strcmp(argv[1], "look") == 0)
		return run_look(argv[2], argv[3]);
	fprintf(stderr, "usage: see the head of tool_huge.c\n");
	return 2;
}
