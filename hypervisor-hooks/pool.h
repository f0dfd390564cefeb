/* SPDX-License-Identifier: MIT */
/*
 * Where the content of pages waits that were taken out of the guest (pager.c): a heap of small
 * objects, compressed pages, in one stretch of reserved address space.
 *
 * Slabs of 64 KiB, each for objects of one size, a multiple of 128 bytes. A slab without objects is
 * given back to the kernel. Cost: half a step (64 bytes) an object on average, and 16 bytes a slab.
 *
 * It calls no allocator once it is made, so that it may be used where none may be called (agent.h,
 * rule iii). Not thread-safe.
 */
#ifndef BALLAST_HOOKS_POOL_H
#define BALLAST_HOOKS_POOL_H

#include "common/types.h"

/* An object, at most: three quarters of a page less its header. What is larger is not worth
 * compressing. */
#define POOL_OBJECT_MAX 3068
#define POOL_NONE	0 /* no object */

struct pool;

/* Address space for @max_bytes of objects, at most 256 GiB; memory is taken as it is used. */
int pool_new(u64 max_bytes, struct pool **ret);
void pool_free(struct pool *p);

/* Keeps a copy. The object's name, or POOL_NONE: there is no room, or it is larger than
 * POOL_OBJECT_MAX. */
u32 pool_add(struct pool *p, const void *data, u32 bytes);
/* Valid until the object is deleted. */
const void *pool_get(const struct pool *p, u32 object, u32 *ret_bytes);
void pool_del(struct pool *p, u32 object);

u64 pool_objects(const struct pool *p);
u64 pool_bytes(const struct pool *p); /* of memory, in whole slabs */

#endif
