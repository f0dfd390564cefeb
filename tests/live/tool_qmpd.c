// SPDX-License-Identifier: MIT
/*
 * A QMP server that is not one: tool_qmpd SOCKET MODE [WHATEVER...]. Serves one client after the
 * other, and prints "CLIENT n" for each. Modes:
 *
 *   silent      accepts and says nothing          garbage   no JSON
 *   endless     a message without an end          blank     line ends without an end
 *   deep        JSON that nests a million deep    flood     events without an end
 *   hang        greets, then never answers        deaf      greets, then reads nothing more
 *   wrong-id    answers what was not asked        no-id     answers without an id
 *   lies        answers everything with nonsense of the right form
 *   hangup      greets and hangs up
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define GREETING \
	"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2, \"micro\": 0}}}}\r\n"

static int client;

/* False: it is gone. */
static int say(const char *text)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = send(client, text, len, MSG_NOSIGNAL);

		if (n <= 0)
			return 0;
		text += n;
		len -= (size_t)n;
	}
	return 1;
}

static void say_for_ever(const char *text)
{
	while (say(text))
		;
}

/* One request line; NULL: it is gone. The id in it: *ret_id. */
static const char *hear(long *ret_id)
{
	static char line[65536];
	size_t n = 0;
	const char *id;

	while (n + 1 < sizeof(line) && recv(client, line + n, 1, 0) == 1) {
		if (line[n++] != '\n')
			continue;
		line[n] = '\0';
		id = strstr(line, "\"id\":");
		*ret_id = id ? atol(id + 5) : 0;
		return line;
	}
	return NULL;
}

static void wait_for_end(void)
{
	char buf[4096];

	while (recv(client, buf, sizeof(buf), 0) > 0)
		;
}

static int handshake(void)
{
	char answer[64];
	long id;

	if (!say(GREETING) || !hear(&id))
		return 0;
	snprintf(answer, sizeof(answer), "{\"return\": {}, \"id\": %ld}\r\n", id);
	return say(answer);
}

/* Each answer has the form of the question, and holds what no VM would say. */
static void lie(void)
{
	static const struct {
		const char *command, *answer;
	} answers[] = {
		{ "query-status", "{\"status\": \"\\u001b[31m\", \"running\": true}" },
		{ "query-migrate", "{\"status\": 17}" },
		{ "query-memory-size", "{\"base-memory\": 9223372036854775807}" },
		{ "query-balloon", "{\"actual\": 18446744073709551615}" },
		{ "qom-list",
		  "[{\"name\": \"../../x\", \"type\": \"child<virtio-balloon-pci>\"}, 5, "
		  "{\"name\": \"b\", \"type\": \"child<virtio-balloon-pci>\"}]" },
		{ "guest-stats-polling-interval", "-3" },
		{ "guest-stats", "{\"stats\": {\"stat-free-memory\": 1e300}, \"last-update\": 7}" },
	};
	static char text[512];
	const char *line;
	long id;

	while ((line = hear(&id))) {
		const char *answer = "{}";

		for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
			if (strstr(line, answers[i].command)) {
				answer = answers[i].answer;
				break;
			}
		}
		snprintf(text, sizeof(text), "{\"return\": %s, \"id\": %ld}\r\n", answer, id);
		if (!say(text))
			return;
	}
}

static void serve(const char *mode)
{
	if (strcmp(mode, "silent") == 0) {
		wait_for_end();
	} else if (strcmp(mode, "garbage") == 0) {
		say("SSH-2.0-OpenSSH_9.2p1\r\n");
		wait_for_end();
	} else if (strcmp(mode, "endless") == 0) {
		if (say("{\"QMP\": \""))
			say_for_ever("abcdefghijklmnopqrstuvwxyz");
	} else if (strcmp(mode, "blank") == 0) {
		say_for_ever("\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n");
	} else if (strcmp(mode, "deep") == 0) {
		if (say("{\"QMP\": "))
			say_for_ever("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[");
	} else if (!handshake()) {
		return;
	} else if (strcmp(mode, "flood") == 0) {
		say_for_ever("{\"event\": \"STOP\", \"data\": {}}\r\n{\"event\": \"RESUME\"}\r\n");
	} else if (strcmp(mode, "hang") == 0) {
		wait_for_end();
	} else if (strcmp(mode, "deaf") == 0) {
		pause();
	} else if (strcmp(mode, "wrong-id") == 0) {
		say("{\"return\": {}, \"id\": 4242}\r\n");
		wait_for_end();
	} else if (strcmp(mode, "no-id") == 0) {
		say("{\"return\": {}}\r\n");
		wait_for_end();
	} else if (strcmp(mode, "lies") == 0) {
		lie();
	}
}

/* Under ballast-run this makes it a VM of the daemon, whose command line is as QEMU's. */
static void be_a_vm(void)
{
	size_t bytes = 16 << 20;
	void *ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (ram != MAP_FAILED)
		(void)madvise(ram, bytes, MADV_MERGEABLE);
}

int main(int argc, char **argv)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	unsigned int nr = 0;

	if (argc < 3 || fd < 0 || strlen(argv[1]) >= sizeof(sa.sun_path))
		return 2;
	strcpy(sa.sun_path, argv[1]);
	unlink(argv[1]);
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 4) < 0) {
		fprintf(stderr, "tool_qmpd: %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	be_a_vm();
	for (;;) {
		client = accept(fd, NULL, NULL);
		if (client < 0)
			return 1;
		printf("CLIENT %u\n", ++nr);
		fflush(stdout);
		serve(argv[2]);
		close(client);
	}
}
