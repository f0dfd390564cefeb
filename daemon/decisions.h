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
	u64 bytes;	       /* of all its steps */
	u32 steps;
	bool acted; /* it was done, too ([policy] mode = act) */
	/* Of the last step: */
	struct policy_action action;
	enum policy_state state;
	u64 available_bytes;
	u64 guest_spare_bytes, stats_age_us;
};

/* All zero to begin with. */
struct decisions {
	struct decision kept[DECISIONS_KEPT];
	u32 nr, next; /* entries; where the next one goes */
};

/* True: it is a new entry, and not the last one going on. @d's bytes and steps are set here. */
bool decisions_add(struct decisions *all, const struct decision *d);
/* @i 0: the last. NULL: so many there are not. */
const struct decision *decisions_at(const struct decisions *all, u32 i);

#endif
