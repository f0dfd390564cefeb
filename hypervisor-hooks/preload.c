/* SPDX-License-Identifier: MIT */
/*
 * libballast-preload.so: Ballast for an unmodified QEMU, by LD_PRELOAD (see ballast-run).
 *
 * QEMU calls madvise(MADV_MERGEABLE) on each block of guest RAM: that call names the memory
 * exactly, and is where the agent starts. MADV_DONTNEED on it is a discard (balloon, free page
 * reporting), munmap() its end.
 *
 * When anything is missing (daemon, kernel features, permission) every call goes to the kernel as
 * if this file were not here, and one line says why.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "common/types.h"
#include "common/uapi_compat.h"
#include "hypervisor-hooks/hooks.h"

/* Blocks below this (option ROMs, tables) are not worth a region. */
#define REGION_MIN_BYTES MIB(2)

static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static struct bh_agent
	*agent; /* set once, under start_lock; never freed: it lives as long as the VM */
static bool tried;
static u64 next_gpa; /* regions are numbered in the order in which they come; QEMU does not tell
			their GPA here */

static void say(void *arg, const char *line)
{
	fprintf(stderr, "ballast: %s\n", line);
}

static const char *reason(int err)
{
	switch (err) {
	case -ENOSYS:
		return "this kernel lacks UFFDIO_MOVE or PAGEMAP_SCAN (Linux 6.8 is needed)";
	case -EPERM:
		return "userfaultfd is not permitted to this user (give it access to /dev/userfaultfd, or run as root)";
	case -ENOENT:
	case -ECONNREFUSED:
		return "no ballastd is running";
	case -ETIMEDOUT:
	case -EAGAIN:
		return "ballastd does not answer";
	case -EACCES:
		return "no permission for ballastd's agent socket";
	default:
		return strerror(-err);
	}
}

/*
 * The VM's name and UUID as given to QEMU: "-name NAME", "-name guest=NAME,...", "-uuid UUID". The
 * daemon treats both as a stranger's word.
 */
static void find_identity(char *name, size_t name_size, char *uuid, size_t uuid_size)
{
	char buf[16384], *end, *p;
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, buf, sizeof(buf) - 1);

	if (fd >= 0)
		close(fd);
	name[0] = uuid[0] = '\0';
	if (n <= 0)
		return;
	buf[n] = '\0';
	end = buf + n;
	for (p = buf; p < end; p += strlen(p) + 1) {
		const char *value = p + strlen(p) + 1;

		if (value >= end)
			break;
		if (strcmp(p, "-name") == 0 || strcmp(p, "--name") == 0) {
			const char *guest = strstr(value, "guest=");

			value = guest ? guest + strlen("guest=") : value;
			snprintf(name, name_size, "%.*s", (int)strcspn(value, ","), value);
		} else if (strcmp(p, "-uuid") == 0 || strcmp(p, "--uuid") == 0) {
			snprintf(uuid, uuid_size, "%s", value);
		}
	}
}

/* The agent, started at the first block of guest RAM; NULL when this VM runs without Ballast. */
static struct bh_agent *get_agent(void)
{
	pthread_mutex_lock(&start_lock);
	if (!tried) {
		char name[64], uuid[40];
		struct bh_config cfg = { .name = name, .uuid = uuid, .log = say };
		int err = bh_probe();

		tried = true;
		find_identity(name, sizeof(name), uuid, sizeof(uuid));
		if (err == 0)
			err = bh_new(&cfg, &agent);
		if (err < 0)
			fprintf(stderr, "ballast: %s; this VM runs without it\n", reason(err));
	}
	pthread_mutex_unlock(&start_lock);
	return agent;
}

static int start_region(void *addr, size_t bytes)
{
	struct bh_agent *a = bytes >= REGION_MIN_BYTES ? get_agent() : NULL;
	char name[32];
	int r;

	if (!a)
		return -ENOENT;
	snprintf(name, sizeof(name), "ram%zuM", bytes >> 20);
	r = bh_region_add(a, addr, bytes, next_gpa, name);
	if (r == -EEXIST)
		return 0;
	if (r < 0)
		fprintf(stderr, "ballast: guest memory at %p is left alone: %s\n", addr,
			r == -ENOTSUP ? "not private anonymous memory" : strerror(-r));
	else
		next_gpa += bytes;
	return r;
}

int madvise(void *addr, size_t bytes, int advice)
{
	static int (*real)(void *, size_t, int);

	if (!real)
		real = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "madvise");
	/* With Ballast at work the kernel's KSM is not told of the memory: two mergers would undo
	 * each other. */
	if (advice == MADV_MERGEABLE && start_region(addr, bytes) == 0)
		return 0;
	if ((advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED) && agent) {
		int r = bh_discard(agent, addr, bytes, advice);

		if (r != -ENOENT && r != -EINVAL) {
			errno = -r;
			return r < 0 ? -1 : 0;
		}
	} else if (agent) {
		bh_region_advise(agent, addr, bytes, advice);
	}
	return real(addr, bytes, advice);
}

int munmap(void *addr, size_t bytes)
{
	/* By number: dlsym() may itself unmap. */
	if (agent)
		bh_region_del(agent, addr, bytes);
	return (int)syscall(SYS_munmap, addr, bytes);
}

/*
 * Another mapping over guest RAM: what QEMU does with a page that has a memory error. libc's own
 * calls (threads, malloc) do not come here. Both names are interposed; they get their symbols here
 * because sys/mman.h, too, makes one of the other.
 */
void *ballast_mmap(void *addr, size_t bytes, int prot, int flags, int fd,
		   off_t offset) __asm__("mmap");
void *ballast_mmap64(void *addr, size_t bytes, int prot, int flags, int fd,
		     off_t offset) __asm__("mmap64");

void *ballast_mmap(void *addr, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	bool over = agent && (flags & MAP_FIXED);
	void *at;

	if (over)
		bh_replace_begin(agent, addr, bytes);
	at = (void *)syscall(SYS_mmap, addr, bytes, prot, flags, fd, offset);
	if (over)
		bh_replace_end(agent, addr, bytes);
	return at;
}

void *ballast_mmap64(void *addr, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	return ballast_mmap(addr, bytes, prot, flags, fd, offset);
}

void *mremap(void *addr, size_t old_bytes, size_t new_bytes, int flags, ...)
{
	void *to = NULL;
	va_list ap;

	if (flags & MREMAP_FIXED) {
		va_start(ap, flags);
		to = va_arg(ap, void *);
		va_end(ap);
	}
	if (agent) {
		bh_region_del(agent, addr, MAX(old_bytes, (size_t)1));
		if (to)
			bh_replace_begin(agent, to, new_bytes);
	}
	addr = (void *)syscall(SYS_mremap, addr, old_bytes, new_bytes, flags, to);
	if (agent && to)
		bh_replace_end(agent, to, new_bytes);
	return addr;
}
