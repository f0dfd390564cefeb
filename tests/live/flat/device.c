// SPDX-License-Identifier: MIT
/*
 * The device of the flat VM: a host thread on blocks of its own, which uses guest memory in all the
 * ways of a device model: loads and stores (the guest's own loop, hosted), read(2) into it,
 * write(2) from it, at odd offsets too.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "tests/live/flat/vmm.h"

#define WRITES_A_ROUND 4

static int scratch_fd = -1; /* where "the guest's disk writes" go */

/* By number, so that TSan does not take what the kernel does to guest memory for this thread's
 * doing (live.mk). */
static ssize_t read_at(int fd, void *to, size_t bytes, u64 offset)
{
	return syscall(SYS_pread64, fd, to, bytes, offset);
}

static ssize_t write_at(int fd, const void *from, size_t bytes, u64 offset)
{
	return syscall(SYS_pwrite64, fd, from, bytes, offset);
}

int flat_device_new(struct flat_vm *vm)
{
	u64 page[FLAT_PAGE_WORDS];

	vm->disk_fd = memfd_create("flat-disk", MFD_CLOEXEC);
	scratch_fd = memfd_create("flat-scratch", MFD_CLOEXEC);
	if (vm->disk_fd < 0 || scratch_fd < 0)
		return -errno;
	for (u64 content = 1; content <= FLAT_COMMON_CONTENTS; content++) {
		for (u32 w = 0; w < FLAT_PAGE_WORDS; w++)
			page[w] = flat_word(content, w);
		if (write_at(vm->disk_fd, page, sizeof(page), content << PAGE_SHIFT) !=
		    sizeof(page))
			return -EIO;
	}
	return 0;
}

int flat_device_read(struct flat_vm *vm, u64 p, u64 content)
{
	u64 done = 0;

	if (p >= vm->opt.nr_pages || content == 0 || content > FLAT_COMMON_CONTENTS)
		return -EINVAL;
	while (done < PAGE_BYTES) {
		ssize_t n = read_at(vm->disk_fd, vm->ram + (p << PAGE_SHIFT) + done,
				    PAGE_BYTES - done, (content << PAGE_SHIFT) + done);

		if (n <= 0)
			return n ? -errno : -EIO;
		done += n;
	}
	return 0;
}

/* The page goes out through write(2), from word @first on; what arrived must be what the page
 * should hold. */
static int write_out(struct flat_vm *vm, struct flat_lane *l, u32 p, u32 first)
{
	const struct flat_shadow *s = (const struct flat_shadow *)l->shadow + p;
	u64 got[FLAT_PAGE_WORDS];
	size_t bytes = PAGE_BYTES - first * sizeof(u64);
	const u8 *from = vm->ram + ((u64)p << PAGE_SHIFT) + first * sizeof(u64);

	if (write_at(scratch_fd, from, bytes, 0) != (ssize_t)bytes ||
	    read_at(scratch_fd, got, bytes, 0) != (ssize_t)bytes)
		return -EIO;
	for (u32 w = first; w < FLAT_PAGE_WORDS; w++) {
		u64 want = flat_expect(l, p, s, w);

		l->accesses++;
		if (got[w - first] != want)
			flat_report(l, p, w, got[w - first], want);
	}
	return 0;
}

void flat_device_round(struct flat_vm *vm, struct flat_runner *r)
{
	struct flat_lane *l = r->lane;

	flat_tick(l);
	for (u32 i = 0; i < WRITES_A_ROUND; i++) {
		u64 dice = flat_mix(l->rng + i);
		u32 block = ((const u32 *)l->blocks)[dice % l->nr_readable];
		u32 p = block * FLAT_BLOCK_PAGES + (dice >> 32) % FLAT_BLOCK_PAGES;

		if (write_out(vm, l, p, (dice >> 40) % FLAT_PAGE_WORDS)) {
			pthread_mutex_lock(&r->lock);
			r->call_errors++;
			pthread_mutex_unlock(&r->lock);
		}
	}
}

void flat_device_corrupt(struct flat_vm *vm)
{
	const struct flat_lane *l = vm->runner[vm->nr_runners - 1].lane;
	/* The first read-only page: nothing ever heals it, and all lanes read it. */
	u32 p = ((const u32 *)l->blocks)[l->nr_own] * FLAT_BLOCK_PAGES;

	((volatile u64 *)(vm->ram + ((u64)p << PAGE_SHIFT)))[77] ^= 1UL << 33;
}
