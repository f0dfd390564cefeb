/* SPDX-License-Identifier: MIT */
/*
 * What is told of the policy: the reply to `ballastctl plan` and `explain`, and metric families
 * (exporter.c). Pure.
 */
#ifndef BALLAST_DAEMON_PLAN_REPORT_H
#define BALLAST_DAEMON_PLAN_REPORT_H

#include <jansson.h>
#include "daemon/exporter.h"
#include "daemon/plan.h"

/*
 * "mode", "state", the bytes of struct policy_plan and policy_view, "actions" (what it would do
 * now), and in "vms" for each what it goes by, "held" (why its balloon is not used, in a sentence;
 * absent: it may be) and "decisions" (the last ones, newest first). NULL: no memory.
 */
json_t *plan_report_json(const struct view *v, const struct plan *p, u64 now_us);

/* ballast_policy_*, ballast_vm_resident_bytes, ballast_vm_entitled_bytes; @labels: one for each
 * VM. */
void plan_report_metrics(struct mx_writer *w, const struct view *v,
			 char (*labels)[EXPORTER_LABEL_MAX]);

#endif
