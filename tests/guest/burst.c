/* SPDX-License-Identifier: MIT */
/*
 * A server whose load comes in bursts (make bench-policy). Time is cut into slots that begin when a
 * line comes in on the second serial port, so that all guests of a host keep the same ones. In its
 * slots the guest needs much memory: it reads random 64 KiB of what it serves, as fast as it can,
 * through its page cache, and works on some anonymous memory; in the others little: a few reads a
 * second from a small part. What it serves is all of /dev/vda (the same for all guests) and all of
 * /dev/vdb (its own).
 *
 * ballast.burst=N          its slots are those whose number modulo ballast.burst_period is N modulo
 * that ballast.slots=N ballast.slot_seconds=N ballast.anon_mib=N       anonymous memory that it has
 * in its slots
 *
 * Prints GUEST-READY, and after each slot "BURST slot=N busy=0|1 units=N p50_us=N p99_us=N", a unit
 * being one read; at the end "BURST-DONE".
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/guest/guest.h"

#define UNIT_BYTES   65536
#define REST_US	     200000
#define REST_PART    16 /* at rest it reads from a sixteenth */
#define TIMES_MAX    (1U << 20)
#define BLKGETSIZE64 _IOR(0x12, 114, size_t)

struct disk {
	int fd;
	u64 units;
};

struct server {
	struct disk disks[2];
	u64 random;
	u64 *buf;
	u64 *anon;
	u64 anon_pages;
	u64 sum; /* so that reading is not optimised away */
	u32 *times;
	u32 nr_times;
};

static u64 rnd(struct server *s, u64 below)
{
	s->random += 0x9e3779b97f4a7c15;
	return (u64)(((unsigned __int128)content_mix(s->random) * below) >> 64);
}

static void disk_open(struct disk *d, const char *path)
{
	u64 bytes = 0;

	d->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (d->fd < 0 || ioctl(d->fd, BLKGETSIZE64, &bytes))
		guest_die(path);
	/* What it reads is random: reading ahead would fetch what nobody asked for. */
	posix_fadvise(d->fd, 0, 0, POSIX_FADV_RANDOM);
	d->units = bytes / UNIT_BYTES;
}

static void unit(struct server *s, u64 part)
{
	u64 at = rnd(s, s->disks[0].units + s->disks[1].units), t0 = now_us();
	struct disk *d = &s->disks[0];

	if (at >= d->units) {
		at -= d->units;
		d++;
	}
	if (pread(d->fd, s->buf, UNIT_BYTES, (off_t)(at / part * UNIT_BYTES)) != UNIT_BYTES)
		guest_die("pread");
	for (u32 i = 0; i < UNIT_BYTES / sizeof(s->buf[0]); i++)
		s->sum += s->buf[i];
	if (s->anon)
		s->anon[rnd(s, s->anon_pages) * PAGE_WORDS] += s->sum;
	if (s->nr_times < TIMES_MAX)
		s->times[s->nr_times++] = (u32)(now_us() - t0);
}

static int by_value(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;

	return (x > y) - (x < y);
}

static void slot(struct server *s, u64 nr, bool busy, u64 end_us)
{
	u64 units = 0;

	s->nr_times = 0;
	if (busy && s->anon_pages) {
		s->anon = guest_alloc(s->anon_pages * 4096);
		for (u64 p = 0; p < s->anon_pages; p++)
			content_fill(s->anon + p * PAGE_WORDS, rnd(s, 1U << 30));
	}
	while (now_us() < end_us) {
		unit(s, busy ? 1 : REST_PART);
		units++;
		if (!busy)
			usleep(REST_US);
	}
	if (s->anon)
		munmap(s->anon, s->anon_pages * 4096);
	s->anon = NULL;
	qsort(s->times, s->nr_times, sizeof(s->times[0]), by_value);
	printf("BURST slot=%" PRIu64 " busy=%d units=%" PRIu64 " p50_us=%u p99_us=%u\n", nr, busy,
	       units, s->nr_times ? s->times[s->nr_times / 2] : 0,
	       s->nr_times ? s->times[(u64)s->nr_times * 99 / 100] : 0);
	fflush(stdout);
}

int main(void)
{
	u64 burst = guest_param("ballast.burst", 0),
	    period = guest_param("ballast.burst_period", 4);
	u64 slots = guest_param("ballast.slots", 8),
	    slot_us = guest_param("ballast.slot_seconds", 30) * 1000000;
	struct server s = {
		.random = burst << 32,
		.buf = guest_alloc(UNIT_BYTES),
		.times = guest_alloc(TIMES_MAX * sizeof(u32)),
		.anon_pages = guest_param("ballast.anon_mib", 0) * 256,
	};
	int go = open("/dev/ttyS1", O_RDONLY | O_CLOEXEC);
	char c;
	u64 t0;

	if (go < 0)
		guest_die("/dev/ttyS1");
	disk_open(&s.disks[0], "/dev/vda");
	disk_open(&s.disks[1], "/dev/vdb");
	puts("GUEST-READY");
	fflush(stdout);
	if (read(go, &c, 1) != 1)
		guest_die("reading /dev/ttyS1");
	t0 = now_us();
	for (u64 n = 0; n < slots; n++)
		slot(&s, n, n % period == burst % period, t0 + (n + 1) * slot_us);
	printf("BURST-DONE sum=%" PRIu64 "\n", s.sum);
	return 0;
}
