/* SPDX-License-Identifier: MIT */
/*
 * Keeps a CPU budget: a bucket of CPU time that fills at the budget's rate and is emptied by what
 * is really used, by the daemon and by its agents. Pure: the caller brings the clocks.
 */
#ifndef BALLAST_DAEMON_PACING_H
#define BALLAST_DAEMON_PACING_H

#include "common/types.h"

struct pacing {
	u32 permille;  /* of one core */
	s64 credit_us; /* may be negative: spent ahead */
	u64 last_us, last_cpu_us;
	bool started;
};

/* @now_us: monotonic; @cpu_us: all CPU time used so far, never falling. */
void pacing_update(struct pacing *p, u64 now_us, u64 cpu_us);

/* CPU time that may be used now; 0: wait until pacing_ready_us(). */
u64 pacing_slice_us(const struct pacing *p);
u64 pacing_ready_us(const struct pacing *p);

#endif
