// SPDX-License-Identifier: MIT
/*
 * Does this kernel do what Ballast is built on? Does each thing once, on memory of its own, and
 * prints a line "NAME ok" or "NAME FAILED why". The exit status is 0 if all were ok.
 *
 *   probe      bh_probe(), what the agent goes by
 *   move       UFFDIO_MOVE of a page: it is at its new place, and a hole where it was
 *   scan       WP_ASYNC and PAGEMAP_SCAN: the pages written since the last look, and no others, and
 * re-armed tun        /dev/net/tun makes a tap interface
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/types.h"
#include "common/uapi_compat.h"
#include "hypervisor-hooks/hooks.h"
#include "hypervisor-hooks/uffd.h"

#define NR_PAGES 64
#define WRITTEN	 5 /* the page that is written after the first look */

static u8 *alloc_pages(void)
{
	u8 *p = mmap(NULL, NR_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Each returns 0 or a negative errno; -EBADMSG: the call succeeded, and did something else. */

static int do_probe(void)
{
	return bh_probe();
}

static int do_move(void)
{
	u8 *from = alloc_pages(), *to = alloc_pages();
	unsigned char resident = 1;
	u64 moved = 0;
	int fd, r;

	if (!from || !to)
		return -ENOMEM;
	from[0] = 0x5a;
	fd = uffd_open(UFFD_FEATURE_MOVE);
	if (fd < 0)
		return fd;
	r = uffd_register(fd, (u64)from, NR_PAGES * PAGE_BYTES, UFFDIO_REGISTER_MODE_MISSING);
	if (r == 0)
		r = uffd_register(fd, (u64)to, NR_PAGES * PAGE_BYTES, UFFDIO_REGISTER_MODE_MISSING);
	if (r == 0)
		r = uffd_move(fd, (u64)to, (u64)from, PAGE_BYTES, &moved);
	if (r == 0 && (moved != PAGE_BYTES || to[0] != 0x5a ||
		       mincore(from, PAGE_BYTES, &resident) < 0 || (resident & 1)))
		r = -EBADMSG;
	close(fd);
	return r;
}

/* How many pages were written since the last look, and which is the first; write-protects them
 * again. */
static int scan(int pagemap, const u8 *mem, u64 *ret_first, u64 *ret_pages)
{
	struct page_region regions[NR_PAGES];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (u64)mem,
		.end = (u64)mem + NR_PAGES * PAGE_BYTES,
		.vec = (u64)regions,
		.vec_len = NR_PAGES,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n = ioctl(pagemap, PAGEMAP_SCAN, &arg);
	u64 pages = 0;

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		pages += (regions[i].end - regions[i].start) / PAGE_BYTES;
	*ret_first = n ? (regions[0].start - (u64)mem) / PAGE_BYTES : NR_PAGES;
	*ret_pages = pages;
	return 0;
}

static int do_scan(void)
{
	int fd = uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), r;
	u64 first[3], pages[3];
	u8 *mem = alloc_pages();

	if (fd < 0 || pagemap < 0 || !mem)
		return fd < 0 ? fd : -errno;
	memset(mem, 0x5a, NR_PAGES * PAGE_BYTES);
	r = uffd_register(fd, (u64)mem, NR_PAGES * PAGE_BYTES, UFFDIO_REGISTER_MODE_WP);
	if (r == 0)
		r = scan(pagemap, mem, &first[0], &pages[0]);
	mem[WRITTEN * PAGE_BYTES] = 1;
	for (int i = 1; r == 0 && i < 3; i++)
		r = scan(pagemap, mem, &first[i], &pages[i]);
	if (r == 0 && (pages[0] != NR_PAGES || pages[1] != 1 || first[1] != WRITTEN || pages[2]))
		r = -EBADMSG;
	close(pagemap);
	close(fd);
	return r;
}

static int do_tun(void)
{
	struct ifreq req = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC), r;

	if (fd < 0)
		return -errno;
	r = ioctl(fd, TUNSETIFF, &req) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static const struct {
	const char *name;
	int (*run)(void);
} features[] = {
	{ "probe", do_probe },
	{ "move", do_move },
	{ "scan", do_scan },
	{ "tun", do_tun },
};

int main(void)
{
	int failed = 0;

	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		int r = features[i].run();

		if (r == 0)
			printf("%s ok\n", features[i].name);
		else
			printf("%s FAILED %s\n", features[i].name, strerror(-r));
		failed |= r != 0;
	}
	return failed;
}
