/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "daemon/cgroup.h"

TestSuite(cgroup, .timeout = 10);

static char dir[] = "/tmp/ballast-cgroup-XXXXXX";

static void put(const char *name, const char *text)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (!text) {
		unlink(path);
		return;
	}
	f = fopen(path, "w");
	cr_assert_not_null(f);
	fputs(text, f);
	fclose(f);
}

static void end(void)
{
	static const char *const files[] = { "memory.max", "memory.current", "memory.stat",
					     "memory.limit_in_bytes", "memory.usage_in_bytes" };

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		put(files[i], NULL);
	rmdir(dir);
}

static void begin(void)
{
	cr_assert_not_null(mkdtemp(dir));
}

Test(cgroup, version_2, .init = begin, .fini = end)
{
	struct cgroup_memory m;

	cr_expect_eq(cgroup_memory(dir, &m), -ENOENT);
	put("memory.max", "1000000\n");
	cr_expect_eq(cgroup_memory(dir, &m), -ENOENT);
	put("memory.current", "700000\n");
	cr_assert_eq(cgroup_memory(dir, &m), 0);
	cr_expect(m.limit_bytes == 1000000 && m.available_bytes == 300000);
	put("memory.stat", "anon 5\ninactive_file 100000\nactive_file 50000\n");
	cr_assert_eq(cgroup_memory(dir, &m), 0);
	cr_expect_eq(m.available_bytes, 400000u);
	/* More than the limit, as while it is being reclaimed. */
	put("memory.current", "1200000\n");
	cr_assert_eq(cgroup_memory(dir, &m), 0);
	cr_expect_eq(m.available_bytes, 0u);
	put("memory.max", "max\n");
	cr_assert_eq(cgroup_memory(dir, &m), 0);
	cr_expect_eq(m.limit_bytes, UINT64_MAX);
	put("memory.max", "many\n");
	cr_expect_eq(cgroup_memory(dir, &m), -EINVAL);
}

Test(cgroup, version_1, .init = begin, .fini = end)
{
	struct cgroup_memory m;

	put("memory.limit_in_bytes", "1000000\n");
	put("memory.usage_in_bytes", "700000\n");
	put("memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n");
	cr_assert_eq(cgroup_memory(dir, &m), 0);
	cr_expect(m.limit_bytes == 1000000 && m.available_bytes == 350000);
	put("memory.limit_in_bytes", "9223372036854771712\n");
	cr_assert_eq(cgroup_memory(dir, &m), 0);
	cr_expect_eq(m.limit_bytes, UINT64_MAX);
}
