/* SPDX-License-Identifier: MIT */
/*
 * A VMM without a guest, on the real agent library, that reads blocks of a base image into its
 * memory as a virtual disk does, and tells the agent of it: pins, notes, unpins.
 *
 *   tool_diskshare NAME IMAGE PAGES    commands come on stdin, one a line; each is answered by one
 *                                      line on stdout, "COMMAND: ..."
 *
 *   read AT NR BLOCK NOTED   fills pages from AT on from the image's pages from BLOCK on, and notes
 *                            them as NOTED (not the same: a lie; -1: notes nothing)
 *   churn AT NR BLOCK MS     reads some of NR pages from BLOCK on into some of those from AT on;
 *                            what was read is being merged when it is pinned again
 *   write AT NR              the guest writes a word of each page
 *   refill AT NR             the balloon takes pages, and the guest touches them again
 *   pin AT NR, unpin AT NR
 *   wait AT NR LEAST MS      until so many of the pages are the store's (the kernel's word); says
 *                            how long after the last "read" that was, and how many are
 *   check                    is every byte what it must be?
 *   renew                    a snapshot is restored: new memory, with what was there
 *   bench NR                 ns of a bh_pin() and bh_unpin() of NR pages
 *   stats                    what bh_stats() says
 *
 * The image is read by direct I/O where its file system has that: past the page tables.
 *
 * Between commands a thread of its own reads all pages all the time, as vCPUs do, and a wrong word
 * ends the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "hypervisor-hooks/hooks.h"

#define PAGE_WORDS  (PAGE_BYTES / sizeof(u64))
#define SECTORS	    8
#define READ_PAGES  32 /* of one request of the disk, as a guest's read-ahead makes them */
#define NEVER_READ  INT64_MIN
#define BENCH_TURNS 200000

static struct bh_agent *agent;
static struct bh_disk disk;
static u64 *ram;
static const u64 *image; /* what the pages must be, by another way */
static u64 nr_pages, nr_blocks;
static int image_fd, pagemap_fd;
static u64 read_done_us;
static _Atomic u64 faults;

/* What each page holds: a block; then its first word may be another. */
static _Atomic s64 *block;
static _Atomic u64 *first_word;
static pthread_mutex_t content_lock = PTHREAD_MUTEX_INITIALIZER;

static void __attribute__((noreturn)) die(const char *what, int error)
{
	printf("failed: %s: %s\n", what, strerror(error));
	fflush(stdout);
	_exit(1);
}

static volatile u64 *page_at(u64 page)
{
	return (volatile u64 *)(ram + page * PAGE_WORDS);
}

/* Of a page whose content does not change meanwhile. */
static bool page_right(u64 page)
{
	s64 b = block[page];

	for (u64 w = 0; w < PAGE_WORDS; w++) {
		u64 must = b == NEVER_READ ? 0
			   : w == 0	   ? first_word[page]
					   : image[(u64)b * PAGE_WORDS + w];

		if (page_at(page)[w] != must) {
			printf("failed: page %" PRIu64 " word %" PRIu64 " is %" PRIx64
			       ", must be %" PRIx64 "\n",
			       page, w, page_at(page)[w], must);
			fflush(stdout);
			return false;
		}
	}
	return true;
}

static void *vcpu(void *arg)
{
	for (u64 page = 0;; page = (page + 1) % nr_pages) {
		pthread_mutex_lock(&content_lock);
		if (!page_right(page))
			_exit(1);
		pthread_mutex_unlock(&content_lock);
		if (page % 64 == 0)
			usleep(200);
	}
	return NULL;
}

/* One request of the disk, of at most READ_PAGES pages. */
static void read_request(u64 at, u64 nr, u64 from, s64 noted)
{
	u8 *to = (u8 *)ram + (at << PAGE_SHIFT);
	size_t bytes = nr << PAGE_SHIFT;

	pthread_mutex_lock(&content_lock);
	if (bh_pin(agent, to, bytes) < 0)
		die("bh_pin", EINVAL);
	if (pread(image_fd, to, bytes, (off_t)(from << PAGE_SHIFT)) != (ssize_t)bytes)
		die("read of the image", errno);
	bh_unpin(agent, to, bytes);
	for (u64 k = 0; k < nr; k++) {
		block[at + k] = (s64)(from + k);
		first_word[at + k] = image[(from + k) * PAGE_WORDS];
	}
	if (noted >= 0)
		bh_note_disk_read(agent, to, bytes, &disk, (u64)noted * SECTORS);
	pthread_mutex_unlock(&content_lock);
}

static void churn(u64 at, u64 nr, u64 from, u64 ms)
{
	u64 end = now_us() + ms * 1000, x = 88172645463325252ull, reads = 0;

	for (; now_us() < end; reads++) {
		u64 n, page, b;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		n = 1 + x % 8;
		page = (x >> 8) % (nr - n + 1);
		b = (x >> 32) % (nr - n + 1);
		read_request(at + page, n, from + b, (s64)(from + b));
		/* As long as it may take until what was read is merged, now and then. */
		if (reads % 64 == 0)
			usleep(2000);
	}
	printf("churn: %" PRIu64 " reads\n", reads);
}

static void read_blocks(u64 at, u64 nr, u64 from, s64 noted)
{
	for (u64 i = 0, n; i < nr; i += n) {
		n = MIN(nr - i, (u64)READ_PAGES);
		read_request(at + i, n, from + i, noted < 0 ? noted : noted + (s64)i);
	}
	read_done_us = now_us();
	printf("read: %" PRIu64 " pages\n", nr);
}

static void write_pages(u64 at, u64 nr)
{
	for (u64 p = at; p < at + nr; p++) {
		pthread_mutex_lock(&content_lock);
		first_word[p]++;
		*page_at(p) = first_word[p];
		pthread_mutex_unlock(&content_lock);
	}
	printf("write: %" PRIu64 " pages\n", nr);
}

static void refill(u64 at, u64 nr)
{
	int err;

	pthread_mutex_lock(&content_lock);
	err = bh_discard(agent, ram + at * PAGE_WORDS, nr << PAGE_SHIFT, MADV_DONTNEED);
	for (u64 p = at; p < at + nr; p++) {
		block[p] = NEVER_READ;
		(void)*page_at(p);
	}
	pthread_mutex_unlock(&content_lock);
	printf("refill: %d\n", err);
}

/* Pages of [at, at + nr) that are a file's, says the kernel. */
static u64 in_store(u64 at, u64 nr)
{
	u64 entry, found = 0, first = (u64)(uintptr_t)ram >> PAGE_SHIFT;

	for (u64 p = at; p < at + nr; p++) {
		/* An entry that is not present may be of either kind: touch the page first. */
		(void)*page_at(p);
		if (pread(pagemap_fd, &entry, sizeof(entry),
			  (off_t)((first + p) * sizeof(entry))) == sizeof(entry))
			found += entry >> 61 & 1;
	}
	return found;
}

static void wait_shared(u64 at, u64 nr, u64 least, u64 ms)
{
	u64 end = now_us() + ms * 1000, n;

	while ((n = in_store(at, nr)) < least && now_us() < end)
		usleep(1000);
	printf("wait: ms=%" PRIu64 " shared=%" PRIu64 " of %" PRIu64 "\n",
	       (now_us() - read_done_us) / 1000, n, nr);
}

static void check_all(void)
{
	u64 wrong = 0;

	for (u64 p = 0; p < nr_pages; p++)
		wrong += !page_right(p);
	printf("check: %" PRIu64 " wrong\n", wrong);
}

static void renew(void)
{
	size_t bytes = nr_pages << PAGE_SHIFT;
	u8 *saved = malloc(bytes);
	int err;

	if (!saved)
		die("malloc", errno);
	pthread_mutex_lock(&content_lock);
	memcpy(saved, ram, bytes);
	bh_replace_begin(agent, ram, bytes);
	if (mmap(ram, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		 0) != ram)
		die("mmap", errno);
	madvise(ram, bytes, MADV_NOHUGEPAGE);
	memcpy(ram, saved, bytes);
	err = bh_invalidate(agent, ram, bytes);
	pthread_mutex_unlock(&content_lock);
	free(saved);
	printf("renew: %d\n", err);
}

static void bench(u64 nr)
{
	u64 begin = now_ns();

	for (u32 i = 0; i < BENCH_TURNS; i++) {
		const void *at = ram + i % (nr_pages - nr + 1) * PAGE_WORDS;

		bh_pin(agent, at, nr << PAGE_SHIFT);
		bh_unpin(agent, at, nr << PAGE_SHIFT);
	}
	printf("bench: %" PRIu64 " ns\n", (now_ns() - begin) / BENCH_TURNS);
}

static void on_fault(void *arg, const struct bh_fault *f)
{
	/* Its page must be ours, and its time in reason. */
	if (f->hva - (u64)(uintptr_t)ram >= nr_pages << PAGE_SHIFT ||
	    f->latency_ns > 60000000000ull)
		die("fault callback", EINVAL);
	faults++;
}

static void stats(void)
{
	u64 in_buckets = 0;
	struct bh_stats s;

	bh_stats(agent, &s);
	for (u32 i = 0; i < BH_LATENCY_BUCKETS; i++)
		in_buckets += s.wait_latency[i] + s.fill_latency[i];
	printf("stats: merged=%" PRIu64 " pinned=%" PRIu64 " moved_back=%" PRIu64 " failed=%" PRIu64
	       " wait=%" PRIu64 " fill=%" PRIu64 " called=%" PRIu64 " in_buckets=%" PRIu64
	       " noted=%" PRIu64 " dropped=%" PRIu64 " connected=%d cpu_us=%" PRIu64 "\n",
	       s.merged_pages, s.pinned_pages, s.moved_back_pages, s.failed_pages, s.wait_faults,
	       s.fill_faults, (u64)faults, in_buckets, s.disk_reads_noted, s.disk_reads_dropped,
	       s.connected, s.cpu_us);
}

static void obey(const char *line)
{
	char what[16] = "";
	s64 n[4] = { 0 };

	sscanf(line, "%15s %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64, what, &n[0], &n[1], &n[2],
	       &n[3]);
	if (n[0] < 0 || n[1] < 0 || (u64)n[0] + (u64)n[1] > nr_pages)
		die("pages out of range", EINVAL);
	if (strcmp(what, "read") == 0 && (u64)n[2] + (u64)n[1] <= nr_blocks)
		read_blocks((u64)n[0], (u64)n[1], (u64)n[2], n[3]);
	else if (strcmp(what, "churn") == 0 && (u64)n[2] + (u64)n[1] <= nr_blocks)
		churn((u64)n[0], (u64)n[1], (u64)n[2], (u64)n[3]);
	else if (strcmp(what, "write") == 0)
		write_pages((u64)n[0], (u64)n[1]);
	else if (strcmp(what, "refill") == 0)
		refill((u64)n[0], (u64)n[1]);
	else if (strcmp(what, "wait") == 0)
		wait_shared((u64)n[0], (u64)n[1], (u64)n[2], (u64)n[3]);
	else if (strcmp(what, "pin") == 0)
		printf("pin: %d\n",
		       bh_pin(agent, ram + (u64)n[0] * PAGE_WORDS, (u64)n[1] << PAGE_SHIFT));
	else if (strcmp(what, "unpin") == 0)
		printf("unpin: %d\n",
		       bh_unpin(agent, ram + (u64)n[0] * PAGE_WORDS, (u64)n[1] << PAGE_SHIFT));
	else if (strcmp(what, "check") == 0)
		check_all();
	else if (strcmp(what, "renew") == 0)
		renew();
	else if (strcmp(what, "bench") == 0)
		bench((u64)n[0]);
	else if (strcmp(what, "stats") == 0)
		stats();
	else
		die(line, EINVAL);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct bh_config cfg = { .pins_exactly = true, .fault = on_fault };
	pthread_t reader;
	char line[128];
	struct stat st;
	bool direct;
	int err;

	if (argc < 4)
		return 2;
	cfg.name = argv[1];
	image_fd = open(argv[2], O_RDONLY | O_DIRECT | O_CLOEXEC);
	direct = image_fd >= 0;
	if (!direct)
		image_fd = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (image_fd < 0 || fstat(image_fd, &st) < 0)
		die(argv[2], errno);
	nr_blocks = (u64)st.st_size >> PAGE_SHIFT;
	image = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, image_fd, 0);
	nr_pages = strtoull(argv[3], NULL, 10);
	block = calloc(nr_pages, sizeof(block[0]));
	first_word = calloc(nr_pages, sizeof(first_word[0]));
	ram = mmap(NULL, nr_pages << PAGE_SHIFT, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (image == MAP_FAILED || ram == MAP_FAILED || !block || !first_word || pagemap_fd < 0 ||
	    !nr_pages)
		die("memory", errno);
	madvise(ram, nr_pages << PAGE_SHIFT, MADV_NOHUGEPAGE);
	for (u64 p = 0; p < nr_pages; p++)
		block[p] = NEVER_READ;
	err = bh_disk_identity(image_fd, &disk);
	if (err == 0)
		err = bh_new(&cfg, &agent);
	if (err == 0)
		err = bh_region_add(agent, ram, nr_pages << PAGE_SHIFT, 0, "ram");
	if (err < 0)
		die("agent", -err);
	err = pthread_create(&reader, NULL, vcpu, NULL);
	if (err)
		die("thread", err);
	printf("attached direct=%d\n", direct);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	bh_free(agent);
	_exit(0);
}
