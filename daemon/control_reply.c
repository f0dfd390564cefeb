/* SPDX-License-Identifier: MIT */
/*
 * Requests in, replies out.
 *
 * What sharing saves, in pages. A domain's store holds store_pages, and store_refs guest pages map
 * them; so each shared guest page carries store_pages / store_refs of a page, and the rest of it
 * is saved:
 *
 *   VM:    saved = shared_pages * (1 - store_pages / store_refs) + zero_pages
 *          net   = saved - overhead_bytes
 *   total: saved = sum of shared_pages - sum of store_pages + sum of zero_pages
 *          net   = saved - all that Ballast takes of the host (view.h, view_totals())
 *
 * A VM's overhead_bytes is what exists for this VM alone. The rest of the daemon (a domain's index
 * and store tables serve all its VMs) only the total carries; so it is less than the sum over the
 * VMs. The total also carries store pages that no guest maps any more. All of these are signed:
 * sharing that does not pay says so.
 */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "daemon/balloon_report.h"
#include "daemon/control_reply.h"
#include "daemon/json_make.h"
#include "daemon/plan_report.h"

/* The members of view.h that are plain u64, by name. */
struct field {
	const char *name;
	size_t offset;
};

#define HOST(m)                                   \
	{                                         \
#m, offsetof(struct host_view, m) \
	}
#define VM(m)                                   \
	{                                       \
#m, offsetof(struct vm_view, m) \
	}
#define DOMAIN(m)                                   \
	{                                           \
#m, offsetof(struct domain_view, m) \
	}

static const struct field host_fields[] = {
	HOST(uptime_us),	   HOST(cpu_us_total),		 HOST(daemon_rss_bytes),
	HOST(max_map_count),	   HOST(max_map_count_original), HOST(reloads_total),
	HOST(reload_errors_total), HOST(protocol_errors_total),	 HOST(blocked_readers_total),
};

static const struct field vm_fields[] = {
	VM(configured_bytes),
	VM(shared_pages),
	VM(zero_pages),
	VM(broken_pages),
	VM(candidate_pages),
	VM(mappings),
	VM(map_count),
	VM(map_limit),
	VM(overhead_bytes),
	VM(scanned_pages_total),
	VM(hashed_pages_total),
	VM(merged_pages_total),
	VM(zeroed_pages_total),
	VM(broken_pages_total),
	VM(discarded_pages_total),
	VM(unmerged_pages_total),
	VM(failed_pages_total),
	VM(pinned_pages_total),
	VM(passes_total),
	VM(agent_cpu_us_total),
	VM(guest_faults_total),
	VM(huge_pages),
	VM(huge_saving_pages),
	VM(huge_splits_total),
	VM(repaired_pages_total),
	VM(share_on_read_pages_total),
	VM(image_pages_total),
	VM(paged_pages),
	VM(pool_bytes),
	VM(swapped_bytes),
	VM(swap_file_bytes),
	VM(swap_file_written_bytes_total),
	VM(swap_file_read_pages_total),
	VM(swap_file_failures_total),
	VM(swap_asked_pages_total),
	VM(paged_out_pages_total),
	VM(paged_in_pages_total),
};

static const struct field domain_fields[] = {
	DOMAIN(store_pages), DOMAIN(store_refs),       DOMAIN(index_entries),
	DOMAIN(index_bytes), DOMAIN(store_meta_bytes), DOMAIN(store_memory_bytes),
};

static int put_fields(json_t *object, const struct field *fields, size_t nr, const void *base)
{
	int r = 0;

	for (size_t i = 0; i < nr; i++) {
		u64 value;

		memcpy(&value, (const char *)base + fields[i].offset, sizeof(value));
		r |= json_put(object, fields[i].name, json_u64(value));
	}
	return r;
}

/* @ret_resident: NULL, or what could be read is added to it. */
static json_t *vm_json(const struct view *v, const struct vm_view *vm, s64 *ret_resident)
{
	s64 saved;
	struct proc_memory mem;
	json_t *j = json_object();
	int r = 0;

	/* Where its part of the store cannot be said, only the zero pages are certain. */
	if (!view_vm_saved_bytes(v, vm, &saved))
		saved = (s64)(vm->zero_pages * PAGE_BYTES);
	r |= json_put(j, "name", JSON_TEXT(vm->name));
	r |= json_put(j, "uuid", JSON_TEXT(vm->uuid));
	r |= json_put(j, "domain", JSON_TEXT(vm->domain));
	r |= json_put(j, "share", JSON_TEXT(vm->share));
	r |= json_put(j, "pid", json_integer(vm->pid));
	r |= json_put(j, "connected", json_boolean(vm->connected));
	r |= json_put(j, "unmerged", json_boolean(vm->unmerged));
	r |= put_fields(j, vm_fields, ARRAY_SIZE(vm_fields), vm);
	/* Absent when the VMM has ended meanwhile. */
	if (ret_resident && proc_memory(vm->pid, &mem) == 0) {
		r |= json_put(j, "resident_bytes", json_u64(mem.pss));
		*ret_resident += (s64)mem.pss;
	}
	r |= json_put(j, "shared_bytes", json_u64(vm->shared_pages * PAGE_BYTES));
	r |= json_put(j, "zero_bytes", json_u64(vm->zero_pages * PAGE_BYTES));
	r |= json_put(j, "saved_bytes", json_integer(saved));
	r |= json_put(j, "net_saved_bytes", json_integer(saved - (s64)vm->overhead_bytes));
	r |= json_put(j, "cow_debt_bytes", json_u64(view_vm_cow_debt_bytes(vm)));
	r |= balloon_report_json(j, &vm->balloon);
	if (r < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

static json_t *domain_json(const struct domain_view *d)
{
	json_t *j = json_object();

	if (json_put(j, "name", JSON_TEXT(d->name)) < 0 ||
	    put_fields(j, domain_fields, ARRAY_SIZE(domain_fields), d) < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

static json_t *host_json(const struct host_view *h)
{
	json_t *j = json_object();

	if (json_put(j, "scanning", json_boolean(h->scanning)) < 0 ||
	    json_put(j, "scan_cpu_permille", json_u64(h->scan_cpu_permille)) < 0 ||
	    json_put(j, "pressure", json_boolean(h->pressure)) < 0 ||
	    (h->has_pressure_some &&
	     json_put(j, "pressure_some_permille", json_u64(h->pressure_some_permille)) < 0) ||
	    (h->memory_bytes &&
	     (json_put(j, "memory_bytes", json_u64(h->memory_bytes)) < 0 ||
	      json_put(j, "available_bytes", json_u64(h->available_bytes)) < 0)) ||
	    put_fields(j, host_fields, ARRAY_SIZE(host_fields), h) < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

static json_t *totals_json(const struct view *v, s64 resident)
{
	struct view_totals t;

	view_totals(v, &t);
	return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "configured_bytes",
			 (json_int_t)t.configured, "resident_bytes", (json_int_t)resident,
			 "shared_bytes", (json_int_t)t.shared, "zero_bytes", (json_int_t)t.zero,
			 "store_bytes", (json_int_t)t.store, "saved_bytes", (json_int_t)t.saved,
			 "overhead_bytes", (json_int_t)t.overhead, "net_saved_bytes",
			 (json_int_t)t.net_saved, "cow_debt_bytes", (json_int_t)t.cow_debt);
}

static json_t *view_json(const struct view *v, bool resident)
{
	json_t *j = json_object(), *vms = json_array(), *domains = json_array();
	s64 pss = 0;
	int r = 0;

	for (u32 i = 0; i < v->nr_vms; i++)
		r |= json_array_append_new(vms, vm_json(v, &v->vms[i], resident ? &pss : NULL));
	for (u32 i = 0; i < v->nr_domains; i++)
		r |= json_array_append_new(domains, domain_json(&v->domains[i]));
	r |= json_put(j, "ok", json_true());
	r |= json_put(j, "host", host_json(&v->host));
	r |= json_put(j, "vms", vms);
	r |= json_put(j, "domains", domains);
	r |= json_put(j, "total", totals_json(v, pss));
	if (r < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

/* Compact and on one line, so that a line is a reply. Takes over @j, which may be NULL. */
static char *reply_text(json_t *j)
{
	char *json = j ? json_dumps(j, JSON_COMPACT) : NULL;
	char *line = NULL;

	if (json && asprintf(&line, "%s\n", json) < 0)
		line = NULL;
	free(json);
	json_decref(j);
	return line;
}

char *control_reply_error(const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return reply_text(json_pack("{s:b,s:o}", "ok", 0, "error", JSON_TEXT(text)));
}

/* A request that is one. @vm: a name, a UUID or a PID; NULL if the command needs none. */
struct request {
	const char *vm;
	const json_t *json;
};

static char *reply_ok(void)
{
	return reply_text(json_pack("{s:b}", "ok", 1));
}

static char *view_reply(const struct control_ops *ops, void *core, bool resident)
{
	struct view v = { 0 };
	char *line;
	int r = ops->view(core, &v);

	if (r < 0)
		return control_reply_error("cannot gather the status: %s", strerror(-r));
	line = reply_text(view_json(&v, resident));
	view_free(&v);
	return line;
}

static char *do_status(const struct control_ops *ops, void *core, const struct request *q)
{
	return view_reply(ops, core, true);
}

/* For who asks often: PSS costs the kernel a walk over all of a VM's pages. */
static char *do_counters(const struct control_ops *ops, void *core, const struct request *q)
{
	return view_reply(ops, core, false);
}

static char *do_pause(const struct control_ops *ops, void *core, const struct request *q)
{
	int r = ops->set_paused(core, true);

	return r < 0 ? control_reply_error("cannot pause: %s", strerror(-r)) : reply_ok();
}

static char *do_resume(const struct control_ops *ops, void *core, const struct request *q)
{
	int r = ops->set_paused(core, false);

	return r < 0 ? control_reply_error("cannot resume: %s", strerror(-r)) : reply_ok();
}

/* What an error of unmerge and share means to whoever asked. */
static char *vm_error(const char *command, const char *vm, int error)
{
	/* The name is the client's own, but it ends up in a log or on a terminal. */
	int len = (int)strnlen(vm, 80);

	switch (error) {
	case -ENOENT:
		return control_reply_error("no VM has the name, UUID or PID \"%.*s\" (ballastctl "
					   "status lists them)",
					   len, vm);
	case -ENOTCONN:
		return control_reply_error("the agent of VM \"%.*s\" is not connected (it comes "
					   "back within seconds, or the VM has ended)",
					   len, vm);
	default:
		return control_reply_error("cannot %s \"%.*s\": %s", command, len, vm,
					   strerror(-error));
	}
}

static char *do_unmerge(const struct control_ops *ops, void *core, const struct request *q)
{
	u64 pages = 0;
	int r = ops->unmerge(core, q->vm, &pages);

	if (r < 0)
		return vm_error("unmerge", q->vm, r);
	return reply_text(json_pack("{s:b,s:o}", "ok", 1, "pages", json_u64(pages)));
}

static char *do_share(const struct control_ops *ops, void *core, const struct request *q)
{
	int r = ops->share(core, q->vm);

	return r < 0 ? vm_error("share", q->vm, r) : reply_ok();
}

static char *do_balloon(const struct control_ops *ops, void *core, const struct request *q)
{
	json_t *reply, *bytes = json_object_get(q->json, "bytes");
	struct balloon_view b = { 0 };
	u64 wish = 0;
	int r;

	if (bytes && (!json_is_integer(bytes) || json_integer_value(bytes) <= 0))
		return control_reply_error("\"bytes\" of balloon is a number above 0 (without it: "
					   "off)");
	r = ops->balloon(core, q->vm, bytes != NULL, bytes ? (u64)json_integer_value(bytes) : 0,
			 &wish, &b);
	if (r == -ENODEV)
		return control_reply_error("VM \"%.*s\" has no balloon that can be reached%s%.160s",
					   (int)strnlen(q->vm, 80), q->vm, *b.error ? ": " : "",
					   b.error);
	if (r < 0)
		return vm_error("balloon", q->vm, r);
	reply = json_pack("{s:b,s:o}", "ok", 1, "bytes", json_u64(wish));
	if (reply && *b.error)
		json_object_set_new(reply, "error", JSON_TEXT(b.error));
	return reply_text(reply);
}

static char *do_page_out(const struct control_ops *ops, void *core, const struct request *q)
{
	json_t *bytes = json_object_get(q->json, "bytes");
	u64 pages = 0;
	int r;

	if (!json_is_integer(bytes) || json_integer_value(bytes) <= 0)
		return control_reply_error("page-out needs \"bytes\", a number above 0");
	r = ops->page_out(core, q->vm, (u64)json_integer_value(bytes), &pages);
	if (r == -ENOTSUP)
		return control_reply_error("the agent of VM \"%.*s\" is older than the daemon: it "
					   "cannot page out (restart the VM with the present "
					   "ballast-run)",
					   (int)strnlen(q->vm, 80), q->vm);
	if (r < 0)
		return vm_error("page-out", q->vm, r);
	return reply_text(json_pack("{s:b,s:o}", "ok", 1, "pages", json_u64(pages)));
}

static char *do_swap_out(const struct control_ops *ops, void *core, const struct request *q)
{
	json_t *bytes = json_object_get(q->json, "bytes");
	u64 asked = 0;
	int r;

	if (!json_is_integer(bytes) || json_integer_value(bytes) <= 0)
		return control_reply_error("swap-out needs \"bytes\", a number above 0");
	r = ops->swap_out(core, q->vm, (u64)json_integer_value(bytes), &asked);
	if (r == -ENODEV)
		return control_reply_error("VM \"%.*s\" has no swap file ([policy] swap_dir = a "
					   "folder gives its agent one)",
					   (int)strnlen(q->vm, 80), q->vm);
	if (r < 0)
		return vm_error("swap-out", q->vm, r);
	return reply_text(json_pack("{s:b,s:o}", "ok", 1, "bytes", json_u64(asked)));
}

static char *do_plan(const struct control_ops *ops, void *core, const struct request *q)
{
	struct view v = { 0 };
	struct plan p = { 0 };
	char *line;
	int r = ops->plan(core, &v, &p);

	if (r < 0)
		return control_reply_error("cannot make a plan: %s",
					   r == -ENODATA ? "the host's memory is not known"
							 : strerror(-r));
	line = reply_text(plan_report_json(&v, &p, now_us()));
	plan_free(&p);
	view_free(&v);
	return line;
}

static const struct command {
	const char *name;
	bool needs_vm;
	char *(*run)(const struct control_ops *ops, void *core, const struct request *q);
} commands[] = {
	{ "status", false, do_status },	   { "counters", false, do_counters },
	{ "pause", false, do_pause },	   { "resume", false, do_resume },
	{ "unmerge", true, do_unmerge },   { "share", true, do_share },
	{ "balloon", true, do_balloon },   { "plan", false, do_plan },
	{ "page-out", true, do_page_out }, { "swap-out", true, do_swap_out },
};

char *control_reply(const struct control_ops *ops, void *core, const char *request, size_t len,
		    bool *ret_malformed)
{
	const struct command *cmd = NULL;
	const char *name, *vm = NULL;
	char *line = NULL, pid[24];
	json_error_t error;
	json_t *j = NULL, *arg;

	*ret_malformed = true;
	if (memchr(request, '\0', len))
		return control_reply_error("the request holds a NUL byte");
	/* jansson bounds the depth of nesting itself (2048) and refuses bad UTF-8. */
	j = json_loadb(request, len, JSON_REJECT_DUPLICATES, &error);
	if (!j)
		return control_reply_error("the request is not JSON: %s", error.text);
	name = json_string_value(json_object_get(j, "command"));
	if (!name) {
		line = control_reply_error("the request is not an object with a \"command\"");
		goto out;
	}
	*ret_malformed = false;
	for (size_t i = 0; i < ARRAY_SIZE(commands) && !cmd; i++) {
		if (strcmp(commands[i].name, name) == 0)
			cmd = &commands[i];
	}
	if (!cmd) {
		line = control_reply_error(
			"unknown command \"%.60s\" (known: status, "
			"counters, pause, resume, unmerge, share, balloon, page-out, plan)",
			name);
		goto out;
	}
	arg = json_object_get(j, "vm");
	if (json_is_integer(arg)) { /* a PID, from a client that takes numbers for numbers */
		snprintf(pid, sizeof(pid), "%lld", (long long)json_integer_value(arg));
		vm = pid;
	} else {
		vm = json_string_value(arg);
	}
	if (cmd->needs_vm && (!vm || !*vm)) {
		line = control_reply_error("%s needs \"vm\": a name, UUID or PID", name);
		goto out;
	}
	line = cmd->run(ops, core, &(struct request){ vm, j });
out:
	json_decref(j);
	return line;
}
