/* SPDX-License-Identifier: MIT */
/*
 * One QMP conversation as a state machine on bytes: no socket, no clock, no event loop. qmp.c feeds
 * it from a socket, the unit tests and the fuzz target feed it from memory. Source: QEMU's
 * docs/interop/qmp-spec.rst.
 *
 *   GREETING ----{"QMP":...}----> NEGOTIATING --answer to qmp_capabilities--> READY
 *       |                              |                                        |
 *       +---- anything else, anything too large, a deadline, the caller --------+--> CLOSED
 *
 * The other side is hostile until checked (invariant 9). Whatever is not QMP closes the session
 * with one sentence that says what was wrong; there is no way back, the caller makes a new one.
 * Messages are framed by their braces, so that a monitor with pretty=on, whose messages have many
 * lines, is understood as well. What bounds the memory and the time that it can cost: the constants
 * below.
 *
 * JSON values that callbacks get are borrowed: valid until the callback returns. Callbacks may call
 * qmp_session_command(), and no other function of a session. Times are microseconds on any clock
 * that does not go backwards.
 */
#ifndef BALLAST_BALLOON_QMP_SESSION_H
#define BALLAST_BALLOON_QMP_SESSION_H

#include <jansson.h>
#include "common/types.h"

/* The largest answers that we ask for (a device's properties) have some 10 KiB. */
#define QMP_MESSAGE_MAX (256 * 1024)
/* Guest statistics nest three deep; jansson recurses, so a bound there must be. */
#define QMP_DEPTH_MAX 32
/* A round of polling has at most six questions under way, a user's command one. */
#define QMP_PENDING_MAX 16
#define QMP_OUTPUT_MAX	(16 * 1024)
/* Events are rare, and a round of polling brings some KiB: who sends more than this in a window
 * does not talk to us. */
#define QMP_FLOOD_BYTES (1 << 20)
#define QMP_FLOOD_US	10000000ULL
/* QEMU greets at once, unless it serves another client or its main loop hangs. */
#define QMP_GREETING_US 5000000ULL
/* QEMU's main loop is known to stop for seconds (block jobs, migration); more is a hang. */
#define QMP_ANSWER_US 20000000ULL
#define QMP_TEXT_MAX  200
#define QMP_EVENT_MAX 64

enum qmp_phase {
	QMP_PHASE_GREETING,
	QMP_PHASE_NEGOTIATING,
	QMP_PHASE_READY,
	QMP_PHASE_CLOSED,
};

/*
 * What became of a command. @error 0: @value is what it returned, and @text is NULL. Otherwise
 * @value is NULL, @text one line of printable ASCII: -ENODEV (QMP's DeviceNotActive or
 * DeviceNotFound), -EOPNOTSUPP (CommandNotFound), -EREMOTEIO (any other QMP error), or the error
 * that the session was closed with. Called exactly once for each command that was accepted.
 */
typedef void (*qmp_done)(void *arg, int error, json_t *value, const char *text);

/* Both may be NULL. */
struct qmp_session_ops {
	void (*ready)(void *arg); /* commands are accepted from here on */
	/* @data: an object, or NULL if the event has none. */
	void (*event)(void *arg, const char *name, json_t *data);
};

struct qmp_session;
int qmp_session_new(const struct qmp_session_ops *ops, void *arg, u64 now_us,
		    struct qmp_session **ret);
/* Commands without an answer get -ECONNRESET. */
void qmp_session_free(struct qmp_session *s);

/* Bytes from the other side. 0, or the error that the session is closed with now: -EPROTO (not
 * QMP), -EMSGSIZE (too large, too deep, too much), -ENOMEM, -EREMOTEIO (it refused
 * qmp_capabilities). */
int qmp_session_input(struct qmp_session *s, const void *bytes, size_t len, u64 now_us);
/* The caller's own reason to end it, such as the end of the connection. */
void qmp_session_close(struct qmp_session *s, int error, const char *why);

/* Takes over @args, also on failure; NULL: no arguments. -ENOTCONN: not ready. -EBUSY: too many
 * commands have no answer yet. -ENOBUFS: the other side does not read. -ENOMEM. */
int qmp_session_command(struct qmp_session *s, const char *name, json_t *args, qmp_done done,
			void *arg, u64 now_us);

/* What waits to be sent; what was. */
const char *qmp_session_output(const struct qmp_session *s, size_t *ret_len);
void qmp_session_sent(struct qmp_session *s, size_t len);

/* When qmp_session_expire() has something to do; UINT64_MAX: never. */
u64 qmp_session_deadline(const struct qmp_session *s);
/* 0, or -ETIMEDOUT, and closed; -EBUSY if it was the greeting that did not come. */
int qmp_session_expire(struct qmp_session *s, u64 now_us);

enum qmp_phase qmp_session_phase(const struct qmp_session *s);
int qmp_session_error(const struct qmp_session *s); /* 0 unless closed */
const char *qmp_session_error_text(const struct qmp_session *s);
/* "7.2.22"; "" if the greeting did not say. */
const char *qmp_session_version(const struct qmp_session *s);

/*
 * A number that cannot be negative. -ENOENT: @value is NULL. -EPROTO: not a number, or a
 * fraction. -ERANGE: negative, or 2^63 and more: QEMU says -1 for "not known", and some versions
 * print it as 2^64-1.
 */
int qmp_u64(const json_t *value, u64 *ret);

/* Copies what may be shown on a terminal and in a log: other bytes become '?'. Returns @dst. */
const char *qmp_printable(char *dst, size_t size, const char *src);

#endif
