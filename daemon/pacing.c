/* SPDX-License-Identifier: MIT */
#include "daemon/pacing.h"

/* Long enough to be worth a wake-up, short enough that sockets are answered in between. */
#define SLICE_MAX_US 10000
#define SLICE_MIN_US 1000
/* Unused budget is kept for this long: over 10 s, use can exceed the budget by a fiftieth of it at
 * most. */
#define KEEP_US 200000
/* What was overspent is paid back, but a wrong account must not stop the work for good. */
#define DEBT_MAX_US 1000000

static s64 credit_max(const struct pacing *p)
{
	return MAX((s64)KEEP_US * p->permille / 1000, (s64)SLICE_MIN_US);
}

void pacing_update(struct pacing *p, u64 now_us, u64 cpu_us)
{
	if (p->started) {
		p->credit_us += (s64)((now_us - p->last_us) * p->permille / 1000);
		p->credit_us -= (s64)(cpu_us - p->last_cpu_us);
		p->credit_us = MIN(p->credit_us, credit_max(p));
		p->credit_us = MAX(p->credit_us, -(s64)DEBT_MAX_US);
	}
	p->started = true;
	p->last_us = now_us;
	p->last_cpu_us = cpu_us;
}

u64 pacing_slice_us(const struct pacing *p)
{
	return p->credit_us < SLICE_MIN_US ? 0 : MIN((u64)p->credit_us, (u64)SLICE_MAX_US);
}

u64 pacing_ready_us(const struct pacing *p)
{
	s64 missing = SLICE_MIN_US - p->credit_us;

	return missing <= 0 ? p->last_us : p->last_us + (u64)missing * 1000 / MAX(p->permille, 1u);
}
