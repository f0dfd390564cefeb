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

void log_write_limited(enum log_level level, const char *fmt, ...)
{
	static u64 since_us;
	static u32 written, dropped;
	u64 now = now_us();
	va_list ap;

	if (level > max_level)
		return;
	if (now - since_us > LOG_WINDOW_US) {
		since_us = now;
		written = 0;
	}
	if (written >= LOG_LIMIT) {
		dropped++;
		return;
	}
	written++;
	if (dropped)
		log_write(LOG_LEVEL_WARN, "%u more such lines were left out", dropped);
	dropped = 0;
	va_start(ap, fmt);
	write_line(level, fmt, ap);
	va_end(ap);
}
