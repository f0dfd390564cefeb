/* SPDX-License-Identifier: MIT */
/*
 * What a guest that breaks out into the VMM finds: no capabilities, no new ones by exec, and no
 * system calls beyond those that the running machine needs (an allow-list; ioctls by kind, no new
 * executable memory, no new process or thread). A call that is not on the list ends the process
 * with one line that names it, and exit status 1.
 *
 * In two steps, on the main thread:
 *   sandbox_drop_privileges()	when all that needs privileges is open. It is for the calling thread
 *				and those that it starts later; Ballast's agent was started before
 *				and keeps what it needs to register memory with userfaultfd.
 *   sandbox_lock()		when all threads are there; for all of them.
 *
 * What is not restricted: which files are opened (the agent reads /proc, snapshots are written
 *where the control socket says).
 */
#ifndef BALLAST_VMM_SANDBOX_H
#define BALLAST_VMM_SANDBOX_H

/* Negative errno. */
int sandbox_drop_privileges(void);
int sandbox_lock(void);

#endif
