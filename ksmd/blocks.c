/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include "ksmd/blocks.h"
#include "ksmd/gpn.h"
#include "ksmd/hash.h"

#define WAYS	      8
#define SETS_BITS_MIN 9 /* 32 KiB: a domain whose VMMs tell little */
#define SETS_BITS_MAX 17
#define CACHE_LINE    64

_Static_assert(((u32)WAYS << SETS_BITS_MAX) == BLOCKS_ENTRIES_MAX, "blocks.h");

struct entry {
	u32 tag;
	u32 page; /* gpn + 1; 0: empty */
};

struct set {
	struct entry way[WAYS];
};
_Static_assert(sizeof(struct set) == CACHE_LINE, "what an entry costs (blocks.h)");

struct blocks {
	struct set *sets;
	u32 bits; /* there are 2^bits sets */
	u32 nr;
	u32 victim; /* whose turn it is in a full set */
};

static struct set *sets_new(u32 bits)
{
	size_t bytes = sizeof(struct set) << bits;
	struct set *s = aligned_alloc(CACHE_LINE, bytes);

	if (s)
		memset(s, 0, bytes);
	return s;
}

int blocks_new(struct blocks **ret)
{
	struct blocks *b = calloc(1, sizeof(*b));

	if (!b)
		return -ENOMEM;
	b->bits = SETS_BITS_MIN;
	b->sets = sets_new(b->bits);
	if (!b->sets) {
		free(b);
		return -ENOMEM;
	}
	*ret = b;
	return 0;
}

void blocks_free(struct blocks *b)
{
	if (!b)
		return;
	free(b->sets);
	free(b);
}

/* Keyed with the secret of page hashes: nobody outside can choose what falls into one set. */
static u32 tag_of(const u64 disk[2], u64 sector)
{
	const u64 key[3] = { disk[0], disk[1], sector };

	return (u32)(XXH3_64bits_withSecret(key, sizeof(key), page_hash_secret,
					    sizeof(page_hash_secret)) >>
		     32);
}

static struct set *set_of(const struct blocks *b, u32 tag)
{
	return &b->sets[tag >> (32 - b->bits)];
}

static struct entry *find(struct set *s, u32 tag)
{
	for (u32 i = 0; i < WAYS; i++)
		if (s->way[i].page && s->way[i].tag == tag)
			return &s->way[i];
	return NULL;
}

static struct entry *place(struct blocks *b, struct set *s)
{
	for (u32 i = 0; i < WAYS; i++) {
		if (!s->way[i].page) {
			b->nr++;
			return &s->way[i];
		}
	}
	return &s->way[b->victim++ % WAYS];
}

/* Without memory for it the table stays as large as it is. */
static void grow(struct blocks *b)
{
	struct set *old = b->sets, *grown = sets_new(b->bits + 1);
	u32 nr_old = (u32)1 << b->bits;

	if (!grown)
		return;
	b->sets = grown;
	b->bits++;
	b->nr = 0;
	/* A set's entries go to two sets: there is room. */
	for (u32 i = 0; i < nr_old; i++)
		for (u32 k = 0; k < WAYS; k++)
			if (old[i].way[k].page)
				*place(b, set_of(b, old[i].way[k].tag)) = old[i].way[k];
	free(old);
}

u32 blocks_note(struct blocks *b, const u64 disk[2], u64 sector, u32 gpn)
{
	u32 tag = tag_of(disk, sector), before = BLOCK_NONE;
	struct entry *e = find(set_of(b, tag), tag);

	if (e) {
		before = e->page - 1;
	} else {
		if (b->bits < SETS_BITS_MAX && b->nr >= ((u32)WAYS << b->bits) / 8 * 5)
			grow(b);
		e = place(b, set_of(b, tag));
	}
	*e = (struct entry){ .tag = tag, .page = gpn + 1 };
	return before;
}

u64 blocks_entries(const struct blocks *b)
{
	return b->nr;
}

u64 blocks_bytes(const struct blocks *b)
{
	return sizeof(*b) + (sizeof(struct set) << b->bits);
}
