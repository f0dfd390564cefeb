/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "daemon/cgroup.h"

/* The names of one thing in the two versions. */
static const struct version {
	const char *limit, *used, *inactive;
} versions[] = {
	{ "memory.max", "memory.current", "inactive_file" },
	{ "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file" },
};

/* v1's "no limit" is the largest multiple of a page. */
#define NO_LIMIT (1ULL << 62)

static FILE *open_in(const char *path, const char *file)
{
	char name[256];

	snprintf(name, sizeof(name), "%s/%s", path, file);
	return fopen(name, "re");
}

static int read_number(const char *path, const char *file, u64 *ret)
{
	FILE *f = open_in(path, file);
	char text[32], *end;
	int r = -EINVAL;

	if (!f)
		return -errno;
	if (fgets(text, sizeof(text), f)) {
		if (strcmp(text, "max\n") == 0) {
			*ret = UINT64_MAX;
			r = 0;
		} else {
			*ret = strtoull(text, &end, 10);
			r = end > text && *end == '\n' ? 0 : -EINVAL;
		}
	}
	fclose(f);
	return r;
}

/* What it does not say is 0. */
static u64 read_stat(const char *path, const char *key)
{
	FILE *f = open_in(path, "memory.stat");
	u64 value = 0, v;
	char line[128], name[64];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %" SCNu64, name, &v) == 2 && strcmp(name, key) == 0)
			value = v;
	if (f)
		fclose(f);
	return value;
}

int cgroup_memory(const char *path, struct cgroup_memory *ret)
{
	const struct version *v = versions;
	u64 limit, used, inactive;
	int r = read_number(path, v->limit, &limit);

	if (r == -ENOENT)
		r = read_number(path, (++v)->limit, &limit);
	if (r < 0)
		return r;
	r = read_number(path, v->used, &used);
	if (r < 0)
		return r;
	inactive = MIN(read_stat(path, v->inactive), used);
	used -= inactive;
	ret->limit_bytes = limit >= NO_LIMIT ? UINT64_MAX : limit;
	ret->available_bytes = ret->limit_bytes > used ? ret->limit_bytes - used : 0;
	return 0;
}
