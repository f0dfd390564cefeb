/* SPDX-License-Identifier: MIT */
/*
 * The daemon's numbers as Prometheus families, prefix ballast_. Pure: everything comes from the
 * view, so that it is tested on plain structs. metrics/README.md lists the conventions, exporter.c
 * the families in tables.
 *
 * Every series of a VM has the label vm: its name, or its UUID or "pid-N" if it has none. VMs that
 * share a name are told apart by their pid ("web (pid 12)"), because two series with the same
 * labels would make Prometheus refuse the whole scrape. ballast_vm_info has the plain name, the
 * UUID and the pid, for joins with libvirt_*, pve_* and kubevirt_*.
 */
#ifndef BALLAST_DAEMON_EXPORTER_H
#define BALLAST_DAEMON_EXPORTER_H

#include "common/version.h"
#include "daemon/view.h"
#include "metrics/exposition.h"

/* A name (64 bytes, each of which may become the three of U+FFFD), a pid and a counter. */
#define EXPORTER_LABEL_MAX 256

void exporter_write(struct mx_writer *w, const struct view *v);

#endif
