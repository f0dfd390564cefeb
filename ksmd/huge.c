/* SPDX-License-Identifier: MIT */
/*
 * Huge pages: what sharing would save in each, before it is split.
 *
 * To share one page of a huge page the kernel has to split it, and so it has, with asynchronous
 * write-protection, when the guest writes a page that was protected. Both cost the guest a TLB
 * entry of 2 MiB for good. So a huge page is not watched for writes and nothing of it is merged
 * (KEPT), but its pages are hashed now and then (a survey), and it is counted how many are zero or
 * have a twin: in the store, among the candidates, or in other huge pages, whose pages are
 * candidates too (of a kind that only surveys see, since they are not watched). When splitting
 * would save thp_split_min_saving, or anything at all while the host is short of memory, the chunk
 * is SPLIT: its pages are treated as all others, and the first merge makes the kernel split it.
 *
 * Two huge pages that have content in common want each other: the one that is split first finds its
 * twins in one that is kept, and says so (huge_wanted). That counts lookups, and the same page may
 * be looked up again and again, so it only has the chunk surveyed. A chunk that was to be split,
 * but of which nothing was merged, is kept again.
 *
 * Cost: 8 bytes for 2 MiB; a survey hashes 512 pages (0.3 ms), ever more rarely where it finds
 * little.
 */
#include "ksmd/core.h"
#include "ksmd/jobs.h"

/* Looks between two surveys of a chunk: 4, doubled each time that one finds too little. */
#define SURVEY_FIRST	   2
#define SURVEY_BACKOFF_MAX 8
/* Looks that a chunk to be split gets until something of it is merged. */
#define SPLIT_LOOKS 8

/* Huge pages are aligned in the VMM's address space; regions need not be. */
static u32 chunk_shift(const struct ksm_region *r)
{
	return (u32)(r->hva >> PAGE_SHIFT) % CHUNK_PAGES;
}

static u32 chunk_of(const struct ksm_region *r, u32 page)
{
	return (page + chunk_shift(r)) / CHUNK_PAGES;
}

static u32 chunk_first(const struct ksm_region *r, u32 c)
{
	return c * CHUNK_PAGES > chunk_shift(r) ? c * CHUNK_PAGES - chunk_shift(r) : 0;
}

static u32 chunk_pages(const struct ksm_region *r, u32 c)
{
	u32 first = chunk_first(r, c);

	return MIN((c + 1) * CHUNK_PAGES - chunk_shift(r), r->nr_pages) - first;
}

bool huge_kept(const struct ksm_region *r, u32 page)
{
	return r->nr_kept && r->chunks[chunk_of(r, page)].state == HUGE_KEPT;
}

static void set_state(struct ksm_region *r, u32 c, enum huge_state state)
{
	struct ksm_vm_stats *s = &r->vm->stats;
	struct huge_chunk *h = &r->chunks[c];

	if (h->state == HUGE_KEPT) {
		r->nr_kept--;
		s->huge_chunks--;
		s->huge_saving_pages -= h->saving;
	}
	*h = (struct huge_chunk){ .state = (u8)state, .backoff = h->backoff };
	if (state == HUGE_KEPT) {
		r->nr_kept++;
		s->huge_chunks++;
	}
}

static void set_saving(struct ksm_region *r, u32 c, u32 pages)
{
	r->vm->stats.huge_saving_pages += pages;
	r->vm->stats.huge_saving_pages -= r->chunks[c].saving;
	r->chunks[c].saving = (u16)pages;
	r->chunks[c].wanted = 0;
}

/* Whatever was known of its pages was of small pages. Those that a request speaks of, or that map
 * the store, are not part of a huge page any more, or not yet: their turn comes. */
static bool forget_pages(struct ksm_region *r, u32 c)
{
	u32 first = chunk_first(r, c), nr = chunk_pages(r, c);

	for (u32 p = first; p < first + nr; p++)
		if (page_is_mapped(r, p) || r->state[p] == PG_PENDING)
			return false;
	for (u32 p = first; p < first + nr; p++)
		page_set(r, p, PG_NONE);
	return true;
}

static u16 survey_pause(const struct huge_chunk *h)
{
	return (u16)(1u << (SURVEY_FIRST + h->backoff));
}

static void note_huge(struct ksm_region *r, u32 c)
{
	struct huge_chunk *h = &r->chunks[c];
	bool in_vain = h->state == HUGE_SPLIT;

	if (in_vain && h->skip) {
		h->skip--;
		return;
	}
	if (h->state == HUGE_KEPT || !forget_pages(r, c))
		return;
	set_state(r, c, HUGE_KEPT);
	/* What kept it from being merged (DMA, no mappings left) may last. */
	if (in_vain)
		h->skip = survey_pause(h);
}

static void note_small(struct ksm_region *r, u32 c)
{
	if (r->chunks[c].state == HUGE_SPLIT)
		r->vm->stats.huge_split_total++;
	if (r->chunks[c].state != HUGE_NO)
		set_state(r, c, HUGE_NO);
}

void huge_note(struct ksm_region *r, u32 page, u32 nr, const struct scan_part *found)
{
	u32 at = chunk_of(r, page), end = chunk_of(r, page + nr - 1) + 1;

	if (!found->query)
		return;
	for (int i = 0; i < found->nr; i++) {
		u32 first = (u32)((found->ranges[i].start - r->hva) >> PAGE_SHIFT);
		u32 last = (u32)((found->ranges[i].end - r->hva) >> PAGE_SHIFT) - 1;

		/* The huge zero page costs nothing. */
		if (found->ranges[i].categories & PAGE_IS_PFNZERO)
			continue;
		for (u32 c = chunk_of(r, first); c <= chunk_of(r, last); c++) {
			for (; at < c; at++)
				note_small(r, at);
			note_huge(r, c);
			at = MAX(at, c + 1);
		}
	}
	for (; at < end; at++)
		note_small(r, at);
}

static bool worth_splitting(const struct ksm_region *r, u32 pages)
{
	return huge_worth_splitting(pages, r->vm->engine->cfg.thp_split_min_saving,
				    r->vm->engine->cfg.pressure);
}

static void split(struct ksm_region *r, u32 c)
{
	u32 first = chunk_first(r, c), nr = chunk_pages(r, c);

	set_state(r, c, HUGE_SPLIT);
	r->chunks[c].skip = SPLIT_LOOKS;
	for (u32 p = first; p < first + nr; p++)
		if (!page_is_mapped(r, p) && r->state[p] != PG_PENDING)
			page_set(r, p, PG_FRESH);
}

static void survey_page(struct ksm_region *r, u32 page, u64 hash, bool zero, void *arg)
{
	u32 *saving = arg;

	if (zero) {
		page_set(r, page, PG_NONE);
		(*saving)++;
		return;
	}
	if (r->vm->mode != KSM_ON)
		return;
	if (match_find(r, page, hash, true) != INDEX_NONE)
		(*saving)++;
	/* So that others can find it. Nobody watches it for writes, so this may be old; all that
	 * follows from it is a count. */
	if (r->state[page] != PG_CANDIDATE || r->link[page] != hash_tag(hash))
		(void)page_set_candidate(r, page, hash_tag(hash));
}

static void survey(struct ksm_region *r, u32 c)
{
	struct huge_chunk *h = &r->chunks[c];
	u32 saving = 0, chance;

	match_hash(r, chunk_first(r, c), chunk_pages(r, c), survey_page, &saving);
	chance = huge_chance_twins(chunk_pages(r, c), index_entries(r->vm->domain->index));
	set_saving(r, c, saving - MIN(saving, chance));
	h->skip = survey_pause(h);
	if (h->backoff < SURVEY_BACKOFF_MAX)
		h->backoff++;
}

void huge_survey(struct ksm_region *r, u32 page, u32 nr)
{
	for (u32 c = chunk_of(r, page); r->nr_kept && c <= chunk_of(r, page + nr - 1); c++) {
		struct huge_chunk *h = &r->chunks[c];
		bool surveyed = false;

		if (h->state != HUGE_KEPT || chunk_first(r, c) < page)
			continue;
		if (h->skip) {
			h->skip--;
		} else {
			survey(r, c);
			surveyed = true;
		}
		if (h->state != HUGE_KEPT || !worth_splitting(r, h->saving))
			continue;
		split(r, c);
		/* What the survey has just hashed need not be hashed again. */
		if (surveyed)
			match_hashed(r);
	}
}

void huge_wanted(struct ksm_region *r, u32 page)
{
	u32 c = chunk_of(r, page);
	struct huge_chunk *h = &r->chunks[c];

	if (h->state != HUGE_KEPT)
		return;
	if (h->wanted < CHUNK_PAGES)
		h->wanted++;
	if (!worth_splitting(r, (u32)h->saving + h->wanted))
		return;
	/* In the next pass, whatever the last look at the window said. */
	h->skip = 0;
	page_window(r, chunk_first(r, c))->skip = 0;
}

u32 huge_chunks_of(u64 hva, u32 nr_pages)
{
	return (u32)DIV_ROUND_UP((hva >> PAGE_SHIFT) % CHUNK_PAGES + nr_pages, CHUNK_PAGES);
}

void huge_rouse(struct ksm_region *r)
{
	for (u32 c = 0; c < huge_chunks_of(r->hva, r->nr_pages); c++)
		if (r->chunks[c].state == HUGE_KEPT)
			r->chunks[c].skip = r->chunks[c].backoff = 0;
}

u32 huge_chance_twins(u32 pages, u64 entries)
{
	return (u32)((u64)pages * entries * 2 >> 32);
}

bool huge_worth_splitting(u32 pages, u64 min_saving_bytes, bool pressure)
{
	return pages && (pressure || (u64)pages << PAGE_SHIFT >= min_saving_bytes);
}
