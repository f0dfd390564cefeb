/* SPDX-License-Identifier: MIT */
/*
 * The memory checker: knows at any time what every word of its memory must be, and looks.
 *
 * A page's content is a function of its index and of how often it was written (its version):
 *
 *   version % 4   content
 *        0        the base: zero (1 page in 8), alike in many pages of this guest (4 in 8),
 *                 or alike in all guests at the same index (3 in 8)
 *        1        the base with one word changed: one store breaks the sharing
 *        2        the base again: the store undone, the page can merge again
 *        3        a page like no other
 *
 * Reads go everywhere. Writes go into a window of an eighth of the memory, each advancing a page by
 * one version; every few seconds the window's pages are brought back to their base and another
 * window is chosen. So at any time most of the memory is at rest and can merge, and each phase
 * breaks what merged and lets it converge again.
 *
 * Once a second: "CHECK iter=N writes=N errors=N stall_ms=N stall_max_ms=N", iter being checked
 * accesses (one word each), stall_ms the longest time between two accesses since the last such
 * line, stall_max_ms since the start. An error prints one line with the address and both values
 * (the first few errors only). With ballast.check_seconds=N it ends after N seconds by checking
 * every word: "CHECK-DONE ... errors=N".
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "common/clock.h"
#include "tests/guest/guest.h"

#define ERRORS_PRINTED 5
#define WINDOW_PARTS   8
#define WRITE_ONE_IN   8
/* A clock read costs a vCPU exit in some guests; 32 accesses take microseconds. */
#define ACCESSES_A_TICK 32

struct check {
	u64 seed, nr_pages;
	u64 *mem;
	u32 *version;
	u64 window, window_pages;
	u64 random;
	u64 iter, writes, errors;
	u64 tick_us, stall_us, stall_max_us;
};

static u64 rnd(struct check *c, u64 below)
{
	c->random += 0x9e3779b97f4a7c15;
	return (u64)(((unsigned __int128)content_mix(c->random) * below) >> 64);
}

static u64 base_key(u64 page)
{
	if (page % 8 == 0)
		return CONTENT_ZERO;
	return page % 8 < 5 ? 1 + page % 61 : 1000 + page;
}

/* Unlike any other page's, in this guest or another, at this version or another. */
static u64 unique_key(const struct check *c, u64 page, u32 version)
{
	return ((c->seed + 1) << 48) ^ ((u64)version << 24) ^ page;
}

static u32 changed_word(u64 page, u32 version)
{
	return content_mix(page ^ ((u64)version << 32)) % PAGE_WORDS;
}

static u64 expected(const struct check *c, u64 page, u32 word)
{
	u32 v = c->version[page];

	if (v % 4 == 3 || (v % 4 == 1 && word == changed_word(page, v)))
		return content_word(unique_key(c, page, v), word);
	return content_word(base_key(page), word);
}

static void check_word(struct check *c, u64 page, u32 word)
{
	volatile u64 *at = c->mem + page * PAGE_WORDS + word;
	u64 got = *at, want = expected(c, page, word);

	c->iter++;
	if (got == want)
		return;
	if (c->errors++ < ERRORS_PRINTED)
		printf("CHECK-ERROR page=%" PRIu64 " word=%u addr=%p version=%u got=%#" PRIx64
		       " want=%#" PRIx64 " again=%#" PRIx64 "\n",
		       page, word, (void *)at, c->version[page], got, want, *at);
}

/* Advances the page by one version, writing no more of it than that version changes. */
static void write_page(struct check *c, u64 page)
{
	u64 *p = c->mem + page * PAGE_WORDS;
	u32 v = ++c->version[page], word;

	switch (v % 4) {
	case 0:
		content_fill(p, base_key(page));
		break;
	case 1:
	case 2:
		word = changed_word(page, v % 4 == 1 ? v : v - 1);
		p[word] = expected(c, page, word);
		break;
	case 3:
		content_fill(p, unique_key(c, page, v));
		break;
	}
	c->writes++;
}

static void tick(struct check *c)
{
	u64 now = now_us(), gap = now - c->tick_us;

	c->tick_us = now;
	c->stall_us = MAX(c->stall_us, gap);
	c->stall_max_us = MAX(c->stall_max_us, gap);
}

static void new_window(struct check *c)
{
	for (u64 i = 0; i < c->window_pages; i++) {
		while (c->version[c->window + i] % 4)
			write_page(c, c->window + i);
		tick(c);
	}
	c->window = rnd(c, WINDOW_PARTS) * c->window_pages;
}

static void access_some(struct check *c)
{
	for (int i = 0; i < ACCESSES_A_TICK; i++) {
		if (rnd(c, WRITE_ONE_IN) == 0)
			write_page(c, c->window + rnd(c, c->window_pages));
		else
			check_word(c, rnd(c, c->nr_pages), (u32)rnd(c, PAGE_WORDS));
	}
	tick(c);
}

static void print(struct check *c, const char *what)
{
	printf("%s iter=%" PRIu64 " writes=%" PRIu64 " errors=%" PRIu64 " stall_ms=%" PRIu64
	       " stall_max_ms=%" PRIu64 "\n",
	       what, c->iter, c->writes, c->errors, c->stall_us / 1000, c->stall_max_us / 1000);
	c->stall_us = 0;
	c->tick_us = now_us(); /* a console that nobody reads is no stall of memory */
}

int main(void)
{
	u64 seconds = guest_param("ballast.check_seconds", 0);
	u64 phase_us = guest_param("ballast.check_phase_ms", 3000) * 1000;
	struct check c = { .seed = guest_param("ballast.seed", 0) };
	u64 start, next_print, next_phase;

	setvbuf(stdout, NULL, _IOLBF, 0);
	c.window_pages = MIB(guest_param("ballast.check_mib", 64)) / PAGE_BYTES / WINDOW_PARTS;
	c.nr_pages = c.window_pages * WINDOW_PARTS;
	c.random = content_mix(c.seed);
	c.mem = guest_alloc(c.nr_pages * PAGE_BYTES);
	c.version = guest_alloc(c.nr_pages * sizeof(*c.version));
	for (u64 i = 0; i < c.nr_pages; i++)
		content_fill(c.mem + i * PAGE_WORDS, base_key(i));
	puts("GUEST-READY");

	start = c.tick_us = now_us();
	next_print = start + 1000000;
	next_phase = start + phase_us;
	while (!seconds || c.tick_us - start < seconds * 1000000) {
		access_some(&c);
		if (c.tick_us >= next_phase) {
			new_window(&c);
			next_phase = c.tick_us + phase_us;
		}
		if (c.tick_us >= next_print) {
			print(&c, "CHECK");
			next_print += 1000000;
		}
	}
	for (u64 i = 0; i < c.nr_pages; i++) {
		for (u32 w = 0; w < PAGE_WORDS; w++)
			check_word(&c, i, w);
	}
	print(&c, "CHECK-DONE");
	return c.errors ? 1 : 0;
}
