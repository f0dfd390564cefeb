/* SPDX-License-Identifier: MIT */
/*
 * What sharing would save, from hashes alone: a pure function on an array, 16 bytes a page, sorted
 * in place.
 *
 * A page is one 4 KiB of guest RAM that is present and not all zeros. Pages with the same hash
 * form a group; sharing keeps one copy of a group and removes the others. Hashes are taken at
 * their word here: with 64 bits and 64 GiB of pages, an estimate is wrong by one page in one run
 * of 100,000.
 */
#ifndef BALLAST_CTL_ANALYSIS_H
#define BALLAST_CTL_ANALYSIS_H

#include "common/types.h"

#define ANALYSIS_VMS_MAX 16384 /* what analysis_where() has bits for */

struct analysis_page {
	u64 hash;
	u64 where; /* analysis_where() */
};

/* VM (its index, in the order of the command line), page number (address / 4096), and whether
 * the page is a store page already, mapped by Ballast. */
static inline u64 analysis_where(u32 vm, u64 page, bool shared)
{
	return ((u64)vm << 50) | (page << 1) | shared;
}

/* Lengths of runs in powers of two: bucket b counts runs of 2^b to 2^(b+1)-1 pages; the last
 * one is open. */
#define ANALYSIS_NR_BUCKETS 16

struct analysis_counts {
	u64 pages;	    /* as given */
	u64 distinct;	    /* different contents among them */
	u64 already_shared; /* pages that are store pages already */
	u64 dup_within;	    /* removable: an earlier page of the same VM is the same */
	u64 dup_across;	    /* removable: the same as a page of an earlier VM, or of the store */
	u64 shareable;	    /* in a group of two or more: what would be mapped to the store */
	u64 runs; /* mappings that this takes: runs of shareable pages, see analysis_run() */
};

struct analysis {
	struct analysis_counts total;	    /* distinct: over all VMs; the others are sums */
	u64 runs[ANALYSIS_NR_BUCKETS];	    /* number of runs of each length */
	u64 run_pages[ANALYSIS_NR_BUCKETS]; /* pages in them */
};

/*
 * Fills @vms[0..nr_vms) and *ret. The content of @pages is lost.
 *
 * A run is pages p, p+1, ... of one VM whose first copies (the first page of each group, in order
 * of VM and address) are q, q+1, ... of one VM: laid out like that in the store, one mapping
 * covers it. A VM that holds the first copies maps them too, hence has runs too.
 */
void analysis_run(struct analysis_page *pages, size_t nr, struct analysis_counts *vms, u32 nr_vms,
		  struct analysis *ret);

#endif
