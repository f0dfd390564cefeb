/* SPDX-License-Identifier: MIT */
/*
 * Pages under DMA, by the VMM's own word (bh_config.pins_exactly).
 *
 * Why no page is replaced under a device. The counts change with @lock held, and a step looks at
 * them, and then does all that it does to its pages, with @lock held all along (merge.c,
 * resolve()). So a pin is wholly before a step or wholly after it:
 *
 *   before   The step sees the count and leaves the page alone (-EBUSY). It may have been unpinned
 *            again by then: then the I/O was complete, so its last byte was there before the step
 *            compared the page.
 *   after    bh_pin() waited for the end of the step. The page is back, or its replacement is
 *            mapped; what the kernel pins for the device after that it finds through the page
 *            tables, and that is what the guest sees. A device that writes breaks copy-on-write
 *            first, as a guest does.
 *
 * Without the wait a pin for reading could get the page that a step is about to replace: inside a
 * store mapping a protected page can still be read. For one request it would have the same bytes,
 * but a long-lived pin (VFIO) would never see what the guest writes later.
 *
 * Neither kind of page needs the kernel's help then, nor a look at descriptors (dma.c). Discards
 * are the VMM's own act and are not held up: it does not give a device memory that it gives back.
 */
#include <errno.h>
#include "hypervisor-hooks/agent.h"

static void pin(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	for (u64 p = page; p < page + nr; p++)
		r->pins[p] += r->pins[p] < BH_PINS_MAX;
}

static void unpin(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr)
{
	/* At the limit nobody knows how many there are. At 0 the pin was made before the region
	 * was. */
	for (u64 p = page; p < page + nr; p++)
		r->pins[p] -= r->pins[p] && r->pins[p] < BH_PINS_MAX;
}

static int change(struct bh_agent *a, const void *hva, size_t bytes, region_part_fn fn)
{
	if (!a)
		return 0;
	if (!a->cfg.pins_exactly || !bytes || (u64)(uintptr_t)hva + bytes < (u64)(uintptr_t)hva)
		return -EINVAL;
	region_for_each_part(a, hva, bytes, fn);
	return 0;
}

int bh_pin(struct bh_agent *a, const void *hva, size_t bytes)
{
	return change(a, hva, bytes, pin);
}

int bh_unpin(struct bh_agent *a, const void *hva, size_t bytes)
{
	return change(a, hva, bytes, unpin);
}
