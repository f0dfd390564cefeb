/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "common/procfs.h"

static FILE *proc_fopen(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	return fopen(path, "re");
}

/* What a line must look like for the kernel to have written it; anything else is refused, since
 * references hang on what is read here (invariant 4). */
static int parse_map_line(const char *line, struct procmap *ret)
{
	unsigned int maj, min;
	char perms[5];
	int path_at = 0;
	struct procmap m = { 0 };

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &m.start,
		   &m.end, perms, &m.offset, &maj, &min, &m.ino, &path_at) < 7)
		return -EPROTO;
	if (strlen(perms) != 4 || m.start >= m.end || path_at == 0)
		return -EPROTO;
	m.dev = makedev(maj, min);
	m.readable = perms[0] == 'r';
	m.writable = perms[1] == 'w';
	m.shared = perms[3] == 's';
	m.path = line + path_at;
	*ret = m;
	return 0;
}

int procmaps_walk_file(FILE *f, int (*fn)(const struct procmap *m, void *arg), void *arg)
{
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;
	bool any = false;
	int r = 0;

	while (r == 0 && (n = getline(&line, &cap, f)) > 0) {
		struct procmap m;

		any = true;
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		r = parse_map_line(line, &m);
		if (r == 0)
			r = fn(&m, arg);
	}
	if (r == 0 && ferror(f))
		r = -EIO;
	/* No process that can run has no mapping; the file is empty when its first thread has
	 * ended, and others may run on. To take that for "maps nothing" could free what they map
	 * (invariant 4). */
	if (r == 0 && !any)
		r = -ESRCH;
	free(line);
	return r;
}

int procmaps_walk(pid_t pid, int (*fn)(const struct procmap *m, void *arg), void *arg)
{
	FILE *f = proc_fopen(pid, "maps");
	int r;

	if (!f)
		return -errno;
	r = procmaps_walk_file(f, fn, arg);
	fclose(f);
	return r;
}

/* Reads /proc/PID/stat from field 3 on; the command name before it may hold spaces and brackets. */
static int proc_stat_fields(pid_t pid, char *buf, size_t size, char **ret_rest)
{
	FILE *f = proc_fopen(pid, "stat");
	size_t n;
	char *p;

	if (!f)
		return -errno;
	n = fread(buf, 1, size - 1, f);
	fclose(f);
	buf[n] = '\0';
	p = strrchr(buf, ')');
	if (!p || p[1] != ' ')
		return -ESRCH;
	*ret_rest = p + 2;
	return 0;
}

int proc_starttime(pid_t pid, u64 *ret_ticks)
{
	char buf[1024], *p;
	int r = proc_stat_fields(pid, buf, sizeof(buf), &p);

	if (r < 0)
		return r;
	for (int field = 3; field < 22; field++) {
		p = strchr(p, ' ');
		if (!p)
			return -EPROTO;
		p++;
	}
	*ret_ticks = strtoull(p, NULL, 10);
	return 0;
}

int proc_cpu_us(pid_t pid, u64 *ret_us)
{
	unsigned long long utime, stime;
	char buf[1024], *p;
	int r = proc_stat_fields(pid, buf, sizeof(buf), &p);

	if (r < 0)
		return r;
	if (sscanf(p, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &utime, &stime) != 2)
		return -EPROTO;
	*ret_us = (utime + stime) * (1000000 / (u64)sysconf(_SC_CLK_TCK));
	return 0;
}

int proc_memory(pid_t pid, struct proc_memory *ret)
{
	struct proc_memory m = { 0 };
	const struct {
		const char *key;
		u64 *value;
	} keys[] = {
		{ "Rss:", &m.rss },	      { "Pss:", &m.pss },
		{ "Pss_Anon:", &m.pss_anon }, { "AnonHugePages:", &m.anon_huge },
		{ "Swap:", &m.swap },
	};
	FILE *f = proc_fopen(pid, "smaps_rollup");
	char line[256];

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
			size_t n = strlen(keys[i].key);

			if (strncmp(line, keys[i].key, n) == 0)
				*keys[i].value = strtoull(line + n, NULL, 10) * 1024;
		}
	}
	fclose(f);
	*ret = m;
	return 0;
}

/* The values of @nr keys, in the order of the file. */
static int status_bytes(pid_t pid, const char *const *keys, u64 **ret_bytes, u32 nr)
{
	FILE *f = proc_fopen(pid, "status");
	char line[256];
	u32 found = 0;

	if (!f)
		return -errno;
	while (found < nr && fgets(line, sizeof(line), f)) {
		size_t n = strlen(keys[found]);

		if (strncmp(line, keys[found], n) == 0 && line[n] == ':')
			*ret_bytes[found++] = strtoull(line + n + 1, NULL, 10) * 1024;
	}
	fclose(f);
	return found == nr ? 0 : -ENOENT;
}

int proc_status_bytes(pid_t pid, const char *key, u64 *ret_bytes)
{
	return status_bytes(pid, &key, &ret_bytes, 1);
}

int proc_rss(pid_t pid, struct proc_rss *ret)
{
	static const char *const keys[] = { "RssAnon", "RssShmem", "VmSwap" };
	u64 *values[] = { &ret->anon, &ret->shmem, &ret->swap };

	return status_bytes(pid, keys, values, ARRAY_SIZE(keys));
}

int proc_cmdline(pid_t pid, char *buf, size_t size, size_t *ret_len)
{
	size_t len = 0;
	char path[64];
	ssize_t n = 0;
	int fd, r = 0;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (len < size && (n = read(fd, buf + len, size - len)) > 0)
		len += (size_t)n;
	if (n < 0)
		r = -errno;
	close(fd);
	if (r == 0)
		*ret_len = len;
	return r;
}

int pagemap_open(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int pagemap_scan(int fd, u64 start, u64 end, const struct pagemap_query *q, struct page_region *vec,
		 u32 nr, u64 *ret_walk_end)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = q->flags,
		.start = start,
		.end = end,
		.vec = (u64)(uintptr_t)vec,
		.vec_len = nr,
		.category_inverted = q->inverted,
		.category_mask = q->all,
		.category_anyof_mask = q->any,
		.return_mask = q->ret_mask,
	};
	int n = ioctl(fd, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	*ret_walk_end = arg.walk_end;
	return n;
}
