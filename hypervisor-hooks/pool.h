/* SPDX-License-Identifier: MIT */
/*
 * Where the content of pages waits that were taken out of the guest (pager.c): a heap of small
 * objects, compressed pages, in one stretch of reserved address space; and, where there is a
 * medium (swap.c), on that.
 *
 * Slabs of 64 KiB, each for objects of one size, a multiple of 128 bytes. A slab without objects is
 * given back to the kernel. Slabs go to the medium as they are, each to its own place there: what
 * is read back is one object, whole blocks around it, and its sum tells whether the medium kept it.
 * Cost: half a step (64 bytes) and a header of 8 bytes an object on average, and 16 bytes a slab.
 *
 * It calls no allocator once it is made, so that it may be used where none may be called (agent.h,
 * rule iii), and does no input or output. Not thread-safe.
 */
#ifndef BALLAST_HOOKS_POOL_H
#define BALLAST_HOOKS_POOL_H

#include "common/types.h"

/* An object, at most: a page as it is. */
#define POOL_OBJECT_MAX 4096
#define POOL_NONE	0 /* no object */
#define POOL_SLAB_BYTES 65536

struct pool;

/* Address space for @max_bytes of objects, at most 256 GiB; memory is taken as it is used. */
int pool_new(u64 max_bytes, struct pool **ret);
void pool_free(struct pool *p);

/* Keeps a copy. The object's name, or POOL_NONE: there is no room, or it is larger than
 * POOL_OBJECT_MAX. */
u32 pool_add(struct pool *p, const void *data, u32 bytes);
/* Valid until the object is deleted or written. Of one that is in memory. */
const void *pool_get(struct pool *p, u32 object, u32 *ret_bytes);
void pool_del(struct pool *p, u32 object);

u64 pool_objects(const struct pool *p);
u64 pool_bytes(const struct pool *p);	     /* of memory, in whole slabs */
u64 pool_medium_bytes(const struct pool *p); /* on the medium, the same */

/* --- the medium ------------------------------------------------------------------------------ */

/*
 * Slabs to be written, the coldest as far as is known: full ones first, in the order in which they
 * were filled, but not those of which something was wanted since the last time round. How many, at
 * most @max; they lie one after the other, at *ret_memory here and from *ret_offset (bytes) on
 * there. Until pool_write_end() they are read from memory as before, and nothing is added to them.
 */
u32 pool_write_begin(struct pool *p, u32 max, u64 *ret_offset, const void **ret_memory);
/* @ok: they are on the medium, and their memory is given back; else all is as before. */
void pool_write_end(struct pool *p, u64 offset, u32 nr, bool ok);

bool pool_on_medium(const struct pool *p, u32 object);

#define POOL_BLOCK_BYTES  4096u
#define POOL_PLACE_BLOCKS 2 /* that an object lies in, at most */

/* Whole blocks of the medium, and where in them the object begins. */
struct pool_place {
	u64 offset;
	u32 bytes, skip, object_bytes;
};

/* Between these two the object's place is not used again, even if it is deleted. */
void pool_read_begin(struct pool *p, u32 object, struct pool_place *ret);
void pool_read_end(struct pool *p, u32 object);
/* The object in the blocks that were read. NULL: they are not what was written. */
const void *pool_read_check(const struct pool_place *at, const void *blocks, u32 *ret_bytes);

#endif
