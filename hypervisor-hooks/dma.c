/* SPDX-License-Identifier: MIT */
/*
 * May a device write guest RAM behind the page tables now? For VMMs that do not say so page by page
 * (pins.c); the answer to one that does is no, since its pages under DMA are not even looked at.
 *
 * Devices hold the pages that they will write in one of two ways. Most pin them, and UFFDIO_MOVE
 * refuses a pinned page, so for anonymous pages the kernel answers page by page. Two things it does
 * not answer:
 *
 *   - pages inside store mappings, which cannot be moved: dma_possible() looks for any descriptor
 * through which memory can be pinned;
 *   - users of direct I/O that hold a mere reference to the page (NFS and other network file
 * systems, vhost-scsi): dma_unpinned_possible() looks for those.
 *
 * Both err on the side of yes: such a page stays private. All is asked of the kernel by system
 * calls on our own descriptors, without allocating (agent.h, rule iii).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include "hypervisor-hooks/agent.h"

/* Character devices that a VMM has open and that never write its memory by DMA. Any other one
 * might. */
static const char *const harmless_devices[] = {
	"/dev/kvm",	"/dev/null",	"/dev/zero",	    "/dev/full",
	"/dev/urandom", "/dev/random",	"/dev/ptmx",	    "/dev/pts/",
	"/dev/tty",	"/dev/net/tun", "/dev/tap",	    "/dev/vhost-net",
	"/dev/hwrng",	"/dev/console", "/dev/userfaultfd", "/dev/vhost-vsock",
};

/* File systems whose direct I/O pins the pages (fs/iomap, fs/direct-io.c): f_type of statfs(2). */
static const long pinning_filesystems[] = {
	0xef53,	    /* ext2, ext3, ext4 */
	0x58465342, /* xfs */
	0x9123683e, /* btrfs */
	0xf2f52010, /* f2fs */
	0x01021994, /* tmpfs: no device at all */
};

static bool link_target(int fd, char *buf, size_t size)
{
	char path[32];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, buf, size - 1);
	buf[n > 0 ? n : 0] = '\0';
	return n > 0;
}

/* io_uring can do its I/O through buffers and files that were registered with it. */
static bool ring_has_registered(int fd)
{
	char path[40], info[2048];
	const char *bufs, *files;
	ssize_t n;
	int f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = open(path, O_RDONLY | O_CLOEXEC);
	if (f < 0)
		return true;
	n = read(f, info, sizeof(info) - 1);
	close(f);
	info[n > 0 ? n : 0] = '\0';
	bufs = strstr(info, "UserBufs:");
	files = strstr(info, "UserFiles:");
	return !bufs || !files || strtoul(bufs + strlen("UserBufs:"), NULL, 10) ||
	       strtoul(files + strlen("UserFiles:"), NULL, 10);
}

static bool device_may_write(int fd)
{
	char target[128];

	if (!link_target(fd, target, sizeof(target)))
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(harmless_devices); i++)
		if (strncmp(target, harmless_devices[i], strlen(harmless_devices[i])) == 0)
			return false;
	return true;
}

static bool may_pin(int fd)
{
	char target[64];
	struct stat st;

	if (fstat(fd, &st) < 0)
		return errno != EBADF; /* closed by now */
	if (S_ISBLK(st.st_mode))
		return true;
	if (S_ISCHR(st.st_mode))
		return device_may_write(fd);
	if (S_ISREG(st.st_mode))
		return fcntl(fd, F_GETFL) & O_DIRECT;
	if (S_ISSOCK(st.st_mode) || S_ISFIFO(st.st_mode) || S_ISDIR(st.st_mode))
		return false;
	/* What has no type is an anonymous inode. */
	if (!link_target(fd, target, sizeof(target)))
		return true;
	if (strstr(target, "io_uring"))
		return ring_has_registered(fd);
	return strstr(target, "vfio") || strstr(target, "iommu") || strstr(target, "infiniband");
}

static bool may_write_unpinned(int fd)
{
	char target[128];
	struct statfs fs;
	struct stat st;

	/* EBADF: closed by now. A file on NFS may well fail these calls when its server is away,
	 * and have its I/O under way. */
	if (fstat(fd, &st) < 0)
		return errno != EBADF;
	if (S_ISCHR(st.st_mode))
		return !link_target(fd, target, sizeof(target)) ||
		       strncmp(target, "/dev/vhost-scsi", strlen("/dev/vhost-scsi")) == 0;
	if (!S_ISREG(st.st_mode) || !(fcntl(fd, F_GETFL) & O_DIRECT))
		return false;
	if (fstatfs(fd, &fs) < 0)
		return errno != EBADF;
	for (size_t i = 0; i < ARRAY_SIZE(pinning_filesystems); i++)
		if ((long)fs.f_type == pinning_filesystems[i])
			return false;
	return true;
}

/* getdents64(2) by hand: opendir() allocates. */
static bool any_descriptor(const struct bh_agent *a, bool (*fn)(int fd))
{
	char buf[4096] __attribute__((aligned(8)));
	int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool found = dir < 0;
	long n = 0;

	while (!found && (n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
		for (long at = 0; !found && at < n;) {
			const struct dirent64 *e = (const struct dirent64 *)(buf + at);
			int fd = atoi(e->d_name);

			/* Through the pager's own file no guest memory goes. */
			found = e->d_name[0] != '.' && fd != dir && fd != a->swap.fd && fn(fd);
			at += e->d_reclen;
		}
	}
	if (dir >= 0)
		close(dir);
	return found || n < 0;
}

bool dma_possible(struct bh_agent *a)
{
	if (a->cfg.dma_active)
		return a->cfg.dma_active(a->cfg.dma_arg) != 0;
	return !a->cfg.pins_exactly && any_descriptor(a, may_pin);
}

/* Is a file system mounted that no block device of this host is behind? */
static bool network_filesystem_mounted(int fd)
{
	char buf[8192];
	bool found = false;
	size_t kept = 0;
	ssize_t n = 0;

	if (lseek(fd, 0, SEEK_SET) < 0)
		return true;
	while (!found && (n = read(fd, buf + kept, sizeof(buf) - 1 - kept)) > 0) {
		char *line = buf, *end;

		buf[kept + (size_t)n] = '\0';
		while (!found && (end = strchr(line, '\n'))) {
			/* "... - TYPE SOURCE OPTIONS" */
			const char *type = strstr(line, " - ");

			*end = '\0';
			type = type && type < end ? type + 3 : "";
			found = strncmp(type, "nfs", 3) == 0 || strncmp(type, "ceph", 4) == 0 ||
				strncmp(type, "9p", 2) == 0 || strncmp(type, "cifs", 4) == 0 ||
				strncmp(type, "smb", 3) == 0 || strncmp(type, "fuse", 4) == 0 ||
				strncmp(type, "virtiofs", 8) == 0 ||
				strncmp(type, "gfs2", 4) == 0 || strncmp(type, "ocfs2", 5) == 0 ||
				strncmp(type, "lustre", 6) == 0 || strncmp(type, "zfs", 3) == 0 ||
				strncmp(type, "overlay", 7) == 0;
			line = end + 1;
		}
		kept = strlen(line);
		if (kept >= sizeof(buf) - 1)
			return true; /* a line that long says nothing that we can read */
		memmove(buf, line, kept + 1);
	}
	return found || n < 0;
}

/* Without /sys nobody can tell. */
static bool vhost_scsi_loaded(void)
{
	if (access("/sys/module/vhost_scsi", F_OK) == 0)
		return true;
	return errno != ENOENT || access("/sys/module", F_OK) < 0;
}

bool dma_unpinned_possible(struct bh_agent *a)
{
	struct pollfd changed = { .fd = a->mounts_fd, .events = POLLPRI };

	if (a->cfg.dma_active)
		return a->cfg.dma_active(a->cfg.dma_arg) != 0;
	if (a->cfg.pins_exactly)
		return false;
	/* The quick answer, since this is asked for every step: nothing on this host could. */
	if (!a->mounts_read || poll(&changed, 1, 0) != 0) {
		a->network_fs = a->mounts_fd < 0 || network_filesystem_mounted(a->mounts_fd);
		a->mounts_read = true;
	}
	if (!a->network_fs && !vhost_scsi_loaded())
		return false;
	return any_descriptor(a, may_write_unpinned);
}
