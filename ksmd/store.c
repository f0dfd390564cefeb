/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/uapi_compat.h"
#include "ksmd/counts.h"
#include "ksmd/store.h"

/* Page numbers share 32 bits with a flag (index values), so a store has at most 2^31 - 1 pages: 8
 * TiB. */
#define STORE_PAGES_MAX ((u64)INT32_MAX - 1)
/*
 * The file grows with the store, by this much at least or a quarter. It is no larger than it need
 * be, because whoever may read it can bring memory into its holes: store_trim() takes that back.
 */
#define TRIM_SLACK_PAGES (MIB(4) >> PAGE_SHIFT)
#define GROW_PAGES	 (MIB(64) >> PAGE_SHIFT)
/* How many bitmap words an allocation looks at for a gap before it takes fresh space at the end. */
#define SEARCH_WORDS 1024

/* Of the hash the high 48 bits: beside the 32 that the index compares, 16 more keep lookups of
 * other content away. All bits would cost two more bytes a page. */
struct page_meta {
	u16 hash[3]; /* high to low */
	struct small_counts counts;
};
_Static_assert(sizeof(struct page_meta) == 10, "what a store page costs (store.h)");

struct store {
	int fd, fd_ro;
	u64 max_pages, file_pages;
	u64 end;	  /* pages from here on were never used */
	u64 recovery_end; /* in recovery: pages below were another daemon's, and are not allocated
			   */
	bool recovering;
	/* Sparse anonymous mappings for max_pages: cost memory only where used. */
	struct page_meta *meta;
	struct far_table far; /* of the counts in it */
	u64 *used;	      /* bitmap: allocated, or refs or covers not 0 */
	u64 nr_used;	      /* bits set in it */
	u64 cursor;	      /* bitmap word where the next search begins */
	u64 pages, total_refs;
	u64 punch_at, punch_nr; /* consecutive pages to punch */
};

static void *sparse_array(u64 bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static u64 meta_map_bytes(const struct store *s)
{
	return ROUND_UP(s->max_pages * sizeof(struct page_meta), PAGE_BYTES);
}

static u64 used_map_bytes(const struct store *s)
{
	return ROUND_UP(DIV_ROUND_UP(s->max_pages, 64) * sizeof(u64), PAGE_BYTES);
}

static int store_open(int fd, u64 file_pages, u64 max_pages, struct store **ret)
{
	struct store *s = calloc(1, sizeof(*s));
	char path[64];
	int r = -ENOMEM;

	if (!s)
		return -ENOMEM;
	s->fd = fd;
	s->file_pages = file_pages;
	s->max_pages = max_pages;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	s->fd_ro = open(path, O_RDONLY | O_CLOEXEC);
	if (s->fd_ro < 0) {
		r = -errno;
		goto fail;
	}
	s->meta = sparse_array(meta_map_bytes(s));
	s->used = sparse_array(used_map_bytes(s));
	if (!s->meta || !s->used)
		goto fail;
	/* Metadata is touched page by page, all over: huge pages would only make it larger. */
	madvise(s->meta, meta_map_bytes(s), MADV_NOHUGEPAGE);
	*ret = s;
	return 0;
fail:
	s->fd = -1;
	store_free(s);
	return r;
}

int store_new(const char *domain, u64 max_bytes, struct store **ret)
{
	u64 max_pages = MIN(max_bytes >> PAGE_SHIFT, STORE_PAGES_MAX);
	u64 pages = MIN(max_pages, GROW_PAGES);
	char name[128];
	int fd, r;

	snprintf(name, sizeof(name), "ballast-store:%s", domain);
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	/* A file that shrank would turn guest accesses into SIGBUS. */
	if (fchmod(fd, 0600) < 0 || ftruncate(fd, (off_t)(pages << PAGE_SHIFT)) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		r = -errno;
	else
		r = store_open(fd, pages, max_pages, ret);
	if (r < 0)
		close(fd);
	return r;
}

int store_adopt(int fd, u64 max_bytes, struct store **ret)
{
	struct stat st;
	off_t data = 0;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_size <= 0 ||
	    ((u64)st.st_size >> PAGE_SHIFT) > STORE_PAGES_MAX ||
	    !(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK))
		return -EINVAL;
	r = store_open(
		fd, (u64)st.st_size >> PAGE_SHIFT,
		MAX((u64)st.st_size >> PAGE_SHIFT, MIN(max_bytes >> PAGE_SHIFT, STORE_PAGES_MAX)),
		ret);
	if (r < 0)
		return r;
	/*
	 * The last data tells how far the dead daemon got, but for mappings of broken pages, which
	 * may name a punched offset beyond: the caller finds those in /proc and calls
	 * store_reserve().
	 */
	while ((data = lseek(fd, data, SEEK_DATA)) >= 0) {
		data = lseek(fd, data, SEEK_HOLE);
		if (data < 0)
			break;
		(*ret)->end = (u64)data >> PAGE_SHIFT;
	}
	(*ret)->recovering = true;
	(*ret)->recovery_end = (*ret)->end;
	return 0;
}

void store_reserve(struct store *s, u64 end)
{
	s->end = MAX(s->end, MIN(end, s->max_pages));
	s->recovery_end = MAX(s->recovery_end, s->end);
}

void store_free(struct store *s)
{
	if (!s)
		return;
	if (s->meta)
		munmap(s->meta, meta_map_bytes(s));
	if (s->used)
		munmap(s->used, used_map_bytes(s));
	far_free(&s->far);
	if (s->fd_ro >= 0)
		close(s->fd_ro);
	if (s->fd >= 0)
		close(s->fd);
	free(s);
}

int store_fd_readonly(const struct store *s)
{
	return s->fd_ro;
}

u64 store_file_bytes(const struct store *s)
{
	return s->file_pages << PAGE_SHIFT;
}

void store_identity(const struct store *s, u64 *ret_dev, u64 *ret_ino)
{
	struct stat st = { 0 };

	fstat(s->fd, &st);
	*ret_dev = st.st_dev;
	*ret_ino = st.st_ino;
}

static struct counts counts_of(const struct store *s, u64 spn)
{
	return counts_get(&s->far, &s->meta[spn].counts, (u32)spn);
}

static void set_counts(struct store *s, u32 spn, struct counts c)
{
	counts_set(&s->far, &s->meta[spn].counts, spn, c);
}

static bool has_hash(const struct store *s, u64 spn)
{
	return store_hash(s, (u32)spn) != 0;
}

/* Given up by its last reference, but still under a broken page. */
static bool only_covered(const struct store *s, u64 spn)
{
	return !has_hash(s, spn) && counts_of(s, spn).covers;
}

static bool is_used(const struct store *s, u64 spn)
{
	return s->used[spn / 64] >> (spn % 64) & 1;
}

static void set_used(struct store *s, u64 spn, bool on)
{
	if (is_used(s, spn) == on)
		return;
	s->nr_used = on ? s->nr_used + 1 : s->nr_used - 1;
	if (on)
		s->used[spn / 64] |= (u64)1 << (spn % 64);
	else
		s->used[spn / 64] &= ~((u64)1 << (spn % 64));
}

/* @nr free pages in a row below the end, near the cursor. */
static u64 find_gap(struct store *s, u32 nr)
{
	u64 words = s->end / 64, run = 0;

	/* Not before recovery ends: an unknown mapping may still name any page that looks free
	 * (invariant 4). */
	if (s->recovering)
		return UINT64_MAX;
	/* A store that only grows has none: no search each time. */
	if (s->end - s->nr_used < nr)
		return UINT64_MAX;
	if (s->cursor >= words)
		s->cursor = 0;
	for (u64 n = 0; n < MIN(SEARCH_WORDS, words - s->cursor); n++) {
		u64 w = s->cursor + n, used = s->used[w];
		u32 bit = 0;

		if (used == UINT64_MAX) {
			run = 0;
			continue;
		}
		/* From one run of free bits to the next; @run is what the words before end with. */
		while (bit < 64) {
			u64 rest = used >> bit;
			u32 free = rest ? (u32)__builtin_ctzll(rest) : 64 - bit;

			if (run + free >= nr) {
				s->cursor = w;
				return w * 64 + bit - run;
			}
			run += free;
			bit += free;
			if (bit == 64)
				break;
			run = 0;
			bit += (u32)__builtin_ctzll(~(used >> bit));
		}
	}
	s->cursor += MIN(SEARCH_WORDS, words - s->cursor);
	/* Now, because the end moves on before the next search. */
	if (s->cursor >= words)
		s->cursor = 0;
	return UINT64_MAX;
}

static bool grow_to(struct store *s, u64 pages)
{
	u64 grown =
		MIN(MAX(pages, s->file_pages + MAX(s->file_pages / 4, GROW_PAGES)), s->max_pages);

	if (pages <= s->file_pages)
		return true;
	if (ftruncate(s->fd, (off_t)(grown << PAGE_SHIFT)) < 0)
		return false;
	s->file_pages = grown;
	return true;
}

void store_trim(struct store *s)
{
	struct stat st;
	u64 have;

	if (fstat(s->fd, &st) < 0)
		return;
	have = (u64)st.st_blocks * 512 >> PAGE_SHIFT;
	/* Pages of promotions that are under way may be missing from the count of what there should
	 * be. */
	if (have <= s->pages + TRIM_SLACK_PAGES)
		return;
	for (u64 spn = 0, n; spn < s->file_pages; spn += n) {
		bool unused = spn >= s->end || !is_used(s, spn) || only_covered(s, spn);

		for (n = 1; spn + n < s->file_pages; n++) {
			u64 next = spn + n;

			if ((next >= s->end || !is_used(s, next) || only_covered(s, next)) !=
			    unused)
				break;
		}
		if (unused)
			(void)!fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					 (off_t)(spn << PAGE_SHIFT), (off_t)(n << PAGE_SHIFT));
	}
}

u32 store_alloc(struct store *s, u32 nr)
{
	u64 spn;

	store_flush(s);
	spn = find_gap(s, nr);
	if (spn == UINT64_MAX) {
		if (s->end + nr > s->max_pages || !grow_to(s, s->end + nr))
			return SPN_NONE;
		spn = s->end;
		s->end += nr;
	}
	for (u64 i = spn; i < spn + nr; i++) {
		set_used(s, i, true);
		s->meta[i] = (struct page_meta){ 0 };
	}
	s->pages += nr;
	return (u32)spn;
}

static void punch(struct store *s, u64 spn)
{
	if (s->punch_nr && spn == s->punch_at + s->punch_nr) {
		s->punch_nr++;
		return;
	}
	store_flush(s);
	s->punch_at = spn;
	s->punch_nr = 1;
}

void store_flush(struct store *s)
{
	/* If this fails the memory stays in use, and nothing else is wrong; the next owner
	 * overwrites it. */
	if (s->punch_nr)
		(void)!fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 (off_t)(s->punch_at << PAGE_SHIFT),
				 (off_t)(s->punch_nr << PAGE_SHIFT));
	s->punch_nr = 0;
}

static void drop_content(struct store *s, u32 spn)
{
	s->pages--;
	memset(s->meta[spn].hash, 0, sizeof(s->meta[spn].hash));
	punch(s, spn);
	if (counts_of(s, spn).covers == 0)
		set_used(s, spn, false);
}

void store_release(struct store *s, u32 spn, u32 nr)
{
	for (u32 i = spn; i < spn + nr; i++)
		drop_content(s, i);
}

static int transfer(const struct store *s, u32 spn, void *pages, u32 nr, bool write)
{
	u64 at = (u64)spn << PAGE_SHIFT, bytes = (u64)nr << PAGE_SHIFT;

	for (u64 done = 0; done < bytes;) {
		ssize_t n =
			write ? pwrite(s->fd, (u8 *)pages + done, bytes - done, (off_t)(at + done))
			      : pread(s->fd, (u8 *)pages + done, bytes - done, (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (u64)n;
	}
	return 0;
}

int store_write(const struct store *s, u32 spn, const void *pages, u32 nr)
{
	return transfer(s, spn, (void *)pages, nr, true);
}

int store_read(const struct store *s, u32 spn, void *pages, u32 nr)
{
	return transfer(s, spn, pages, nr, false);
}

void store_set_hash(struct store *s, u32 spn, u64 hash)
{
	/* 0 says "no content"; the one content that hashes to 0 is then never found again, which
	 * only loses a saving. */
	hash = store_hash_kept(hash) ? hash : 1u << 16;
	for (u32 i = 0; i < ARRAY_SIZE(s->meta[spn].hash); i++)
		s->meta[spn].hash[i] = (u16)(hash >> (48 - 16 * i));
}

u64 store_hash(const struct store *s, u32 spn)
{
	const u16 *h = s->meta[spn].hash;

	return (u64)h[0] << 48 | (u64)h[1] << 32 | (u64)h[2] << 16;
}

bool store_has_content(const struct store *s, u32 spn)
{
	return spn < s->end && has_hash(s, spn);
}

u32 store_refs(const struct store *s, u32 spn)
{
	return counts_of(s, spn).refs;
}

u32 store_covers(const struct store *s, u32 spn)
{
	return counts_of(s, spn).covers;
}

void store_ref(struct store *s, u32 spn)
{
	struct counts c = counts_of(s, spn);

	c.refs++;
	set_counts(s, spn, c);
	s->total_refs++;
}

bool store_unref(struct store *s, u32 spn)
{
	struct counts c = counts_of(s, spn);

	s->total_refs--;
	c.refs--;
	set_counts(s, spn, c);
	/* Asked again: the count of a page that is kept for good does not change. */
	if (store_refs(s, spn))
		return false;
	/* In recovery the last known reference may not be the last one. */
	if (s->recovering && spn < s->recovery_end)
		return false;
	drop_content(s, spn);
	return true;
}

void store_cover(struct store *s, u32 spn)
{
	struct counts c = counts_of(s, spn);

	c.covers++;
	set_counts(s, spn, c);
	set_used(s, spn, true);
	if (spn >= s->end)
		store_reserve(s, (u64)spn + 1);
}

void store_uncover(struct store *s, u32 spn)
{
	struct counts c = counts_of(s, spn);

	c.covers--;
	set_counts(s, spn, c);
	c = counts_of(s, spn);
	if (c.covers == 0 && c.refs == 0 && !s->recovering) {
		/* Allocated pages that wait for their first reference have neither count; they are
		 * never covered. */
		set_used(s, spn, false);
	}
}

int store_walk(struct store *s, int (*fn)(struct store *s, u32 spn, void *arg), void *arg)
{
	off_t data = 0;

	while ((data = lseek(s->fd, data, SEEK_DATA)) >= 0) {
		off_t hole = lseek(s->fd, data, SEEK_HOLE);

		if (hole < 0)
			return -errno;
		for (; data < hole; data += (off_t)PAGE_BYTES) {
			u32 spn = (u32)((u64)data >> PAGE_SHIFT);
			int r;

			set_used(s, spn, true);
			s->pages++;
			r = fn(s, spn, arg);
			if (r < 0)
				return r;
		}
	}
	return errno == ENXIO ? 0 : -errno;
}

void store_recovered(struct store *s, void (*dropped)(struct store *s, u32 spn, void *arg),
		     void *arg)
{
	if (!s->recovering)
		return;
	s->recovering = false;
	for (u64 spn = 0; spn < s->recovery_end; spn++) {
		if (!is_used(s, spn) || counts_of(s, spn).refs)
			continue;
		if (has_hash(s, spn)) {
			dropped(s, (u32)spn, arg);
			drop_content(s, (u32)spn);
		} else if (!counts_of(s, spn).covers) {
			set_used(s, spn, false);
		}
	}
	store_flush(s);
}

bool store_in_recovery(const struct store *s)
{
	return s->recovering;
}

u64 store_pages(const struct store *s)
{
	return s->pages;
}

u64 store_total_refs(const struct store *s)
{
	return s->total_refs;
}

u64 store_meta_bytes(const struct store *s)
{
	return s->end * sizeof(struct page_meta) + s->end / 8 + far_bytes(&s->far);
}

u64 store_max_pages(const struct store *s)
{
	return s->max_pages;
}
