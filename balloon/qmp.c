/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "balloon/qmp.h"
#include "common/clock.h"

/* A wake-up reads no more than this, so that a talker does not keep the loop from the others. */
#define READ_BYTES 16384

struct qmp {
	sd_event *event;
	sd_event_source *io, *timer;
	const struct qmp_ops *ops;
	void *arg;
	char *path;
	pid_t peer_pid;
	enum qmp_state state;
	struct qmp_session *session;
	int fd;
	u64 up_us;
	u64 retry_us, retry_min_us, retry_max_us;
	int error;
	char error_text[QMP_TEXT_MAX];
	char version[32];
};

static void arm_timer(struct qmp *q, u64 at_us)
{
	sd_event_source_set_time(q->timer, at_us);
	sd_event_source_set_enabled(q->timer,
				    at_us == UINT64_MAX ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
}

/* What the session waits for now. */
static void arm(struct qmp *q)
{
	size_t out;

	qmp_session_output(q->session, &out);
	sd_event_source_set_io_events(q->io, out ? EPOLLIN | EPOLLOUT : EPOLLIN);
	arm_timer(q, qmp_session_deadline(q->session));
}

static void disconnect(struct qmp *q)
{
	struct qmp_session *s = q->session;

	q->session = NULL;
	q->io = sd_event_source_disable_unref(q->io);
	if (q->fd >= 0)
		close(q->fd);
	q->fd = -1;
	qmp_session_free(s); /* tells those who wait */
}

static void set_error(struct qmp *q, int error, const char *text)
{
	q->error = error;
	snprintf(q->error_text, sizeof(q->error_text), "%s", text);
}

/* The attempt or the connection has failed: wait, longer each time. */
static void lose(struct qmp *q, int error, const char *why)
{
	if (q->state == QMP_UP && now_us() - q->up_us >= QMP_RETRY_GOOD_US)
		q->retry_us = 0;
	q->retry_us = MIN(MAX(q->retry_us * 2, q->retry_min_us), q->retry_max_us);
	/* Somebody else's socket: no standing in its queue. */
	if (error == -EBUSY)
		q->retry_us = q->retry_max_us;
	set_error(q, error, why);
	q->state = QMP_WAITING;
	disconnect(q);
	/* A callback of the session may have changed its mind. */
	if (q->state != QMP_WAITING)
		return;
	arm_timer(q, now_us() + q->retry_us);
	q->ops->down(q->arg, q->error, q->error_text);
}

static void lose_session(struct qmp *q)
{
	char text[QMP_TEXT_MAX];

	snprintf(text, sizeof(text), "%s", qmp_session_error_text(q->session));
	lose(q, qmp_session_error(q->session), text);
}

static void on_ready(void *arg)
{
	struct qmp *q = arg;

	q->state = QMP_UP;
	q->up_us = now_us();
	set_error(q, 0, "");
	snprintf(q->version, sizeof(q->version), "%s", qmp_session_version(q->session));
	q->ops->up(q->arg);
}

static void on_event(void *arg, const char *name, json_t *data)
{
	struct qmp *q = arg;

	if (q->state == QMP_UP)
		q->ops->event(q->arg, name, data);
}

static const struct qmp_session_ops session_ops = {
	.ready = on_ready,
	.event = on_event,
};

/* That the other side is gone is seen by reading or by writing, as it happens: one word for it. */
static void close_session(struct qmp *q, int error)
{
	bool gone = error == ECONNRESET || error == EPIPE;

	qmp_session_close(q->session, gone ? -ECONNRESET : -error,
			  gone ? "hung up" : strerror(error));
}

static int read_some(struct qmp *q)
{
	char buf[READ_BYTES];
	ssize_t n = recv(q->fd, buf, sizeof(buf), 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n > 0)
		return qmp_session_input(q->session, buf, (size_t)n, now_us());
	close_session(q, n < 0 ? errno : ECONNRESET);
	return qmp_session_error(q->session);
}

static int write_some(struct qmp *q)
{
	size_t len;
	const char *out = qmp_session_output(q->session, &len);
	ssize_t n = len ? send(q->fd, out, len, MSG_NOSIGNAL) : 0;

	if (n >= 0) {
		qmp_session_sent(q->session, (size_t)n);
		return 0;
	}
	if (errno == EAGAIN || errno == EINTR)
		return 0;
	close_session(q, errno);
	return qmp_session_error(q->session);
}

/* A callback may have put the client to rest: that was for after the callback. */
static void after_work(struct qmp *q, int r)
{
	if (q->state == QMP_RESTING) {
		disconnect(q);
		arm_timer(q, UINT64_MAX);
	} else if (r < 0) {
		lose_session(q);
	} else {
		arm(q);
	}
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct qmp *q = arg;
	int r = 0;

	if (revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
		r = read_some(q);
	if (r == 0 && q->state != QMP_RESTING)
		r = write_some(q);
	after_work(q, r);
	return 0;
}

/* --- connecting ------------------------------------------------------------------------------- */

/* A path that is too long for an address is named by a descriptor of it. */
static int connect_path(int fd, const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int at = -1, r;

	if (strlen(path) < sizeof(sa.sun_path)) {
		strcpy(sa.sun_path, path);
	} else {
		at = open(path, O_PATH | O_CLOEXEC);
		if (at < 0)
			return -errno;
		snprintf(sa.sun_path, sizeof(sa.sun_path), "/proc/self/fd/%d", at);
	}
	r = connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : 0;
	if (at >= 0)
		close(at);
	/* Its queue is full: more wait already. */
	return r == -EAGAIN ? -EBUSY : r;
}

/* Who listens. A name that leads to another VM's socket must not lead us there. */
static int check_peer(int fd, pid_t wanted, char *text, size_t size)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	if (!wanted || cred.pid == wanted)
		return 0;
	snprintf(text, size, "is the socket of process %d, not of the VM's process %d",
		 (int)cred.pid, (int)wanted);
	return -EPERM;
}

static int try_connect(struct qmp *q, char *text, size_t size)
{
	int r;

	q->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (q->fd < 0)
		return -errno;
	r = connect_path(q->fd, q->path);
	if (r < 0)
		return r;
	r = check_peer(q->fd, q->peer_pid, text, size);
	if (r < 0)
		return r;
	r = qmp_session_new(&session_ops, q, now_us(), &q->session);
	if (r < 0)
		return r;
	return sd_event_add_io(q->event, &q->io, q->fd, EPOLLIN, on_io, q);
}

static void start_connecting(struct qmp *q)
{
	char text[QMP_TEXT_MAX] = "";
	int r;

	q->state = QMP_CONNECTING;
	r = try_connect(q, text, sizeof(text));
	if (r < 0 && !*text)
		snprintf(text, sizeof(text), "cannot be connected to: %s", strerror(-r));
	if (r < 0)
		lose(q, r, text);
	else
		arm(q);
}

static int on_timer(sd_event_source *source, uint64_t usec, void *arg)
{
	struct qmp *q = arg;

	if (q->state == QMP_RESTING)
		disconnect(q);
	else if (!q->session)
		start_connecting(q);
	else
		after_work(q, qmp_session_expire(q->session, now_us()));
	return 0;
}

int qmp_new(sd_event *event, const char *path, pid_t peer_pid, const struct qmp_ops *ops, void *arg,
	    struct qmp **ret)
{
	struct qmp *q = calloc(1, sizeof(*q));
	int r = -ENOMEM;

	if (!q)
		return -ENOMEM;
	q->fd = -1;
	q->event = sd_event_ref(event);
	q->ops = ops;
	q->arg = arg;
	q->peer_pid = peer_pid;
	qmp_set_retry(q, 0, 0);
	q->path = strdup(path);
	if (!q->path)
		goto fail;
	r = sd_event_add_time(event, &q->timer, CLOCK_MONOTONIC, 0, 1000, on_timer, q);
	if (r < 0)
		goto fail;
	arm_timer(q, UINT64_MAX);
	*ret = q;
	return 0;
fail:
	qmp_free(q);
	return r;
}

void qmp_free(struct qmp *q)
{
	if (!q)
		return;
	q->state = QMP_RESTING;
	disconnect(q);
	sd_event_source_disable_unref(q->timer);
	sd_event_unref(q->event);
	free(q->path);
	free(q);
}

void qmp_set_retry(struct qmp *q, u64 min_us, u64 max_us)
{
	q->retry_min_us = min_us ? min_us : QMP_RETRY_MIN_US;
	q->retry_max_us = max_us ? max_us : QMP_RETRY_MAX_US;
}

/* Both only say what is wanted; the timer, so the loop, does it: they may be called from a callback
 * of the very session that is to end. */
void qmp_start(struct qmp *q)
{
	if (q->state != QMP_RESTING)
		return;
	if (q->session) { /* put to rest a moment ago: goes on */
		q->state = qmp_session_phase(q->session) == QMP_PHASE_READY ? QMP_UP
									    : QMP_CONNECTING;
		arm(q);
		return;
	}
	q->state = QMP_CONNECTING;
	arm_timer(q, now_us());
}

void qmp_rest(struct qmp *q)
{
	if (q->state == QMP_RESTING)
		return;
	if (q->state == QMP_UP)
		q->retry_us = 0;
	q->state = QMP_RESTING;
	arm_timer(q, q->session ? now_us() : UINT64_MAX);
}

int qmp_command(struct qmp *q, const char *name, json_t *args, qmp_done done, void *arg)
{
	int r;

	if (q->state != QMP_UP || !q->session) {
		json_decref(args);
		return -ENOTCONN;
	}
	r = qmp_session_command(q->session, name, args, done, arg, now_us());
	if (r == 0)
		arm(q);
	return r;
}

enum qmp_state qmp_state(const struct qmp *q)
{
	return q->state;
}

int qmp_error(const struct qmp *q)
{
	return q->error;
}

const char *qmp_error_text(const struct qmp *q)
{
	return q->error_text;
}

const char *qmp_version(const struct qmp *q)
{
	return q->version;
}
