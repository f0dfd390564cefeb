/* SPDX-License-Identifier: MIT */
/*
 * What the kernel says of a process: its mappings, its page states, its memory in use. The kernel's
 * word is the only one that Ballast trusts about a VMM (invariant 9). All functions return 0 or a
 * negative errno unless said otherwise; addresses and lengths are bytes.
 */
#ifndef BALLAST_COMMON_PROCFS_H
#define BALLAST_COMMON_PROCFS_H

#include <stdio.h>
#include <sys/types.h>
#include "common/types.h"
#include "common/uapi_compat.h"

/* One line of /proc/PID/maps. */
struct procmap {
	u64 start, end;
	u64 offset;   /* bytes into the file; 0 if anonymous */
	u64 dev, ino; /* ino 0: anonymous */
	bool readable, writable, shared;
	const char *path; /* valid during the callback only; "" if none */
};

/* Calls @fn for each mapping in address order; a non-zero return of @fn ends the walk and is
 * returned. -ESRCH: the kernel shows none at all, which is not the same as none of interest. */
int procmaps_walk(pid_t pid, int (*fn)(const struct procmap *m, void *arg), void *arg);
/* The same of a file that is open. -EPROTO: a line that the kernel does not write. */
int procmaps_walk_file(FILE *f, int (*fn)(const struct procmap *m, void *arg), void *arg);

/* Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat): with the pid it
 * names a process for good, since a reused pid has another start time. */
int proc_starttime(pid_t pid, u64 *ret_ticks);

/* User and system CPU time used by the process so far, us. */
int proc_cpu_us(pid_t pid, u64 *ret_us);

/* From /proc/PID/smaps_rollup, bytes. */
struct proc_memory {
	u64 rss, pss, pss_anon, anon_huge, swap;
};
int proc_memory(pid_t pid, struct proc_memory *ret);

/* Of /proc/PID/status, bytes: resident anonymous pages, resident ones of shared memory and of the
 * store, and what is swapped out. Cheap, where proc_memory() walks page tables. */
struct proc_rss {
	u64 anon, shmem, swap;
};
int proc_rss(pid_t pid, struct proc_rss *ret);

/* A value in kB of /proc/PID/status ("VmPTE", "VmLck", ...), in bytes. */
int proc_status_bytes(pid_t pid, const char *key, u64 *ret_bytes);

/*
 * The arguments of a process, each ended by a NUL, cut at @size; *ret_len 0: none (it has ended).
 * They are memory of the process, but reading them does not wait for it: the kernel does not let
 * this access sleep in a userfault, nor go to a mapped file (-EFAULT).
 */
int proc_cmdline(pid_t pid, char *buf, size_t size, size_t *ret_len);

/* Opens /proc/PID/pagemap. Returns the descriptor or -errno. Needs CAP_SYS_PTRACE over the process.
 */
int pagemap_open(pid_t pid);

/*
 * PAGEMAP_SCAN over [start, end). A page matches when (categories ^ @inverted) has all bits of
 * @all and, if @any is not 0, one bit of @any. Fills up to @nr regions with the @ret_mask
 * categories. With PM_SCAN_WP_MATCHING in @flags, the matching pages are write-protected (re-armed)
 * in the same walk. Returns the number of regions; *ret_walk_end is where the walk stopped (== end
 * when done).
 */
struct pagemap_query {
	u64 flags;
	u64 inverted, all, any, ret_mask;
};
int pagemap_scan(int fd, u64 start, u64 end, const struct pagemap_query *q, struct page_region *vec,
		 u32 nr, u64 *ret_walk_end);

#endif
