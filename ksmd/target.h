/* SPDX-License-Identifier: MIT */
/*
 * A process whose memory is read: what reader threads need of it, with a life of its own, since a
 * reader that hangs in a hostile process may outlive the daemon's interest in it.
 */
#ifndef BALLAST_KSMD_TARGET_H
#define BALLAST_KSMD_TARGET_H

#include <stdatomic.h>
#include <sys/types.h>
#include "common/procfs.h"
#include "common/types.h"

struct target {
	pid_t pid;
	int pagemap_fd;
	int pidfd; /* -1: could not be had */
	atomic_uint refs;
};

/* Opens /proc/PID/pagemap. The caller keeps the process's identity fixed (pidfd) while it uses the
 * target. */
int target_new(pid_t pid, struct target **ret);
struct target *target_get(struct target *t);
void target_put(struct target *t);

/*
 * Reads pages at @hva[i] into @buf + i * PAGE_BYTES. Pages that cannot be read (gone by now) get
 * ok[i] = false. Returns -ESRCH when the process is gone.
 */
int target_read(const struct target *t, const u64 *hva, u32 nr, u8 *buf, bool *ok);

#endif
