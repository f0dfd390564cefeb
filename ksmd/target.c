/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/uio.h>
#include <unistd.h>
#include "ksmd/target.h"

/* Remote ranges of one call: enough that the call's cost does not show. */
#define IOV_MAX_HERE 64

int target_new(pid_t pid, struct target **ret)
{
	struct target *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->pid = pid;
	t->pagemap_fd = pagemap_open(pid);
	if (t->pagemap_fd < 0) {
		int r = t->pagemap_fd;

		free(t);
		return r;
	}
	t->pidfd = pidfd_open(pid, 0);
	t->refs = 1;
	*ret = t;
	return 0;
}

struct target *target_get(struct target *t)
{
	t->refs++;
	return t;
}

void target_put(struct target *t)
{
	if (!t || --t->refs)
		return;
	close(t->pagemap_fd);
	if (t->pidfd >= 0)
		close(t->pidfd);
	free(t);
}

int target_read(const struct target *t, const u64 *hva, u32 nr, u8 *buf, bool *ok)
{
	u32 done = 0;

	while (done < nr) {
		struct iovec remote[IOV_MAX_HERE];
		struct iovec local = { .iov_base = buf + done * PAGE_BYTES };
		u32 iovs = 0, pages = 0;
		ssize_t n;

		for (u32 i = done; i < nr; i++, pages++) {
			struct iovec *last = iovs ? &remote[iovs - 1] : NULL;

			if (last && (u64)(uintptr_t)last->iov_base + last->iov_len == hva[i])
				last->iov_len += PAGE_BYTES;
			else if (iovs < IOV_MAX_HERE)
				remote[iovs++] =
					(struct iovec){ (void *)(uintptr_t)hva[i], PAGE_BYTES };
			else
				break;
		}
		local.iov_len = pages * PAGE_BYTES;
		n = process_vm_readv(t->pid, &local, 1, remote, iovs, 0);
		if (n < 0 && errno != EFAULT)
			return -errno;
		/* The call stops at the first page that it cannot read. */
		pages = n > 0 ? (u32)((u64)n >> PAGE_SHIFT) : 0;
		for (u32 i = 0; i < pages; i++)
			ok[done + i] = true;
		done += pages;
		if (done < nr && (n < 0 || (u64)n < local.iov_len))
			ok[done++] = false;
	}
	return 0;
}
