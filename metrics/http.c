/* SPDX-License-Identifier: MIT */
#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <urcu.h>

#include "metrics/http.h"

/* Enough for a few Prometheus servers and people; each costs a descriptor and 16 KiB. */
#define CONNECTIONS_MAX 16
/* Half of Prometheus' shortest usual scrape time-out (10 s). */
#define IDLE_TIMEOUT_S	  5
#define CONNECTION_MEMORY 16384

struct mx_http {
	struct MHD_Daemon *mhd;
	mx_collect_fn collect;
	void *arg;
	u16 port;
};

/*
 * libmicrohttpd makes its thread and ends it; there is no hook for either. So the thread registers
 * with RCU when the first request reaches it, and a key's destructor takes it out when it ends.
 */
static pthread_key_t rcu_key;
static pthread_once_t rcu_once = PTHREAD_ONCE_INIT;
static int rcu_key_error;

static void rcu_thread_ends(void *unused)
{
	rcu_unregister_thread();
}

static void rcu_key_make(void)
{
	rcu_key_error = -pthread_key_create(&rcu_key, rcu_thread_ends);
}

static int rcu_register_once(void)
{
	int r;

	if (pthread_getspecific(rcu_key))
		return 0;
	r = -pthread_setspecific(rcu_key, &rcu_key);
	if (r < 0)
		return r;
	rcu_register_thread();
	return 0;
}

static enum MHD_Result reply(struct MHD_Connection *c, unsigned int status, const char *type,
			     const char *text, size_t bytes)
{
	struct MHD_Response *response;
	enum MHD_Result r = MHD_NO;

	response = MHD_create_response_from_buffer(bytes, (void *)text, MHD_RESPMEM_MUST_COPY);
	if (!response)
		return MHD_NO;
	if (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_NO)
		goto out;
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED &&
	    MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD") == MHD_NO)
		goto out;
	r = MHD_queue_response(c, status, response);
out:
	MHD_destroy_response(response);
	return r;
}

static enum MHD_Result reply_str(struct MHD_Connection *c, unsigned int status, const char *type,
				 const char *text)
{
	return reply(c, status, type, text, strlen(text));
}

static enum MHD_Result reply_metrics(struct mx_http *h, struct MHD_Connection *c)
{
	static const char type[] = "text/plain; version=0.0.4; charset=utf-8";
	struct mx_writer *w;
	const char *text;
	size_t bytes;
	enum MHD_Result r;

	w = mx_new();
	if (!w || rcu_register_once() < 0)
		goto no_memory;
	h->collect(w, h->arg);
	if (mx_finish(w, &text, &bytes) < 0)
		goto no_memory;
	r = reply(c, MHD_HTTP_OK, type, text, bytes);
	mx_free(w);
	return r;
no_memory:
	mx_free(w);
	return reply_str(c, MHD_HTTP_SERVICE_UNAVAILABLE, "text/plain", "out of memory\n");
}

/*
 * libmicrohttpd calls this when the headers are there, and again when the body is. The answer to a
 * GET must wait for the second call, or the connection is not kept alive; everything else is
 * refused at the first, so that no body is ever read.
 */
static enum MHD_Result on_request(void *arg, struct MHD_Connection *c, const char *url,
				  const char *method, const char *version, const char *upload,
				  size_t *upload_bytes, void **request)
{
	static const char index[] =
		"<html><body><a href=\"/metrics\">Ballast metrics</a></body></html>\n";
	static char seen;

	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
		return reply_str(c, MHD_HTTP_METHOD_NOT_ALLOWED, "text/plain",
				 "only GET and HEAD are allowed\n");
	if (!*request) {
		*request = &seen;
		return MHD_YES;
	}
	if (*upload_bytes) /* a GET with a body: read past it */
		*upload_bytes = 0;
	else if (!strcmp(url, "/metrics"))
		return reply_metrics(arg, c);
	else if (!strcmp(url, "/"))
		return reply_str(c, MHD_HTTP_OK, "text/html; charset=utf-8", index);
	else
		return reply_str(c, MHD_HTTP_NOT_FOUND, "text/plain", "not found: see /metrics\n");
	return MHD_YES;
}

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static int parse_address(const char *text, u16 port, union address *ret, socklen_t *ret_bytes)
{
	memset(ret, 0, sizeof(*ret));
	if (inet_pton(AF_INET, text, &ret->v4.sin_addr) == 1) {
		ret->v4.sin_family = AF_INET;
		ret->v4.sin_port = htons(port);
		*ret_bytes = sizeof(ret->v4);
		return 0;
	}
	if (inet_pton(AF_INET6, text, &ret->v6.sin6_addr) == 1) {
		ret->v6.sin6_family = AF_INET6;
		ret->v6.sin6_port = htons(port);
		*ret_bytes = sizeof(ret->v6);
		return 0;
	}
	return -EINVAL;
}

/* The socket is made here and not by libmicrohttpd, which tells no reason when it cannot.
 * Returns the descriptor or a negative errno. */
static int listen_on(const char *text, u16 port, u16 *ret_port)
{
	union address a;
	socklen_t bytes;
	int fd, r, one = 1;

	r = parse_address(text, port, &a, &bytes);
	if (r < 0)
		return r;
	fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* A daemon that starts again must not wait for the last one's connections to be forgotten.
	 */
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0)
		goto fail;
	/* "::" means what it says, also where IPv4 is on the same port. */
	if (a.any.sa_family == AF_INET6 &&
	    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) < 0)
		goto fail;
	if (bind(fd, &a.any, bytes) < 0 || listen(fd, CONNECTIONS_MAX) < 0)
		goto fail;
	if (getsockname(fd, &a.any, &bytes) < 0)
		goto fail;
	*ret_port = ntohs(a.any.sa_family == AF_INET ? a.v4.sin_port : a.v6.sin6_port);
	return fd;
fail:
	r = -errno;
	close(fd);
	return r;
}

int mx_http_start(const char *address, u16 port, mx_collect_fn collect, void *arg,
		  struct mx_http **ret)
{
	struct mx_http *h;
	sigset_t all, before;
	int r, fd;

	pthread_once(&rcu_once, rcu_key_make);
	if (rcu_key_error < 0)
		return rcu_key_error;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	h->collect = collect;
	h->arg = arg;
	fd = listen_on(address, port, &h->port);
	if (fd < 0) {
		r = fd;
		goto fail;
	}

	/* The thread inherits the mask: signals are for the main loop. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	h->mhd = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL, 0, NULL, NULL,
				  on_request, h, MHD_OPTION_LISTEN_SOCKET, fd,
				  MHD_OPTION_CONNECTION_LIMIT, (unsigned int)CONNECTIONS_MAX,
				  MHD_OPTION_CONNECTION_TIMEOUT, (unsigned int)IDLE_TIMEOUT_S,
				  MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
				  MHD_OPTION_END);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!h->mhd) {
		/* It took @fd over and closes it when its thread cannot start. Where it fails
		 * before that, one descriptor is lost; to close it here as well might close
		 * somebody else's. */
		r = -EIO;
		goto fail;
	}
	*ret = h;
	return 0;
fail:
	free(h);
	return r;
}

u16 mx_http_port(const struct mx_http *h)
{
	return h->port;
}

void mx_http_stop(struct mx_http *h)
{
	if (!h)
		return;
	MHD_stop_daemon(h->mhd);
	free(h);
}
