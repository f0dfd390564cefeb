/* SPDX-License-Identifier: MIT */
/* The daemon's control socket, from the outside: daemon/control.h describes it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include "ctl/ctl.h"

/* A daemon that is busy answers late, one that hangs never does. */
#define REPLY_TIMEOUT_S 30
/* Some KiB for each VM; far above any host, far below what would hurt. */
#define REPLY_BYTES_MAX (64 << 20)

static int connect_daemon(const char *path)
{
	struct timeval timeout = { .tv_sec = REPLY_TIMEOUT_S };
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd, error;

	if (strlen(path) >= sizeof(sa.sun_path)) {
		ctl_error("the socket path is too long (at most %zu bytes): %s",
			  sizeof(sa.sun_path) - 1, path);
		return -1;
	}
	strcpy(sa.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		ctl_error("cannot make a socket: %s", strerror(errno));
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
		return fd;
	error = errno;
	close(fd);
	switch (error) {
	case ENOENT:
	case ECONNREFUSED:
	case ENOTDIR:
		ctl_error("ballastd does not run: nobody listens on %s (start it with \"systemctl "
			  "start ballastd\", or name its socket with --socket)",
			  path);
		break;
	case EACCES:
	case EPERM:
		ctl_error("no permission to use %s (run as root)", path);
		break;
	default:
		ctl_error("cannot connect to %s: %s", path, strerror(error));
	}
	return -1;
}

/* An error of send() is not told: the daemon may have refused us with a reply that is worth
 * reading. */
static void send_all(int fd, const char *text)
{
	size_t len = strlen(text);

	while (len > 0) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

/* Reads up to the first line end. Returns NULL with errno, or 0 in errno at the end of the
 * connection. */
static char *receive_line(int fd, size_t *ret_len)
{
	char *buf = NULL, *grown, *end;
	size_t len = 0, cap = 0;
	ssize_t n;

	for (;;) {
		if (len == cap) {
			errno = EMSGSIZE;
			if (cap >= REPLY_BYTES_MAX)
				break;
			cap = cap ? cap * 2 : 65536;
			grown = realloc(buf, cap);
			if (!grown)
				break;
			buf = grown;
		}
		n = recv(fd, buf + len, cap - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			errno = 0;
		if (n <= 0)
			break;
		end = memchr(buf + len, '\n', (size_t)n);
		len += (size_t)n;
		if (end) {
			*ret_len = (size_t)(end - buf);
			return buf;
		}
	}
	n = errno;
	free(buf);
	errno = (int)n;
	return NULL;
}

static int check_reply(const struct ctl_options *o, const char *line, size_t len, json_t **ret)
{
	json_t *j = json_loadb(line, len, 0, NULL);
	const char *error = json_string_value(json_object_get(j, "error"));
	char safe[1024];

	if (json_is_true(json_object_get(j, "ok"))) {
		*ret = j;
		return 0;
	}
	if (error) {
		ctl_error("%s", ctl_safe(safe, error));
	} else {
		ctl_error("%s does not answer as ballastd does (is it another program's socket, "
			  "or a ballastd of another version?)",
			  o->socket);
	}
	json_decref(j);
	return 1;
}

int ctl_call(const struct ctl_options *o, json_t *request, json_t **ret)
{
	char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
	char *line = NULL;
	size_t len;
	int fd = -1, r = 1;

	json_decref(request);
	if (!text) {
		ctl_error("cannot send that: it is not UTF-8 text");
		return 1;
	}
	fd = connect_daemon(o->socket);
	if (fd < 0)
		goto out;
	send_all(fd, text);
	send_all(fd, "\n");
	line = receive_line(fd, &len);
	if (line)
		r = check_reply(o, line, len, ret);
	else if (errno == EAGAIN)
		ctl_error("ballastd does not answer within %d s (its journal may say why)",
			  REPLY_TIMEOUT_S);
	else
		ctl_error("ballastd hung up without an answer%s%s (its journal may say why)",
			  errno ? ": " : "", errno ? strerror(errno) : "");
out:
	if (fd >= 0)
		close(fd);
	free(line);
	free(text);
	return r;
}
