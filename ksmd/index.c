/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include "ksmd/index.h"

/* The table starts small and grows by an eighth when seven eighths are full. */
#define SLOTS_MIN 1024

struct slot {
	u32 tag;
	u32 value; /* INDEX_NONE: free */
};

struct index {
	struct slot *slots;
	u64 nr_slots;
	u64 nr_entries;
};

static struct slot *slots_new(u64 nr)
{
	struct slot *s = malloc(nr * sizeof(*s));

	for (u64 i = 0; s && i < nr; i++)
		s[i] = (struct slot){ .value = INDEX_NONE };
	return s;
}

int index_new(struct index **ret)
{
	struct index *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->nr_slots = SLOTS_MIN;
	x->slots = slots_new(x->nr_slots);
	if (!x->slots) {
		free(x);
		return -ENOMEM;
	}
	*ret = x;
	return 0;
}

void index_free(struct index *x)
{
	if (!x)
		return;
	free(x->slots);
	free(x);
}

static u64 home(const struct index *x, u32 tag)
{
	return ((u64)tag * x->nr_slots) >> 32;
}

static u64 next(const struct index *x, u64 i)
{
	return i + 1 == x->nr_slots ? 0 : i + 1;
}

static void insert(struct index *x, u32 tag, u32 value)
{
	u64 i = home(x, tag);

	while (x->slots[i].value != INDEX_NONE)
		i = next(x, i);
	x->slots[i] = (struct slot){ tag, value };
	x->nr_entries++;
}

static int grow(struct index *x)
{
	struct index bigger = { .nr_slots = x->nr_slots + x->nr_slots / 8 };

	bigger.slots = slots_new(bigger.nr_slots);
	if (!bigger.slots)
		return -ENOMEM;
	for (u64 i = 0; i < x->nr_slots; i++)
		if (x->slots[i].value != INDEX_NONE)
			insert(&bigger, x->slots[i].tag, x->slots[i].value);
	free(x->slots);
	*x = bigger;
	return 0;
}

int index_add(struct index *x, u32 tag, u32 value)
{
	if (x->nr_entries >= x->nr_slots / 8 * 7) {
		int r = grow(x);

		/* A full table must keep a free slot, or lookups would not end. */
		if (r < 0 && x->nr_entries + 1 >= x->nr_slots)
			return r;
	}
	insert(x, tag, value);
	return 0;
}

/* Closes the gap at @hole: each follower that would be found sooner there moves up. */
static void shift_back(struct index *x, u64 hole)
{
	for (u64 i = next(x, hole); x->slots[i].value != INDEX_NONE; i = next(x, i)) {
		u64 h = home(x, x->slots[i].tag);
		/* Distances around the ring: may the entry at i live at the hole? */
		u64 from_home = i >= h ? i - h : i + x->nr_slots - h;
		u64 from_hole = i >= hole ? i - hole : i + x->nr_slots - hole;

		if (from_home >= from_hole) {
			x->slots[hole] = x->slots[i];
			hole = i;
		}
	}
	x->slots[hole].value = INDEX_NONE;
}

bool index_del(struct index *x, u32 tag, u32 value)
{
	for (u64 i = home(x, tag); x->slots[i].value != INDEX_NONE; i = next(x, i)) {
		if (x->slots[i].tag == tag && x->slots[i].value == value) {
			shift_back(x, i);
			x->nr_entries--;
			return true;
		}
	}
	return false;
}

u32 index_find(const struct index *x, u32 tag, bool (*match)(u32 value, void *arg), void *arg)
{
	for (u64 i = home(x, tag); x->slots[i].value != INDEX_NONE; i = next(x, i))
		if (x->slots[i].tag == tag && (!match || match(x->slots[i].value, arg)))
			return x->slots[i].value;
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
