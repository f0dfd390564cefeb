/* SPDX-License-Identifier: MIT */
/*
 * The command line of a process, read without waiting for it. /proc/PID/cmdline is memory of the
 * process: one that has a userfault on it holds up whoever reads it, for as long as it likes. So a
 * thread of its own reads it and sends it through a pipe; one that hangs ends with its process.
 */
#ifndef BALLAST_DAEMON_CMDLINE_H
#define BALLAST_DAEMON_CMDLINE_H

#include <sys/types.h>
#include <systemd/sd-event.h>
#include "common/types.h"

/* QEMU's have some KiB; what is beyond is cut. */
#define CMDLINE_BYTES_MAX (256 * 1024)
/* Threads that may hang at once. */
#define CMDLINE_THREADS_MAX 16

struct cmdline;
/* Calls @done once, from the event loop, with all arguments, each ended by a NUL; @len 0: there are
 * none (a process that has ended). It may call cmdline_free(). -EAGAIN: too many hang. */
int cmdline_start(sd_event *event, pid_t pid, void (*done)(void *arg, const char *args, size_t len),
		  void *arg, struct cmdline **ret);
void cmdline_free(struct cmdline *c); /* @done is no longer called */

#endif
