/* SPDX-License-Identifier: MIT */
#include "daemon/working_set.h"

/* What a new period counts in the averages. */
#define FAST 0.5
#define SLOW 0.125

void working_set_add(struct working_set *w, u64 sampled, u64 faults)
{
	double part;

	if (sampled < WORKING_SET_SAMPLES_MIN)
		return;
	part = (double)MIN(faults, sampled) / (double)sampled;
	if (w->periods++ == 0)
		w->fast = w->slow = part;
	w->fast += FAST * (part - w->fast);
	w->slow += SLOW * (part - w->slow);
}

u64 working_set_bytes(const struct working_set *w, u64 resident)
{
	if (!w->periods)
		return UINT64_MAX;
	return (u64)(MAX(w->fast, w->slow) * (double)resident);
}
