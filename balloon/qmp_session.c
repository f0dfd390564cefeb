/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "balloon/qmp_session.h"

struct pending {
	u64 id; /* 0: free */
	u64 deadline_us;
	qmp_done done;
	void *arg;
};

struct qmp_session {
	const struct qmp_session_ops *ops;
	void *arg;
	enum qmp_phase phase;
	int error;
	char text[QMP_TEXT_MAX];
	char version[32];
	u64 greeting_deadline_us;
	u64 last_id;
	struct pending pending[QMP_PENDING_MAX];

	/* The message that is coming in, and where in it we are. */
	char *in;
	size_t in_len, in_cap;
	u32 depth;
	bool in_string, escaped;
	u64 window_us, window_bytes; /* of the flood bound */

	char out[QMP_OUTPUT_MAX];
	size_t out_len;
};

const char *qmp_printable(char *dst, size_t size, const char *src)
{
	size_t n = 0;

	for (; n + 1 < size && src[n]; n++)
		dst[n] = src[n] >= ' ' && src[n] < 0x7f ? src[n] : '?';
	dst[n] = '\0';
	return dst;
}

int qmp_u64(const json_t *value, u64 *ret)
{
	double d;

	if (!value)
		return -ENOENT;
	if (json_is_integer(value)) {
		if (json_integer_value(value) < 0)
			return -ERANGE;
		*ret = (u64)json_integer_value(value);
		return 0;
	}
	if (!json_is_real(value))
		return -EPROTO;
	d = json_real_value(value);
	if (!isfinite(d) || d != floor(d))
		return -EPROTO;
	if (d < 0 || d >= 9223372036854775808.0)
		return -ERANGE;
	*ret = (u64)d;
	return 0;
}

int qmp_session_new(const struct qmp_session_ops *ops, void *arg, u64 now_us,
		    struct qmp_session **ret)
{
	struct qmp_session *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->ops = ops;
	s->arg = arg;
	s->greeting_deadline_us = now_us + QMP_GREETING_US;
	s->window_us = now_us;
	*ret = s;
	return 0;
}

void qmp_session_close(struct qmp_session *s, int error, const char *why)
{
	if (s->phase == QMP_PHASE_CLOSED)
		return;
	s->phase = QMP_PHASE_CLOSED;
	s->error = error;
	qmp_printable(s->text, sizeof(s->text), why);
	s->in_len = s->out_len = 0;
	/* A callback cannot ask anew: the phase is set. */
	for (u32 i = 0; i < QMP_PENDING_MAX; i++) {
		struct pending p = s->pending[i];

		s->pending[i].id = 0;
		if (p.id && p.done)
			p.done(p.arg, error, NULL, s->text);
	}
}

void qmp_session_free(struct qmp_session *s)
{
	if (!s)
		return;
	qmp_session_close(s, -ECONNRESET, "the connection was given up");
	free(s->in);
	free(s);
}

static int fail(struct qmp_session *s, int error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static int fail(struct qmp_session *s, int error, const char *fmt, ...)
{
	char text[QMP_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	qmp_session_close(s, error, text);
	return error;
}

/* --- commands --------------------------------------------------------------------------------- */

static int encode(struct qmp_session *s, const char *name, u64 id, json_t *args)
{
	json_t *j = json_pack("{s:s,s:I}", "execute", name, "id", (json_int_t)id);
	size_t room = sizeof(s->out) - s->out_len, len;
	int r = 0;

	if (!j || (args && json_object_set(j, "arguments", args) < 0)) {
		r = -ENOMEM;
		goto out;
	}
	len = json_dumpb(j, s->out + s->out_len, room, JSON_COMPACT);
	if (len == 0 || len + 1 > room) {
		r = len ? -ENOBUFS : -ENOMEM;
		goto out;
	}
	s->out[s->out_len + len] = '\n';
	s->out_len += len + 1;
out:
	json_decref(j);
	return r;
}

/* In any phase; the capabilities go this way too. Takes over @args. */
static int send_command(struct qmp_session *s, const char *name, json_t *args, qmp_done done,
			void *arg, u64 now_us)
{
	struct pending *p = NULL;
	int r = -EBUSY;

	for (u32 i = 0; i < QMP_PENDING_MAX && !p; i++)
		if (!s->pending[i].id)
			p = &s->pending[i];
	if (p)
		r = encode(s, name, s->last_id + 1, args);
	json_decref(args);
	if (r < 0)
		return r;
	*p = (struct pending){ ++s->last_id, now_us + QMP_ANSWER_US, done, arg };
	return 0;
}

int qmp_session_command(struct qmp_session *s, const char *name, json_t *args, qmp_done done,
			void *arg, u64 now_us)
{
	if (s->phase != QMP_PHASE_READY) {
		json_decref(args);
		return -ENOTCONN;
	}
	return send_command(s, name, args, done, arg, now_us);
}

const char *qmp_session_output(const struct qmp_session *s, size_t *ret_len)
{
	*ret_len = s->out_len;
	return s->out;
}

void qmp_session_sent(struct qmp_session *s, size_t len)
{
	len = MIN(len, s->out_len);
	s->out_len -= len;
	memmove(s->out, s->out + len, s->out_len);
}

/* --- messages --------------------------------------------------------------------------------- */

static void on_capabilities(void *arg, int error, json_t *value, const char *text)
{
	struct qmp_session *s = arg;

	if (s->phase != QMP_PHASE_NEGOTIATING)
		return; /* it was closed before the answer came */
	if (error < 0) {
		fail(s, -EREMOTEIO, "refuses qmp_capabilities: %s", text);
		return;
	}
	s->phase = QMP_PHASE_READY;
	if (s->ops->ready)
		s->ops->ready(s->arg);
}

static int take_greeting(struct qmp_session *s, const json_t *message, u64 now_us)
{
	const json_t *qmp = json_object_get(message, "QMP");
	const json_t *v = json_object_get(json_object_get(qmp, "version"), "qemu");
	u64 major, minor, micro;
	int r;

	if (!json_is_object(qmp))
		return fail(s, -EPROTO, "does not greet as QMP does");
	if (qmp_u64(json_object_get(v, "major"), &major) == 0 &&
	    qmp_u64(json_object_get(v, "minor"), &minor) == 0 &&
	    qmp_u64(json_object_get(v, "micro"), &micro) == 0 &&
	    MAX(major, MAX(minor, micro)) < 1000000)
		snprintf(s->version, sizeof(s->version), "%u.%u.%u", (u32)major, (u32)minor,
			 (u32)micro);
	s->phase = QMP_PHASE_NEGOTIATING;
	r = send_command(s, "qmp_capabilities", NULL, on_capabilities, s, now_us);
	return r < 0 ? fail(s, r, "cannot send qmp_capabilities: %s", strerror(-r)) : 0;
}

static int take_event(struct qmp_session *s, const json_t *message, const json_t *event)
{
	json_t *data = json_object_get(message, "data");
	const char *name = json_string_value(event);

	if (!name || !*name || strlen(name) >= QMP_EVENT_MAX || (data && !json_is_object(data)))
		return fail(s, -EPROTO, "sends an event that is not formed as QMP's are");
	/* One before the handshake is none of ours. */
	if (s->phase == QMP_PHASE_READY && s->ops->event)
		s->ops->event(s->arg, name, data);
	return 0;
}

static int error_of_class(const char *class)
{
	static const struct {
		const char *class;
		int error;
	} classes[] = {
		{ "DeviceNotActive", -ENODEV },
		{ "DeviceNotFound", -ENODEV },
		{ "CommandNotFound", -EOPNOTSUPP },
	};

	for (u32 i = 0; i < ARRAY_SIZE(classes); i++)
		if (strcmp(classes[i].class, class) == 0)
			return classes[i].error;
	return -EREMOTEIO;
}

static int take_answer(struct qmp_session *s, const json_t *message)
{
	json_t *value = json_object_get(message, "return");
	const json_t *error = json_object_get(message, "error");
	const char *class = json_string_value(json_object_get(error, "class"));
	const char *desc = json_string_value(json_object_get(error, "desc"));
	char raw[QMP_TEXT_MAX], text[QMP_TEXT_MAX];
	struct pending p = { 0 };
	u64 id;

	if (qmp_u64(json_object_get(message, "id"), &id) < 0 || !id)
		return fail(s, -EPROTO, "answers without the id of a command");
	for (u32 i = 0; i < QMP_PENDING_MAX && !p.id; i++) {
		if (s->pending[i].id == id) {
			p = s->pending[i];
			s->pending[i].id = 0;
		}
	}
	if (!p.id)
		return fail(s, -EPROTO, "answers a command that was not sent");
	if (value && !error) {
		if (p.done)
			p.done(p.arg, 0, value, NULL);
		return 0;
	}
	if (value || !class || !desc) {
		/* This command is out of the table, but its sender must hear of it. */
		fail(s, -EPROTO, "answers neither with a result nor with an error");
		if (p.done)
			p.done(p.arg, -EPROTO, NULL, s->text);
		return -EPROTO;
	}
	snprintf(raw, sizeof(raw), "%s (%s)", desc, class);
	qmp_printable(text, sizeof(text), raw);
	if (p.done)
		p.done(p.arg, error_of_class(class), NULL, text);
	return 0;
}

static int take_message(struct qmp_session *s, u64 now_us)
{
	json_error_t error;
	json_t *j = json_loadb(s->in, s->in_len, JSON_REJECT_DUPLICATES, &error), *event;
	int r;

	/* 2^64-1 for "not known". As real numbers all are exact up to 2^53, ids included. */
	if (!j && json_error_code(&error) == json_error_numeric_overflow)
		j = json_loadb(s->in, s->in_len, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL,
			       &error);
	if (!j)
		return fail(s, -EPROTO, "does not send JSON: %.100s", error.text);
	event = json_object_get(j, "event");
	if (s->phase == QMP_PHASE_GREETING)
		r = take_greeting(s, j, now_us);
	else if (event)
		r = take_event(s, j, event);
	else if (json_object_get(j, "return") || json_object_get(j, "error"))
		r = take_answer(s, j);
	else
		r = fail(s, -EPROTO, "sends what is neither an answer nor an event");
	json_decref(j);
	/* A callback may have closed it, or an answer to qmp_capabilities. */
	return s->phase == QMP_PHASE_CLOSED ? s->error : r;
}

/* --- framing ---------------------------------------------------------------------------------- */

static int append(struct qmp_session *s, char c)
{
	if (s->in_len == QMP_MESSAGE_MAX)
		return fail(s, -EMSGSIZE, "sends a message of more than %d KiB",
			    QMP_MESSAGE_MAX / 1024);
	if (s->in_len == s->in_cap) {
		size_t cap = s->in_cap ? s->in_cap * 2 : 4096;
		char *grown = realloc(s->in, cap);

		if (!grown)
			return fail(s, -ENOMEM, "out of memory");
		s->in = grown;
		s->in_cap = cap;
	}
	s->in[s->in_len++] = c;
	return 0;
}

/* Whether braces pair is jansson's to check; here it only matters where a message ends, and that it
 * does not go too deep. Returns 1 when it ends. */
static int frame(struct qmp_session *s, char c)
{
	int r;

	if (s->depth == 0) {
		if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
			return 0;
		if (c != '{')
			return fail(s, -EPROTO, "does not send JSON objects");
		s->in_len = 0;
	}
	r = append(s, c);
	if (r < 0)
		return r;
	if (s->in_string) {
		s->in_string = s->escaped || c != '"';
		s->escaped = !s->escaped && c == '\\';
		return 0;
	}
	if (c == '"')
		s->in_string = true;
	else if ((c == '{' || c == '[') && ++s->depth > QMP_DEPTH_MAX)
		return fail(s, -EMSGSIZE, "sends JSON that nests deeper than %d", QMP_DEPTH_MAX);
	else if ((c == '}' || c == ']') && --s->depth == 0)
		return 1;
	return 0;
}

int qmp_session_input(struct qmp_session *s, const void *bytes, size_t len, u64 now_us)
{
	const char *at = bytes;
	int r;

	if (s->phase == QMP_PHASE_CLOSED)
		return s->error;
	if (now_us - s->window_us >= QMP_FLOOD_US) {
		s->window_us = now_us;
		s->window_bytes = 0;
	}
	s->window_bytes += len;
	if (s->window_bytes > QMP_FLOOD_BYTES)
		return fail(s, -EMSGSIZE, "sends without end (more than %d MiB in %d s)",
			    QMP_FLOOD_BYTES >> 20, (int)(QMP_FLOOD_US / 1000000));
	for (; len; len--, at++) {
		r = frame(s, *at);
		if (r == 1)
			r = take_message(s, now_us);
		if (r < 0)
			return r;
	}
	return 0;
}

/* --- time ------------------------------------------------------------------------------------- */

u64 qmp_session_deadline(const struct qmp_session *s)
{
	u64 at = UINT64_MAX;

	if (s->phase == QMP_PHASE_GREETING)
		return s->greeting_deadline_us;
	for (u32 i = 0; i < QMP_PENDING_MAX; i++)
		if (s->pending[i].id)
			at = MIN(at, s->pending[i].deadline_us);
	return at;
}

int qmp_session_expire(struct qmp_session *s, u64 now_us)
{
	if (s->phase == QMP_PHASE_CLOSED)
		return s->error;
	if (now_us < qmp_session_deadline(s))
		return 0;
	if (s->phase == QMP_PHASE_GREETING)
		return fail(s, -EBUSY,
			    "does not greet: it serves one client, and another one may have it");
	return fail(s, -ETIMEDOUT, "does not answer within %d s", (int)(QMP_ANSWER_US / 1000000));
}

enum qmp_phase qmp_session_phase(const struct qmp_session *s)
{
	return s->phase;
}

int qmp_session_error(const struct qmp_session *s)
{
	return s->error;
}

const char *qmp_session_error_text(const struct qmp_session *s)
{
	return s->text;
}

const char *qmp_session_version(const struct qmp_session *s)
{
	return s->version;
}
