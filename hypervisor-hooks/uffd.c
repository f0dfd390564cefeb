/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "hypervisor-hooks/uffd.h"

/* The kernel has no reason to fail a wake-up; should it ever, for this long it is asked again. */
#define WAKE_TRIES    1000
#define WAKE_PAUSE_US 100

static int uffd_create(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int dev;

	if (fd >= 0 || errno != EPERM)
		return fd >= 0 ? fd : -errno;
	/* Users without CAP_SYS_PTRACE may be given the device instead (libvirt's qemu user, by
	 * udev rule). */
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -EPERM;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = -EPERM;
	close(dev);
	return fd;
}

int uffd_open(u64 features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = uffd_create();

	if (fd < 0)
		return fd;
	if (ioctl(fd, UFFDIO_API, &api) < 0 || (api.features & features) != features) {
		close(fd);
		return -ENOSYS;
	}
	return fd;
}

int uffd_register(int fd, u64 start, u64 bytes, u64 mode)
{
	struct uffdio_register r = { .range = { start, bytes }, .mode = mode };

	if (ioctl(fd, UFFDIO_REGISTER, &r) < 0)
		return -errno;
	/* hugetlbfs offers fewer operations than anonymous memory does. */
	if ((mode & UFFDIO_REGISTER_MODE_MISSING) && !(r.ioctls & (1ULL << _UFFDIO_MOVE)))
		return -ENOTSUP;
	return 0;
}

int uffd_unregister(int fd, u64 start, u64 bytes)
{
	struct uffdio_range r = { start, bytes };

	return ioctl(fd, UFFDIO_UNREGISTER, &r) < 0 ? -errno : 0;
}

int uffd_wake(int fd, u64 start, u64 bytes)
{
	struct uffdio_range r = { start, bytes };
	int err = 0;

	/* A wake-up that is lost is a guest access that waits for ever. */
	for (u32 tries = 0; tries < WAKE_TRIES; tries++) {
		if (ioctl(fd, UFFDIO_WAKE, &r) == 0)
			return 0;
		err = -errno;
		if (err == -EINVAL || err == -EBADF)
			break;
		usleep(WAKE_PAUSE_US);
	}
	return err;
}

int uffd_move(int fd, u64 dst, u64 src, u64 bytes, u64 *ret_moved)
{
	struct uffdio_move m = { .dst = dst, .src = src, .len = bytes, .mode = 1 /* DONTWAKE */ };
	int r = ioctl(fd, UFFDIO_MOVE, &m) < 0 ? -errno : 0;

	*ret_moved = m.move > 0 ? (u64)m.move : 0;
	return r;
}

int uffd_zeropage(int fd, u64 start, u64 bytes, u64 *ret_done)
{
	struct uffdio_zeropage z = { .range = { start, bytes },
				     .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE };
	int r = ioctl(fd, UFFDIO_ZEROPAGE, &z) < 0 ? -errno : 0;

	*ret_done = z.zeropage > 0 ? (u64)z.zeropage : 0;
	return r;
}

int uffd_copy(int fd, u64 dst, const void *src, u64 bytes)
{
	struct uffdio_copy c = { .dst = dst, .src = (u64)(uintptr_t)src, .len = bytes };

	return ioctl(fd, UFFDIO_COPY, &c) < 0 ? -errno : 0;
}

int uffd_writeprotect(int fd, u64 start, u64 bytes, bool protect)
{
	struct uffdio_writeprotect w = {
		.range = { start, bytes },
		/* Lifting the protection wakes those who wait for it. */
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &w) < 0 ? -errno : 0;
}
