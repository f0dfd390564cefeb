/* SPDX-License-Identifier: MIT */
/*
 * ballastctl analyze: what would be saved among VMMs that run now and know nothing of Ballast.
 * guestmem.c reads, analysis.c counts, this file asks and prints.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "common/parse.h"
#include "ctl/ctl.h"
#include "ctl/guestmem.h"

struct analyzed {
	struct guest *guests;
	struct analysis_counts *counts; /* of each guest */
	u32 nr;
	struct analysis analysis;
	struct guest total; /* sums; no ranges */
};

static void say_why(const char *pid, int error)
{
	char safe[CTL_CELL_MAX];

	ctl_safe(safe, pid);
	switch (error) {
	case -ESRCH:
	case -ENOENT:
		ctl_error(
			"%s: no such process, or one without memory (it has ended, or is a kernel thread)",
			safe);
		break;
	case -EACCES:
	case -EPERM:
		ctl_error("%s: no permission to read its memory (run as root, with CAP_SYS_PTRACE)",
			  safe);
		break;
	default:
		ctl_error("%s: cannot read its memory: %s", safe, strerror(-error));
	}
}

static bool seen(const struct analyzed *a, pid_t pid)
{
	for (u32 i = 0; i < a->nr; i++) {
		if (a->guests[i].pid == pid)
			return true;
	}
	return false;
}

/* Adds the VMM of one argument. 0, or 1 after an error line; then the others still count. */
static int add_vmm(struct analyzed *a, const char *arg, struct guest_pages *pages)
{
	struct guest *g = &a->guests[a->nr];
	char safe[CTL_CELL_MAX];
	u64 pid;
	int r;

	if (parse_u64(arg, 1, INT32_MAX, &pid) < 0) {
		ctl_error("\"%s\" is not a PID (\"pgrep qemu\" finds them)", ctl_safe(safe, arg));
		return 1;
	}
	if (seen(a, (pid_t)pid)) {
		ctl_error("%s: named twice; it counts once", ctl_safe(safe, arg));
		return 1;
	}
	r = guestmem_find((pid_t)pid, g);
	if (r < 0) {
		say_why(arg, r);
		return 1;
	}
	if (g->nr_ranges == 0) {
		ctl_error("%" PRIu64 ": no guest RAM found: it has no private anonymous mapping of "
			  "16 MiB or more (RAM on hugetlbfs or in shared memory cannot be shared)",
			  pid);
		guestmem_free(g);
		return 1;
	}
	r = guestmem_read(g, a->nr, GUESTMEM_AUTO, pages);
	if (r < 0) {
		say_why(arg, r);
		guestmem_free(g);
		return 1;
	}
	a->total.resident += g->resident;
	a->total.zero += g->zero;
	a->total.kernel_zero += g->kernel_zero;
	a->total.huge += g->huge;
	a->total.unreadable += g->unreadable;
	a->total.ksm_merged += g->ksm_merged;
	a->nr++;
	return 0;
}

static u64 saved_pages(const struct guest *g, const struct analysis_counts *c)
{
	return g->zero + c->dup_within + c->dup_across;
}

/* The figures of a VMM or of all, in the order of the table and by the names of the JSON. */
struct figure {
	const char *heading, *key;
	bool bytes; /* pages otherwise */
	u64 value;
};
#define NR_FIGURES 11

static void get_figures(const struct guest *g, const struct analysis_counts *c,
			struct figure ret[NR_FIGURES])
{
	const struct figure figures[NR_FIGURES] = {
		{ "RESIDENT", "resident_pages", false, g->resident },
		{ "ZERO", "zero_pages", false, g->zero },
		{ "DISTINCT", "distinct_pages", false, c->distinct },
		{ "DUP-WITHIN", "duplicate_pages_within", false, c->dup_within },
		{ "DUP-ACROSS", "duplicate_pages_across", false, c->dup_across },
		{ "SAVES", "saved_bytes", true, saved_pages(g, c) * PAGE_BYTES },
		{ "MAPPINGS", "runs", false, c->runs },
		/* The rest is for those who read JSON. */
		{ NULL, "shareable_pages", false, c->shareable },
		{ NULL, "already_shared_pages", false, c->already_shared },
		{ NULL, "kernel_zero_pages", false, g->kernel_zero },
		{ NULL, "huge_pages", false, g->huge },
	};

	memcpy(ret, figures, sizeof(figures));
}

#define NR_COLUMNS (2 + 7)

static void add_row(struct ctl_table *t, const char *pid, const char *name,
		    const struct figure *figures)
{
	char texts[NR_COLUMNS][CTL_CELL_MAX];
	const char *cells[NR_COLUMNS] = { pid, name };

	for (u32 i = 2; i < NR_COLUMNS; i++) {
		const struct figure *f = &figures[i - 2];

		if (f->bytes)
			ctl_bytes(texts[i], (s64)f->value);
		else
			snprintf(texts[i], sizeof(texts[i]), "%" PRIu64, f->value);
		cells[i] = texts[i];
	}
	ctl_table_row(t, cells);
}

static void print_ranges(const struct analyzed *a)
{
	char name[CTL_CELL_MAX], size[CTL_CELL_MAX];

	puts("Taken for guest RAM (private anonymous memory of 16 MiB or more):");
	for (u32 i = 0; i < a->nr; i++) {
		const struct guest *g = &a->guests[i];

		for (u32 j = 0; j < g->nr_ranges; j++) {
			const struct guest_range *r = &g->ranges[j];

			printf("  %d (%s)  %#" PRIx64 "-%#" PRIx64 "  %s%s%s\n", (int)g->pid,
			       ctl_safe(name, g->name), r->start, r->end,
			       ctl_bytes(size, (s64)(r->end - r->start)),
			       r->mergeable ? ", mergeable" : "",
			       r->ballast ? ", shared by Ballast in part" : "");
		}
	}
}

static int print_table(const struct analyzed *a)
{
	struct ctl_table t = { .nr_columns = NR_COLUMNS, .left = 3 };
	const char *headings[NR_COLUMNS] = { "PID", "NAME" };
	struct figure figures[NR_FIGURES];
	int r;

	get_figures(&a->total, &a->analysis.total, figures);
	for (u32 i = 2; i < NR_COLUMNS; i++)
		headings[i] = figures[i - 2].heading;
	ctl_table_row(&t, headings);
	for (u32 i = 0; i < a->nr; i++) {
		char pid[24], name[CTL_CELL_MAX];

		get_figures(&a->guests[i], &a->counts[i], figures);
		snprintf(pid, sizeof(pid), "%d", (int)a->guests[i].pid);
		add_row(&t, pid, ctl_safe(name, a->guests[i].name), figures);
	}
	get_figures(&a->total, &a->analysis.total, figures);
	add_row(&t, "total", "", figures);
	puts("\nIn pages of 4 KiB:");
	r = ctl_table_print(&t, stdout);
	ctl_table_free(&t);
	puts("DUP-WITHIN: the same as an earlier page of the same VMM. DUP-ACROSS: only the same as a "
	     "page of a VMM named before.");
	return r;
}

static void print_runs(const struct analysis *a)
{
	if (a->total.runs == 0)
		return;
	printf("\nRuns of consecutive shareable pages (a run is one mapping; %" PRIu64 " pages in "
	       "%" PRIu64 " runs, %.1f on average):\n",
	       a->total.shareable, a->total.runs,
	       (double)a->total.shareable / (double)a->total.runs);
	printf("  %13s  %9s  %9s\n", "LENGTH", "RUNS", "PAGES");
	for (u32 b = 0; b < ANALYSIS_NR_BUCKETS; b++) {
		char length[CTL_CELL_MAX];

		if (a->runs[b] == 0)
			continue;
		if (b == 0)
			snprintf(length, sizeof(length), "1");
		else if (b == ANALYSIS_NR_BUCKETS - 1)
			snprintf(length, sizeof(length), "%u or more", 1U << b);
		else
			snprintf(length, sizeof(length), "%u-%u", 1U << b, (2U << b) - 1);
		printf("  %13s  %9" PRIu64 "  %9" PRIu64 "  %5.1f%%\n", length, a->runs[b],
		       a->run_pages[b],
		       100.0 * (double)a->run_pages[b] / (double)a->total.shareable);
	}
}

static void print_summary(const struct analyzed *a)
{
	const struct analysis_counts *c = &a->analysis.total;
	u64 saved = saved_pages(&a->total, c);
	char size[CTL_CELL_MAX], of[CTL_CELL_MAX];

	printf("\nSharing would save %s of %s resident (%.1f%%): %" PRIu64 " zero pages, %" PRIu64
	       " duplicates.\n",
	       ctl_bytes(size, (s64)(saved * PAGE_BYTES)),
	       ctl_bytes(of, (s64)(a->total.resident * PAGE_BYTES)),
	       a->total.resident ? 100.0 * (double)saved / (double)a->total.resident : 0.0,
	       a->total.zero, c->dup_within + c->dup_across);
	if (c->already_shared)
		printf("%" PRIu64
		       " pages are shared by Ballast already; they are not counted again.\n",
		       c->already_shared);
	if (a->total.ksm_merged)
		printf("%" PRIu64
		       " pages are merged by the kernel's KSM already: that much less would be "
		       "saved.\n",
		       a->total.ksm_merged);
	if (a->total.huge)
		printf("%" PRIu64
		       " of the pages are in transparent huge pages, which sharing would split.\n",
		       a->total.huge);
	if (a->total.unreadable)
		printf("%" PRIu64 " pages went away while they were looked at.\n",
		       a->total.unreadable);
	puts("The memory was only read: nothing was changed.");
}

static json_t *figures_json(const struct guest *g, const struct analysis_counts *c)
{
	struct figure figures[NR_FIGURES];
	json_t *j = json_object();

	get_figures(g, c, figures);
	for (u32 i = 0; i < NR_FIGURES; i++)
		json_object_set_new(j, figures[i].key, json_integer((json_int_t)figures[i].value));
	json_object_set_new(j, "ksm_merged_pages", json_integer((json_int_t)g->ksm_merged));
	json_object_set_new(j, "unreadable_pages", json_integer((json_int_t)g->unreadable));
	return j;
}

static json_t *vmm_json(const struct guest *g, const struct analysis_counts *c)
{
	json_t *j = figures_json(g, c), *ranges = json_array();
	char name[CTL_CELL_MAX];

	for (u32 i = 0; i < g->nr_ranges; i++) {
		const struct guest_range *r = &g->ranges[i];

		json_array_append_new(ranges,
				      json_pack("{s:I,s:I,s:b,s:b}", "start", (json_int_t)r->start,
						"end", (json_int_t)r->end, "mergeable",
						r->mergeable, "ballast", r->ballast));
	}
	json_object_set_new(j, "pid", json_integer(g->pid));
	json_object_set_new(j, "name", json_string(ctl_safe(name, g->name)));
	json_object_set_new(j, "ranges", ranges);
	return j;
}

static json_t *analyzed_json(const struct analyzed *a)
{
	json_t *j = json_object(), *vmms = json_array(), *runs = json_array();

	for (u32 i = 0; i < a->nr; i++)
		json_array_append_new(vmms, vmm_json(&a->guests[i], &a->counts[i]));
	for (u32 b = 0; b < ANALYSIS_NR_BUCKETS; b++)
		json_array_append_new(runs, json_pack("{s:i,s:I,s:I}", "min_pages", 1 << b, "runs",
						      (json_int_t)a->analysis.runs[b], "pages",
						      (json_int_t)a->analysis.run_pages[b]));
	json_object_set_new(j, "vmms", vmms);
	json_object_set_new(j, "total", figures_json(&a->total, &a->analysis.total));
	json_object_set_new(j, "run_lengths", runs);
	return j;
}

int ctl_analyze(const struct ctl_options *o, char **args)
{
	struct guest_pages pages = { 0 };
	struct analyzed a = { 0 };
	size_t nr_args = 0;
	int r = 0;

	while (args[nr_args])
		nr_args++;
	if (nr_args > ANALYSIS_VMS_MAX) {
		ctl_error("at most %d PIDs", ANALYSIS_VMS_MAX);
		return CTL_USAGE;
	}
	a.guests = calloc(nr_args, sizeof(*a.guests));
	a.counts = calloc(nr_args, sizeof(*a.counts));
	if (!a.guests || !a.counts) {
		ctl_error("out of memory");
		r = 1;
		goto out;
	}
	for (size_t i = 0; i < nr_args; i++)
		r |= add_vmm(&a, args[i], &pages);
	if (a.nr == 0)
		goto out;
	analysis_run(pages.v, pages.nr, a.counts, a.nr, &a.analysis);
	if (o->json) {
		r |= ctl_print_json(analyzed_json(&a));
		goto out;
	}
	print_ranges(&a);
	r |= print_table(&a);
	print_runs(&a.analysis);
	print_summary(&a);
out:
	for (u32 i = 0; i < a.nr; i++)
		guestmem_free(&a.guests[i]);
	free(a.guests);
	free(a.counts);
	free(pages.v);
	return r;
}
