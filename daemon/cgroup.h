/* SPDX-License-Identifier: MIT */
/*
 * The memory of a cgroup, v1 or v2: where all VMs are in one that has a limit, that limit is what
 * the policy divides. Sources: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst.
 */
#ifndef BALLAST_DAEMON_CGROUP_H
#define BALLAST_DAEMON_CGROUP_H

#include "common/types.h"

struct cgroup_memory {
	u64 limit_bytes;     /* UINT64_MAX: none */
	u64 available_bytes; /* of the limit; page cache that was not used lately counts as free */
};

/* @path: the cgroup's folder. 0, -EINVAL (a file says what is not understood) or -errno. */
int cgroup_memory(const char *path, struct cgroup_memory *ret);

#endif
