/* SPDX-License-Identifier: MIT */
/* The hash of a page: XXH3, 64 bits, by the fastest code that this CPU has (libxxhash chooses at
 * run time). */
#ifndef BALLAST_KSMD_HASH_H
#define BALLAST_KSMD_HASH_H

#include <string.h>
#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#endif
#include "common/types.h"

static inline u64 page_hash(const void *page)
{
	return XXH3_64bits(page, PAGE_BYTES);
}

/* Most pages that are not zero differ in their first bytes, so this is nearly free. */
static inline bool page_is_zero(const void *page)
{
	const u8 *p = page;
	u64 first;

	memcpy(&first, p, sizeof(first));
	return first == 0 && memcmp(p, p + sizeof(first), PAGE_BYTES - sizeof(first)) == 0;
}

#endif
