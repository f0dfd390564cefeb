/* SPDX-License-Identifier: MIT */
/*
 * What reader threads do (reader.h): scan a VMM's page tables, hash pages, promote pages into the
 * store. A job touches nothing but itself, so that it can be given up.
 */
#ifndef BALLAST_KSMD_JOBS_H
#define BALLAST_KSMD_JOBS_H

#include <sys/uio.h>
#include "ksmd/reader.h"
#include "ksmd/store.h"
#include "ksmd/target.h"

/* A VMM that does not let itself be read for this long is left alone until it does. */
#define READ_TIMEOUT_US 1000000
/* Ranges that one PAGEMAP_SCAN can return; when there are more the window gets shorter. */
#define SCAN_RANGES 2048
/* Pages of one hash job, so that the threads share a window's work, and of one promotion. */
#define HASH_JOB_PAGES	1024
#define PROMOTION_PAGES 256
/* Pages read at once before they are hashed or compared: they are still in the cache then. */
#define READ_BATCH_PAGES 64

/* What one question about a range of memory found. */
struct scan_part {
	const struct pagemap_query *query; /* NULL: not asked */
	int nr;				   /* ranges */
	struct page_region ranges[SCAN_RANGES];
};

/* Asks up to SCAN_PARTS questions about [start, end), in their order, each as far as the one before
 * got. */
#define SCAN_PARTS 3
struct scan_job {
	struct reader_job job;
	struct target *target;
	u64 start, end;
	u64 walk_end; /* how far the last question got */
	int err;
	u64 cpu_us;
	struct scan_part parts[SCAN_PARTS];
};

struct hash_job {
	struct reader_job job;
	struct target *target;
	u32 nr;
	u64 hva[HASH_JOB_PAGES];
	u32 page[HASH_JOB_PAGES];
	u64 hash[HASH_JOB_PAGES];
	bool ok[HASH_JOB_PAGES], zero[HASH_JOB_PAGES];
	u8 *buf; /* READ_BATCH_PAGES pages */
};

struct ksm_domain;
/* Store pages of a promotion whose reader was given up: it may write them until it ends. */
struct late_pages {
	struct late_pages *next;
	struct ksm_domain *domain;
	u32 spn, nr;
	atomic_bool ended; /* set by the reader, with its last step */
};

struct promote_job {
	struct reader_job job;
	struct target *target;
	const struct store *store;
	u32 spn, nr;
	u64 hva[PROMOTION_PAGES];
	u64 hash[PROMOTION_PAGES]; /* that the content shall have */
	bool ok[PROMOTION_PAGES];  /* it has, and is in the store */
	u8 *buf;		   /* READ_BATCH_PAGES pages */
	struct late_pages *late;   /* told when the job ends after it was given up */
};

/* A file that a VMM has passed: looking at it, reading it and closing it can all hang. */
enum image_work {
	IMAGE_STAT, /* is it a file of pages [offset, + nr), and which? */
	IMAGE_READ, /* these pages, and then which file it is */
	IMAGE_CLOSE,
};

/* A file as it is now: another size or time of change, another file. */
struct image_id {
	u64 dev, ino, size;
	s64 mtime_ns, ctime_ns;
};

#define IMAGE_JOB_PAGES 256
struct image_job {
	struct reader_job job;
	struct target *target; /* who passed it: left alone while this hangs */
	enum image_work what;
	int fd; /* the job's when it is given up, else the caller's; IMAGE_CLOSE closes it */
	u64 offset;
	u32 nr;
	int err;
	struct image_id id;
	u64 hash[IMAGE_JOB_PAGES];
	bool zero[IMAGE_JOB_PAGES];
	u8 *buf; /* IMAGE_JOB_PAGES pages */
};

/*
 * Pages for the kernel to swap out: those of the ranges that are there now. process_madvise() with
 * MADV_PAGEOUT (madvise(2)): what the guest needs comes back by itself, and nothing of its content
 * changes (invariant 1).
 */
#define SWAP_JOB_RANGES 128
struct swap_job {
	struct reader_job job;
	struct target *target;
	u32 nr;
	struct iovec range[SWAP_JOB_RANGES];
	u64 pages; /* that were there, and the kernel was asked for */
	int err;
};

/* Empty, and without a target: jobs are kept and filled anew. */
struct scan_job *scan_job_new(void);
void scan_job_free(struct scan_job *j);
struct hash_job *hash_job_new(void);
void hash_job_free(struct hash_job *j);
/* For at most PROMOTION_PAGES pages; the caller fills in what they are. */
struct promote_job *promote_job_new(void);
void promote_job_free(struct promote_job *j);
struct image_job *image_job_new(void);
void image_job_free(struct image_job *j);
struct swap_job *swap_job_new(void);
void swap_job_free(struct swap_job *j);

#endif
