/* SPDX-License-Identifier: MIT */
/*
 * What every benchmark hands in: RESULT lines on stdout, the same figures as JSON, and a chart as
 * SVG, the files under build/bench/NAME/. Errors end the program: a benchmark without its record is
 * worth nothing.
 */
#ifndef BALLAST_BENCH_REPORT_H
#define BALLAST_BENCH_REPORT_H

#include "common/types.h"

struct report;

/* @name: of the benchmark, and of its folder below $BUILD/bench (BUILD: default "build"). */
struct report *report_new(const char *name);
/* Begins a RESULT line: "RESULT name key=value ...". */
void report_result(struct report *r, const char *name);
void report_text(struct report *r, const char *key, const char *value);
void report_number(struct report *r, const char *key, double value, int decimals);
/* Ends the line: prints it, and adds it to the JSON. */
void report_end(struct report *r);

struct chart_line {
	const char *name;
	const double *x, *y;
	u32 nr;
};

struct chart {
	const char *title, *x_title, *y_title;
	bool log_x, log_y;
	const struct chart_line *lines;
	u32 nr_lines;
};
void report_chart(struct report *r, const char *file, const struct chart *c);

/* One bar for each name, its value beside it. */
struct bar {
	const char *name;
	double value;
};
void report_bars(struct report *r, const char *file, const char *title, const char *unit,
		 const struct bar *bars, u32 nr);

/* Writes results.json and frees. */
void report_finish(struct report *r);

#endif
