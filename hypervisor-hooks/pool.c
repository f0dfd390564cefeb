/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "hypervisor-hooks/pool.h"

#define SLAB_SHIFT   16
#define SLAB_BYTES   (1U << SLAB_SHIFT)
#define STEP	     128u
#define NR_CLASSES   ((POOL_OBJECT_MAX + sizeof(struct header)) / STEP)
#define BYTES_MAX    GIB(256)
#define NO_SLAB	     UINT32_MAX
#define NO_OBJECT    UINT16_MAX
#define UNITS_A_SLAB (SLAB_BYTES / STEP)

/* Before each object: how long it is; in a free one, the next free one of its slab. */
struct header {
	u16 bytes, next;
};

struct slab {
	u32 next, prev; /* of its class with room; or of the empty ones (next alone) */
	u16 used;
	u16 free;    /* the first free object; NO_OBJECT: all above @fresh are untouched */
	u16 fresh;   /* objects from here on were never used */
	u8 class;    /* its objects have (class + 1) * STEP bytes, the header included */
	bool listed; /* it has room */
};

struct pool {
	u8 *memory;
	u32 nr_slabs, nr_touched; /* slabs from there on were never used */
	struct slab *slabs;
	u32 empty; /* list of slabs without objects */
	u32 with_room[NR_CLASSES];
	u64 objects, slabs_used;
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
	p->slabs_used++;
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
	*h = (struct header){ .bytes = (u16)bytes };
	memcpy(h + 1, data, bytes);
	if (++s->used == objects_a_slab(s))
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

const void *pool_get(const struct pool *p, u32 object, u32 *ret_bytes)
{
	const struct header *h = header_at(p, slab_of(object), index_of(p, object));

	*ret_bytes = h->bytes;
	return h + 1;
}

void pool_del(struct pool *p, u32 object)
{
	u32 i = slab_of(object), index = index_of(p, object);
	struct slab *s = &p->slabs[i];

	header_at(p, i, index)->next = s->free;
	s->free = (u16)index;
	p->objects--;
	if (!s->listed)
		list_add(p, i);
	if (--s->used)
		return;
	list_del(p, i);
	/* With locked memory only the second way works. */
	if (syscall(SYS_madvise, p->memory + ((u64)i << SLAB_SHIFT), SLAB_BYTES, MADV_DONTNEED) < 0)
		syscall(SYS_madvise, p->memory + ((u64)i << SLAB_SHIFT), SLAB_BYTES,
			MADV_DONTNEED_LOCKED);
	s->next = p->empty;
	p->empty = i;
	p->slabs_used--;
}

u64 pool_objects(const struct pool *p)
{
	return p->objects;
}

u64 pool_bytes(const struct pool *p)
{
	return p->slabs_used << SLAB_SHIFT;
}
