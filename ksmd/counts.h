/* SPDX-License-Identifier: MIT */
/*
 * The two counts of a store page (store.h), in four bytes while both are small, as nearly all are.
 * A page with a count of COUNT_FAR or more has both in a table; of such there can be no more than
 * two for COUNT_FAR guest pages, so the table is a plain array.
 */
#ifndef BALLAST_KSMD_COUNTS_H
#define BALLAST_KSMD_COUNTS_H

#include "common/types.h"

#define COUNT_FAR UINT16_MAX

struct small_counts {
	u16 refs, covers; /* both COUNT_FAR: in the table */
};

struct counts {
	u32 refs, covers;
};

struct far_table {
	struct far_counts *list;
	u32 nr, cap;
};

struct counts counts_get(const struct far_table *t, const struct small_counts *m, u32 spn);
/* Without memory for the table a page's counts stay high for good: it is never freed, nor its
 * offset used again, which is safe (invariant 4). */
void counts_set(struct far_table *t, struct small_counts *m, u32 spn, struct counts c);
void far_free(struct far_table *t);
u64 far_bytes(const struct far_table *t);

#endif
