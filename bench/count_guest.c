/* SPDX-License-Identifier: MIT */
/* One guest: its RAM, its pages, their contents and page frames. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include "bench/count.h"
#include "common/procfs.h"

#define READ_PAGES   64 /* a batch fits the L2 cache: it is hashed right after the copy */
#define SCAN_REGIONS 1024

/* /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT	(1ULL << 63)
#define PM_SWAPPED	(1ULL << 62)
#define PM_FILE		(1ULL << 61)
#define PM_PFN(e)	((e) & ((1ULL << 55) - 1))
#define PM_SWAP_TYPE(e) ((e)&31)
/* Swap files have the low types; the kernel's own (migration, poison, markers) the last of the 32.
 */
#define SWAP_TYPES_OF_FILES 20

/* How a page of guest RAM is to be read. */
enum {
	PAGE_ABSENT,
	PAGE_READ,
	PAGE_KERNEL_ZERO, /* maps the kernel's shared zero page: known without reading */
};

struct vma {
	u64 start, end;
	bool file;
};

int count_fail(int error, const char *what, u64 pid)
{
	fprintf(stderr, "outside: %s of process %" PRIu64 ": %s\n", what, pid, strerror(-error));
	return error;
}

static void *must_alloc(size_t bytes)
{
	void *p = malloc(bytes ? bytes : 1);

	if (!p) {
		fprintf(stderr, "outside: out of memory\n");
		exit(1);
	}
	return p;
}

/* ---- guest RAM ---- */

struct vma_list {
	struct vma *vmas;
	u32 nr, cap;
	u64 total;
};

static int vma_add(const struct procmap *m, void *arg)
{
	struct vma_list *l = arg;

	l->total++;
	if (!m->readable || !m->writable || m->shared)
		return 0;
	if (l->nr == l->cap) {
		l->cap = l->cap ? 2 * l->cap : 256;
		l->vmas = realloc(l->vmas, l->cap * sizeof(*l->vmas));
		if (!l->vmas)
			return -ENOMEM;
	}
	l->vmas[l->nr++] = (struct vma){ m->start, m->end, m->ino != 0 };
	return 0;
}

static int count_present(int pagemap, u64 start, u64 end, u64 *ret_pages)
{
	const struct pagemap_query q = { .any = PAGE_IS_PRESENT, .ret_mask = PAGE_IS_PRESENT };
	struct page_region vec[SCAN_REGIONS];
	u64 nr_pages = 0;

	while (start < end) {
		int n = pagemap_scan(pagemap, start, end, &q, vec, SCAN_REGIONS, &start);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			nr_pages += (vec[i].end - vec[i].start) / PAGE_BYTES;
	}
	*ret_pages = nr_pages;
	return 0;
}

/* Where RAM starts in the row of mappings [first, end_vma), or 0. */
static u64 ram_in_row(const struct vma_list *l, u32 first, u32 end_vma, u64 bytes)
{
	u64 start = l->vmas[first].start, end = l->vmas[end_vma - 1].end;

	if (end - start < bytes)
		return 0;
	/* The row ends with RAM (guard page), and QEMU aligns RAM blocks to 2 MiB. */
	if ((end - bytes) % CHUNK_BYTES == 0 || end - start == bytes)
		return end - bytes;
	for (u32 i = first; i < end_vma; i++) {
		if (l->vmas[i].start % CHUNK_BYTES == 0 && l->vmas[i].start + bytes <= end)
			return l->vmas[i].start;
	}
	return 0;
}

/* Several rows may fit: RAM is the one in use, i.e. with the most memory behind it. */
static int find_ram(const struct vma_list *l, int pagemap, u64 bytes, u64 *ret_start)
{
	u64 best = 0, best_pages = 0;

	for (u32 i = 0, j; i < l->nr; i = j) {
		u64 start, pages;
		int r;

		for (j = i + 1; j < l->nr && l->vmas[j].start == l->vmas[j - 1].end; j++)
			;
		start = ram_in_row(l, i, j, bytes);
		if (!start)
			continue;
		r = count_present(pagemap, start, start + bytes, &pages);
		if (r < 0)
			return r;
		if (!best || pages > best_pages) {
			best = start;
			best_pages = pages;
		}
	}
	if (!best)
		return -ENOENT;
	*ret_start = best;
	return 0;
}

/* ---- pages ---- */

static int read_entries(int pagemap, u64 start, u64 nr, u64 *entries)
{
	size_t done = 0, bytes = nr * sizeof(*entries);

	while (done < bytes) {
		ssize_t n = pread(pagemap, (char *)entries + done, bytes - done,
				  (off_t)(start / PAGE_BYTES * sizeof(*entries) + done));

		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Decides for each page how to read it; see "Reading without leaving traces" above. */
static int plan_reads(int pagemap, const struct guest *g, const struct vma_list *l,
		      const u64 *entries, u8 *how)
{
	const struct pagemap_query q = {
		.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.ret_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO,
	};
	u64 at = g->ram_start, end = at + g->ram_bytes;
	struct page_region vec[SCAN_REGIONS];

	for (u32 i = 0; i < l->nr; i++) {
		u64 from = MAX(l->vmas[i].start, at), to = MIN(l->vmas[i].end, end);

		if (l->vmas[i].file && from < to)
			memset(how + (from - at) / PAGE_BYTES, PAGE_READ, (to - from) / PAGE_BYTES);
	}
	while (at < end) {
		int n = pagemap_scan(pagemap, at, end, &q, vec, SCAN_REGIONS, &at);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			u64 p = (vec[i].start - g->ram_start) / PAGE_BYTES;
			u64 last = (vec[i].end - g->ram_start) / PAGE_BYTES;

			for (; p < last; p++) {
				if (vec[i].categories & PAGE_IS_PFNZERO)
					how[p] = PAGE_KERNEL_ZERO;
				else if (vec[i].categories & PAGE_IS_PRESENT)
					how[p] = PAGE_READ;
				else if ((entries[p] & PM_SWAPPED) &&
					 PM_SWAP_TYPE(entries[p]) < SWAP_TYPES_OF_FILES)
					how[p] = PAGE_READ;
			}
		}
	}
	return 0;
}

struct page *page_list_add(struct page_list *l)
{
	if (l->nr == l->cap) {
		l->cap = l->cap ? 2 * l->cap : 65536;
		l->pages = realloc(l->pages, l->cap * sizeof(*l->pages));
		if (!l->pages) {
			fprintf(stderr, "outside: out of memory\n");
			exit(1);
		}
	}
	return &l->pages[l->nr++];
}

static const u8 zero_page[PAGE_BYTES];

struct reader {
	struct guest *g;
	u32 guest;
	struct page_list *nonzero, *zero;
	XXH3_state_t *digest;
};

static void page_content(struct reader *r, u64 page, const u8 *bytes)
{
	bool zero = memcmp(bytes, zero_page, PAGE_BYTES) == 0;
	struct page *p = page_list_add(zero ? r->zero : r->nonzero);

	*p = (struct page){ .guest = r->guest, .pfn = page };
	if (!zero)
		p->hash = XXH3_128bits(bytes, PAGE_BYTES);
	r->g->pages++;
	*(zero ? &r->g->zero_pages : &r->g->nonzero_pages) += 1;
	XXH3_128bits_update(r->digest, bytes, PAGE_BYTES);
}

/* Reads all pages in order. Until their frame is known, pages carry their index in .pfn. */
static int read_pages(struct reader *r, const u8 *how)
{
	u64 nr_pages = r->g->ram_bytes / PAGE_BYTES;
	u8 *buf = must_alloc(READ_PAGES * PAGE_BYTES);

	for (u64 p = 0; p < nr_pages;) {
		struct iovec local, remote;
		u64 n = 1, done;
		ssize_t got;

		if (how[p] != PAGE_READ) {
			XXH3_128bits_update(r->digest, zero_page, PAGE_BYTES);
			if (how[p] == PAGE_KERNEL_ZERO) {
				*page_list_add(r->zero) =
					(struct page){ .guest = r->guest, .pfn = p };
				r->g->pages++;
				r->g->zero_pages++;
			}
			p++;
			continue;
		}
		while (n < READ_PAGES && p + n < nr_pages && how[p + n] == PAGE_READ)
			n++;
		local = (struct iovec){ buf, n * PAGE_BYTES };
		remote = (struct iovec){ (void *)(r->g->ram_start + p * PAGE_BYTES),
					 n * PAGE_BYTES };
		got = process_vm_readv((pid_t)r->g->pid, &local, 1, &remote, 1, 0);
		if (got < 0 && errno != EFAULT && errno != EIO) {
			free(buf);
			return -errno;
		}
		done = got < 0 ? 0 : (u64)got / PAGE_BYTES;
		for (u64 i = 0; i < done; i++)
			page_content(r, p + i, buf + i * PAGE_BYTES);
		if (done < n) { /* that one vanished; the rest may be there */
			XXH3_128bits_update(r->digest, zero_page, PAGE_BYTES);
			r->g->unreadable_pages++;
			done++;
		}
		p += done;
	}
	free(buf);
	return 0;
}

/* Replaces the page index in the new elements of @l by the frame. Pages without one any more are
 * dropped. */
static void resolve_frames(struct page_list *l, size_t from, const u64 *entries, struct guest *g,
			   u64 *counter, struct page_list *store)
{
	size_t to = from;

	for (size_t i = from; i < l->nr; i++) {
		u64 e = entries[l->pages[i].pfn];

		if (!(e & PM_PRESENT)) {
			g->unreadable_pages++;
			g->pages--;
			*counter -= 1;
			continue;
		}
		l->pages[to] = l->pages[i];
		l->pages[to].pfn = PM_PFN(e);
		if (e & PM_FILE) {
			g->store_pages++;
			*page_list_add(store) = l->pages[to];
		}
		to++;
	}
	l->nr = to;
}

static void count_broken(const struct vma_list *l, const u64 *entries, struct guest *g)
{
	for (u32 i = 0; i < l->nr; i++) {
		u64 from = MAX(l->vmas[i].start, g->ram_start);
		u64 to = MIN(l->vmas[i].end, g->ram_start + g->ram_bytes);

		if (from >= to)
			continue;
		g->vmas++;
		for (u64 a = from; l->vmas[i].file && a < to; a += PAGE_BYTES) {
			u64 e = entries[(a - g->ram_start) / PAGE_BYTES];

			g->broken_pages += (e & PM_PRESENT) && !(e & PM_FILE);
		}
	}
}

int count_guest(struct guest *g, u32 index, struct page_list *nonzero, struct page_list *zero,
		struct page_list *store)
{
	u64 nr_pages = g->ram_bytes / PAGE_BYTES, *entries = NULL;
	size_t nonzero_from = nonzero->nr, zero_from = zero->nr;
	struct reader reader = { .g = g, .guest = index, .nonzero = nonzero, .zero = zero };
	struct vma_list l = { 0 };
	u8 *how = NULL;
	int pagemap, r;

	pagemap = pagemap_open((pid_t)g->pid);
	if (pagemap < 0)
		return count_fail(pagemap, "cannot open pagemap", g->pid);
	r = procmaps_walk((pid_t)g->pid, vma_add, &l);
	if (r < 0) {
		count_fail(r, "cannot read maps", g->pid);
		goto out;
	}
	g->process_vmas = l.total;
	r = find_ram(&l, pagemap, g->ram_bytes, &g->ram_start);
	if (r < 0) {
		count_fail(r, "cannot find guest RAM (wrong --ram-bytes?)", g->pid);
		goto out;
	}
	entries = must_alloc(nr_pages * sizeof(*entries));
	how = must_alloc(nr_pages);
	memset(how, PAGE_ABSENT, nr_pages);
	reader.digest = XXH3_createState();
	XXH3_128bits_reset(reader.digest);

	r = read_entries(pagemap, g->ram_start, nr_pages, entries);
	if (r == 0)
		r = plan_reads(pagemap, g, &l, entries, how);
	if (r == 0)
		r = read_pages(&reader, how);
	/* Again: reading has mapped what was not mapped in the store's mappings. */
	if (r == 0)
		r = read_entries(pagemap, g->ram_start, nr_pages, entries);
	if (r < 0) {
		count_fail(r, "cannot read memory", g->pid);
		goto out;
	}
	resolve_frames(nonzero, nonzero_from, entries, g, &g->nonzero_pages, store);
	resolve_frames(zero, zero_from, entries, g, &g->zero_pages, store);
	if (nonzero->nr > nonzero_from && nonzero->pages[nonzero_from].pfn == 0)
		r = count_fail(-EPERM, "the kernel hides the page frames (run as root)", g->pid);
	count_broken(&l, entries, g);
	g->digest = XXH3_128bits_digest(reader.digest);
out:
	XXH3_freeState(reader.digest);
	free(entries);
	free(how);
	free(l.vmas);
	close(pagemap);
	return r;
}
