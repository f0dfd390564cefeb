/* SPDX-License-Identifier: MIT */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/clock.h"
#include "common/log.h"

#define LOG_WINDOW_US 10000000

static enum log_level max_level = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
	max_level = level;
}

static const char *level_word(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERR:
		return "error: ";
	case LOG_LEVEL_WARN:
		return "warning: ";
	case LOG_LEVEL_DEBUG:
		return "debug: ";
	default:
		return "";
	}
}

static void write_line(enum log_level level, const char *fmt, va_list ap)
{
	char line[1024];

	vsnprintf(line, sizeof(line), fmt, ap);
	/* One write a line, so that lines of several threads do not mix. */
	if (getenv("JOURNAL_STREAM"))
		fprintf(stderr, "<%d>%s\n", level, line);
	else
		fprintf(stderr, "%s%s\n", level_word(level), line);
}

void log_write(enum log_level level, const char *fmt, ...)
{
	va_list ap;

	if (level > max_level)
		return;
	va_start(ap, fmt);
	write_line(level, fmt, ap);
	va_end(ap);
}

void log_write_limited(struct log_limit *l, enum log_level level, const char *fmt, ...)
{
	unsigned long long now = now_us();
	va_list ap;

	if (level > max_level)
		return;
	if (now - l->since_us > LOG_WINDOW_US) {
		l->since_us = now;
		l->written = 0;
	}
	if (l->written >= LOG_LIMIT) {
		l->dropped++;
		return;
	}
	l->written++;
	if (l->dropped)
		log_write(LOG_LEVEL_WARN, "%u more such lines were left out", l->dropped);
	l->dropped = 0;
	va_start(ap, fmt);
	write_line(level, fmt, ap);
	va_end(ap);
}
