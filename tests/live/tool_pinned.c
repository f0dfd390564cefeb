// SPDX-License-Identifier: MIT
/*
 * A VMM without a guest, on the real agent library, that pins some of its memory as fixed buffers
 * of an io_uring: reads into them go to the page frames that were pinned, whatever the page tables
 * say by then. So a pinned page that is merged is found out: what is read into it does not show in
 * memory.
 *
 *   tool_pinned NAME FILE [--deny | --pins | --forget]
 *
 * FILE is scratch space. With --deny the VMM says that it has no DMA: a lie that must show as
 * errors. With --pins it says which pages are pinned, by bh_pin(), so that the agent looks at no
 * descriptor; with --forget it promises to and does not, which must show, too.
 *
 * Memory is full of contents that repeat, so all of it can merge but for what is pinned:
 *
 * - anon: pinned before the agent knows the memory. UFFDIO_MOVE must refuse these pages.
 * - broken: merged first, then pinned, which breaks copy-on-write inside a mapping of the store.
 * Must be left alone.
 *
 * While they are pinned, blocks are read into both all the time and compared. Then the pins are
 * dropped, and both must merge. Prints "PINNED key=N ..." and exits with 0 if all was right, 1 if
 * not, 77 where io_uring cannot be had.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/types.h"
#include "hypervisor-hooks/hooks.h"

#define NR_PAGES     8192
#define SET_PAGES    256
#define ANON_FIRST   512  /* first page of what is pinned while it is anonymous */
#define BROKEN_FIRST 4096 /* first page of what is pinned after it was merged */
#define NR_CONTENTS  64
#define PAGE_WORDS   (PAGE_BYTES / sizeof(u64))
#define WAIT_US	     30000000
#define READ_US	     4000000 /* twice 32 passes, after which refused pages are tried again */
#define EXIT_SKIP    77

struct ring {
	int fd;
	u8 *sq, *cq;
	struct io_uring_sqe *sqes;
	struct io_uring_params p;
};

static u64 *mem;
static int pagemap_fd, file_fd;
static u64 errors;

static u64 word(u64 content, u64 w)
{
	u64 x = (content * PAGE_WORDS + w + 1) * 0x9e3779b97f4a7c15;

	return x ^ (x >> 29);
}

static void fill(u64 *page, u64 content)
{
	for (u64 w = 0; w < PAGE_WORDS; w++)
		page[w] = word(content, w);
}

/* Any page's content when nobody has read another into it. */
static u64 base(u64 page)
{
	return page % NR_CONTENTS;
}

static void check(u64 page, u64 content, const char *when)
{
	const volatile u64 *p = mem + page * PAGE_WORDS;

	for (u64 w = 0; w < PAGE_WORDS; w++) {
		if (p[w] == word(content, w))
			continue;
		if (errors++ < 5)
			fprintf(stderr, "page %" PRIu64 " %s: word %" PRIu64 " is wrong\n", page,
				when, w);
		return;
	}
}

static int fail(const char *what)
{
	fprintf(stderr, "tool_pinned: %s: %s\n", what, strerror(errno));
	return 1;
}

/* Pages of [first, first + nr) that are the store's, says the kernel. */
static u64 in_store(u64 first, u64 nr)
{
	u64 entry, found = 0;
	u64 at = ((u64)(uintptr_t)mem >> PAGE_SHIFT) + first;

	for (u64 i = 0; i < nr; i++) {
		/* An entry that is not present may be of either kind: touch the page first. */
		(void)*(volatile u64 *)(mem + (first + i) * PAGE_WORDS);
		if (pread(pagemap_fd, &entry, sizeof(entry), (off_t)((at + i) * sizeof(entry))) ==
		    sizeof(entry))
			found += entry >> 61 & 1;
	}
	return found;
}

static bool wait_in_store(u64 first, u64 nr, u64 least)
{
	for (u64 end = now_us() + WAIT_US; now_us() < end; usleep(50000))
		if (in_store(first, nr) >= least)
			return true;
	return false;
}

/* ---- io_uring ---- */

static int ring_open(struct ring *r)
{
	size_t sq_bytes, cq_bytes;

	r->fd = (int)syscall(SYS_io_uring_setup, 4, &r->p);
	if (r->fd < 0)
		return -errno;
	sq_bytes = r->p.sq_off.array + r->p.sq_entries * sizeof(u32);
	cq_bytes = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	r->sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, r->p.sq_entries * sizeof(*r->sqes), PROT_READ | PROT_WRITE, MAP_SHARED,
		       r->fd, IORING_OFF_SQES);
	return r->sq == MAP_FAILED || r->cq == MAP_FAILED || r->sqes == MAP_FAILED ? -errno : 0;
}

/* Reads a page of the file into fixed buffer @buf, and waits. */
static int read_fixed(struct ring *r, u16 buf, u64 page, u64 block)
{
	u32 *tail = (u32 *)(r->sq + r->p.sq_off.tail), *head = (u32 *)(r->cq + r->p.cq_off.head);
	u32 i = *tail & (r->p.sq_entries - 1);
	const struct io_uring_cqe *cqe;

	r->sqes[i] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED,
		.fd = file_fd,
		.off = block * PAGE_BYTES,
		.addr = (u64)(uintptr_t)(mem + page * PAGE_WORDS),
		.len = PAGE_BYTES,
		.buf_index = buf,
	};
	((u32 *)(r->sq + r->p.sq_off.array))[i] = i;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	if (__atomic_load_n((u32 *)(r->cq + r->p.cq_off.tail), __ATOMIC_ACQUIRE) == *head)
		return -EIO;
	cqe = (struct io_uring_cqe *)(r->cq + r->p.cq_off.cqes) + (*head & (r->p.cq_entries - 1));
	i = cqe->res == PAGE_BYTES;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return i ? 0 : -EIO;
}

static int pin(const struct ring *r)
{
	const struct iovec iov[] = {
		{ mem + ANON_FIRST * PAGE_WORDS, SET_PAGES * PAGE_BYTES },
		{ mem + BROKEN_FIRST * PAGE_WORDS, SET_PAGES * PAGE_BYTES },
	};

	return (int)syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, iov, 2);
}

static int pin_anon(const struct ring *r)
{
	const struct iovec iov = { mem + ANON_FIRST * PAGE_WORDS, SET_PAGES * PAGE_BYTES };

	return (int)syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, &iov, 1);
}

static int unpin(const struct ring *r)
{
	return (int)syscall(SYS_io_uring_register, r->fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
}

/* Reads every pinned page of a set again and again, for @us: contents that could merge, and in the
 * end the page's own. */
static u64 read_and_check(struct ring *r, u16 nr_sets, u64 us)
{
	static const u64 set_first[] = { ANON_FIRST, BROKEN_FIRST };
	u64 reads = 0, end = now_us() + us;
	bool last = false;

	for (u64 round = 1; !last; round++) {
		last = now_us() >= end;
		for (u16 s = 0; s < nr_sets; s++) {
			for (u64 p = set_first[s]; p < set_first[s] + SET_PAGES; p++, reads++) {
				u64 content = last ? base(p) : (base(p) + round) % NR_CONTENTS;

				if (read_fixed(r, s, p, content) < 0) {
					errors++;
					fail("reading into a fixed buffer");
					return reads;
				}
				check(p, content, "after a read into it");
			}
		}
		/* At rest for a few passes, so that the daemon takes an interest. */
		usleep(300000);
		for (u16 s = 0; s < nr_sets; s++)
			for (u64 p = set_first[s]; p < set_first[s] + SET_PAGES; p++)
				check(p, last ? base(p) : (base(p) + round) % NR_CONTENTS,
				      "at rest");
	}
	return reads;
}

static void say(void *arg, const char *line)
{
	fprintf(stderr, "%s\n", line);
}

static int deny(void *arg)
{
	return 0;
}

static int setup(const char *path)
{
	u64 page[PAGE_WORDS];

	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	file_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (pagemap_fd < 0 || file_fd < 0)
		return fail(path);
	for (u64 c = 0; c < NR_CONTENTS; c++) {
		fill(page, c);
		if (pwrite(file_fd, page, sizeof(page), (off_t)(c * PAGE_BYTES)) != sizeof(page))
			return fail(path);
	}
	mem = mmap(NULL, NR_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (mem == MAP_FAILED)
		return fail("memory");
	for (u64 p = 0; p < NR_PAGES; p++)
		fill(mem + p * PAGE_WORDS, base(p));
	return 0;
}

int main(int argc, char **argv)
{
	struct bh_config cfg = { .log = say };
	struct ring ring = { 0 };
	struct bh_agent *a;
	struct bh_stats anon, broken, done;
	u64 reads, anon_merged, broken_merged, others;
	bool first, after, pins;
	const char *how;
	int r;

	how = argc == 4 ? argv[3] : "";
	pins = strcmp(how, "--pins") == 0;
	if (argc < 3 || argc > 4 ||
	    (argc == 4 && !pins && strcmp(how, "--deny") != 0 && strcmp(how, "--forget") != 0)) {
		fprintf(stderr, "usage: tool_pinned NAME FILE [--deny | --pins | --forget]\n");
		return 2;
	}
	cfg.name = argv[1];
	cfg.dma_active = strcmp(how, "--deny") == 0 ? deny : NULL;
	cfg.pins_exactly = pins || strcmp(how, "--forget") == 0;
	if (setup(argv[2]))
		return 1;
	if (ring_open(&ring) < 0 || pin_anon(&ring) < 0) {
		fail("io_uring with fixed buffers");
		return EXIT_SKIP;
	}
	r = bh_new(&cfg, &a);
	if (r == 0)
		r = bh_region_add(a, mem, NR_PAGES * PAGE_BYTES, 0, "ram");
	if (r == 0 && pins)
		r = bh_pin(a, mem + ANON_FIRST * PAGE_WORDS, SET_PAGES * PAGE_BYTES);
	if (r < 0) {
		errno = -r;
		return fail("agent");
	}

	/* Anonymous pages. What is not pinned merges meanwhile. */
	first = wait_in_store(BROKEN_FIRST, SET_PAGES, SET_PAGES);
	reads = read_and_check(&ring, 1, READ_US);
	anon_merged = in_store(ANON_FIRST, SET_PAGES);
	others = in_store(0, NR_PAGES);
	bh_stats(a, &anon);

	/* Pages in mappings of the store: the second pin breaks them. */
	if (pins)
		bh_pin(a, mem + BROKEN_FIRST * PAGE_WORDS, SET_PAGES * PAGE_BYTES);
	if (unpin(&ring) < 0 || pin(&ring) < 0)
		return fail("pinning merged memory");
	reads += read_and_check(&ring, 2, READ_US);
	broken_merged = in_store(BROKEN_FIRST, SET_PAGES);
	bh_stats(a, &broken);

	if (unpin(&ring) < 0)
		return fail("unpinning");
	if (pins) {
		bh_unpin(a, mem + ANON_FIRST * PAGE_WORDS, SET_PAGES * PAGE_BYTES);
		bh_unpin(a, mem + BROKEN_FIRST * PAGE_WORDS, SET_PAGES * PAGE_BYTES);
	}
	after = wait_in_store(ANON_FIRST, SET_PAGES, SET_PAGES) &&
		wait_in_store(BROKEN_FIRST, SET_PAGES, SET_PAGES);
	bh_stats(a, &done);
	for (u64 p = 0; p < NR_PAGES; p++)
		check(p, base(p), "at the end");
	printf("PINNED errors=%" PRIu64 " reads=%" PRIu64 " first_merged=%d others_merged=%" PRIu64
	       " anon_merged=%" PRIu64 " anon_refused=%" PRIu64 " broken_merged=%" PRIu64
	       " broken_refused=%" PRIu64 " merged_after=%d failed=%" PRIu64 "\n",
	       errors, reads, first, others, anon_merged, anon.pinned_pages, broken_merged,
	       broken.pinned_pages - anon.pinned_pages, after, done.failed_pages);
	bh_free(a);
	return errors ? 1 : 0;
}
