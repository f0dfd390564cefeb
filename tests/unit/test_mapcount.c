/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/mapcount.h"

static char dir[64], path[96];

static void make_dir(void)
{
	strcpy(dir, "/tmp/ballast-mapcount-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/f", dir);
}

static void remove_dir(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	cr_assert(system(cmd) == 0);
}

TestSuite(mapcount, .init = make_dir, .fini = remove_dir, .timeout = 20);

static void write_file(const char *text)
{
	FILE *f = fopen(path, "w");

	cr_assert(f);
	fputs(text, f);
	fclose(f);
}

Test(mapcount, a_limit_leaves_the_vmm_its_own)
{
	cr_expect_eq(mapcount_budget(65530), 65530 - 8192);
	cr_expect_eq(mapcount_budget(1048576), 1048576 - 8192);
	/* Small limits are halved: never nothing, never all. */
	cr_expect_eq(mapcount_budget(10000), 5000);
	cr_expect_eq(mapcount_budget(0), 0);
	for (u64 limit = 1; limit < 40000; limit++)
		cr_assert(mapcount_budget(limit) <= mapcount_budget(limit + 1) &&
				  mapcount_budget(limit) < limit,
			  "%d", (int)limit);
}

Test(mapcount, start)
{
	static const struct {
		const char *what;
		u64 wanted, now;
		struct map_record found;
		u64 write;
		struct map_record record;
	} cases[] = {
		{ "raised", 1000000, 65530, { 0, 0 }, 1000000, { 65530, 1000000 } },
		{ "off", 0, 65530, { 0, 0 }, 0, { 0, 0 } },
		{ "the host has more", 1000000, 2000000, { 0, 0 }, 0, { 0, 0 } },
		{ "the host has as much", 1000000, 1000000, { 0, 0 }, 0, { 0, 0 } },
		/* The predecessor was killed: its record goes on. */
		{ "ours", 1000000, 1000000, { 65530, 1000000 }, 0, { 65530, 1000000 } },
		{ "ours, more wanted",
		  2000000,
		  1000000,
		  { 65530, 1000000 },
		  2000000,
		  { 65530, 2000000 } },
		{ "ours, less wanted", 70000, 1000000, { 65530, 1000000 }, 0, { 65530, 1000000 } },
		{ "ours, now off", 0, 1000000, { 65530, 1000000 }, 0, { 65530, 1000000 } },
		/* Somebody changed it since: what is there now is what was there before us. */
		{ "foreign", 1000000, 200000, { 65530, 1000000 }, 1000000, { 200000, 1000000 } },
		{ "foreign, more", 1000000, 3000000, { 65530, 1000000 }, 0, { 0, 0 } },
		{ "foreign, put back",
		  1000000,
		  65530,
		  { 65530, 1000000 },
		  1000000,
		  { 65530, 1000000 } },
		{ "foreign, now off", 0, 200000, { 65530, 1000000 }, 0, { 0, 0 } },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct map_record rec = cases[i].found;

		cr_expect_eq(mapcount_at_start(cases[i].wanted, cases[i].now, &rec), cases[i].write,
			     "%s: what is written", cases[i].what);
		cr_expect_eq(rec.original, cases[i].record.original, "%s: original", cases[i].what);
		cr_expect_eq(rec.raised, cases[i].record.raised, "%s: raised", cases[i].what);
	}
}

Test(mapcount, stop)
{
	const struct map_record rec = { 65530, 1000000 }, none = { 0 };

	cr_expect_eq(mapcount_at_stop(65530, &none, 0), MAP_STOP_NOTHING);
	cr_expect_eq(mapcount_at_stop(1000000, &none, 900000), MAP_STOP_NOTHING);
	cr_expect_eq(mapcount_at_stop(1000000, &rec, 0), MAP_STOP_RESTORE);
	cr_expect_eq(mapcount_at_stop(1000000, &rec, 65530 - 8192), MAP_STOP_RESTORE);
	/* Above the old limit, or so near that its next threads would not fit. */
	cr_expect_eq(mapcount_at_stop(1000000, &rec, 65530 - 8191), MAP_STOP_IN_USE);
	cr_expect_eq(mapcount_at_stop(1000000, &rec, 500000), MAP_STOP_IN_USE);
	cr_expect_eq(mapcount_at_stop(65530, &rec, 0), MAP_STOP_FOREIGN);
	cr_expect_eq(mapcount_at_stop(999999, &rec, 500000), MAP_STOP_FOREIGN);
	cr_expect_eq(mapcount_at_stop(1000001, &rec, 0), MAP_STOP_FOREIGN);
}

Test(mapcount, the_limit_is_read_and_written)
{
	u64 v = 7;

	write_file("65530\n");
	cr_expect_eq(mapcount_read(path, &v), 0);
	cr_expect_eq(v, 65530);
	cr_expect_eq(mapcount_write(path, 1048576), 0);
	cr_expect_eq(mapcount_read(path, &v), 0);
	cr_expect_eq(v, 1048576);
	write_file("lots\n");
	cr_expect_lt(mapcount_read(path, &v), 0);
	write_file("0\n");
	cr_expect_lt(mapcount_read(path, &v), 0);
	cr_expect_eq(v, 1048576, "set by a failure");
	unlink(path);
	cr_expect_eq(mapcount_read(path, &v), -ENOENT);
	/* As in a container that lacks it: nothing is made. */
	cr_expect_eq(mapcount_write(path, 1), -ENOENT);
	cr_expect_neq(access(path, F_OK), 0);
}

Test(mapcount, the_record_is_kept)
{
	static const char *const junk[] = { "",
					    "\n",
					    "original 65530",
					    "raised 1000000 original 65530",
					    "original x raised y\n",
					    "original 0 raised 1000000\n",
					    "original 1000000 raised 65530\n" };
	struct map_record rec = { 1, 2 }, out = { 65530, 1000000 };
	struct stat st;

	cr_expect_eq(mapcount_record_load(path, &rec), 0);
	cr_expect_eq(rec.raised, 0, "made up");
	cr_expect_eq(mapcount_record_save(path, &out), 0);
	cr_expect_eq(mapcount_record_load(path, &rec), 0);
	cr_expect_eq(rec.original, 65530);
	cr_expect_eq(rec.raised, 1000000);
	cr_expect_eq(stat(path, &st), 0);
	cr_expect_eq(st.st_mode & 0777, 0600);
	/* Nothing to remember: no file. */
	out = (struct map_record){ 0 };
	cr_expect_eq(mapcount_record_save(path, &out), 0);
	cr_expect_neq(access(path, F_OK), 0);
	cr_expect_eq(mapcount_record_save(path, &out), 0);
	for (size_t i = 0; i < ARRAY_SIZE(junk); i++) {
		write_file(junk[i]);
		rec = (struct map_record){ 1, 2 };
		cr_expect_eq(mapcount_record_load(path, &rec), 0);
		cr_expect(rec.original == 0 && rec.raised == 0, "\"%s\" was believed", junk[i]);
	}
	out = (struct map_record){ 65530, 1000000 };
	cr_expect_lt(mapcount_record_save("/nonexistent/x", &out), 0);
}

Test(mapcount, counts_in_parts)
{
	struct map_counter c;
	FILE *f = fopen(path, "w");
	u64 bytes;
	int r, steps = 0;

	for (int i = 0; i < 70001; i++)
		fprintf(f, "7f%010x-7f%010x rw-p 00000000 00:00 0\n", i * 2, i * 2 + 1);
	fclose(f);
	cr_assert_eq(map_counter_start(&c, path), 0);
	do {
		bytes = 100000;
		r = map_counter_step(&c, &bytes);
		steps++;
	} while (r == 0);
	cr_expect_eq(r, 1);
	cr_expect_eq(c.lines, 70001);
	cr_expect_eq(c.fd, -1);
	cr_expect_gt(steps, 20, "%d steps: more at once than allowed", steps);

	write_file("");
	cr_assert_eq(map_counter_start(&c, path), 0);
	bytes = 100;
	cr_expect_eq(map_counter_step(&c, &bytes), -ESRCH);
	cr_expect_eq(c.fd, -1);
	map_counter_end(&c);
	cr_expect_eq(map_counter_start(&c, "/nonexistent"), -ENOENT);
	/* This process, by the kernel's word. */
	cr_assert_eq(map_counter_start(&c, "/proc/self/maps"), 0);
	bytes = UINT64_MAX;
	cr_expect_eq(map_counter_step(&c, &bytes), 1);
	cr_expect_gt(c.lines, 10);
}
