/* SPDX-License-Identifier: MIT */
/* All guests together: which of their pages have one content, and which one page frame. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench/count.h"

/* /proc/kpageflags: Documentation/admin-guide/mm/pagemap.rst */
#define KPF_ZERO_PAGE 24

static int by_hash(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	if (x->hash.high64 != y->hash.high64)
		return x->hash.high64 < y->hash.high64 ? -1 : 1;
	return x->hash.low64 < y->hash.low64 ? -1 : x->hash.low64 > y->hash.low64;
}

static int by_pfn(const void *a, const void *b)
{
	const struct page *x = a, *y = b;

	return x->pfn < y->pfn ? -1 : x->pfn > y->pfn;
}

static u64 count_distinct(struct page_list *l, int (*cmp)(const void *, const void *))
{
	u64 n = 0;

	qsort(l->pages, l->nr, sizeof(*l->pages), cmp);
	for (size_t i = 0; i < l->nr; i++)
		n += i == 0 || cmp(&l->pages[i - 1], &l->pages[i]) != 0;
	return n;
}

/* The kernel has two zero pages, a small and a huge one; only kpageflags knows both. */
static bool is_kernel_zero(int kpageflags, u64 pfn)
{
	u64 flags;

	if (pread(kpageflags, &flags, sizeof(flags), (off_t)(pfn * sizeof(flags))) != sizeof(flags))
		return false;
	return flags >> KPF_ZERO_PAGE & 1;
}

static int count_zero(struct totals *t, struct guest *guests, struct page_list *zero)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		perror("outside: /proc/kpageflags");
		return -errno;
	}
	qsort(zero->pages, zero->nr, sizeof(*zero->pages), by_pfn);
	for (size_t i = 0, j; i < zero->nr; i = j) {
		bool kernel = is_kernel_zero(fd, zero->pages[i].pfn);

		for (j = i; j < zero->nr && zero->pages[j].pfn == zero->pages[i].pfn; j++)
			guests[zero->pages[j].guest].zero_kernel_pages += kernel;
		t->zero_frames += !kernel;
	}
	close(fd);
	return 0;
}

int count_totals(struct totals *t, struct guest *guests, struct page_list *nonzero,
		 struct page_list *zero, struct page_list *store)
{
	int r = count_zero(t, guests, zero);

	if (r < 0)
		return r;
	for (u32 i = 0; i < t->guests; i++) {
		t->pages += guests[i].pages;
		t->nonzero_pages += guests[i].nonzero_pages;
		t->zero_pages += guests[i].zero_pages;
		t->zero_kernel_pages += guests[i].zero_kernel_pages;
		t->store_pages += guests[i].store_pages;
		t->broken_pages += guests[i].broken_pages;
		t->vmas += guests[i].vmas;
		t->process_vmas += guests[i].process_vmas;
		t->unreadable_pages += guests[i].unreadable_pages;
	}
	t->distinct_contents = count_distinct(nonzero, by_hash);
	t->nonzero_frames = count_distinct(nonzero, by_pfn);
	for (size_t i = 0, j; i < nonzero->nr; i = j) {
		bool torn = false;

		for (j = i + 1; j < nonzero->nr && nonzero->pages[j].pfn == nonzero->pages[i].pfn;
		     j++)
			torn |= by_hash(&nonzero->pages[i], &nonzero->pages[j]) != 0;
		t->torn_frames += torn;
		for (size_t k = i; k < j && j - i > 1; k++)
			guests[nonzero->pages[k].guest].shared_pages++;
	}
	t->store_frames = count_distinct(store, by_pfn);
	t->dup_pages = t->nonzero_pages - t->distinct_contents;
	t->merged_pages = t->nonzero_pages - t->nonzero_frames;
	t->zero_merged_pages = t->zero_pages - t->zero_frames;
	t->frames = t->nonzero_frames + t->zero_frames;
	return 0;
}
