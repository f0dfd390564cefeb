/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "vmm/layout.h"
#include "vmm/memory.h"

Test(vmm_memory, finds_only_what_is_whole)
{
	struct guest_memory m;
	u8 *p;

	cr_assert_eq(memory_init(&m, MIB(4), 0), 0);
	p = memory_at(&m, 0, MIB(4));
	cr_assert_not_null(p);
	cr_assert_eq((uintptr_t)p % CHUNK_BYTES, 0);
	cr_assert_eq(memory_at(&m, 5, 1), p + 5);
	cr_assert_null(memory_at(&m, 0, 0));
	cr_assert_null(memory_at(&m, 0, MIB(4) + 1));
	cr_assert_null(memory_at(&m, MIB(4) - 1, 2));
	cr_assert_null(memory_at(&m, MIB(4), 1));
	cr_assert_null(memory_at(&m, UINT64_MAX, 1));
	cr_assert_null(memory_at(&m, UINT64_MAX, UINT64_MAX));
	cr_assert_null(memory_at(&m, 1, UINT64_MAX));
	cr_assert_eq(memory_gpa(&m, p + 77), 77);
	cr_assert_eq(memory_gpa(&m, p + MIB(4)), UINT64_MAX);
	cr_assert_eq(memory_gpa(&m, p - 1), UINT64_MAX);
	memory_free(&m);
}

Test(vmm_memory, leaves_the_hole_to_devices)
{
	struct guest_memory m;

	/* Nothing is touched: it costs addresses only. */
	cr_assert_eq(memory_init(&m, GIB(5), GIB(2)), 0);
	cr_assert_eq(m.nr_slots, 3);
	cr_assert_not_null(memory_at(&m, LAYOUT_HOLE - 1, 1));
	cr_assert_null(memory_at(&m, LAYOUT_HOLE - 1, 2));
	cr_assert_null(memory_at(&m, LAYOUT_HOLE, 1));
	cr_assert_null(memory_at(&m, LAYOUT_HIGH_RAM - 1, 1));
	cr_assert_not_null(memory_at(&m, LAYOUT_HIGH_RAM, GIB(2)));
	cr_assert_null(memory_at(&m, LAYOUT_HIGH_RAM, GIB(2) + 1));
	cr_assert_eq(m.slots[2].gpa % GIB(1), 0);
	cr_assert(m.slots[2].hotplug);
	cr_assert_eq(memory_gpa(&m, m.slots[1].hva), LAYOUT_HIGH_RAM);
	memory_free(&m);
}

Test(vmm_memory, takes_whole_chunks_only)
{
	struct guest_memory m;

	cr_assert_eq(memory_init(&m, 0, 0), -EINVAL);
	cr_assert_eq(memory_init(&m, MIB(3), 0), -EINVAL);
	cr_assert_eq(memory_init(&m, MIB(2), MIB(1)), -EINVAL);
}

Test(vmm_memory, discards_whole_pages_of_ram)
{
	struct guest_memory m;
	u8 *p;

	cr_assert_eq(memory_init(&m, MIB(2), 0), 0);
	p = memory_at(&m, 0, MIB(2));
	memset(p, 7, 3 * PAGE_BYTES);
	cr_assert_eq(memory_discard(&m, PAGE_BYTES, PAGE_BYTES), 0);
	cr_assert_eq(p[PAGE_BYTES - 1], 7);
	cr_assert_eq(p[PAGE_BYTES], 0);
	cr_assert_eq(p[2 * PAGE_BYTES], 7);
	cr_assert_eq(memory_discard(&m, 1, PAGE_BYTES), -EINVAL);
	cr_assert_eq(memory_discard(&m, 0, 1), -EINVAL);
	cr_assert_eq(memory_discard(&m, 0, 0), -EINVAL);
	cr_assert_eq(memory_discard(&m, MIB(2) - PAGE_BYTES, 2 * PAGE_BYTES), -EINVAL);
	memory_free(&m);
}

/* Memory of a snapshot: a hole in the mapping would show the file again. */
Test(vmm_memory, discards_restored_memory_to_zeros)
{
	int fd = memfd_create("memory", MFD_CLOEXEC);
	struct guest_memory m;
	u8 *p;

	cr_assert_eq(ftruncate(fd, MIB(2)), 0);
	cr_assert_eq(pwrite(fd, "snapshot", 8, PAGE_BYTES), 8);
	cr_assert_eq(memory_init(&m, MIB(2), 0), 0);
	cr_assert_eq(memory_map_file(&m, 0, fd, 0), 0);
	p = memory_at(&m, 0, MIB(2));
	cr_assert_eq(memcmp(p + PAGE_BYTES, "snapshot", 8), 0);
	p[PAGE_BYTES] = 'S';
	cr_assert_eq(memory_discard(&m, PAGE_BYTES, PAGE_BYTES), 0);
	cr_assert_eq(p[PAGE_BYTES], 0);
	memory_free(&m);
	close(fd);
}
