/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "daemon/cmdline.h"

struct cmdline {
	sd_event_source *io;
	int fd; /* where it comes from */
	void (*done)(void *arg, const char *args, size_t len);
	void *arg;
	char *text; /* CMDLINE_BYTES_MAX */
	size_t len;
};

/* All that a thread knows: it shares nothing with the main thread. */
struct job {
	int from, to;
};

static atomic_uint nr_threads;

static void *run(void *arg)
{
	struct job *job = arg;
	char buf[4096];
	ssize_t n;

	while ((n = read(job->from, buf, sizeof(buf))) > 0) {
		for (ssize_t at = 0; at < n;) {
			ssize_t written = write(job->to, buf + at, (size_t)(n - at));

			if (written <= 0)
				goto out;
			at += written;
		}
	}
out:
	close(job->from);
	close(job->to);
	free(job);
	atomic_fetch_sub(&nr_threads, 1);
	return NULL;
}

/* Takes over both descriptors, also on failure. */
static int start_thread(int from, int to)
{
	struct job *job = malloc(sizeof(*job));
	sigset_t all, before;
	pthread_attr_t attr;
	pthread_t thread;
	int r = ENOMEM;

	if (!job)
		goto fail;
	*job = (struct job){ from, to };
	if (atomic_fetch_add(&nr_threads, 1) >= CMDLINE_THREADS_MAX) {
		r = EAGAIN;
		goto fail_count;
	}
	r = pthread_attr_init(&attr);
	if (r)
		goto fail_count;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 65536);
	/* Signals are the main thread's; and a pipe that nobody reads any more is an error to us.
	 */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&thread, &attr, run, job);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0)
		return 0;
fail_count:
	atomic_fetch_sub(&nr_threads, 1);
	free(job);
fail:
	close(from);
	close(to);
	return -r;
}

static int on_input(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct cmdline *c = arg;
	size_t room = CMDLINE_BYTES_MAX - c->len;
	ssize_t n = room ? read(fd, c->text + c->len, room) : 0;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n > 0) {
		c->len += (size_t)n;
		return 0;
	}
	sd_event_source_set_enabled(s, SD_EVENT_OFF);
	c->done(c->arg, c->text, c->len);
	return 0;
}

int cmdline_start(sd_event *event, pid_t pid, void (*done)(void *arg, const char *args, size_t len),
		  void *arg, struct cmdline **ret)
{
	struct cmdline *c = calloc(1, sizeof(*c));
	int from, to[2], r = -ENOMEM;
	char path[32];

	if (!c)
		return -ENOMEM;
	c->fd = -1;
	c->done = done;
	c->arg = arg;
	c->text = malloc(CMDLINE_BYTES_MAX);
	if (!c->text)
		goto fail;
	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0) {
		r = -errno;
		goto fail;
	}
	if (pipe2(to, O_CLOEXEC) < 0) {
		r = -errno;
		close(from);
		goto fail;
	}
	c->fd = to[0];
	r = start_thread(from, to[1]);
	if (r < 0)
		goto fail;
	/* Ours alone: the thread's end waits for us. */
	if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0) {
		r = -errno;
		goto fail;
	}
	r = sd_event_add_io(event, &c->io, c->fd, EPOLLIN, on_input, c);
	if (r < 0)
		goto fail;
	*ret = c;
	return 0;
fail:
	cmdline_free(c);
	return r;
}

void cmdline_free(struct cmdline *c)
{
	if (!c)
		return;
	sd_event_source_disable_unref(c->io);
	if (c->fd >= 0)
		close(c->fd);
	free(c->text);
	free(c);
}
