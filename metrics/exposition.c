/* SPDX-License-Identifier: MIT */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "metrics/exposition.h"

/* Ballast has some fifty families; the limit is there to be asserted, not to be reached. */
#define FAMILIES_MAX 256
/* Of a histogram, "le" apart. */
#define LABELS_MAX 8

/* The first size of the buffer: what a host with a few VMs needs. */
#define BUFFER_FIRST 16384

struct mx_writer {
	char *text;
	size_t bytes, room;
	bool failed;
	const char *families[FAMILIES_MAX]; /* literals of the callers; the last is the open one */
	u32 nr_families;
};

struct mx_writer *mx_new(void)
{
	return calloc(1, sizeof(struct mx_writer));
}

void mx_free(struct mx_writer *w)
{
	if (!w)
		return;
	free(w->text);
	free(w);
}

void mx_fail(struct mx_writer *w)
{
	w->failed = true;
}

static void put(struct mx_writer *w, const char *s, size_t n)
{
	size_t room = w->room ?: BUFFER_FIRST;
	char *text;

	if (w->failed)
		return;
	while (room - w->bytes < n)
		room *= 2;
	if (room != w->room) {
		text = realloc(w->text, room);
		if (!text) {
			w->failed = true;
			return;
		}
		w->text = text;
		w->room = room;
	}
	memcpy(w->text + w->bytes, s, n);
	w->bytes += n;
}

static void put_str(struct mx_writer *w, const char *s)
{
	put(w, s, strlen(s));
}

/* The length of the valid UTF-8 character at @s, 0 if there is none: RFC 3629, so without overlong
 * forms, surrogates, and what lies past U+10FFFF. The terminating NUL ends every sequence. */
static size_t utf8_length(const unsigned char *s)
{
	/* What the second byte may be, by the first one. */
	unsigned char low = 0x80, high = 0xbf;
	size_t n, i;

	if (s[0] < 0x80)
		return 1;
	if (s[0] >= 0xc2 && s[0] <= 0xdf)
		n = 2;
	else if (s[0] >= 0xe0 && s[0] <= 0xef)
		n = 3;
	else if (s[0] >= 0xf0 && s[0] <= 0xf4)
		n = 4;
	else
		return 0;
	if (s[0] == 0xe0)
		low = 0xa0;
	else if (s[0] == 0xed)
		high = 0x9f;
	else if (s[0] == 0xf0)
		low = 0x90;
	else if (s[0] == 0xf4)
		high = 0x8f;
	if (s[1] < low || s[1] > high)
		return 0;
	for (i = 2; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

/* The next character of @s, or what stands for it. Returns the bytes of @s that it takes. */
static size_t next_char(const char *s, const char **ret_char, size_t *ret_bytes)
{
	size_t n = utf8_length((const unsigned char *)s);

	*ret_char = n ? s : "\xef\xbf\xbd"; /* U+FFFD */
	*ret_bytes = n ?: 3;
	return n ?: 1;
}

void mx_clean(char *dst, size_t dst_bytes, const char *src)
{
	const char *c;
	size_t n, used, done = 0;

	while (*src) {
		used = next_char(src, &c, &n);
		if (done + n >= dst_bytes)
			break;
		memcpy(dst + done, c, n);
		done += n;
		src += used;
	}
	if (dst_bytes)
		dst[done] = '\0';
}

static void put_escaped(struct mx_writer *w, const char *s, bool quote)
{
	const char *c;
	size_t n;

	while (*s) {
		s += next_char(s, &c, &n);
		if (*c == '\n')
			put(w, "\\n", 2);
		else if (*c == '\\' || (quote && *c == '"')) {
			put(w, "\\", 1);
			put(w, c, 1);
		} else
			put(w, c, n);
	}
}

/* [a-zA-Z_][a-zA-Z0-9_]*: of a metric and of a label. Colons are left to recording rules. */
static bool name_valid(const char *s)
{
	static const char digits[] = "0123456789";
	static const char all[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";

	return *s && !strchr(digits, *s) && s[strspn(s, all)] == '\0';
}

static bool ends_in_total(const char *name)
{
	size_t n = strlen(name);

	return n >= 6 && !strcmp(name + n - 6, "_total");
}

void mx_family(struct mx_writer *w, const char *name, enum mx_type type, const char *help)
{
	static const char *const types[] = {
		[MX_GAUGE] = " gauge\n",
		[MX_COUNTER] = " counter\n",
		[MX_HISTOGRAM] = " histogram\n",
	};
	u32 i;

	assert(name_valid(name));
	assert(ends_in_total(name) == (type == MX_COUNTER));
	assert(w->nr_families < FAMILIES_MAX);
	for (i = 0; i < w->nr_families; i++)
		assert(strcmp(w->families[i], name) != 0);
	w->families[w->nr_families++] = name;

	put_str(w, "# HELP ");
	put_str(w, name);
	put_str(w, " ");
	put_escaped(w, help, false);
	put_str(w, "\n# TYPE ");
	put_str(w, name);
	put_str(w, types[type]);
}

/* @suffix: of the family's name. */
static void put_sample(struct mx_writer *w, const char *suffix, const struct mx_label *labels,
		       u32 nr_labels, const char *value)
{
	bool open = false;
	u32 i;

	assert(w->nr_families > 0);
	put_str(w, w->families[w->nr_families - 1]);
	put_str(w, suffix);
	for (i = 0; i < nr_labels; i++) {
		assert(name_valid(labels[i].name));
		/* For Prometheus an empty label and none are the same. */
		if (!labels[i].value || !*labels[i].value)
			continue;
		put_str(w, open ? "," : "{");
		open = true;
		put_str(w, labels[i].name);
		put_str(w, "=\"");
		put_escaped(w, labels[i].value, true);
		put_str(w, "\"");
	}
	put_str(w, open ? "} " : " ");
	put_str(w, value);
	put_str(w, "\n");
}

void mx_sample_u64(struct mx_writer *w, const struct mx_label *labels, u32 nr_labels, u64 value)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	put_sample(w, "", labels, nr_labels, text);
}

static void f64_text(double value, char text[40])
{
	if (isnan(value))
		strcpy(text, "NaN");
	else if (isinf(value))
		strcpy(text, value > 0 ? "+Inf" : "-Inf");
	else {
		/* 15 digits print what people wrote ("0.1"), 17 print every double exactly. */
		snprintf(text, 40, "%.15g", value);
		if (strtod(text, NULL) != value)
			snprintf(text, 40, "%.17g", value);
	}
}

void mx_sample_f64(struct mx_writer *w, const struct mx_label *labels, u32 nr_labels, double value)
{
	char text[40];

	f64_text(value, text);
	put_sample(w, "", labels, nr_labels, text);
}

void mx_histogram(struct mx_writer *w, const struct mx_label *labels, u32 nr_labels,
		  const u64 *counts, const double *bounds, u32 nr, double sum)
{
	struct mx_label all[LABELS_MAX + 1];
	char text[40], le[40];
	u64 count = 0;
	u32 i;

	assert(nr_labels <= LABELS_MAX);
	for (i = 0; i < nr_labels; i++)
		all[i] = labels[i];
	all[nr_labels] = (struct mx_label){ "le", le };
	for (i = 0; i < nr; i++) {
		count += counts[i];
		f64_text(i + 1 < nr ? bounds[i] : INFINITY, le);
		snprintf(text, sizeof(text), "%" PRIu64, count);
		put_sample(w, "_bucket", all, nr_labels + 1, text);
	}
	put_sample(w, "_count", labels, nr_labels, text);
	f64_text(sum, text);
	put_sample(w, "_sum", labels, nr_labels, text);
}

int mx_finish(struct mx_writer *w, const char **ret_text, size_t *ret_bytes)
{
	if (w->failed)
		return -ENOMEM;
	*ret_text = w->text ?: "";
	*ret_bytes = w->bytes;
	return 0;
}
