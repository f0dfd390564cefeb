/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "ksmd/index.h"

#define SHARD_BITS 7
#define SHARDS	   (1u << SHARD_BITS)
/* The smallest shard that is not empty: 64 bytes. */
#define SLOTS_MIN 8
/*
 * From 16 KiB on a shard is a mapping of its own, so that it grows and shrinks without a copy, and
 * leaves nothing behind in the heap, where allocators keep what is freed for a while.
 */
#define MAPPED_SLOTS 2048
/* From here on whole pages are a fine enough measure to grow by a sixteenth. */
#define LARGE_SLOTS 8192
#define PAGE_SLOTS  ((u32)(PAGE_BYTES / sizeof(struct slot)))
/* Behind the last home; a cluster at the end that needs more makes the array longer. */
#define SPILL_MAX 32

struct slot {
	u32 tag;   /* UINT32_MAX if free, so that a search stops there */
	u32 value; /* INDEX_NONE: free */
};

/*
 * Rules:
 *   i.   The entries of a shard stand in tag order, equal tags in the order they came.
 *   ii.  No entry is below its home, and all slots from its home up to it are taken.
 *   iii. The last slot is free: searches end without looking at nr_slots.
 */
struct shard {
	struct slot *slots; /* NULL: empty */
	u32 nr_homes, nr_slots, nr_entries;
	bool mapped;
};

struct index {
	struct shard shards[SHARDS];
	u64 nr_entries, nr_slots;
};

static const struct slot free_slot = { UINT32_MAX, INDEX_NONE };

int index_new(struct index **ret)
{
	*ret = calloc(1, sizeof(**ret));
	return *ret ? 0 : -ENOMEM;
}

static void slots_free(struct shard *s)
{
	if (s->mapped)
		munmap(s->slots, s->nr_slots * sizeof(s->slots[0]));
	else
		free(s->slots);
}

void index_free(struct index *x)
{
	if (!x)
		return;
	for (u32 i = 0; i < SHARDS; i++)
		slots_free(&x->shards[i]);
	free(x);
}

/* --- sizes ------------------------------------------------------------------------------------ */

/* @n rounded up to what an allocator gives for it anyway: four sizes to each power of two, or whole
 * pages. */
static u32 round_slots(u32 n)
{
	if (n <= SLOTS_MIN)
		return SLOTS_MIN;
	if (n >= MAPPED_SLOTS)
		return ROUND_UP(n, PAGE_SLOTS);
	return ROUND_UP(n, (1u << (31 - __builtin_clz(n))) / 4);
}

/* How many of @nr_slots are homes; the others are for the spill. */
static u32 homes_of(u32 nr_slots)
{
	return nr_slots - MIN(2 + nr_slots / 32, SPILL_MAX);
}

/* Entries at which a shard grows. For a small one the next size is up to a quarter larger, so the
 * one before is used longer: what longer clusters cost there is in the cache. */
static u32 limit_of(const struct shard *s)
{
	return s->nr_homes - s->nr_homes / (s->nr_homes < LARGE_SLOTS ? 16 : 8);
}

/* The next size: a sixteenth more, or what round_slots() has next. */
static u32 larger(u32 nr_slots)
{
	return round_slots(nr_slots + (nr_slots < LARGE_SLOTS ? 1 : nr_slots / 16));
}

static void *map_slots(u32 nr)
{
	return mmap(NULL, nr * sizeof(struct slot), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Makes the array @nr slots long; what is cut off must be free. */
static int resize(struct index *x, struct shard *s, u32 nr)
{
	bool mapped = nr >= (s->mapped ? MAPPED_SLOTS / 2 : MAPPED_SLOTS);
	size_t bytes = nr * sizeof(s->slots[0]), old = s->nr_slots * sizeof(s->slots[0]);
	void *p = MAP_FAILED;

	if (mapped && s->mapped)
		p = mremap(s->slots, old, bytes, MREMAP_MAYMOVE);
	else if (mapped)
		p = map_slots(nr);
	/* The heap serves too when the process has no mappings left (vm.max_map_count). */
	mapped = p != MAP_FAILED;
	if (!mapped)
		p = s->mapped ? malloc(bytes) : realloc(s->slots, bytes);
	if (!p)
		return -ENOMEM;
	if (mapped != s->mapped && s->slots) {
		/* From one to the other: realloc() and mremap() have copied already. */
		memcpy(p, s->slots, MIN(bytes, old));
		slots_free(s);
	}
	s->slots = p;
	s->mapped = mapped;
	for (u32 i = s->nr_slots; i < nr; i++)
		s->slots[i] = free_slot;
	x->nr_slots += nr;
	x->nr_slots -= s->nr_slots;
	s->nr_slots = nr;
	return 0;
}

/* --- places ----------------------------------------------------------------------------------- */

static struct shard *shard_of(struct index *x, u32 tag)
{
	return &x->shards[tag >> (32 - SHARD_BITS)];
}

/* The bits of the tag that did not choose the shard, scaled. Rises with the tag. */
static u32 home(u32 nr_homes, u32 tag)
{
	return (u32)(((u64)(tag << SHARD_BITS) * nr_homes) >> 32);
}

static bool is_free(const struct slot *slot)
{
	return slot->value == INDEX_NONE;
}

/* The first entry of @tag if there is one; else a slot that is not of @tag. */
static struct slot *first_of(const struct shard *s, u32 tag)
{
	struct slot *slot = s->slots + home(s->nr_homes, tag);

	while (slot->tag < tag)
		slot++;
	return slot;
}

static bool is_entry(const struct slot *slot, u32 tag)
{
	return slot->tag == tag && !is_free(slot);
}

/* How many slots the entries would take with @nr_homes, with the free one at the end. */
static u32 slots_needed(const struct shard *s, u32 nr_homes)
{
	u32 next = 0;

	for (u32 i = 0; i < s->nr_slots; i++)
		if (!is_free(&s->slots[i]))
			next = MAX(next, home(nr_homes, s->slots[i].tag)) + 1;
	return next + 1;
}

/*
 * Gives the entries their places for @nr_homes, in the same array, which must be long enough: first
 * all are packed at its end, then they are dealt out from the front. Writing never overtakes
 * reading, because behind each entry's new place there is room for all that come after it.
 */
static void spread(struct shard *s, u32 nr_homes)
{
	u32 from = s->nr_slots, to = 0;

	for (u32 i = s->nr_slots; i-- > 0;)
		if (!is_free(&s->slots[i]))
			s->slots[--from] = s->slots[i];
	for (; from < s->nr_slots; from++) {
		struct slot entry = s->slots[from];
		u32 at = MAX(to, home(nr_homes, entry.tag));

		while (to < at)
			s->slots[to++] = free_slot;
		s->slots[to++] = entry;
	}
	while (to < s->nr_slots)
		s->slots[to++] = free_slot;
	s->nr_homes = nr_homes;
}

/* --- growing and shrinking -------------------------------------------------------------------- */

static int grow(struct index *x, struct shard *s)
{
	u32 nr_slots = larger(s->nr_homes), nr_homes;
	int r;

	while (homes_of(nr_slots) <= s->nr_homes)
		nr_slots = larger(nr_slots);
	nr_homes = homes_of(nr_slots);
	nr_slots = MAX(nr_slots, round_slots(slots_needed(s, nr_homes)));
	if (nr_slots > s->nr_slots) {
		r = resize(x, s, nr_slots);
		if (r < 0)
			return r;
	}
	spread(s, nr_homes);
	return 0;
}

/* Back to three quarters full. If this fails the shard only stays larger than it need be. */
static void shrink(struct index *x, struct shard *s)
{
	u32 nr_slots = round_slots(s->nr_entries / 3 * 4 + SLOTS_MIN);
	u32 nr_homes = homes_of(nr_slots);

	/* No more than now: no home moves up. */
	nr_slots = MAX(nr_slots, round_slots(slots_needed(s, nr_homes)));
	spread(s, nr_homes);
	if (nr_slots < s->nr_slots)
		(void)resize(x, s, nr_slots);
}

static void empty(struct index *x, struct shard *s)
{
	slots_free(s);
	x->nr_slots -= s->nr_slots;
	*s = (struct shard){ 0 };
}

int index_add(struct index *x, u32 tag, u32 value)
{
	struct shard *s = shard_of(x, tag);
	struct slot *slot, *end;

	/* If there is no memory for more homes, the slots that are left will do. */
	if (s->nr_entries >= limit_of(s) && grow(x, s) < 0 && !s->slots)
		return -ENOMEM;
	for (;;) {
		slot = first_of(s, tag);
		while (is_entry(slot, tag))
			slot++;
		for (end = slot; !is_free(end);)
			end++;
		if (end < s->slots + s->nr_slots - 1)
			break;
		/* Rule iii. More homes would not help if it is one tag that fills the end. */
		if (resize(x, s, larger(s->nr_slots)) < 0)
			return -ENOMEM;
	}
	memmove(slot + 1, slot, (size_t)(end - slot) * sizeof(*slot));
	*slot = (struct slot){ tag, value };
	s->nr_entries++;
	x->nr_entries++;
	return 0;
}

/* Closes the gap at @hole: the followers that are not at home move up. */
static void close_gap(struct shard *s, struct slot *hole)
{
	struct slot *end = hole + 1;

	while (!is_free(end) && s->slots + home(s->nr_homes, end->tag) < end)
		end++;
	memmove(hole, hole + 1, (size_t)(end - hole - 1) * sizeof(*hole));
	end[-1] = free_slot;
}

bool index_del(struct index *x, u32 tag, u32 value)
{
	struct shard *s = shard_of(x, tag);

	if (!s->slots)
		return false;
	for (struct slot *slot = first_of(s, tag); is_entry(slot, tag); slot++) {
		if (slot->value != value)
			continue;
		close_gap(s, slot);
		s->nr_entries--;
		x->nr_entries--;
		/* Half of what makes it grow, so that it does not go to and fro. */
		if (!s->nr_entries)
			empty(x, s);
		else if (s->nr_entries < s->nr_homes / 16 * 7)
			shrink(x, s);
		return true;
	}
	return false;
}

u32 index_find(const struct index *x, u32 tag, bool (*match)(u32 value, void *arg), void *arg)
{
	const struct shard *s = &x->shards[tag >> (32 - SHARD_BITS)];

	if (!s->slots)
		return INDEX_NONE;
	for (const struct slot *slot = first_of(s, tag); is_entry(slot, tag); slot++)
		if (!match || match(slot->value, arg))
			return slot->value;
	return INDEX_NONE;
}

void index_prefetch(const struct index *x, u32 tag)
{
	const struct shard *s = &x->shards[tag >> (32 - SHARD_BITS)];

	if (s->slots)
		__builtin_prefetch(s->slots + home(s->nr_homes, tag));
}

u64 index_entries(const struct index *x)
{
	return x->nr_entries;
}

u64 index_bytes(const struct index *x)
{
	return sizeof(*x) + x->nr_slots * sizeof(struct slot);
}
