/* SPDX-License-Identifier: MIT */
/*
 * Port and memory-mapped I/O: who answers an access that left the guest. One bus for ports, one for
 * addresses. Ranges are added before the VM starts and never change, so looking one up takes no
 * lock.
 *
 * Called on the vCPU's thread. The handler does its own locking; it must not wait for another vCPU.
 */
#ifndef BALLAST_VMM_BUS_H
#define BALLAST_VMM_BUS_H

#include "common/types.h"

struct bus_ops {
	/* @offset from the range's start, @bytes 1, 2, 4 or 8. read fills all @bytes of @data. */
	void (*read)(void *dev, u64 offset, void *data, u32 bytes);
	void (*write)(void *dev, u64 offset, const void *data, u32 bytes);
};

struct bus_range {
	u64 start, bytes;
	const struct bus_ops *ops;
	void *dev;
};

#define BUS_RANGES_MAX 32

struct bus {
	struct bus_range ranges[BUS_RANGES_MAX]; /* ordered by start */
	u32 nr;
};

/* -EEXIST: overlaps another; -ENOSPC. */
int bus_add(struct bus *b, u64 start, u64 bytes, const struct bus_ops *ops, void *dev);

/* Reads of what nobody owns give all ones, writes are ignored, as on a PC. */
void bus_read(const struct bus *b, u64 addr, void *data, u32 bytes);
void bus_write(const struct bus *b, u64 addr, const void *data, u32 bytes);

#endif
