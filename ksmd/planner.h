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

#endif
