/* SPDX-License-Identifier: MIT */
/*
 * The policy: from a snapshot of the host to a list of actions, each with its reason. Pure: no
 * system call, no clock; the same input gives the same plan. About 0.4 us a VM (make bench-sim).
 *
 * Order of things in a step:
 *   1. A guest under pressure gets memory back at once, whatever the host's state (invariant 10).
 *   2. The host's state says how much has to be freed: nothing (high), up to the soft threshold,
 *      and where available memory falls, as much as it will have fallen by the next step.
 *   3. Who gives: VMs of a lower priority before all of a higher one; of equal priority, memory is
 *      taken where it buys the fewest shares (entitlement.h); never below a VM's floor. What a VM
 *      has beyond its maximum goes in any state.
 *   4. By what: for each VM the mechanism with the lowest cost first, within its rate and what it
 *      can give now.
 *   5. With memory to spare, what was taken is given back where it buys the most shares, the
 *      dearest mechanism first.
 *   6. With nothing to spare and nothing wanted, what lies idle in one VM goes to another that it
 *      was taken from and that uses what it has, by balloon.
 *
 * Sources: C. Waldspurger, "Memory Resource Management in VMware ESX Server", OSDI 2002, sections 5
 * (shares, idle memory tax) and 6 (states, dynamic reallocation).
 *
 * All sizes are bytes, all rates bytes a second, all times us, all parts permille.
 */
#ifndef BALLAST_TIERING_POLICY_H
#define BALLAST_TIERING_POLICY_H

#include "common/types.h"

/* ESX's four states of a host, by the memory that is available. */
enum policy_state {
	POLICY_HIGH, /* enough: nothing is taken */
	POLICY_SOFT, /* what costs guests little is taken: sharing, ballooning */
	POLICY_HARD, /* compression and swap as well */
	POLICY_LOW,  /* the same, and what the administrator allows as a last resort */
};

enum policy_mechanism {
	POLICY_SHARE,
	POLICY_BALLOON,
	POLICY_COMPRESS,
	POLICY_SWAP,
	POLICY_MECHANISMS
};

enum policy_run {
	POLICY_RUNNING,
	POLICY_PAUSED,	  /* nothing is asked of a guest that does not run */
	POLICY_MIGRATING, /* nor of one whose memory is being copied */
};

enum policy_last_resort {
	POLICY_RESORT_NONE,	 /* it is only said */
	POLICY_RESORT_BELOW_MIN, /* compression and swap go below a VM's minimum */
};

struct policy_config {
	/* Available memory below which a state begins, in permille of the host's; soft > hard >
	 * low. */
	u32 soft_permille, hard_permille, low_permille;
	/* How far above that a state is left again. */
	u32 hysteresis_permille;
	u32 idle_tax_permille; /* 750; below 1000 */
	/* Tasks of the host wait for memory so much of the time: at least soft, whatever is
	 * available, and a hysteresis' worth is taken a step. 0: not looked at. */
	u32 psi_permille;
	/* Of the copy-on-write debt, kept available beside the threshold. */
	u32 cow_reserve_permille;
	u64 vm_overhead_bytes;		   /* of a VMM, beyond its guest's memory */
	u64 rate_bytes[POLICY_MECHANISMS]; /* a second and VM; 0: never */
	u64 stats_max_age_us;		   /* older ones take nothing by balloon */
	enum policy_last_resort last_resort;
};

#define POLICY_CONFIG_DEFAULT                                                            \
	{                                                                                \
		.soft_permille = 60, .hard_permille = 40, .low_permille = 20,            \
		.hysteresis_permille = 10, .idle_tax_permille = 750, .psi_permille = 50, \
		.cow_reserve_permille = 250, .vm_overhead_bytes = 8 << 20,               \
		.rate_bytes = { 256 << 20, 256 << 20, 256 << 20, 64 << 20 },             \
		.stats_max_age_us = 10000000, .last_resort = POLICY_RESORT_NONE,         \
	}

struct policy_vm {
	/* Configured. */
	u64 min_bytes; /* the guest keeps that */
	u64 max_bytes; /* of the host's memory, even where there is more; 0: no such limit */
	u32 shares;    /* > 0 */
	u32 priority;  /* who has less gives all that may be taken before who has more */
	u32 allowed;   /* bit POLICY_x */
	enum policy_run run;
	/* Memory of the host that it takes now, and what of it cannot be taken (VFIO). */
	u64 resident_bytes, pinned_bytes;
	/* Taken from it so far, by mechanism; of sharing it is not given back. */
	u64 taken_bytes[POLICY_MECHANISMS];
	/* Of what it takes, compressed pages: what may go to its own swap file. */
	u64 pool_bytes;
	/* Swapping takes that, and nothing else; not: the kernel swaps out what is not in use. */
	bool has_swap_file;
	u64 swap_room_bytes; /* where it may swap to; 0: nowhere */
	/* What sharing would still save. */
	u64 share_yield_bytes;
	bool has_balloon, has_stats;
	u64 stats_age_us;
	u64 guest_spare_bytes; /* what a balloon may take (balloon/controller.h) */
	bool pressure;	       /* the guest's own, by whatever sign */
	/* UINT64_MAX: not known; then all of it counts as in use. */
	u64 working_set_bytes;
	/* Measured: us of host and guest time for a MiB taken, refaults included; 0: not known. */
	u64 cost_us_per_mib[POLICY_MECHANISMS];
};

struct policy_host {
	u64 memory_bytes, available_bytes; /* or a cgroup's, if that is less */
	u32 psi_some_permille;		   /* part of the time that some task waits for memory */
	u64 cow_debt_bytes;
	u64 compress_free_bytes, swap_free_bytes; /* 0: there is none; of all swap together */
};

struct policy_input {
	u64 elapsed_us; /* since the last step */
	struct policy_host host;
	const struct policy_vm *vms;
	u32 nr_vms;
};

enum policy_reason {
	POLICY_GUEST_PRESSURE, /* given back: the guest needs it */
	POLICY_HOST_SHORT,     /* taken: the host needs it, and this VM's buys the fewest shares */
	POLICY_LAST_RESORT,    /* taken below the minimum */
	POLICY_HOST_HAS,       /* given back: the host has enough */
	POLICY_OVER_MAX,       /* taken: it is more than the VM's maximum */
	POLICY_USED_LESS,      /* taken: the host has enough, but others use theirs more */
};

struct policy_action {
	u32 vm;
	bool take; /* false: given back */
	enum policy_mechanism mechanism;
	u64 bytes;
	enum policy_reason reason;
	/* What led to it. */
	u64 entitled_bytes, resident_bytes;
	u64 cost_us_per_mib;
};

/* Kept by the caller between two steps. All zero to begin with. */
struct policy {
	enum policy_state state;
	u64 available_bytes; /* in the last step */
	bool knows_available;
};

struct policy_plan {
	enum policy_state state;
	u64 wanted_bytes;  /* that have to be freed, what is over a VM's maximum apart */
	u64 planned_bytes; /* by these actions, at once */
	u64 unmet_bytes;   /* no VM may give that, however long; 0 in most cases */
	u64 admit_bytes;   /* a VM of so much could be started now */
	/* Pages a second that may come back into each VM from where mechanisms put them, on a host
	 * that is nearly out of memory; 0: as many as are needed. */
	u32 page_in_pace;
	u32 nr_actions;
	struct policy_action *actions; /* the caller's, POLICY_ACTIONS_MAX() of them */
	u64 *entitled;		       /* the caller's, one for each VM */
};

/* Actions that a step can give, at most. */
#define POLICY_ACTIONS_MAX(nr_vms) ((nr_vms)*POLICY_MECHANISMS)

void policy_step(struct policy *p, const struct policy_config *cfg, const struct policy_input *in,
		 struct policy_plan *plan);

/* The state that follows @old. */
enum policy_state policy_next_state(const struct policy_config *cfg, enum policy_state old,
				    u64 memory_bytes, u64 available_bytes);

const char *policy_state_name(enum policy_state s);
const char *policy_mechanism_name(enum policy_mechanism m);
/* One sentence with the numbers that led to the action. Returns @buf. */
const char *policy_explain(const struct policy_action *a, const char *vm, char *buf, size_t size);

#endif
