/* SPDX-License-Identifier: MIT */
/*
 * What the daemon knows, as plain numbers: the one source of `ballastctl status` and of the
 * metrics. Filled by the core (registry.c), read by control.c and exporter.c. All sizes in bytes
 * unless named pages.
 */
#ifndef BALLAST_DAEMON_VIEW_H
#define BALLAST_DAEMON_VIEW_H

#include <sys/types.h>
#include "common/types.h"

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
	u64 overhead_bytes;   /* daemon metadata and kernel VMAs for this VM */
	/* Counters since the VM attached (or the daemon started). */
	u64 scanned_pages_total, hashed_pages_total, merged_pages_total, zeroed_pages_total,
		broken_pages_total, discarded_pages_total, unmerged_pages_total, failed_pages_total,
		pinned_pages_total, passes_total, agent_cpu_us_total, guest_faults_total;
};

struct domain_view {
	char name[64];
	u64 store_pages; /* pages of the store in use */
	u64 store_refs;	 /* guest pages that map them */
	u64 index_entries;
	u64 index_bytes, store_meta_bytes;
};

struct host_view {
	bool scanning;		     /* false: paused or disabled */
	u64 uptime_us, cpu_us_total; /* daemon and agents */
	u64 daemon_rss_bytes;
	u32 scan_cpu_permille;
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

void view_free(struct view *v); /* frees the arrays, not @v */

#endif
