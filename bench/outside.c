/* SPDX-License-Identifier: MIT */
/*
 * outside: counts what guests share, from outside. It asks the kernel and reads guest memory; it
 * never talks to ballastd nor to an agent, so that Ballast's own books can be checked against it.
 *
 *   outside --ram-bytes N [--stop] [--json] [--output FILE] [--timeout S] PID...
 *
 * Of each VMM it finds guest RAM, reads every page that has content, hashes it (XXH3, 128 bits),
 * and asks /proc/PID/pagemap which page frame it lies in. Duplicates are pages with equal content;
 * merged pages are pages that have the frame of another page. What the keys mean is in the tables
 * total_fields and guest_fields below.
 *
 * Finding RAM. Ballast replaces parts of the one anonymous mapping by private mappings of its
 * store, so RAM is a row of many mappings: the one contiguous row of readable and writable private
 * mappings of N bytes. A neighbour may touch it below, never above: QEMU puts an inaccessible guard
 * page behind each RAM block.
 *
 * Reading without leaving traces. An absent page of anonymous memory is not read: that would map a
 * zero page, or, where userfaultfd watches, wait for the agent for ever if it is stopped. Absence
 * is what PAGEMAP_SCAN says; its "swapped" includes markers that userfaultfd leaves in empty
 * entries, which are told from swap by their type. In a mapping of the store a page not yet mapped
 * does have content, and reading it is safe: nothing watches for it.
 *
 * --stop holds all processes with SIGSTOP while counting, for one consistent moment. The process
 * that stops them only waits: a child counts, and is killed if it takes longer than --timeout, so
 * the VMMs always go on. With it unreadable_pages and torn_frames must be 0.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>
#include "common/clock.h"
#include "common/procfs.h"

#define READ_PAGES	  64 /* a batch fits the L2 cache: it is hashed right after the copy */
#define SCAN_REGIONS	  1024
#define STOP_TIMEOUT_US	  2000000
#define DEFAULT_TIMEOUT_S 60

/* /proc/PID/pagemap and /proc/kpageflags: Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT	(1ULL << 63)
#define PM_SWAPPED	(1ULL << 62)
#define PM_FILE		(1ULL << 61)
#define PM_PFN(e)	((e) & ((1ULL << 55) - 1))
#define PM_SWAP_TYPE(e) ((e)&31)
#define KPF_ZERO_PAGE	24
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

struct page {
	XXH128_hash_t hash;
	u64 pfn;
	u32 guest;
};

struct page_list {
	struct page *pages;
	size_t nr, cap;
};

struct guest {
	u64 pid;
	u64 ram_start, ram_bytes;
	u64 vmas, process_vmas;
	u64 pages, nonzero_pages, zero_pages, zero_kernel_pages;
	u64 shared_pages;
	u64 store_pages, broken_pages;
	u64 unreadable_pages;
	XXH128_hash_t digest;
};

struct totals {
	u64 guests;
	u64 pages, frames;
	u64 nonzero_pages, distinct_contents, nonzero_frames;
	u64 dup_pages, merged_pages;
	u64 zero_pages, zero_kernel_pages, zero_frames, zero_merged_pages;
	u64 store_pages, store_frames, broken_pages;
	u64 vmas, process_vmas;
	u64 unreadable_pages, torn_frames;
	u64 elapsed_us;
};

struct field {
	const char *name;
	size_t offset;
};

// clang-format off
#define TOTAL(f) { #f, offsetof(struct totals, f) }
#define GUEST(f) { #f, offsetof(struct guest, f) }
// clang-format on

static const struct field total_fields[] = {
	TOTAL(guests),
	TOTAL(pages),		  /* guest pages that have memory behind them */
	TOTAL(frames),		  /* their page frames; the kernel's zero page does not count */
	TOTAL(nonzero_pages),	  /* of pages: content is not all zeros */
	TOTAL(distinct_contents), /* of nonzero_pages */
	TOTAL(dup_pages),	  /* nonzero_pages - distinct_contents: what sharing could remove */
	TOTAL(nonzero_frames),	  /* page frames of nonzero_pages */
	TOTAL(merged_pages),	  /* nonzero_pages - nonzero_frames: what sharing has removed */
	TOTAL(zero_pages),	  /* of pages: content is all zeros */
	TOTAL(zero_kernel_pages), /* of zero_pages: mapped to the kernel's shared zero page */
	TOTAL(zero_frames),	  /* other page frames that hold zero_pages */
	TOTAL(zero_merged_pages), /* zero_pages - zero_frames */
	TOTAL(store_pages),	  /* of pages: mapped to a file, which is Ballast's store */
	TOTAL(store_frames),	  /* page frames of store_pages */
	TOTAL(broken_pages),	  /* of pages: in a mapping of the store, but written since */
	TOTAL(vmas),		  /* mappings that make up guest RAM */
	TOTAL(process_vmas),	  /* all mappings of the VMMs */
	TOTAL(unreadable_pages),  /* vanished while being read */
	TOTAL(torn_frames),	  /* frames read with two contents, i.e. written meanwhile */
	TOTAL(elapsed_us),
};

/* shared_pages: of nonzero_pages, those whose frame another page has too. */
static const struct field guest_fields[] = {
	GUEST(pid),
	GUEST(ram_start),
	GUEST(ram_bytes),
	GUEST(vmas),
	GUEST(process_vmas),
	GUEST(pages),
	GUEST(nonzero_pages),
	GUEST(zero_pages),
	GUEST(zero_kernel_pages),
	GUEST(shared_pages),
	GUEST(store_pages),
	GUEST(broken_pages),
	GUEST(unreadable_pages),
};

static int fail(int error, const char *what, u64 pid)
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

static struct page *list_add(struct page_list *l)
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
	struct page *p = list_add(zero ? r->zero : r->nonzero);

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
				*list_add(r->zero) = (struct page){ .guest = r->guest, .pfn = p };
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
			*list_add(store) = l->pages[to];
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

static int count_guest(struct guest *g, u32 index, struct page_list *nonzero,
		       struct page_list *zero, struct page_list *store)
{
	u64 nr_pages = g->ram_bytes / PAGE_BYTES, *entries = NULL;
	size_t nonzero_from = nonzero->nr, zero_from = zero->nr;
	struct reader reader = { .g = g, .guest = index, .nonzero = nonzero, .zero = zero };
	struct vma_list l = { 0 };
	u8 *how = NULL;
	int pagemap, r;

	pagemap = pagemap_open((pid_t)g->pid);
	if (pagemap < 0)
		return fail(pagemap, "cannot open pagemap", g->pid);
	r = procmaps_walk((pid_t)g->pid, vma_add, &l);
	if (r < 0) {
		fail(r, "cannot read maps", g->pid);
		goto out;
	}
	g->process_vmas = l.total;
	r = find_ram(&l, pagemap, g->ram_bytes, &g->ram_start);
	if (r < 0) {
		fail(r, "cannot find guest RAM (wrong --ram-bytes?)", g->pid);
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
		fail(r, "cannot read memory", g->pid);
		goto out;
	}
	resolve_frames(nonzero, nonzero_from, entries, g, &g->nonzero_pages, store);
	resolve_frames(zero, zero_from, entries, g, &g->zero_pages, store);
	if (nonzero->nr > nonzero_from && nonzero->pages[nonzero_from].pfn == 0)
		r = fail(-EPERM, "the kernel hides the page frames (run as root)", g->pid);
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

/* ---- totals ---- */

static int by_hash(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	if (x->hash.high64 != y->hash.high64)
		return x->hash.high64 < y->hash.high64 ? -1 : 1;
	return x->hash.low64 < y->hash.low64 ? -1 : x->hash.low64 > y->hash.low64;
}

static int by_pfn(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	return x->pfn < y->pfn ? -1 : x->pfn > y->pfn;
}

static u64 count_distinct(struct page_list *l, int (*cmp)(const void *, const void *))
{
	u64 n = 0;

	qsort(l->pages, l->nr, sizeof(*l->pages), cmp);
	for (size_t i = 0; i < l->nr; i++)
		n += i == 0 || cmp(&l->pages[i - 1], &l->pages[i]) != 0;
	return n;
}

/* The kernel has two zero pages, a small and a huge one; only kpageflags knows both. */
static bool is_kernel_zero(int kpageflags, u64 pfn)
{
	u64 flags;

	if (pread(kpageflags, &flags, sizeof(flags), (off_t)(pfn * sizeof(flags))) != sizeof(flags))
		return false;
	return flags >> KPF_ZERO_PAGE & 1;
}

static int count_zero(struct totals *t, struct guest *guests, struct page_list *zero)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		perror("outside: /proc/kpageflags");
		return -errno;
	}
	qsort(zero->pages, zero->nr, sizeof(*zero->pages), by_pfn);
	for (size_t i = 0, j; i < zero->nr; i = j) {
		bool kernel = is_kernel_zero(fd, zero->pages[i].pfn);

		for (j = i; j < zero->nr && zero->pages[j].pfn == zero->pages[i].pfn; j++)
			guests[zero->pages[j].guest].zero_kernel_pages += kernel;
		t->zero_frames += !kernel;
	}
	close(fd);
	return 0;
}

static int count_totals(struct totals *t, struct guest *guests, struct page_list *nonzero,
			struct page_list *zero, struct page_list *store)
{
	int r = count_zero(t, guests, zero);

	if (r < 0)
		return r;
	for (u32 i = 0; i < t->guests; i++) {
		t->pages += guests[i].pages;
		t->nonzero_pages += guests[i].nonzero_pages;
		t->zero_pages += guests[i].zero_pages;
		t->zero_kernel_pages += guests[i].zero_kernel_pages;
		t->store_pages += guests[i].store_pages;
		t->broken_pages += guests[i].broken_pages;
		t->vmas += guests[i].vmas;
		t->process_vmas += guests[i].process_vmas;
		t->unreadable_pages += guests[i].unreadable_pages;
	}
	t->distinct_contents = count_distinct(nonzero, by_hash);
	t->nonzero_frames = count_distinct(nonzero, by_pfn);
	for (size_t i = 0, j; i < nonzero->nr; i = j) {
		bool torn = false;

		for (j = i + 1; j < nonzero->nr && nonzero->pages[j].pfn == nonzero->pages[i].pfn;
		     j++)
			torn |= by_hash(&nonzero->pages[i], &nonzero->pages[j]) != 0;
		t->torn_frames += torn;
		for (size_t k = i; k < j && j - i > 1; k++)
			guests[nonzero->pages[k].guest].shared_pages++;
	}
	t->store_frames = count_distinct(store, by_pfn);
	t->dup_pages = t->nonzero_pages - t->distinct_contents;
	t->merged_pages = t->nonzero_pages - t->nonzero_frames;
	t->zero_merged_pages = t->zero_pages - t->zero_frames;
	t->frames = t->nonzero_frames + t->zero_frames;
	return 0;
}

/* ---- output ---- */

static u64 field_value(const void *s, const struct field *f)
{
	return *(const u64 *)((const char *)s + f->offset);
}

static void print_kv(FILE *f, const struct totals *t, const struct guest *guests)
{
	for (size_t i = 0; i < ARRAY_SIZE(total_fields); i++)
		fprintf(f, "%s=%" PRIu64 "\n", total_fields[i].name,
			field_value(t, &total_fields[i]));
	for (u32 g = 0; g < t->guests; g++) {
		for (size_t i = 0; i < ARRAY_SIZE(guest_fields); i++)
			fprintf(f, "guest%u_%s=%" PRIu64 "\n", g + 1, guest_fields[i].name,
				field_value(&guests[g], &guest_fields[i]));
		fprintf(f, "guest%u_digest=%016" PRIx64 "%016" PRIx64 "\n", g + 1,
			guests[g].digest.high64, guests[g].digest.low64);
	}
}

static void print_json(FILE *f, const struct totals *t, const struct guest *guests)
{
	fputc('{', f);
	for (size_t i = 0; i < ARRAY_SIZE(total_fields); i++)
		fprintf(f, "\"%s\":%" PRIu64 ",", total_fields[i].name,
			field_value(t, &total_fields[i]));
	fputs("\"guest\":[", f);
	for (u32 g = 0; g < t->guests; g++) {
		fprintf(f, "%s\n{", g ? "," : "");
		for (size_t i = 0; i < ARRAY_SIZE(guest_fields); i++)
			fprintf(f, "\"%s\":%" PRIu64 ",", guest_fields[i].name,
				field_value(&guests[g], &guest_fields[i]));
		fprintf(f, "\"digest\":\"%016" PRIx64 "%016" PRIx64 "\"}", guests[g].digest.high64,
			guests[g].digest.low64);
	}
	fputs("]}\n", f);
}

struct options {
	u64 ram_bytes;
	bool stop, json;
	const char *output;
	u32 timeout_s;
};

static int count_all(const struct options *o, struct guest *guests, u32 nr)
{
	struct page_list nonzero = { 0 }, zero = { 0 }, store = { 0 };
	struct totals t = { .guests = nr };
	u64 start = now_us();
	FILE *f;
	int r;

	for (u32 i = 0; i < nr; i++) {
		r = count_guest(&guests[i], i, &nonzero, &zero, &store);
		if (r < 0)
			return r;
	}
	r = count_totals(&t, guests, &nonzero, &zero, &store);
	if (r < 0)
		return r;
	t.elapsed_us = now_us() - start;

	f = o->output ? fopen(o->output, "we") : stdout;
	if (!f) {
		perror(o->output);
		return -errno;
	}
	(o->json ? print_json : print_kv)(f, &t, guests);
	if (fflush(f) != 0 || ferror(f)) {
		perror("outside: output");
		return -EIO;
	}
	return 0;
}

/* ---- stopping the VMMs ---- */

/* True when every thread is stopped: the state of the process is that of its first thread only. */
static bool all_stopped(pid_t pid)
{
	struct dirent *d;
	char path[64];
	bool stopped = true;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (stopped && (d = readdir(dir))) {
		char stat[352], line[512], *p;
		FILE *f;

		if (d->d_name[0] == '.')
			continue;
		snprintf(stat, sizeof(stat), "%s/%s/stat", path, d->d_name);
		f = fopen(stat, "re");
		if (!f)
			continue; /* ended meanwhile */
		p = fgets(line, sizeof(line), f) ? strrchr(line, ')') : NULL;
		stopped = p && p[1] && (p[2] == 'T' || p[2] == 't');
		fclose(f);
	}
	closedir(dir);
	return stopped;
}

static int stop_all(const struct guest *guests, u32 nr)
{
	const struct timespec ms = { .tv_nsec = 1000000 };
	u64 start = now_us();

	for (u32 i = 0; i < nr; i++) {
		if (kill((pid_t)guests[i].pid, SIGSTOP) < 0)
			return fail(-errno, "cannot stop", guests[i].pid);
	}
	for (u32 i = 0; i < nr; i++) {
		while (!all_stopped((pid_t)guests[i].pid)) {
			if (now_us() - start > STOP_TIMEOUT_US)
				return fail(-ETIMEDOUT, "some thread does not stop", guests[i].pid);
			nanosleep(&ms, NULL);
		}
	}
	return 0;
}

/* Runs count_all() in a child; see --stop above. Returns the exit status of the program. */
static int supervise(const struct options *o, struct guest *guests, u32 nr)
{
	struct timespec timeout = { .tv_sec = o->timeout_s };
	int status = 1 << 8, sig;
	sigset_t set, old;
	pid_t child = -1;

	/* From here on no signal but SIGKILL can end us between stopping and continuing. */
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGPIPE);
	sigprocmask(SIG_BLOCK, &set, &old);

	if (o->stop && stop_all(guests, nr) < 0)
		goto out;
	child = fork();
	if (child < 0) {
		perror("outside: fork");
		goto out;
	}
	if (child == 0) {
		sigprocmask(SIG_SETMASK, &old, NULL);
		_exit(count_all(o, guests, nr) < 0);
	}
	sig = sigtimedwait(&set, NULL, &timeout);
	if (sig != SIGCHLD) {
		kill(child, SIGKILL);
		if (sig < 0)
			fprintf(stderr, "outside: not done after %u s\n", o->timeout_s);
	}
out:
	for (u32 i = 0; o->stop && i < nr; i++)
		kill((pid_t)guests[i].pid, SIGCONT);
	/* Only now: a child that hangs in a page fault dies when the VMM goes on, if not before. */
	if (child > 0)
		waitpid(child, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static u64 parse_bytes(const char *s)
{
	char *end;
	u64 n = strtoull(s, &end, 10);

	switch (*end) {
	case 'G':
		return n << 30;
	case 'M':
		return n << 20;
	case 'K':
		return n << 10;
	default:
		return *end ? 0 : n;
	}
}

static const char usage[] =
	"usage: outside --ram-bytes N[K|M|G] [--stop] [--kv|--json] [--output FILE] [--timeout S] PID...\n"
	"Counts duplicate and merged pages of guests from outside (root only; see the head of bench/outside.c).\n";

int main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "ram-bytes", required_argument, NULL, 'r' },
		{ "stop", no_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "kv", no_argument, NULL, 'k' },
		{ "output", required_argument, NULL, 'o' },
		{ "timeout", required_argument, NULL, 't' },
		{ NULL, 0, NULL, 0 },
	};
	struct options o = { .timeout_s = DEFAULT_TIMEOUT_S };
	struct guest *guests;
	int c;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'r':
			o.ram_bytes = parse_bytes(optarg);
			break;
		case 's':
			o.stop = true;
			break;
		case 'j':
			o.json = true;
			break;
		case 'k':
			o.json = false;
			break;
		case 'o':
			o.output = optarg;
			break;
		case 't':
			o.timeout_s = (u32)strtoul(optarg, NULL, 10);
			break;
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	if (optind == argc || !o.ram_bytes || !page_aligned(o.ram_bytes)) {
		fputs(usage, stderr);
		return 2;
	}
	guests = calloc((size_t)(argc - optind), sizeof(*guests));
	if (!guests)
		return 1;
	for (int i = optind; i < argc; i++) {
		long pid = strtol(argv[i], NULL, 10);

		if (pid <= 1) {
			fprintf(stderr, "outside: %s is no PID\n", argv[i]);
			return 2;
		}
		guests[i - optind] = (struct guest){ .pid = (u64)pid, .ram_bytes = o.ram_bytes };
	}
	return supervise(&o, guests, (u32)(argc - optind));
}
