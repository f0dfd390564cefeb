/* SPDX-License-Identifier: MIT */
/* Page arithmetic and the few macros that every folder needs. */
#ifndef BALLAST_COMMON_TYPES_H
#define BALLAST_COMMON_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

/* Ballast runs on x86-64 only, where a base page is 4 KiB and a PMD maps 2 MiB. */
#define PAGE_SHIFT	      12
#define PAGE_BYTES	      (1UL << PAGE_SHIFT)
#define PAGE_MASK_LOW	      (PAGE_BYTES - 1)
#define CHUNK_SHIFT	      21
#define CHUNK_BYTES	      (1UL << CHUNK_SHIFT)
#define CHUNK_PAGES	      (CHUNK_BYTES >> PAGE_SHIFT)

#define KIB(n)		      ((u64)(n) << 10)
#define MIB(n)		      ((u64)(n) << 20)
#define GIB(n)		      ((u64)(n) << 30)

#define ARRAY_SIZE(a)	      (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)	      ((a) < (b) ? (a) : (b))
#define MAX(a, b)	      ((a) > (b) ? (a) : (b))
#define ROUND_DOWN(x, to)     ((x) & ~((u64)(to)-1))
#define ROUND_UP(x, to)	      (((x) + (u64)(to)-1) & ~((u64)(to)-1))
#define DIV_ROUND_UP(x, by)   (((x) + (by)-1) / (by))
#define container_of(p, T, m) ((T *)((char *)(p)-offsetof(T, m)))

static inline bool page_aligned(u64 x)
{
	return (x & PAGE_MASK_LOW) == 0;
}

#endif
