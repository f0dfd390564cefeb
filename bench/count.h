/* SPDX-License-Identifier: MIT */
/*
 * What build/outside counts: guest by guest, then in total. The keys' meaning: the tables in
 * outside.c.
 */
#ifndef BALLAST_BENCH_COUNT_H
#define BALLAST_BENCH_COUNT_H

#include <xxhash.h>
#include "common/types.h"

struct page {
	XXH128_hash_t hash;
	u64 pfn;
	u32 guest;
};

struct page_list {
	struct page *pages;
	size_t nr, cap;
};

struct guest {
	u64 pid;
	u64 ram_start, ram_bytes;
	u64 vmas, process_vmas;
	u64 pages, nonzero_pages, zero_pages, zero_kernel_pages;
	u64 shared_pages;
	u64 store_pages, broken_pages;
	u64 unreadable_pages;
	XXH128_hash_t digest;
};

struct totals {
	u64 guests;
	u64 pages, frames;
	u64 nonzero_pages, distinct_contents, nonzero_frames;
	u64 dup_pages, merged_pages;
	u64 zero_pages, zero_kernel_pages, zero_frames, zero_merged_pages;
	u64 store_pages, store_frames, broken_pages;
	u64 vmas, process_vmas;
	u64 unreadable_pages, torn_frames;
	u64 elapsed_us;
};

/*
 * Finds the RAM of @g (pid, ram_bytes are given) and counts its pages; appends those that have
 * content to @nonzero or @zero, and those of a store mapping to @store, too. Leaves no traces in
 * the guest (outside.c). Returns 0 or -errno, which was printed.
 */
int count_guest(struct guest *g, u32 index, struct page_list *nonzero, struct page_list *zero,
		struct page_list *store);
/* After all guests; sorts the lists. */
int count_totals(struct totals *t, struct guest *guests, struct page_list *nonzero,
		 struct page_list *zero, struct page_list *store);

/* Prints what went wrong. Returns @error. */
int count_fail(int error, const char *what, u64 pid);
/* Ends the program where there is no memory. */
struct page *page_list_add(struct page_list *l);

#endif
