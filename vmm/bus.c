/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include "vmm/bus.h"

int bus_add(struct bus *b, u64 start, u64 bytes, const struct bus_ops *ops, void *dev)
{
	u32 at = 0;

	if (bytes == 0 || bytes > UINT64_MAX - start)
		return -EINVAL;
	if (b->nr == BUS_RANGES_MAX)
		return -ENOSPC;
	while (at < b->nr && b->ranges[at].start < start)
		at++;
	if (at < b->nr && b->ranges[at].start - start < bytes)
		return -EEXIST;
	if (at > 0 && start - b->ranges[at - 1].start < b->ranges[at - 1].bytes)
		return -EEXIST;
	memmove(&b->ranges[at + 1], &b->ranges[at], (b->nr - at) * sizeof(b->ranges[0]));
	b->ranges[at] = (struct bus_range){ start, bytes, ops, dev };
	b->nr++;
	return 0;
}

/* The range that holds the access, whole; one that crosses its end is nobody's. */
static const struct bus_range *find(const struct bus *b, u64 addr, u32 bytes)
{
	u32 low = 0, high = b->nr;

	while (low < high) {
		u32 mid = (low + high) / 2;
		const struct bus_range *r = &b->ranges[mid];

		if (addr < r->start)
			high = mid;
		else if (addr - r->start >= r->bytes)
			low = mid + 1;
		else
			return r->bytes - (addr - r->start) >= bytes ? r : NULL;
	}
	return NULL;
}

void bus_read(const struct bus *b, u64 addr, void *data, u32 bytes)
{
	const struct bus_range *r = find(b, addr, bytes);

	if (r)
		r->ops->read(r->dev, addr - r->start, data, bytes);
	else
		memset(data, 0xff, bytes);
}

void bus_write(const struct bus *b, u64 addr, const void *data, u32 bytes)
{
	const struct bus_range *r = find(b, addr, bytes);

	if (r)
		r->ops->write(r->dev, addr - r->start, data, bytes);
}
