/* SPDX-License-Identifier: MIT */
/*
 * What the policy (tiering/policy.h) would do now, from the daemon's view of the host. Dry: nothing
 * acts on it, and it remembers nothing, so the host's state is that of a host that was high before.
 *
 * What is not known yet counts on the safe side: without an estimate all of a VM's memory is in
 * use; shares are alike; sharing's yield is what surveys of huge pages found.
 */
#ifndef BALLAST_DAEMON_PLAN_H
#define BALLAST_DAEMON_PLAN_H

#include "daemon/view.h"
#include "tiering/policy.h"

struct plan {
	struct policy_plan policy; /* actions[].vm, entitled[]: as in the view's vms */
	struct policy_vm *vms;
};

/* @resident: of each VM, in bytes. 0, -ENOMEM, or -ENODATA where the host's memory is not known. */
int plan_view(const struct view *v, const u64 *resident, struct plan *ret);
void plan_free(struct plan *p);

#endif
