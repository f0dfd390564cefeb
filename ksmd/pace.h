/* SPDX-License-Identifier: MIT */
/*
 * How often what is looked at: pure functions on plain structs.
 *
 * Two things adapt. A VM's interval between passes: short while looking pays (a new VM, new sharing
 * found), long when it does not. And for each window of its memory, how many passes leave it out:
 * a window where nothing is written is looked at ever more rarely, and so is one where the same
 * pages are written all the time, since each look write-protects them again and costs the guest a
 * fault a page (0.64 us).
 */
#ifndef BALLAST_KSMD_PACE_H
#define BALLAST_KSMD_PACE_H

#include "common/types.h"

struct pace_limits {
	u64 interval_us;      /* between passes, when looking does not pay */
	u64 idle_interval_us; /* between two looks at a window that nobody writes */
	bool pressure;	      /* the host is short of memory: find what there is */
	u32 nr_windows;	      /* of all VMs */
};

/* A new VM's first interval, and the shortest: pages that outlive it are mostly file content, and
 * what does not is found out by the agent's comparison. */
#define PACE_INTERVAL_MIN_US 20000

/* What a pass over a VM did. */
struct pace_pass {
	u64 hashed; /* pages */
	u64 found;  /* of them, pages that are to be merged */
};

u64 pace_first_interval(const struct pace_limits *l);
/* The interval after a pass that was @interval_us behind the one before. */
u64 pace_next_interval(const struct pace_limits *l, u64 interval_us, const struct pace_pass *p);

struct pace_window {
	u8 quiet;	 /* looks in a row that found nothing written */
	u8 hot;		 /* looks in a row that found mostly the same pages written again */
	u8 stale;	 /* looks at broken pages in a row that found nothing new in them */
	u8 looks;	 /* in all, modulo 256 */
	u16 skip;	 /* passes that leave it out */
	u16 skip_broken; /* looks that leave its broken pages out */
};

/* What a look at a window saw. */
struct pace_look {
	u32 pages;
	u32 written;   /* since the last look */
	u32 rewritten; /* of them, pages that were written before the last look, too */
	u32 waiting;   /* pages that are still to be hashed */
	bool broken;   /* broken pages that may merge again once they are known to be still */
	u64 cost_us;   /* CPU time of the kernel's answers */
};

/* Shall this pass look at the window? Counts the passes that do not. */
bool pace_window_due(struct pace_window *w);
/* After a look. Returns true when a window that was long quiet is written to a good part: what was
 * seen of its VM's other windows is old, too. */
bool pace_window_looked(struct pace_window *w, const struct pace_limits *l,
			const struct pace_look *k);
/* The next pass looks at it. */
void pace_window_rouse(struct pace_window *w);

/* Shall this look include the window's broken pages (which nobody watches for writes)? */
bool pace_broken_due(struct pace_window *w);
void pace_broken_looked(struct pace_window *w, const struct pace_limits *l, bool news);
/* A page of the window broke: it is worth a look soon. */
void pace_broken_rouse(struct pace_window *w);
/* Shall this look try again what could not be merged (pinned pages and the like)? */
bool pace_held_due(const struct pace_window *w);

#endif
