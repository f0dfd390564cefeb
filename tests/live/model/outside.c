// SPDX-License-Identifier: MIT
/* The kernel's view of what is shared: it owes nothing to the books of daemon or agent. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/procfs.h"
#include "tests/live/model/model.h"

#define STORE_PATH "/memfd:ballast-store:"

/* Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst). */
#define PM_PRESENT  ((u64)1 << 63)
#define PM_SWAP	    ((u64)1 << 62)
#define PM_FILE	    ((u64)1 << 61)
#define PM_PFN_MASK (((u64)1 << 55) - 1)

struct looking {
	pid_t pid;
	const struct model_vm *vm;
	int pagemap;
	struct outside *out;
};

static int read_entries(int pagemap, u64 hva, u32 nr, u64 *ret)
{
	size_t bytes = nr * sizeof(u64);

	return pread(pagemap, ret, bytes, (off_t)((hva >> PAGE_SHIFT) * sizeof(u64))) ==
			       (ssize_t)bytes
		       ? 0
		       : -EIO;
}

static void note_domain(struct outside *o, const char *path)
{
	char domain[64];
	u32 n = 0;

	for (path += strlen(STORE_PATH); path[n] && path[n] != ' ' && n < sizeof(domain) - 1; n++)
		domain[n] = path[n];
	domain[n] = '\0';
	if (o->domain[0] && strcmp(o->domain, domain) != 0)
		o->two_stores = true;
	memcpy(o->domain, domain, n + 1);
}

/* The part of a store mapping that lies in one region. */
static int look_at(const struct looking *l, const struct procmap *m, u64 start, u64 end)
{
	u64 entries[MODEL_PAGES_MAX];
	struct outside *o = l->out;
	u32 nr = (u32)((end - start) >> PAGE_SHIFT);
	int r = read_entries(l->pagemap, start, nr, entries);

	for (u32 i = 0; r == 0 && i < nr; i++) {
		/* There, and not the file's: the guest's own copy. */
		if (entries[i] & (PM_PRESENT | PM_SWAP) && !(entries[i] & PM_FILE))
			o->broken++;
		else
			o->offsets[o->shared++] =
				(u32)((m->offset + (start - m->start)) >> PAGE_SHIFT) + i;
	}
	return r;
}

static int look_at_mapping(const struct procmap *m, void *arg)
{
	const struct looking *l = arg;
	int r = 0;

	if (strncmp(m->path, STORE_PATH, strlen(STORE_PATH)) != 0)
		return 0;
	note_domain(l->out, m->path);
	for (u32 i = 0; r == 0 && i < MODEL_REGIONS; i++) {
		const struct model_region *g = &l->vm->region[i];
		u64 start = MAX(m->start, g->base);
		u64 end = MIN(m->end, g->base + ((u64)g->nr_pages << PAGE_SHIFT));

		if (start < end)
			r = look_at(l, m, start, end);
	}
	return r;
}

static int add_frames(int pagemap, const struct model_vm *vm, struct frame *frames, u32 *nr)
{
	u64 entries[MODEL_PAGES_MAX];

	for (u32 i = 0; i < MODEL_REGIONS; i++) {
		const struct model_region *g = &vm->region[i];
		int r = read_entries(pagemap, g->base, g->nr_pages, entries);

		if (r < 0)
			return r;
		for (u32 p = 0; p < g->nr_pages; p++)
			if (entries[p] & PM_PRESENT && entries[p] & PM_PFN_MASK)
				frames[(*nr)++] = (struct frame){ .pfn = entries[p] & PM_PFN_MASK,
								  .vm = vm->index };
	}
	return 0;
}

int outside_vm(pid_t pid, const struct model_vm *vm, struct outside *ret, struct frame *frames,
	       u32 *nr_frames)
{
	struct looking l = { .pid = pid, .vm = vm, .out = ret };
	int r;

	*ret = (struct outside){ 0 };
	ret->offsets = calloc(MODEL_REGIONS * MODEL_PAGES_MAX, sizeof(ret->offsets[0]));
	if (!ret->offsets)
		return -ENOMEM;
	l.pagemap = pagemap_open(pid);
	r = l.pagemap;
	if (r >= 0)
		r = procmaps_walk(pid, look_at_mapping, &l);
	if (r >= 0)
		r = add_frames(l.pagemap, vm, frames, nr_frames);
	if (l.pagemap >= 0)
		close(l.pagemap);
	if (r < 0)
		outside_free(ret);
	return r;
}

void outside_free(struct outside *o)
{
	free(o->offsets);
	o->offsets = NULL;
}

int outside_store_blocks(pid_t daemon, u64 *ret_blocks, u32 *ret_stores)
{
	u64 seen[64], blocks = 0;
	struct dirent *e;
	char path[64];
	u32 nr = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)daemon);
	d = opendir(path);
	if (!d)
		return -errno;
	while ((e = readdir(d))) {
		char target[256];
		struct stat st;
		ssize_t n = readlinkat(dirfd(d), e->d_name, target, sizeof(target) - 1);
		bool known = false;

		if (n < 0)
			continue;
		target[n] = '\0';
		if (strncmp(target, STORE_PATH, strlen(STORE_PATH)) != 0 ||
		    fstatat(dirfd(d), e->d_name, &st, 0) < 0)
			continue;
		/* The daemon has two descriptors of each. */
		for (u32 i = 0; i < nr; i++)
			known = known || seen[i] == st.st_ino;
		if (known || nr == ARRAY_SIZE(seen))
			continue;
		seen[nr++] = st.st_ino;
		blocks += (u64)st.st_blocks;
	}
	closedir(d);
	*ret_blocks = blocks;
	*ret_stores = nr;
	return 0;
}
