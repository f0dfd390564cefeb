/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "ksmd/hash.h"
#include "ksmd/jobs.h"

static void ask_all(struct scan_job *j)
{
	u64 end = j->end;

	j->err = 0;
	j->walk_end = j->start;
	for (u32 i = 0; i < SCAN_PARTS && end > j->start; i++) {
		struct scan_part *p = &j->parts[i];

		p->nr = 0;
		if (!p->query)
			continue;
		p->nr = pagemap_scan(j->target->pagemap_fd, j->start, end, p->query, p->ranges,
				     SCAN_RANGES, &j->walk_end);
		if (p->nr < 0) {
			j->err = p->nr;
			return;
		}
		end = j->walk_end;
	}
}

static void scan_job_run(struct reader_job *job)
{
	struct scan_job *j = container_of(job, struct scan_job, job);
	u64 started = thread_cpu_us();

	ask_all(j);
	j->cpu_us = thread_cpu_us() - started;
}

static void free_scan_job(struct reader_job *job)
{
	struct scan_job *j = container_of(job, struct scan_job, job);

	target_put(j->target);
	free(j);
}

struct scan_job *scan_job_new(void)
{
	struct scan_job *j = malloc(sizeof(*j));

	if (!j)
		return NULL;
	j->job = (struct reader_job){ .run = scan_job_run, .free = free_scan_job };
	j->target = NULL;
	for (u32 i = 0; i < SCAN_PARTS; i++)
		j->parts[i].query = NULL;
	return j;
}

void scan_job_free(struct scan_job *j)
{
	if (j)
		free_scan_job(&j->job);
}

static void hash_batch(struct hash_job *j, u32 first, u32 nr)
{
	/* A page that cannot be read is simply not hashed. */
	if (target_read(j->target, j->hva + first, nr, j->buf, j->ok + first) < 0)
		memset(j->ok + first, 0, nr * sizeof(j->ok[0]));
	for (u32 i = 0; i < nr; i++) {
		const u8 *page = j->buf + i * PAGE_BYTES;

		if (!j->ok[first + i])
			continue;
		j->zero[first + i] = page_is_zero(page);
		j->hash[first + i] = j->zero[first + i] ? 0 : page_hash(page);
	}
}

static void hash_job_run(struct reader_job *job)
{
	struct hash_job *j = container_of(job, struct hash_job, job);

	for (u32 i = 0; i < j->nr; i += READ_BATCH_PAGES)
		hash_batch(j, i, MIN(j->nr - i, READ_BATCH_PAGES));
}

static void free_hash_job(struct reader_job *job)
{
	struct hash_job *j = container_of(job, struct hash_job, job);

	target_put(j->target);
	free(j->buf);
	free(j);
}

struct hash_job *hash_job_new(void)
{
	struct hash_job *j = calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	j->job = (struct reader_job){ .run = hash_job_run, .free = free_hash_job };
	j->buf = aligned_alloc(PAGE_BYTES, READ_BATCH_PAGES * PAGE_BYTES);
	if (!j->buf) {
		free(j);
		return NULL;
	}
	return j;
}

void hash_job_free(struct hash_job *j)
{
	free_hash_job(&j->job);
}

/*
 * Step 4 of the engine's overview, for a batch. The hash is taken from the copy that the store
 * gets: a page that changed since it was looked up is not what its partner has. The partner itself
 * is not read again; its agent compares every byte before it shows this page (invariant 2).
 */
static void promote_batch(struct promote_job *j, u32 first, u32 nr)
{
	bool *ok = j->ok + first;

	if (target_read(j->target, j->hva + first, nr, j->buf, ok) < 0)
		memset(ok, 0, nr * sizeof(ok[0]));
	for (u32 i = 0; i < nr; i++)
		ok[i] = ok[i] && page_hash(j->buf + i * PAGE_BYTES) == j->hash[first + i];
	for (u32 i = 0, n; i < nr; i += n) {
		for (n = 1; i + n < nr && ok[i + n] == ok[i]; n++)
			;
		if (ok[i] &&
		    store_write(j->store, j->spn + first + i, j->buf + i * PAGE_BYTES, n) < 0)
			memset(ok + i, 0, n * sizeof(ok[0]));
	}
}

static void promote_job_run(struct reader_job *job)
{
	struct promote_job *j = container_of(job, struct promote_job, job);

	for (u32 i = 0; i < j->nr; i += READ_BATCH_PAGES)
		promote_batch(j, i, MIN(j->nr - i, READ_BATCH_PAGES));
}

static void free_promote_job(struct reader_job *job)
{
	struct promote_job *j = container_of(job, struct promote_job, job);

	target_put(j->target);
	free(j->buf);
	if (j->late)
		j->late->ended = true;
	free(j);
}

struct promote_job *promote_job_new(void)
{
	struct promote_job *j = calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	j->job = (struct reader_job){ .run = promote_job_run, .free = free_promote_job };
	j->buf = aligned_alloc(PAGE_BYTES, READ_BATCH_PAGES * PAGE_BYTES);
	if (j->buf)
		return j;
	free(j);
	return NULL;
}

void promote_job_free(struct promote_job *j)
{
	if (j)
		free_promote_job(&j->job);
}

static s64 to_ns(const struct timespec *t)
{
	return (s64)t->tv_sec * 1000000000 + t->tv_nsec;
}

/* Times of change are those of the last tick (10 ms at most) before kernel 6.13: a file that is
 * younger may be written again without looking any different. */
#define YOUNG_NS 20000000

static int identify(struct image_job *j)
{
	struct timespec now;
	struct stat st;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	if (fstat(j->fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	j->id = (struct image_id){
		.dev = st.st_dev,
		.ino = st.st_ino,
		.size = (u64)st.st_size,
		.mtime_ns = to_ns(&st.st_mtim),
		.ctime_ns = to_ns(&st.st_ctim),
	};
	if (j->id.size < j->offset || j->id.size - j->offset < (u64)j->nr << PAGE_SHIFT)
		return -EINVAL;
	return to_ns(&now) - MAX(j->id.mtime_ns, j->id.ctime_ns) < YOUNG_NS ? -EAGAIN : 0;
}

static int read_pages(struct image_job *j)
{
	u64 bytes = (u64)j->nr << PAGE_SHIFT;

	for (u64 done = 0; done < bytes;) {
		ssize_t n = pread(j->fd, j->buf + done, bytes - done, (off_t)(j->offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ESTALE; /* shorter than it was */
		done += (u64)n;
	}
	for (u32 i = 0; i < j->nr; i++) {
		const u8 *page = j->buf + i * PAGE_BYTES;

		j->zero[i] = page_is_zero(page);
		j->hash[i] = j->zero[i] ? 0 : page_hash(page);
	}
	return 0;
}

static void image_job_run(struct reader_job *job)
{
	struct image_job *j = container_of(job, struct image_job, job);

	j->err = 0;
	if (j->what == IMAGE_CLOSE) {
		close(j->fd);
		return;
	}
	if (j->what == IMAGE_READ)
		j->err = read_pages(j);
	if (j->err == 0)
		j->err = identify(j);
}

static void free_image_job(struct reader_job *job)
{
	struct image_job *j = container_of(job, struct image_job, job);

	/* Given up while it hung, it has nobody else. */
	if (j->target && j->what != IMAGE_CLOSE)
		close(j->fd);
	target_put(j->target);
	free(j->buf);
	free(j);
}

struct image_job *image_job_new(void)
{
	struct image_job *j = calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	j->job = (struct reader_job){ .run = image_job_run, .free = free_image_job };
	j->buf = aligned_alloc(PAGE_BYTES, IMAGE_JOB_PAGES * PAGE_BYTES);
	if (j->buf)
		return j;
	free(j);
	return NULL;
}

void image_job_free(struct image_job *j)
{
	if (j)
		free_image_job(&j->job);
}

/* --- swapping out -------------------------------------------------------------------------------
 */

/* Pages that are there in one range: what is swapped out already is not asked for again. */
static int swap_range(struct swap_job *j, u64 start, u64 end)
{
	static const struct pagemap_query query = { .all = PAGE_IS_PRESENT,
						    .ret_mask = PAGE_IS_PRESENT };
	struct page_region found[64];
	struct iovec there[ARRAY_SIZE(found)];

	while (start < end) {
		u64 bytes = 0;
		int r = pagemap_scan(j->target->pagemap_fd, start, end, &query, found,
				     ARRAY_SIZE(found), &start);
		if (r < 0)
			return r;
		for (int i = 0; i < r; i++) {
			there[i] = (struct iovec){ (void *)(uintptr_t)found[i].start,
						   found[i].end - found[i].start };
			bytes += there[i].iov_len;
		}
		if (r && process_madvise(j->target->pidfd, there, (size_t)r, MADV_PAGEOUT, 0) < 0)
			return -errno;
		j->pages += bytes >> PAGE_SHIFT;
	}
	return 0;
}

static void swap_job_run(struct reader_job *job)
{
	struct swap_job *j = container_of(job, struct swap_job, job);

	j->pages = 0;
	j->err = 0;
	for (u32 i = 0; i < j->nr && j->err == 0; i++) {
		u64 start = (u64)(uintptr_t)j->range[i].iov_base;

		j->err = swap_range(j, start, start + j->range[i].iov_len);
	}
}

static void free_swap_job(struct reader_job *job)
{
	struct swap_job *j = container_of(job, struct swap_job, job);

	target_put(j->target);
	free(j);
}

struct swap_job *swap_job_new(void)
{
	struct swap_job *j = calloc(1, sizeof(*j));

	if (j)
		j->job = (struct reader_job){ .run = swap_job_run, .free = free_swap_job };
	return j;
}

void swap_job_free(struct swap_job *j)
{
	if (j)
		free_swap_job(&j->job);
}
