/* SPDX-License-Identifier: MIT */
/*
 * Prometheus text format 0.0.4, written into one growing buffer. A family is opened once (its HELP
 * and TYPE lines), then its samples follow. Families must not be opened twice (asserted): the
 * format forbids it. Two samples of one family must differ in their labels; that is the caller's to
 * keep, since only it knows what makes them differ. Source:
 * https://prometheus.io/docs/instrumenting/exposition_formats/
 *
 * Names are literals of the program and asserted; values may come from anywhere, a guest included:
 * one that is not valid UTF-8 would make Prometheus refuse the whole scrape, so the writer repairs
 * it.
 *
 * A writer is used by one thread. The process stays in the C locale (a number's decimal point).
 */
#ifndef BALLAST_METRICS_EXPOSITION_H
#define BALLAST_METRICS_EXPOSITION_H

#include "common/types.h"

enum mx_type {
	MX_GAUGE,
	MX_COUNTER, /* its name must end in _total (asserted) */
	MX_HISTOGRAM,
};

struct mx_label {
	const char *name,
		*value; /* the value is repaired and escaped by the writer; "" or NULL: no label */
};

struct mx_writer;
struct mx_writer *mx_new(void); /* NULL: no memory */
void mx_free(struct mx_writer *w);

void mx_family(struct mx_writer *w, const char *name, enum mx_type type, const char *help);
void mx_sample_u64(struct mx_writer *w, const struct mx_label *labels, u32 nr_labels, u64 value);
void mx_sample_f64(struct mx_writer *w, const struct mx_label *labels, u32 nr_labels, double value);

/* One histogram: @counts of @nr classes, each of what is in none before it, with its upper bound;
 * the last class has none and takes all the rest. */
void mx_histogram(struct mx_writer *w, const struct mx_label *labels, u32 nr_labels,
		  const u64 *counts, const double *bounds, u32 nr, double sum);

/* The caller had no memory for its own part: a failed scrape is honest, one that lacks half its
 * series is not. */
void mx_fail(struct mx_writer *w);

/* 0, or -ENOMEM if any write failed. The text stays owned by @w. */
int mx_finish(struct mx_writer *w, const char **ret_text, size_t *ret_bytes);

/*
 * Copies @src to @dst with each byte that is not part of valid UTF-8 replaced by U+FFFD, cut at a
 * character so that it fits. This is what the writer does to every label value; who must keep
 * values apart compares these.
 */
void mx_clean(char *dst, size_t dst_bytes, const char *src);

#endif
