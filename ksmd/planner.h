/* SPDX-License-Identifier: MIT */
/*
 * Decides where merged pages go, as pure functions on plain arrays.
 *
 * The aim is long runs: consecutive guest pages at consecutive store offsets are one mapping
 * whatever their length, and mappings are what sharing costs (a VMA in the VMM, a share of
 * vm.max_map_count, the time of an mmap()). So new store pages are given out in guest order, a run
 * at a time, and the guests that follow find the same order.
 */
#ifndef BALLAST_KSMD_PLANNER_H
#define BALLAST_KSMD_PLANNER_H

#include "common/types.h"

/* A page whose content was seen before: in the store, or in another private page. Page numbers are
 * those of gpn.h. */
struct match {
	u32 gpn;
	u32 spn;     /* the store page, or SPN_NONE: the content is to be promoted */
	u32 partner; /* if promoted: the page it was first seen in */
	u64 hash;
};

/*
 * Puts the matches that are to be promoted first, in page order, and the others behind. Returns how
 * many they are. They get store pages in that order: pages that are neighbours in the guest become
 * neighbours in the store, whatever lies between.
 */
u32 plan_promotions(struct match *m, u32 nr);

/* Guest page @gpn shall show store page @spn. */
struct placement {
	u32 gpn, spn;
};

/* Guest pages [gpn, gpn + nr) shall show store pages [spn, spn + nr). */
struct run {
	u32 gpn, spn, nr;
};

/* Sorts @p by page and joins neighbours. Writes at most @nr runs of at most @max_nr pages each;
 * returns how many. */
u32 plan_runs(struct placement *p, u32 nr, u32 max_nr, struct run *ret);

/* Pages [first, first + nr) of an array that lie in the store, but in many short runs. */
struct stretch {
	u32 first, nr;
};

/* What it would mean to copy a stretch to where it lies in one run, over all VMs. */
struct stretch_cost {
	u32 before, after; /* mappings */
	u32 pages;	   /* guest pages whose mapping changes */
	bool refused;	   /* one of them cannot be changed */
};

/* Finds the stretches among @nr pages that show store pages @spn (SPN_NONE: none that may move).
 * Runs that are long enough are part of none. Writes at most @nr / 2. */
u32 plan_stretches(const u32 *spn, u32 nr, struct stretch *ret);

/* Does the kernel need another mapping for a page that shows @here than for its neighbour below?
 * SPN_NONE: memory of the VM's own. */
bool plan_boundary(u32 below, u32 here);

/* Worth the agents' work, of some microseconds a page? */
bool plan_worth_repair(const struct stretch_cost *c);

/*
 * The shortest run that may still be merged when @used of @limit mappings are in use. Half of them
 * are for anybody; what is left after that is for ever longer runs, since each costs the same and
 * saves more.
 */
u32 plan_shortest_run(u64 used, u64 limit);

#endif
