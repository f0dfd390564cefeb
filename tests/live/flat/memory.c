// SPDX-License-Identifier: MIT
/* The flat VM's memory: allocation, first contents, and who owns which block. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "tests/live/flat/vmm.h"

/* In a shuffled list of blocks: of every 16, two are read-only, one is the device's, the vCPUs
 * share the rest. */
#define DEAL	      16
#define DEAL_READONLY 2
#define DEAL_DEVICE   1
/* A window is this part of a lane's blocks, so a page lies still for most of that many dwell times.
 */
#define WINDOW_PART 64

void *flat_alloc(size_t bytes)
{
	u8 *p = mmap(NULL, bytes + CHUNK_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	u8 *aligned;

	if (p == MAP_FAILED)
		return NULL;
	aligned = (u8 *)ROUND_UP((u64)p, CHUNK_BYTES);
	if (aligned > p)
		munmap(p, aligned - p);
	munmap(aligned + bytes, p + CHUNK_BYTES - aligned);
	return aligned;
}

/* Every block once, in an order that depends on the seed only. */
static u32 *shuffled_blocks(const struct flat_options *opt, u32 nr)
{
	u32 *list = calloc(nr, sizeof(*list));

	if (!list)
		return NULL;
	for (u32 i = 0; i < nr; i++) {
		u32 j = flat_mix((u64)opt->seed << 32 | i) % (i + 1);

		list[i] = list[j];
		list[j] = i;
	}
	return list;
}

/* -1: read-only; else the index of the runner that owns the @i-th block of the shuffled list. */
static int owner(const struct flat_vm *vm, u32 i)
{
	u32 card = i % DEAL;

	if (card < DEAL_READONLY)
		return -1;
	if (card < DEAL_READONLY + DEAL_DEVICE)
		return vm->nr_runners - 1;
	return (i / DEAL + card) % (vm->nr_runners - 1);
}

static void fill(struct flat_vm *vm)
{
	for (u32 p = 0; p < vm->opt.nr_pages; p++) {
		u64 content = flat_content(vm->opt.nr_pages, vm->opt.seed, p, 0);
		u64 *words = (u64 *)(vm->ram + ((u64)p << PAGE_SHIFT));

		for (u32 w = 0; w < FLAT_PAGE_WORDS; w++)
			words[w] = flat_word(content, w);
	}
}

/* Deals the blocks and fills in the lanes, each with the addresses that its runner sees. */
static int deal(struct flat_vm *vm)
{
	const struct flat_options *opt = &vm->opt;
	u32 nr = opt->nr_pages / FLAT_BLOCK_PAGES;
	u32 *list = shuffled_blocks(opt, nr);
	u64 lists = FLAT_HEAP_GPA + opt->nr_pages * sizeof(struct flat_shadow);

	if (!list)
		return -ENOMEM;
	for (u32 n = 0; n < vm->nr_runners; n++) {
		struct flat_runner *r = &vm->runner[n];
		u64 gpa = FLAT_LANES_GPA + n * sizeof(struct flat_lane);
		bool device = n == vm->nr_runners - 1, hosted = device || opt->threads;
		u64 base = hosted ? (u64)vm->ctl : 0;
		struct flat_lane *l = (struct flat_lane *)(vm->ctl + gpa);
		u32 *blocks = (u32 *)(vm->ctl + lists), own = 0, all = 0;

		for (u32 i = 0; i < nr; i++)
			if (owner(vm, i) == (int)n)
				blocks[own++] = list[i];
		all = own;
		for (u32 i = 0; i < nr; i++)
			if (owner(vm, i) < 0)
				blocks[all++] = list[i];

		r->lane = l;
		l->ram = hosted ? (u64)vm->ram : FLAT_RAM_GPA;
		l->shadow = base + FLAT_HEAP_GPA;
		l->blocks = base + lists;
		l->nr_pages = opt->nr_pages;
		l->nr_own = own;
		l->nr_readable = all;
		l->window_blocks = MAX(own / WINDOW_PART, 1U);
		/* Short, so that the time of a round shows stalls even where every access is slow.
		 */
		l->iterations_a_tick = device ? 2000 : 5000;
		l->write_permille = opt->write_permille;
		l->discard = opt->discard;
		l->disk = true;
		l->seed = opt->seed;
		l->rng = flat_mix((u64)opt->seed << 8 | (n + 1)) | 1;
		lists += ROUND_UP((u64)all * sizeof(u32), 64);
	}
	free(list);
	return 0;
}

int flat_memory_new(struct flat_vm *vm)
{
	vm->ctl = flat_alloc(FLAT_CTL_BYTES);
	vm->ram = flat_alloc(flat_ram_bytes(vm));
	if (!vm->ctl || !vm->ram)
		return -ENOMEM;
	fill(vm);
	return deal(vm);
}

u64 flat_memory_check(struct flat_vm *vm)
{
	/* A hosted lane of its own, so that the log of first errors starts empty. */
	struct flat_lane l = *vm->runner[vm->nr_runners - 1].lane;

	l.errors = 0;
	for (u32 p = 0; p < vm->opt.nr_pages; p++)
		flat_check_page(&l, p);
	vm->runner[vm->nr_runners - 1].lane->errors += l.errors;
	memcpy(vm->runner[vm->nr_runners - 1].lane->error, l.error, sizeof(l.error));
	return l.errors;
}
