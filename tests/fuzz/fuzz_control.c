/* SPDX-License-Identifier: MIT */
/*
 * The control socket: the real control.c with a client on it, and a core that answers by the name
 * of the VM alone. The input: what to pad the first request with, the sizes of the client's writes,
 * a seed of the view that "status" shows; then all that the client sends.
 *
 * Properties: each reply is one line of JSON with "ok", and "error" if that is false; a client that
 * sends its requests in pieces gets exactly what control_reply() says of each, in order, up to and
 * with the first malformed one; then the daemon closes, and keeps nothing of it.
 */
#include <errno.h>
#include <jansson.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "daemon/control_reply.h"
#include "tests/fuzz/fuzz.h"

#define REPLIES_MAX (8 << 20)
#define ROUNDS_MAX  1000000

static char socket_path[108];
static sd_event *event;
static struct control *control;
static u64 view_seed;

static void fill(void *dst, size_t size)
{
	u8 *p = dst;
	u64 x = view_seed | 1;

	for (size_t i = 0; i < size; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		p[i] = (u8)(x >> 56);
	}
}

/* Numbers and names of any bytes: more than a core would give. */
static int op_view(void *core, struct view *ret)
{
	if (view_seed % 7 == 6)
		return -ENOMEM;
	memset(ret, 0, sizeof(*ret));
	if (view_seed & 0x100)
		fill(&ret->host, sizeof(ret->host));
	ret->host.scanning = view_seed & 1;
	ret->host.pressure = view_seed & 2;
	ret->host.has_pressure_some = view_seed & 4;
	ret->nr_vms = view_seed % 3;
	ret->nr_domains = view_seed % 2;
	ret->vms = calloc(3, sizeof(ret->vms[0]));
	ret->domains = calloc(2, sizeof(ret->domains[0]));
	MUST(ret->vms && ret->domains);
	for (u32 i = 0; i < ret->nr_vms; i++) {
		/* Page counts are of what fits in memory. */
		if (view_seed & 0x200)
			fill(ret->vms[i].name, sizeof(ret->vms[i].name) - 1);
		fill(&ret->vms[i].mappings, 4);
		fill(&ret->vms[i].shared_pages, 5);
		fill(&ret->vms[i].zero_pages, 5);
		strcpy(ret->vms[i].domain, "d");
		ret->vms[i].pid = 0; /* names no process, whose memory would differ from one reply
					to the next */
	}
	for (u32 i = 0; i < ret->nr_domains; i++) {
		strcpy(ret->domains[i].name, "d");
		fill(&ret->domains[i].store_pages, 4);
		fill(&ret->domains[i].store_refs, 4);
	}
	return 0;
}

static int op_set_paused(void *core, bool paused)
{
	return view_seed & 2 ? -EIO : 0;
}

static int answer(const char *vm)
{
	static const int answers[] = { 0, -ENOENT, -ENOTCONN, -ENOMEM };

	MUST(vm && *vm);
	return answers[(u8)vm[0] % ARRAY_SIZE(answers)];
}

static int op_unmerge(void *core, const char *vm, u64 *ret_pages)
{
	*ret_pages = strlen(vm) == 3 ? UINT64_MAX : strlen(vm);
	return answer(vm);
}

static int op_share(void *core, const char *vm)
{
	return answer(vm);
}

static int op_balloon(void *core, const char *vm, bool on, u64 bytes, u64 *ret_bytes,
		      struct balloon_view *ret)
{
	MUST(on == (bytes != 0) && bytes <= INT64_MAX);
	memset(ret, 0, sizeof(*ret));
	if (view_seed & 4)
		memset(ret->error, '"', sizeof(ret->error) - 1);
	*ret_bytes = bytes;
	return strlen(vm) == 2 ? -ENODEV : answer(vm);
}

static int op_page_out(void *core, const char *vm, u64 bytes, u64 *ret_pages)
{
	MUST(bytes > 0);
	*ret_pages = bytes >> PAGE_SHIFT;
	return answer(vm);
}

static int op_plan(void *core, struct view *ret_view, struct plan *ret)
{
	struct policy_config cfg = POLICY_CONFIG_DEFAULT;
	struct policy state = { 0 };
	int r = op_view(core, ret_view);

	if (r < 0)
		return r;
	r = plan_view(ret_view, &cfg, &state, 1000000, ret);
	if (r < 0)
		view_free(ret_view);
	return r;
}

static const struct control_ops ops = {
	.view = op_view,
	.set_paused = op_set_paused,
	.unmerge = op_unmerge,
	.share = op_share,
	.balloon = op_balloon,
	.page_out = op_page_out,
	.plan = op_plan,
};

static void clean_up(void)
{
	control_free(control);
	sd_event_unref(event);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *tmp = getenv("TMPDIR");

	if (!tmp || strlen(tmp) > 60)
		tmp = "/tmp";
	snprintf(socket_path, sizeof(socket_path), "%s/fuzz_control.%d", tmp, (int)getpid());
	MUST(sd_event_new(&event) >= 0);
	MUST(control_new(event, socket_path, &ops, NULL, &control) == 0);
	atexit(clean_up);
	return 0;
}

static void must_be_reply(const char *line)
{
	size_t len = strlen(line);
	json_t *j, *ok;

	MUST(len > 1 && strchr(line, '\n') == line + len - 1);
	j = json_loadb(line, len - 1, JSON_REJECT_DUPLICATES, NULL);
	MUST(j);
	ok = json_object_get(j, "ok");
	MUST(json_is_boolean(ok));
	MUST(json_is_true(ok) || *json_string_value(json_object_get(j, "error")));
	json_decref(j);
}

/* What the client must get, by the rules of control.h. */
static const char *expected_replies(const char *sent, size_t size)
{
	size_t total = 0;
	static char all[REPLIES_MAX];
	bool malformed = false;

	all[0] = '\0';
	while (size && !malformed) {
		const char *end = memchr(sent, '\n', size);
		size_t len = end ? (size_t)(end - sent) : size;
		char *line, *copy = NULL;

		if (len + (end != NULL) > CONTROL_REQUEST_MAX ||
		    (!end && len == CONTROL_REQUEST_MAX)) {
			line = control_reply_error("the request is too long (at most 65536 bytes)");
			malformed = true;
		} else if (!end) {
			line = control_reply_error("the request does not end with a line end");
			malformed = true;
		} else {
			copy = malloc(len ? len : 1); /* ends where the request does */
			MUST(copy);
			memcpy(copy, sent, len);
			line = control_reply(&ops, NULL, copy, len, &malformed);
		}
		MUST(line);
		must_be_reply(line);
		MUST(total + strlen(line) < REPLIES_MAX);
		strcpy(all + total, line);
		total += strlen(line);
		free(line);
		free(copy);
		sent += end ? len + 1 : len;
		size -= end ? len + 1 : len;
	}
	return all;
}

static int dial(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	MUST(fd >= 0);
	strcpy(addr.sun_path, socket_path);
	MUST(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	return fd;
}

struct client {
	int fd;
	const char *out;
	size_t left;
	u32 piece; /* bytes of a write */
	bool shut;
	size_t got;
};

static char received[REPLIES_MAX];

static void client_write(struct client *c)
{
	if (c->left) {
		ssize_t n = send(c->fd, c->out, MIN(c->left, c->piece), MSG_NOSIGNAL);

		if (n > 0) {
			c->out += n;
			c->left -= (size_t)n;
		} else {
			MUST(n < 0 && (errno == EAGAIN || errno == EPIPE || errno == ECONNRESET));
			if (errno != EAGAIN)
				c->left = 0;
		}
	}
	if (!c->left && !c->shut) {
		(void)shutdown(c->fd, SHUT_WR);
		c->shut = true;
	}
}

/* True at the end of the connection. */
static bool client_read(struct client *c)
{
	for (;;) {
		ssize_t n = recv(c->fd, received + c->got, REPLIES_MAX - c->got, 0);

		if (n > 0) {
			c->got += (size_t)n;
			continue;
		}
		return n == 0 || errno != EAGAIN;
	}
}

static void serve(void)
{
	while (sd_event_run(event, 0) > 0)
		;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static const u32 pieces[] = { 65536, 1, 7, 100, 4096 };
	struct input in = { data, data + size };
	struct client c = { 0 };
	int free_fd = lowest_free_fd();
	u8 pad = input_u8(&in);
	size_t padding = pad & 0x80 ? CONTROL_REQUEST_MAX - 256 + 4 * (pad & 0x7f) : 0;
	const char *expected;
	char *sent;
	u32 rounds = 0;

	c.piece = pieces[input_u8(&in) % ARRAY_SIZE(pieces)];
	view_seed = input_u32(&in);
	size = input_left(&in);
	sent = malloc(padding + size + 1);
	MUST(sent);
	memset(sent, ' ', padding);
	memcpy(sent + padding, in.at, size);
	size += padding;
	if (padding)
		c.piece = MAX(c.piece, 100u);
	expected = expected_replies(sent, size);

	c.fd = dial();
	c.out = sent;
	c.left = size;
	do {
		client_write(&c);
		serve();
		MUST(++rounds < ROUNDS_MAX);
	} while (!client_read(&c));
	MUST(c.got == strlen(expected) && memcmp(received, expected, c.got) == 0);
	close(c.fd);
	MUST(lowest_free_fd() == free_fd);
	free(sent);
	return 0;
}
