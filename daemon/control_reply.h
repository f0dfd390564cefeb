/* SPDX-License-Identifier: MIT */
/* The words of the control protocol (control.h), without its sockets. For control.c and tests. */
#ifndef BALLAST_DAEMON_CONTROL_REPLY_H
#define BALLAST_DAEMON_CONTROL_REPLY_H

#include "daemon/control.h"

/*
 * Answers one request (a line without its line end, any bytes). Returns the reply with its line
 * end, to be freed, or NULL when memory is out. *ret_malformed: the request was no request at all,
 * and what follows it on the connection cannot be trusted to be in step.
 */
char *control_reply(const struct control_ops *ops, void *core, const char *request, size_t len,
		    bool *ret_malformed);

/* {"ok":false,"error":...}, likewise. */
char *control_reply_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
