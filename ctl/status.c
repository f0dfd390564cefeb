/* SPDX-License-Identifier: MIT */
/* The commands that only ask or tell the daemon something. */
#include <inttypes.h>
#include <string.h>
#include "ctl/ctl.h"

enum {
	COL_NAME,
	COL_PID,
	COL_CONFIGURED,
	COL_RESIDENT,
	COL_SHARED,
	COL_ZERO,
	COL_SAVED,
	COL_DEBT,
	COL_STATE,
	NR_COLUMNS
};

static const char *const headings[NR_COLUMNS] = {
	"NAME", "PID", "CONFIGURED", "RESIDENT", "SHARED", "ZERO", "SAVED", "DEBT", "STATE",
};

/* Which member of a VM's object, and of "total", a column of bytes shows. */
static const struct {
	u32 column;
	const char *key;
} byte_columns[] = {
	{ COL_CONFIGURED, "configured_bytes" }, { COL_RESIDENT, "resident_bytes" },
	{ COL_SHARED, "shared_bytes" },		{ COL_ZERO, "zero_bytes" },
	{ COL_SAVED, "net_saved_bytes" },	{ COL_DEBT, "cow_debt_bytes" },
};

static const char *string_of(const json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s ? s : "-";
}

static s64 number_of(const json_t *j, const char *key)
{
	return json_integer_value(json_object_get(j, key));
}

/* The one word that matters most. */
static const char *state_of(const json_t *vm)
{
	const char *share = string_of(vm, "share");

	if (!json_is_true(json_object_get(vm, "connected")))
		return "agent lost";
	if (json_is_true(json_object_get(vm, "unmerged")))
		return "unmerged";
	return strcmp(share, "on") == 0 ? "sharing" : share;
}

static void add_row(struct ctl_table *t, const json_t *j, const char *name, const char *pid,
		    const char *state)
{
	char texts[NR_COLUMNS][CTL_CELL_MAX];
	const char *cells[NR_COLUMNS];

	cells[COL_NAME] = ctl_safe(texts[COL_NAME], name);
	cells[COL_PID] = pid;
	cells[COL_STATE] = ctl_safe(texts[COL_STATE], state);
	for (size_t i = 0; i < ARRAY_SIZE(byte_columns); i++) {
		const json_t *value = json_object_get(j, byte_columns[i].key);
		u32 column = byte_columns[i].column;

		cells[column] = value ? ctl_bytes(texts[column], json_integer_value(value)) : "-";
	}
	ctl_table_row(t, cells);
}

static void print_host(const json_t *reply)
{
	const json_t *host = json_object_get(reply, "host"),
		     *total = json_object_get(reply, "total");
	s64 up = number_of(host, "uptime_us"), cpu = number_of(host, "cpu_us_total");
	s64 limit = number_of(host, "scan_cpu_permille");
	char store[CTL_CELL_MAX], overhead[CTL_CELL_MAX];

	printf("\nhost: %s; %.1f s of CPU in %.0f s (%.2f%% of a core, limit %.1f%%); store %s, "
	       "overhead %s\n",
	       json_is_true(json_object_get(host, "scanning")) ? "scanning" : "paused",
	       (double)cpu / 1e6, (double)up / 1e6, up > 0 ? 100.0 * (double)cpu / (double)up : 0,
	       (double)limit / 10, ctl_bytes(store, number_of(total, "store_bytes")),
	       ctl_bytes(overhead, number_of(total, "overhead_bytes")));
}

/* What bounds sharing, and what drives it; a daemon of an older version tells nothing of this. */
static void print_limits(const json_t *reply)
{
	const json_t *host = json_object_get(reply, "host"), *vms = json_object_get(reply, "vms");
	s64 now = number_of(host, "max_map_count"), most = 0, limit = 0;
	const json_t *vm, *some = json_object_get(host, "pressure_some_permille");
	char available[CTL_CELL_MAX], memory[CTL_CELL_MAX];
	size_t i;

	if (!now)
		return;
	json_array_foreach (vms, i, vm) {
		most = MAX(most, number_of(vm, "map_count"));
		limit = number_of(vm, "map_limit");
	}
	printf("mappings: vm.max_map_count %" PRId64 " (before Ballast %" PRId64 ")", now,
	       number_of(host, "max_map_count_original"));
	if (most)
		printf("; the VM with most has %" PRId64 ", sharing may make %" PRId64, most,
		       limit);
	printf("\nmemory: %s; %s of %s available",
	       json_is_true(json_object_get(host, "pressure")) ? "short" : "enough",
	       ctl_bytes(available, number_of(host, "available_bytes")),
	       ctl_bytes(memory, number_of(host, "memory_bytes")));
	if (some)
		printf(", tasks wait for it %.1f%% of the time",
		       (double)json_integer_value(some) / 10);
	putchar('\n');
}

int ctl_status(const struct ctl_options *o, char **args)
{
	struct ctl_table t = { .nr_columns = NR_COLUMNS, .left = 1U << COL_NAME | 1U << COL_STATE };
	json_t *reply = NULL;
	json_t *vms, *vm;
	size_t i;
	int r;

	r = ctl_call(o, json_pack("{s:s}", "command", "status"), &reply);
	if (r)
		return r;
	if (o->json)
		return ctl_print_json(reply);
	vms = json_object_get(reply, "vms");
	if (!json_is_array(vms) || !json_is_object(json_object_get(reply, "host")) ||
	    !json_is_object(json_object_get(reply, "total"))) {
		ctl_error("the reply of %s lacks the status (a ballastd of another version?)",
			  o->socket);
		json_decref(reply);
		return 1;
	}
	ctl_table_row(&t, headings);
	json_array_foreach (vms, i, vm) {
		char pid[24];

		snprintf(pid, sizeof(pid), "%" PRId64, number_of(vm, "pid"));
		add_row(&t, vm, string_of(vm, "name"), pid, state_of(vm));
	}
	add_row(&t, json_object_get(reply, "total"), "total", "", "");
	r = ctl_table_print(&t, stdout);
	print_host(reply);
	print_limits(reply);
	ctl_print_balloons(reply);
	if (json_array_size(vms) == 0)
		puts("No VM is attached: start one with \"ballast-run qemu-system-x86_64 ...\".");
	ctl_table_free(&t);
	json_decref(reply);
	return r;
}

static int simple(const struct ctl_options *o, const char *command, const char *done)
{
	json_t *reply = NULL;
	int r = ctl_call(o, json_pack("{s:s}", "command", command), &reply);

	if (r == 0)
		r = o->json ? ctl_print_json(json_incref(reply)) : (puts(done), 0);
	json_decref(reply);
	return r;
}

int ctl_pause(const struct ctl_options *o, char **args)
{
	return simple(o, "pause",
		      "paused: what is shared stays shared, nothing new is merged "
		      "(undo with \"ballastctl resume\")");
}

int ctl_resume(const struct ctl_options *o, char **args)
{
	return simple(o, "resume", "scanning");
}

int ctl_unmerge(const struct ctl_options *o, char **args)
{
	char name[CTL_CELL_MAX], size[CTL_CELL_MAX];
	json_t *reply = NULL;
	s64 pages;
	int r;

	r = ctl_call(o, json_pack("{s:s,s:s}", "command", "unmerge", "vm", args[0]), &reply);
	if (r)
		return r;
	if (o->json)
		return ctl_print_json(reply);
	pages = number_of(reply, "pages");
	printf("%s: %" PRId64 " pages (%s) are made private and stay so (undo with \"ballastctl "
	       "share\")\n",
	       ctl_safe(name, args[0]), pages, ctl_bytes(size, pages * (s64)PAGE_BYTES));
	json_decref(reply);
	return 0;
}

int ctl_share(const struct ctl_options *o, char **args)
{
	char name[CTL_CELL_MAX];
	json_t *reply = NULL;
	int r;

	r = ctl_call(o, json_pack("{s:s,s:s}", "command", "share", "vm", args[0]), &reply);
	if (r)
		return r;
	if (o->json)
		return ctl_print_json(reply);
	printf("%s: takes part in sharing again\n", ctl_safe(name, args[0]));
	json_decref(reply);
	return 0;
}
