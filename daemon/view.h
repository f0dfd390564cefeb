/* SPDX-License-Identifier: MIT */
/*
 * What the daemon knows, as plain numbers: the one source of `ballastctl status` and of the
 * metrics. Filled by the core (publish.c), read by control.c and exporter.c. All sizes in bytes
 * unless named pages.
 */
#ifndef BALLAST_DAEMON_VIEW_H
#define BALLAST_DAEMON_VIEW_H

#include <sys/types.h>
#include "balloon/controller.h"
#include "common/types.h"
#include "hypervisor-hooks/wire.h"
#include "tiering/policy.h"

/* A VM's balloon, and what its guest says of its memory (balloon/). All zero: there is nothing to
 * say. What is not known has its has_ or its bit in present clear. */
struct balloon_view {
	/* "up", "no-device", "connecting", "busy" (its QMP socket is another's), "failed", or
	 * "none" (no socket is known); error says why in a sentence, if anything is wrong. */
	char state[16], error[240];
	bool linked;		  /* what follows is of now */
	char run[16], driver[16]; /* names of balloon_vm.h */
	enum controller_reason reason;
	bool has_actual;
	u64 actual_bytes, ram_bytes;
	bool stuck;
	u64 releases_total, withdrawn_total;
	bool has_stats;
	u64 stats_age_us;
	u64 spare_bytes; /* what could be taken of the guest now */
	u32 present;	 /* bit GUEST_STAT_x: stats[x] is known */
	u64 stats[GUEST_NR_STATS];
	/* Also while it is not linked: */
	u64 floor_bytes; /* of the configuration: ballooning leaves the guest no less */
	bool has_wish, has_target;
	bool policy_wish; /* the wish is the policy's, not the administrator's */
	u64 wish_bytes, target_bytes;
};

struct vm_view {
	char name[64], uuid[40], domain[64], share[16]; /* share: "on", "off", "zero-only" */
	pid_t pid;
	bool connected;	      /* the agent is connected now */
	bool unmerged;	      /* taken out of sharing with `ballastctl unmerge` */
	u64 configured_bytes; /* guest RAM that the agent registered */
	u64 shared_pages;     /* guest pages mapped to the store now */
	u64 zero_pages;	      /* guest pages that Ballast made zero-page mappings */
	u64 broken_pages;     /* pages of store mappings that the guest has since written */
	u64 candidate_pages;  /* private pages whose hash is in the index */
	u64 mappings;	      /* estimate of the extra VMAs that sharing made */
	u64 overhead_bytes;   /* daemon metadata, and what it costs inside the VMM's process */
	u64 vmm_bytes;	      /* the latter alone: the agent's books and kernel VMAs */
	u64 map_count; /* all mappings of the VMM: its own as last counted, and sharing's; 0: not
			  yet */
	u64 map_limit; /* of these, how many sharing may make */
	/* What the policy goes by; min is the balloon's floor. */
	u64 max_bytes; /* 0: none */
	u32 shares, priority;
	bool may_balloon, may_page_out, may_swap;
	u64 working_set_bytes; /* UINT64_MAX: not known */
	u64 resident_bytes;    /* of the host, its part of the store counted; as last looked at */
	u64 swapped_bytes;     /* by the kernel; as last looked at */
	u64 entitled_bytes;    /* by the last decision; 0: none yet */
	/* Counters since the VM attached (or the daemon started). */
	u64 scanned_pages_total, hashed_pages_total, merged_pages_total, zeroed_pages_total,
		broken_pages_total, discarded_pages_total, unmerged_pages_total, failed_pages_total,
		pinned_pages_total, passes_total, agent_cpu_us_total, guest_faults_total,
		huge_splits_total, repaired_pages_total, share_on_read_pages_total,
		image_pages_total, paged_out_pages_total, paged_in_pages_total,
		swap_asked_pages_total; /* pages that the kernel was asked to swap out */
	/* Of its agent's pager: pages that are out now, and the memory that they take. */
	u64 paged_pages, pool_bytes;
	bool has_pager;
	/* Its swap file: what is in it; since the VMM began: written, read back, failures. */
	bool has_swap_file, swap_file_fails;
	u64 swap_file_bytes, swap_file_written_bytes_total, swap_file_read_pages_total,
		swap_file_failures_total;
	struct wire_latency latency; /* of its guest's accesses that waited for the agent */
	/* Huge pages (2 MiB) left whole, and what splitting them would save, as far as is known. */
	u64 huge_pages, huge_saving_pages;
	struct balloon_view balloon;
};

struct domain_view {
	char name[64];
	u64 store_pages; /* pages of the store in use */
	u64 store_refs;	 /* guest pages that map them */
	u64 index_entries;
	u64 index_bytes, store_meta_bytes;
	u64 store_memory_bytes; /* what the store's file really takes, holes that were read included
				 */
};

/* What the policy decided last (governor.h). All zero: nothing yet. */
struct policy_view {
	char mode[8], state[8]; /* "act", "soft" */
	/* What it divides: the host's, or a cgroup's. */
	u64 memory_bytes, available_bytes;
	u64 wanted_bytes, unmet_bytes, admit_bytes;
	/* Since the daemon started, by mechanism; with mode = observe it would have been so. */
	u64 taken_bytes_total[POLICY_MECHANISMS], given_bytes_total[POLICY_MECHANISMS];
};

struct host_view {
	bool scanning;		     /* false: paused or disabled */
	u64 uptime_us, cpu_us_total; /* daemon and agents */
	u64 daemon_rss_bytes;
	u32 scan_cpu_permille;			   /* as it is now, pressure considered */
	u64 max_map_count, max_map_count_original; /* the same unless the daemon raised it */
	bool pressure;				   /* the host is short of memory */
	bool has_pressure_some;			   /* the kernel has PSI */
	u32 pressure_some_permille;	   /* of the last 10 s, how long tasks waited for memory */
	u64 memory_bytes, available_bytes; /* 0: could not be read */
	u64 swap_free_bytes;		   /* the kernel's */
	u64 swap_file_free_bytes; /* what the VMs' swap files may still take, all together */
	struct policy_view policy;
	u64 reloads_total, reload_errors_total, protocol_errors_total, blocked_readers_total;
};

struct view {
	struct host_view host;
	struct vm_view *vms;
	u32 nr_vms;
	struct domain_view *domains;
	u32 nr_domains;
};

/*
 * What sharing saves of a VM: its shared and zero pages, less its part of the store, which is
 * divided among those who map it by how much they map. The sum over VMs is thus the host's saving.
 * False: the part cannot be said (its domain has no references yet, after a restart).
 */
bool view_vm_saved_bytes(const struct view *v, const struct vm_view *vm, s64 *ret);

/*
 * Copy-on-write debt: memory that the host would have to find if sharing broke, as it does when
 * guests write. A VM's: each shared and each zero page would need a frame of its own. The host's is
 * less than the sum: when the last guest page that maps a store page breaks, the store's frame is
 * free.
 */
u64 view_vm_cow_debt_bytes(const struct vm_view *vm);

/* Of a page cache tree node (584 bytes for 64 pages): what the kernel needs for a store page that
 * it did not need for the anonymous pages. */
#define STORE_PAGE_KERNEL_BYTES 9

/*
 * The whole host, signed: sharing that does not pay says so. Overhead is all that Ballast takes:
 * the daemon's resident memory (its metadata is in that), what it costs in the VMMs, and what the
 * stores' files take beyond their pages, in the kernel too. So the net saving is less than the sum
 * over the VMs. Store pages that no guest maps any more are not saved in the first place.
 */
struct view_totals {
	s64 configured, shared, zero, store, saved, overhead, net_saved, cow_debt; /* bytes */
};
void view_totals(const struct view *v, struct view_totals *ret);

void view_free(struct view *v); /* frees the arrays, not @v */

#endif
