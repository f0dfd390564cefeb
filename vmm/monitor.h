/* SPDX-License-Identifier: MIT */
/*
 * The control socket: QMP, the protocol of QEMU (docs/interop/qmp-spec), as much of it as tools for
 * VMs need: what a command or an event is called in QEMU, it is called here, with the same
 * arguments and results. What is ours alone begins with "x-ballast-".
 *
 *   connect -> greeting -> {"execute": "qmp_capabilities"} -> commands and events
 *
 * Several clients at a time, each bounded in what it may send before a message is whole and in what
 * it may leave unread; who exceeds a bound is hung up on. Who may connect is the socket's mode
 * (0600) and folder. All on the main thread.
 */
#ifndef BALLAST_VMM_MONITOR_H
#define BALLAST_VMM_MONITOR_H

#include <jansson.h>
#include "vmm/vm.h"

#define MONITOR_CLIENTS_MAX 8
#define MONITOR_IN_MAX	    KIB(64)
#define MONITOR_OUT_MAX	    KIB(512)

struct monitor;

/* -EADDRINUSE: somebody answers on @path. A socket that nobody answers on is replaced. */
int monitor_new(struct vm *vm, const char *path, struct monitor **ret);
/* Sends what can be sent at once. NULL is fine. */
void monitor_free(struct monitor *m);

/* To all clients that are past the greeting. Takes over @data (NULL: none). @m may be NULL. */
void monitor_event(struct monitor *m, const char *name, json_t *data);

/* One command. */
struct monitor_call {
	struct vm *vm;
	const json_t *args; /* an object, or NULL */
	json_t *ret;	    /* the result; NULL: an empty object */
	const char *class;  /* of the error, in QEMU's words; NULL: "GenericError" */
	char error[160];
};

struct monitor_command {
	const char *name;
	/* 0, or negative errno with .error written. */
	int (*run)(struct monitor_call *c);
};

/* monitor_commands.c; ends with a row without a name. */
extern const struct monitor_command monitor_commands[];

/* For commands: write .error and return -EINVAL. */
int monitor_fail(struct monitor_call *c, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* monitor_stats.c */
int monitor_stats(struct monitor_call *c);

/* monitor_qom.c: the balloon, and of QEMU's object tree the branch that leads to it. */
int monitor_query_balloon(struct monitor_call *c);
int monitor_balloon(struct monitor_call *c);
int monitor_qom_list(struct monitor_call *c);
int monitor_qom_get(struct monitor_call *c);
int monitor_qom_set(struct monitor_call *c);
/* Events of the balloon, if there is one. */
int monitor_watch_balloon(struct vm *vm);

#endif
