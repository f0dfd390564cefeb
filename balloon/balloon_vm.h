/* SPDX-License-Identifier: MIT */
/*
 * One VM's balloon, as its QMP socket shows it (qmp.h): is the VM running, where is its balloon
 * device, how large is the guest now, what does the guest say of its memory, and how old is that.
 * Carries targets out; decides nothing (controller.h does).
 *
 * Everything is asked for again and again in rounds: the state of the VM and of a migration (QEMU
 * sends MIGRATION events only to who asked for them), the size, the statistics. Events only make
 * it known sooner. So a lost event costs a round, and a device that is plugged in late is found by
 * the next walk.
 *
 * Two ways to use a socket. Held: the connection stays. Visits: it is made for each round and given
 * up after it, some milliseconds later, so that others who use the socket now and then get their
 * turn; for sockets that nobody gave us. bvm_hurry() makes the visits as frequent as rounds.
 */
#ifndef BALLAST_BALLOON_BALLOON_VM_H
#define BALLAST_BALLOON_BALLOON_VM_H

#include "balloon/guest_stats.h"
#include "balloon/qmp.h"

#define BVM_PATH_MAX 192 /* of a device in QEMU's object tree */

enum bvm_run {
	BVM_RUN_UNKNOWN, /* not asked yet, or the connection is lost */
	BVM_RUNNING,
	BVM_PAUSED, /* stopped, suspended, panicked: the guest does not run */
	BVM_MIGRATING,
};

/* What the guest's driver does, judged by its statistics. */
enum bvm_driver {
	BVM_DRIVER_UNKNOWN, /* no device, no statistics, or too soon to say */
	BVM_DRIVER_ANSWERS,
	BVM_DRIVER_SILENT, /* has answered, and does no more though the VM runs */
	BVM_DRIVER_NONE,   /* has not answered since the guest started, for a time */
};

struct bvm_config {
	u64 poll_us;  /* between rounds while the socket is held */
	u64 visit_us; /* between visits; 0: no visits, held */
	u64 hurry_us; /* between rounds or visits while bvm_hurry() */
	u32 stats_period_s;
	u64 silent_us; /* from when on a guest that does not answer is called silent */
	u64 retry_min_us, retry_max_us; /* qmp_set_retry() */
};

/*
 * poll 2 s: as often as there is news; a round costs QEMU's main loop about 0.1 ms. visit 10 s: as
 * often as other tools look. hurry 1 s: pressure of a guest that was shrunk must be seen at once.
 * Statistics every 2 s: an interrupt and a page of answers for the guest. silent 10 s: five answers
 * missed; a busy guest misses one or two.
 */
#define BVM_CONFIG_DEFAULT                                                     \
	{                                                                      \
		.poll_us = 2000000, .visit_us = 10000000, .hurry_us = 1000000, \
		.stats_period_s = 2, .silent_us = 10000000,                    \
	}

struct bvm_info {
	enum bvm_run run;
	char run_text[24]; /* in QEMU's words: "running", "postmigrate" */
	bool has_device;
	char device[BVM_PATH_MAX];
	bool has_actual;
	u64 actual_bytes;   /* memory that the guest has: its RAM less the balloon */
	u64 ram_bytes;	    /* without a balloon; 0: not known */
	u32 stats_period_s; /* as read back from the device; 0: it does not poll */
	enum bvm_driver driver;
	struct guest_stats stats;
	u64 nr_resets;	  /* of the guest, since we look: told, or its counters began anew */
	u64 nr_rounds;	  /* that were completed */
	u64 target_bytes; /* the last that QEMU accepted from us; 0: none */
};

struct bvm_ops {
	/* After each round, on events that matter, when a target was accepted, and when the
	 * connection is lost. Mandatory. May call everything but bvm_free(). */
	void (*changed)(void *arg);
};

struct bvm;
/* @path, @peer_pid: see qmp_new(). Begins at once. */
int bvm_new(sd_event *event, const char *path, pid_t peer_pid, const struct bvm_config *cfg,
	    const struct bvm_ops *ops, void *arg, struct bvm **ret);
void bvm_free(struct bvm *b);

const struct bvm_info *bvm_info(const struct bvm *b);
/* The client, for its state and what went wrong. */
const struct qmp *bvm_qmp(const struct bvm *b);
/* Is what bvm_info() says of now? Then the connection is up, or was at the last visit. */
bool bvm_linked(const struct bvm *b);

/* Asks for a guest of that size. -ENOTCONN: not now, as between visits: the time to ask is within
 * changed(). The answer comes later: target_bytes, or bvm_target_error(). */
int bvm_set_target(struct bvm *b, u64 bytes);
const char *bvm_target_error(const struct bvm *b); /* "": none */

/* There is a target: rounds every hurry_us, also where the socket is only visited. */
void bvm_hurry(struct bvm *b, bool hurry);
/* A round now. */
void bvm_poll(struct bvm *b);

const char *bvm_run_name(enum bvm_run run);
const char *bvm_driver_name(enum bvm_driver driver);

#endif
