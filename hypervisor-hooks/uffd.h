/* SPDX-License-Identifier: MIT */
/*
 * userfaultfd, one function an ioctl. Errors are negative errno. Source:
 * Documentation/admin-guide/mm/userfaultfd.rst, mm/userfaultfd.c, fs/userfaultfd.c.
 */
#ifndef BALLAST_HOOKS_UFFD_H
#define BALLAST_HOOKS_UFFD_H

#include "common/types.h"
#include "common/uapi_compat.h"

/* Returns a descriptor with exactly @features, or -ENOSYS when the kernel lacks one, -EPERM when
 * not permitted. */
int uffd_open(u64 features);

int uffd_register(int fd, u64 start, u64 bytes, u64 mode);
int uffd_unregister(int fd, u64 start, u64 bytes);
int uffd_wake(int fd, u64 start, u64 bytes);
/* *ret_moved: bytes moved, also on error. Never wakes. */
int uffd_move(int fd, u64 dst, u64 src, u64 bytes, u64 *ret_moved);
int uffd_zeropage(int fd, u64 start, u64 bytes, u64 *ret_done);
int uffd_copy(int fd, u64 dst, const void *src, u64 bytes);
int uffd_writeprotect(int fd, u64 start, u64 bytes, bool protect);

#endif
