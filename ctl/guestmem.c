/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>
#include "common/procfs.h"
#include "ctl/guestmem.h"

/* Pages a process_vm_readv(): measured, larger batches gain nothing and leave the L2 cache. */
#define BATCH 64
/* The daemon names its memfds so. */
#define STORE_PATH "/memfd:ballast-store"

/* Bits of a /proc/PID/pagemap entry (Documentation/admin-guide/mm/pagemap.rst). */
#define PM_PFN_MASK ((1ULL << 55) - 1)
#define PM_FILE	    (1ULL << 61)
#define PM_PRESENT  (1ULL << 63)

static int open_proc(pid_t pid, const char *name, FILE **ret)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	*ret = fopen(path, "re");
	if (*ret)
		return 0;
	if (errno == ENOENT)
		return -ESRCH;
	return errno == EPERM ? -EACCES : -errno;
}

static void read_comm(struct guest *g)
{
	FILE *f;

	if (open_proc(g->pid, "comm", &f) < 0)
		return;
	if (fgets(g->name, sizeof(g->name), f))
		g->name[strcspn(g->name, "\n")] = '\0';
	fclose(f);
}

/* Kernels before 5.19 do not tell; then nothing is said about it. */
static void read_ksm(struct guest *g)
{
	FILE *f;

	if (open_proc(g->pid, "ksm_merging_pages", &f) < 0)
		return;
	if (fscanf(f, "%" SCNu64, &g->ksm_merged) != 1)
		g->ksm_merged = 0;
	fclose(f);
}

/* Drops the last range if it turned out too small, when no neighbour can follow any more. */
static void settle_last(struct guest *g)
{
	const struct guest_range *last;

	if (g->nr_ranges == 0)
		return;
	last = &g->ranges[g->nr_ranges - 1];
	if (last->end - last->start < GUESTMEM_RANGE_MIN)
		g->nr_ranges--;
}

/* Neighbours are one range if a store mapping ties them together, or if they are marked alike:
 * large blocks of malloc() often lie right beside guest RAM. */
static int add_mapping(struct guest *g, const struct guest_range *m)
{
	struct guest_range *r = g->nr_ranges ? &g->ranges[g->nr_ranges - 1] : NULL;

	if (r && r->end == m->start && (r->ballast || m->ballast || r->mergeable == m->mergeable)) {
		r->end = m->end;
		r->mergeable |= m->mergeable;
		r->ballast |= m->ballast;
		return 0;
	}
	settle_last(g);
	r = reallocarray(g->ranges, g->nr_ranges + 1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	g->ranges = r;
	g->ranges[g->nr_ranges++] = *m;
	return 0;
}

/*
 * One line of smaps: the head of a mapping, which goes to *m if it may be guest RAM (else m->end
 * is 0), or one of its attributes, of which VmFlags comes last. smaps rather than maps, because
 * only VmFlags tells of MADV_MERGEABLE.
 */
static int smaps_line(struct guest *g, const char *line, struct guest_range *m)
{
	u64 start, end, ino;
	char perms[5];
	int path_at = 0;
	const char *path;
	bool ballast;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*x:%*x %" SCNu64 " %n", &start, &end,
		   perms, &ino, &path_at) != 4) {
		if (m->end == 0 || strncmp(line, "VmFlags:", 8) != 0)
			return 0;
		m->mergeable = strstr(line, " mg") != NULL;
		return add_mapping(g, m);
	}
	path = path_at ? line + path_at : "";
	ballast = strncmp(path, STORE_PATH, strlen(STORE_PATH)) == 0;
	*m = (struct guest_range){ 0 };
	if (strcmp(perms, "rw-p") == 0 &&
	    (ballast || (ino == 0 && (*path == '\0' || strncmp(path, "[anon", 5) == 0))))
		*m = (struct guest_range){ .start = start, .end = end, .ballast = ballast };
	return 0;
}

/* Where some ranges are marked, the process has said itself what is guest RAM. */
static void keep_marked(struct guest *g)
{
	u32 nr = 0;

	for (u32 i = 0; i < g->nr_ranges; i++) {
		if (g->ranges[i].mergeable)
			g->ranges[nr++] = g->ranges[i];
	}
	if (nr)
		g->nr_ranges = nr;
}

int guestmem_find(pid_t pid, struct guest *ret)
{
	struct guest g = { .pid = pid };
	struct guest_range m = { 0 };
	bool empty = true;
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;
	FILE *f;
	int r;

	r = open_proc(pid, "smaps", &f);
	if (r < 0)
		return r;
	errno = 0;
	while (r == 0 && (n = getline(&line, &cap, f)) > 0) {
		line[strcspn(line, "\n")] = '\0';
		r = smaps_line(&g, line, &m);
		empty = false;
		errno = 0;
	}
	/* The kernel checks at open and at read; the process may end in between. */
	if (r == 0 && errno)
		r = errno == EPERM ? -EACCES : -errno;
	if (r == 0 && empty)
		r = -ESRCH;
	free(line);
	fclose(f);
	if (r < 0) {
		free(g.ranges);
		return r;
	}
	settle_last(&g);
	keep_marked(&g);
	read_comm(&g);
	read_ksm(&g);
	*ret = g;
	return 0;
}

void guestmem_free(struct guest *g)
{
	if (!g)
		return;
	free(g->ranges);
	g->ranges = NULL;
	g->nr_ranges = 0;
}

/* Reading. */
struct reader {
	struct guest *g;
	u32 vm;
	int pagemap;
	u64 zero_pfn; /* of the kernel's zero page; 0: not known */
	struct guest_pages *out;
	u8 *buf; /* BATCH pages */
	/* The batch being filled. */
	u64 addr[BATCH];
	bool shared[BATCH];
	u32 nr;
};

static bool all_zero(const u8 *p)
{
	u64 first;

	memcpy(&first, p, sizeof(first));
	return first == 0 && memcmp(p, p + sizeof(first), PAGE_BYTES - sizeof(first)) == 0;
}

static int add_page(struct reader *r, u64 addr, bool shared, const u8 *content)
{
	struct guest_pages *out = r->out;

	if (all_zero(content)) {
		r->g->zero++;
		return 0;
	}
	if (out->nr == out->cap) {
		/* Doubling costs address space only: realloc() moves large blocks by mremap(),
		 * and what is not written yet takes no memory. */
		size_t cap = out->cap ? out->cap * 2 : 65536;
		struct analysis_page *v = reallocarray(out->v, cap, sizeof(*v));

		if (!v)
			return -ENOMEM;
		out->v = v;
		out->cap = cap;
	}
	out->v[out->nr++] = (struct analysis_page){
		.hash = XXH3_64bits(content, PAGE_BYTES),
		.where = analysis_where(r->vm, addr >> PAGE_SHIFT, shared),
	};
	return 0;
}

/* Reads pages [from, to) of the batch into their places in the buffer. 0, or a negative errno. */
static int read_pages(struct reader *r, u32 from, u32 to)
{
	struct iovec local = { r->buf + from * PAGE_BYTES, (to - from) * PAGE_BYTES };
	struct iovec remote[BATCH];
	u32 nr = 0;
	ssize_t n;

	for (u32 i = from; i < to; i++) {
		if (i > from && r->addr[i] == r->addr[i - 1] + PAGE_BYTES)
			remote[nr - 1].iov_len += PAGE_BYTES;
		else
			remote[nr++] = (struct iovec){ (void *)(uintptr_t)r->addr[i], PAGE_BYTES };
	}
	n = process_vm_readv(r->g->pid, &local, 1, remote, nr, 0);
	if (n < 0)
		return -errno;
	return n == (ssize_t)local.iov_len ? 0 : -EFAULT;
}

static int flush_batch(struct reader *r)
{
	int whole = r->nr ? read_pages(r, 0, r->nr) : 0;
	int ret = 0;

	if (whole < 0 && whole != -EFAULT)
		return whole;
	for (u32 i = 0; i < r->nr && ret == 0; i++) {
		/* A page was unmapped since the scan: find out which, one by one. */
		int one = whole < 0 ? read_pages(r, i, i + 1) : 0;

		if (one == 0)
			ret = add_page(r, r->addr[i], r->shared[i], r->buf + i * PAGE_BYTES);
		else if (one == -EFAULT)
			r->g->unreadable++;
		else
			ret = one;
	}
	r->nr = 0;
	return ret;
}

/* Takes a run of present pages with the same PAGE_IS_* categories. */
static int take_region(struct reader *r, u64 start, u64 end, u64 categories)
{
	u64 nr = (end - start) >> PAGE_SHIFT;

	if (categories & PAGE_IS_PFNZERO) {
		r->g->kernel_zero += nr;
		return 0;
	}
	r->g->resident += nr;
	if (categories & PAGE_IS_HUGE)
		r->g->huge += nr;
	for (u64 addr = start; addr < end; addr += PAGE_BYTES) {
		r->addr[r->nr] = addr;
		r->shared[r->nr] = categories & PAGE_IS_FILE;
		if (++r->nr == BATCH) {
			int ret = flush_batch(r);

			if (ret < 0)
				return ret;
		}
	}
	return 0;
}

static int walk_scan(struct reader *r, u64 start, u64 end)
{
	static const struct pagemap_query present = {
		.all = PAGE_IS_PRESENT,
		.ret_mask = PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_HUGE,
	};
	struct page_region regions[512];
	int ret = 0;

	while (start < end && ret == 0) {
		u64 walked;
		int nr = pagemap_scan(r->pagemap, start, end, &present, regions,
				      ARRAY_SIZE(regions), &walked);

		if (nr < 0)
			return nr;
		for (int i = 0; i < nr && ret == 0; i++)
			ret = take_region(r, regions[i].start, regions[i].end,
					  regions[i].categories);
		if (walked <= start) /* never; but it must not become an endless loop */
			return -EIO;
		start = walked;
	}
	return ret;
}

static int walk_pagemap(struct reader *r, u64 start, u64 end)
{
	u64 entries[512];

	while (start < end) {
		u64 nr = MIN((end - start) >> PAGE_SHIFT, (u64)ARRAY_SIZE(entries));
		ssize_t n = pread(r->pagemap, entries, nr * 8, (off_t)((start >> PAGE_SHIFT) * 8));

		if (n < 8)
			return n < 0 ? -errno : -ESRCH; /* no memory any more: it has ended */
		nr = (u64)n / 8;
		for (u64 i = 0; i < nr; i++, start += PAGE_BYTES) {
			u64 categories = PAGE_IS_PRESENT, e = entries[i];
			int ret;

			if (!(e & PM_PRESENT))
				continue;
			if (e & PM_FILE)
				categories |= PAGE_IS_FILE;
			if (r->zero_pfn && (e & PM_PFN_MASK) == r->zero_pfn)
				categories |= PAGE_IS_PFNZERO;
			ret = take_region(r, start, start + PAGE_BYTES, categories);
			if (ret < 0)
				return ret;
		}
	}
	return 0;
}

/* pagemap does not mark the kernel's zero page, so see where a page of ours that was only read
 * points. 0 without CAP_SYS_ADMIN: frame numbers are hidden then, and such pages count as zero
 * pages. */
static u64 find_zero_pfn(void)
{
	volatile u8 *page = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	u64 entry = 0;
	int fd;

	if (page == MAP_FAILED)
		return 0;
	fd = pagemap_open(getpid());
	if (fd >= 0) {
		if (page[0] != 0 ||
		    pread(fd, &entry, 8, (off_t)((uintptr_t)page >> PAGE_SHIFT) * 8) != 8)
			entry = 0;
		close(fd);
	}
	munmap((void *)page, PAGE_BYTES);
	return (entry & PM_PRESENT) ? (entry & PM_PFN_MASK) : 0;
}

static bool has_pagemap_scan(int fd)
{
	static const struct pagemap_query any = { .all = PAGE_IS_PRESENT,
						  .ret_mask = PAGE_IS_PRESENT };
	struct page_region region;
	u64 walked;
	int r = pagemap_scan(fd, 0, PAGE_BYTES, &any, &region, 1, &walked);

	return r != -ENOTTY && r != -EINVAL && r != -ENOSYS;
}

int guestmem_read(struct guest *g, u32 vm, enum guestmem_method method, struct guest_pages *pages)
{
	struct reader r = { .g = g, .vm = vm, .out = pages };
	size_t nr_before = pages->nr;
	int ret;

	g->resident = g->zero = g->kernel_zero = g->huge = g->unreadable = 0;
	r.pagemap = pagemap_open(g->pid);
	if (r.pagemap < 0)
		return r.pagemap == -ENOENT ? -ESRCH : r.pagemap;
	r.buf = malloc(BATCH * PAGE_BYTES);
	ret = r.buf ? 0 : -ENOMEM;
	if (method == GUESTMEM_AUTO && !has_pagemap_scan(r.pagemap))
		method = GUESTMEM_PAGEMAP;
	if (method == GUESTMEM_PAGEMAP)
		r.zero_pfn = find_zero_pfn();
	for (u32 i = 0; i < g->nr_ranges && ret == 0; i++)
		ret = (method == GUESTMEM_PAGEMAP ? walk_pagemap : walk_scan)(
			&r, g->ranges[i].start, g->ranges[i].end);
	if (ret == 0)
		ret = flush_batch(&r);
	if (ret < 0)
		pages->nr = nr_before;
	free(r.buf);
	close(r.pagemap);
	return ret;
}
