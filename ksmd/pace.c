/* SPDX-License-Identifier: MIT */
#include "ksmd/pace.h"

/* A pass pays when it merges one of so many pages that it hashed, and this many at least. */
#define PAYS_SHARE 16
#define PAYS_PAGES 64
/* A window is hot when this share of it is written again and again; left out for up to 7 passes. */
#define HOT_SHARE 16
#define HOT_MAX	  3
/* Something happens in a window that was left out for 2^3 passes or more, when this share of it is
 * written. */
#define AWAKE_QUIET 4
#define AWAKE_SHARE 64
/* Broken pages: looked at after 4 looks at their window, later ones after up to 64. */
#define BROKEN_FIRST 2
#define BROKEN_MAX   6
#define BROKEN_STALE 2
#define HELD_LOOKS   32
/* Quiet windows are left out for a thousand times what looking at all of them costs, so that it
 * takes a thousandth of a core, whatever there is of them: for idle_interval, and where they are
 * dear (large hosts, a mapping a page) for up to four times as long. Only once AWAKE_QUIET looks
 * found nothing: a guest that only paused is soon busy again. */
#define IDLE_SHARE  1000
#define IDLE_LONGER 4

u64 pace_first_interval(const struct pace_limits *l)
{
	return MIN(l->interval_us, (u64)PACE_INTERVAL_MIN_US);
}

u64 pace_next_interval(const struct pace_limits *l, u64 interval_us, const struct pace_pass *p)
{
	u64 longest = l->pressure ? l->interval_us / 4 : l->interval_us, next;

	if (p->found >= PAYS_PAGES && p->found * PAYS_SHARE >= p->hashed)
		next = interval_us / 2;
	else
		next = interval_us * 2;
	next = MAX(next, (u64)PACE_INTERVAL_MIN_US);
	return MIN(next, MAX(longest, (u64)PACE_INTERVAL_MIN_US));
}

bool pace_window_due(struct pace_window *w)
{
	if (!w->skip)
		return true;
	w->skip--;
	return false;
}

static u64 idle_passes(const struct pace_limits *l)
{
	return l->idle_interval_us / MAX(l->interval_us, (u64)1);
}

/* Passes that keep quiet windows within their share of a core, if they all cost as much. */
static u64 affordable_passes(const struct pace_limits *l, const struct pace_look *k)
{
	return k->cost_us * l->nr_windows * IDLE_SHARE / MAX(l->interval_us, (u64)1);
}

bool pace_window_looked(struct pace_window *w, const struct pace_limits *l,
			const struct pace_look *k)
{
	bool awake = w->quiet >= AWAKE_QUIET && k->written * AWAKE_SHARE >= k->pages;
	u64 passes;

	w->looks++;
	/* Broken pages are looked at twice at least before the window may be left alone. */
	if (k->written || k->waiting || (k->broken && w->stale < BROKEN_STALE)) {
		w->quiet = 0;
		w->hot = k->rewritten * HOT_SHARE >= k->pages ? MIN(w->hot + 1, HOT_MAX) : 0;
		w->skip = (u16)((1u << w->hot) - 1);
		return awake;
	}
	w->hot = 0;
	w->quiet = (u8)MIN(w->quiet + 1, 15);
	passes = MIN((1u << w->quiet) / 2, idle_passes(l));
	if (w->quiet >= AWAKE_QUIET)
		passes = MAX(passes, MIN(affordable_passes(l, k), IDLE_LONGER * idle_passes(l)));
	/* Under pressure all is looked at in every pass: what the host needs may be anywhere. */
	w->skip = l->pressure ? 0 : (u16)MIN(passes, (u64)UINT16_MAX);
	return false;
}

void pace_window_rouse(struct pace_window *w)
{
	w->quiet = w->hot = 0;
	w->skip = 0;
}

bool pace_broken_due(struct pace_window *w)
{
	if (!w->skip_broken)
		return true;
	w->skip_broken--;
	return false;
}

void pace_broken_looked(struct pace_window *w, const struct pace_limits *l, bool news)
{
	w->stale = news || l->pressure ? 0 : (u8)MIN(w->stale + 1, BROKEN_MAX - BROKEN_FIRST);
	w->skip_broken = (u16)((1u << (BROKEN_FIRST + w->stale)) - 1);
}

void pace_broken_rouse(struct pace_window *w)
{
	w->stale = 0;
	w->skip_broken = MIN(w->skip_broken, (u16)((1u << BROKEN_FIRST) - 1));
}

bool pace_held_due(const struct pace_window *w)
{
	return w->looks % HELD_LOOKS == HELD_LOOKS - 1;
}
