/* SPDX-License-Identifier: MIT */
#include <string.h>
#include "daemon/balloon_report.h"
#include "daemon/json_make.h"

/* What a guest says, under the names by which it is told. */
static const struct {
	const char *key;    /* in JSON */
	const char *family; /* in the metrics */
	const char *help;
} guest_stats[GUEST_NR_STATS] = {
	[GUEST_STAT_FREE] = { "guest_free_bytes", "ballast_vm_guest_free_bytes",
			      "Memory that the guest does not use." },
	[GUEST_STAT_AVAILABLE] = { "guest_available_bytes", "ballast_vm_guest_available_bytes",
				   "Memory that the guest could use without swapping." },
	[GUEST_STAT_TOTAL] = { "guest_total_bytes", "ballast_vm_guest_total_bytes",
			       "Memory that the guest's kernel has, its balloon not counted." },
	[GUEST_STAT_CACHES] = { "guest_cache_bytes", "ballast_vm_guest_cache_bytes",
				"Page cache of the guest." },
	[GUEST_STAT_SWAP_IN] = { "guest_swap_in_bytes_total",
				 "ballast_vm_guest_swap_in_bytes_total",
				 "Read from the guest's swap since it booted." },
	[GUEST_STAT_SWAP_OUT] = { "guest_swap_out_bytes_total",
				  "ballast_vm_guest_swap_out_bytes_total",
				  "Written to the guest's swap since it booted." },
	[GUEST_STAT_MAJOR_FAULTS] = { "guest_major_faults_total",
				      "ballast_vm_guest_major_faults_total",
				      "Page faults of the guest that had to read, since it booted." },
	[GUEST_STAT_MINOR_FAULTS] = { "guest_minor_faults_total",
				      "ballast_vm_guest_minor_faults_total",
				      "Other page faults of the guest since it booted." },
	[GUEST_STAT_OOM_KILLS] = { "guest_oom_kills_total", "ballast_vm_guest_oom_kills_total",
				   "Processes that the guest killed for want of memory." },
	[GUEST_STAT_ALLOC_STALLS] = { "guest_alloc_stalls_total",
				      "ballast_vm_guest_alloc_stalls_total",
				      "Allocations of the guest that waited for memory." },
	[GUEST_STAT_PSI_TOTAL_US] = { "guest_memory_wait_us_total",
				      "ballast_vm_guest_memory_wait_us_total",
				      "Time that some task of the guest waited for memory, in us." },
};

/* --- JSON ------------------------------------------------------------------------------------- */

static int put_u64(json_t *object, const char *key, bool known, u64 value)
{
	return known ? json_put(object, key, json_u64(value)) : 0;
}

/* All of our own making, or made printable. */
static int put_text(json_t *object, const char *key, const char *text)
{
	return *text ? json_put(object, key, json_string(text)) : 0;
}

int balloon_report_json(json_t *vm, const struct balloon_view *b)
{
	int r = 0;

	if (!*b->state)
		return 0;
	r |= put_text(vm, "balloon_state", b->state);
	r |= put_text(vm, "balloon_error", b->error);
	if (b->has_wish)
		r |= json_put(vm, "balloon_policy", json_boolean(b->policy_wish));
	r |= put_u64(vm, "balloon_wish_bytes", b->has_wish, b->wish_bytes);
	r |= put_u64(vm, "balloon_target_bytes", b->has_target, b->target_bytes);
	if (!b->linked)
		return r;
	r |= put_text(vm, "balloon_reason", controller_reason_name(b->reason));
	r |= put_text(vm, "balloon_driver", b->driver);
	r |= put_text(vm, "guest_run", b->run);
	r |= put_u64(vm, "balloon_actual_bytes", b->has_actual, b->actual_bytes);
	r |= put_u64(vm, "balloon_ram_bytes", b->ram_bytes != 0, b->ram_bytes);
	r |= json_put(vm, "balloon_stuck", json_boolean(b->stuck));
	r |= put_u64(vm, "balloon_releases_total", true, b->releases_total);
	r |= put_u64(vm, "balloon_withdrawn_total", true, b->withdrawn_total);
	r |= put_u64(vm, "guest_stats_age_us", b->has_stats, b->stats_age_us);
	for (u32 i = 0; i < GUEST_NR_STATS; i++)
		r |= put_u64(vm, guest_stats[i].key, b->present & (1U << i), b->stats[i]);
	return r;
}

/* --- metrics ---------------------------------------------------------------------------------- */

/* One number of a balloon; false: not known. */
typedef bool (*number_fn)(const struct balloon_view *b, u32 arg, double *ret);

static bool is_linked(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = b->linked;
	return *b->state != '\0';
}

static bool is_running(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = strcmp(b->run, "running") == 0;
	return b->linked;
}

static bool actual(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = (double)b->actual_bytes;
	return b->linked && b->has_actual;
}

static bool target(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = (double)b->target_bytes;
	return b->has_target;
}

static bool wish(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = (double)b->wish_bytes;
	return b->has_wish;
}

static bool is_stuck(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = b->stuck;
	return b->linked;
}

static bool releases(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = (double)b->releases_total;
	return *b->state != '\0';
}

static bool withdrawn(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = (double)b->withdrawn_total;
	return *b->state != '\0';
}

static bool stats_age(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = (double)b->stats_age_us / 1e6;
	return b->linked && b->has_stats;
}

static bool guest_stat(const struct balloon_view *b, u32 arg, double *ret)
{
	*ret = (double)b->stats[arg];
	return b->linked && (b->present & (1U << arg));
}

/* A family without samples is left out. */
static void write_family(struct mx_writer *w, const struct view *v,
			 char (*labels)[EXPORTER_LABEL_MAX], const char *family, enum mx_type type,
			 const char *help, number_fn number, u32 arg)
{
	bool opened = false;
	double value;

	for (u32 i = 0; i < v->nr_vms; i++) {
		if (!number(&v->vms[i].balloon, arg, &value))
			continue;
		if (!opened)
			mx_family(w, family, type, help);
		opened = true;
		mx_sample_f64(w, &(struct mx_label){ "vm", labels[i] }, 1, value);
	}
}

void balloon_report_metrics(struct mx_writer *w, const struct view *v,
			    char (*labels)[EXPORTER_LABEL_MAX])
{
	static const struct {
		const char *family;
		enum mx_type type;
		const char *help;
		number_fn number;
	} families[] = {
		{ "ballast_vm_balloon_up", MX_GAUGE,
		  "1 while the VM's QMP socket answers; without it nothing below is known.",
		  is_linked },
		{ "ballast_vm_running", MX_GAUGE,
		  "1 while the guest runs, 0 while it is paused or migrates.", is_running },
		{ "ballast_vm_balloon_actual_bytes", MX_GAUGE,
		  "Memory that the guest has: its RAM less the balloon.", actual },
		{ "ballast_vm_balloon_target_bytes", MX_GAUGE,
		  "Memory that the guest was last asked to do with.", target },
		{ "ballast_vm_balloon_wish_bytes", MX_GAUGE,
		  "Memory that the guest shall do with, as far as it can.", wish },
		{ "ballast_vm_balloon_stuck", MX_GAUGE,
		  "1 if the guest did not follow its last target.", is_stuck },
		{ "ballast_vm_balloon_releases_total", MX_COUNTER,
		  "Times that all memory was given back for the guest's sake.", releases },
		{ "ballast_vm_balloon_withdrawn_total", MX_COUNTER,
		  "Targets that were withdrawn because they did not move.", withdrawn },
		{ "ballast_vm_guest_stats_age_seconds", MX_GAUGE,
		  "Age of what the guest said of its memory.", stats_age },
	};

	for (u32 i = 0; i < ARRAY_SIZE(families); i++)
		write_family(w, v, labels, families[i].family, families[i].type, families[i].help,
			     families[i].number, 0);
	for (u32 i = 0; i < GUEST_NR_STATS; i++) {
		const char *family = guest_stats[i].family;
		bool total = strcmp(family + strlen(family) - 6, "_total") == 0;

		write_family(w, v, labels, family, total ? MX_COUNTER : MX_GAUGE,
			     guest_stats[i].help, guest_stat, i);
	}
}
