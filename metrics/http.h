/* SPDX-License-Identifier: MIT */
/*
 * GET /metrics over HTTP (libmicrohttpd, one thread of its own, so that a scrape is answered while
 * the scanner works). The thread takes part in RCU: it is registered with liburcu (memb flavour),
 * and @collect runs inside no lock and no read-side section. It takes no signals.
 *
 *   GET, HEAD /metrics   200, text/plain; version=0.0.4; charset=utf-8
 *   GET, HEAD /          200, one line of HTML that points there
 *   another path         404; another method: 405
 *   no memory            503
 *
 * At most 16 connections, each closed after 5 s without a byte: a client that stalls costs others
 * nothing for long.
 */
#ifndef BALLAST_METRICS_HTTP_H
#define BALLAST_METRICS_HTTP_H

#include "metrics/exposition.h"

struct mx_http;

/* Called on the HTTP thread for each scrape, never twice at a time; writes all families into @w. */
typedef void (*mx_collect_fn)(struct mx_writer *w, void *arg);

/* @address: IPv4 or IPv6 literal; @port 0 picks a free one. -EINVAL: not a literal. -EADDRINUSE,
 * -EADDRNOTAVAIL, -EACCES: the socket's. -EIO: libmicrohttpd did not start. */
int mx_http_start(const char *address, u16 port, mx_collect_fn collect, void *arg,
		  struct mx_http **ret);
u16 mx_http_port(const struct mx_http *h);
void mx_http_stop(struct mx_http *h); /* waits for a running @collect; NULL is fine */

#endif
