/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "common/parse.h"

struct unit {
	const char *name;
	u64 factor;
};

/* The first name of each factor is the one that the *_text() functions write; largest factor
 * last. */
static const struct unit byte_units[] = {
	{ "", 1 },	 { "B", 1 },	       { "KiB", KIB(1) },  { "K", KIB(1) },
	{ "k", KIB(1) }, { "MiB", MIB(1) },    { "M", MIB(1) },	   { "GiB", GIB(1) },
	{ "G", GIB(1) }, { "TiB", GIB(1024) }, { "T", GIB(1024) },
};

static const struct unit duration_units[] = {
	{ "us", 1 },
	{ "ms", 1000 },
	{ "s", 1000000 },
	{ "min", 60 * 1000000 },
	{ "h", (u64)3600 * 1000000 },
};

static const struct unit percent_units[] = { { "", 1 }, { "%", 1 } };

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\v' || c == '\f';
}

static const char *skip_space(const char *s)
{
	while (is_space(*s))
		s++;
	return s;
}

/*
 * Digits of @base from *s on; *s then points after them. An overflow is noticed at the end, so
 * that "99999999999999999999x" is -EINVAL (not a number at all) to its caller, which looks at the
 * rest first.
 */
static int scan_digits(const char **s, unsigned int base, u64 *ret, bool *ret_overflow)
{
	const char *p = *s;
	bool overflow = false;
	u64 n = 0;

	for (; *p >= '0' && *p < (char)('0' + base); p++) {
		if (__builtin_mul_overflow(n, (u64)base, &n) ||
		    __builtin_add_overflow(n, (u64)(*p - '0'), &n))
			overflow = true;
	}
	if (p == *s)
		return -EINVAL;
	*s = p;
	*ret = n;
	*ret_overflow = overflow;
	return 0;
}

static int scan_whole(const char *s, unsigned int base, u64 min, u64 max, u64 *ret)
{
	bool overflow;
	u64 n;
	int r;

	s = skip_space(s);
	r = scan_digits(&s, base, &n, &overflow);
	if (r < 0)
		return r;
	if (*skip_space(s) != '\0')
		return -EINVAL;
	if (overflow || n < min || n > max)
		return -ERANGE;
	*ret = n;
	return 0;
}

int parse_u64(const char *s, u64 min, u64 max, u64 *ret)
{
	return scan_whole(s, 10, min, max, ret);
}

int parse_octal(const char *s, u64 min, u64 max, u64 *ret)
{
	return scan_whole(s, 8, min, max, ret);
}

/* Case matters in units, or "m" could mean milli or mega. */
static const struct unit *find_unit(const struct unit *units, size_t nr, const char *s)
{
	size_t len = strlen(s);

	while (len > 0 && is_space(s[len - 1]))
		len--;
	for (size_t i = 0; i < nr; i++) {
		if (strlen(units[i].name) == len && strncmp(units[i].name, s, len) == 0)
			return &units[i];
	}
	return NULL;
}

/* A number and one of @units. */
static int scan_with_unit(const char *s, const struct unit *units, size_t nr, u64 *ret)
{
	const struct unit *unit;
	bool overflow;
	u64 n;
	int r;

	s = skip_space(s);
	r = scan_digits(&s, 10, &n, &overflow);
	if (r < 0)
		return r;
	unit = find_unit(units, nr, skip_space(s));
	if (!unit)
		return -EINVAL;
	if (overflow || __builtin_mul_overflow(n, unit->factor, &n))
		return -ERANGE;
	*ret = n;
	return 0;
}

int parse_bytes(const char *s, u64 *ret)
{
	return scan_with_unit(s, byte_units, ARRAY_SIZE(byte_units), ret);
}

int parse_duration_us(const char *s, u64 *ret)
{
	u64 zero;

	if (scan_whole(s, 10, 0, 0, &zero) == 0) {
		*ret = 0;
		return 0;
	}
	return scan_with_unit(s, duration_units, ARRAY_SIZE(duration_units), ret);
}

int parse_bool(const char *s, bool *ret)
{
	static const struct {
		const char *word;
		bool value;
	} words[] = {
		{ "on", true },	  { "yes", true }, { "true", true },   { "1", true },
		{ "off", false }, { "no", false }, { "false", false }, { "0", false },
	};
	size_t len;

	s = skip_space(s);
	len = strlen(s);
	while (len > 0 && is_space(s[len - 1]))
		len--;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (strlen(words[i].word) == len && strncasecmp(words[i].word, s, len) == 0) {
			*ret = words[i].value;
			return 0;
		}
	}
	return -EINVAL;
}

int parse_percent_permille(const char *s, u64 *ret)
{
	u64 n, tenths = 0;
	bool overflow;
	int r;

	s = skip_space(s);
	r = scan_digits(&s, 10, &n, &overflow);
	if (r < 0)
		return r;
	if (*s == '.') {
		s++;
		if (*s < '0' || *s > '9')
			return -EINVAL;
		tenths = (u64)(*s++ - '0');
	}
	if (!find_unit(percent_units, ARRAY_SIZE(percent_units), skip_space(s)))
		return -EINVAL;
	if (overflow || __builtin_mul_overflow(n, (u64)10, &n) ||
	    __builtin_add_overflow(n, tenths, &n))
		return -ERANGE;
	*ret = n;
	return 0;
}

/* The largest unit that divides @value: exact, and as short as it gets. */
static const char *text_with_unit(char *buf, const struct unit *units, size_t nr, u64 value)
{
	const struct unit *best = &units[0];

	for (size_t i = 0; i < nr; i++) {
		if (value != 0 && value % units[i].factor == 0 && units[i].factor > best->factor)
			best = &units[i];
	}
	snprintf(buf, PARSE_TEXT_MAX, "%" PRIu64 "%s", value / best->factor, best->name);
	return buf;
}

const char *parse_bytes_text(char buf[PARSE_TEXT_MAX], u64 bytes)
{
	return text_with_unit(buf, byte_units, ARRAY_SIZE(byte_units), bytes);
}

const char *parse_duration_text(char buf[PARSE_TEXT_MAX], u64 us)
{
	return text_with_unit(buf, duration_units, ARRAY_SIZE(duration_units), us);
}

const char *parse_percent_text(char buf[PARSE_TEXT_MAX], u64 permille)
{
	if (permille % 10)
		snprintf(buf, PARSE_TEXT_MAX, "%" PRIu64 ".%" PRIu64, permille / 10, permille % 10);
	else
		snprintf(buf, PARSE_TEXT_MAX, "%" PRIu64, permille / 10);
	return buf;
}
