// SPDX-License-Identifier: MIT
/* The access loop of the flat test guest. See abi.h; compiled for the guest (FLAT_GUEST) and
 * hosted. */
#include "tests/live/flat/abi.h"

#define SWEEP_TICK_PAGES 8

static volatile u64 *page_words(const struct flat_lane *l, u32 p)
{
	return (volatile u64 *)(l->ram + ((u64)p << PAGE_SHIFT));
}

static struct flat_shadow *page_shadow(const struct flat_lane *l, u32 p)
{
	return (struct flat_shadow *)l->shadow + p;
}

/* @r's low half picks among @n without a division. */
static u32 pick(u64 r, u32 n)
{
	return ((r & 0xffffffff) * n) >> 32;
}

static u64 next_random(struct flat_lane *l)
{
	u64 x = l->rng;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	l->rng = x;
	return x * 0x2545f4914f6cdd1dUL;
}

void flat_report(struct flat_lane *l, u32 p, u32 word, u64 got, u64 want)
{
	if (l->errors < FLAT_ERROR_LOG) {
		struct flat_error *e = &l->error[l->errors];

		e->page = p;
		e->word = word;
		e->got = got;
		e->want = want;
	}
	l->errors++;
}

static void check_word(struct flat_lane *l, u32 p, u32 word)
{
	u64 got = page_words(l, p)[word], want = flat_expect(l, p, page_shadow(l, p), word);

	l->accesses++;
	if (got != want)
		flat_report(l, p, word, got, want);
}

void flat_check_page(struct flat_lane *l, u32 p)
{
	for (u32 w = 0; w < FLAT_PAGE_WORDS; w++)
		check_word(l, p, w);
}

static void write_word(struct flat_lane *l, u32 p, u32 word, u64 value)
{
	page_words(l, p)[word] = value;
	l->accesses++;
	l->writes++;
}

static void diverge(struct flat_lane *l, u32 p)
{
	struct flat_shadow *s = page_shadow(l, p);
	u32 k = s->nr_dirty, word;

	if (k == 0)
		s->gen++;
	word = flat_dirty_word(p, s->gen, k);
	check_word(l, p, word);
	s->nr_dirty = k + 1;
	write_word(l, p, word, flat_dirty_value(l->seed, p, s->gen, k));
}

static void converge(struct flat_lane *l, u32 p)
{
	struct flat_shadow *s = page_shadow(l, p);
	u64 content = flat_content(l->nr_pages, l->seed, p, s->version);
	u32 n = s->nr_dirty;

	for (u32 k = 0; k < n; k++)
		check_word(l, p, flat_dirty_word(p, s->gen, k));
	s->nr_dirty = 0;
	for (u32 k = 0; k < n; k++) {
		u32 word = flat_dirty_word(p, s->gen, k);

		write_word(l, p, word, flat_word(content, word));
	}
}

static void call_vmm(struct flat_lane *l, enum flat_call call)
{
#ifdef FLAT_GUEST
	/* The VMM reads the lane from memory, so nothing may be held back in registers. */
	asm volatile("outl %0, %1" ::"a"(0), "Nd"((u16)call) : "memory");
#else
	l->call(l, call);
#endif
}

/* Gives the page another content, whole: by own stores or by a read(2) of the VMM into it. */
static void rewrite(struct flat_lane *l, u32 p, u32 version, bool by_disk)
{
	struct flat_shadow *s = page_shadow(l, p);
	u64 content = flat_content(l->nr_pages, l->seed, p, version);

	s->version = version;
	s->nr_dirty = 0;
	l->rewrites++;
	if (by_disk && l->disk && content && content <= FLAT_COMMON_CONTENTS) {
		l->call_page = p;
		l->call_id = content;
		call_vmm(l, FLAT_CALL_DISK);
		l->disk_reads++;
		return;
	}
	for (u32 w = 0; w < FLAT_PAGE_WORDS; w++)
		write_word(l, p, w, flat_word(content, w));
}

static void discard(struct flat_lane *l, u32 block, u64 r)
{
	u32 first = r & (FLAT_BLOCK_PAGES - 1), n = 1 + (r >> 6 & 31);

	if (first + n > FLAT_BLOCK_PAGES)
		n = FLAT_BLOCK_PAGES - first;
	first += block * FLAT_BLOCK_PAGES;
	for (u32 p = first; p < first + n; p++) {
		page_shadow(l, p)->version = FLAT_VERSION_ZERO;
		page_shadow(l, p)->nr_dirty = 0;
	}
	l->call_page = first;
	l->call_count = n;
	call_vmm(l, FLAT_CALL_DISCARD);
	l->discards++;
	for (u32 p = first; p < first + n; p++)
		check_word(l, p, flat_mix(r + p) & (FLAT_PAGE_WORDS - 1));
}

static u32 own_block(const struct flat_lane *l, u32 i)
{
	return ((const u32 *)l->blocks)[i % l->nr_own];
}

static void write_op(struct flat_lane *l, u64 r)
{
	u32 block = own_block(l, l->window_seen * l->window_blocks + pick(r, l->window_blocks));
	u32 p = block * FLAT_BLOCK_PAGES + (r >> 32 & (FLAT_BLOCK_PAGES - 1));
	u32 dice = r >> 38 & 4095;

	if (dice == 0) {
		/* A lone write far from the window: it breaks one page in the middle of a merged
		 * run. */
		r = next_random(l);
		p = own_block(l, pick(r, l->nr_own)) * FLAT_BLOCK_PAGES +
		    (r >> 32 & (FLAT_BLOCK_PAGES - 1));
		if (page_shadow(l, p)->nr_dirty < FLAT_DIRTY_MAX)
			diverge(l, p);
		if (r >> 63)
			converge(l, p);
	} else if (dice < 32) {
		u32 v = r >> 50 & 7;

		rewrite(l, p, v < 5 ? 0 : v < 7 ? 1 : FLAT_VERSION_ZERO, dice < 3);
		check_word(l, p, r >> 53 & (FLAT_PAGE_WORDS - 1));
	} else if (dice == 32 && l->discard) {
		discard(l, block, r >> 50);
	} else if (page_shadow(l, p)->nr_dirty < FLAT_DIRTY_MAX && (r >> 62)) {
		diverge(l, p);
	} else {
		converge(l, p);
	}
}

static void read_op(struct flat_lane *l, u64 r)
{
	u32 block = ((const u32 *)l->blocks)[pick(r, l->nr_readable)];
	u32 p = block * FLAT_BLOCK_PAGES + (r >> 32 & (FLAT_BLOCK_PAGES - 1));
	const struct flat_shadow *s = page_shadow(l, p);

	check_word(l, p, r >> 38 & (FLAT_PAGE_WORDS - 1));
	/* Random words seldom meet a dirty one, where a lost write would show. */
	if (s->nr_dirty)
		check_word(l, p, flat_dirty_word(p, s->gen, s->nr_dirty - 1));
}

/* Checks all of the pages that the window leaves, and makes most of them mergeable again. */
static void leave_window(struct flat_lane *l)
{
	u32 next = l->window; /* a tick may move it on */

	for (u32 i = 0; i < l->window_blocks; i++) {
		u32 first = own_block(l, l->window_seen * l->window_blocks + i) * FLAT_BLOCK_PAGES;

		for (u32 p = first; p < first + FLAT_BLOCK_PAGES; p++) {
			flat_check_page(l, p);
			if (flat_mix(l->rng + p) & 15)
				converge(l, p);
			/* A sweep is much longer than a round. */
			if (p % SWEEP_TICK_PAGES == 0)
				call_vmm(l, FLAT_CALL_TICK);
		}
	}
	l->window_seen = next;
}

void flat_tick(struct flat_lane *l)
{
	if (l->window != l->window_seen)
		leave_window(l);
	for (u32 i = 0; i < l->iterations_a_tick; i++) {
		u64 r = next_random(l);

		if (((r >> 44) * 1000 >> 20) < l->write_permille)
			write_op(l, next_random(l));
		else
			read_op(l, r);
	}
	l->iterations += l->iterations_a_tick;
}

#ifdef FLAT_GUEST
void flat_start(struct flat_lane *l);

/* Where the vCPU starts, with the lane in RDI and RSP set; it never returns. */
__attribute__((section(".start"), noreturn)) void flat_start(struct flat_lane *l)
{
	for (;;) {
		flat_tick(l);
		call_vmm(l, FLAT_CALL_TICK);
	}
}
#endif
