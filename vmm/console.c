/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include "common/clock.h"
#include "vmm/console.h"

#define OUT_BYTES 65536 /* a guest's boot messages, without waiting for a slow reader */
#define IN_BYTES  4096
#define ESCAPE	  0x01	  /* Ctrl-A */
#define WRITE_MAX 4096	  /* a pipe that polls writable takes so much without blocking */
#define LINGER_US 1000000 /* at the end: time for what is still to be written */

struct console {
	const struct console_client *client;
	int in_fd, out_fd, wake_fd;
	bool own_out_fd, terminal, escaped;
	sd_event_source *in, *out, *wake;

	pthread_mutex_t lock; /* guards what follows */
	u8 out_buf[OUT_BYTES];
	size_t out_start, out_bytes;
	bool out_waits;	 /* a put() was refused */
	bool out_broken; /* nobody reads any more: output is dropped */
	bool in_again;	 /* console_input_ready() was called */

	u8 in_buf[IN_BYTES]; /* read but not taken; the main thread's */
	size_t in_bytes;
};

/* For console_restore(), which has no argument: a process has one terminal. */
static struct termios saved_termios;
static volatile sig_atomic_t termios_is_saved;

void console_restore(void)
{
	if (!termios_is_saved)
		return;
	termios_is_saved = 0;
	tcsetattr(STDIN_FILENO, TCSANOW, &saved_termios);
}

static int make_raw(struct console *c)
{
	struct termios t;

	if (tcgetattr(STDIN_FILENO, &saved_termios) < 0)
		return -errno;
	t = saved_termios;
	cfmakeraw(&t);
	/* Our own lines (and the shell's, should we be killed) still start at the left. */
	t.c_oflag |= OPOST;
	/* From the background this would stop us: leave the terminal alone then. */
	if (tcgetpgrp(STDIN_FILENO) != getpgrp())
		return -EPERM;
	termios_is_saved = 1;
	if (tcsetattr(STDIN_FILENO, TCSADRAIN, &t) < 0) {
		termios_is_saved = 0;
		return -errno;
	}
	c->terminal = true;
	return 0;
}

/* Hands the client what was read; stops reading while it takes no more. */
static void push_input(struct console *c)
{
	size_t taken = c->in_bytes ? c->client->input(c->client->arg, c->in_buf, c->in_bytes) : 0;

	memmove(c->in_buf, c->in_buf + taken, c->in_bytes - taken);
	c->in_bytes -= taken;
	if (c->in)
		sd_event_source_set_enabled(c->in, c->in_bytes ? SD_EVENT_OFF : SD_EVENT_ON);
}

/* The terminal's escape: true if @byte is not for the guest. */
static bool escape(struct console *c, u8 byte)
{
	if (!c->escaped && byte == ESCAPE) {
		c->escaped = true;
		return true;
	}
	if (!c->escaped)
		return false;
	c->escaped = false;
	if (byte == 'x') {
		c->client->quit(c->client->arg);
		return true;
	}
	return byte != ESCAPE;
}

static void end_input(struct console *c)
{
	c->in = sd_event_source_disable_unref(c->in);
}

static void read_input(struct console *c)
{
	u8 buf[IN_BYTES];
	ssize_t n = read(c->in_fd, buf, sizeof(buf) - c->in_bytes);

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		end_input(c);
		return;
	}
	for (ssize_t i = 0; i < n; i++) {
		if (!c->terminal || !escape(c, buf[i]))
			c->in_buf[c->in_bytes++] = buf[i];
	}
	push_input(c);
}

static int on_input(sd_event_source *s, int fd, uint32_t events, void *arg)
{
	read_input(arg);
	return 0;
}

static int on_input_file(sd_event_source *s, void *arg)
{
	read_input(arg);
	return 0;
}

/* Writes what it can without waiting. Called with the lock held. */
static void flush_out(struct console *c)
{
	while (c->out_bytes) {
		size_t n = MIN(c->out_bytes, OUT_BYTES - c->out_start);
		struct pollfd p = { .fd = c->out_fd, .events = POLLOUT };
		ssize_t done;

		if (!c->own_out_fd && poll(&p, 1, 0) == 0)
			return;
		done = write(c->out_fd, c->out_buf + c->out_start, MIN(n, (size_t)WRITE_MAX));
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0 && errno == EAGAIN)
			return;
		if (done <= 0) {
			c->out_broken = true;
			c->out_bytes = 0;
			return;
		}
		c->out_start = (c->out_start + (size_t)done) % OUT_BYTES;
		c->out_bytes -= (size_t)done;
	}
}

/* Writes, and says whether the client waits for the room that this made. */
static bool drain(struct console *c)
{
	bool ready;

	pthread_mutex_lock(&c->lock);
	flush_out(c);
	ready = c->out_waits && c->out_bytes <= OUT_BYTES / 2;
	if (ready)
		c->out_waits = false;
	/* A file is always ready and has no event source. */
	if (c->out)
		sd_event_source_set_enabled(c->out, c->out_bytes ? SD_EVENT_ON : SD_EVENT_OFF);
	pthread_mutex_unlock(&c->lock);
	return ready;
}

static int on_output(sd_event_source *s, int fd, uint32_t events, void *arg)
{
	struct console *c = arg;

	if (drain(c))
		c->client->output_ready(c->client->arg);
	return 0;
}

static int on_wake(sd_event_source *s, int fd, uint32_t events, void *arg)
{
	struct console *c = arg;
	bool again;
	u64 n;

	if (read(fd, &n, sizeof(n)) < 0)
		return 0;
	pthread_mutex_lock(&c->lock);
	again = c->in_again;
	c->in_again = false;
	pthread_mutex_unlock(&c->lock);
	if (drain(c))
		c->client->output_ready(c->client->arg);
	if (again)
		push_input(c);
	return 0;
}

static void wake(struct console *c)
{
	u64 one = 1;

	/* Fails only when it is full, and then it wakes. */
	if (write(c->wake_fd, &one, sizeof(one)) < 0)
		return;
}

bool console_put(struct console *c, u8 byte)
{
	bool first, room;

	pthread_mutex_lock(&c->lock);
	first = c->out_bytes == 0;
	room = c->out_broken || c->out_bytes < OUT_BYTES;
	if (room && !c->out_broken)
		c->out_buf[(c->out_start + c->out_bytes++) % OUT_BYTES] = byte;
	if (!room)
		c->out_waits = true;
	first = first && c->out_bytes > 0;
	pthread_mutex_unlock(&c->lock);
	if (first)
		wake(c);
	return room;
}

void console_input_ready(struct console *c)
{
	pthread_mutex_lock(&c->lock);
	c->in_again = true;
	pthread_mutex_unlock(&c->lock);
	wake(c);
}

/* A descriptor of our own where the kernel lets us have one: O_NONBLOCK is then nobody else's. */
static void open_out(struct console *c)
{
	struct stat st;
	int fd = -1;

	c->out_fd = STDOUT_FILENO;
	if (fstat(STDOUT_FILENO, &st) < 0)
		return;
	if (S_ISFIFO(st.st_mode) || (S_ISCHR(st.st_mode) && isatty(STDOUT_FILENO)))
		fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return;
	c->out_fd = fd;
	c->own_out_fd = true;
}

static int add_sources(struct console *c, sd_event *loop)
{
	int r;

	r = sd_event_add_io(loop, &c->wake, c->wake_fd, EPOLLIN, on_wake, c);
	if (r < 0)
		return r;
	r = sd_event_add_io(loop, &c->out, c->out_fd, EPOLLOUT, on_output, c);
	if (r == 0)
		r = sd_event_source_set_enabled(c->out, SD_EVENT_OFF);
	if (r < 0 && r != -EPERM && r != -EBADF)
		return r;
	r = sd_event_add_io(loop, &c->in, c->in_fd, EPOLLIN, on_input, c);
	/* Files (and /dev/null) cannot be polled, and need not be. */
	if (r == -EPERM) {
		r = sd_event_add_defer(loop, &c->in, on_input_file, c);
		if (r == 0)
			r = sd_event_source_set_enabled(c->in, SD_EVENT_ON);
	}
	return r < 0 && r != -EBADF && r != -EEXIST ? r : 0;
}

int console_new(sd_event *loop, const struct console_client *client, struct console **ret)
{
	struct console *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->client = client;
	c->in_fd = STDIN_FILENO;
	pthread_mutex_init(&c->lock, NULL);
	open_out(c);
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = c->wake_fd < 0 ? -errno : add_sources(c, loop);
	if (r < 0) {
		console_free(c);
		return r;
	}
	if (isatty(STDIN_FILENO))
		make_raw(c); /* without it the guest is only less comfortable */
	*ret = c;
	return 0;
}

void console_free(struct console *c)
{
	u64 until = now_us() + LINGER_US;

	if (!c)
		return;
	end_input(c);
	sd_event_source_disable_unref(c->out);
	sd_event_source_disable_unref(c->wake);
	pthread_mutex_lock(&c->lock);
	for (flush_out(c); c->out_bytes && now_us() < until; flush_out(c)) {
		struct pollfd p = { .fd = c->out_fd, .events = POLLOUT };

		poll(&p, 1, 100);
	}
	pthread_mutex_unlock(&c->lock);
	console_restore();
	if (c->own_out_fd)
		close(c->out_fd);
	if (c->wake_fd >= 0)
		close(c->wake_fd);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
