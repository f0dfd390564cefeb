/* SPDX-License-Identifier: MIT */
/*
 * What is told of the VMs' balloons: members of a VM's object in `ballastctl status --json`
 * (control_reply.c), and metric families (exporter.c). Pure. What is not known is absent, never -1.
 */
#ifndef BALLAST_DAEMON_BALLOON_REPORT_H
#define BALLAST_DAEMON_BALLOON_REPORT_H

#include <jansson.h>
#include "daemon/exporter.h"

/* Adds "balloon_*" and "guest_*" to a VM's object. 0, or -1: no memory. */
int balloon_report_json(json_t *vm, const struct balloon_view *b);

/* ballast_vm_balloon_* and ballast_vm_guest_*; @labels: one for each VM. */
void balloon_report_metrics(struct mx_writer *w, const struct view *v,
			    char (*labels)[EXPORTER_LABEL_MAX]);

#endif
