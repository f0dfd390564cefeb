/* SPDX-License-Identifier: MIT */
/* ballastctl balloon and page-out, and what status says of balloons. */
#include <inttypes.h>
#include <string.h>
#include "common/parse.h"
#include "ctl/ctl.h"

static const char *text_of(const json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s ? s : "";
}

static s64 bytes_of(const json_t *j, const char *key)
{
	return json_integer_value(json_object_get(j, key));
}

int ctl_balloon(const struct ctl_options *o, char **args)
{
	char name[CTL_CELL_MAX], size[CTL_CELL_MAX], why[256];
	json_t *request, *reply = NULL;
	u64 bytes = 0;
	bool on = strcmp(args[1], "off") != 0;
	int r;

	if (on && (parse_bytes(args[1], &bytes) < 0 || bytes == 0 || bytes > INT64_MAX)) {
		ctl_error("\"%s\" is not " PARSE_BYTES_ACCEPTS ", or off", ctl_safe(name, args[1]));
		return CTL_USAGE;
	}
	request = json_pack("{s:s,s:s}", "command", "balloon", "vm", args[0]);
	if (request && on)
		json_object_set_new(request, "bytes", json_integer((json_int_t)bytes));
	r = ctl_call(o, request, &reply);
	if (r)
		return r;
	if (o->json)
		return ctl_print_json(reply);
	ctl_safe(name, args[0]);
	if (on)
		printf("%s: shall do with %s%s, as far as its guest can spare the rest", name,
		       ctl_bytes(size, bytes_of(reply, "bytes")),
		       bytes_of(reply, "bytes") == (s64)bytes ? "" : " (its bounds considered)");
	else
		printf("%s: gets all of its memory back", name);
	ctl_safe(why, text_of(reply, "error"));
	printf("%s%s\n", *why ? "; now: " : "", why);
	json_decref(reply);
	return 0;
}

/* A request of VM and SIZE: 0, with the reply, which the caller frees; or the exit status. */
static int ask_for_bytes(const struct ctl_options *o, const char *command, char **args,
			 json_t **ret)
{
	char name[CTL_CELL_MAX];
	u64 bytes;

	if (parse_bytes(args[1], &bytes) < 0 || bytes == 0 || bytes > INT64_MAX) {
		ctl_error("\"%s\" is not " PARSE_BYTES_ACCEPTS, ctl_safe(name, args[1]));
		return CTL_USAGE;
	}
	return ctl_call(o,
			json_pack("{s:s,s:s,s:I}", "command", command, "vm", args[0], "bytes",
				  (json_int_t)bytes),
			ret);
}

int ctl_page_out(const struct ctl_options *o, char **args)
{
	char name[CTL_CELL_MAX], size[CTL_CELL_MAX];
	json_t *reply = NULL;
	int r = ask_for_bytes(o, "page-out", args, &reply);

	if (r)
		return r;
	if (o->json)
		return ctl_print_json(reply);
	printf("%s: %s are to be compressed\n", ctl_safe(name, args[0]),
	       ctl_bytes(size, bytes_of(reply, "pages") << PAGE_SHIFT));
	json_decref(reply);
	return 0;
}

int ctl_swap_out(const struct ctl_options *o, char **args)
{
	char name[CTL_CELL_MAX], size[CTL_CELL_MAX];
	json_t *reply = NULL;
	int r = ask_for_bytes(o, "swap-out", args, &reply);

	if (r)
		return r;
	if (o->json)
		return ctl_print_json(reply);
	printf("%s: %s are to be written to its swap file\n", ctl_safe(name, args[0]),
	       ctl_bytes(size, bytes_of(reply, "bytes")));
	json_decref(reply);
	return 0;
}

/* A line for each VM whose balloon is in use, or in trouble while it should be. */
void ctl_print_balloons(const json_t *reply)
{
	const json_t *vm, *vms = json_object_get(reply, "vms");
	size_t i;

	json_array_foreach (vms, i, vm) {
		char name[CTL_CELL_MAX], text[CTL_CELL_MAX], a[CTL_CELL_MAX], b[CTL_CELL_MAX];
		const json_t *actual = json_object_get(vm, "balloon_actual_bytes");

		if (!json_object_get(vm, "balloon_wish_bytes") &&
		    !json_object_get(vm, "balloon_target_bytes"))
			continue;
		printf("balloon: %s", ctl_safe(name, text_of(vm, "name")));
		if (json_object_get(vm, "balloon_wish_bytes"))
			printf(" shall do with %s",
			       ctl_bytes(a, bytes_of(vm, "balloon_wish_bytes")));
		if (actual)
			printf(", has %s of %s", ctl_bytes(a, json_integer_value(actual)),
			       ctl_bytes(b, bytes_of(vm, "balloon_ram_bytes")));
		printf(": %s\n", ctl_safe(text, actual ? text_of(vm, "balloon_reason")
						       : text_of(vm, "balloon_error")));
	}
}
