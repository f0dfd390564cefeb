/* SPDX-License-Identifier: MIT */
/*
 * The sharing engine: finds equal pages among VMs and has them merged.
 *
 * It works in slices on the caller's thread (engine_run) and never waits for an agent: requests go
 * out through engine_ops, answers come back by engine_done(). What can hang (looking into a VMM)
 * runs on reader threads with a time limit. For each VM, window by window, pass after pass:
 *
 *   1. PAGEMAP_SCAN: which pages were written since the last pass (and re-arm them); which
 *      merged pages broke.
 *      Huge pages are left whole and unwatched, but surveyed (huge.c).
 *   2. Pages that were written before the last pass and not since are read and hashed.
 *   3. Zero pages are to become zero-page mappings. The others are looked up in their domain's
 *      index: in the store already, seen once in another page, or new.
 *   4. Pairs are promoted: one of the two is read again, and what is read is written to store
 *      pages whose order follows the guest's.
 *   5. The agents are asked to merge. They verify again, after the page can no longer change
 *      (invariant 2).
 *   6. What they did is accounted for; the kernel's word (1.) corrects the account.
 *
 * A page's life:
 *
 *   NONE --written--> FRESH --still--> hashed --> CANDIDATE --match--> PENDING --merged--> SHARED
 *                                         \--zero--> PENDING -----------------------------> ZERO
 *
 *   ZERO and CANDIDATE --written--> FRESH
 *   SHARED --written--> BROKEN, which is hashed in its place, and merges again from there
 *   any --discarded--> NONE
 *
 * Not thread-safe: one thread owns the engine. Return values: 0 or negative errno.
 */
#ifndef BALLAST_KSMD_ENGINE_H
#define BALLAST_KSMD_ENGINE_H

#include <sys/types.h>
#include "common/types.h"

/* Bounds of one request; the agent protocol's are at least these. */
#define ENGINE_RUNS_MAX	   1024
#define ENGINE_PAGES_MAX   2048
#define ENGINE_REGIONS_MAX 64

enum ksm_mode {
	KSM_OFF, /* not looked at, but for what is merged already */
	KSM_ZERO_ONLY,
	KSM_ON,
};

/* One run of a merge request. */
struct ksm_run {
	u64 hva;
	u64 store_offset; /* bytes; unused for zero pages */
	u32 nr_pages;
	bool zero;
	u32 sample; /* of page_out(): the round of samples that it belongs to; 0: of none */
};

#define PAGE_SECTORS 8 /* disk sectors of 512 bytes */

struct ksm_range {
	u64 hva, bytes;
};

/* What became of consecutive pages of a request, in its order: 0 or negative errno. */
struct ksm_segment {
	u64 hva;
	u32 nr_pages;
	s32 status;
};

struct engine;
struct ksm_vm;
struct ksm_domain;
struct store;

/* How the engine reaches a VM's agent. Mandatory; @conn is what engine_vm_connect() was given. */
struct engine_ops {
	/* 0; -EAGAIN: try again later. Any other error: the connection is lost, and
	 * engine_vm_disconnect() follows. */
	int (*merge)(void *conn, u32 seq, const struct ksm_run *runs, u32 nr);
	int (*unmerge)(void *conn, u32 seq, const struct ksm_range *ranges, u32 nr);
	/* The same for memory that is empty and shall be an image's. */
	int (*map_image)(void *conn, u32 seq, const struct ksm_run *runs, u32 nr);
	/* The same for pages that shall leave the guest (hypervisor-hooks/pager.c). -ENOTSUP: the
	 * agent has no pager. */
	int (*page_out)(void *conn, u32 seq, const struct ksm_run *runs, u32 nr);
	/* What was asked by engine_image() has ended: 0, or negative errno. */
	int (*image_end)(void *conn, int status, u64 nr_pages);
	/* Looking into this VM hangs (or no longer does): for the log. */
	void (*blocked)(void *conn, bool blocked);
};

struct engine_config {
	u64 interval_us;	  /* between the starts of two passes over a VM, at most (pace.h) */
	u64 idle_interval_us;	  /* between two looks at memory that nobody writes */
	u64 thp_split_min_saving; /* bytes that splitting a huge page must save (huge.c) */
	bool pressure; /* the host is short of memory: look everywhere, split whatever saves */
	u64 store_max_bytes;
	u32 threads;
	u32 request_pages;   /* in one request to an agent, at most ENGINE_PAGES_MAX */
	bool enabled;	     /* false: no new merges */
	u64 maps_limit;	     /* mappings that sharing may add to one VMM */
	u64 image_max_bytes; /* of all images of a domain */
	u64 vm_max_bytes;    /* guest memory that one VM may register */
};

int engine_new(const struct engine_config *cfg, const struct engine_ops *ops, struct engine **ret);
void engine_free(struct engine *e);
void engine_configure(struct engine *e,
		      const struct engine_config *cfg); /* threads, store size: not changed */

/* The domain of that name, made when first asked for. */
int engine_domain(struct engine *e, const char *name, struct ksm_domain **ret);
struct store *domain_store(struct ksm_domain *d);
/* Gives a new domain the store of a dead daemon (owned by the engine on success) and reads its
 * content back. */
int engine_domain_adopt(struct engine *e, const char *name, struct store *s,
			struct ksm_domain **ret);
/* All VMs that could map an adopted store are known again. */
void engine_recovered(struct engine *e);

int engine_vm_add(struct engine *e, pid_t pid, struct ksm_domain *d, enum ksm_mode mode,
		  struct ksm_vm **ret);
void engine_vm_connect(struct ksm_vm *vm, void *conn);
/* Does every mapping of the store that the kernel shows lie in a known region? */
bool engine_vm_accounted(const struct ksm_vm *vm);
/* The agent is gone, the process is not: what is merged stays so and is accounted for. */
void engine_vm_disconnect(struct ksm_vm *vm);
/* The process is gone (and only then): its references are dropped, bit by bit, and @vm is not the
 * caller's any more. */
void engine_vm_exit(struct ksm_vm *vm);
void engine_vm_set_mode(struct ksm_vm *vm, enum ksm_mode mode);

/* Reads from the kernel which of the region's pages map the store. A region that is known is read
 * anew. */
int engine_region_add(struct ksm_vm *vm, u64 hva, u64 bytes);
int engine_region_del(struct ksm_vm *vm, u64 hva, u64 bytes);
/* The agent says that it replaced merged pages by empty memory. */
int engine_discard(struct ksm_vm *vm, u64 hva, u64 bytes);
/* The VMM says that it has just filled these pages of its own from @sector of @disk on. A hint: it
 * is looked into when there is time, or not at all. */
int engine_disk_read(struct ksm_vm *vm, u64 hva, u32 nr_pages, const u64 disk[2], u64 sector);
/* The VM wants its memory there, which is empty, to be what the file has from @offset on. Takes
 * over @fd. -EPROTO: its last such wish has not ended; else engine_ops.image_end() says how this
 * one ends. */
int engine_image(struct ksm_vm *vm, int fd, u64 hva, u64 bytes, u64 offset);
/* Closes a file that the VM has passed, which may hang, but for a limited time here. */
void engine_close_file(struct ksm_vm *vm, int fd);
/* -EPROTO: not an answer to what was asked. @cpu_us: what the agent used since it was asked. */
int engine_done(struct ksm_vm *vm, u32 seq, const struct ksm_segment *segments, u32 nr);

/* Makes all of the VM's memory private; it is left alone until engine_share(). *ret_pages: how many
 * are shared now. */
int engine_unmerge(struct ksm_vm *vm, u64 *ret_pages);
void engine_share(struct ksm_vm *vm);

/*
 * Has @pages pages of the VM taken out of the guest and kept, compressed, by its agent: private
 * ones that were not written for some passes, memory that was not written for longest first; never
 * huge pages. Each round begins where the last one ended. Returns how many it asks for (fewer:
 * there are not more such pages, or the VM is busy). What becomes of them is counted in
 * the agent's. @in_use: after those also pages that were written lately.
 */
u64 engine_page_out(struct ksm_vm *vm, u64 pages, bool in_use);
/* Of these, what was asked for and is not done yet. */
u64 engine_going_out(const struct ksm_vm *vm);
/*
 * Has the kernel swap out about @pages pages of the VM, chosen in the same way, those that are
 * swapped apart; bit by bit, in engine_run(). Replaces what was asked before: 0 ends it. Needs no
 * agent, only swap on the host; without it, or where a cgroup forbids it, nothing happens.
 */
void engine_swap_out(struct ksm_vm *vm, u64 pages);
/* Pages out @nr pages anywhere in the private memory that is known to be there, written or not:
 * the agent counts which of them the guest comes back for (ESX's statistical sampling: Waldspurger
 * 2002, section 5.3). A new round: those of the last one are not counted any more. @seed: any
 * number. Returns how many; *ret_known_pages: about how many pages the scan knows to be there. */
u32 engine_sample(struct ksm_vm *vm, u32 nr, u64 *seed, u64 *ret_known_pages);

/* Works for about @cpu_us; returns when the next work is due (now_us() time; UINT64_MAX: nothing to
 * do). */
u64 engine_run(struct engine *e, u64 cpu_us);

struct ksm_vm_stats {
	u64 configured_pages, shared_pages, zero_pages, broken_pages, candidate_pages, mappings,
		meta_bytes;
	u64 scanned_total, hashed_total, merged_total, zeroed_total, broken_total, discarded_total,
		unmerged_total, failed_total, pinned_total, passes_total, repaired_total,
		image_total,	   /* pages that began as an image's */
		read_shared_total, /* of merged_total: found by share on read */
		swap_asked_total;  /* pages that the kernel was asked to swap out */
	/* Chunks of 2 MiB that are huge pages and kept so; pages that splitting those would save,
	 * as far as is known; chunks that were split to share. */
	u64 huge_chunks, huge_saving_pages, huge_split_total;
	bool unmerged, blocked;
};
void engine_vm_stats(const struct ksm_vm *vm, struct ksm_vm_stats *ret);

struct ksm_domain_stats {
	const char *name;
	u64 store_pages, store_refs, index_entries, index_bytes, store_meta_bytes;
};
u32 engine_domains(const struct engine *e, struct ksm_domain_stats *ret, u32 max);
u64 engine_given_up(const struct engine *e);

#endif
