// SPDX-License-Identifier: MIT
/* What the kernel says of the sharing of the VM's memory: a count that owes nothing to the daemon's
 * or agent's books. */
#include <errno.h>
#include <unistd.h>
#include "common/procfs.h"
#include "tests/live/flat/vmm.h"

#define NR_REGIONS 64

struct counting {
	u64 start, end;
	int pagemap;
	struct flat_sharing *sum;
};

/* Of a mapping of the store: the pages that still are the store's, and those the guest has broken.
 */
static int count_mapping(const struct procmap *m, void *arg)
{
	const struct counting *c = arg;
	/* Not the file's any more, but there: copied on a write. */
	const struct pagemap_query broken = {
		.inverted = PAGE_IS_FILE,
		.all = PAGE_IS_FILE,
		.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
	};
	u64 start = MAX(m->start, c->start), end = MIN(m->end, c->end), nr_broken = 0;
	struct page_region found[NR_REGIONS];

	if (start >= end || m->ino == 0)
		return 0;
	for (u64 at = start; at < end;) {
		int n = pagemap_scan(c->pagemap, at, end, &broken, found, NR_REGIONS, &at);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			nr_broken += (found[i].end - found[i].start) >> PAGE_SHIFT;
	}
	c->sum->mappings++;
	c->sum->broken_pages += nr_broken;
	c->sum->shared_pages += ((end - start) >> PAGE_SHIFT) - nr_broken;
	return 0;
}

int flat_sharing(const struct flat_vm *vm, struct flat_sharing *ret)
{
	struct flat_sharing sum = { 0 };
	struct counting c = {
		.start = (u64)vm->ram,
		.end = (u64)vm->ram + flat_ram_bytes(vm),
		.pagemap = pagemap_open(getpid()),
		.sum = &sum,
	};
	int rc;

	if (c.pagemap < 0)
		return c.pagemap;
	rc = procmaps_walk(getpid(), count_mapping, &c);
	close(c.pagemap);
	if (rc == 0)
		*ret = sum;
	return rc;
}
