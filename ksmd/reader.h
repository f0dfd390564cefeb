/* SPDX-License-Identifier: MIT */
/*
 * Threads that look into VMMs, so that the daemon's own thread never does.
 *
 * Reading another process's memory can hang: a hostile VMM can make a page that never resolves
 * (userfaultfd, a FUSE file). So such calls run here with a time limit. A reader that exceeds it is
 * given up: it keeps its job and ends when the kernel lets go of it (at the latest when the VMM
 * dies), and a new thread takes its place.
 */
#ifndef BALLAST_KSMD_READER_H
#define BALLAST_KSMD_READER_H

#include <stdatomic.h>
#include "common/types.h"

/* A job is allocated by the caller, embedded at the start of a larger struct. */
struct reader_job {
	void (*run)(struct reader_job *job); /* on a reader thread; touches nothing but the job */
	void (*free)(struct reader_job *job);
	atomic_int stage; /* set by run() as it goes: says, if it hangs, where */
};

struct reader_pool;
int reader_pool_new(u32 nr_threads, struct reader_pool **ret);
void reader_pool_free(struct reader_pool *p); /* waits for idle readers only; hung ones end by
						 themselves, if ever */
u32 reader_pool_threads(const struct reader_pool *p);

/*
 * Runs all jobs, side by side, and waits. 0: all are done, and the caller owns them again.
 * -ETIMEDOUT: some hang and are given up (freed when they end): jobs[i] is NULL for each of them;
 * others may not have run. *ret_stage: the stage of one that hangs.
 */
int reader_run(struct reader_pool *p, struct reader_job **jobs, u32 nr, u64 timeout_us,
	       int *ret_stage);

u64 reader_pool_given_up(const struct reader_pool *p); /* readers lost so, in all */

#endif
