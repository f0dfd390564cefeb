/* SPDX-License-Identifier: MIT */
/*
 * One VM's balloon controller: carries a wish ("this guest shall do with so much memory") out, as
 * far as the guest can bear it. Pure: what is known goes in, one decision comes out; no clock, no
 * system call. Sizes are what the guest is left with, as QMP's `balloon` counts: a smaller target
 * is a larger balloon.
 *
 * The order of the questions is the order of what matters (invariant 10):
 *
 *   1. Is the VM known at all, and does it run? Otherwise nothing is done.
 *   2. Is the guest under pressure? All of its memory is given back at once, also while it
 *      migrates, and for a time (holdoff) nothing is taken.
 *   3. Does it migrate? Then the balloon stays as it is.
 *   4. Is there no wish (any more)? What was taken is given back at once.
 *   5. Is what the guest says old? Nothing is taken; when it is very old, all is given back.
 *   6. Is there more to give back? At once, all of it.
 *   7. Is there more to take? Step by step, each only when the last one was reached, and never so
 *      much that the guest would come under pressure. Never below the floor. A target that does
 *      not move is withdrawn, and the VM marked.
 *
 * A balloon that the controller did not inflate is not its business: without a wish it touches
 * nothing.
 */
#ifndef BALLAST_BALLOON_CONTROLLER_H
#define BALLAST_BALLOON_CONTROLLER_H

#include "balloon/guest_stats.h"

struct controller_config {
	u64 floor_bytes; /* the guest is never left with less */

	u64 step_bytes;	    /* taken at once, at most; for large guests */
	u32 step_permille;  /* ... this part of their RAM */
	u64 interval_us;    /* between two steps */
	u64 deadband_bytes; /* a smaller difference is none */

	u64 stale_us;	 /* statistics older than this are not relied on */
	u64 silent_us;	 /* a guest that says nothing for so long while it runs gets all back */
	u64 progress_us; /* a target that did not come closer for so long is withdrawn */
	u64 stuck_us;	 /* ... and not tried again for so long */
	u64 holdoff_us;	 /* after pressure or a reboot nothing is taken for so long */
	u64 repeat_us;	 /* a release that was not carried out is asked for again */

	/* Pressure: any of these. */
	u64 available_bytes;	/* less than this is available to the guest */
	u32 available_permille; /* or less than this part of its RAM */
	u64 swap_in_bytes_per_s;
	u64 major_faults_per_s;
	u64 alloc_stalls_per_s;
	u32 psi_permille; /* of the time some task of it waits for memory */
};

extern const struct controller_config controller_defaults; /* with their reasons: controller.c */

enum controller_run {
	CONTROLLER_UNKNOWN,
	CONTROLLER_RUNNING,
	CONTROLLER_PAUSED,
	CONTROLLER_MIGRATING,
};

struct controller_input {
	u64 now_us;
	bool linked;	 /* what follows is of now */
	bool has_actual; /* there is a balloon device */
	u64 actual_bytes, ram_bytes;
	enum controller_run run;
	u64 nr_resets; /* of the guest: a change is a reboot */
	const struct guest_stats *stats;
	bool has_psi; /* from a driver that tells it; as old as the statistics */
	u32 psi_permille;
	bool has_wish;
	u64 wish_bytes;
};

enum controller_reason {
	CONTROLLER_IDLE,       /* no wish, and nothing to give back */
	CONTROLLER_NOT_LINKED, /* nothing is known of the VM now */
	CONTROLLER_NO_BALLOON, /* it has no balloon device */
	CONTROLLER_FROZEN,     /* paused or migrating: the balloon stays as it is */
	CONTROLLER_PRESSURE,   /* the guest is under pressure: all is given back */
	CONTROLLER_REBOOT,     /* the guest started anew: all is given back */
	CONTROLLER_OFF,	       /* the wish is gone: all is given back */
	CONTROLLER_SILENT,     /* the guest says nothing for long: all is given back */
	CONTROLLER_STALE,      /* statistics are missing or old: nothing is taken */
	CONTROLLER_HOLDOFF,    /* too soon after pressure or a reboot */
	CONTROLLER_STUCK,      /* the last target did not move and was withdrawn */
	CONTROLLER_LIMIT,      /* the guest can spare no more */
	CONTROLLER_DEFLATE,    /* memory is being given back, as wished */
	CONTROLLER_INFLATE,    /* memory is being taken */
	CONTROLLER_REACHED,    /* the wish, or the floor, is reached */
	CONTROLLER_NR_REASONS
};

/* "pressure"; and a sentence for people. */
const char *controller_reason_name(enum controller_reason reason);
const char *controller_reason_text(enum controller_reason reason);

/* All-zero to begin with; only controller_step() changes it. */
struct controller {
	u64 target_bytes; /* last asked for; 0: nothing was taken, or all was given back */
	u64 target_us;
	u64 best_bytes, progress_us; /* how close to the target the guest came, and when */
	bool stuck;		     /* the VM is marked */
	u64 stuck_wish_bytes, stuck_until_us;
	u64 holdoff_until_us;
	u64 heard_us; /* statistics were fresh, or the guest could not speak */
	u64 nr_resets;
	bool started, rebooted;
	u64 releases_total;  /* full releases that the wish did not ask for */
	u64 withdrawn_total; /* targets that did not move */
};

struct controller_decision {
	bool set;	  /* ask the VMM for target_bytes now */
	u64 target_bytes; /* [floor, RAM] */
	enum controller_reason reason;
};

/* To be called when something has changed, and about once a second while there is a wish or a
 * target. */
void controller_step(struct controller *c, const struct controller_config *cfg,
		     const struct controller_input *input, struct controller_decision *ret);

/* How much may be taken before the guest is at twice the mark of pressure: so that what is taken
 * does not make what is then given back. Age does not matter here. */
u64 controller_headroom(const struct controller_config *cfg, const struct controller_input *in);

/* Is the guest under pressure, by what it said last? Age does not matter here. */
bool controller_pressure(const struct controller_config *cfg, const struct controller_input *in);

#endif
