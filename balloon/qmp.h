/* SPDX-License-Identifier: MIT */
/*
 * A QMP client on a UNIX socket and the caller's event loop: connects, shakes hands, carries
 * commands and events (qmp_session.h), and when anything goes wrong closes, says why once, and
 * tries again later, at longer and longer intervals. It never blocks.
 *
 * A QMP socket serves one client at a time. A socket that somebody else has lets us connect (the
 * kernel queues us) but does not greet; that is reported as -EBUSY, the connection is given up, and
 * the socket is not tried again for a minute, so that we do not stand in another's queue.
 *
 *   RESTING --qmp_start()--> CONNECTING --handshake--> UP --qmp_rest()--> RESTING
 *                                ^   |                  |
 *                                |   +------ error -----+
 *                          back-off                     v
 *                                +------------------ WAITING
 *
 * Callbacks may call qmp_command(), qmp_rest() and qmp_start(), but not qmp_free().
 */
#ifndef BALLAST_BALLOON_QMP_H
#define BALLAST_BALLOON_QMP_H

#include <sys/types.h>
#include <systemd/sd-event.h>
#include "balloon/qmp_session.h"

/* A VMM that restarts its monitor is back within a second; one that is gone costs a system call
 * a minute. */
#define QMP_RETRY_MIN_US 1000000ULL
#define QMP_RETRY_MAX_US 60000000ULL
/* A connection that held so long was a good one: the next failure begins with a short wait. */
#define QMP_RETRY_GOOD_US 10000000ULL

enum qmp_state {
	QMP_RESTING,
	QMP_CONNECTING,
	QMP_UP,
	QMP_WAITING, /* until the next attempt; qmp_error() says why */
};

/* All are mandatory. */
struct qmp_ops {
	void (*up)(void *arg); /* commands are accepted */
	/* The connection, or the attempt at one, ended; every command without an answer has been
	 * told. Not called for qmp_rest() and qmp_free(). */
	void (*down)(void *arg, int error, const char *why);
	void (*event)(void *arg, const char *name, json_t *data);
};

struct qmp;
/* @peer_pid: the process that must have opened the socket, by the kernel's word; 0: any. @path may
 * be longer than a socket address. Rests until qmp_start(). */
int qmp_new(sd_event *event, const char *path, pid_t peer_pid, const struct qmp_ops *ops, void *arg,
	    struct qmp **ret);
void qmp_free(struct qmp *q); /* commands without an answer get -ECONNRESET */

/* Connects, from the event loop; nothing if it does, or waits to, already. */
void qmp_start(struct qmp *q);
/* Lets go of the socket. Commands without an answer get -ECONNRESET. */
void qmp_rest(struct qmp *q);
/* No earlier than that: for tests, which do not wait for a minute. 0: the defaults. */
void qmp_set_retry(struct qmp *q, u64 min_us, u64 max_us);

/* As qmp_session_command(). */
int qmp_command(struct qmp *q, const char *name, json_t *args, qmp_done done, void *arg);

enum qmp_state qmp_state(const struct qmp *q);
/* Why it waits, or waited last; 0 and "" if nothing went wrong yet, or since it was last up. */
int qmp_error(const struct qmp *q);
const char *qmp_error_text(const struct qmp *q);
const char *qmp_version(const struct qmp *q); /* of the other side, as last greeted */

#endif
