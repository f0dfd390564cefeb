/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/sysmacros.h>
#include "common/procfs.h"

struct seen {
	u32 nr;
	struct procmap last;
	char path[64];
};

static int note(const struct procmap *m, void *arg)
{
	struct seen *s = arg;

	s->nr++;
	s->last = *m;
	snprintf(s->path, sizeof(s->path), "%s", m->path);
	return 0;
}

static int walk(const char *text, struct seen *s)
{
	FILE *f = fmemopen((char *)text, strlen(text), "r");
	int r;

	cr_assert(f);
	memset(s, 0, sizeof(*s));
	r = procmaps_walk_file(f, note, s);
	fclose(f);
	return r;
}

Test(procfs, reads_a_line_of_maps)
{
	struct seen s;

	cr_assert_eq(
		walk("7f0000000000-7f0000002000 r--s 00003000 fe:01 99    /a b (deleted)\n", &s),
		0);
	cr_expect_eq(s.nr, 1);
	cr_expect(s.last.start == 0x7f0000000000 && s.last.end == 0x7f0000002000);
	cr_expect(s.last.offset == 0x3000 && s.last.ino == 99);
	cr_expect_eq(s.last.dev, makedev(0xfe, 1));
	cr_expect(s.last.readable && !s.last.writable && s.last.shared);
	cr_expect_str_eq(s.path, "/a b (deleted)");
	cr_assert_eq(walk("1000-2000 rw-p 00000000 00:00 0 \n", &s), 0);
	cr_expect_str_eq(s.path, "");
}

/* References hang on what is read: half a line is no mapping. */
Test(procfs, refuses_a_line_that_the_kernel_does_not_write)
{
	static const char *const bad[] = {
		"\n",
		"1000-2000\n",
		"1000-2000 rw 0 00:00 0 \n", /* the fourth flag says whether it is shared */
		"2000-1000 rw-p 0 00:00 0 \n",
		"1000-1000 rw-p 0 00:00 0 \n",
		"1000-2000 rw-p 0 00:00 \n",
		"x000-2000 rw-p 0 00:00 0 \n",
	};
	struct seen s;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		cr_expect_eq(walk(bad[i], &s), -EPROTO, "%s", bad[i]);
		cr_expect_eq(s.nr, 0, "%s", bad[i]);
	}
}
