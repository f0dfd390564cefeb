/* SPDX-License-Identifier: MIT */
/*
 * common/parse.c. The first 8 bytes are a number, the rest is a text.
 *
 * Properties: each parser agrees with a plain second opinion (naive.* below) on what it accepts, a
 * refused text leaves the result alone, and what the *_text() functions write is read back to the
 * same value, for every value there is.
 */
#include <ctype.h>
#include <errno.h>
#include "common/parse.h"
#include "tests/fuzz/fuzz.h"

#define UNTOUCHED 0x5a5a5a5a5a5a5a5aULL

static const char *skip_space(const char *s)
{
	return s + strspn(s, " \t\r\n\v\f");
}

/* Digits, then one of @units. A number that does not fit in 64 bits stays so while more digits
 * come. */
static int naive(const char *s, unsigned int base, const char *const *units, const u64 *factors,
		 u64 *ret)
{
	unsigned __int128 n = 0;
	size_t len;

	s = skip_space(s);
	if (*s < '0' || *s >= (char)('0' + base))
		return -EINVAL;
	for (; *s >= '0' && *s < (char)('0' + base); s++)
		n = n >> 64 ? n : n * base + (unsigned int)(*s - '0');
	s = skip_space(s);
	len = strcspn(s, " \t\r\n\v\f");
	if (*skip_space(s + len))
		return -EINVAL;
	for (size_t i = 0; units[i]; i++) {
		if (strlen(units[i]) != len || memcmp(units[i], s, len) != 0)
			continue;
		if (n >> 64 || (n * factors[i]) >> 64)
			return -ERANGE;
		*ret = (u64)(n * factors[i]);
		return 0;
	}
	return -EINVAL;
}

static const char *const no_units[] = { "", NULL };
static const u64 no_factors[] = { 1 };
static const char *const byte_units[] = { "",	 "B", "k",   "K", "KiB", "M",
					  "MiB", "G", "GiB", "T", "TiB", NULL };
static const u64 byte_factors[] = { 1,	     1,	      1 << 10, 1 << 10,	  1 << 10,  1 << 20,
				    1 << 20, 1 << 30, 1 << 30, GIB(1024), GIB(1024) };
static const char *const time_units[] = { "us", "ms", "s", "min", "h", NULL };
static const u64 time_factors[] = { 1, 1000, 1000000, 60000000, 3600000000 };

/* A bare 0 is a duration, any other bare number is none. */
static int naive_duration(const char *s, u64 *ret)
{
	u64 n;
	int r = naive(s, 10, no_units, no_factors, &n);

	if (r == 0 && n == 0)
		*ret = 0;
	return r == 0 && n == 0 ? 0 : naive(s, 10, time_units, time_factors, ret);
}

static void must_agree(int r, u64 value, int naive_r, u64 naive_value)
{
	MUST(r == naive_r);
	MUST(value == (r == 0 ? naive_value : UNTOUCHED));
}

static void try_text(const char *s)
{
	char text[PARSE_TEXT_MAX];
	u64 v = UNTOUCHED, w = 0, again;
	bool b = true;
	int r, naive_r;

	r = parse_bytes(s, &v);
	naive_r = naive(s, 10, byte_units, byte_factors, &w);
	must_agree(r, v, naive_r, w);
	if (r == 0)
		MUST(parse_bytes(parse_bytes_text(text, v), &again) == 0 && again == v);

	v = UNTOUCHED;
	r = parse_duration_us(s, &v);
	naive_r = naive_duration(s, &w);
	must_agree(r, v, naive_r, w);
	if (r == 0)
		MUST(parse_duration_us(parse_duration_text(text, v), &again) == 0 && again == v);

	v = UNTOUCHED;
	r = parse_u64(s, 0, UINT64_MAX, &v);
	naive_r = naive(s, 10, no_units, no_factors, &w);
	must_agree(r, v, naive_r, w);
	v = UNTOUCHED;
	r = parse_u64(s, 10, 1000, &v);
	MUST(r == 0 ? v >= 10 && v <= 1000 : v == UNTOUCHED);
	v = UNTOUCHED;
	r = parse_octal(s, 0, UINT64_MAX, &v);
	naive_r = naive(s, 8, no_units, no_factors, &w);
	must_agree(r, v, naive_r, w);

	v = UNTOUCHED;
	r = parse_percent_permille(s, &v);
	MUST(r == 0 || v == UNTOUCHED);
	if (r == 0)
		MUST(parse_percent_permille(parse_percent_text(text, v), &again) == 0 &&
		     again == v);
	/* What has no decimal is a whole number and perhaps a sign. */
	if (!strpbrk(s, ".%") && parse_u64(s, 0, UINT64_MAX / 10, &w) == 0)
		MUST(r == 0 && v == w * 10);

	r = parse_bool(s, &b);
	MUST(r == 0 || (r == -EINVAL && b));
}

static void try_number(u64 n)
{
	char text[PARSE_TEXT_MAX];
	u64 again = 0;

	MUST(strlen(parse_bytes_text(text, n)) < sizeof(text));
	MUST(parse_bytes(text, &again) == 0 && again == n);
	MUST(strlen(parse_duration_text(text, n)) < sizeof(text));
	MUST(parse_duration_us(text, &again) == 0 && again == n);
	MUST(strlen(parse_percent_text(text, n)) < sizeof(text));
	MUST(parse_percent_permille(text, &again) == 0 && again == n);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = { data, data + size };
	u64 n = input_u64(&in);
	char *s;

	if (size > 4096)
		return 0;
	try_number(n);
	/* Numbers that have units, too. */
	try_number(n % 1000 * byte_factors[n % ARRAY_SIZE(byte_factors)]);
	try_number(n % 1000 * time_factors[n % ARRAY_SIZE(time_factors)]);
	s = malloc(input_left(&in) + 1);
	MUST(s);
	s[input_left(&in)] = '\0';
	memcpy(s, in.at, input_left(&in));
	try_text(s);
	free(s);
	return 0;
}
