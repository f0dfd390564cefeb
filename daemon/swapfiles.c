/* SPDX-License-Identifier: MIT */
/*
 * The files that the VMs' pagers write to ([policy] swap_dir): made here, because the folder is the
 * administrator's and not the VMMs' users'; unlinked from the start, so that a VM's end gives the
 * space back whatever happens; used by the agent in the VMM alone (hypervisor-hooks/swap.c), so
 * that our death changes nothing for a guest.
 *
 * A file cannot be taken back, nor limited for who has it open. An honest agent writes no more than
 * its pool has address space for. A VMM that writes more than that is hostile: its file is cut to
 * nothing, which costs it its own pages and nobody else (invariant 9).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "common/log.h"
#include "daemon/core.h"

/* Of what it has as memory: pages that are kept as they are take somewhat more (pager.c). */
#define FILE_PART(bytes) ((bytes) + (bytes) / 8 + MIB(16))

static bool has_dir(const struct core *c)
{
	return strcmp(c->config.policy_swap_dir, CONFIG_NONE) != 0;
}

static u64 file_limit(const struct vm *vm)
{
	struct ksm_vm_stats s;

	engine_vm_stats(vm->ksm, &s);
	return FILE_PART(s.configured_pages << PAGE_SHIFT);
}

/* Past the page cache, if the file system can: what is swapped out shall leave memory. */
static int make_file(const char *dir)
{
	const int flags = O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL;
	int fd = open(dir, flags | O_DIRECT, 0600);
	char path[160];

	if (fd < 0 && errno == EINVAL)
		fd = open(dir, flags, 0600);
	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
		return fd < 0 ? -errno : fd;
	/* No unnamed files there. */
	snprintf(path, sizeof(path), "%s/ballast-swap.XXXXXX", dir);
	fd = mkostemp(path, O_CLOEXEC | O_DIRECT);
	if (fd < 0 && errno == EINVAL)
		fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	unlink(path);
	return fd;
}

void swapfile_offer(struct vm *vm)
{
	const char *dir = vm->core->config.policy_swap_dir;
	int fd, r;

	if (!has_dir(vm->core) || !vm->may_page_out || !vm->agent || !vm->swap_known ||
	    vm->swap.has_file || vm->swap_offered)
		return;
	/* Of an agent that the process had before. */
	swapfile_forget(vm);
	fd = make_file(dir);
	if (fd < 0) {
		log_warn_limited("VM %s gets no swap file: %s: %s ([policy] swap_dir = a folder "
				 "that can be written to, or none)",
				 vm->name, dir, strerror(-fd));
		return;
	}
	r = agent_send_swap_file(vm, fd);
	if (r == 0) {
		vm->swap_fd = fd;
		vm->swap_offered = true;
		return;
	}
	close(fd);
	log_warn_limited("VM %s gets no swap file: %s", vm->name, strerror(-r));
}

void swapfile_forget(struct vm *vm)
{
	if (vm->swap_fd >= 0)
		close(vm->swap_fd);
	vm->swap_fd = -1;
}

void swapfile_told(struct vm *vm, const struct wire_swap *s)
{
	if (s->error && s->error != vm->swap.error)
		log_warn_limited(
			"VM %s: its swap file fails: %s; its pages stay in memory, it is tried "
			"again every 10 s",
			vm->name, strerror((int)-s->error));
	else if (!s->error && vm->swap.error)
		log_info_limited("VM %s: its swap file is tried again", vm->name);
	vm->swap = *s;
	vm->swap_known = true;
	swapfile_offer(vm);
}

int swapfile_out(struct vm *vm, u64 bytes, u64 *ret_bytes)
{
	*ret_bytes = MIN(bytes, vm->pager.pool_bytes);
	if (!vm->swap.has_file)
		return -ENODEV;
	return *ret_bytes ? agent_send_swap_out(vm, *ret_bytes) : 0;
}

static void check_file(struct vm *vm)
{
	struct stat st;

	if (vm->swap_fd < 0 || fstat(vm->swap_fd, &st) < 0 ||
	    (u64)st.st_blocks * 512 <= file_limit(vm))
		return;
	log_warn_limited("VM %s (pid %d) has written %llu MiB to its swap file, more than it has "
			 "memory: the file is cut",
			 vm->name, (int)vm->pid, (unsigned long long)st.st_blocks >> 11);
	if (ftruncate(vm->swap_fd, 0) < 0)
		log_warn_limited("its file cannot be cut: %s", strerror(errno));
}

u64 swapfiles_free(struct core *c)
{
	struct statvfs fs;
	u64 room;

	for (struct vm *vm = c->vms; vm; vm = vm->next)
		check_file(vm);
	if (!has_dir(c) || statvfs(c->config.policy_swap_dir, &fs) < 0)
		return 0;
	room = (u64)fs.f_bavail * fs.f_frsize;
	return room > c->config.policy_swap_keep ? room - c->config.policy_swap_keep : 0;
}
