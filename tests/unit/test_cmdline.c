/* SPDX-License-Identifier: MIT */
/* The command lines of real processes, one of which wants to hang whoever reads it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"

#define CUT (256 * 1024)

static char got[CUT];
static size_t got_len;

static pid_t child(char **argv)
{
	pid_t pid = fork();

	if (pid == 0) {
		execv("/bin/sleep", argv);
		_exit(1);
	}
	return pid;
}

/* Until the child has become what it will be, its command line is ours, or none. */
static void read_until(pid_t pid, size_t len)
{
	u64 end = now_us() + 10000000;

	do
		cr_assert_eq(proc_cmdline(pid, got, sizeof(got), &got_len), 0);
	while (got_len != len && now_us() < end);
	cr_expect_eq(got_len, len, "%zu", got_len);
}

static void reap(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

Test(cmdline, of_a_process, .timeout = 60)
{
	char *args[] = { "sleep", "60", NULL };
	pid_t pid = child(args);

	read_until(pid, 9);
	cr_expect(memcmp(got,
			 "sleep\0"
			 "60",
			 9) == 0);
	kill(pid, SIGKILL);
	read_until(pid, 0); /* ended, not yet reaped */
	waitpid(pid, NULL, 0);
	got_len = 7;
	cr_expect_eq(proc_cmdline(pid, got, sizeof(got), &got_len), -ENOENT);
	cr_expect_eq(got_len, 7, "set by a failure");
}

Test(cmdline, is_cut, .timeout = 60)
{
	static char big[100000];
	char *args[] = { "sleep", "60", big, big, big, NULL }; /* it adds them up */
	pid_t pid;

	memset(big, '0', sizeof(big) - 1);
	pid = child(args);
	read_until(pid, CUT);
	cr_expect(memcmp(got,
			 "sleep\0"
			 "60\0"
			 "000",
			 12) == 0);
	reap(pid);
}

/* Says to the kernel that our arguments are at @args; needs no privilege. */
static int move_arguments(char *args, size_t len)
{
	unsigned long long f[52] = { 0 };
	struct prctl_mm_map map = { 0 };
	char buf[2048], *at;
	FILE *stat = fopen("/proc/self/stat", "r");

	if (!stat || !fgets(buf, sizeof(buf), stat) || !(at = strrchr(buf, ')')))
		return -1;
	at += 2;
	for (int i = 3; i < 52 && at; i++) { /* numbered as in proc(5) */
		f[i] = strtoull(at, NULL, 10);
		at = strchr(at, ' ');
		at = at ? at + 1 : NULL;
	}
	fclose(stat);
	map = (struct prctl_mm_map){
		.start_code = f[26],
		.end_code = f[27],
		.start_data = f[45],
		.end_data = f[46],
		.start_brk = f[47],
		.brk = (u64)(uintptr_t)sbrk(0),
		.start_stack = f[28],
		.arg_start = (u64)(uintptr_t)args,
		.arg_end = (u64)(uintptr_t)args + len,
		.env_start = f[50],
		.env_end = f[51],
		.exe_fd = (u32)-1,
	};
	return prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0);
}

/* Its arguments are memory in which every access waits for a userfault that nobody answers. Says
 * by its end when that cannot be had here, else writes a byte and sleeps. */
static pid_t child_that_hangs_readers(int ready_fd)
{
	pid_t pid = fork();
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *args;
	int uffd;

	if (pid)
		return pid;
	args = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	reg.range.start = (u64)(uintptr_t)args;
	reg.range.len = 4096;
	if (args == MAP_FAILED || uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0 ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg) < 0 || move_arguments(args, 100) < 0)
		_exit(1);
	(void)!write(ready_fd, "", 1);
	pause();
	_exit(0);
}

/* What procfs.h says of the kernel: if this hangs, command lines must be read by a thread. */
Test(cmdline, does_not_wait_for_the_process, .timeout = 20)
{
	int ready[2], r;
	char byte;
	pid_t pid;

	cr_assert_eq(pipe(ready), 0);
	pid = child_that_hangs_readers(ready[1]);
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1) {
		waitpid(pid, NULL, 0);
		cr_skip_test("needs userfaultfd for faults of the kernel, and PR_SET_MM_MAP");
	}
	got_len = 0;
	r = proc_cmdline(pid, got, sizeof(got), &got_len);
	cr_expect(r == -EFAULT || got_len == 0, "%d: it read what is not there", r);
	reap(pid);
	close(ready[0]);
}
