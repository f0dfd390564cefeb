/* SPDX-License-Identifier: MIT */
/* The metrics server over real sockets on loopback. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <urcu.h>

#include "metrics/http.h"

struct source {
	atomic_int calls;
	int samples;
	bool fail;
	sigset_t mask;
};

static void collect(struct mx_writer *w, void *arg)
{
	struct source *s = arg;
	int i;

	atomic_fetch_add(&s->calls, 1);
	pthread_sigmask(SIG_SETMASK, NULL, &s->mask);
	/* Crashes (urcu's own check) or hangs a grace period if the thread is not registered. */
	rcu_read_lock();
	mx_family(w, "test_value", MX_GAUGE, "A value.");
	for (i = 0; i < s->samples; i++)
		mx_sample_u64(w, NULL, 0, 42);
	rcu_read_unlock();
	if (s->fail)
		mx_fail(w);
}

static int dial(int family, u16 port)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET,
				  .sin_port = htons(port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6,
				   .sin6_port = htons(port),
				   .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	/* A test that waits for ever says nothing. */
	struct timeval limit = { .tv_sec = 20 };
	int fd, r;

	fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_geq(fd, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	r = family == AF_INET ? connect(fd, (void *)&v4, sizeof(v4))
			      : connect(fd, (void *)&v6, sizeof(v6));
	cr_assert_eq(r, 0, "connect: %s", strerror(errno));
	return fd;
}

/* All that comes until the server closes; good until the next call. */
static const char *read_all(int fd)
{
	static char text[1 << 22];
	size_t bytes = 0;
	ssize_t n;

	while ((n = read(fd, text + bytes, sizeof(text) - 1 - bytes)) > 0)
		bytes += n;
	cr_assert_eq(n, 0, "read: %s", strerror(errno));
	text[bytes] = '\0';
	close(fd);
	return text;
}

static const char *ask(u16 port, const char *request)
{
	int fd = dial(AF_INET, port);

	cr_assert_eq(send(fd, request, strlen(request), MSG_NOSIGNAL), (ssize_t)strlen(request));
	return read_all(fd);
}

#define REQUEST(line) line " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

static struct mx_http *start(struct source *s)
{
	struct mx_http *h;

	cr_assert_eq(mx_http_start("127.0.0.1", 0, collect, s, &h), 0);
	cr_assert_neq(mx_http_port(h), 0);
	return h;
}

static const char *body(const char *reply)
{
	const char *p = strstr(reply, "\r\n\r\n");

	cr_assert_not_null(p);
	return p + 4;
}

static void assert_status(const char *reply, const char *status)
{
	cr_assert_eq(strncmp(reply, "HTTP/1.1 ", 9), 0, "no HTTP reply: %.60s", reply);
	cr_assert_eq(strncmp(reply + 9, status, 3), 0, "wanted %s: %.60s", status, reply);
}

Test(http, get_metrics)
{
	struct source s = { .samples = 1 };
	struct mx_http *h = start(&s);
	const char *reply = ask(mx_http_port(h), REQUEST("GET /metrics"));

	assert_status(reply, "200");
	cr_assert_not_null(
		strstr(reply, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
	cr_assert_str_eq(body(reply),
			 "# HELP test_value A value.\n# TYPE test_value gauge\ntest_value 42\n");
	cr_assert_eq(atomic_load(&s.calls), 1);
	mx_http_stop(h);
}

Test(http, other_paths_and_methods)
{
	struct source s = { .samples = 1 };
	struct mx_http *h = start(&s);
	u16 port = mx_http_port(h);
	const char *reply;

	reply = ask(port, REQUEST("GET /"));
	assert_status(reply, "200");
	cr_assert_not_null(strstr(body(reply), "href=\"/metrics\""));
	reply = ask(port, REQUEST("GET /metrics/x"));
	assert_status(reply, "404");
	reply = ask(port, REQUEST("GET /metrics?a=b"));
	assert_status(reply, "200");
	reply = ask(port, REQUEST("DELETE /metrics"));
	assert_status(reply, "405");
	cr_assert_not_null(strstr(reply, "Allow: GET, HEAD\r\n"));
	reply = ask(port,
		    "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegun");
	assert_status(reply, "405");
	cr_assert_eq(atomic_load(&s.calls), 1);
	mx_http_stop(h);
}

Test(http, head_has_no_body)
{
	struct source s = { .samples = 1 };
	struct mx_http *h = start(&s);
	const char *reply = ask(mx_http_port(h), REQUEST("HEAD /metrics"));

	assert_status(reply, "200");
	cr_assert_not_null(strstr(reply, "Content-Length: 65\r\n"), "%s", reply);
	cr_assert_str_eq(body(reply), "");
	mx_http_stop(h);
}

Test(http, large_reply)
{
	struct source s = { .samples = 200000 };
	struct mx_http *h = start(&s);
	const char *reply = ask(mx_http_port(h), REQUEST("GET /metrics"));

	assert_status(reply, "200");
	cr_assert_eq(strlen(body(reply)),
		     strlen("# HELP test_value A value.\n# TYPE test_value gauge\n") + 200000 * 14);
	mx_http_stop(h);
}

Test(http, no_memory_is_503)
{
	struct source s = { .fail = true };
	struct mx_http *h = start(&s);

	assert_status(ask(mx_http_port(h), REQUEST("GET /metrics")), "503");
	mx_http_stop(h);
}

Test(http, garbage_is_survived)
{
	static const char *const garbage[] = {
		"\r\n\r\n",
		"GET\r\n\r\n",
		"\x16\x03\x01\x02\x01\r\n\r\n",
		"GET /metrics HTTP/9.9\r\n\r\n",
	};
	struct source s = { .samples = 1 };
	struct mx_http *h = start(&s);
	char *big = malloc(100001);
	size_t i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(garbage); i++) {
		fd = dial(AF_INET, mx_http_port(h));
		send(fd, garbage[i], strlen(garbage[i]), MSG_NOSIGNAL);
		shutdown(fd, SHUT_WR);
		/* What comes back, if anything, is the server's choice. */
		close(fd);
	}
	/* A header that does not fit in a connection's memory. */
	memset(big, 'a', 100000);
	memcpy(big, "GET /", 5);
	fd = dial(AF_INET, mx_http_port(h));
	send(fd, big, 100000, MSG_NOSIGNAL);
	close(fd);
	assert_status(ask(mx_http_port(h), REQUEST("GET /metrics")), "200");
	mx_http_stop(h);
	free(big);
}

/* Silent clients take all connections; the idle time-out gives them back, and a scrape then works.
 */
Test(http, silent_clients_are_closed)
{
	struct source s = { .samples = 1 };
	struct mx_http *h = start(&s);
	int fds[20], i;
	const char *reply;

	for (i = 0; i < 20; i++)
		fds[i] = dial(AF_INET, mx_http_port(h));
	reply = ask(mx_http_port(h), REQUEST("GET /metrics"));
	assert_status(reply, "200");
	for (i = 0; i < 20; i++)
		close(fds[i]);
	mx_http_stop(h);
}

Test(http, takes_no_signals_and_leaves_ours)
{
	struct source s = { .samples = 1 };
	sigset_t before, after;
	struct mx_http *h;

	pthread_sigmask(SIG_SETMASK, NULL, &before);
	h = start(&s);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	assert_status(ask(mx_http_port(h), REQUEST("GET /metrics")), "200");
	cr_assert_eq(sigismember(&before, SIGTERM), sigismember(&after, SIGTERM));
	cr_assert_eq(sigismember(&s.mask, SIGTERM), 1);
	cr_assert_eq(sigismember(&s.mask, SIGHUP), 1);
	mx_http_stop(h);
}

/* A thread that ended registered would be read after its stack is gone, at the next grace period.
 */
Test(http, thread_leaves_rcu)
{
	struct source s = { .samples = 1 };
	struct mx_http *h;
	int i;

	for (i = 0; i < 20; i++) {
		h = start(&s);
		assert_status(ask(mx_http_port(h), REQUEST("GET /metrics")), "200");
		synchronize_rcu();
		mx_http_stop(h);
		synchronize_rcu();
	}
}

Test(http, bind_errors_are_told)
{
	struct source s = { .samples = 1 };
	struct mx_http *h = start(&s), *other = NULL;
	u16 port = mx_http_port(h);

	cr_assert_eq(mx_http_start("127.0.0.1", port, collect, &s, &other), -EADDRINUSE);
	cr_assert_eq(mx_http_start("192.0.2.1", 0, collect, &s, &other), -EADDRNOTAVAIL);
	cr_assert_eq(mx_http_start("localhost", 0, collect, &s, &other), -EINVAL);
	cr_assert_null(other);
	mx_http_stop(h);
	/* The port is free at once, although a connection on it was just closed. */
	cr_assert_eq(mx_http_start("127.0.0.1", port, collect, &s, &h), 0);
	cr_assert_eq(mx_http_port(h), port);
	mx_http_stop(h);
	mx_http_stop(NULL);
}

Test(http, ipv6)
{
	struct source s = { .samples = 1 };
	struct mx_http *h;
	const char *reply;
	int fd, r;

	r = mx_http_start("::1", 0, collect, &s, &h);
	if (r == -EADDRNOTAVAIL || r == -EAFNOSUPPORT)
		cr_skip("this host has no IPv6 loopback");
	cr_assert_eq(r, 0);
	fd = dial(AF_INET6, mx_http_port(h));
	cr_assert_gt(
		send(fd, REQUEST("GET /metrics"), strlen(REQUEST("GET /metrics")), MSG_NOSIGNAL),
		0);
	reply = read_all(fd);
	assert_status(reply, "200");
	mx_http_stop(h);
}
