/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/version.h"
#include "vmm/monitor.h"

#define READ_BYTES 4096 /* of one client before others are served */

struct client {
	struct monitor *m;
	sd_event_source *io;
	int fd;
	bool negotiated;
	bool hang_up; /* once what is to be sent is sent */
	char *in, *out;
	size_t in_start, in_bytes; /* what is not handled yet: [in_start, in_start + in_bytes) */
	size_t out_bytes;
};

struct monitor {
	struct vm *vm;
	sd_event_source *listen;
	int fd;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct stat st; /* of the socket's file: another one is not ours to remove */
	struct client *clients[MONITOR_CLIENTS_MAX];
};

int monitor_fail(struct monitor_call *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->error, sizeof(c->error), fmt, ap);
	va_end(ap);
	return -EINVAL;
}

static void client_free(struct client *c)
{
	if (!c)
		return;
	for (u32 i = 0; i < MONITOR_CLIENTS_MAX; i++) {
		if (c->m->clients[i] == c)
			c->m->clients[i] = NULL;
	}
	sd_event_source_disable_unref(c->io);
	if (c->fd >= 0)
		close(c->fd);
	free(c->in);
	free(c->out);
	free(c);
}

/* --- out ---------------------------------------------------------------------------------------
 */

/* Sends what the socket takes. Negative errno: the client is gone. */
static int flush(struct client *c)
{
	size_t sent = 0;
	int r = 0;

	while (sent < c->out_bytes) {
		ssize_t n = send(c->fd, c->out + sent, c->out_bytes - sent,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			r = errno == EAGAIN ? 0 : -errno;
			break;
		}
		sent += (size_t)n;
	}
	memmove(c->out, c->out + sent, c->out_bytes - sent);
	c->out_bytes -= sent;
	/* Nothing more is read from who does not read. */
	if (c->io)
		sd_event_source_set_io_events(c->io, c->out_bytes ? EPOLLOUT : EPOLLIN);
	return r;
}

/* Takes over @msg. What does not fit is the client's fault: it is hung up on. */
static void say(struct client *c, json_t *msg)
{
	char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
	size_t bytes = text ? strlen(text) : 0;

	json_decref(msg);
	if (!text || c->out_bytes + bytes + 2 > MONITOR_OUT_MAX) {
		c->hang_up = true;
		c->out_bytes = 0;
	} else {
		memcpy(c->out + c->out_bytes, text, bytes);
		memcpy(c->out + c->out_bytes + bytes, "\r\n", 2);
		c->out_bytes += bytes + 2;
	}
	free(text);
}

static void say_error(struct client *c, const char *class, const char *text, const json_t *id)
{
	json_t *msg = json_pack("{s:{s:s,s:s}}", "error", "class", class, "desc", text);

	if (msg && id)
		json_object_set(msg, "id", (json_t *)id);
	say(c, msg);
}

static json_t *greeting(void)
{
	return json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[]}}", "QMP", "version", "qemu", "major", 0,
			 "minor", 1, "micro", 0, "package", "ballast-vmm " BALLAST_VERSION,
			 "capabilities");
}

void monitor_event(struct monitor *m, const char *name, json_t *data)
{
	u64 now = clock_us(CLOCK_REALTIME);

	for (u32 i = 0; m && i < MONITOR_CLIENTS_MAX; i++) {
		struct client *c = m->clients[i];
		json_t *msg;

		if (!c || !c->negotiated || c->hang_up)
			continue;
		msg = json_pack("{s:s,s:{s:I,s:I}}", "event", name, "timestamp", "seconds",
				(json_int_t)(now / 1000000), "microseconds",
				(json_int_t)(now % 1000000));
		if (msg && data)
			json_object_set(msg, "data", data);
		say(c, msg);
		/* Errors are seen when the client is served next. */
		flush(c);
	}
	json_decref(data);
}

/* --- in ----------------------------------------------------------------------------------------
 */

static const struct monitor_command *find_command(const char *name)
{
	for (const struct monitor_command *cmd = monitor_commands; cmd->name; cmd++) {
		if (strcmp(cmd->name, name) == 0)
			return cmd;
	}
	return NULL;
}

static void run_command(struct client *c, const struct monitor_command *cmd, const json_t *args,
			const json_t *id)
{
	struct monitor_call call = { .vm = c->m->vm, .args = args };
	json_t *msg;

	if (cmd->run(&call) < 0) {
		json_decref(call.ret);
		say_error(c, call.class ? call.class : "GenericError", call.error, id);
		return;
	}
	msg = json_object();
	json_object_set_new(msg, "return", call.ret ? call.ret : json_object());
	if (id)
		json_object_set(msg, "id", (json_t *)id);
	say(c, msg);
}

/* What QEMU answers, too: the class CommandNotFound also before the negotiation. */
static void handle(struct client *c, const json_t *msg)
{
	const json_t *id = json_object_get(msg, "id"), *args = json_object_get(msg, "arguments");
	const char *name = json_string_value(json_object_get(msg, "execute"));
	const struct monitor_command *cmd;

	if (!json_is_object(msg) || !name) {
		say_error(c, "GenericError", "expected an object with a string \"execute\"", id);
		return;
	}
	if (args && !json_is_object(args)) {
		say_error(c, "GenericError", "\"arguments\" must be an object", id);
		return;
	}
	if (strcmp(name, "qmp_capabilities") == 0) {
		if (c->negotiated) {
			say_error(c, "CommandNotFound", "capabilities are negotiated already", id);
			return;
		}
		c->negotiated = true;
		msg = json_pack("{s:{}}", "return");
		if (msg && id)
			json_object_set((json_t *)msg, "id", (json_t *)id);
		say(c, (json_t *)msg);
		return;
	}
	if (!c->negotiated) {
		say_error(c, "CommandNotFound",
			  "expecting capabilities negotiation: qmp_capabilities", id);
		return;
	}
	cmd = find_command(name);
	if (cmd)
		run_command(c, cmd, args, id);
	else
		say_error(c, "CommandNotFound", "no such command (query-commands)", id);
}

static size_t white_space(const char *s, size_t bytes)
{
	size_t n = 0;

	while (n < bytes && strchr(" \t\r\n", s[n]) && s[n])
		n++;
	return n;
}

/* Takes one message out of the input. False: there is no whole one, or the client is to go. */
static bool take_message(struct client *c)
{
	size_t skip = white_space(c->in + c->in_start, c->in_bytes);
	json_error_t e;
	json_t *msg;

	c->in_start += skip;
	c->in_bytes -= skip;
	if (c->in_bytes == 0 || c->hang_up)
		return false;
	msg = json_loadb(c->in + c->in_start, c->in_bytes,
			 JSON_DISABLE_EOF_CHECK | JSON_REJECT_DUPLICATES, &e);
	if (!msg && json_error_code(&e) == json_error_premature_end_of_input &&
	    c->in_bytes < MONITOR_IN_MAX)
		return false;
	if (!msg) {
		/* Where the next message begins is anybody's guess. */
		say_error(c, "GenericError",
			  c->in_bytes < MONITOR_IN_MAX ? "invalid JSON" : "message too long", NULL);
		c->hang_up = true;
		return false;
	}
	c->in_start += (size_t)e.position;
	c->in_bytes -= (size_t)e.position;
	handle(c, msg);
	json_decref(msg);
	return true;
}

/* Negative: the client is gone. */
static int receive(struct client *c)
{
	ssize_t n;

	memmove(c->in, c->in + c->in_start, c->in_bytes);
	c->in_start = 0;
	n = recv(c->fd, c->in + c->in_bytes, MIN(MONITOR_IN_MAX - c->in_bytes, (size_t)READ_BYTES),
		 MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ECONNRESET;
	c->in_bytes += (size_t)n;
	return 0;
}

/* Handles what came, as far as the answers are read. What is left waits in the buffer until the
 * client has read them. */
static int serve(struct client *c)
{
	u32 taken;
	int r;

	do {
		taken = 0;
		while (c->out_bytes < MONITOR_OUT_MAX / 2 && take_message(c))
			taken++;
		r = flush(c);
	} while (r == 0 && taken > 0 && c->out_bytes == 0 && !c->hang_up);
	return r;
}

static int on_client(sd_event_source *s, int fd, uint32_t events, void *arg)
{
	struct client *c = arg;
	int r = 0;

	if (c->out_bytes == 0 && !c->hang_up)
		r = receive(c);
	if (r == 0)
		r = serve(c);
	if (r < 0 || (c->hang_up && c->out_bytes == 0))
		client_free(c);
	return 0;
}

static int on_listen(sd_event_source *s, int fd, uint32_t events, void *arg)
{
	struct monitor *m = arg;
	struct client *c;
	u32 i = 0;
	int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (conn < 0)
		return 0;
	while (i < MONITOR_CLIENTS_MAX && m->clients[i])
		i++;
	c = i < MONITOR_CLIENTS_MAX ? calloc(1, sizeof(*c)) : NULL;
	if (!c) {
		close(conn);
		return 0;
	}
	c->m = m;
	c->fd = conn;
	c->in = malloc(MONITOR_IN_MAX);
	c->out = malloc(MONITOR_OUT_MAX);
	if (!c->in || !c->out ||
	    sd_event_add_io(m->vm->loop, &c->io, conn, EPOLLIN, on_client, c) < 0) {
		client_free(c);
		return 0;
	}
	m->clients[i] = c;
	say(c, greeting());
	if (flush(c) < 0)
		client_free(c);
	return 0;
}

/* --- life --------------------------------------------------------------------------------------
 */

/* A socket's file of a VM that was killed stands in the way. */
static bool is_dead(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct stat st;
	bool dead;

	if (fd < 0)
		return false;
	dead = lstat(addr->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
	       connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
	       errno == ECONNREFUSED;
	close(fd);
	return dead;
}

static int listen_on(struct monitor *m, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	strcpy(m->path, path);
	m->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* The file gets the mode that the socket has when it is bound: no moment with another. */
	if (m->fd < 0 || fchmod(m->fd, 0600) < 0)
		return -errno;
	if (bind(m->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		if (errno != EADDRINUSE)
			return -errno;
		if (!is_dead(&addr) || unlink(path) < 0 ||
		    bind(m->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
			return -EADDRINUSE;
	}
	if (stat(path, &m->st) < 0 || listen(m->fd, MONITOR_CLIENTS_MAX) < 0)
		return -errno;
	return 0;
}

int monitor_new(struct vm *vm, const char *path, struct monitor **ret)
{
	struct monitor *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->vm = vm;
	m->fd = -1;
	r = listen_on(m, path);
	if (r == 0)
		r = sd_event_add_io(vm->loop, &m->listen, m->fd, EPOLLIN, on_listen, m);
	if (r < 0) {
		monitor_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

void monitor_free(struct monitor *m)
{
	struct stat st;

	if (!m)
		return;
	for (u32 i = 0; i < MONITOR_CLIENTS_MAX; i++) {
		if (m->clients[i])
			flush(m->clients[i]);
		client_free(m->clients[i]);
	}
	sd_event_source_disable_unref(m->listen);
	if (m->st.st_ino && stat(m->path, &st) == 0 && st.st_ino == m->st.st_ino &&
	    st.st_dev == m->st.st_dev)
		unlink(m->path);
	if (m->fd >= 0)
		close(m->fd);
	free(m);
}
