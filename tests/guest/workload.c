/* SPDX-License-Identifier: MIT */
/*
 * Fills a guest's memory the way a fleet of like servers does: the same files read into page cache,
 * files of its own, a program whose text and heap are alike in every guest, memory of its own, and
 * memory that was zeroed and is kept. Then it says GUEST-READY and sleeps, so that all that is
 * there stays there.
 *
 * Defaults fit a guest of 256 MiB; "ballast.scale_percent=200" doubles all of them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "tests/guest/guest.h"

/* Key spaces: what is common does not depend on the guest's seed. */
enum {
	KEY_COMMON_FILE = 1,
	KEY_HEAP,
	KEY_PRIVATE, /* + seed */
};

static u64 key_of(u64 space, u64 index)
{
	return (space << 32) + index + 1;
}

/* Several files rather than one, so that their pages do not lie in one piece of guest memory. */
static void fill_files(const char *prefix, u64 space, u64 mib)
{
	u64 page[PAGE_WORDS], nr_pages = MIB(mib) / PAGE_BYTES;
	char path[64];
	int fd = -1;

	for (u64 i = 0; i < nr_pages; i++) {
		if (i % CHUNK_PAGES == 0) {
			if (fd >= 0)
				close(fd);
			snprintf(path, sizeof(path), "/data/%s.%u", prefix, (u32)(i / CHUNK_PAGES));
			fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
			if (fd < 0)
				guest_die(path);
		}
		content_fill(page, key_of(space, i));
		if (write(fd, page, sizeof(page)) != sizeof(page))
			guest_die(path);
	}
	if (fd >= 0)
		close(fd);
}

static void fill_memory(u64 space, u64 mib)
{
	u64 nr_pages = MIB(mib) / PAGE_BYTES;
	u64 *p = nr_pages ? guest_alloc(MIB(mib)) : NULL;

	for (u64 i = 0; i < nr_pages; i++)
		content_fill(p + i * PAGE_WORDS, key_of(space, i));
}

int main(void)
{
	u64 seed = guest_param("ballast.seed", 0);
	u64 scale = guest_param("ballast.scale_percent", 100);
	u64 common = guest_param("ballast.common_mib", 20) * scale / 100;
	u64 private = guest_param("ballast.private_mib", 20) * scale / 100;
	u64 heap = guest_param("ballast.heap_mib", 16) * scale / 100;
	u64 anon = guest_param("ballast.anon_mib", 8) * scale / 100;
	u64 zero = guest_param("ballast.zero_mib", 16) * scale / 100;

	fill_files("common", KEY_COMMON_FILE, common);
	fill_files("private", KEY_PRIVATE + 2 * seed, private);
	fill_memory(KEY_HEAP, heap);
	fill_memory(KEY_PRIVATE + 2 * seed + 1, anon);
	if (zero)
		memset(guest_alloc(MIB(zero)), 0, MIB(zero));

	puts("GUEST-READY");
	fflush(stdout);
	for (;;)
		pause();
}
