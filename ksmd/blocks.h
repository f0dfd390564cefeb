/* SPDX-License-Identifier: MIT */
/*
 * Which guest page holds which block of a disk image, as far as VMMs have said: a domain's memory
 * of the last reader of each block, for share on read (readshare.c). After Satori (Milos et al.,
 * USENIX ATC 2009), which does this in the hypervisor's block backend.
 *
 * Hints only: an entry can be old, another's, or a lie. It costs a page hash then, nothing else.
 *
 * A cache of sets: 8 entries of 8 bytes, a cache line, chosen by the hash of (disk, sector). In a
 * full set a new entry takes an old one's place. The table doubles when five eighths are in use,
 * up to 2^20 entries: 4 GiB of images, 8 MiB of memory (13 to 26 bytes a block below). The hash is
 * cut to 32 bits, so that of 4096 lookups in a full table one finds somebody else's page.
 *
 * Not thread-safe.
 */
#ifndef BALLAST_KSMD_BLOCKS_H
#define BALLAST_KSMD_BLOCKS_H

#include "common/types.h"

#define BLOCK_NONE	   UINT32_MAX
#define BLOCKS_ENTRIES_MAX ((u32)1 << 20)

struct blocks;
int blocks_new(struct blocks **ret);
void blocks_free(struct blocks *b); /* NULL is fine */

/* The block at @sector of @disk is in guest page @gpn (< GPN_MAX) now. Returns the page that it was
 * said to be in before, or BLOCK_NONE. */
u32 blocks_note(struct blocks *b, const u64 disk[2], u64 sector, u32 gpn);

u64 blocks_entries(const struct blocks *b);
u64 blocks_bytes(const struct blocks *b);

#endif
