/* SPDX-License-Identifier: MIT */
/*
 * Sockets and clients; what is said on them is in control_reply.c.
 *
 * A client has one request in work at a time. While its reply is not written, or another complete
 * request waits in its buffer, the client is polled for POLLOUT only, and each wake-up does one of
 * the two: so neither its input nor its output grows without bound, and a client that sends a
 * thousand requests at once does not keep the loop from the others.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "daemon/control_reply.h"

/* A handful of administrators and scripts; more is a bug or an attack. */
#define CLIENTS_MAX 16
/* Longer than a busy script pauses, short enough that 16 forgotten ones do not lock the door
 * for long. */
#define TIMEOUT_DEFAULT_US (30 * 1000000ULL)
/* Out of descriptors: accept() would fail, and wake us, again and again. */
#define ACCEPT_RETRY_US 1000000ULL

struct client {
	struct control *control; /* NULL: the slot is free */
	int fd;
	sd_event_source *io, *deadline;
	char *in; /* CONTROL_REQUEST_MAX bytes */
	size_t in_len;
	char *out; /* the reply being written; NULL: none */
	size_t out_len, out_at;
	bool eof;     /* the client sends no more */
	bool closing; /* close when the reply is out */
};

struct control {
	sd_event *event;
	const struct control_ops *ops;
	void *core;
	u64 timeout_us;
	int fd;
	sd_event_source *io, *retry;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	dev_t dev; /* of the socket file, so that we unlink none but our own */
	ino_t ino;
	struct client clients[CLIENTS_MAX];
};

static void client_close(struct client *c)
{
	if (!c->control)
		return;
	sd_event_source_disable_unref(c->io);
	sd_event_source_disable_unref(c->deadline);
	close(c->fd);
	free(c->in);
	free(c->out);
	memset(c, 0, sizeof(*c));
}

/* Bytes up to and with the first line end, 0 if there is none. */
static size_t complete_line(const struct client *c)
{
	const char *end = memchr(c->in, '\n', c->in_len);

	return end ? (size_t)(end - c->in) + 1 : 0;
}

/* Only a finished reply buys more time: a client that drips bytes is no better than a silent
 * one. */
static int client_restart_deadline(struct client *c)
{
	int r = sd_event_source_set_time_relative(c->deadline, c->control->timeout_us);

	return r < 0 ? r : sd_event_source_set_enabled(c->deadline, SD_EVENT_ONESHOT);
}

/* Takes over @line. */
static int client_queue(struct client *c, char *line)
{
	if (!line)
		return -ENOMEM;
	c->out = line;
	c->out_len = strlen(line);
	c->out_at = 0;
	return 0;
}

static int client_refuse(struct client *c, const char *why)
{
	c->closing = true;
	c->in_len = 0;
	return client_queue(c, control_reply_error("%s", why));
}

/* Answers the first request of the buffer, if there is a whole one. */
static int client_answer(struct client *c)
{
	size_t len = complete_line(c);
	bool malformed;
	char *line;

	if (len == 0 && c->in_len == CONTROL_REQUEST_MAX)
		return client_refuse(c, "the request is too long (at most 65536 bytes)");
	if (len == 0 && c->eof && c->in_len > 0)
		return client_refuse(c, "the request does not end with a line end");
	if (len == 0) {
		c->closing = c->eof;
		return 0;
	}
	line = control_reply(c->control->ops, c->control->core, c->in, len - 1, &malformed);
	memmove(c->in, c->in + len, c->in_len - len);
	c->in_len -= len;
	c->closing = malformed;
	return client_queue(c, line);
}

static int client_read(struct client *c)
{
	ssize_t n = recv(c->fd, c->in + c->in_len, CONTROL_REQUEST_MAX - c->in_len, 0);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		c->eof = true;
	c->in_len += (size_t)n;
	return 0;
}

static int client_write(struct client *c)
{
	ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	c->out_at += (size_t)n;
	if (c->out_at < c->out_len)
		return 0;
	free(c->out);
	c->out = NULL;
	return client_restart_deadline(c);
}

static int on_client(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct client *c = arg;
	bool busy;
	int r = 0;

	if (!c->out && (revents & EPOLLIN))
		r = client_read(c);
	if (r == 0 && !c->out)
		r = client_answer(c);
	if (r == 0 && c->out)
		r = client_write(c);
	/* EPOLLHUP: both ways are closed, so nobody waits for a reply any more. */
	if (r < 0 || (!c->out && c->closing) || (revents & (EPOLLHUP | EPOLLERR))) {
		client_close(c);
		return 0;
	}
	busy = c->out || c->eof || c->in_len == CONTROL_REQUEST_MAX || complete_line(c);
	if (sd_event_source_set_io_events(c->io, busy ? EPOLLOUT : EPOLLIN) < 0)
		client_close(c);
	return 0;
}

static int on_deadline(sd_event_source *source, uint64_t usec, void *arg)
{
	client_close(arg);
	return 0;
}

static bool peer_allowed(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	/* The socket's mode says the same; this holds also where somebody has changed it. */
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
	       (cred.uid == 0 || cred.uid == geteuid());
}

static struct client *free_slot(struct control *ctl)
{
	for (u32 i = 0; i < CLIENTS_MAX; i++) {
		if (!ctl->clients[i].control)
			return &ctl->clients[i];
	}
	return NULL;
}

/* Puts a connection into a free slot; takes over @fd, also when it fails and the slot stays
 * free. */
static int client_start(struct control *ctl, struct client *c, int fd)
{
	int r = -ENOMEM;

	c->control = ctl;
	c->fd = fd;
	c->in = malloc(CONTROL_REQUEST_MAX);
	if (!c->in)
		goto fail;
	r = sd_event_add_io(ctl->event, &c->io, fd, EPOLLIN, on_client, c);
	if (r < 0)
		goto fail;
	r = sd_event_add_time_relative(ctl->event, &c->deadline, CLOCK_MONOTONIC, ctl->timeout_us,
				       0, on_deadline, c);
	if (r < 0)
		goto fail;
	return 0;
fail:
	client_close(c);
	return r;
}

/* A fresh socket always has room for one line, so this needs no event loop. Closes @fd. */
static void turn_away(int fd, const char *why)
{
	char *line = control_reply_error("%s", why);

	if (line)
		(void)!send(fd, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT);
	free(line);
	close(fd);
}

static int on_retry(sd_event_source *source, uint64_t usec, void *arg)
{
	struct control *ctl = arg;

	sd_event_source_set_enabled(ctl->io, SD_EVENT_ON);
	return 0;
}

static int on_accept(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct control *ctl = arg;
	int conn = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct client *slot;

	if (conn < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			sd_event_source_set_enabled(ctl->io, SD_EVENT_OFF);
			sd_event_source_set_time_relative(ctl->retry, ACCEPT_RETRY_US);
			sd_event_source_set_enabled(ctl->retry, SD_EVENT_ONESHOT);
		}
		return 0;
	}
	if (!peer_allowed(conn))
		turn_away(conn, "only root may control ballastd");
	else if (!(slot = free_slot(ctl)))
		turn_away(conn, "too many clients are connected (try again)");
	else
		client_start(ctl, slot, conn);
	return 0;
}

static int fill_address(struct sockaddr_un *sa, const char *path)
{
	size_t len = strlen(path);

	if (len == 0 || len >= sizeof(sa->sun_path))
		return -ENAMETOOLONG;
	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	memcpy(sa->sun_path, path, len + 1);
	return 0;
}

/* A socket file that nobody listens on is left over from a daemon that was killed. Anything
 * else stays. */
static int remove_stale(const struct sockaddr_un *sa)
{
	struct stat st;
	int fd, r = 0;

	if (lstat(sa->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 || errno != ECONNREFUSED)
		r = -EADDRINUSE;
	close(fd);
	if (r == 0 && unlink(sa->sun_path) < 0 && errno != ENOENT)
		r = -errno;
	return r;
}

static int control_listen(struct control *ctl, const char *path)
{
	struct sockaddr_un sa;
	struct stat st;
	int r;

	r = fill_address(&sa, path);
	if (r < 0)
		return r;
	r = remove_stale(&sa);
	if (r < 0)
		return r;
	ctl->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (ctl->fd < 0)
		return -errno;
	/* On Linux, bind() gives the file the mode of the socket (less the umask): it is never
	 * open to others, not for a moment, and the umask of the other threads stays alone. */
	if (fchmod(ctl->fd, 0600) < 0)
		return -errno;
	if (bind(ctl->fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	memcpy(ctl->path, sa.sun_path, sizeof(ctl->path));
	if (lstat(path, &st) < 0)
		return -errno;
	ctl->dev = st.st_dev;
	ctl->ino = st.st_ino;
	return listen(ctl->fd, CLIENTS_MAX) < 0 ? -errno : 0;
}

int control_new(sd_event *event, const char *path, const struct control_ops *ops, void *core,
		struct control **ret)
{
	struct control *ctl = calloc(1, sizeof(*ctl));
	int r;

	if (!ctl)
		return -ENOMEM;
	ctl->fd = -1;
	ctl->event = sd_event_ref(event);
	ctl->ops = ops;
	ctl->core = core;
	ctl->timeout_us = TIMEOUT_DEFAULT_US;
	r = control_listen(ctl, path);
	if (r < 0)
		goto fail;
	r = sd_event_add_io(event, &ctl->io, ctl->fd, EPOLLIN, on_accept, ctl);
	if (r < 0)
		goto fail;
	r = sd_event_add_time_relative(event, &ctl->retry, CLOCK_MONOTONIC, 0, 0, on_retry, ctl);
	if (r < 0)
		goto fail;
	r = sd_event_source_set_enabled(ctl->retry, SD_EVENT_OFF);
	if (r < 0)
		goto fail;
	*ret = ctl;
	return 0;
fail:
	control_free(ctl);
	return r;
}

void control_set_timeout(struct control *ctl, u64 timeout_us)
{
	ctl->timeout_us = timeout_us;
}

void control_free(struct control *ctl)
{
	struct stat st;

	if (!ctl)
		return;
	for (u32 i = 0; i < CLIENTS_MAX; i++)
		client_close(&ctl->clients[i]);
	sd_event_source_disable_unref(ctl->io);
	sd_event_source_disable_unref(ctl->retry);
	if (ctl->fd >= 0)
		close(ctl->fd);
	if (ctl->path[0] && lstat(ctl->path, &st) == 0 && st.st_dev == ctl->dev &&
	    st.st_ino == ctl->ino)
		unlink(ctl->path);
	sd_event_unref(ctl->event);
	free(ctl);
}
