/* SPDX-License-Identifier: MIT */
/*
 * The balloons of the VMs: for each its QMP socket (named by "qmp" in the configuration, or found
 * on the VMM's command line), its controller (balloon/controller.h), and the wish that the
 * controller carries out. Who is to be ballooned how far is not decided here; today it is the
 * administrator who wishes (`ballastctl balloon`).
 *
 * Wishes outlive the daemon, in RUN_DIR/balloons: lines of "pid starttime bytes policy-bytes". An
 * orderly stop gives all memory back first, because nobody would guard the guests; after a kill the
 * next daemon takes the balloons over.
 */
#ifndef BALLAST_DAEMON_BALLOONS_H
#define BALLAST_DAEMON_BALLOONS_H

#include "daemon/view.h"

struct core;
struct vm;
struct balloon;

int balloons_start(struct core *c); /* logs what is wrong */
/* Asks for all that was taken to be given back; calls sd_event_exit() when that is done, or after
 * some seconds, or at once when called again. */
void balloons_give_back(struct core *c);
void balloons_stop(struct core *c); /* after the VMs are gone */

/* A VM has attached: finds its socket. On failure the VM has no balloon, which harms nothing else.
 */
void balloon_add(struct vm *vm);
void balloon_del(struct vm *vm); /* its process has ended, or the daemon does */
void balloon_reload(struct vm *vm);
void balloon_view(const struct vm *vm, struct balloon_view *ret);

/* The guest shall do with @bytes; @on false: as it likes. -ENODEV: there is no way to its balloon,
 * view.error says why. *ret_bytes: what is really wished, the floor considered. */
int balloon_wish(struct vm *vm, bool on, u64 bytes, u64 *ret_bytes);

/*
 * The policy's wish: from where the guest is now, so much more or (< 0) less; 0: it shall stay
 * there, if the policy has a wish at all. With all of its memory back there is no wish any more.
 * Nothing where the administrator has one, or nothing is known of the balloon.
 */
void balloon_policy(struct vm *vm, s64 change_bytes);
void balloon_policy_end(struct vm *vm); /* what the policy took is given back */
/* After changes by the policy: once for all VMs. */
void balloons_save(struct core *c);

#endif
