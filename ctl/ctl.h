/* SPDX-License-Identifier: MIT */
/* What the commands of ballastctl share. A command returns the exit status: 0, or 1 after one
 * clear line on stderr. */
#ifndef BALLAST_CTL_CTL_H
#define BALLAST_CTL_CTL_H

#include <jansson.h>
#include <stdio.h>
#include "common/types.h"

#define CTL_DEFAULT_SOCKET "/run/ballast/control.sock"
#define CTL_USAGE	   2 /* exit status: the command line is wrong */

struct ctl_options {
	const char *socket;
	bool json;
};

/* The commands; @args ends with NULL. */
int ctl_status(const struct ctl_options *o, char **args);
int ctl_pause(const struct ctl_options *o, char **args);
int ctl_resume(const struct ctl_options *o, char **args);
int ctl_unmerge(const struct ctl_options *o, char **args);
int ctl_share(const struct ctl_options *o, char **args);
int ctl_balloon(const struct ctl_options *o, char **args);
int ctl_page_out(const struct ctl_options *o, char **args);
int ctl_swap_out(const struct ctl_options *o, char **args);
int ctl_plan(const struct ctl_options *o, char **args);
int ctl_explain(const struct ctl_options *o, char **args);
int ctl_analyze(const struct ctl_options *o, char **args);

/* client.c: one request to the daemon; takes over @request. On success (0) *ret is the reply,
 * which says "ok". Otherwise the error has been printed and the exit status is returned. */
int ctl_call(const struct ctl_options *o, json_t *request, json_t **ret);

/* balloon.c: what the reply to "status" says of balloons in use. */
void ctl_print_balloons(const json_t *reply);

/* text.c */
#define CTL_CELL_MAX 80

/* "ballastctl: ..." on stderr. */
void ctl_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* "1.5 GiB", "-12.0 KiB", "0": for people. Returns @buf. */
const char *ctl_bytes(char buf[CTL_CELL_MAX], s64 bytes);

/* @s made fit for a terminal, cut to @size: names come from VMMs, which may be hostile, and
 * must not hold control sequences. Returns @buf. */
const char *ctl_safe_text(char *buf, size_t size, const char *s);
#define ctl_safe(buf, s) ctl_safe_text(buf, sizeof(buf), s)

/* An aligned table: add rows, print, free. Bit i of @left: column i is flush left; else right. */
struct ctl_table {
	u32 nr_columns, nr_rows, left;
	char (*cells)[CTL_CELL_MAX];
	bool failed; /* out of memory */
};
void ctl_table_row(struct ctl_table *t, const char *const *cells);
int ctl_table_print(const struct ctl_table *t, FILE *out);
void ctl_table_free(struct ctl_table *t);

/* Prints @j (which may be NULL: out of memory) and takes it over. */
int ctl_print_json(json_t *j);

#endif
