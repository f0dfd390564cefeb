/* SPDX-License-Identifier: MIT */
#include "daemon/decisions.h"

static bool same_kind(const struct decision *x, const struct decision *y)
{
	const struct policy_action *a = &x->action, *b = &y->action;

	return a->take == b->take && a->mechanism == b->mechanism && a->reason == b->reason &&
	       x->acted == y->acted;
}

const struct decision *decisions_at(const struct decisions *all, u32 i)
{
	if (i >= all->nr)
		return NULL;
	return &all->kept[(all->next + DECISIONS_KEPT - 1 - i) % DECISIONS_KEPT];
}

/* How far a balloon's target has moved since the first step. */
static u64 moved(const struct decision *d, u64 begun)
{
	u64 goal = d->action.take ? d->taken_bytes + d->action.bytes
				  : d->taken_bytes - MIN(d->taken_bytes, d->action.bytes);

	if (d->action.take)
		return goal > begun ? goal - begun : 0;
	return begun > goal ? begun - goal : 0;
}

bool decisions_add(struct decisions *all, const struct decision *d, u64 *ret_more)
{
	struct decision *to = &all->kept[all->next], fresh = *d;

	fresh.bytes = d->action.bytes;
	fresh.steps = 1;
	fresh.first_us = d->last_us;
	fresh.begun_bytes = d->taken_bytes;
	*ret_more = d->action.bytes;
	/* A step may decide two things of a VM (share and balloon): each goes on for itself. */
	for (u32 i = 0; i < all->nr; i++) {
		struct decision *old =
			&all->kept[(all->next + DECISIONS_KEPT - 1 - i) % DECISIONS_KEPT];

		if (!same_kind(old, d))
			continue;
		if (d->last_us - old->last_us > DECISIONS_GAP_US)
			break;
		fresh.begun_bytes = old->begun_bytes;
		fresh.bytes = d->action.mechanism == POLICY_BALLOON
				      ? MAX(old->bytes, moved(d, old->begun_bytes))
				      : old->bytes + d->action.bytes;
		*ret_more = fresh.bytes - old->bytes;
		fresh.steps += old->steps;
		fresh.first_us = old->first_us;
		*old = fresh;
		return false;
	}
	*to = fresh;
	all->next = (all->next + 1) % DECISIONS_KEPT;
	all->nr = MIN(all->nr + 1, (u32)DECISIONS_KEPT);
	return true;
}
