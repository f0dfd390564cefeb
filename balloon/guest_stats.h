/* SPDX-License-Identifier: MIT */
/*
 * What a guest says of its memory: the statistics of virtio-balloon (virtio 1.2, 5.5.6.3) as QEMU
 * hands them out ("guest-stats" of the device, docs/interop/virtio-balloon-stats.rst). Pure: no
 * socket, no clock.
 *
 * The guest is believed about itself alone, and no more than fits: what is not supported is absent
 * (QEMU says -1, which may arrive as 2^64-1), and so is what cannot be.
 *
 * Age. QEMU stamps an answer with the host's wall clock in whole seconds ("last-update", 0: the
 * guest has never answered). A wall clock jumps, so its word is only taken for what it can be: a
 * new stamp means an answer since the last look, no older than that look; from there on the age is
 * counted on the caller's monotonic clock.
 */
#ifndef BALLAST_BALLOON_GUEST_STATS_H
#define BALLAST_BALLOON_GUEST_STATS_H

#include <jansson.h>
#include "common/types.h"

enum guest_stat {
	GUEST_STAT_FREE,      /* bytes: unused */
	GUEST_STAT_AVAILABLE, /* bytes: MemAvailable, what it can use without swapping */
	GUEST_STAT_TOTAL,     /* bytes: MemTotal, what its kernel has; the balloon is not in it */
	GUEST_STAT_CACHES,    /* bytes: page cache that can be dropped */
	GUEST_STAT_SWAP_IN,   /* bytes, since its boot */
	GUEST_STAT_SWAP_OUT,  /* bytes, since its boot */
	GUEST_STAT_MAJOR_FAULTS, /* number, since its boot */
	GUEST_STAT_MINOR_FAULTS, /* number, since its boot */
	GUEST_STAT_OOM_KILLS,	 /* number, since its boot; Linux 6.12 and QEMU 9.1 */
	GUEST_STAT_ALLOC_STALLS, /* number, since its boot; the same */
	GUEST_STAT_PSI_TOTAL_US, /* since its boot some task waited for memory; our driver,
				    ballast-vmm */
	GUEST_NR_STATS
};

/* As QEMU calls it: "stat-free-memory". */
const char *guest_stat_name(enum guest_stat stat);

struct guest_stats_reply {
	u64 value[GUEST_NR_STATS];
	u32 present;	   /* bit GUEST_STAT_x: value[x] is known */
	u64 last_update_s; /* wall clock; 0: never */
};

/* -EPROTO: @value is not what "guest-stats" gives. Statistics that we do not know are skipped. */
int guest_stats_parse(const json_t *value, struct guest_stats_reply *ret);

/* All-zero to begin with. */
struct guest_stats {
	struct guest_stats_reply last;
	u64 taken_us;  /* monotonic: when the guest answered, at the latest; 0: never */
	u64 looked_us; /* when we asked last */
	/* Between the last two answers; of use only if has_rates. */
	bool has_rates;
	u64 swap_in_bytes_per_s, major_faults_per_s, alloc_stalls_per_s;
	u64 oom_kills; /* in the same time */
	bool has_psi;
	u32 psi_permille; /* of that time some task waited for memory */
	u64 nr_restarts;  /* how often its counters began anew: the guest was rebooted */
};

/* Takes over a reply that came at @now_us (monotonic), when the wall clock said @wall_s. True if
 * the guest has answered since the last one. */
bool guest_stats_update(struct guest_stats *s, const struct guest_stats_reply *reply, u64 now_us,
			u64 wall_s);

/* The guest starts anew: what it said is of no use, and what it says next is news. */
void guest_stats_restart(struct guest_stats *s);

static inline bool guest_stats_has(const struct guest_stats *s, enum guest_stat stat)
{
	return s->taken_us && (s->last.present & (1U << stat));
}

/* UINT64_MAX: the guest has never answered. */
u64 guest_stats_age_us(const struct guest_stats *s, u64 now_us);

#endif
