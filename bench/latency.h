/* SPDX-License-Identifier: MIT */
/* Times in classes of an eighth of a power of two, from 1 ns to 2^40 ns. */
#ifndef BALLAST_BENCH_LATENCY_H
#define BALLAST_BENCH_LATENCY_H

#include "common/types.h"

#define LATENCY_CLASSES (40 * 8)

static inline u32 latency_class(u64 ns)
{
	u32 log;

	if (ns < 8)
		return (u32)ns;
	log = 63 - (u32)__builtin_clzll(ns);
	return MIN(log * 8 + (u32)((ns >> (log - 3)) & 7), (u32)LATENCY_CLASSES - 1);
}

/* The least that is in it. */
static inline u64 latency_class_ns(u32 c)
{
	return c < 24 ? c : (u64)(8 + c % 8) << (c / 8 - 3);
}

#endif
