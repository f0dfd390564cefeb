/* SPDX-License-Identifier: MIT */
/*
 * Where a running QEMU has its QMP socket, by its command line (qemu(1): -qmp, -qmp-pretty, -mon,
 * -chardev). Pure. The command line is the VMM's own word, like its name: who connects must check
 * who listens (qmp_new()).
 *
 * A monitor that QEMU shows to somebody else is not named here, because a QMP socket serves one
 * client: libvirt passes its own as a descriptor, or has it in its folder; Proxmox VE has a folder,
 * too. Such a VM needs a second monitor, or the administrator's word ("qmp = PATH").
 */
#ifndef BALLAST_BALLOON_QMP_FIND_H
#define BALLAST_BALLOON_QMP_FIND_H

#include "common/types.h"

#define QMP_FIND_PATH_MAX 256

enum qmp_find_result {
	QMP_FIND_FOUND,
	QMP_FIND_NONE,	  /* no monitor in control mode */
	QMP_FIND_FOREIGN, /* it belongs to a manager of VMs */
	QMP_FIND_OTHER,	  /* none is a UNIX socket on which QEMU listens */
};

/*
 * @args: as /proc/PID/cmdline has it, each argument ended by a NUL. On QMP_FIND_FOUND @path is as
 * it is written there: relative to the process's folder if it does not begin with a slash. If there
 * are several, one whose path or id has "ballast" in it, else the first.
 */
enum qmp_find_result qmp_find(const char *args, size_t len, char path[QMP_FIND_PATH_MAX]);

/* Is it in the folder of a manager of VMs? */
bool qmp_find_is_foreign(const char *path);

/* "no QMP socket on its command line". */
const char *qmp_find_text(enum qmp_find_result result);

#endif
