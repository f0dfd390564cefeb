/* SPDX-License-Identifier: MIT */
#include "daemon/working_set.h"

/* What a new period counts in the averages. The slow one has forgotten two thirds of a burst after
 * four periods. */
#define FAST 0.5
#define SLOW 0.25
/* More than samples are off by: four standard errors of a hundred. */
#define JUMP 0.2

static double part_of(u64 sampled, u64 faults)
{
	return (double)MIN(faults, sampled) / (double)sampled;
}

void working_set_begin(struct working_set *w, u64 bytes)
{
	w->base_bytes = bytes;
	w->now = 0;
}

void working_set_note(struct working_set *w, u64 sampled, u64 faults)
{
	if (sampled >= WORKING_SET_SAMPLES_MIN)
		w->now = part_of(sampled, faults);
}

void working_set_add(struct working_set *w, u64 sampled, u64 faults)
{
	double part;

	if (sampled < WORKING_SET_SAMPLES_MIN)
		return;
	part = part_of(sampled, faults);
	if (w->periods++ == 0)
		w->fast = w->slow = part;
	w->fast += part > w->fast + JUMP ? part - w->fast : FAST * (part - w->fast);
	w->slow += SLOW * (part - w->slow);
}

u64 working_set_bytes(const struct working_set *w, u64 resident)
{
	u64 base = MIN(w->base_bytes, resident);
	double part = MAX(w->fast, w->slow);

	if (w->now > part + JUMP)
		part = w->now;

	if (!w->periods)
		return UINT64_MAX;
	return (u64)(part * (double)base) + (resident - base);
}
