/* SPDX-License-Identifier: MIT */
/*
 * A VM's working set by statistical sampling: of some pages that were taken out of it at random,
 * how many did it come back for within a period? Pure.
 *
 * Source: C. Waldspurger, "Memory Resource Management in VMware ESX Server", OSDI 2002,
 * section 5.3: a fast and a slow average, the larger of which counts, so that a pause is not taken
 * for idleness. Here a jump counts at once, while its period still goes on; and memory that could
 * be no sample is in use: what came since the period began, what the scan has not found yet, and
 * what is the VMM's own.
 */
#ifndef BALLAST_DAEMON_WORKING_SET_H
#define BALLAST_DAEMON_WORKING_SET_H

#include "common/types.h"

/* Fewer samples say nothing: the standard error of 32 is 9% of the memory. */
#define WORKING_SET_SAMPLES_MIN 32

/* All zero to begin with. */
struct working_set {
	u32 periods; /* that were taken in */
	double fast, slow;
	double now;	/* of the period that goes on, so far */
	u64 base_bytes; /* that the samples stand for */
};

/* A period has ended, in which @faults of @sampled pages came back. */
void working_set_add(struct working_set *w, u64 sampled, u64 faults);
/* A period begins, its samples being taken from @bytes. */
void working_set_begin(struct working_set *w, u64 bytes);
/* Of the samples of the period that goes on, @faults have come back by now. */
void working_set_note(struct working_set *w, u64 sampled, u64 faults);
/* Of @resident bytes; UINT64_MAX: not known yet. */
u64 working_set_bytes(const struct working_set *w, u64 resident);

#endif
