// SPDX-License-Identifier: MIT
/*
 * One QMP command: tool_qmp SOCKET '{"execute": ...}'. Prints the answer's line; exits with 1 if it
 * is an error, 2 on bad usage or when the socket does not answer. Events that come in between are
 * skipped.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connect_to(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(sa.sun_path))
		return -1;
	memcpy(sa.sun_path, path, strlen(path) + 1);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
		return fd;
	close(fd);
	return -1;
}

/* Sends @command and reads up to its answer. Returns the exit status. */
static int command(FILE *in, int fd, const char *command_text, char *line, int size)
{
	if (dprintf(fd, "%s\n", command_text) < 0)
		return 2;
	while (fgets(line, size, in)) {
		/* The answer begins with its key; what an event holds is of no interest. */
		if (strncmp(line, "{\"return\"", 9) == 0)
			return 0;
		if (strncmp(line, "{\"error\"", 8) == 0)
			return 1;
	}
	return 2;
}

int main(int argc, char **argv)
{
	char line[65536];
	FILE *in;
	int fd, r;

	if (argc != 3) {
		fprintf(stderr, "usage: tool_qmp SOCKET COMMAND\n");
		return 2;
	}
	fd = connect_to(argv[1]);
	in = fd < 0 ? NULL : fdopen(fd, "r");
	/* The greeting comes first. */
	if (!in || !fgets(line, sizeof(line), in)) {
		fprintf(stderr, "tool_qmp: %s does not answer\n", argv[1]);
		return 2;
	}
	r = command(in, fd, "{\"execute\": \"qmp_capabilities\"}", line, sizeof(line));
	if (r == 0)
		r = command(in, fd, argv[2], line, sizeof(line));
	if (r == 2)
		fprintf(stderr, "tool_qmp: %s does not answer\n", argv[1]);
	else
		fputs(line, stdout);
	fclose(in);
	return r;
}
