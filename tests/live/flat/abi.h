/* SPDX-License-Identifier: MIT */
/*
 * What the flat test guest and its VMM agree on.
 *
 * The guest is one loop (guest.c) that reads and writes guest RAM and knows at every moment what
 * each word must hold. It is compiled twice: freestanding, as the code of a CPL 3 KVM guest, and
 * hosted, where a thread of the VMM runs it on the same memory. Whoever runs it is a "lane".
 *
 * What a page must hold: the canonical content of its class and version (flat_word()), except for
 * its first struct flat_shadow.nr_dirty dirty words, whose place and value follow from page,
 * generation and number (flat_dirty_word(), flat_dirty_value()). Shadows live outside the memory
 * that Ballast is given, so a fault in merging cannot bend both alike.
 *
 * Who may touch a page: RAM is dealt out in blocks of 64 pages. A block belongs to one lane, which
 * alone reads and writes it, or is read-only and read by all. So no lock is needed, and every
 * access is checked.
 *
 * How pages move: writes go to a window of blocks that the VMM advances by time. Pages in the
 * window diverge, are rewritten, zeroed, discarded; most of those that leave it get their canonical
 * content back, lie still until the window returns, and can merge, in this VM and with every other
 * VM, since classes do not depend on the seed.
 */
#ifndef BALLAST_TESTS_LIVE_FLAT_ABI_H
#define BALLAST_TESTS_LIVE_FLAT_ABI_H

#include "common/types.h"

#define FLAT_WORDS_LOG	 9
#define FLAT_PAGE_WORDS	 (1U << FLAT_WORDS_LOG)
#define FLAT_BLOCK_PAGES 64U
/* Runs of equal content between VMs are up to this many pages long. */
#define FLAT_CLASSES   2048U
#define FLAT_DIRTY_MAX 4U
#define FLAT_ERROR_LOG 8U

/* Guest physical layout. Only [FLAT_RAM_GPA, end) is given to Ballast. */
#define FLAT_PML4_GPA	 0x2000UL
#define FLAT_PDPT_GPA	 0x3000UL
#define FLAT_PD_GPA	 0x4000UL   /* FLAT_MAX_GIB directories of one page each */
#define FLAT_LANES_GPA	 0x20000UL  /* struct flat_lane[] */
#define FLAT_STACK_GPA	 0xf0000UL  /* top; each further lane FLAT_STACK_BYTES lower */
#define FLAT_CODE_GPA	 0x100000UL /* guest.ld has it too */
#define FLAT_HEAP_GPA	 0x200000UL /* shadows, then block lists */
#define FLAT_CTL_BYTES	 0x2000000UL
#define FLAT_RAM_GPA	 0x40000000UL
#define FLAT_MAX_GIB	 3 /* under the hole at the end of 4 GiB where KVM wants its TSS */
#define FLAT_MAX_PAGES	 (((u64)FLAT_MAX_GIB << 18) - (FLAT_RAM_GPA >> PAGE_SHIFT))

#define FLAT_STACK_BYTES 0x4000UL

/* OUT to these leaves the guest; the arguments are in the lane's call_ fields. */
enum flat_call {
	FLAT_CALL_TICK = 0x80, /* one round done */
	FLAT_CALL_DISCARD =
		0x84, /* pages [call_page, +call_count) are given up and must read as zeros */
	FLAT_CALL_DISK =
		0x88, /* fill page call_page with content call_id by read(2), as a disk would */
};

/* Version of a page's content. 0 and 1 are canonical contents of its class; ZERO is all zeros. */
enum {
	FLAT_VERSION_ZERO = 2,
};

struct flat_shadow {
	u32 gen; /* counts divergences: an old dirty value is never right again */
	u8 version;
	u8 nr_dirty;
	u16 pad;
};

struct flat_error {
	u64 page, word, got, want;
};

struct flat_lane {
	/* Set before the lane starts. Addresses are as the lane sees them: physical or the VMM's
	 * own. */
	u64 ram;    /* page 0 */
	u64 shadow; /* struct flat_shadow[nr_pages] */
	u64 blocks; /* u32[nr_readable]: the lane's own blocks, then the read-only ones */
	u32 nr_pages, nr_own, nr_readable, window_blocks;
	u32 iterations_a_tick, write_permille;
	u32 discard, disk; /* may make these calls */
	u64 seed;
	u64 rng;
	void (*call)(struct flat_lane *l, enum flat_call call); /* hosted lanes only */
	void *call_arg;

	/* Set by the VMM between rounds. */
	u32 window;

	/* Set by the lane. */
	u32 window_seen;
	u64 call_page, call_count, call_id;
	u64 iterations, accesses, writes, rewrites, discards, disk_reads;
	u64 errors;
	struct flat_error error[FLAT_ERROR_LOG]; /* the first ones */
};

static inline u64 flat_mix(u64 x)
{
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93UL;
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93UL;
	return x ^ x >> 32;
}

/*
 * Names the content of page @p in @version; 0 is all zeros. Of every eight pages' worth of RAM,
 * four are runs of FLAT_CLASSES pages common to all VMs, two hold the same contents scattered, one
 * is unlike anything else, and one is zero until written.
 */
static inline u64 flat_content(u32 nr_pages, u64 seed, u32 p, u32 version)
{
	u32 eighth = nr_pages >> 3;

	if (version == FLAT_VERSION_ZERO)
		return 0;
	if (p < 4 * eighth)
		return 1 + (p & (FLAT_CLASSES - 1)) + version * FLAT_CLASSES;
	if (p < 6 * eighth)
		return 1 + (flat_mix(p) & (FLAT_CLASSES - 1)) + version * FLAT_CLASSES;
	if (p < 7 * eighth)
		return 1UL << 63 | seed << 32 | (u64)p << 1 | version;
	return version ? 1 + (p & (FLAT_CLASSES - 1)) + FLAT_CLASSES : 0;
}

/* Contents 1 to this are common to all VMs. */
#define FLAT_COMMON_CONTENTS (2 * FLAT_CLASSES)

static inline u64 flat_word(u64 content, u32 word)
{
	u64 v = content * 0x9e3779b97f4a7c15UL + (word + 1) * 0xbf58476d1ce4e5b9UL;

	return content ? v ^ v >> 29 : 0;
}

static inline u32 flat_dirty_word(u32 p, u32 gen, u32 k)
{
	return (flat_mix((u64)p << 32 | gen) >> (k * FLAT_WORDS_LOG)) & (FLAT_PAGE_WORDS - 1);
}

static inline u64 flat_dirty_value(u64 seed, u32 p, u32 gen, u32 k)
{
	return flat_mix(((u64)p << 32 | gen) ^ seed << 56) + k;
}

/* What @word of page @p must hold. A later dirty word wins over an earlier one in the same place.
 */
static inline u64 flat_expect(const struct flat_lane *l, u32 p, const struct flat_shadow *s,
			      u32 word)
{
	for (u32 k = s->nr_dirty; k-- > 0;)
		if (flat_dirty_word(p, s->gen, k) == word)
			return flat_dirty_value(l->seed, p, s->gen, k);
	return flat_word(flat_content(l->nr_pages, l->seed, p, s->version), word);
}

/* One round: iterations_a_tick accesses and, when the window moved, the sweep over the pages that
 * leave it. */
void flat_tick(struct flat_lane *l);
/* Reads every word of page @p; wrong ones are counted in the lane. */
void flat_check_page(struct flat_lane *l, u32 p);
void flat_report(struct flat_lane *l, u32 p, u32 word, u64 got, u64 want);

#endif
