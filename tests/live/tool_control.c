// SPDX-License-Identifier: MIT
/*
 * A bad client of a Unix stream socket: what ballastctl would never do on the daemon's control
 * socket.
 *
 *   tool_control PATH say [UID]         sends stdin, as user UID if given, then reads to the end;
 * prints what came tool_control PATH half              the same, but closes both ways as soon as
 * all is sent tool_control PATH hold COUNT        holds COUNT connections and says nothing, until
 * SIGTERM or all are closed tool_control PATH drip              sends a space every 100 ms until
 * the daemon closes; prints the seconds tool_control PATH deaf COUNT        sends requests on COUNT
 * connections without reading, as many as it can in 3 s tool_control PATH churn COUNT connects and
 * closes, COUNT times, every other time with half a request
 *
 * Exit status 0: done; 1: could not connect, the reason is on stderr; 2: wrong usage; 3: no end
 * after 10 s.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"

#define ANSWER_MS 10000
#define DEAF_US	  3000000
#define HOLD_MOST 1024

static volatile sig_atomic_t stop_signal;

static void on_stop(int sig)
{
	stop_signal = 1;
}

static int dial(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
		return fd;
	fprintf(stderr, "tool_control: %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

static int become(uid_t uid)
{
	if (setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 &&
	    setresuid(uid, uid, uid) == 0)
		return 0;
	fprintf(stderr, "tool_control: cannot become user %u: %s\n", uid, strerror(errno));
	return -1;
}

/* Prints what comes until the daemon closes. */
static int print_all(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char buf[65536];
	ssize_t n;

	for (;;) {
		if (poll(&p, 1, ANSWER_MS) <= 0)
			return 3;
		n = read(fd, buf, sizeof(buf));
		if (n <= 0)
			return 0;
		fwrite(buf, 1, (size_t)n, stdout);
	}
}

static int run_say(const char *path, bool half)
{
	int fd = dial(path), rc = 0;
	char buf[65536];
	ssize_t n;

	if (fd < 0)
		return 1;
	/* Who is not wanted is told so before he has sent all: that is no failure here. */
	while ((n = read(STDIN_FILENO, buf, sizeof(buf))) > 0)
		if (send(fd, buf, (size_t)n, MSG_NOSIGNAL) < 0)
			break;
	if (!half) {
		shutdown(fd, SHUT_WR);
		rc = print_all(fd);
	}
	close(fd);
	return rc;
}

static int run_hold(const char *path, u32 count)
{
	struct pollfd p[HOLD_MOST];
	u32 open = 0;

	if (count > HOLD_MOST)
		return 2;
	for (u32 i = 0; i < count; i++) {
		p[i] = (struct pollfd){ .fd = dial(path), .events = POLLIN };
		open += p[i].fd >= 0;
	}
	printf("holding %u\n", open);
	fflush(stdout);
	while (open && !stop_signal) {
		poll(p, count, 100);
		for (u32 i = 0; i < count; i++) {
			char buf[256];

			if (p[i].fd < 0 || !p[i].revents || read(p[i].fd, buf, sizeof(buf)) > 0)
				continue;
			close(p[i].fd);
			p[i].fd = -1;
			open--;
		}
	}
	printf("left %u\n", open);
	return 0;
}

static int run_drip(const char *path)
{
	int fd = dial(path);
	u64 begin = now_us();

	if (fd < 0)
		return 1;
	while (!stop_signal && send(fd, " ", 1, MSG_NOSIGNAL) == 1)
		usleep(100000);
	printf("closed after %u s\n", (u32)((now_us() - begin) / 1000000));
	return 0;
}

static int run_deaf(const char *path, u32 count)
{
	static const char request[] = "{\"command\": \"status\"}\n";
	u64 end = now_us() + DEAF_US, sent = 0;
	int fd[HOLD_MOST];

	if (count > HOLD_MOST)
		return 2;
	for (u32 i = 0; i < count; i++)
		fd[i] = dial(path);
	while (now_us() < end && !stop_signal) {
		bool progress = false;

		for (u32 i = 0; i < count; i++) {
			if (send(fd[i], request, sizeof(request) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) <
			    0)
				continue;
			sent++;
			progress = true;
		}
		if (!progress)
			usleep(10000);
	}
	printf("sent %llu\n", (unsigned long long)sent);
	return 0;
}

static int run_churn(const char *path, u32 count)
{
	for (u32 i = 0; i < count && !stop_signal; i++) {
		int fd = dial(path);

		if (fd < 0)
			return 1;
		if (i & 1)
			(void)!send(fd, "{\"comm", 6, MSG_NOSIGNAL);
		close(fd);
	}
	printf("churned %u\n", count);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[2] : "";
	u32 n = argc > 3 ? (u32)strtoul(argv[3], NULL, 10) : 0;
	struct sigaction act = { .sa_handler = on_stop };

	sigaction(SIGTERM, &act, NULL);
	if (strcmp(what, "say") == 0 && argc > 3 && become(n) < 0)
		return 1;
	if (strcmp(what, "say") == 0)
		return run_say(argv[1], false);
	if (strcmp(what, "half") == 0)
		return run_say(argv[1], true);
	if (strcmp(what, "hold") == 0)
		return run_hold(argv[1], n);
	if (strcmp(what, "drip") == 0)
		return run_drip(argv[1]);
	if (strcmp(what, "deaf") == 0)
		return run_deaf(argv[1], n);
	if (strcmp(what, "churn") == 0)
		return run_churn(argv[1], n);
	return 2;
}
