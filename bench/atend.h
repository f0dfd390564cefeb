/* SPDX-License-Identifier: MIT */
/*
 * What a benchmark changed on the host is put back however the benchmark ends: from main(), by
 * exit(), by a signal, by its time-out. Only SIGKILL is beyond it.
 */
#ifndef BALLAST_BENCH_ATEND_H
#define BALLAST_BENCH_ATEND_H

#include "common/types.h"

/* @fn runs at the end, the latest first; the second call for a function does nothing. It may run in
 * a signal handler: system calls only, and it must be harmless when there is nothing to put back.
 */
void at_end(void (*fn)(void));
/* The end comes after @seconds at the latest, with one line that says so. */
void end_after(u32 seconds);

#endif
