/* SPDX-License-Identifier: MIT */
/*
 * The control socket: SOCK_STREAM, mode 0600, peers other than root (or the daemon's own user) are
 * refused. One request a line, one reply a line, both JSON objects (jansson), at most
 * CONTROL_REQUEST_MAX bytes a request. {"command":C} with C one of
 *
 *   status         {"ok":true,"host":{...},"vms":[...],"domains":[...],"total":{...}}
 *   counters       the same without "resident_bytes", which is slow to read: for who asks often
 *   pause, resume  {"ok":true}            stop, start finding new sharing
 *   unmerge        {"ok":true,"pages":N}  make all of a VM's memory private, until "share"
 *   share          {"ok":true}            undo unmerge
 *   balloon        {"ok":true,"bytes":N}  with "bytes": the guest shall do with so much, as far as
 * it can; without: it gets all back. N: its bounds considered. "error": why that cannot be now
 *   page-out       {"ok":true,"pages":N}  have "bytes" of a VM's memory compressed that was not
 *                  written lately; N: pages that are asked of its agent
 *   plan           {"ok":true,"mode":...,"state":...,"vms":[...],"actions":[...]}: what the policy
 *                  would do now, and has decided (plan_report.c)
 *   anything else  {"ok":false,"error":"one clear sentence"}
 *
 * unmerge, share, balloon and page-out take "vm" too: a name, a UUID or a PID.
 *
 * The keys of "host", "vms" and "domains" are the member names of daemon/view.h, plus in each VM
 * "resident_bytes" (PSS, read from the kernel at the time of the request; absent when it cannot be
 * read), "shared_bytes", "zero_bytes", "saved_bytes" and "net_saved_bytes"; "total" has their
 * sums, "store_bytes" and "overhead_bytes". control_reply.c has the arithmetic. What is known of
 * a VM's balloon and of its guest's memory is in it as "balloon_*" and "guest_*"
 * (balloon_report.c).
 *
 * A client may send several requests; a malformed one is answered with an error and the connection
 * closed. A client that does not read its reply, or asks nothing, is disconnected after a time;
 * there are at most 16 at once. No client makes the daemon wait. A client that shuts its sending
 * side down still gets its replies.
 */
#ifndef BALLAST_DAEMON_CONTROL_H
#define BALLAST_DAEMON_CONTROL_H

#include <systemd/sd-event.h>
#include "daemon/plan.h"
#include "daemon/view.h"

#define CONTROL_REQUEST_MAX 65536

/* What the core does for the control socket. All are mandatory. */
struct control_ops {
	int (*view)(void *core, struct view *ret); /* caller frees with view_free() */
	int (*set_paused)(void *core, bool paused);
	/* -ENOENT: no such VM. -ENOTCONN: its agent is not connected. *ret_pages: pages that will
	 * be made private. */
	int (*unmerge)(void *core, const char *vm, u64 *ret_pages);
	int (*share)(void *core, const char *vm);
	/* What `balloon` asks for; @on false: "off". -ENOENT. -ENODEV: its balloon cannot be
	 * reached. *ret_balloon is set but for -ENOENT. */
	int (*balloon)(void *core, const char *vm, bool on, u64 bytes, u64 *ret_bytes,
		       struct balloon_view *ret_balloon);
	/* Has so much private memory of the VM compressed that was not written lately. -ENOENT;
	 * -ENOTCONN: its agent is not connected; -ENOTSUP: it has no pager. *ret_pages: how many
	 * pages are asked for. */
	int (*page_out)(void *core, const char *vm, u64 bytes, u64 *ret_pages);
	/* Has so much of what is compressed of the VM written to its swap file. -ENOENT; -ENOTCONN;
	 * -ENODEV: it has no such file. *ret_bytes: what is asked for. */
	int (*swap_out)(void *core, const char *vm, u64 bytes, u64 *ret_bytes);
	/* What the policy would do now, and has decided. -ENODATA: the host's memory is not known.
	 * The caller frees both. */
	int (*plan)(void *core, struct view *ret_view, struct plan *ret);
};

struct control;
/* -EADDRINUSE: another daemon listens there. -EEXIST: @path is something else than a socket.
 * -ENAMETOOLONG. */
int control_new(sd_event *event, const char *path, const struct control_ops *ops, void *core,
		struct control **ret);
/* How long a new client may be silent, or leave its reply unread; default 30 s. */
void control_set_timeout(struct control *c, u64 timeout_us);
void control_free(struct control *c); /* closes clients, unlinks the socket */

#endif
