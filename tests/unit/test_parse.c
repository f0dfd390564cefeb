/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include "common/parse.h"

#define UNTOUCHED 0x5a5a5a5a5a5a5a5aULL

struct row {
	const char *text;
	int result;
	u64 value;
};

/* A failing parser must leave its output alone, so each row is tried on a known pattern. */
static void try_rows(const char *what, int (*parse)(const char *, u64 *), const struct row *rows,
		     size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		u64 expect = rows[i].result == 0 ? rows[i].value : UNTOUCHED;
		u64 value = UNTOUCHED;
		int r = parse(rows[i].text, &value);

		cr_expect(r == rows[i].result && value == expect,
			  "%s(\"%s\"): %d, %" PRIu64 "; expected %d, %" PRIu64, what, rows[i].text,
			  r, value, rows[i].result, expect);
	}
}

Test(parse, bytes)
{
	static const struct row rows[] = {
		{ "0", 0, 0 },
		{ "1", 0, 1 },
		{ "4096B", 0, 4096 },
		{ "1k", 0, 1024 },
		{ "1K", 0, 1024 },
		{ "1KiB", 0, 1024 },
		{ "3M", 0, MIB(3) },
		{ "3MiB", 0, MIB(3) },
		{ "64GiB", 0, GIB(64) },
		{ "64 G", 0, GIB(64) },
		{ " \t2TiB \n", 0, GIB(2048) },
		{ "18446744073709551615", 0, UINT64_MAX },
		{ "18446744073709551616", -ERANGE, 0 },
		{ "16777215T", 0, 16777215ULL << 40 },
		{ "16777216T", -ERANGE, 0 },
		{ "99999999999999999999999", -ERANGE, 0 },
		{ "99999999999999999999999x", -EINVAL, 0 },
		{ "", -EINVAL, 0 },
		{ " ", -EINVAL, 0 },
		{ "M", -EINVAL, 0 },
		{ "-1", -EINVAL, 0 },
		{ "+1", -EINVAL, 0 },
		{ "0x10", -EINVAL, 0 },
		{ "1.5G", -EINVAL, 0 },
		{ "1KB", -EINVAL, 0 }, /* 1000 or 1024? */
		{ "1GB", -EINVAL, 0 },
		{ "1m", -EINVAL, 0 },
		{ "1gib", -EINVAL, 0 },
		{ "1 G i", -EINVAL, 0 },
		{ "1G 2", -EINVAL, 0 },
		{ "5\xff", -EINVAL, 0 },
	};

	try_rows("parse_bytes", parse_bytes, rows, ARRAY_SIZE(rows));
}

Test(parse, durations)
{
	static const struct row rows[] = {
		{ "0", 0, 0 },
		{ "00", 0, 0 },
		{ "0s", 0, 0 },
		{ "7us", 0, 7 },
		{ "500ms", 0, 500000 },
		{ "2s", 0, 2000000 },
		{ "2 s", 0, 2000000 },
		{ "5min", 0, 300000000 },
		{ "1h", 0, 3600000000 },
		{ "1", -EINVAL, 0 }, /* seconds or milliseconds? */
		{ "1m", -EINVAL, 0 },
		{ "s", -EINVAL, 0 },
		{ "", -EINVAL, 0 },
		{ "-1s", -EINVAL, 0 },
		{ "1.5s", -EINVAL, 0 },
		{ "1S", -EINVAL, 0 },
		{ "1s2", -EINVAL, 0 },
		{ "18446744073709551615us", 0, UINT64_MAX },
		{ "18446744073709551615ms", -ERANGE, 0 },
		{ "5124095577h", -ERANGE, 0 },
	};

	try_rows("parse_duration_us", parse_duration_us, rows, ARRAY_SIZE(rows));
}

Test(parse, percent)
{
	static const struct row rows[] = {
		{ "0", 0, 0 },
		{ "5", 0, 50 },
		{ "5%", 0, 50 },
		{ "5 %", 0, 50 },
		{ "0.1", 0, 1 },
		{ "12.5%", 0, 125 },
		{ "1600", 0, 16000 },
		{ "2.55", -EINVAL, 0 },
		{ "2.", -EINVAL, 0 },
		{ ".5", -EINVAL, 0 },
		{ "2,5", -EINVAL, 0 },
		{ "5%%", -EINVAL, 0 },
		{ "%", -EINVAL, 0 },
		{ "-5", -EINVAL, 0 },
		{ "", -EINVAL, 0 },
		{ "1844674407370955161.5", 0, UINT64_MAX },
		{ "1844674407370955161.6", -ERANGE, 0 },
	};

	try_rows("parse_percent_permille", parse_percent_permille, rows, ARRAY_SIZE(rows));
}

static int parse_8_to_64(const char *s, u64 *ret)
{
	return parse_u64(s, 8, 64, ret);
}

static int parse_mode(const char *s, u64 *ret)
{
	return parse_octal(s, 0600, 0777, ret);
}

Test(parse, ranges)
{
	static const struct row decimal[] = {
		{ "8", 0, 8 },	      { "64", 0, 64 },
		{ " 010 ", 0, 10 },   { "7", -ERANGE, 0 },
		{ "65", -ERANGE, 0 }, { "18446744073709551626", -ERANGE, 0 }, /* 2^64 + 10 */
		{ "8a", -EINVAL, 0 }, { "-8", -EINVAL, 0 },
		{ "", -EINVAL, 0 },
	};
	static const struct row octal[] = {
		{ "0600", 0, 0600 },	{ "777", 0, 0777 },	{ "0577", -ERANGE, 0 },
		{ "1777", -ERANGE, 0 }, { "0680", -EINVAL, 0 }, { "0x1ff", -EINVAL, 0 },
	};

	try_rows("parse_u64", parse_8_to_64, decimal, ARRAY_SIZE(decimal));
	try_rows("parse_octal", parse_mode, octal, ARRAY_SIZE(octal));
}

Test(parse, booleans)
{
	static const char *const yes[] = { "on", "yes", "true", "1", " ON ", "True", "YES\n" };
	static const char *const no[] = { "off", "no", "false", "0", "Off", "\tfalse" };
	static const char *const bad[] = { "", " ", "o", "onn", "2", "enabled", "on off", "-1" };

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		bool b = false;

		cr_expect(parse_bool(yes[i], &b) == 0 && b, "%s", yes[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(no); i++) {
		bool b = true;

		cr_expect(parse_bool(no[i], &b) == 0 && !b, "%s", no[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		bool t = true, f = false;

		cr_expect(parse_bool(bad[i], &t) == -EINVAL && t, "%s", bad[i]);
		cr_expect(parse_bool(bad[i], &f) == -EINVAL && !f, "%s", bad[i]);
	}
}

Test(parse, text_is_read_back)
{
	static const u64 values[] = {
		0,	   1,	     999,	 1000,	   1023,	1024,	    4095,
		500000,	   60000000, 3600000000, MIB(512), GIB(64) + 1, GIB(16384), UINT64_MAX - 15,
		UINT64_MAX
	};
	char buf[PARSE_TEXT_MAX];
	u64 back;

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		cr_expect(parse_bytes(parse_bytes_text(buf, values[i]), &back) == 0);
		cr_expect_eq(back, values[i], "%s", buf);
		cr_expect(parse_duration_us(parse_duration_text(buf, values[i]), &back) == 0);
		cr_expect_eq(back, values[i], "%s", buf);
		cr_expect(parse_percent_permille(parse_percent_text(buf, values[i]), &back) == 0);
		cr_expect_eq(back, values[i], "%s", buf);
	}
	cr_expect_str_eq(parse_bytes_text(buf, GIB(64)), "64GiB");
	cr_expect_str_eq(parse_bytes_text(buf, 1536), "1536");
	cr_expect_str_eq(parse_duration_text(buf, 90000000), "90s");
	cr_expect_str_eq(parse_duration_text(buf, 300000000), "5min");
	cr_expect_str_eq(parse_percent_text(buf, 55), "5.5");
}
