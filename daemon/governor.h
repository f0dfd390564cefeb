/* SPDX-License-Identifier: MIT */
/*
 * The policy at work ([policy] mode): once an interval it is asked what to do (plan.h), the answer
 * is kept for each VM with what led to it (decisions.h), and with mode = act it is done:
 *
 *   sharing   the engine behaves as when the host is short of memory: it looks everywhere, splits
 *             whatever saves, and has the CPU of [scan] cpu_percent_pressure
 *   balloon   becomes the wish that the VM's balloon controller carries out (balloons.h). It knows
 *             the guest: its floor, its pressure, what it can spare (invariant 10)
 *   compression  pages leave the guest (engine_page_out()), as many as free so much
 *   swap      the kernel is asked to swap pages out (engine_swap_out())
 *
 * While it acts, samples of each VM tell how much of its memory it uses (working_set.h).
 *
 * An administrator's wish (`ballastctl balloon`) is never overruled. When acting ends (a reload, an
 * orderly stop), all that was taken is given back.
 */
#ifndef BALLAST_DAEMON_GOVERNOR_H
#define BALLAST_DAEMON_GOVERNOR_H

#include "daemon/plan.h"

struct core;
struct governor;

int governor_start(struct core *c);
/* Memory is going fast: the next step comes sooner, a tenth of a second after the last at most. */
void governor_hurry(struct core *c);
void governor_reload(struct core *c);
void governor_stop(struct core *c); /* balloons are not touched: balloons_give_back() */

/* What it would do now. With @ret, @ret_view is the caller's to free. Dry: nothing is remembered.
 */
int governor_plan(struct core *c, struct view *ret_view, struct plan *ret);
/* What it decided last; all zero: nothing. */
struct policy_view governor_view(const struct core *c);
/* The policy wants sharing to be found at once. */
bool governor_hurries(const struct core *c);

#endif
