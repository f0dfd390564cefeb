/* SPDX-License-Identifier: MIT */
/* ballastctl plan and explain: what the policy would do now, and why. */
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
	printf("This is a plan only: nothing acts on it yet.\n");
	json_decref(reply);
	return 0;
}

int ctl_explain(const struct ctl_options *o, char **args)
{
	char name[CTL_CELL_MAX], a[CTL_CELL_MAX], b[CTL_CELL_MAX], c[CTL_CELL_MAX];
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
	if (json_object_get(found, "guest_available_bytes"))
		printf("; its guest could spare of %s, as it said %.1f s ago",
		       ctl_bytes(a, number(found, "guest_available_bytes")),
		       (double)number(found, "stats_age_us") / 1e6);
	else
		printf("; its guest says nothing of its memory");
	printf("%s\n", json_is_true(json_object_get(found, "pressure"))
			       ? "; the guest is short of memory"
			       : "");
	if (!print_actions(reply, args[0]))
		printf("  nothing is to be done\n");
	json_decref(reply);
	return 0;
}
