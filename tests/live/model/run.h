/* SPDX-License-Identifier: MIT */
/*
 * The driver's own state: one run of one seed. events.c makes things happen to daemon and VMs,
 * audit.c checks all when nothing happens, ../tool_model.c puts them in order.
 */
#ifndef BALLAST_TESTS_LIVE_MODEL_RUN_H
#define BALLAST_TESTS_LIVE_MODEL_RUN_H

#include "tests/live/model/model.h"

struct totals {
	u64 seeds, rounds, ops, checks, discards, forks, remaps, leaves;
	u64 merged, zeroed, moved_back, wait_faults, breaks, paged_out, paged_in, page_outs,
		swap_read;
	u64 daemon_kills, daemon_ends, daemon_stops, vm_kills, vm_stops, reloads, unmerges;
	u64 audits;	       /* VMs whose counts were compared with the kernel's */
	u64 shared_most, full; /* most shared pages at an audit; audits that found a store full */
	u64 slowest_us;
};

struct run {
	struct model *m;
	struct host h;
	struct totals *t;
	u64 rng;
	bool paused, ready;

	u64 daemon_start_at; /* it is down until then */
	u64 daemon_cont_at;  /* it is stopped until then; 0: it is not */
	u64 daemon_started_us;

	pid_t vm_pid[MODEL_VMS];
	u64 vm_start_at[MODEL_VMS], vm_cont_at[MODEL_VMS];
	char vm_domain[MODEL_VMS][64]; /* once known; for its life */
	u64 breaks_seen[MODEL_VMS];    /* of the daemon's present life */
	enum model_command command;    /* of the VMs now */
	u32 epoch;
};

/* events.c */
void run_start(struct run *r); /* daemon and all VMs */
void run_event(struct run *r); /* a random one */
void run_tick(struct run *r);  /* what is due: restarts, SIGCONT; and what died by itself */
/* Nothing is stopped or down any more; -ETIME, with the reason told, if that does not come about.
 */
int run_calm(struct run *r, bool resume);
void run_configure(struct run *r, bool plain); /* writes a random configuration */
int run_status(struct run *r, struct host_status *ret);
void run_end_vm(struct run *r, u32 v, bool kill_it);
void run_end_daemon(struct run *r, bool kill_it); /* an orderly end is checked */
void run_kill_all(struct run *r);		  /* after a failure */
static inline bool run_failed(const struct run *r)
{
	return r->m->error.claimed;
}

/* audit.c */
void run_command(struct run *r, enum model_command cmd);
/* All threads have complied. */
int run_wait_acked(struct run *r);
void run_audit(struct run *r);
void run_check_empty(struct run *r); /* no VM is left */

#endif
