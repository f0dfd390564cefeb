/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/balloon_report.h"
#include "daemon/exporter.h"
#include "daemon/plan_report.h"

/* How the number in the view becomes the base unit of the metric. */
enum unit {
	UNIT_ONE,
	UNIT_PAGES,    /* pages to bytes */
	UNIT_US,       /* microseconds to seconds */
	UNIT_PERMILLE, /* to a ratio */
	UNIT_BOOL,
};

struct field {
	const char *name, *help;
	enum mx_type type;
	enum unit unit;
	size_t offset; /* of a u64, or as the unit says: UNIT_BOOL a bool, UNIT_PERMILLE a u32 */
};

#define HOST(member) offsetof(struct host_view, member)
#define VM(member)   offsetof(struct vm_view, member)
#define DOM(member)  offsetof(struct domain_view, member)

static const struct field host_fields[] = {
	{ "ballast_scanning", "1 while new sharing is looked for, 0 when paused or disabled.",
	  MX_GAUGE, UNIT_BOOL, HOST(scanning) },
	{ "ballast_uptime_seconds", "Time since the daemon started.", MX_GAUGE, UNIT_US,
	  HOST(uptime_us) },
	{ "ballast_cpu_seconds_total", "CPU time used by the daemon and its agents.", MX_COUNTER,
	  UNIT_US, HOST(cpu_us_total) },
	{ "ballast_scan_cpu_limit_ratio",
	  "CPU that scanning may use, 1 is one core (scan.cpu_percent).", MX_GAUGE, UNIT_PERMILLE,
	  HOST(scan_cpu_permille) },
	{ "ballast_daemon_resident_bytes", "Resident memory of the daemon itself.", MX_GAUGE,
	  UNIT_ONE, HOST(daemon_rss_bytes) },
	{ "ballast_max_map_count", "vm.max_map_count of the host now.", MX_GAUGE, UNIT_ONE,
	  HOST(max_map_count) },
	{ "ballast_max_map_count_original",
	  "What it was before the daemon raised it, and will be when it stops.", MX_GAUGE, UNIT_ONE,
	  HOST(max_map_count_original) },
	{ "ballast_host_pressure", "1 while the host is short of memory by [scan] pressure_*.",
	  MX_GAUGE, UNIT_BOOL, HOST(pressure) },
	{ "ballast_config_reloads_total", "Configuration reloads that were applied.", MX_COUNTER,
	  UNIT_ONE, HOST(reloads_total) },
	{ "ballast_config_reload_errors_total",
	  "Configuration reloads that were refused, the old one being kept.", MX_COUNTER, UNIT_ONE,
	  HOST(reload_errors_total) },
	{ "ballast_protocol_errors_total", "Agent connections closed because of a bad message.",
	  MX_COUNTER, UNIT_ONE, HOST(protocol_errors_total) },
	{ "ballast_blocked_readers_total",
	  "Reads of guest memory that the kernel held up for too long.", MX_COUNTER, UNIT_ONE,
	  HOST(blocked_readers_total) },
};

static const struct field vm_fields[] = {
	{ "ballast_vm_connected", "1 while the VM's agent is connected.", MX_GAUGE, UNIT_BOOL,
	  VM(connected) },
	{ "ballast_vm_unmerged", "1 if the VM was taken out of sharing by hand.", MX_GAUGE,
	  UNIT_BOOL, VM(unmerged) },
	{ "ballast_vm_configured_bytes", "Guest RAM that the VM's agent registered.", MX_GAUGE,
	  UNIT_ONE, VM(configured_bytes) },
	{ "ballast_vm_shared_bytes", "Guest memory that is mapped to the store now.", MX_GAUGE,
	  UNIT_PAGES, VM(shared_pages) },
	{ "ballast_vm_zero_bytes", "Guest memory that is mapped to the zero page by Ballast now.",
	  MX_GAUGE, UNIT_PAGES, VM(zero_pages) },
	{ "ballast_vm_broken_bytes", "Guest memory that was shared and has been written since.",
	  MX_GAUGE, UNIT_PAGES, VM(broken_pages) },
	{ "ballast_vm_candidate_bytes", "Private guest memory whose hash is in the index.",
	  MX_GAUGE, UNIT_PAGES, VM(candidate_pages) },
	{ "ballast_vm_huge_pages", "Huge pages of guest memory that are left whole.", MX_GAUGE,
	  UNIT_ONE, VM(huge_pages) },
	{ "ballast_vm_huge_saving_bytes",
	  "What sharing would save in the huge pages that are left whole.", MX_GAUGE, UNIT_PAGES,
	  VM(huge_saving_pages) },
	{ "ballast_vm_repaired_pages_total",
	  "Merged pages that were moved to where they lie in order.", MX_COUNTER, UNIT_ONE,
	  VM(repaired_pages_total) },
	{ "ballast_vm_share_on_read_pages_total",
	  "Pages merged because two guests read the same disk block, before a scan found them.",
	  MX_COUNTER, UNIT_ONE, VM(share_on_read_pages_total) },
	{ "ballast_vm_image_pages_total",
	  "Pages that began as a snapshot's, mapped from the store for a clone.", MX_COUNTER,
	  UNIT_ONE, VM(image_pages_total) },
	{ "ballast_vm_paged_bytes", "Guest memory that is compressed outside of the guest.",
	  MX_GAUGE, UNIT_PAGES, VM(paged_pages) },
	{ "ballast_vm_swapped_bytes", "Memory of the VMM that the kernel has swapped out.",
	  MX_GAUGE, UNIT_ONE, VM(swapped_bytes) },
	{ "ballast_vm_pager_pool_bytes", "Memory that the compressed pages take.", MX_GAUGE,
	  UNIT_ONE, VM(pool_bytes) },
	{ "ballast_vm_swap_file_bytes", "What of the compressed pages is in the VM's swap file.",
	  MX_GAUGE, UNIT_ONE, VM(swap_file_bytes) },
	{ "ballast_vm_swap_file_written_bytes_total", "Written to the VM's swap file.", MX_COUNTER,
	  UNIT_ONE, VM(swap_file_written_bytes_total) },
	{ "ballast_vm_swap_file_read_pages_total", "Pages read back from the VM's swap file.",
	  MX_COUNTER, UNIT_ONE, VM(swap_file_read_pages_total) },
	{ "ballast_vm_swap_file_failures_total",
	  "Reads and writes of the VM's swap file that failed; no page is lost by a write.",
	  MX_COUNTER, UNIT_ONE, VM(swap_file_failures_total) },
	{ "ballast_vm_paged_out_pages_total", "Pages that were taken out and compressed.",
	  MX_COUNTER, UNIT_ONE, VM(paged_out_pages_total) },
	{ "ballast_vm_paged_in_pages_total", "Of them, pages that the guest came back for.",
	  MX_COUNTER, UNIT_ONE, VM(paged_in_pages_total) },
	{ "ballast_vm_swap_asked_pages_total", "Pages that the kernel was asked to swap out.",
	  MX_COUNTER, UNIT_ONE, VM(swap_asked_pages_total) },
	{ "ballast_vm_huge_splits_total", "Huge pages split in order to share.", MX_COUNTER,
	  UNIT_ONE, VM(huge_splits_total) },
	{ "ballast_vm_mappings", "Estimate of the mappings that sharing added to the VMM process.",
	  MX_GAUGE, UNIT_ONE, VM(mappings) },
	{ "ballast_vm_map_limit", "Mappings that sharing may add to the VMM process.", MX_GAUGE,
	  UNIT_ONE, VM(map_limit) },
	{ "ballast_vm_overhead_bytes",
	  "Memory spent on sharing for this VM: metadata and kernel mappings.", MX_GAUGE, UNIT_ONE,
	  VM(overhead_bytes) },
	{ "ballast_vm_scanned_pages_total", "Pages looked at.", MX_COUNTER, UNIT_ONE,
	  VM(scanned_pages_total) },
	{ "ballast_vm_hashed_pages_total", "Pages read and hashed.", MX_COUNTER, UNIT_ONE,
	  VM(hashed_pages_total) },
	{ "ballast_vm_merged_pages_total", "Pages mapped to the store.", MX_COUNTER, UNIT_ONE,
	  VM(merged_pages_total) },
	{ "ballast_vm_zeroed_pages_total", "Pages mapped to the zero page.", MX_COUNTER, UNIT_ONE,
	  VM(zeroed_pages_total) },
	{ "ballast_vm_broken_pages_total", "Shared pages made private by a guest write.",
	  MX_COUNTER, UNIT_ONE, VM(broken_pages_total) },
	{ "ballast_vm_discarded_pages_total", "Shared pages that the VM gave back.", MX_COUNTER,
	  UNIT_ONE, VM(discarded_pages_total) },
	{ "ballast_vm_unmerged_pages_total", "Shared pages made private on request.", MX_COUNTER,
	  UNIT_ONE, VM(unmerged_pages_total) },
	{ "ballast_vm_failed_pages_total", "Pages that could not be merged and stayed private.",
	  MX_COUNTER, UNIT_ONE, VM(failed_pages_total) },
	{ "ballast_vm_pinned_pages_total", "Pages not merged because a device may write to them.",
	  MX_COUNTER, UNIT_ONE, VM(pinned_pages_total) },
	{ "ballast_vm_passes_total", "Scan passes over the VM.", MX_COUNTER, UNIT_ONE,
	  VM(passes_total) },
	{ "ballast_vm_agent_cpu_seconds_total", "CPU time used by the VM's agent.", MX_COUNTER,
	  UNIT_US, VM(agent_cpu_us_total) },
	{ "ballast_vm_guest_faults_total", "Guest accesses that waited for the agent.", MX_COUNTER,
	  UNIT_ONE, VM(guest_faults_total) },
};

static const struct field domain_fields[] = {
	{ "ballast_store_bytes", "Memory of the sharing domain's store that is in use.", MX_GAUGE,
	  UNIT_PAGES, DOM(store_pages) },
	{ "ballast_store_memory_bytes", "Memory that the store's file takes by the kernel's word.",
	  MX_GAUGE, UNIT_ONE, DOM(store_memory_bytes) },
	{ "ballast_store_references", "Guest pages that map the store's pages.", MX_GAUGE, UNIT_ONE,
	  DOM(store_refs) },
	{ "ballast_store_metadata_bytes", "Memory spent on the store's books.", MX_GAUGE, UNIT_ONE,
	  DOM(store_meta_bytes) },
	{ "ballast_index_entries", "Pages in the domain's content index.", MX_GAUGE, UNIT_ONE,
	  DOM(index_entries) },
	{ "ballast_index_bytes", "Memory spent on the content index.", MX_GAUGE, UNIT_ONE,
	  DOM(index_bytes) },
};

/* One label value for each VM, or for each domain. */
struct names {
	char (*text)[EXPORTER_LABEL_MAX];
	u32 nr;
};

static int names_alloc(struct names *n, u32 nr)
{
	n->nr = nr;
	n->text = calloc(nr ?: 1, sizeof(*n->text));
	return n->text ? 0 : -1;
}

static bool taken(const struct names *n, u32 i, u32 upto)
{
	u32 j;

	for (j = 0; j < upto; j++)
		if (j != i && !strcmp(n->text[j], n->text[i]))
			return true;
	return false;
}

/*
 * Names come from the VMMs, so nothing keeps one from calling itself as another is called, or as we
 * would make it: after the readable way (the pid) comes one that always ends, a counter. Each row
 * is settled against the rows before.
 */
static void names_settle(struct names *n, u32 i)
{
	size_t bytes = strlen(n->text[i]);
	u32 k;

	for (k = 2; taken(n, i, i); k++)
		snprintf(n->text[i] + bytes, EXPORTER_LABEL_MAX - bytes, " #%u", k);
}

static int vm_names(const struct view *v, struct names *ret)
{
	char pid[32], clean[EXPORTER_LABEL_MAX];
	bool *twin;
	u32 i;

	twin = calloc(v->nr_vms ?: 1, sizeof(*twin));
	if (!twin || names_alloc(ret, v->nr_vms) < 0) {
		free(twin);
		return -1;
	}
	for (i = 0; i < v->nr_vms; i++) {
		const struct vm_view *vm = &v->vms[i];

		snprintf(pid, sizeof(pid), "pid-%d", (int)vm->pid);
		mx_clean(ret->text[i], EXPORTER_LABEL_MAX,
			 vm->name[0]   ? vm->name
			 : vm->uuid[0] ? vm->uuid
				       : pid);
	}
	/* All VMs of a name get the pid, so that a VM's label does not depend on its place in the
	 * list. */
	for (i = 0; i < v->nr_vms; i++)
		twin[i] = taken(ret, i, v->nr_vms);
	for (i = 0; i < v->nr_vms; i++) {
		if (twin[i]) {
			memcpy(clean, ret->text[i], sizeof(clean));
			snprintf(ret->text[i], EXPORTER_LABEL_MAX, "%.*s (pid %d)",
				 EXPORTER_LABEL_MAX - 40, clean, (int)v->vms[i].pid);
		}
		names_settle(ret, i);
	}
	free(twin);
	return 0;
}

static int domain_names(const struct view *v, struct names *ret)
{
	u32 i;

	if (names_alloc(ret, v->nr_domains) < 0)
		return -1;
	for (i = 0; i < v->nr_domains; i++) {
		mx_clean(ret->text[i], EXPORTER_LABEL_MAX, v->domains[i].name);
		names_settle(ret, i);
	}
	return 0;
}

static void write_field(struct mx_writer *w, const struct field *f, const void *object,
			const struct mx_label *label)
{
	const char *p = (const char *)object + f->offset;
	u32 nr = label ? 1 : 0;
	u32 permille;
	u64 value;

	switch (f->unit) {
	case UNIT_BOOL:
		mx_sample_u64(w, label, nr, *(const bool *)p);
		return;
	case UNIT_PERMILLE:
		memcpy(&permille, p, sizeof(permille));
		mx_sample_f64(w, label, nr, permille / 1e3);
		return;
	default:
		break;
	}
	memcpy(&value, p, sizeof(value));
	if (f->unit == UNIT_US)
		mx_sample_f64(w, label, nr, value / 1e6);
	else
		mx_sample_u64(w, label, nr, f->unit == UNIT_PAGES ? value * PAGE_BYTES : value);
}

/* A family that has no samples is left out: "absent" is what a reader of the scrape should see. */
static void write_fields(struct mx_writer *w, const struct field *fields, u32 nr_fields,
			 const void *objects, size_t object_bytes, const struct names *names,
			 const char *label)
{
	u32 f, i;

	if (!names->nr)
		return;
	for (f = 0; f < nr_fields; f++) {
		mx_family(w, fields[f].name, fields[f].type, fields[f].help);
		for (i = 0; i < names->nr; i++)
			write_field(w, &fields[f], (const char *)objects + i * object_bytes,
				    &(struct mx_label){ label, names->text[i] });
	}
}

static void write_vm_info(struct mx_writer *w, const struct view *v, const struct names *names)
{
	char pid[16];
	u32 i;

	if (!v->nr_vms)
		return;
	mx_family(w, "ballast_vm_info", MX_GAUGE,
		  "What the VM is, to join with other exporters: always 1.");
	for (i = 0; i < v->nr_vms; i++) {
		const struct vm_view *vm = &v->vms[i];
		const struct mx_label labels[] = {
			{ "vm", names->text[i] }, { "name", vm->name },	  { "uuid", vm->uuid },
			{ "domain", vm->domain }, { "share", vm->share }, { "pid", pid },
		};

		snprintf(pid, sizeof(pid), "%d", (int)vm->pid);
		mx_sample_u64(w, labels, ARRAY_SIZE(labels), 1);
	}
}

/* What the host as a whole saves and owes. */
static void write_totals(struct mx_writer *w, const struct view *v)
{
	struct view_totals t;

	view_totals(v, &t);
	mx_family(w, "ballast_saved_bytes", MX_GAUGE,
		  "Host memory that sharing saves: shared and zero pages less the stores.");
	mx_sample_f64(w, NULL, 0, (double)t.saved);
	mx_family(w, "ballast_overhead_bytes", MX_GAUGE,
		  "Host memory that Ballast takes: the daemon, and its part in VMMs and kernel.");
	mx_sample_f64(w, NULL, 0, (double)t.overhead);
	mx_family(w, "ballast_net_saved_bytes", MX_GAUGE,
		  "Saved less overhead; negative if sharing does not pay.");
	mx_sample_f64(w, NULL, 0, (double)t.net_saved);
	mx_family(w, "ballast_cow_debt_bytes", MX_GAUGE,
		  "Memory the host would have to find if all sharing broke, the stores freed.");
	mx_sample_f64(w, NULL, 0, (double)t.cow_debt);
}

/* What the kernel may not tell. */
static void write_host_memory(struct mx_writer *w, const struct host_view *h)
{
	if (h->has_pressure_some) {
		mx_family(w, "ballast_host_memory_pressure_ratio", MX_GAUGE,
			  "Of the last 10 s, how long some task waited for memory (PSI).");
		mx_sample_f64(w, NULL, 0, h->pressure_some_permille / 1e3);
	}
	if (!h->memory_bytes)
		return;
	mx_family(w, "ballast_host_memory_bytes", MX_GAUGE, "MemTotal of the host.");
	mx_sample_u64(w, NULL, 0, h->memory_bytes);
	mx_family(w, "ballast_host_available_bytes", MX_GAUGE, "MemAvailable of the host.");
	mx_sample_u64(w, NULL, 0, h->available_bytes);
}

static void write_vm_debt(struct mx_writer *w, const struct view *v, const struct names *names)
{
	u32 i;

	if (!v->nr_vms)
		return;
	mx_family(w, "ballast_vm_cow_debt_bytes", MX_GAUGE,
		  "Memory the VM would need in addition if all its sharing broke.");
	for (i = 0; i < v->nr_vms; i++)
		mx_sample_u64(w, &(struct mx_label){ "vm", names->text[i] }, 1,
			      view_vm_cow_debt_bytes(&v->vms[i]));
}

/* Of those that were counted. */
static void write_map_count(struct mx_writer *w, const struct view *v, const struct names *names)
{
	bool any = false;
	u32 i;

	for (i = 0; i < v->nr_vms; i++)
		any |= v->vms[i].map_count != 0;
	if (!any)
		return;
	mx_family(
		w, "ballast_vm_map_count", MX_GAUGE,
		"All mappings of the VMM process: its own as last counted, and those of sharing.");
	for (i = 0; i < v->nr_vms; i++)
		if (v->vms[i].map_count)
			mx_sample_u64(w, &(struct mx_label){ "vm", names->text[i] }, 1,
				      v->vms[i].map_count);
}

/* By what the access waited for: the agent's classes are powers of two, in us. */
static void write_latency(struct mx_writer *w, const struct view *v, const struct names *names)
{
	static const char *const kinds[WIRE_LATENCY_KINDS] = { "first-touch", "replaced", "paged" };
	double bounds[WIRE_LATENCY_BUCKETS];
	u32 i, k;

	if (!v->nr_vms)
		return;
	for (i = 0; i < WIRE_LATENCY_BUCKETS; i++)
		bounds[i] = (double)(1u << i) / 1e6;
	mx_family(w, "ballast_vm_fault_seconds", MX_HISTOGRAM,
		  "How long guest accesses waited for the agent, once it had read the event.");
	for (i = 0; i < names->nr; i++)
		for (k = 0; k < WIRE_LATENCY_KINDS; k++) {
			const struct wire_latency_of *l = &v->vms[i].latency.kinds[k];
			const struct mx_label labels[] = { { "vm", names->text[i] },
							   { "kind", kinds[k] } };

			mx_histogram(w, labels, ARRAY_SIZE(labels), l->buckets, bounds,
				     WIRE_LATENCY_BUCKETS, (double)l->sum_ns / 1e9);
		}
}

static void write_saved(struct mx_writer *w, const struct view *v, const struct names *names,
			bool net, const char *family, const char *help)
{
	s64 saved;
	u32 i;

	if (!v->nr_vms)
		return;
	mx_family(w, family, MX_GAUGE, help);
	for (i = 0; i < v->nr_vms; i++) {
		if (!view_vm_saved_bytes(v, &v->vms[i], &saved))
			continue;
		if (net)
			saved -= (s64)v->vms[i].overhead_bytes;
		mx_sample_f64(w, &(struct mx_label){ "vm", names->text[i] }, 1, (double)saved);
	}
}

void exporter_write(struct mx_writer *w, const struct view *v)
{
	struct names vms = {}, domains = {};
	u32 i;

	if (vm_names(v, &vms) < 0 || domain_names(v, &domains) < 0) {
		mx_fail(w);
		goto out;
	}

	mx_family(w, "ballast_build_info", MX_GAUGE, "Version of the daemon: always 1.");
	mx_sample_u64(w, &(struct mx_label){ "version", BALLAST_VERSION }, 1, 1);
	for (i = 0; i < ARRAY_SIZE(host_fields); i++) {
		mx_family(w, host_fields[i].name, host_fields[i].type, host_fields[i].help);
		write_field(w, &host_fields[i], &v->host, NULL);
	}

	write_host_memory(w, &v->host);
	write_totals(w, v);

	write_vm_info(w, v, &vms);
	write_fields(w, vm_fields, ARRAY_SIZE(vm_fields), v->vms, sizeof(*v->vms), &vms, "vm");
	write_saved(w, v, &vms, false, "ballast_vm_saved_bytes",
		    "Host memory that sharing saves for this VM, its part of the store counted.");
	write_saved(w, v, &vms, true, "ballast_vm_net_saved_bytes",
		    "The same less ballast_vm_overhead_bytes; negative if sharing does not pay.");

	write_vm_debt(w, v, &vms);
	write_map_count(w, v, &vms);
	write_latency(w, v, &vms);
	balloon_report_metrics(w, v, vms.text);
	plan_report_metrics(w, v, vms.text);

	write_fields(w, domain_fields, ARRAY_SIZE(domain_fields), v->domains, sizeof(*v->domains),
		     &domains, "domain");
out:
	free(vms.text);
	free(domains.text);
}
