/* SPDX-License-Identifier: MIT */
/*
 * Inside of the engine. How the files divide it:
 *
 *   engine.c   domains, VMs, regions; slices of work
 *   scan.c     one window of a VM: what was written, what broke
 *   match.c    hashing what stayed still, and looking it up
 *   huge.c     what splitting a huge page would save, and whether to
 *   promote.c  from matches to store pages and requests
 *   jobs.c     what of it looks into VMMs, on reader threads
 *   ops.c      requests to agents and their answers
 *   pages.c    the states of pages and all accounting that hangs on them
 *   resync.c   reading the state of mappings from the kernel
 *   repair.c   putting fragmented sharing in order
 *   image.c    memory of clones that begins as a snapshot's
 *   readshare.c   pages that were read from the same disk block, before the scan comes
 *   pageout.c  which pages leave a guest when the policy wants memory of it
 *   swapout.c  the same by the kernel's own swap
 *
 * and below: index.h, blocks.h, store.h, counts.h, planner.h, pace.h, gpn.h, target.h, reader.h.
 *
 * Metadata: 5 bytes a guest page (link, state), 9.4 to 10 bytes for each page in the index, 10
 * bytes a store page (`make bench-index`), 8 bytes for 2 MiB (huge.c) and 10 for a window (pace.h),
 * a byte a page of regions of which pages were taken out (pageout.c);
 * where VMMs tell of disk reads 11 to 21 bytes a block, 8 MiB a domain at most (blocks.h).
 */
#ifndef BALLAST_KSMD_CORE_H
#define BALLAST_KSMD_CORE_H

#include <stdatomic.h>
#include "ksmd/blocks.h"
#include "ksmd/engine.h"
#include "ksmd/gpn.h"
#include "ksmd/image.h"
#include "ksmd/index.h"
#include "ksmd/pace.h"
#include "ksmd/planner.h"
#include "ksmd/reader.h"
#include "ksmd/store.h"
#include "ksmd/target.h"

#define DOMAIN_NAME_MAX 64
#define DOMAINS_MAX	256
/* Pages looked at in one step: a few milliseconds of work at most. */
#define WINDOW_PAGES 4096

/* Values in the index: a store page, or a guest page (< GPN_MAX). */
#define INDEX_STORE_FLAG ((u32)1 << 31)

enum page_state {
	PG_NONE = 0,   /* absent, or not looked at yet */
	PG_FRESH,      /* written before the last scan */
	PG_QUIET,      /* hashed, and not in the index: nothing to do until it is written */
	PG_CANDIDATE,  /* in the index; link: tag */
	PG_PENDING,    /* part of a request to the agent */
	PG_HELD,       /* could not be merged (pinned, no mappings left): tried again much later */
	PG_ZERO,       /* we made it map the kernel's zero page */
	PG_ZERO_FOUND, /* it did so anyway: nothing of it is our saving */
	PG_SHARED,     /* maps the store; link: spn */
	/* In a mapping of the store, but written since. The spn is in domain->broken. */
	PG_BROKEN,
	PG_BROKEN_SEEN,	     /* link: tag of its hash when last looked at */
	PG_BROKEN_CANDIDATE, /* the same, and in the index */
	PG_BROKEN_PENDING,
};

struct ksm_domain {
	char name[DOMAIN_NAME_MAX];
	struct engine *engine;
	struct index *index;  /* tag -> INDEX_STORE_FLAG | spn, or gpn */
	struct index *broken; /* gpn (mixed) -> spn that the mapping under a broken page names */
	struct store *store;
	struct blocks *blocks; /* NULL: no VMM has told of any */
	struct ksm_image *images;
	u32 nr_images;
	u64 image_pages; /* in all of them, zeros too */
	u64 image_refs;	 /* references to store pages that are images', not guest pages' */
};

/* A 2 MiB chunk of a region, where it is mapped by a huge page (huge.c). */
enum huge_state {
	HUGE_NO = 0, /* small pages, or not known to be anything else */
	HUGE_KEPT,   /* a huge page: not watched for writes, nothing of it is merged */
	HUGE_SPLIT,  /* was one, and splitting pays: its pages are like all others */
};

struct huge_chunk {
	u8 state;
	u8 backoff; /* surveys in a row that found too little */
	u16 skip;   /* looks until the next survey */
	u16 saving; /* pages that splitting would save, as far as the last survey knows */
	u16 wanted; /* times that content of a page here was looked for since */
};

struct ksm_region {
	struct ksm_vm *vm;
	u64 hva, bytes;
	u32 nr_pages, gpn;
	u32 *link;
	u8 *state;
	struct pace_window *windows; /* one for WINDOW_PAGES */
	struct huge_chunk *chunks;   /* one for CHUNK_PAGES */
	u8 *heat;		     /* of each page (pageout.c); NULL: none was ever out */
	u32 nr_fresh, nr_held, nr_broken,
		nr_mapped; /* pages in these states; mapped: SHARED and BROKEN* */
	u32 nr_kept;	   /* chunks */
	bool read;	   /* the kernel was asked which of its pages map the store */
	bool known;	   /* was so before: what is found broken now broke since then */
	bool first_pass;   /* no scan has been through yet: its pages are all unknown */
	bool gone; /* the VMM took it back; kept until the kernel says that nothing of it maps the
		      store */
};

/* A run waiting for, or part of, a request. Its store pages are referenced. */
struct ksm_op_run {
	u32 gpn, spn, nr;
	bool zero;
	bool on_read; /* found by readshare.c */
	bool out;     /* of pageout.c: no store page, and nothing referenced */
	u32 sample;   /* of which round of samples; 0: of none */
	u32 image;    /* of which image_request.number; 0: of none */
};

/* Of the next page that pageout.c looks at. */
struct hand_place {
	u32 region, page;
};

struct ksm_vm {
	struct engine *engine;
	struct ksm_domain *domain;
	struct ksm_vm *next;
	void *conn; /* NULL: not connected */
	struct target *target;
	enum ksm_mode mode;
	bool unmerged, dying, blocked;
	/* The agent has connected anew: its old request is settled when all regions are read. */
	bool cancel_due;
	u32 nr_hangs;		 /* times that a reader had to be given up */
	u64 hang_us, unblock_us; /* the last time; when it may be looked into again */
	u64 slow_until_us;	 /* its pages are not read until then, for being slow to read */
	struct ksm_region **regions;
	u32 nr_regions;

	/* The pass: where the scan is, when the next one may start. */
	u32 cursor_region, cursor_page;
	u64 pass_started_us, pass_due_us, interval_us;
	u64 full_due_us;   /* from then on a pass also asks what broke and what is huge */
	u64 reread_due_us; /* from then on the account is compared with the kernel's */
	bool in_pass, full_pass, rouse;
	struct pace_pass pass;
	struct pace_look look; /* of the window that the cursor is in */
	u64 cpu_us;	       /* used for it, for fairness among VMs */

	/* Requests. */
	struct ksm_op_run *queue; /* waiting */
	u32 queue_nr, queue_cap;
	struct ksm_op_run op[ENGINE_RUNS_MAX]; /* outstanding */
	u32 op_nr;
	u32 seq;
	bool op_busy, unmerge_due;
	u64 pump_due_us;      /* the agent did not take a request: not before then */
	u64 no_maps_until_us; /* the VMM ran out of mappings */

	struct image_request image_request;
	struct ksm_image *images[ENGINE_REGIONS_MAX]; /* that it has memory of */
	u32 nr_images;

	/* readshare.c: pages to be looked at, in any order. */
	u32 *line;
	u32 line_nr, line_cap;

	/* repair.c: where it is, when it goes on, how long it pauses when it found nothing. */
	u32 repair_region, repair_page;
	u64 repair_due_us, repair_pause_us, repair_merged;
	bool repair_found;
	bool repair_refused; /* its agent cannot replace mapped pages (DMA, merge.c) */

	/* pageout.c: where the next round begins. */
	struct hand_place out_place;
	u32 sample_round;
	bool out_refused; /* its agent has no pager */

	/* swapout.c: what is still to be swapped out, and where the next round begins. */
	u64 swap_wanted, swap_looked; /* pages; looked at since it was asked */
	struct hand_place swap_place;

	struct ksm_vm_stats stats;
	u64 boundaries; /* places where two neighbouring pages need different mappings */
};

struct engine {
	struct engine_config cfg;
	const struct engine_ops *ops;
	struct gpn_space gpns;
	struct reader_pool *readers;
	struct ksm_domain *domains[DOMAINS_MAX];
	u32 nr_domains;
	struct ksm_vm *vms;
	u32 nr_windows; /* of all their regions */
	struct scan_buffers *scan;
	struct match_buffers *match;
	struct merge_buffers *merge;
	u64 trim_due_us;
	struct late_pages *late;
	struct image_job *image_job;
	struct swap_job *swap_job;
	bool on_read; /* what is queued now was found by readshare.c */
};

static inline u32 hash_tag(u64 hash)
{
	return (u32)(hash >> 32);
}

static inline struct ksm_region *gpn_region(const struct engine *e, u32 gpn)
{
	return gpn_owner(&e->gpns, gpn);
}

static inline struct pace_window *page_window(const struct ksm_region *r, u32 page)
{
	return &r->windows[page / WINDOW_PAGES];
}

static inline struct pace_limits engine_pace(const struct engine *e)
{
	return (struct pace_limits){
		.interval_us = e->cfg.interval_us,
		.idle_interval_us = e->cfg.idle_interval_us,
		.pressure = e->cfg.pressure,
		.nr_windows = e->nr_windows,
	};
}

static inline u64 page_hva(const struct ksm_region *r, u32 page)
{
	return r->hva + ((u64)page << PAGE_SHIFT);
}

/* pages.c: the only code that changes state[], link[], references, covers and index entries of
 * guest pages. */
bool page_is_mapped(const struct ksm_region *r, u32 page);
u32 page_mapped_spn(const struct ksm_region *r, u32 page); /* SPN_NONE if not mapped */
/* Drops whatever hangs on the page's state. */
void page_set(struct ksm_region *r, u32 page,
	      enum page_state state); /* NONE, FRESH, QUIET, HELD, ZERO */
int page_set_candidate(struct ksm_region *r, u32 page, u32 tag);
void page_set_pending(struct ksm_region *r, u32 page);
void page_set_shared(struct ksm_region *r, u32 page,
		     u32 spn); /* takes over a reference that the caller holds */
void page_set_broken(struct ksm_region *r, u32 page); /* of a SHARED page */
void page_broke(struct ksm_region *r, u32 page);      /* the same, counted: the guest wrote it */
int page_set_covered(struct ksm_region *r, u32 page, u32 spn); /* broken, as found by resync */
void page_note_broken_tag(struct ksm_region *r, u32 page, u32 tag);
void page_unpend(struct ksm_region *r, u32 page, enum page_state state); /* back from PENDING */
void domain_unref(struct ksm_domain *d, u32 spn);

/* promote.c */
struct merge_buffers *merge_buffers_new(void);
void merge_buffers_free(struct merge_buffers *b);
/* Has pages merged whose content was seen before; @m is in page order, all of @vm. */
void merge_matches(struct ksm_vm *vm, struct match *m, u32 nr);
void collect_late(struct engine *e); /* gives back what has ended */
/* Queues what shall show which store page, in runs. Takes over a reference to each store page.
 * @runs: room for @nr. */
void queue_runs(struct engine *e, struct placement *p, u32 nr, struct run *runs);

/* repair.c: some of it, when the VM's time for that has come. */
void repair_step(struct ksm_vm *vm, u64 now);

/* scan.c */
struct scan_buffers;
int scan_buffers_new(struct scan_buffers **ret);
void scan_buffers_free(struct scan_buffers *b);
/* One window of the VM whose turn it is. False: the pass is at its end. */
bool scan_window(struct ksm_vm *vm);
/* Which of [page, page + nr) are broken (present, but not the store's), as ranges of HVAs. */
int scan_broken(struct ksm_region *r, u32 page, u32 nr,
		void (*fn)(struct ksm_region *r, u32 page, u32 nr));

/* Pages of it were read from @started_us until now. Reading that takes long makes all others wait:
 * who is slow gets a small share of the time. */
void vm_note_slow(struct ksm_vm *vm, u64 started_us);
/* What the kernel shows of [page, page + nr), without a question for writes: which merged pages
 * broke, and where huge pages are. */
int scan_states(struct ksm_region *r, u32 page, u32 nr);

/* match.c */
struct match_buffers;
struct match_buffers *match_buffers_new(void);
void match_buffers_free(struct match_buffers *b);
/*
 * Hashes the pages of [page, page + nr) that @wants says, looks them up, and has merged what was
 * seen before. *ret_news: a broken page was found to hold something new.
 */
void match_pages(struct ksm_region *r, u32 page, u32 nr,
		 bool (*wants)(const struct ksm_region *r, u32 page, void *arg), void *arg,
		 bool *ret_news);
/* Only hashes: calls @fn for each page that could be read. */
void match_hash(struct ksm_region *r, u32 page, u32 nr,
		void (*fn)(struct ksm_region *r, u32 page, u64 hash, bool zero, void *arg),
		void *arg);
/* Looks up what match_hash() of @r has just hashed, and has merged what was seen before. */
void match_hashed(struct ksm_region *r);
/* A page of other VMs, or a store page, whose content has that hash? INDEX_NONE: none. Candidates
 * in huge pages count only with @huge. */
u32 match_find(struct ksm_region *r, u32 page, u64 hash, bool huge);

/* huge.c */
struct scan_part;
bool huge_kept(const struct ksm_region *r, u32 page);
/* What PAGEMAP_SCAN says of huge mappings in [page, page + nr). */
void huge_note(struct ksm_region *r, u32 page, u32 nr, const struct scan_part *found);
/* Surveys those of [page, page + nr) whose turn it is. */
void huge_survey(struct ksm_region *r, u32 page, u32 nr);
/* Content was seen that a page in a kept huge page has, too. */
void huge_wanted(struct ksm_region *r, u32 page);
/* All of the region's huge pages are surveyed at the next look. */
void huge_rouse(struct ksm_region *r);
u32 huge_chunks_of(u64 hva, u32 nr_pages); /* elements of ksm_region.chunks */
/* Pages of @pages that seem to have a twin among @entries index entries because 32 bits of their
 * hashes agree: twice the mean. Pure. */
u32 huge_chance_twins(u32 pages, u64 entries);
/* The decision: @pages that sharing would save in a huge page. Pure. */
bool huge_worth_splitting(u32 pages, u64 min_saving_bytes, bool pressure);

/* pageout.c: the page has left the guest; it is there again, or anew. */
void heat_left(struct ksm_region *r, u32 page);
void heat_is_back(struct ksm_region *r, u32 page);

/*
 * pageout.c: goes around the VM's memory from @at on, to where that ends, and hands over runs of
 * pages that nobody has written for long, by then all others that may leave.
 */
struct hand {
	struct hand_place *at;
	u64 missing; /* pages */
	u32 looks;   /* how many pages may still be looked at */
	bool full;   /* put() took no more */
	bool in_use; /* takes what was written lately, too */
	/* How many of the pages it took; 0: it is full. */
	u32 (*put)(struct hand *h, struct ksm_region *r, u32 page, u32 nr);
	void *arg;
};
void hand_round(struct ksm_vm *vm, u32 quiet, struct hand *h);
/* Looks in a row that found nothing written in a page's window. */
#define QUIET_LOOKS 2

/* swapout.c: some of what was asked for. */
void swap_step(struct ksm_vm *vm);

/* readshare.c: some of what is in line. */
void readshare_step(struct ksm_vm *vm);

/* ops.c */
int ops_queue(struct ksm_vm *vm, const struct ksm_op_run *run);
void ops_pump(struct ksm_vm *vm);
void vm_set_blocked(
	struct ksm_vm *vm); /* a reader hangs in it: leave it alone until that is back */
bool vm_may_share(const struct ksm_vm *vm); /* its content may be merged with others' now */
void ops_cancel_queue(struct ksm_vm *vm);
/*
 * Only when the agent cannot be at work on the request any more (it has connected anew and its
 * mappings were read, or the process is gone): until then it may still map the store pages, so
 * their references stay (invariant 4).
 */
void ops_cancel_outstanding(struct ksm_vm *vm);

/* resync.c */
int region_resync(struct ksm_region *r);

/* engine.c: there is more to find than the last looks said: all of the VM is looked at, and soon */
void vm_rouse(struct ksm_vm *vm);

/* region.c */
struct ksm_region *vm_region_at(struct ksm_vm *vm, u64 hva, u64 bytes); /* that holds all of it */
void region_free(struct ksm_region *r);					/* all pages must be NONE */
u64 region_bytes(const struct ksm_region *r);				/* metadata */
/* What was seen of its pages is old. */
void region_rouse(struct ksm_region *r);
/* All present pages are new. A pass that is under way has perhaps left them behind: it begins
 * again. */
void region_look_anew(struct ksm_region *r);
/* Reads the mappings of those that could not be read before. */
void regions_read(struct ksm_vm *vm);
/* Frees those that were given up, once nothing of them maps the store and no request speaks of
 * them. */
void regions_reap(struct ksm_vm *vm);

#endif
