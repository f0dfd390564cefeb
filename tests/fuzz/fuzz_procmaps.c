/* SPDX-License-Identifier: MIT */
/*
 * /proc/PID/maps (common/procfs.c). The kernel writes the numbers, but the paths are the process's
 * own. If the first byte is odd the rest is a file as it is; otherwise it is numbers and paths,
 * from which a file is made as the kernel would make it (fs/proc/task_mmu.c,
 * show_vma_header_prefix()).
 *
 * Properties: of a kernel's file each mapping is told with exactly its numbers, whatever its path;
 * of any other, every mapping that is told has an extent and a path that ends in its line.
 */
#include <errno.h>
#include <inttypes.h>
#include <sys/sysmacros.h>
#include "common/procfs.h"
#include "tests/fuzz/fuzz.h"

#define MAPS_MAX 16

struct expected {
	struct procmap m;
	char path[300];
};

struct told {
	const struct expected *expected; /* NULL: any file */
	u32 nr;
	int stop_at;
};

static int check_map(const struct procmap *m, void *arg)
{
	struct told *t = arg;

	MUST(m->start < m->end);
	MUST(m->path && strlen(m->path) < 4096 + 1024);
	if (t->expected) {
		const struct expected *e = &t->expected[t->nr];

		MUST(m->start == e->m.start && m->end == e->m.end && m->offset == e->m.offset);
		MUST(m->dev == e->m.dev && m->ino == e->m.ino);
		MUST(m->readable == e->m.readable && m->writable == e->m.writable &&
		     m->shared == e->m.shared);
		MUST(strcmp(m->path, e->path) == 0);
	}
	return (int)t->nr++ == t->stop_at ? 77 : 0;
}

static int walk(char *text, size_t size, struct told *t)
{
	/* fmemopen() takes no empty buffer. */
	FILE *f = size ? fmemopen(text, size, "r") : fopen("/dev/null", "r");
	int r;

	MUST(f);
	r = procmaps_walk_file(f, check_map, t);
	fclose(f);
	return r;
}

/* As the kernel shows it: begins with '/' or '[', or is empty; a line end is escaped. */
static void make_path(struct input *in, char *path, size_t size)
{
	size_t at = 0, n = input_u8(in);

	path[0] = '\0';
	if (n == 0)
		return;
	path[at++] = n & 1 ? '/' : '[';
	for (; n > 0 && at + 5 < size; n--) {
		char c = (char)input_u8(in);

		if (c == '\n')
			at += (size_t)snprintf(path + at, size - at, "\\012");
		else if (c)
			path[at++] = c;
	}
	path[at] = '\0';
}

static void try_kernel_file(struct input *in)
{
	static struct expected expected[MAPS_MAX];
	struct told t = { .expected = expected, .stop_at = -1 };
	char text[MAPS_MAX * 512];
	size_t at = 0;
	u32 nr;

	for (nr = 0; nr < MAPS_MAX && input_left(in); nr++) {
		struct expected *e = &expected[nr];
		u8 flags = input_u8(in);
		/* 12 and 20 bits (MAJOR, MINOR of the kernel's dev_t). */
		u32 maj = input_u32(in) & 0xfff, min = input_u32(in) & 0xfffff;

		e->m = (struct procmap){
			.start = input_u64(in),
			.offset = input_u64(in),
			.dev = makedev(maj, min),
			.ino = input_u64(in),
			.readable = flags & 1,
			.writable = flags & 2,
			.shared = flags & 4,
		};
		e->m.end = e->m.start + 1 + input_u32(in);
		if (e->m.end <= e->m.start) {
			e->m.start = 0;
			e->m.end = PAGE_BYTES;
		}
		make_path(in, e->path, sizeof(e->path));
		at += (size_t)snprintf(text + at, sizeof(text) - at,
				       "%08" PRIx64 "-%08" PRIx64 " %c%c%c%c %08" PRIx64
				       " %02x:%02x %" PRIu64 " ",
				       e->m.start, e->m.end, flags & 1 ? 'r' : '-',
				       flags & 2 ? 'w' : '-', flags & 8 ? 'x' : '-',
				       flags & 4 ? 's' : 'p', e->m.offset, maj, min, e->m.ino);
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s\n",
				       *e->path ? "              " : "", e->path);
		MUST(at < sizeof(text));
	}
	MUST(walk(text, at, &t) == (nr ? 0 : -ESRCH));
	MUST(t.nr == nr);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = { data, data + size };
	struct told t = { 0 };
	u8 kind = input_u8(&in);
	char *text;
	int r;

	if (size > 4096)
		return 0;
	if (!(kind & 1)) {
		try_kernel_file(&in);
		return 0;
	}
	t.stop_at = kind >> 1;
	size = input_left(&in);
	text = malloc(size + 1);
	MUST(text);
	memcpy(text, in.at, size);
	r = walk(text, size, &t);
	MUST(r == 0 || r == -EPROTO || r == -ESRCH || r == 77);
	MUST((r == 77) == ((int)t.nr == t.stop_at + 1));
	MUST(r != -ESRCH || t.nr == 0);
	free(text);
	return 0;
}
