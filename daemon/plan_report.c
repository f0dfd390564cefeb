/* SPDX-License-Identifier: MIT */
#include "daemon/json_make.h"
#include "daemon/plan_report.h"

/* --- JSON ------------------------------------------------------------------------------------- */

static json_t *decision_json(const struct vm_view *vm, const struct decision *d, u64 now)
{
	char reason[512];
	json_t *j = json_object();
	int r = 0;

	policy_explain(&d->action, vm->name, reason, sizeof(reason));
	r |= json_put(j, "reason", JSON_TEXT(reason));
	r |= json_put(j, "mechanism", json_string(policy_mechanism_name(d->action.mechanism)));
	r |= json_put(j, "take", json_boolean(d->action.take));
	r |= json_put(j, "acted", json_boolean(d->acted));
	r |= json_put(j, "bytes", json_u64(d->bytes));
	r |= json_put(j, "steps", json_u64(d->steps));
	r |= json_put(j, "began_us_ago", json_u64(now - d->first_us));
	r |= json_put(j, "ended_us_ago", json_u64(now - d->last_us));
	r |= json_put(j, "state", json_string(policy_state_name(d->state)));
	r |= json_put(j, "host_available_bytes", json_u64(d->available_bytes));
	r |= json_put(j, "guest_spare_bytes", json_u64(d->guest_spare_bytes));
	r |= json_put(j, "stats_age_us", json_u64(d->stats_age_us));
	if (r < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

static json_t *decisions_json(const struct vm_view *vm, const struct decisions *all, u64 now)
{
	json_t *j = json_array();
	const struct decision *d;
	int r = 0;

	for (u32 i = 0; (d = decisions_at(all, i)); i++)
		r |= json_array_append_new(j, decision_json(vm, d, now));
	if (r < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

/* Why the policy does not use the VM's balloon now; NULL: it may. */
static const char *held(const struct vm_view *vm, const struct policy_vm *p)
{
	const struct balloon_view *b = &vm->balloon;

	if (!vm->may_balloon)
		return "its section says balloon = off";
	if (!b->linked || !b->has_actual)
		return *b->error ? b->error : "nothing is known of its balloon yet";
	if (b->has_wish && !b->policy_wish)
		return "an administrator said how much it shall do with (ballastctl balloon VM off "
		       "ends that)";
	if (!(p->allowed >> POLICY_BALLOON & 1) || p->run != POLICY_RUNNING)
		return controller_reason_text(b->reason);
	if (!p->has_stats)
		return "its guest says nothing of its memory";
	if (!p->guest_spare_bytes)
		return "its guest has nothing to spare";
	return NULL;
}

static json_t *vm_json(const struct view *v, const struct plan *p, u32 i, u64 now)
{
	const struct vm_view *vm = &v->vms[i];
	const struct policy_vm *pv = &p->vms[i];
	const char *why = held(vm, pv);
	json_t *j = json_object();
	int r = 0;

	r |= json_put(j, "name", JSON_TEXT(vm->name));
	r |= json_put(j, "resident_bytes", json_u64(pv->resident_bytes));
	r |= json_put(j, "min_bytes", json_u64(pv->min_bytes));
	if (pv->max_bytes)
		r |= json_put(j, "max_bytes", json_u64(pv->max_bytes));
	r |= json_put(j, "shares", json_u64(pv->shares));
	r |= json_put(j, "priority", json_u64(pv->priority));
	r |= json_put(j, "entitled_bytes", json_u64(p->policy.entitled[i]));
	r |= json_put(j, "ballooned_bytes", json_u64(pv->taken_bytes[POLICY_BALLOON]));
	r |= json_put(j, "share_yield_bytes", json_u64(pv->share_yield_bytes));
	if (pv->working_set_bytes != UINT64_MAX)
		r |= json_put(j, "working_set_bytes", json_u64(pv->working_set_bytes));
	r |= json_put(j, "paged_bytes", json_u64(vm->paged_pages << PAGE_SHIFT));
	r |= json_put(j, "pool_bytes", json_u64(vm->pool_bytes));
	r |= json_put(j, "swapped_bytes", json_u64(vm->swapped_bytes));
	r |= json_put(j, "swap_file_bytes", json_u64(vm->swap_file_bytes));
	r |= json_put(j, "pressure", json_boolean(pv->pressure));
	if (why)
		r |= json_put(j, "held", json_text(why, strlen(why) + 1));
	if (pv->has_stats) {
		r |= json_put(j, "guest_spare_bytes", json_u64(pv->guest_spare_bytes));
		r |= json_put(j, "stats_age_us", json_u64(pv->stats_age_us));
	}
	if (p->decisions)
		r |= json_put(j, "decisions", decisions_json(vm, &p->decisions[i], now));
	if (r < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

static json_t *action_json(const struct view *v, const struct policy_action *a)
{
	char reason[512];
	json_t *j = json_object();
	int r = 0;

	policy_explain(a, v->vms[a->vm].name, reason, sizeof(reason));
	r |= json_put(j, "vm", JSON_TEXT(v->vms[a->vm].name));
	r |= json_put(j, "take", json_boolean(a->take));
	r |= json_put(j, "mechanism", json_string(policy_mechanism_name(a->mechanism)));
	r |= json_put(j, "bytes", json_u64(a->bytes));
	r |= json_put(j, "reason", JSON_TEXT(reason));
	if (r < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

json_t *plan_report_json(const struct view *v, const struct plan *p, u64 now)
{
	json_t *j = json_object(), *vms = json_array(), *actions = json_array();
	const struct policy_view *divided = &v->host.policy;
	int r = 0;

	for (u32 i = 0; i < v->nr_vms; i++)
		r |= json_array_append_new(vms, vm_json(v, p, i, now));
	for (u32 i = 0; i < p->policy.nr_actions; i++)
		r |= json_array_append_new(actions, action_json(v, &p->policy.actions[i]));
	r |= json_put(j, "ok", json_true());
	r |= json_put(j, "mode", JSON_TEXT(divided->mode));
	r |= json_put(j, "state", json_string(policy_state_name(p->policy.state)));
	r |= json_put(j, "memory_bytes", json_u64(divided->memory_bytes));
	r |= json_put(j, "available_bytes", json_u64(divided->available_bytes));
	r |= json_put(j, "wanted_bytes", json_u64(p->policy.wanted_bytes));
	r |= json_put(j, "unmet_bytes", json_u64(p->policy.unmet_bytes));
	r |= json_put(j, "admit_bytes", json_u64(p->policy.admit_bytes));
	r |= json_put(j, "vms", vms);
	r |= json_put(j, "actions", actions);
	if (r < 0) {
		json_decref(j);
		return NULL;
	}
	return j;
}

/* --- metrics ---------------------------------------------------------------------------------- */

static void by_mechanism(struct mx_writer *w, const char *family, const char *help,
			 const u64 *values)
{
	mx_family(w, family, MX_COUNTER, help);
	for (u32 m = 0; m < POLICY_MECHANISMS; m++)
		mx_sample_u64(w,
			      &(struct mx_label){ "mechanism",
						  policy_mechanism_name((enum policy_mechanism)m) },
			      1, values[m]);
}

static void write_states(struct mx_writer *w, const struct policy_view *p)
{
	mx_family(w, "ballast_policy_state", MX_GAUGE, "1 for the host's state, 0 for the others.");
	for (u32 s = POLICY_HIGH; s <= POLICY_LOW; s++) {
		const char *name = policy_state_name((enum policy_state)s);

		mx_sample_u64(w, &(struct mx_label){ "state", name }, 1,
			      strcmp(p->state, name) == 0);
	}
}

/* Of those that are known. */
static void write_working_sets(struct mx_writer *w, const struct view *v,
			       char (*labels)[EXPORTER_LABEL_MAX])
{
	bool any = false;

	for (u32 i = 0; i < v->nr_vms; i++) {
		if (v->vms[i].working_set_bytes == UINT64_MAX)
			continue;
		if (!any)
			mx_family(w, "ballast_vm_working_set_bytes", MX_GAUGE,
				  "Memory that the VM uses, by samples of it.");
		any = true;
		mx_sample_u64(w, &(struct mx_label){ "vm", labels[i] }, 1,
			      v->vms[i].working_set_bytes);
	}
}

void plan_report_metrics(struct mx_writer *w, const struct view *v,
			 char (*labels)[EXPORTER_LABEL_MAX])
{
	const struct policy_view *p = &v->host.policy;

	/* Nothing was decided (yet). */
	if (!*p->state)
		return;
	mx_family(w, "ballast_policy_acting", MX_GAUGE,
		  "1 with [policy] mode = act; 0: what is decided is not done.");
	mx_sample_u64(w, NULL, 0, strcmp(p->mode, "act") == 0);
	write_states(w, p);
	mx_family(w, "ballast_policy_memory_bytes", MX_GAUGE,
		  "Memory that is divided: the host's, or its cgroup's.");
	mx_sample_u64(w, NULL, 0, p->memory_bytes);
	mx_family(w, "ballast_policy_available_bytes", MX_GAUGE, "What is available of it.");
	mx_sample_u64(w, NULL, 0, p->available_bytes);
	mx_family(w, "ballast_policy_wanted_bytes", MX_GAUGE, "Memory that has to be freed.");
	mx_sample_u64(w, NULL, 0, p->wanted_bytes);
	mx_family(w, "ballast_policy_unmet_bytes", MX_GAUGE, "Of that, what no VM may give.");
	mx_sample_u64(w, NULL, 0, p->unmet_bytes);
	mx_family(w, "ballast_policy_admit_bytes", MX_GAUGE,
		  "A VM of so much memory could be started now.");
	mx_sample_u64(w, NULL, 0, p->admit_bytes);
	by_mechanism(w, "ballast_policy_taken_bytes_total",
		     "Memory that was decided to be taken from VMs.", p->taken_bytes_total);
	by_mechanism(w, "ballast_policy_given_bytes_total",
		     "Memory that was decided to be given back to VMs.", p->given_bytes_total);
	if (!v->nr_vms)
		return;
	mx_family(w, "ballast_vm_resident_bytes", MX_GAUGE,
		  "Host memory that the VM takes, its part of the store counted.");
	for (u32 i = 0; i < v->nr_vms; i++)
		mx_sample_u64(w, &(struct mx_label){ "vm", labels[i] }, 1,
			      v->vms[i].resident_bytes);
	write_working_sets(w, v, labels);
	mx_family(w, "ballast_vm_entitled_bytes", MX_GAUGE,
		  "What the VM is entitled to by its shares, as memory is now.");
	for (u32 i = 0; i < v->nr_vms; i++)
		mx_sample_u64(w, &(struct mx_label){ "vm", labels[i] }, 1,
			      v->vms[i].entitled_bytes);
}
