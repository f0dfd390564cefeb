/* SPDX-License-Identifier: MIT */
/*
 * From the daemon's view of the host to the policy's plan (tiering/policy.h). Pure: what the VMs
 * take is in the view.
 *
 * What is not known counts on the safe side: without an estimate all of a VM's memory is in use;
 * sharing's yield is what surveys of huge pages found. What is compressed or swapped out comes back
 * by itself when the guest wants it, so that there is nothing to give back.
 */
#ifndef BALLAST_DAEMON_PLAN_H
#define BALLAST_DAEMON_PLAN_H

#include "common/procfs.h"
#include "daemon/config.h"
#include "daemon/decisions.h"
#include "daemon/view.h"
#include "tiering/policy.h"

struct plan {
	struct policy_plan policy; /* actions[].vm, entitled[]: as in the view's vms */
	struct policy_vm *vms;
	struct decisions *decisions; /* of each VM, before this plan; NULL: not asked for */
};

/* What [policy] says. */
struct policy_config plan_config(const struct config *c);

/*
 * @state: of the last step; changed. @elapsed_us: since then. The memory that is divided is
 * v->host.policy's if that is set, else the host's. 0, -ENOMEM, or -ENODATA where neither is known.
 */
int plan_view(const struct view *v, const struct policy_config *cfg, struct policy *state,
	      u64 elapsed_us, struct plan *ret);
void plan_free(struct plan *p);

/*
 * The host's memory that a VM takes, from what its process has mapped: a page that is in the store
 * counts as its part of it.
 */
u64 plan_resident(const struct view *v, const struct vm_view *vm, const struct proc_rss *rss);

#endif
