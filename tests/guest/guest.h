/* SPDX-License-Identifier: MIT */
/*
 * What the programs inside the test guest share: page contents that can be predicted from a key,
 * and parameters from the kernel command line ("ballast.NAME=N", the only way into a guest without
 * devices).
 */
#ifndef BALLAST_TESTS_GUEST_H
#define BALLAST_TESTS_GUEST_H

#include "common/types.h"

#define PAGE_WORDS (PAGE_BYTES / sizeof(u64))

/* Key 0 is the zero page; any other key is a page of pseudo-random words that no other key has. */
#define CONTENT_ZERO 0

u64 content_mix(u64 x);
u64 content_word(u64 key, u32 word);
void content_fill(u64 *page, u64 key);

/* The decimal value of "@name=" on the kernel command line, or @dflt. */
u64 guest_param(const char *name, u64 dflt);

/* Anonymous memory; a guest that cannot have it dies loudly, as a test would mean nothing then. */
void *guest_alloc(u64 bytes);
void guest_die(const char *what) __attribute__((noreturn));

#endif
