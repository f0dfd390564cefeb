/* SPDX-License-Identifier: MIT */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "ctl/ctl.h"

void ctl_error(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("ballastctl: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

const char *ctl_bytes(char buf[CTL_CELL_MAX], s64 bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	double v = bytes < 0 ? -(double)bytes : (double)bytes;
	u32 u = 0;

	/* 1023.95 and more would be printed as 1024.0. */
	while (v >= 1023.95 && u + 1 < ARRAY_SIZE(units)) {
		v /= 1024;
		u++;
	}
	if (bytes == 0)
		strcpy(buf, "0");
	else
		snprintf(buf, CTL_CELL_MAX, "%s%.*f %s", bytes < 0 ? "-" : "", u ? 1 : 0, v,
			 units[u]);
	return buf;
}

const char *ctl_safe_text(char *buf, size_t size, const char *s)
{
	size_t n = 0;

	for (; *s && n < size - 1; s++) {
		u8 c = (u8)*s;

		/* C0, DEL, and the C1 controls as UTF-8 writes them (c2 80 to c2 9f). */
		if (c < 0x20 || c == 0x7f || (c == 0xc2 && ((u8)s[1] & 0xe0) == 0x80))
			c = '?';
		else if ((c & 0xc0) == 0x80 && n > 0 && buf[n - 1] == '?')
			continue;
		buf[n++] = (char)c;
	}
	/* No half of a character at the end. */
	if (*s) {
		while (n > 0 && ((u8)buf[n - 1] & 0xc0) == 0x80)
			n--;
		if (n > 0 && ((u8)buf[n - 1] & 0x80))
			n--;
	}
	buf[n] = '\0';
	return buf;
}

void ctl_table_row(struct ctl_table *t, const char *const *cells)
{
	size_t at = (size_t)t->nr_rows * t->nr_columns;
	char(*grown)[CTL_CELL_MAX];

	grown = reallocarray(t->cells, at + t->nr_columns, sizeof(*grown));
	if (!grown) {
		t->failed = true;
		return;
	}
	t->cells = grown;
	for (u32 i = 0; i < t->nr_columns; i++)
		snprintf(t->cells[at + i], CTL_CELL_MAX, "%s", cells[i]);
	t->nr_rows++;
}

/* Columns that @s takes: characters, not bytes. */
static u32 width(const char *s)
{
	u32 n = 0;

	for (; *s; s++)
		n += ((u8)*s & 0xc0) != 0x80;
	return n;
}

int ctl_table_print(const struct ctl_table *t, FILE *out)
{
	u32 *widths = calloc(t->nr_columns, sizeof(*widths));

	if (!widths || t->failed) {
		free(widths);
		ctl_error("out of memory");
		return 1;
	}
	for (u32 i = 0; i < t->nr_rows * t->nr_columns; i++)
		widths[i % t->nr_columns] = MAX(widths[i % t->nr_columns], width(t->cells[i]));
	for (u32 i = 0; i < t->nr_rows * t->nr_columns; i++) {
		u32 column = i % t->nr_columns;
		int pad = (int)(widths[column] - width(t->cells[i]));
		bool last = column + 1 == t->nr_columns;

		if (t->left >> column & 1)
			fprintf(out, "%s%*s", t->cells[i], last ? 0 : pad, "");
		else
			fprintf(out, "%*s%s", pad, "", t->cells[i]);
		fputs(last ? "\n" : "  ", out);
	}
	free(widths);
	return 0;
}

void ctl_table_free(struct ctl_table *t)
{
	free(t->cells);
	t->cells = NULL;
	t->nr_rows = 0;
}

int ctl_print_json(json_t *j)
{
	/* ASCII only, so that no name can carry a control sequence to a terminal. */
	int r = j ? json_dumpf(j, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII) : -1;

	json_decref(j);
	putchar('\n');
	if (r < 0 || fflush(stdout) != 0) {
		ctl_error("cannot write the output");
		return 1;
	}
	return 0;
}
