/* SPDX-License-Identifier: MIT */
/*
 * Numbers as people write them, for configuration files and command lines. Each function takes the
 * whole of @s (white space before and after it is allowed, anything else is not) and returns 0,
 * -EINVAL (not of this form) or -ERANGE (of this form, but too large or outside [min, max]).
 * Nothing here depends on the locale.
 */
#ifndef BALLAST_COMMON_PARSE_H
#define BALLAST_COMMON_PARSE_H

#include "common/types.h"

/* What each parser accepts, in the words of an error message. */
#define PARSE_BYTES_ACCEPTS    "a size such as 512M or 64GiB"
#define PARSE_DURATION_ACCEPTS "a duration with its unit, such as 500ms, 2s or 5min"
#define PARSE_BOOL_ACCEPTS     "on or off"
#define PARSE_PERCENT_ACCEPTS  "a percentage with at most one decimal, such as 5 or 2.5"

/* Decimal, no sign. */
int parse_u64(const char *s, u64 min, u64 max, u64 *ret);
/* Octal digits, as chmod(1) takes them. */
int parse_octal(const char *s, u64 min, u64 max, u64 *ret);
/* "512", "64k", "64KiB", "1G", "1 GiB", ...: powers of 1024. KB, MB and GB are refused, since
 * half of the world reads them as powers of 1000. */
int parse_bytes(const char *s, u64 *ret);
/* "100us", "500ms", "2s", "5min", "1h". A bare number is refused (seconds or milliseconds?),
 * except 0. */
int parse_duration_us(const char *s, u64 *ret);
/* on, yes, true, 1; off, no, false, 0. Case does not matter. */
int parse_bool(const char *s, bool *ret);
/* "5", "5%", "2.5", "2.5 %": tenths of a percent. */
int parse_percent_permille(const char *s, u64 *ret);

/* The other way round, exactly: what they write, the parser above reads back to the same value.
 * Enough room: PARSE_TEXT_MAX. Return @buf. */
#define PARSE_TEXT_MAX 32
const char *parse_bytes_text(char buf[PARSE_TEXT_MAX], u64 bytes);
const char *parse_duration_text(char buf[PARSE_TEXT_MAX], u64 us);
const char *parse_percent_text(char buf[PARSE_TEXT_MAX], u64 permille);

#endif
