/* SPDX-License-Identifier: MIT */
/* Child processes of a benchmark: memhosts (memhost.c) that hold memory, each with a pipe in and
 * out. */
#ifndef BALLAST_BENCH_HOST_H
#define BALLAST_BENCH_HOST_H

#include <stdio.h>
#include <sys/types.h>
#include "common/types.h"

struct host {
	pid_t pid;
	FILE *in, *out;
	u64 pages;	    /* that its content touched */
	u64 address, bytes; /* of its memory */
};

struct host_load {
	double ops_per_second;
	u64 p50_ns, p99_ns, max_us;
};

/* The program @name beside this one (all are in $BUILD). */
void bench_program(const char *name, char *buf, size_t size);
/* Starts argv[0] with stdin and stdout on pipes, stderr to the file @log (NULL: inherited) and the
 * environment as it is. */
int child_start(char *const argv[], const char *log, FILE **ret_in, FILE **ret_out, pid_t *ret_pid);
/* Ends it by SIGTERM, after 5 s by SIGKILL, and waits. Who is left at the end of the benchmark is
 * ended so too (atend.h). */
void child_stop(pid_t pid);

/* @load_permille 0: no load. Waits until the memory is filled; no engine knows of it yet. */
int host_start(struct host *h, const char *content, const char *mode, const char *name,
	       u32 load_permille);
/* Offers the memory to the engine that @mode names. */
int host_offer(struct host *h);
int host_load(struct host *h, struct host_load *ret); /* since the last call */
int host_sum(struct host *h, u64 *ret_sum);
/* Writes to the next @nr pages of a random order of every @step-th page, ns each to @ret_ns. */
int host_write(struct host *h, u32 nr, u32 step, u32 pause_us, u32 *ret_ns);
/* A child of it has all its pages too, until host_stop(). Without an engine only. */
int host_fork(struct host *h);
/* Pages that are not what the content and host_write() made them. */
int host_check(struct host *h, u64 *ret_wrong);
void host_stop(struct host *h);

#endif
