/* SPDX-License-Identifier: MIT */
/*
 * Is the host short of memory? Two signs, either of which is enough: tasks wait for memory
 * (/proc/pressure/memory, "some", the average of 10 s), or little is left (MemAvailable). The
 * decision is pure, with hysteresis: it turns on at once, and off only after a while of both signs
 * being well away from their thresholds. A kernel without PSI has the second sign only.
 */
#ifndef BALLAST_DAEMON_PRESSURE_H
#define BALLAST_DAEMON_PRESSURE_H

#include "common/types.h"

struct pressure_sample {
	bool has_some;
	u32 some_permille; /* of the last 10 s, how long some task waited for memory */
	u64 available_bytes, total_bytes;
	u64 swap_free_bytes; /* 0 also where there is no swap */
};

/* 0: that sign is not looked at. */
struct pressure_limits {
	u32 some_permille;
	u32 available_permille; /* of total_bytes */
};

struct pressure {
	bool on;
	bool calm; /* on, but calm since calm_since_us */
	u64 calm_since_us;
};

/* 0 or negative errno (nothing can be said). No @psi_path file, or none that is understood: 0, and
 * has_some is false. */
int pressure_read(const char *psi_path, const char *meminfo_path, struct pressure_sample *ret);

/* True when @p->on has changed. */
bool pressure_update(struct pressure *p, const struct pressure_limits *limits,
		     const struct pressure_sample *s, u64 now_us);

#endif
