/* SPDX-License-Identifier: MIT */
/* ballastctl plan and explain: what the policy would do now, what it did, and why. */
#include <string.h>
#include "ctl/ctl.h"

static s64 number(const json_t *j, const char *key)
{
	return json_integer_value(json_object_get(j, key));
}

static const char *text(const json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s ? s : "";
}

static void print_host(const json_t *reply)
{
	char a[CTL_CELL_MAX], b[CTL_CELL_MAX], c[CTL_CELL_MAX], state[CTL_CELL_MAX];

	printf("host: %s, %s of %s available", ctl_safe(state, text(reply, "state")),
	       ctl_bytes(a, number(reply, "available_bytes")),
	       ctl_bytes(b, number(reply, "memory_bytes")));
	if (number(reply, "wanted_bytes"))
		printf(", %s wanted", ctl_bytes(c, number(reply, "wanted_bytes")));
	if (number(reply, "unmet_bytes"))
		printf(", of which no VM can give %s", ctl_bytes(c, number(reply, "unmet_bytes")));
	printf("; a VM of %s could be started\n", ctl_bytes(c, number(reply, "admit_bytes")));
}

/* Those of one VM, or of all. */
static int print_actions(const json_t *reply, const char *vm)
{
	const json_t *action;
	char line[600];
	int printed = 0;
	size_t i;

	json_array_foreach (json_object_get(reply, "actions"), i, action) {
		if (vm && strcmp(text(action, "vm"), vm) != 0)
			continue;
		printf("  %s\n", ctl_safe(line, text(action, "reason")));
		printed++;
	}
	return printed;
}

static int call(const struct ctl_options *o, json_t **ret)
{
	return ctl_call(o, json_pack("{s:s}", "command", "plan"), ret);
}

/* Does anybody act on it? */
static void print_mode(const json_t *reply)
{
	const char *mode = text(reply, "mode");

	if (strcmp(mode, "act") == 0)
		printf("[policy] mode = act: this is done, step by step.\n");
	else
		printf("This is a plan only: nothing acts on it ([policy] mode = %s; act would).\n",
		       mode);
}

static void print_decisions(const json_t *vm)
{
	const json_t *decisions = json_object_get(vm, "decisions"), *d;
	char line[600], a[CTL_CELL_MAX], b[CTL_CELL_MAX];
	size_t i;

	if (json_array_size(decisions) == 0) {
		printf("decided before: nothing\n");
		return;
	}
	printf("decided before, newest first:\n");
	json_array_foreach (decisions, i, d) {
		printf("  %.0f s ago%s: %s\n", (double)number(d, "ended_us_ago") / 1e6,
		       json_is_true(json_object_get(d, "acted")) ? "" : ", only observed",
		       ctl_safe(line, text(d, "reason")));
		printf("    %s in %lld steps within %.0f s; the host was %s with %s available, the "
		       "guest could spare %s by what it had said %.1f s before\n",
		       ctl_bytes(a, number(d, "bytes")), (long long)number(d, "steps"),
		       (double)(number(d, "began_us_ago") - number(d, "ended_us_ago")) / 1e6,
		       text(d, "state"), ctl_bytes(b, number(d, "host_available_bytes")),
		       ctl_bytes(line, number(d, "guest_spare_bytes")),
		       (double)number(d, "stats_age_us") / 1e6);
	}
}

int ctl_plan(const struct ctl_options *o, char **args)
{
	json_t *reply = NULL;
	int r = call(o, &reply);

	if (r)
		return r;
	if (o->json)
		return ctl_print_json(reply);
	print_host(reply);
	if (!print_actions(reply, NULL))
		printf("  nothing is to be done\n");
	print_mode(reply);
	json_decref(reply);
	return 0;
}

int ctl_explain(const struct ctl_options *o, char **args)
{
	char name[CTL_CELL_MAX], a[CTL_CELL_MAX], b[CTL_CELL_MAX], c[CTL_CELL_MAX], line[600];
	const json_t *vm, *found = NULL;
	json_t *reply = NULL;
	int r = call(o, &reply);
	size_t i;

	if (r)
		return r;
	json_array_foreach (json_object_get(reply, "vms"), i, vm)
		if (strcmp(text(vm, "name"), args[0]) == 0)
			found = vm;
	ctl_safe(name, args[0]);
	if (!found) {
		ctl_error("no VM has the name \"%s\" (ballastctl status lists them)", name);
		json_decref(reply);
		return 1;
	}
	if (o->json) {
		r = ctl_print_json(json_deep_copy(found));
		json_decref(reply);
		return r;
	}
	print_host(reply);
	printf("%s: has %s, at least %s stays its, entitled to %s", name,
	       ctl_bytes(a, number(found, "resident_bytes")),
	       ctl_bytes(b, number(found, "min_bytes")),
	       ctl_bytes(c, number(found, "entitled_bytes")));
	if (json_object_get(found, "max_bytes"))
		printf(", may have %s at most", ctl_bytes(a, number(found, "max_bytes")));
	printf("; shares %lld, priority %lld", (long long)number(found, "shares"),
	       (long long)number(found, "priority"));
	if (json_object_get(found, "working_set_bytes"))
		printf("; uses %s", ctl_bytes(a, number(found, "working_set_bytes")));
	if (number(found, "paged_bytes"))
		printf("; %s of it are compressed to %s",
		       ctl_bytes(a, number(found, "paged_bytes")),
		       ctl_bytes(b, number(found, "pool_bytes")));
	if (number(found, "swap_file_bytes"))
		printf(" and %s in its swap file", ctl_bytes(a, number(found, "swap_file_bytes")));
	if (number(found, "swapped_bytes"))
		printf("; %s of it are swapped out", ctl_bytes(a, number(found, "swapped_bytes")));
	if (number(found, "ballooned_bytes"))
		printf("; %s are in its balloon", ctl_bytes(a, number(found, "ballooned_bytes")));
	if (json_object_get(found, "guest_spare_bytes"))
		printf("; its guest could spare %s, by what it said %.1f s ago",
		       ctl_bytes(a, number(found, "guest_spare_bytes")),
		       (double)number(found, "stats_age_us") / 1e6);
	else
		printf("; its guest says nothing of its memory");
	printf("%s\n", json_is_true(json_object_get(found, "pressure"))
			       ? "; the guest is short of memory"
			       : "");
	if (json_object_get(found, "held"))
		printf("nothing is taken by balloon now: %s\n",
		       ctl_safe(line, text(found, "held")));
	printf("now:\n");
	if (!print_actions(reply, args[0]))
		printf("  nothing is to be done\n");
	print_decisions(found);
	print_mode(reply);
	json_decref(reply);
	return 0;
}
