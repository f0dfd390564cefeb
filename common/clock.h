/* SPDX-License-Identifier: MIT */
/* Clocks, mostly in microseconds. */
#ifndef BALLAST_COMMON_CLOCK_H
#define BALLAST_COMMON_CLOCK_H

#include <time.h>
#include "common/types.h"

static inline u64 clock_us(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return (u64)t.tv_sec * 1000000 + (u64)t.tv_nsec / 1000;
}

static inline u64 now_us(void)
{
	return clock_us(CLOCK_MONOTONIC);
}

static inline u64 now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

/* CPU time of the calling thread; of all threads of the process. */
static inline u64 thread_cpu_us(void)
{
	return clock_us(CLOCK_THREAD_CPUTIME_ID);
}

static inline u64 process_cpu_us(void)
{
	return clock_us(CLOCK_PROCESS_CPUTIME_ID);
}

#endif
