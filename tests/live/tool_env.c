// SPDX-License-Identifier: MIT
/*
 * What a VMM may find itself in: a host without a daemon, without userfaultfd, with a daemon that
 * does not answer.
 *
 *   tool_env mergeable            marks 16 MiB as a VMM marks guest RAM, and prints what the kernel
 * makes of it tool_env deny ENOSYS|EPERM CMD...  runs CMD where userfaultfd fails so: an old
 * kernel, a strict container tool_env mute PATH            listens as the daemon does, accepts, and
 * says nothing, until SIGTERM
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"
#include "hypervisor-hooks/uffd.h"

#define RAM_BYTES MIB(16)

/* What /proc/self/smaps says of the mapping that begins at @at: is @flag among its VmFlags? */
static int has_flag(const void *at, const char *flag)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	char line[512];
	bool here = false;
	int found = -1;

	while (f && found < 0 && fgets(line, sizeof(line), f)) {
		unsigned long start, end;
		char dash;

		if (sscanf(line, "%lx%c%lx ", &start, &dash, &end) == 3 && dash == '-')
			here = (unsigned long)at >= start && (unsigned long)at < end;
		else if (here && strncmp(line, "VmFlags:", 8) == 0)
			found = strstr(line, flag) != NULL;
	}
	if (f)
		fclose(f);
	return found;
}

static int count_threads(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	char line[256];
	int nr = -1;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Threads: %d", &nr) == 1)
			break;
	if (f)
		fclose(f);
	return nr;
}

static int run_mergeable(void)
{
	u8 *at = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool zero = true;
	u64 begin;
	int rc;

	if (at == MAP_FAILED)
		return 2;
	memset(at, 0x5a, RAM_BYTES);
	begin = now_us();
	rc = madvise(at, RAM_BYTES, MADV_MERGEABLE);
	printf("madvise=%d errno=%d ms=%d mg=%d threads=%d\n", rc, rc ? errno : 0,
	       (int)((now_us() - begin) / 1000), has_flag(at, " mg"), count_threads());
	/* A discard must be one, with Ballast or without. */
	rc = madvise(at, RAM_BYTES / 2, MADV_DONTNEED);
	for (u64 i = 0; i < RAM_BYTES; i += PAGE_BYTES)
		zero &= at[i] == (i < RAM_BYTES / 2 ? 0 : 0x5a);
	printf("dontneed=%d content=%s\n", rc, zero ? "right" : "wrong");
	return 0;
}

/* Both ways to a userfaultfd: the system call, and the ioctl of /dev/userfaultfd. */
static int deny(int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, USERFAULTFD_IOC_NEW, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (u32)error),
	};
	struct sock_fprog prog = { .len = ARRAY_SIZE(code), .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		return -errno;
	return 0;
}

static int run_deny(const char *error, char **argv)
{
	int r = deny(strcmp(error, "EPERM") == 0 ? EPERM : ENOSYS);

	if (r < 0) {
		fprintf(stderr, "tool_env: seccomp: %s\n", strerror(-r));
		return 2;
	}
	execvp(argv[0], argv);
	fprintf(stderr, "tool_env: %s: %s\n", argv[0], strerror(errno));
	return 127;
}

static int run_mute(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 16) < 0)
		return 2;
	for (;;) {
		/* Kept open on purpose. */
		int conn = accept(fd, NULL, NULL);

		printf("accepted %d\n", conn);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "mergeable") == 0)
		return run_mergeable();
	if (argc >= 4 && strcmp(argv[1], "deny") == 0)
		return run_deny(argv[2], argv + 3);
	if (argc == 3 && strcmp(argv[1], "mute") == 0)
		return run_mute(argv[2]);
	return 2;
}
