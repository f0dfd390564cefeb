// SPDX-License-Identifier: MIT
/*
 * What a VM's threads do to their memory. Writes go mostly to a window that moves through each
 * region, so that the pages outside of it lie still for long enough to merge.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "hypervisor-hooks/hooks.h"
#include "tests/live/model/model.h"

#define WINDOW_PART 8
#define WINDOW_US   300000
/* Of 100 operations, those that go to any page. */
#define ANYWHERE_PERCENT 15
#define RUN_MAX		 64u
#define DISCARD_MAX	 700u

/* Consecutive pages of one region, all the thread's own. */
struct span {
	struct model_region *r;
	u32 region, page, nr;
};

static struct span pick(struct lane *l, u32 most)
{
	u32 region = model_below(&l->rng, 2) ? 1 + l->thread : 0;
	struct model_region *r = &l->vm->region[region];
	u32 window = r->nr_pages / WINDOW_PART, page, end = r->nr_pages;
	u32 nr = 1 + model_below(&l->rng, most);

	page = model_below(&l->rng, r->nr_pages);
	if (model_below(&l->rng, 100) >= ANYWHERE_PERCENT)
		page = (u32)(now_us() / WINDOW_US % WINDOW_PART) * window + page % window;
	if (model_owner(region, page) != l->thread)
		page ^= MODEL_BLOCK;
	if (region == 0)
		end = ROUND_DOWN(page, MODEL_BLOCK) + MODEL_BLOCK;
	return (struct span){ .r = r, .region = region, .page = page, .nr = MIN(end - page, nr) };
}

static u32 some_common(struct lane *l)
{
	return 1 + model_below(&l->rng, MODEL_COMMON);
}

static void set_page(const struct span *s, u32 page, u32 content)
{
	if (content)
		model_fill(model_at(s->r, page), content);
	else
		memset(model_at(s->r, page), 0, PAGE_BYTES);
	s->r->page[page] = (struct model_page){ .content = content };
}

static void check_page(struct lane *l, u32 region, u32 page, const char *when)
{
	const struct model_region *r = &l->vm->region[region];
	struct model_page want = r->page[page];
	const u64 *at = model_at(r, page);
	u32 word = model_compare(at, want);
	u64 got = word < PAGE_WORDS ? at[word] : 0;
	char found[160];

	l->counts->checks++;
	if (word == PAGE_WORDS)
		return;
	model_describe(at, found, sizeof(found));
	model_fail(l->model,
		   "%s: VM %u (life %u, pid %d) thread %u step %llu: region %u page %u (state %u, "
		   "at %p) word %u: "
		   "expected %016llx of content %u dirty %u, found %016llx; the page holds %s; %s",
		   when, l->vm->index, l->vm->life, (int)getpid(), l->thread,
		   (unsigned long long)l->step, region, page, r->state, (const void *)at, word,
		   (unsigned long long)model_word(want, word), want.content, want.dirty,
		   (unsigned long long)got, found,
		   model_compare(at, want) == PAGE_WORDS ? "a moment later it was right"
							 : "it stays wrong");
}

void model_check_all(struct lane *l)
{
	for (u32 region = 0; region < MODEL_REGIONS; region++)
		for (u32 p = 0; p < l->vm->region[region].nr_pages; p++)
			if (model_owner(region, p) == l->thread)
				check_page(l, region, p, "full check");
}

/* --- operations --------------------------------------------------------------------------------
 */

static void op_common(struct lane *l)
{
	struct span s = pick(l, 1);

	set_page(&s, s.page, some_common(l));
}

/* Consecutive contents, as files in page caches have them: they merge as one mapping. */
static void op_common_run(struct lane *l)
{
	struct span s = pick(l, RUN_MAX);
	u32 first = some_common(l);

	for (u32 i = 0; i < s.nr; i++)
		set_page(&s, s.page + i, 1 + (first + i) % MODEL_COMMON);
}

/* The same as a disk's doing, which the VMM tells of: mostly truly. */
static void op_disk_read(struct lane *l)
{
	static const struct bh_disk disk = { { 1, 2 } };
	struct span s = pick(l, RUN_MAX);
	u32 first = some_common(l) % (MODEL_COMMON - RUN_MAX);
	u32 lie = model_below(&l->rng, 8) ? 0 : model_below(&l->rng, RUN_MAX);
	size_t bytes = (size_t)s.nr << PAGE_SHIFT;
	void *at = model_at(s.r, s.page);
	struct bh_agent *a = worker_agent_get();

	bh_pin(a, at, bytes);
	for (u32 i = 0; i < s.nr; i++)
		set_page(&s, s.page + i, 1 + first + i);
	bh_unpin(a, at, bytes);
	bh_note_disk_read(a, at, bytes, &disk, (u64)(first + lie) * 8);
	worker_agent_put();
}

static void op_unique(struct lane *l)
{
	struct span s = pick(l, 2);

	for (u32 i = 0; i < s.nr; i++)
		set_page(&s, s.page + i, ++l->model->unique);
}

static void op_zero(struct lane *l)
{
	struct span s = pick(l, model_below(&l->rng, 3) ? 1 : RUN_MAX);

	for (u32 i = 0; i < s.nr; i++)
		set_page(&s, s.page + i, 0);
}

/* One word differs from then on: what a compare that is not of all bytes would miss. */
static void op_dirty(struct lane *l)
{
	struct span s = pick(l, 4);

	for (u32 i = 0; i < s.nr; i++) {
		struct model_page *p = &s.r->page[s.page + i];
		u64 *at = model_at(s.r, s.page + i);

		if (p->dirty) {
			/* The word of before gets its content back first. */
			struct model_page clean = { .content = p->content };
			u32 word = model_dirty_word(*p);

			((volatile u64 *)at)[word] = model_word(clean, word);
		}
		p->dirty++;
		((volatile u64 *)at)[model_dirty_word(*p)] = model_dirty_value(*p);
	}
}

/* The page breaks, and is equal again at once, or a moment later. */
static void op_byte_and_back(struct lane *l)
{
	struct span s = pick(l, 4);
	bool wait = model_below(&l->rng, 4) == 0;
	u32 byte = model_below(&l->rng, PAGE_BYTES);

	for (u32 i = 0; i < s.nr; i++)
		((volatile u8 *)model_at(s.r, s.page + i))[byte] ^= 0x10;
	if (wait)
		usleep(model_below(&l->rng, 30000));
	for (u32 i = 0; i < s.nr; i++)
		((volatile u8 *)model_at(s.r, s.page + i))[byte] ^= 0x10;
}

static bool discard(struct lane *l, const struct span *s)
{
	int advice = model_below(&l->rng, 4) ? MADV_DONTNEED : MADV_DONTNEED_LOCKED;
	void *at = model_at(s->r, s->page);
	size_t bytes = (size_t)s->nr << PAGE_SHIFT;
	struct bh_agent *a = worker_agent_get();
	int r = -ENOENT;

	if (s->r->state == REGION_IN && a)
		r = bh_discard(a, at, bytes, advice);
	else if (s->r->state == REGION_OUT)
		r = madvise(at, bytes, advice) < 0 ? -errno : 0;
	worker_agent_put();
	if (r == -ENOENT)
		return false;
	if (r < 0) {
		model_fail(l->model, "VM %u: discard of %u pages: %s", l->vm->index, s->nr,
			   strerror(-r));
		return false;
	}
	for (u32 i = 0; i < s->nr; i++)
		s->r->page[s->page + i] = (struct model_page){ 0 };
	l->counts->discards++;
	return true;
}

static void op_discard(struct lane *l)
{
	struct span s = pick(l, model_below(&l->rng, 3) ? RUN_MAX : DISCARD_MAX);

	discard(l, &s);
}

/* What is discarded is merged again as soon as can be: a message about the discard that comes late
 * speaks of the page as it is by then. */
static void op_discard_rewrite(struct lane *l)
{
	struct span s = pick(l, RUN_MAX);
	u32 first = some_common(l);

	if (!discard(l, &s))
		return;
	for (u32 i = 0; i < s.nr; i++)
		set_page(&s, s.page + i, 1 + (first + i) % MODEL_COMMON);
}

/* The host swaps them out, if it has swap (test_67): what Ballast moves, compares and compresses
 * may have to be read first. */
static void op_swap_out(struct lane *l)
{
	struct span s = pick(l, DISCARD_MAX);

	madvise(model_at(s.r, s.page), (size_t)s.nr << PAGE_SHIFT, MADV_PAGEOUT);
}

static void op_check(struct lane *l)
{
	struct span s = pick(l, 16);

	for (u32 i = 0; i < s.nr; i++)
		check_page(l, s.region, s.page + i, "check");
}

/* What QEMU does after a memory error: something of the VMM's own over guest RAM. */
static void op_replace(struct lane *l)
{
	struct span s = pick(l, 4);
	void *at = model_at(s.r, s.page);
	size_t bytes = (size_t)s.nr << PAGE_SHIFT;
	struct bh_agent *a = worker_agent_get();

	if (a && s.r->state == REGION_IN) {
		bh_replace_begin(a, at, bytes);
		if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			 -1, 0) == MAP_FAILED)
			model_fail(l->model, "mmap: %s", strerror(errno));
		bh_replace_end(a, at, bytes);
		for (u32 i = 0; i < s.nr; i++)
			s.r->page[s.page + i] = (struct model_page){ 0 };
	}
	worker_agent_put();
}

/* The thread's own region, in steps: IN, LEFT (used on for a while), OUT, and IN again (worker.c).
 */
static void op_region(struct lane *l)
{
	u32 region = 1 + l->thread;

	if (l->vm->region[region].state == REGION_IN)
		worker_region_leave(l, region);
	if (l->vm->region[region].state == REGION_LEFT && model_below(&l->rng, 2))
		worker_region_remap(l, region);
}

/* A child that lives for a moment. Guest RAM is not its own (MADV_DONTFORK, as QEMU sets it). */
static void op_fork(struct lane *l)
{
	pid_t child;
	int status;

	if (!l->vm->dont_fork)
		return;
	child = fork();
	if (child == 0)
		_exit(0);
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		model_fail(l->model, "VM %u: a forked child ended badly", l->vm->index);
	l->counts->forks++;
}

/* The rare ones cost a lot of sharing, or of time. */
static const struct {
	void (*run)(struct lane *l);
	u32 weight;
} ops[] = {
	{ op_common, 1500 },	   { op_common_run, 600 }, { op_disk_read, 600 },
	{ op_unique, 700 },	   { op_zero, 600 },	   { op_dirty, 900 },
	{ op_byte_and_back, 900 }, { op_discard, 250 },	   { op_discard_rewrite, 350 },
	{ op_swap_out, 200 },	   { op_check, 3000 },	   { op_replace, 4 },
	{ op_region, 4 },	   { op_fork, 4 },
};

void model_op(struct lane *l)
{
	u32 all = 0, choice, i;
	u64 started = now_us();

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		all += ops[i].weight;
	choice = model_below(&l->rng, all);
	for (i = 0; choice >= ops[i].weight; i++)
		choice -= ops[i].weight;
	l->step++;
	ops[i].run(l);
	l->counts->ops++;
	l->counts->slowest_us = MAX(l->counts->slowest_us, now_us() - started);
}
