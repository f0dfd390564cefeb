/* SPDX-License-Identifier: MIT */
/* What kinds of values there are: how each is parsed, checked and printed. */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "daemon/config_table.h"

static int number_count(const char *s, u64 *ret)
{
	return parse_u64(s, 0, UINT64_MAX, ret);
}

static const char *count_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	snprintf(buf, PARSE_TEXT_MAX, "%" PRIu64, value);
	return buf;
}

/* 0 is a number like others for the parser, and a word for people. */
static int number_or_word_off(const char *s, int (*number)(const char *s, u64 *ret), u64 *ret)
{
	bool on;

	if (parse_bool(s, &on) == 0 && !on) {
		*ret = 0;
		return 0;
	}
	return number(s, ret);
}

static int number_or_off(const char *s, u64 *ret)
{
	return number_or_word_off(s, number_count, ret);
}

static const char *or_off_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	return value ? count_text(buf, value) : "off";
}

static int number_bytes_or_off(const char *s, u64 *ret)
{
	return number_or_word_off(s, parse_bytes, ret);
}

static const char *bytes_or_off_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	return value ? parse_bytes_text(buf, value) : "off";
}

static int number_mode(const char *s, u64 *ret)
{
	return parse_octal(s, 0, UINT64_MAX, ret);
}

static const char *mode_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	snprintf(buf, PARSE_TEXT_MAX, "0%" PRIo64, value);
	return buf;
}

static int number_bool(const char *s, u64 *ret)
{
	bool value;
	int r = parse_bool(s, &value);

	if (r == 0)
		*ret = value;
	return r;
}

static const char *bool_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	return value ? "on" : "off";
}

static int check_path(const char *s)
{
	return s[0] == '/' ? 0 : -EINVAL;
}

static int check_qmp(const char *s)
{
	return strcmp(s, CONFIG_QMP_AUTO) == 0 || strcmp(s, CONFIG_QMP_OFF) == 0 ? 0
										 : check_path(s);
}

static int check_path_or_none(const char *s)
{
	return strcmp(s, CONFIG_NONE) == 0 ? 0 : check_path(s);
}

static int check_address(const char *s)
{
	struct in6_addr a;

	return inet_pton(AF_INET, s, &a) == 1 || inet_pton(AF_INET6, s, &a) == 1 ? 0 : -EINVAL;
}

/* A domain's name becomes part of file names and of metric labels. */
static int check_domain(const char *s)
{
	static const char set[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

	return s[0] != '\0' && s[0] != '.' && s[strspn(s, set)] == '\0' ? 0 : -EINVAL;
}

static const struct word log_words[] = { { "info", 0 }, { "debug", 1 }, { 0 } };
static const struct word mode_words[] = {
	{ "observe", POLICY_OBSERVE },
	{ "act", POLICY_ACT },
	{ "off", POLICY_OFF },
	{ "on", POLICY_ACT },
	{ 0 },
};
static const struct word resort_words[] = { { "none", 0 }, { "below-min", 1 }, { 0 } };
static const struct word share_words[] = {
	{ "on", SHARE_ON },
	{ "off", SHARE_OFF },
	{ "zero-only", SHARE_ZERO_ONLY },
	{ "yes", SHARE_ON },
	{ "no", SHARE_OFF },
	{ "true", SHARE_ON },
	{ "false", SHARE_OFF },
	{ 0 },
};

const struct value_type type_bool = {
	.accepts = PARSE_BOOL_ACCEPTS,
	.number = number_bool,
	.number_text = bool_text,
};
const struct value_type type_log = {
	.accepts = "info or debug",
	.words = log_words,
};
const struct value_type type_share = {
	.accepts = "on, off or zero-only",
	.words = share_words,
};
const struct value_type type_policy_mode = {
	.accepts = "off, observe or act",
	.words = mode_words,
};
const struct value_type type_resort = {
	.accepts = "none or below-min",
	.words = resort_words,
};
const struct value_type type_bytes_or_off = {
	.accepts = "a size such as 512MiB or 4G, or off",
	.number = number_bytes_or_off,
	.zero_is_off = true,
	.number_text = bytes_or_off_text,
};
const struct value_type type_path_or_none = {
	.accepts = "an absolute path, or none",
	.check = check_path_or_none,
};
const struct value_type type_count = {
	.accepts = "a whole number",
	.number = number_count,
	.number_text = count_text,
};
const struct value_type type_count_or_off = {
	.accepts = "a whole number, or off",
	.number = number_or_off,
	.number_text = or_off_text,
};
const struct value_type type_mode = {
	.accepts = "an octal file mode such as 0660",
	.number = number_mode,
	.number_text = mode_text,
};
const struct value_type type_percent = {
	.accepts = PARSE_PERCENT_ACCEPTS,
	.number = parse_percent_permille,
	.number_text = parse_percent_text,
};
const struct value_type type_duration = {
	.accepts = PARSE_DURATION_ACCEPTS,
	.number = parse_duration_us,
	.number_text = parse_duration_text,
};
const struct value_type type_bytes = {
	.accepts = PARSE_BYTES_ACCEPTS,
	.number = parse_bytes,
	.number_text = parse_bytes_text,
};
const struct value_type type_path = {
	.accepts = "an absolute path",
	.check = check_path,
};
const struct value_type type_qmp = {
	.accepts = "an absolute path, auto or off",
	.check = check_qmp,
};
const struct value_type type_address = {
	.accepts =
		"an IPv4 or IPv6 address such as 127.0.0.1 or ::1 (host names are not looked up)",
	.check = check_address,
};
const struct value_type type_user = {
	.accepts = "a user name or number, or any",
	.check = check_domain,
};
const struct value_type type_domain = {
	.accepts = "a domain name made of A-Z a-z 0-9 . _ - that does not begin with a dot",
	.check = check_domain,
};

const char *config_word(const struct word *words, u64 value)
{
	for (; words->word; words++)
		if (words->value == value)
			return words->word;
	return "?";
}

const char *share_mode_name(enum share_mode m)
{
	return config_word(share_words, m);
}

const char *policy_mode_name(enum policy_mode m)
{
	return config_word(mode_words, m);
}
