// SPDX-License-Identifier: MIT
/*
 * Invariant 4, seen from outside: no page of a guest shows a store page that was given up. A
 * given-up page reads as zeros, and the store never holds a page of zeros, so each page of a store
 * mapping that the guest did not write since must show something else.
 *
 *   tool_store [--images] PID...     prints "STORE mapped=N broken=N zero=N", and each page of
 * zeros
 *
 * --images: of VMs that started from an image, whose short gaps of zeros are stored, too
 * (ksmd/image.c); up to eight pages of zeros in a row are then no fault.
 *
 * The processes are stopped meanwhile. Returns 1 if there was a page of zeros, 2 on an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/procfs.h"

#define STORE_PATH "/memfd:ballast-store"
/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT ((u64)1 << 63)
#define PM_SWAP	   ((u64)1 << 62)
#define PM_FILE	   ((u64)1 << 61)

#define STOP_TRIES 1000
#define GAP_PAGES  8 /* as in ksmd/image.c */

static bool images;

static struct totals {
	u64 mapped, broken, zero;
} totals;

struct vmm {
	pid_t pid;
	int pagemap;
};

/* Of the file itself: reading the guest's memory would fill holes of the mapping. A hole is zeros.
 */
static int read_store(const struct vmm *v, const struct procmap *m, u64 offset, u8 *page)
{
	char path[96];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", (int)v->pid,
		 (unsigned long long)m->start, (unsigned long long)m->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	memset(page, 0, PAGE_BYTES);
	n = pread(fd, page, PAGE_BYTES, (off_t)offset);
	close(fd);
	return n < 0 ? -errno : 0;
}

static void take_zeros(const struct vmm *v, const struct procmap *m, u64 end, u64 nr)
{
	if (images && nr <= GAP_PAGES)
		return;
	totals.zero += nr;
	for (u64 at = end - nr * PAGE_BYTES; at < end; at += PAGE_BYTES)
		printf("ZERO pid=%d hva=0x%llx store_offset=0x%llx\n", (int)v->pid,
		       (unsigned long long)at, (unsigned long long)(m->offset + (at - m->start)));
}

static int check_mapping(const struct procmap *m, void *arg)
{
	static const u8 zeros[PAGE_BYTES];
	const struct vmm *v = arg;
	u8 page[PAGE_BYTES];
	u64 nr_zeros = 0; /* that end before @at */

	if (strncmp(m->path, STORE_PATH, strlen(STORE_PATH)) != 0)
		return 0;
	for (u64 at = m->start; at < m->end; at += PAGE_BYTES) {
		bool broken, zero = false;
		u64 entry;
		int err;

		if (pread(v->pagemap, &entry, sizeof(entry),
			  (off_t)((at >> PAGE_SHIFT) * sizeof(entry))) != sizeof(entry))
			return -EIO;
		broken = entry & (PM_PRESENT | PM_SWAP) && !(entry & PM_FILE);
		if (!broken) {
			err = read_store(v, m, m->offset + (at - m->start), page);
			if (err < 0)
				return err;
			zero = memcmp(page, zeros, PAGE_BYTES) == 0;
		}
		(*(broken ? &totals.broken : &totals.mapped))++;
		if (zero) {
			nr_zeros++;
			continue;
		}
		take_zeros(v, m, at, nr_zeros);
		nr_zeros = 0;
	}
	take_zeros(v, m, m->end, nr_zeros);
	return 0;
}

static bool is_stopped(pid_t pid)
{
	char path[64], line[512] = "";
	const char *state;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "r");
	if (!f)
		return false;
	if (!fgets(line, sizeof(line), f))
		line[0] = '\0';
	fclose(f);
	state = strrchr(line, ')');
	return state && state[1] == ' ' && (state[2] == 'T' || state[2] == 't');
}

static int check_vmm(pid_t pid)
{
	struct vmm v = { .pid = pid, .pagemap = pagemap_open(pid) };
	int err;

	if (v.pagemap < 0)
		return v.pagemap;
	err = procmaps_walk(pid, check_mapping, &v);
	close(v.pagemap);
	return err;
}

int main(int argc, char **argv)
{
	int err = 0;

	if (argc > 1 && strcmp(argv[1], "--images") == 0) {
		images = true;
		argv++;
		argc--;
	}
	for (int i = 1; i < argc; i++)
		kill(atoi(argv[i]), SIGSTOP);
	for (int i = 1; i < argc && err == 0; i++) {
		for (int t = 0; t < STOP_TRIES && !is_stopped(atoi(argv[i])); t++)
			usleep(1000);
		err = check_vmm(atoi(argv[i]));
		if (err < 0)
			fprintf(stderr, "tool_store: process %s: %s\n", argv[i], strerror(-err));
	}
	for (int i = 1; i < argc; i++)
		kill(atoi(argv[i]), SIGCONT);
	printf("STORE mapped=%llu broken=%llu zero=%llu\n", (unsigned long long)totals.mapped,
	       (unsigned long long)totals.broken, (unsigned long long)totals.zero);
	if (err < 0)
		return 2;
	return totals.zero != 0;
}
