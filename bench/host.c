/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench/atend.h"
#include "bench/host.h"

extern char **environ;

/* Those that run: none is left behind, however the benchmark ends. */
static pid_t children[32];

static void stop_children(void)
{
	for (u32 i = 0; i < ARRAY_SIZE(children); i++)
		child_stop(children[i]);
}

/* The entry of @pid; 0: a free one. */
static pid_t *child_entry(pid_t pid)
{
	for (u32 i = 0; i < ARRAY_SIZE(children); i++)
		if (children[i] == pid)
			return &children[i];
	return NULL;
}

void bench_program(const char *name, char *buf, size_t size)
{
	const char *build = getenv("BUILD");

	snprintf(buf, size, "%s/%s", build ? build : "build", name);
}

/* A signal that ends the benchmark waits until the child is known. */
static int spawn(char *const argv[], const posix_spawn_file_actions_t *actions, pid_t *ret_pid)
{
	pid_t *entry = child_entry(0);
	posix_spawnattr_t attr;
	sigset_t all, old;
	int err;

	if (!entry)
		return EAGAIN;
	at_end(stop_children);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &old);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	posix_spawnattr_setsigmask(&attr, &old);
	err = posix_spawn(ret_pid, argv[0], actions, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	if (!err)
		*entry = *ret_pid;
	sigprocmask(SIG_SETMASK, &old, NULL);
	return err;
}

int child_start(char *const argv[], const char *log, FILE **ret_in, FILE **ret_out, pid_t *ret_pid)
{
	posix_spawn_file_actions_t actions;
	int in[2], out[2], err;

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		return -errno;
	posix_spawn_file_actions_init(&actions);
	if (ret_in)
		posix_spawn_file_actions_adddup2(&actions, in[0], 0);
	if (ret_out)
		posix_spawn_file_actions_adddup2(&actions, out[1], 1);
	if (log)
		posix_spawn_file_actions_addopen(&actions, 2, log, O_WRONLY | O_CREAT | O_TRUNC,
						 0666);
	err = spawn(argv, &actions, ret_pid);
	posix_spawn_file_actions_destroy(&actions);
	close(in[0]);
	close(out[1]);
	if (err || !ret_in)
		close(in[1]);
	else
		*ret_in = fdopen(in[1], "w");
	if (err || !ret_out)
		close(out[0]);
	else
		*ret_out = fdopen(out[0], "r");
	return -err;
}

/* System calls only, for stop_children(). */
void child_stop(pid_t pid)
{
	pid_t *entry = child_entry(pid);

	if (pid <= 0)
		return;
	kill(pid, SIGTERM);
	kill(pid, SIGCONT); /* it may be held by a SIGSTOP */
	for (int i = 0; waitpid(pid, NULL, WNOHANG) == 0; i++) {
		if (i == 500)
			kill(pid, SIGKILL);
		usleep(10000);
	}
	if (entry)
		*entry = 0;
}

static int read_line(struct host *h, char *line, size_t size)
{
	return fgets(line, (int)size, h->out) ? 0 : -EIO;
}

int host_start(struct host *h, const char *content, const char *mode, const char *name,
	       u32 load_permille)
{
	char program[256], load[16], line[256];
	char *argv[] = { program,  "--content",	 (char *)content, "--mode", (char *)mode,
			 "--name", (char *)name, "--load",	  load,	    NULL };
	int r;

	bench_program("memhost", program, sizeof(program));
	snprintf(load, sizeof(load), "%u", load_permille);
	*h = (struct host){ 0 };
	r = child_start(argv, NULL, &h->in, &h->out, &h->pid);
	if (r < 0)
		return r;
	if (read_line(h, line, sizeof(line)) == 0 &&
	    sscanf(line, "READY pages=%" SCNu64 " address=%" SCNx64 " bytes=%" SCNu64, &h->pages,
		   &h->address, &h->bytes) == 3)
		return 0;
	host_stop(h);
	return -EIO;
}

/* The answer is a line; it may replace the question. */
static int ask(struct host *h, const char *what, char *line, size_t size)
{
	return fprintf(h->in, "%s\n", what) < 0 || fflush(h->in) != 0 ||
			       read_line(h, line, size) < 0
		       ? -EIO
		       : 0;
}

int host_offer(struct host *h)
{
	char line[64];

	return ask(h, "offer", line, sizeof(line)) < 0 || strcmp(line, "OFFERED\n") != 0 ? -EIO : 0;
}

int host_load(struct host *h, struct host_load *ret)
{
	char line[256];
	double seconds;
	u64 ops;

	if (ask(h, "load", line, sizeof(line)) < 0 ||
	    sscanf(line,
		   "LOAD ops=%" SCNu64 " seconds=%lf p50_ns=%" SCNu64 " p99_ns=%" SCNu64
		   " max_us=%" SCNu64,
		   &ops, &seconds, &ret->p50_ns, &ret->p99_ns, &ret->max_us) != 5)
		return -EIO;
	ret->ops_per_second = (double)ops / seconds;
	return 0;
}

int host_sum(struct host *h, u64 *ret_sum)
{
	char line[64];

	return ask(h, "sum", line, sizeof(line)) < 0 || sscanf(line, "SUM %" SCNx64, ret_sum) != 1
		       ? -EIO
		       : 0;
}

int host_write(struct host *h, u32 nr, u32 step, u32 pause_us, u32 *ret_ns)
{
	char line[64];
	u32 n;

	snprintf(line, sizeof(line), "write %u %u %u", nr, step, pause_us);
	return ask(h, line, line, sizeof(line)) < 0 || sscanf(line, "WRITTEN %" SCNu32, &n) != 1 ||
			       n != nr || fread(ret_ns, sizeof(*ret_ns), nr, h->out) != nr
		       ? -EIO
		       : 0;
}

int host_fork(struct host *h)
{
	char line[64];

	return ask(h, "fork", line, sizeof(line)) < 0 || strcmp(line, "FORKED\n") != 0 ? -EIO : 0;
}

int host_check(struct host *h, u64 *ret_wrong)
{
	char line[64];

	return ask(h, "check", line, sizeof(line)) < 0 ||
			       sscanf(line, "WRONG %" SCNu64, ret_wrong) != 1
		       ? -EIO
		       : 0;
}

void host_stop(struct host *h)
{
	if (h->in)
		fclose(h->in);
	child_stop(h->pid);
	if (h->out)
		fclose(h->out);
	*h = (struct host){ 0 };
}
