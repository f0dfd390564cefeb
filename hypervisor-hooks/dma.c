/* SPDX-License-Identifier: MIT */
/*
 * May a device write guest RAM behind the page tables now? Asked only for pages inside store
 * mappings, where UFFDIO_MOVE cannot answer for a single page (merge.c). The answer errs on the
 * side of yes: such a page then stays private.
 *
 * Memory is pinned for device writes through few kinds of descriptors: a file opened with O_DIRECT,
 * VFIO and its kin, and io_uring with fixed buffers. All are visible in /proc/self/fdinfo as long
 * as they are open.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "hypervisor-hooks/agent.h"

static const char *const pinning_files[] = {
	"/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa", "/dev/infiniband/", "anon_inode:[vfio",
};

/* Reads a small file relative to a folder; "" when it is gone by now. */
static void read_at(int dir, const char *name, char *buf, size_t size)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, buf, size - 1);

	buf[n > 0 ? n : 0] = '\0';
	if (fd >= 0)
		close(fd);
}

static bool fd_may_pin(int info_dir, int fd_dir, const char *number)
{
	char target[256], info[1024], *p;
	ssize_t n = readlinkat(fd_dir, number, target, sizeof(target) - 1);

	if (n < 0)
		return false;
	target[n] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(pinning_files); i++)
		if (strncmp(target, pinning_files[i], strlen(pinning_files[i])) == 0)
			return true;
	if (target[0] != '/' && !strstr(target, "io_uring"))
		return false;
	read_at(info_dir, number, info, sizeof(info));
	p = strstr(info, "flags:");
	if (p && strtoul(p + strlen("flags:"), NULL, 8) & O_DIRECT)
		return true;
	p = strstr(info, "UserBufs:");
	return p && strtoul(p + strlen("UserBufs:"), NULL, 10) > 0;
}

static bool descriptors_may_pin(void)
{
	DIR *d = opendir("/proc/self/fd");
	int info_dir = open("/proc/self/fdinfo", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool found = !d || info_dir < 0;
	struct dirent *e;

	while (!found && (e = readdir(d)))
		found = e->d_name[0] != '.' && fd_may_pin(info_dir, dirfd(d), e->d_name);
	if (d)
		closedir(d);
	if (info_dir >= 0)
		close(info_dir);
	return found;
}

bool dma_possible(struct bh_agent *a)
{
	if (a->cfg.dma_active)
		return a->cfg.dma_active(a->cfg.dma_arg) != 0;
	return descriptors_may_pin();
}
