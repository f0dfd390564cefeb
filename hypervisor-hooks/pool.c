/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "hypervisor-hooks/pool.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define SLAB_SHIFT   16
#define SLAB_BYTES   ((u32)POOL_SLAB_BYTES)
#define STEP	     128u
#define NR_CLASSES   ((POOL_OBJECT_MAX + sizeof(struct header) + STEP - 1) / STEP)
#define BYTES_MAX    GIB(256)
#define NO_SLAB	     UINT32_MAX
#define NO_OBJECT    UINT16_MAX
#define UNITS_A_SLAB (SLAB_BYTES / STEP)

/* Before each object: how long it is; in a free one, the next free one of its slab. */
struct header {
	u16 bytes, next;
	u32 sum; /* of the content */
};

enum slab_state {
	SLAB_IN,
	SLAB_WRITING, /* in memory, and on its way to the medium */
	SLAB_OUT,
};

struct slab {
	u32 next, prev; /* of its class with room; or of the empty ones (next alone) */
	u16 used;
	u16 free;      /* the first free object; NO_OBJECT: all above @fresh are untouched */
	u16 fresh;     /* objects from here on were never used */
	u8 class;      /* its objects have (class + 1) * STEP bytes, the header included */
	u8 listed : 1; /* it has room, and may be added to */
	u8 state : 2;
	u8 wanted : 1; /* an object of it was, since the hand came by */
	u8 readers : 4;
};

_Static_assert(sizeof(struct slab) == 16, "16 bytes a slab");

struct pool {
	u8 *memory;
	u32 nr_slabs, nr_touched; /* slabs from there on were never used */
	struct slab *slabs;
	u32 empty; /* list of slabs without objects */
	u32 with_room[NR_CLASSES];
	u32 hand; /* what may be written is looked for from here on */
	u64 objects, slabs_in, slabs_out;
};

int pool_new(u64 max_bytes, struct pool **ret)
{
	struct pool *p = calloc(1, sizeof(*p));
	u64 bytes = MIN(ROUND_UP(MAX(max_bytes, (u64)SLAB_BYTES), SLAB_BYTES), BYTES_MAX);

	if (!p)
		return -ENOMEM;
	p->nr_slabs = (u32)(bytes >> SLAB_SHIFT);
	p->slabs = calloc(p->nr_slabs, sizeof(p->slabs[0]));
	/* The kernel's own calls: the preload shim takes libc's for the VMM's (agent.h). */
	p->memory = (u8 *)syscall(SYS_mmap, NULL, bytes, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p->memory == MAP_FAILED)
		p->memory = NULL;
	if (!p->slabs || !p->memory) {
		pool_free(p);
		return -ENOMEM;
	}
	/* Swapping or sharing it again would be for nothing; a core dump has it with the guest. */
	syscall(SYS_madvise, p->memory, bytes, MADV_NOHUGEPAGE);
	syscall(SYS_madvise, p->memory, bytes, MADV_DONTFORK);
	p->empty = NO_SLAB;
	for (u32 c = 0; c < NR_CLASSES; c++)
		p->with_room[c] = NO_SLAB;
	*ret = p;
	return 0;
}

void pool_free(struct pool *p)
{
	if (!p)
		return;
	if (p->memory)
		syscall(SYS_munmap, p->memory, (u64)p->nr_slabs << SLAB_SHIFT);
	free(p->slabs);
	free(p);
}

static u32 object_bytes(const struct slab *s)
{
	return (s->class + 1u) * STEP;
}

static u32 objects_a_slab(const struct slab *s)
{
	return SLAB_BYTES / object_bytes(s);
}

static struct header *header_at(const struct pool *p, u32 slab, u32 index)
{
	return (struct header *)(p->memory + ((u64)slab << SLAB_SHIFT) +
				 (u64)index * object_bytes(&p->slabs[slab]));
}

static void list_add(struct pool *p, u32 i)
{
	struct slab *s = &p->slabs[i];
	u32 *head = &p->with_room[s->class];

	s->prev = NO_SLAB;
	s->next = *head;
	if (*head != NO_SLAB)
		p->slabs[*head].prev = i;
	*head = i;
	s->listed = true;
}

static void list_del(struct pool *p, u32 i)
{
	struct slab *s = &p->slabs[i];

	if (s->prev != NO_SLAB)
		p->slabs[s->prev].next = s->next;
	else
		p->with_room[s->class] = s->next;
	if (s->next != NO_SLAB)
		p->slabs[s->next].prev = s->prev;
	s->listed = false;
}

static bool has_room(const struct slab *s)
{
	return s->free != NO_OBJECT || s->fresh < objects_a_slab(s);
}

static u32 slab_new(struct pool *p, u32 class)
{
	u32 i = p->empty;

	if (i != NO_SLAB)
		p->empty = p->slabs[i].next;
	else if (p->nr_touched < p->nr_slabs)
		i = p->nr_touched++;
	else
		return NO_SLAB;
	p->slabs[i] = (struct slab){ .free = NO_OBJECT, .class = (u8) class };
	p->slabs_in++;
	list_add(p, i);
	return i;
}

u32 pool_add(struct pool *p, const void *data, u32 bytes)
{
	u32 class = (bytes + (u32)sizeof(struct header) - 1) / STEP, i, index;
	struct header *h;
	struct slab *s;

	if (bytes > POOL_OBJECT_MAX)
		return POOL_NONE;
	i = p->with_room[class];
	if (i == NO_SLAB)
		i = slab_new(p, class);
	if (i == NO_SLAB)
		return POOL_NONE;
	s = &p->slabs[i];
	if (s->free != NO_OBJECT) {
		index = s->free;
		s->free = header_at(p, i, index)->next;
	} else {
		index = s->fresh++;
	}
	h = header_at(p, i, index);
	*h = (struct header){ .bytes = (u16)bytes, .sum = (u32)XXH3_64bits(data, bytes) };
	memcpy(h + 1, data, bytes);
	s->used++;
	if (!has_room(s))
		list_del(p, i);
	p->objects++;
	/* Its place in units of a step, from 1 on. */
	return i * UNITS_A_SLAB + index * (s->class + 1u) + 1;
}

static u32 slab_of(u32 object)
{
	return (object - 1) / UNITS_A_SLAB;
}

static u32 index_of(const struct pool *p, u32 object)
{
	return (object - 1) % UNITS_A_SLAB / (p->slabs[slab_of(object)].class + 1u);
}

const void *pool_get(struct pool *p, u32 object, u32 *ret_bytes)
{
	const struct header *h = header_at(p, slab_of(object), index_of(p, object));

	p->slabs[slab_of(object)].wanted = true;
	*ret_bytes = h->bytes;
	return h + 1;
}

static void give_memory_back(const struct pool *p, u32 first, u32 nr)
{
	u8 *at = p->memory + ((u64)first << SLAB_SHIFT);

	/* With locked memory only the second way works. */
	if (syscall(SYS_madvise, at, (u64)nr << SLAB_SHIFT, MADV_DONTNEED) < 0)
		syscall(SYS_madvise, at, (u64)nr << SLAB_SHIFT, MADV_DONTNEED_LOCKED);
}

/* Nothing is in it, and nobody needs its place. */
static void slab_free(struct pool *p, u32 i)
{
	struct slab *s = &p->slabs[i];

	if (s->listed)
		list_del(p, i);
	if (s->state == SLAB_IN) {
		give_memory_back(p, i, 1);
		p->slabs_in--;
	} else {
		p->slabs_out--;
	}
	s->next = p->empty;
	p->empty = i;
}

static void free_if_unused(struct pool *p, u32 i)
{
	const struct slab *s = &p->slabs[i];

	if (!s->used && !s->readers && s->state != SLAB_WRITING)
		slab_free(p, i);
}

void pool_del(struct pool *p, u32 object)
{
	u32 i = slab_of(object), index = index_of(p, object);
	struct slab *s = &p->slabs[i];

	p->objects--;
	s->used--;
	/* What is on the medium, or on its way there, is as it is: room in it comes with its end.
	 */
	if (s->state == SLAB_IN) {
		header_at(p, i, index)->next = s->free;
		s->free = (u16)index;
		if (!s->listed)
			list_add(p, i);
	}
	free_if_unused(p, i);
}

u64 pool_objects(const struct pool *p)
{
	return p->objects;
}

u64 pool_bytes(const struct pool *p)
{
	return p->slabs_in << SLAB_SHIFT;
}

u64 pool_medium_bytes(const struct pool *p)
{
	return p->slabs_out << SLAB_SHIFT;
}

/* --- the medium ------------------------------------------------------------------------------ */

/* @any: one that has room, too, and one that was wanted. */
static bool may_go(struct slab *s, bool any)
{
	bool wanted = s->wanted;

	if (!s->used || s->state != SLAB_IN)
		return false;
	s->wanted = false;
	return any || (!wanted && !has_room(s));
}

/* The next slab of those that may go; NO_SLAB: there is none. */
static u32 turn_hand(struct pool *p, bool any)
{
	for (u32 looks = 0; looks < p->nr_touched; looks++) {
		u32 i = p->hand < p->nr_touched ? p->hand : 0;

		p->hand = i + 1;
		if (may_go(&p->slabs[i], any))
			return i;
	}
	return NO_SLAB;
}

static void write_begin(struct pool *p, u32 i)
{
	if (p->slabs[i].listed)
		list_del(p, i);
	p->slabs[i].state = SLAB_WRITING;
}

u32 pool_write_begin(struct pool *p, u32 max, u64 *ret_offset, const void **ret_memory)
{
	bool any = false;
	u32 first = turn_hand(p, any), nr = 1;

	if (first == NO_SLAB) {
		any = true;
		first = turn_hand(p, any);
	}
	if (first == NO_SLAB || !max)
		return 0;
	write_begin(p, first);
	while (nr < max && p->hand < p->nr_touched && may_go(&p->slabs[p->hand], any)) {
		write_begin(p, p->hand++);
		nr++;
	}
	*ret_offset = (u64)first << SLAB_SHIFT;
	*ret_memory = p->memory + *ret_offset;
	return nr;
}

void pool_write_end(struct pool *p, u64 offset, u32 nr, bool ok)
{
	u32 first = (u32)(offset >> SLAB_SHIFT);

	if (ok) {
		give_memory_back(p, first, nr);
		p->slabs_in -= nr;
		p->slabs_out += nr;
	}
	for (u32 i = first; i < first + nr; i++) {
		struct slab *s = &p->slabs[i];

		s->state = ok ? SLAB_OUT : SLAB_IN;
		if (!ok && s->used && has_room(s))
			list_add(p, i);
		free_if_unused(p, i);
	}
}

bool pool_on_medium(const struct pool *p, u32 object)
{
	return p->slabs[slab_of(object)].state == SLAB_OUT;
}

void pool_read_begin(struct pool *p, u32 object, struct pool_place *ret)
{
	u32 i = slab_of(object);
	u64 at = ((u64)i << SLAB_SHIFT) + (u64)index_of(p, object) * object_bytes(&p->slabs[i]),
	    end = at + object_bytes(&p->slabs[i]);

	p->slabs[i].readers++;
	*ret = (struct pool_place){
		.offset = ROUND_DOWN(at, POOL_BLOCK_BYTES),
		.bytes = (u32)(ROUND_UP(end, POOL_BLOCK_BYTES) - ROUND_DOWN(at, POOL_BLOCK_BYTES)),
		.skip = (u32)(at % POOL_BLOCK_BYTES),
		.object_bytes = object_bytes(&p->slabs[i]),
	};
}

void pool_read_end(struct pool *p, u32 object)
{
	p->slabs[slab_of(object)].readers--;
	free_if_unused(p, slab_of(object));
}

const void *pool_read_check(const struct pool_place *at, const void *blocks, u32 *ret_bytes)
{
	const struct header *h = (const struct header *)((const u8 *)blocks + at->skip);

	*ret_bytes = h->bytes;
	if (h->bytes > at->object_bytes - sizeof(*h) || h->sum != (u32)XXH3_64bits(h + 1, h->bytes))
		return NULL;
	return h + 1;
}
