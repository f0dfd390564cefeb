/* SPDX-License-Identifier: MIT */
/*
 * What the policy decided about one VM, the last few times, with what led to it: the memory behind
 * `ballastctl explain`. Decisions of the same kind that follow each other are one entry that grows.
 */
#ifndef BALLAST_DAEMON_DECISIONS_H
#define BALLAST_DAEMON_DECISIONS_H

#include "tiering/policy.h"

#define DECISIONS_KEPT 8
/* A step that has nothing to say now and then does not end an entry. */
#define DECISIONS_GAP_US 10000000

struct decision {
	u64 first_us, last_us; /* of the monotonic clock */
	/* Of all its steps. A balloon follows slowly, and each step asks for what is missing then:
	 * of it this is how far the target has moved, and not the sum. */
	u64 bytes;
	u32 steps;
	bool acted; /* it was done, too ([policy] mode = act) */
	/* Of the last step: */
	struct policy_action action;
	u64 taken_bytes; /* of the VM by this mechanism, before the step */
	enum policy_state state;
	u64 available_bytes;
	u64 guest_spare_bytes, stats_age_us;
	u64 begun_bytes; /* taken_bytes of the first step */
};

/* All zero to begin with. */
struct decisions {
	struct decision kept[DECISIONS_KEPT];
	u32 nr, next; /* entries; where the next one goes */
};

/* True: it is a new entry, and not the last one going on. @d's bytes and steps are set here;
 * *ret_more: bytes that this adds to what was decided before. */
bool decisions_add(struct decisions *all, const struct decision *d, u64 *ret_more);
/* @i 0: the last. NULL: so many there are not. */
const struct decision *decisions_at(const struct decisions *all, u32 i);

#endif
