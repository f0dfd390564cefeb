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

/*
 * Keyed with a secret of this process: a guest that could compute the hash could make any number of
 * pages that collide, and the index slow for all.
 */
extern u8 page_hash_secret[XXH3_SECRET_SIZE_MIN];
int page_hash_init(void); /* once, before the first hash */

static inline u64 page_hash(const void *page)
{
	return XXH3_64bits_withSecret(page, PAGE_BYTES, page_hash_secret, sizeof(page_hash_secret));
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
