/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include "ksmd/index.h"

/* A shard starts small and grows by an eighth when seven eighths are full. */
#define SHARD_BITS 8
#define SHARDS	   (1u << SHARD_BITS)
#define SLOTS_MIN  8

struct slot {
	u32 tag;
	u32 value; /* INDEX_NONE: free */
};

struct shard {
	struct slot *slots;
	u32 nr_slots;
	u32 nr_entries;
};

struct index {
	struct shard shards[SHARDS];
	u64 nr_entries, nr_slots;
};

static struct shard *shard_of(struct index *x, u32 tag)
{
	return &x->shards[tag >> (32 - SHARD_BITS)];
}

static int slots_new(struct shard *s, u32 nr)
{
	s->slots = malloc(nr * sizeof(s->slots[0]));
	if (!s->slots)
		return -ENOMEM;
	s->nr_slots = nr;
	for (u32 i = 0; i < nr; i++)
		s->slots[i].value = INDEX_NONE;
	return 0;
}

int index_new(struct index **ret)
{
	struct index *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	for (u32 i = 0; i < SHARDS; i++) {
		if (slots_new(&x->shards[i], SLOTS_MIN) < 0) {
			index_free(x);
			return -ENOMEM;
		}
		x->nr_slots += SLOTS_MIN;
	}
	*ret = x;
	return 0;
}

void index_free(struct index *x)
{
	if (!x)
		return;
	for (u32 i = 0; i < SHARDS; i++)
		free(x->shards[i].slots);
	free(x);
}

/* The bits of the tag that did not choose the shard, scaled to the slots. */
static u32 home(const struct shard *s, u32 tag)
{
	return (u32)(((u64)(tag << SHARD_BITS) * s->nr_slots) >> 32);
}

static u32 next(const struct shard *s, u32 i)
{
	return i + 1 == s->nr_slots ? 0 : i + 1;
}

static void insert(struct shard *s, u32 tag, u32 value)
{
	u32 i = home(s, tag);

	while (s->slots[i].value != INDEX_NONE)
		i = next(s, i);
	s->slots[i] = (struct slot){ tag, value };
	s->nr_entries++;
}

static int grow(struct index *x, struct shard *s)
{
	struct shard bigger = { 0 };
	int r = slots_new(&bigger, s->nr_slots + MAX(s->nr_slots / 8, SLOTS_MIN));

	if (r < 0)
		return r;
	for (u32 i = 0; i < s->nr_slots; i++)
		if (s->slots[i].value != INDEX_NONE)
			insert(&bigger, s->slots[i].tag, s->slots[i].value);
	x->nr_slots += bigger.nr_slots - s->nr_slots;
	free(s->slots);
	*s = bigger;
	return 0;
}

int index_add(struct index *x, u32 tag, u32 value)
{
	struct shard *s = shard_of(x, tag);

	if (s->nr_entries >= s->nr_slots / 8 * 7) {
		int r = grow(x, s);

		/* A full shard must keep a free slot, or lookups would not end. */
		if (r < 0 && s->nr_entries + 1 >= s->nr_slots)
			return r;
	}
	insert(s, tag, value);
	x->nr_entries++;
	return 0;
}

/* Closes the gap at @hole: each follower that would be found sooner there moves up. */
static void shift_back(struct shard *s, u32 hole)
{
	for (u32 i = next(s, hole); s->slots[i].value != INDEX_NONE; i = next(s, i)) {
		u32 h = home(s, s->slots[i].tag);
		/* Distances around the ring: may the entry at i live at the hole? */
		u32 from_home = i >= h ? i - h : i + s->nr_slots - h;
		u32 from_hole = i >= hole ? i - hole : i + s->nr_slots - hole;

		if (from_home >= from_hole) {
			s->slots[hole] = s->slots[i];
			hole = i;
		}
	}
	s->slots[hole].value = INDEX_NONE;
}

bool index_del(struct index *x, u32 tag, u32 value)
{
	struct shard *s = shard_of(x, tag);

	for (u32 i = home(s, tag); s->slots[i].value != INDEX_NONE; i = next(s, i)) {
		if (s->slots[i].tag == tag && s->slots[i].value == value) {
			shift_back(s, i);
			s->nr_entries--;
			x->nr_entries--;
			return true;
		}
	}
	return false;
}

u32 index_find(const struct index *x, u32 tag, bool (*match)(u32 value, void *arg), void *arg)
{
	const struct shard *s = &x->shards[tag >> (32 - SHARD_BITS)];

	for (u32 i = home(s, tag); s->slots[i].value != INDEX_NONE; i = next(s, i))
		if (s->slots[i].tag == tag && (!match || match(s->slots[i].value, arg)))
			return s->slots[i].value;
	return INDEX_NONE;
}

u64 index_entries(const struct index *x)
{
	return x->nr_entries;
}

u64 index_bytes(const struct index *x)
{
	return sizeof(*x) + x->nr_slots * sizeof(struct slot);
}
