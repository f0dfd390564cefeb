/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "common/uapi_compat.h"
#include "hypervisor-hooks/agent.h"
#include "tests/live/faults/inject.h"

#define RULES_MAX 4
#define NFS_MAGIC 0x6969
/* What the agent waits for when nothing happens (1 s: to connect again, to look whether it shall
 * stop), in this test's time. */
#define IDLE_MS 1000
#define FAST_MS 3

static __thread enum role role;
static atomic_uint seen[NR_ROLES][NR_CALLS];
static _Atomic u64 failed_with[NR_ROLES][NR_CALLS]; /* a bit for each index of inject_error() */
static _Atomic u64 failed_total, random_state;
static atomic_uint failed_now, random_permille;
static atomic_bool window, fake_nfs;
static struct rule rules[RULES_MAX];
static u32 nr_rules;
static int event_fd = -1, mounts_fd = -1;

#define USUAL EAGAIN, EBUSY, ENOMEM, ENOSPC

/* What to fail each with: what the kernel can say, and what it might. */
static const struct kind {
	const char *name;
	int errors[8];
} kinds[NR_CALLS] = {
	[CALL_REGISTER] = { "REGISTER", { USUAL, PARTIAL } },
	[CALL_UNREGISTER] = { "UNREGISTER", { USUAL, PARTIAL } },
	[CALL_MOVE] = { "MOVE", { USUAL, EEXIST, EINVAL, PARTIAL, DONE } },
	[CALL_ZEROPAGE] = { "ZEROPAGE", { USUAL, EEXIST, PARTIAL } },
	[CALL_COPY] = { "COPY", { USUAL, EEXIST } },
	[CALL_WRITEPROTECT] = { "WRITEPROTECT", { USUAL, PARTIAL } },
	[CALL_WAKE] = { "WAKE", { USUAL, EINTR } },
	[CALL_IOCTL] = { "ioctl", { USUAL } },
	[CALL_MMAP_FILE] = { "mmap-file", { USUAL } },
	[CALL_MMAP_ANON] = { "mmap-anon", { USUAL } },
	[CALL_DONTNEED] = { "DONTNEED", { USUAL, EINVAL, PARTIAL } },
	[CALL_POPULATE] = { "POPULATE_WRITE", { USUAL, EINTR, EIO, PARTIAL } },
	[CALL_MADVISE] = { "madvise", { USUAL } },
	[CALL_MINCORE] = { "mincore", { EAGAIN, ENOMEM } },
	[CALL_PREAD] = { "pread", { USUAL, EINTR, EIO, PARTIAL } },
	[CALL_PWRITE] = { "pwrite", { USUAL, EINTR, EIO, PARTIAL } },
	[CALL_FSTAT] = { "fstat", { ENOMEM, EIO, ESTALE } },
	[CALL_FSTATFS] = { "fstatfs", { ENOMEM, EINTR, EIO, ESTALE } },
	[CALL_SENDMSG] = { "sendmsg", { USUAL, EINTR, EPIPE } },
	[CALL_RECVMSG] = { "recvmsg", { USUAL, EINTR, ECONNRESET } },
	[CALL_POLL] = { "poll", { ENOMEM, EINTR } },
	[CALL_OPEN] = { "open", { ENOMEM, EINTR, EMFILE, EACCES } },
	[CALL_READLINK] = { "readlink", { ENOMEM, EACCES, ENAMETOOLONG } },
	[CALL_READ] = { "read", { EAGAIN, ENOMEM, EINTR, EIO, PARTIAL } },
	[CALL_WRITE] = { "write", { EAGAIN, EINTR } },
	[CALL_GETDENTS] = { "getdents", { ENOMEM, EINTR, EIO } },
	[CALL_FCNTL] = { "fcntl", { ENOMEM, EINVAL } },
	[CALL_LSEEK] = { "lseek", { EIO } },
	[CALL_ACCESS] = { "access", { ENOMEM, EACCES, EIO } },
	[CALL_SOCKET] = { "socket", { ENOMEM, EMFILE } },
	[CALL_CONNECT] = { "connect", { EAGAIN, EINTR, ECONNREFUSED } },
	[CALL_EVENTFD] = { "eventfd", { ENOMEM, EMFILE } },
	[CALL_USERFAULTFD] = { "userfaultfd", { ENOMEM, EMFILE } },
	[CALL_THREAD] = { "pthread_create", { EAGAIN } },
	[CALL_ALLOC] = { "malloc", { ENOMEM } },
	[CALL_SYSCALL] = { "syscall", { USUAL } },
};

static const char *const role_names[NR_ROLES] = { "none", "link", "fault", "vmm", "swap" };

int inject_error(enum call call, u32 i)
{
	return i < ARRAY_SIZE(kinds[call].errors) ? kinds[call].errors[i] : 0;
}

const char *inject_call_name(enum call call)
{
	return kinds[call].name;
}

const char *inject_role_name(enum role r)
{
	return role_names[r];
}

const char *inject_error_name(int error)
{
	return error == PARTIAL ? "PARTIAL" : error == DONE ? "DONE" : strerrorname_np(error);
}

void inject_open(const struct rule *list, u32 nr)
{
	memset(seen, 0, sizeof(seen));
	for (u32 i = 0; i < nr && i < RULES_MAX; i++)
		rules[i] = list[i];
	nr_rules = nr;
	random_permille = 0;
	failed_now = 0;
	window = true;
}

void inject_open_random(u32 permille, u64 seed)
{
	inject_open(NULL, 0);
	random_state = seed;
	random_permille = permille;
}

u32 inject_close(void)
{
	window = false;
	return failed_now;
}

u32 inject_seen(enum role r, enum call c)
{
	return seen[r][c];
}

void inject_as_vmm(bool on)
{
	role = on ? ROLE_VMM : ROLE_NONE;
}

u32 inject_distinct(void)
{
	u32 n = 0;

	for (u32 r = 0; r < NR_ROLES; r++)
		for (u32 c = 0; c < NR_CALLS; c++)
			n += (u32)__builtin_popcountll(failed_with[r][c]);
	return n;
}

u32 inject_kinds(void)
{
	u32 n = 0;

	for (u32 c = 0; c < NR_CALLS; c++) {
		u64 any = 0;

		for (u32 r = 0; r < NR_ROLES; r++)
			any |= failed_with[r][c];
		n += any != 0;
	}
	return n;
}

u64 inject_total(void)
{
	return failed_total;
}

void inject_fake_nfs(bool on)
{
	fake_nfs = on;
}

/* splitmix64 */
static u64 draw(void)
{
	u64 z = random_state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* One call: 0, or the error that it shall fail with. */
static int verdict(enum call c)
{
	int error = 0;
	u32 n, i;

	if (role == ROLE_NONE || !window)
		return 0;
	n = ++seen[role][c];
	for (i = 0; i < nr_rules; i++)
		if (rules[i].role == role && rules[i].call == c && n >= rules[i].from &&
		    n - rules[i].from < rules[i].times)
			error = rules[i].error;
	if (random_permille && draw() % 1000 < random_permille) {
		u32 nr = 0;

		while (inject_error(c, nr))
			nr++;
		error = inject_error(c, (u32)(draw() % nr));
	}
	if (!error)
		return 0;
	for (i = 0; inject_error(c, i) && inject_error(c, i) != error; i++)
		;
	failed_with[role][c] |= (u64)1 << i;
	failed_now++;
	failed_total++;
	return error;
}

/* Half of a range of pages, rounded down. */
static u64 half(u64 bytes)
{
	return ROUND_DOWN(bytes / 2, PAGE_BYTES);
}

static int fail_with(int error)
{
	errno = error;
	return -1;
}

/* --- wrappers ----------------------------------------------------------------------------------
 */

int __real_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg);
long __real_syscall(long nr, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long nr, long a, long b, long c, long d, long e, long f);
void *__real_mmap64(void *at, size_t bytes, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *at, size_t bytes, int prot, int flags, int fd, off_t offset);
ssize_t __real_pread64(int fd, void *buf, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t bytes, off_t offset);
ssize_t __real_pwrite64(int fd, const void *buf, size_t bytes, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t bytes, off_t offset);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fstat64(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st);
int __real_fstatfs64(int fd, struct statfs *st);
int __wrap_fstatfs64(int fd, struct statfs *st);
ssize_t __real_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __real_recvmsg(int fd, struct msghdr *m, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *m, int flags);
int __real_poll(struct pollfd *p, nfds_t nr, int ms);
int __wrap_poll(struct pollfd *p, nfds_t nr, int ms);
int __real_open64(const char *path, int flags, mode_t mode);
int __wrap_open64(const char *path, int flags, mode_t mode);
FILE *__real_fopen64(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode);
ssize_t __real_readlink(const char *path, char *buf, size_t size);
ssize_t __wrap_readlink(const char *path, char *buf, size_t size);
ssize_t __real_read(int fd, void *buf, size_t bytes);
ssize_t __wrap_read(int fd, void *buf, size_t bytes);
ssize_t __real_write(int fd, const void *buf, size_t bytes);
ssize_t __wrap_write(int fd, const void *buf, size_t bytes);
int __real_fcntl64(int fd, int cmd, long arg);
int __wrap_fcntl64(int fd, int cmd, long arg);
off_t __real_lseek64(int fd, off_t offset, int whence);
off_t __wrap_lseek64(int fd, off_t offset, int whence);
int __real_access(const char *path, int mode);
int __wrap_access(const char *path, int mode);
int __real_socket(int domain, int type, int protocol);
int __wrap_socket(int domain, int type, int protocol);
int __real_connect(int fd, const struct sockaddr *addr, socklen_t bytes);
int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t bytes);
int __real_eventfd(unsigned int count, int flags);
int __wrap_eventfd(unsigned int count, int flags);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_calloc(size_t nr, size_t bytes);
void *__wrap_calloc(size_t nr, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);

static enum call ioctl_kind(unsigned long request)
{
	switch (request) {
	case UFFDIO_REGISTER:
		return CALL_REGISTER;
	case UFFDIO_UNREGISTER:
		return CALL_UNREGISTER;
	case UFFDIO_MOVE:
		return CALL_MOVE;
	case UFFDIO_ZEROPAGE:
		return CALL_ZEROPAGE;
	case UFFDIO_COPY:
		return CALL_COPY;
	case UFFDIO_WRITEPROTECT:
		return CALL_WRITEPROTECT;
	case UFFDIO_WAKE:
		return CALL_WAKE;
	default:
		return CALL_IOCTL;
	}
}

/* The kernel does half, then a page table, a VMA, or a quiet moment is wanting. */
static int ioctl_half(int fd, unsigned long request, void *arg)
{
	struct uffdio_move *m = arg;
	struct uffdio_zeropage *z = arg;
	union {
		struct uffdio_register r;
		struct uffdio_range range;
		struct uffdio_writeprotect wp;
		struct uffdio_move m;
		struct uffdio_zeropage z;
	} part;

	switch (request) {
	case UFFDIO_MOVE:
		part.m = *m;
		part.m.len = half(m->len);
		if (part.m.len && __real_ioctl(fd, request, &part.m) < 0 && part.m.move <= 0)
			return -1;
		m->move = part.m.len ? part.m.move : 0;
		return fail_with(EAGAIN);
	case UFFDIO_ZEROPAGE:
		part.z = *z;
		part.z.range.len = half(z->range.len);
		if (part.z.range.len && __real_ioctl(fd, request, &part.z) < 0 &&
		    part.z.zeropage <= 0)
			return -1;
		z->zeropage = part.z.range.len ? part.z.zeropage : 0;
		return fail_with(EAGAIN);
	case UFFDIO_REGISTER:
		part.r = *(struct uffdio_register *)arg;
		part.r.range.len = half(part.r.range.len);
		break;
	case UFFDIO_WRITEPROTECT:
		part.wp = *(struct uffdio_writeprotect *)arg;
		part.wp.range.len = half(part.wp.range.len);
		break;
	default:
		part.range = *(struct uffdio_range *)arg;
		part.range.len = half(part.range.len);
	}
	__real_ioctl(fd, request, &part);
	return fail_with(ENOMEM);
}

/* Linux 6.18, when a page under migration was waited for: moved, and EEXIST all the same. */
static int ioctl_done(int fd, unsigned long request, void *arg)
{
	struct uffdio_move *m = arg;

	if (__real_ioctl(fd, request, m) < 0)
		return -1;
	m->move = -EEXIST;
	return fail_with(EEXIST);
}

int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
	int e = verdict(ioctl_kind(request));

	if (!e)
		return __real_ioctl(fd, request, arg);
	return e == PARTIAL ? ioctl_half(fd, request, arg)
	       : e == DONE  ? ioctl_done(fd, request, arg)
			    : fail_with(e);
}

long __wrap_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	enum call kind = CALL_SYSCALL;
	int error;

	if (nr == SYS_madvise && (c == MADV_DONTNEED || c == MADV_DONTNEED_LOCKED))
		kind = CALL_DONTNEED;
	else if (nr == SYS_madvise)
		kind = c == MADV_POPULATE_WRITE ? CALL_POPULATE : CALL_MADVISE;
	else if (nr == SYS_mmap)
		kind = (int)e >= 0 ? CALL_MMAP_FILE : CALL_MMAP_ANON;
	else if (nr == SYS_mincore)
		kind = CALL_MINCORE;
	else if (nr == SYS_getdents64)
		kind = CALL_GETDENTS;
	else if (nr == SYS_userfaultfd)
		kind = CALL_USERFAULTFD;
	error = verdict(kind);
	if (!error)
		return __real_syscall(nr, a, b, c, d, e, f);
	if (error == PARTIAL && nr == SYS_madvise) {
		if (half((u64)b))
			__real_syscall(nr, a, (long)half((u64)b), c, 0, 0, 0);
		error = ENOMEM;
	}
	return fail_with(error);
}

void *__wrap_mmap64(void *at, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	int e = verdict(fd >= 0 ? CALL_MMAP_FILE : CALL_MMAP_ANON);

	if (!e)
		return __real_mmap64(at, bytes, prot, flags, fd, offset);
	errno = e;
	return MAP_FAILED;
}

ssize_t __wrap_pread64(int fd, void *buf, size_t bytes, off_t offset)
{
	int e = verdict(CALL_PREAD);

	if (!e || e == PARTIAL)
		return __real_pread64(fd, buf, e && bytes > 1 ? bytes / 2 : bytes, offset);
	return fail_with(e);
}

ssize_t __wrap_pwrite64(int fd, const void *buf, size_t bytes, off_t offset)
{
	int e = verdict(CALL_PWRITE);

	if (!e || e == PARTIAL)
		return __real_pwrite64(fd, buf, e && bytes > 1 ? bytes / 2 : bytes, offset);
	return fail_with(e);
}

int __wrap_fdatasync(int fd)
{
	int e = verdict(CALL_PWRITE);

	return e ? fail_with(e == PARTIAL ? EIO : e) : __real_fdatasync(fd);
}

int __wrap_fstat64(int fd, struct stat *st)
{
	int e = verdict(CALL_FSTAT);

	return e ? fail_with(e) : __real_fstat64(fd, st);
}

int __wrap_fstatfs64(int fd, struct statfs *st)
{
	int e = verdict(CALL_FSTATFS), r;

	if (e)
		return fail_with(e);
	r = __real_fstatfs64(fd, st);
	if (role && fake_nfs)
		st->f_type = NFS_MAGIC;
	return r;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags)
{
	int e = verdict(CALL_SENDMSG);

	return e ? fail_with(e) : __real_sendmsg(fd, m, flags);
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *m, int flags)
{
	int e = verdict(CALL_RECVMSG);

	return e ? fail_with(e) : __real_recvmsg(fd, m, flags);
}

int __wrap_poll(struct pollfd *p, nfds_t nr, int ms)
{
	int e = verdict(CALL_POLL);

	if (e)
		return fail_with(e);
	if (ms == IDLE_MS && (role == ROLE_FAULT || (role == ROLE_LINK && p->fd == event_fd)))
		ms = FAST_MS;
	return __real_poll(p, nr, ms);
}

int __wrap_open64(const char *path, int flags, mode_t mode)
{
	int e = verdict(CALL_OPEN), fd;

	if (e)
		return fail_with(e);
	fd = __real_open64(path, flags, mode);
	if (strcmp(path, "/proc/self/mountinfo") == 0)
		mounts_fd = fd;
	return fd;
}

FILE *__wrap_fopen64(const char *path, const char *mode)
{
	int e = verdict(CALL_OPEN);

	if (!e)
		return __real_fopen64(path, mode);
	errno = e;
	return NULL;
}

ssize_t __wrap_readlink(const char *path, char *buf, size_t size)
{
	int e = verdict(CALL_READLINK);

	return e ? fail_with(e) : __real_readlink(path, buf, size);
}

ssize_t __wrap_read(int fd, void *buf, size_t bytes)
{
	int e = verdict(CALL_READ);
	ssize_t n;

	if (e && e != PARTIAL)
		return fail_with(e);
	n = __real_read(fd, buf, bytes);
	if (role && fake_nfs && fd == mounts_fd && n > 0) {
		static const char line[] = "22 1 0:40 / /mnt rw - nfs server:/ rw\n";

		memcpy(buf, line, sizeof(line) - 1);
		n = sizeof(line) - 1;
	} else if (e && fd == mounts_fd && n > 1) {
		n = __real_lseek64(fd, -(n - n / 2), SEEK_CUR) < 0 ? n : n / 2;
	}
	return n;
}

/* Of these only the agent's event descriptor: EAGAIN means that it is full, thus signalled. */
ssize_t __wrap_write(int fd, const void *buf, size_t bytes)
{
	int e = verdict(CALL_WRITE);

	if (e == EAGAIN)
		__real_write(fd, buf, bytes);
	return e ? fail_with(e) : __real_write(fd, buf, bytes);
}

int __wrap_fcntl64(int fd, int cmd, long arg)
{
	int e = verdict(CALL_FCNTL);

	return e ? fail_with(e) : __real_fcntl64(fd, cmd, arg);
}

off_t __wrap_lseek64(int fd, off_t offset, int whence)
{
	int e = verdict(CALL_LSEEK);

	return e ? fail_with(e) : __real_lseek64(fd, offset, whence);
}

int __wrap_access(const char *path, int mode)
{
	int e = verdict(CALL_ACCESS);

	return e ? fail_with(e) : __real_access(path, mode);
}

int __wrap_socket(int domain, int type, int protocol)
{
	int e = verdict(CALL_SOCKET);

	return e ? fail_with(e) : __real_socket(domain, type, protocol);
}

int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t bytes)
{
	int e = verdict(CALL_CONNECT);

	return e ? fail_with(e) : __real_connect(fd, addr, bytes);
}

int __wrap_eventfd(unsigned int count, int flags)
{
	int e = verdict(CALL_EVENTFD);

	if (e)
		return fail_with(e);
	event_fd = __real_eventfd(count, flags);
	return event_fd;
}

static void *link_thread(void *arg)
{
	role = ROLE_LINK;
	return link_main(arg);
}

static void *fault_thread(void *arg)
{
	role = ROLE_FAULT;
	return fault_main(arg);
}

static void *swap_thread(void *arg)
{
	role = ROLE_SWAP;
	return swap_main(arg);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	int e = verdict(CALL_THREAD);

	if (e)
		return e;
	if (fn == link_main)
		fn = link_thread;
	else if (fn == fault_main)
		fn = fault_thread;
	else if (fn == swap_main)
		fn = swap_thread;
	return __real_pthread_create(t, attr, fn, arg);
}

static bool no_memory(void)
{
	int e = verdict(CALL_ALLOC);

	if (e)
		errno = e;
	return e != 0;
}

void *__wrap_malloc(size_t bytes)
{
	return no_memory() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t nr, size_t bytes)
{
	return no_memory() ? NULL : __real_calloc(nr, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
	return no_memory() ? NULL : __real_aligned_alloc(align, bytes);
}
