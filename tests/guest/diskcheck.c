/* SPDX-License-Identifier: MIT */
/*
 * The disk checker: knows what every page of its memory and every block of its disk (/dev/vda,
 * blank at the start) must be, and moves content between the two, so that a device reads and writes
 * guest memory behind the vCPUs' backs.
 *
 * Memory and disk are page-sized; what each page of either holds is named by a key (guest.h):
 * zeros, one of a few contents that all guests have, or one that nobody else has. So there is
 * always much to merge among pages that are the target of the next transfer.
 *
 * - fill: the CPU writes pages of memory
 * - write: a run of memory pages goes to disk
 * - read: a run of disk blocks comes to memory, and is compared
 * - check: the CPU reads pages and compares them
 *
 * ballast.disk_direct=1 (default): O_DIRECT and four processes, each with memory and a part of the
 * disk of its own; transfers go straight to and from the pages. ballast.disk_direct=0: one process
 * that first writes the whole disk with content that all guests have, then reads and compares it
 * over and over through the guest's page cache.
 *
 * Prints GUEST-READY (unless another program does, ballast.disk_quiet=1), then once a second and
 * process "DISK id=N passes=N iter=N bytes=N errors=N", iter being checked pages, bytes transferred
 * ones.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/guest/guest.h"

#define WORKERS	       4
#define RUN_PAGES_MAX  16
#define ERRORS_PRINTED 5
#define BLKGETSIZE64   _IOR(0x12, 114, size_t)

struct disk {
	u32 id;
	int fd;
	u64 seed, random;
	u64 first_block, nr_blocks, nr_pages;
	u64 *mem;
	u64 *mem_key, *disk_key;
	u64 unique;
	u64 passes, iter, bytes, errors;
	u64 next_print;
};

static u64 rnd(struct disk *d, u64 below)
{
	d->random += 0x9e3779b97f4a7c15;
	return (u64)(((unsigned __int128)content_mix(d->random) * below) >> 64);
}

static u64 common_key(u64 n)
{
	return 5000 + n;
}

static u64 any_key(struct disk *d)
{
	switch (rnd(d, 4)) {
	case 0:
		return CONTENT_ZERO;
	case 1:
		return ((d->seed + 1) << 48) ^ ((u64)(d->id + 1) << 40) ^ ++d->unique;
	default:
		return common_key(rnd(d, 64));
	}
}

static void check(struct disk *d, const char *what, u64 page, u64 key)
{
	const volatile u64 *p = d->mem + page * PAGE_WORDS;

	d->iter++;
	for (u32 w = 0; w < PAGE_WORDS; w++) {
		u64 got = p[w], want = content_word(key, w);

		if (got == want)
			continue;
		if (d->errors++ < ERRORS_PRINTED)
			printf("DISK-ERROR id=%u %s page=%" PRIu64 " word=%u got=%#" PRIx64
			       " want=%#" PRIx64 " again=%#" PRIx64 "\n",
			       d->id, what, page, w, got, want, p[w]);
		return;
	}
}

static void transfer(struct disk *d, bool write, u64 page, u64 block, u64 nr)
{
	u64 *at = d->mem + page * PAGE_WORDS;
	off_t offset = (off_t)((d->first_block + block) * PAGE_BYTES);
	size_t bytes = nr * PAGE_BYTES;
	ssize_t n = write ? pwrite(d->fd, at, bytes, offset) : pread(d->fd, at, bytes, offset);

	if (n != (ssize_t)bytes)
		guest_die(write ? "write" : "read");
	d->bytes += bytes;
}

static void print(struct disk *d)
{
	u64 now = now_us();

	if (now < d->next_print)
		return;
	d->next_print = now + 1000000;
	printf("DISK id=%u passes=%" PRIu64 " iter=%" PRIu64 " bytes=%" PRIu64 " errors=%" PRIu64
	       "\n",
	       d->id, d->passes, d->iter, d->bytes, d->errors);
}

static void one_step(struct disk *d)
{
	u64 nr = 1 + rnd(d, RUN_PAGES_MAX);
	u64 page = rnd(d, d->nr_pages - nr + 1), block = rnd(d, d->nr_blocks - nr + 1);

	switch (rnd(d, 4)) {
	case 0:
		for (u64 i = 0; i < nr; i++) {
			u64 key = any_key(d);

			content_fill(d->mem + (page + i) * PAGE_WORDS, key);
			d->mem_key[page + i] = key;
		}
		break;
	case 1:
		transfer(d, true, page, block, nr);
		memcpy(d->disk_key + block, d->mem_key + page, nr * sizeof(u64));
		break;
	case 2:
		transfer(d, false, page, block, nr);
		memcpy(d->mem_key + page, d->disk_key + block, nr * sizeof(u64));
		for (u64 i = 0; i < nr; i++)
			check(d, "read", page + i, d->mem_key[page + i]);
		break;
	case 3:
		for (u64 i = 0; i < nr; i++)
			check(d, "rest", page + i, d->mem_key[page + i]);
		break;
	}
}

static void run_direct(struct disk *d)
{
	for (;;) {
		one_step(d);
		print(d);
	}
}

static void run_cached(struct disk *d)
{
	d->mem = guest_alloc(RUN_PAGES_MAX * PAGE_BYTES);
	for (u64 b = 0; b + RUN_PAGES_MAX <= d->nr_blocks; b += RUN_PAGES_MAX) {
		for (u64 i = 0; i < RUN_PAGES_MAX; i++)
			content_fill(d->mem + i * PAGE_WORDS, common_key(b + i));
		transfer(d, true, 0, b, RUN_PAGES_MAX);
	}
	if (fsync(d->fd) < 0)
		guest_die("fsync");
	for (;; d->passes++) {
		for (u64 b = 0; b + RUN_PAGES_MAX <= d->nr_blocks; b += RUN_PAGES_MAX) {
			transfer(d, false, 0, b, RUN_PAGES_MAX);
			for (u64 i = 0; i < RUN_PAGES_MAX; i++)
				check(d, "cache", i, common_key(b + i));
			print(d);
		}
	}
}

int main(void)
{
	bool direct = guest_param("ballast.disk_direct", 1);
	struct disk d = { .seed = guest_param("ballast.seed", 0) };
	u64 mib = guest_param("ballast.disk_mem_mib", 16), bytes;

	setvbuf(stdout, NULL, _IOLBF, 0);
	d.fd = open("/dev/vda", O_RDWR | O_CLOEXEC | (direct ? O_DIRECT : 0));
	if (d.fd < 0 || ioctl(d.fd, BLKGETSIZE64, &bytes) < 0)
		guest_die("/dev/vda");
	d.nr_blocks = bytes / PAGE_BYTES;
	if (!guest_param("ballast.disk_quiet", 0))
		puts("GUEST-READY");
	if (!direct)
		run_cached(&d);

	d.nr_blocks /= WORKERS;
	d.nr_pages = MIB(mib) / PAGE_BYTES;
	for (d.id = 0; d.id < WORKERS; d.id++) {
		pid_t pid = fork();

		if (pid < 0)
			guest_die("fork");
		if (pid > 0)
			continue;
		d.first_block = d.id * d.nr_blocks;
		d.random = content_mix(d.seed * WORKERS + d.id);
		d.mem = guest_alloc(d.nr_pages * PAGE_BYTES);
		d.mem_key = guest_alloc(d.nr_pages * sizeof(u64));
		d.disk_key = guest_alloc(d.nr_blocks * sizeof(u64));
		run_direct(&d);
	}
	/* They never end but by an error, and then this guest shall. */
	wait(NULL);
	puts("GUEST-FAILED");
	return 1;
}
