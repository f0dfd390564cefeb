/* SPDX-License-Identifier: MIT */
#include <string.h>
#include "ctl/analysis.h"

/* Not in a group of two or more. No page has it: its VM would be beyond ANALYSIS_VMS_MAX. */
#define ALONE UINT64_MAX

static u32 vm_of(u64 where)
{
	return (u32)(where >> 50);
}

static bool is_before(const struct analysis_page *a, const struct analysis_page *b)
{
	return a->hash != b->hash ? a->hash < b->hash : a->where < b->where;
}

static void swap(struct analysis_page *a, struct analysis_page *b)
{
	struct analysis_page t = *a;

	*a = *b;
	*b = t;
}

static void insertion_sort(struct analysis_page *v, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		for (size_t j = i; j > 0 && is_before(&v[j], &v[j - 1]); j--)
			swap(&v[j], &v[j - 1]);
	}
}

static bool test_bit(const struct analysis_page *p, int bit)
{
	return bit >= 64 ? p->hash >> (bit - 64) & 1 : p->where >> bit & 1;
}

/*
 * Sorts by hash, then by where: a radix exchange on the 128 bits from @bit down. In place (qsort()
 * of glibc takes as much memory again), and its depth is bounded by the bits whatever the content.
 */
static void sort(struct analysis_page *v, size_t n, int bit)
{
	size_t lo, hi;

	for (; n > 16 && bit >= 0; bit--) {
		lo = 0;
		hi = n;
		while (lo < hi) {
			if (test_bit(&v[lo], bit))
				swap(&v[lo], &v[--hi]);
			else
				lo++;
		}
		sort(v, lo, bit - 1);
		v += lo;
		n -= lo;
	}
	insertion_sort(v, n);
}

/*
 * One group of the same content, sorted by VM and address. Store pages are kept; without one, the
 * first page is kept. Afterwards each page says (in hash, which has done its work) where the
 * group's first copy is.
 */
static void count_group(struct analysis_page *g, size_t n, struct analysis_counts *vms,
			struct analysis_counts *total)
{
	u64 first = n > 1 ? g[0].where : ALONE;
	u32 last_vm = UINT32_MAX;
	bool kept = false;

	for (size_t i = 0; i < n && !kept; i++)
		kept = g[i].where & 1;
	total->distinct++;
	for (size_t i = 0; i < n; i++) {
		u32 vm = vm_of(g[i].where);
		struct analysis_counts *c = &vms[vm];

		c->pages++;
		c->shareable += n > 1;
		if (g[i].where & 1)
			c->already_shared++;
		else if (!kept)
			kept = true;
		else if (vm == last_vm)
			c->dup_within++;
		else
			c->dup_across++;
		c->distinct += vm != last_vm;
		last_vm = vm;
		g[i].hash = first;
	}
}

static u32 bucket_of(u64 len)
{
	u32 b = 63 - (u32)__builtin_clzll(len);

	return MIN(b, (u32)ANALYSIS_NR_BUCKETS - 1);
}

/* The page after @a, in the same VM. */
static bool follows(u64 b, u64 a)
{
	return b >> 1 == (a >> 1) + 1 && vm_of(b) == vm_of(a);
}

/* @v in order of address, hash says where the first copy is. */
static void count_runs(const struct analysis_page *v, size_t n, struct analysis_counts *vms,
		       struct analysis *a)
{
	u64 len = 0;

	for (size_t i = 0; i < n; i++) {
		if (v[i].hash == ALONE)
			continue;
		len++;
		if (i + 1 < n && v[i + 1].hash != ALONE && follows(v[i + 1].where, v[i].where) &&
		    follows(v[i + 1].hash, v[i].hash))
			continue;
		vms[vm_of(v[i].where)].runs++;
		a->runs[bucket_of(len)]++;
		a->run_pages[bucket_of(len)] += len;
		len = 0;
	}
}

/* Puts where into the leading place of the sort key, and back. */
static void swap_keys(struct analysis_page *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		v[i] = (struct analysis_page){ .hash = v[i].where, .where = v[i].hash };
}

void analysis_run(struct analysis_page *pages, size_t nr, struct analysis_counts *vms, u32 nr_vms,
		  struct analysis *ret)
{
	size_t end;

	memset(vms, 0, nr_vms * sizeof(*vms));
	memset(ret, 0, sizeof(*ret));
	sort(pages, nr, 127);
	for (size_t i = 0; i < nr; i = end) {
		for (end = i + 1; end < nr && pages[end].hash == pages[i].hash; end++)
			;
		count_group(pages + i, end - i, vms, &ret->total);
	}
	swap_keys(pages, nr);
	sort(pages, nr, 127);
	swap_keys(pages, nr);
	count_runs(pages, nr, vms, ret);
	for (u32 i = 0; i < nr_vms; i++) {
		ret->total.pages += vms[i].pages;
		ret->total.already_shared += vms[i].already_shared;
		ret->total.dup_within += vms[i].dup_within;
		ret->total.dup_across += vms[i].dup_across;
		ret->total.shareable += vms[i].shareable;
		ret->total.runs += vms[i].runs;
	}
}
