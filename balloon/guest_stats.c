/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include "balloon/guest_stats.h"
#include "balloon/qmp_session.h"

static const char *const names[GUEST_NR_STATS] = {
	[GUEST_STAT_FREE] = "stat-free-memory",
	[GUEST_STAT_AVAILABLE] = "stat-available-memory",
	[GUEST_STAT_TOTAL] = "stat-total-memory",
	[GUEST_STAT_CACHES] = "stat-disk-caches",
	[GUEST_STAT_SWAP_IN] = "stat-swap-in",
	[GUEST_STAT_SWAP_OUT] = "stat-swap-out",
	[GUEST_STAT_MAJOR_FAULTS] = "stat-major-faults",
	[GUEST_STAT_MINOR_FAULTS] = "stat-minor-faults",
	[GUEST_STAT_OOM_KILLS] = "stat-oom-kills",
	[GUEST_STAT_ALLOC_STALLS] = "stat-alloc-stalls",
	[GUEST_STAT_PSI_TOTAL_US] = "stat-ballast-psi-total-us",
};

/* More than any machine has; sums of such values do not overflow. */
#define VALUE_MAX (1ULL << 56)

const char *guest_stat_name(enum guest_stat stat)
{
	return names[stat];
}

static void drop(struct guest_stats_reply *r, enum guest_stat stat)
{
	r->present &= ~(1U << stat);
	r->value[stat] = 0;
}

static bool has(const struct guest_stats_reply *r, enum guest_stat stat)
{
	return r->present & (1U << stat);
}

/* A part that is more than the whole is no statement about memory. */
static void drop_impossible(struct guest_stats_reply *r)
{
	static const enum guest_stat parts[] = { GUEST_STAT_FREE, GUEST_STAT_AVAILABLE,
						 GUEST_STAT_CACHES };

	for (u32 i = 0; i < ARRAY_SIZE(parts); i++)
		if (has(r, GUEST_STAT_TOTAL) && has(r, parts[i]) &&
		    r->value[parts[i]] > r->value[GUEST_STAT_TOTAL])
			drop(r, parts[i]);
}

int guest_stats_parse(const json_t *value, struct guest_stats_reply *ret)
{
	const json_t *stats = json_object_get(value, "stats");
	struct guest_stats_reply r = { 0 };
	int e;

	if (!json_is_object(stats) ||
	    qmp_u64(json_object_get(value, "last-update"), &r.last_update_s) < 0 ||
	    r.last_update_s > VALUE_MAX)
		return -EPROTO;
	for (u32 i = 0; i < GUEST_NR_STATS; i++) {
		u64 v;

		e = qmp_u64(json_object_get(stats, names[i]), &v);
		if (e == -EPROTO)
			return e;
		if (e == 0 && v < VALUE_MAX) {
			r.value[i] = v;
			r.present |= 1U << i;
		}
	}
	drop_impossible(&r);
	*ret = r;
	return 0;
}

/* Growth of a counter; 0 if either is not known, or if it has started anew (the guest did). */
static u64 grown(const struct guest_stats_reply *old, const struct guest_stats_reply *new,
		 enum guest_stat stat)
{
	if (!has(old, stat) || !has(new, stat) || new->value[stat] < old->value[stat])
		return 0;
	return new->value[stat] - old->value[stat];
}

static u64 per_second(u64 n, u64 us)
{
	return (u64)((__uint128_t)n * 1000000 / us);
}

static void update_rates(struct guest_stats *s, const struct guest_stats_reply *new, u64 taken_us)
{
	const struct guest_stats_reply *old = &s->last;
	/* Stamps are whole seconds; less than one would make much of little. */
	u64 us = MAX(taken_us - MIN(s->taken_us, taken_us), 1000000);

	s->has_rates = s->taken_us != 0;
	if (!s->has_rates)
		return;
	s->swap_in_bytes_per_s = per_second(grown(old, new, GUEST_STAT_SWAP_IN), us);
	s->major_faults_per_s = per_second(grown(old, new, GUEST_STAT_MAJOR_FAULTS), us);
	s->alloc_stalls_per_s = per_second(grown(old, new, GUEST_STAT_ALLOC_STALLS), us);
	s->oom_kills = grown(old, new, GUEST_STAT_OOM_KILLS);
	s->has_psi = has(old, GUEST_STAT_PSI_TOTAL_US) && has(new, GUEST_STAT_PSI_TOTAL_US);
	s->psi_permille = (u32)MIN(per_second(grown(old, new, GUEST_STAT_PSI_TOTAL_US), us) / 1000,
				   (u64)1000);
}

/* Every kernel has faults from its first second on, and no other counter grows as surely. */
static bool began_anew(const struct guest_stats_reply *old, const struct guest_stats_reply *new)
{
	return has(old, GUEST_STAT_MINOR_FAULTS) && has(new, GUEST_STAT_MINOR_FAULTS) &&
	       new->value[GUEST_STAT_MINOR_FAULTS] < old->value[GUEST_STAT_MINOR_FAULTS];
}

bool guest_stats_update(struct guest_stats *s, const struct guest_stats_reply *reply, u64 now_us,
			u64 wall_s)
{
	u64 age_us, before_us = s->looked_us;

	s->looked_us = now_us;
	if (!reply->last_update_s || reply->last_update_s == s->last.last_update_s)
		return false;
	/* Whole seconds: an answer of just now may seem a second old. */
	age_us = wall_s > reply->last_update_s ? (wall_s - reply->last_update_s) * 1000000 : 0;
	if (before_us) /* it was not there at the last look */
		age_us = MIN(age_us, now_us - MIN(before_us, now_us));
	age_us = MIN(age_us, now_us - 1); /* 0 would mean never */
	if (began_anew(&s->last, reply))
		s->nr_restarts++;
	update_rates(s, reply, now_us - age_us);
	s->last = *reply;
	s->taken_us = now_us - age_us;
	return true;
}

void guest_stats_restart(struct guest_stats *s)
{
	u64 last_update_s = s->last.last_update_s, looked_us = s->looked_us;

	*s = (struct guest_stats){ .looked_us = looked_us, .nr_restarts = s->nr_restarts };
	s->last.last_update_s = last_update_s;
}

u64 guest_stats_age_us(const struct guest_stats *s, u64 now_us)
{
	return s->taken_us ? now_us - MIN(s->taken_us, now_us) : UINT64_MAX;
}
