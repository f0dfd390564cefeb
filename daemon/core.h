/* SPDX-License-Identifier: MIT */
/*
 * The daemon's own state. How the files divide it:
 *
 *   main.c      arguments, signals, start and stop
 *   core.c      the VM registry, pacing of the engine, reload, what the control socket asks for
 *   agents.c    the agent socket: connections, messages
 *   recovery.c  what a restarted daemon must know: the state file, finding the stores again
 *   host.c      the host: memory pressure, vm.max_map_count, how many mappings the VMMs have
 *   balloons.c  the VMs' QMP sockets and balloons (balloons.h)
 *   governor.c  the policy: asked, kept, carried out (governor.h)
 *   swapfiles.c the files that the VMs' pagers write to
 *   publish.c   the view (view.h), and its copy for the metrics thread, handed over by RCU
 *
 * One thread runs all of it, on an sd-event loop. Other threads: readers (ksmd/reader.h) and HTTP
 * (metrics/http.h).
 */
#ifndef BALLAST_DAEMON_CORE_H
#define BALLAST_DAEMON_CORE_H

#include <systemd/sd-event.h>
#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/decisions.h"
#include "daemon/mapcount.h"
#include "daemon/pacing.h"
#include "daemon/pressure.h"
#include "daemon/view.h"
#include "daemon/working_set.h"
#include "hypervisor-hooks/wire.h"
#include "ksmd/engine.h"
#include "metrics/http.h"

struct agent;
struct balloon;
struct balloons;
struct core;
struct governor;

struct vm {
	struct core *core;
	struct vm *next;
	char name[WIRE_NAME_MAX], uuid[WIRE_UUID_MAX], domain[CONFIG_NAME_MAX];
	pid_t pid;
	uid_t uid;
	u64 starttime; /* with the pid: this process and no other */
	int pidfd;
	sd_event_source *exit_source;
	struct agent *agent; /* NULL: not connected */
	struct ksm_vm *ksm;
	enum share_mode share;
	u64 asked_us; /* when its outstanding request was sent */
	u32 asked_pages;
	u64 cpu_us, cpu_us_seen; /* of its agents: in all, and of the present connection */
	/* Of that, what paging took: not of the scan's budget, since the policy has rates of its
	 * own for it, and needs the scan to go on beside it. */
	bool asked_paging;
	u64 paging_cpu_us;
	u64 guest_faults, guest_faults_seen;
	/* Mappings that the process has besides those that sharing made, when last counted. */
	u64 maps_own, maps_due_us, maps_interval_us; /* when they are counted next */
	bool maps_known;
	struct balloon *balloon; /* NULL: out of memory */
	/* Of its [vm] section, for the policy. */
	u64 max_bytes;
	u32 shares, priority;
	bool may_balloon, may_page_out, may_swap;
	u64 resident_bytes, swapped_bytes, entitled_bytes; /* as the policy saw it last */
	struct decisions decisions;
	/* As its agent said last: of this connection. */
	struct wire_pager pager;
	struct wire_swap swap;
	struct wire_latency latency;
	int swap_fd; /* the file that its agent was given; -1: none, or by a daemon before us */
	bool swap_known, swap_offered; /* on this connection */
	struct working_set working_set;
	u64 sample_round_seen; /* that is in working_set */
};

/* What is known of the host; host.c alone changes it. */
struct host {
	u64 max_map_count; /* now */
	u64 max_map_count_wanted;
	struct map_record map_record;
	struct pressure pressure;
	struct pressure_sample sample; /* total_bytes 0: could not be read */
	struct map_counter counter;    /* its fd -1: none is being counted */
	pid_t counting;
	sd_event_source *timer;
};

/* Who is at the other end of a connection, by the kernel's word. */
struct peer_process {
	pid_t pid;
	uid_t uid;
	int pidfd;
};

/* VMs at once: the state file has room for twice as many (recovery.c). */
#define CORE_VMS_MAX 2048

struct core {
	const char *config_path;
	bool config_must_exist;
	struct config config;
	sd_event *event;
	struct engine *engine;
	struct vm *vms;
	u32 nr_vms;
	bool paused;
	u64 started_us;
	u64 gone_cpu_us; /* used by agents of VMs that are gone */
	u64 gone_paging_cpu_us;
	u64 policy_cpu_us; /* of this thread, for the policy and what it asked of agents */
	u64 reloads, reload_errors, protocol_errors;

	struct pacing pacing;
	struct host host;
	sd_event_source *work_timer, *publish_timer, *recovery_timer;

	int lock_fd, agent_fd;
	sd_event_source *agent_source;
	u32 nr_agents;
	sd_event_source *accept_timer;
	struct control *control;
	struct mx_http *http;
	struct published *published; /* RCU */
	struct recovery *recovery;   /* NULL: complete */
	struct balloons *balloons;
	struct governor *governor;
};

/* core.c */
int core_start(struct core *c); /* @c->config and @c->event are set; logs what is wrong */
void core_stop(struct core *c);
void core_reload(struct core *c);
/* The configuration, or what is known of the host, has changed: tells the engine and the pacing. */
void core_apply(struct core *c);
void core_kick(struct core *c); /* there may be work: run the engine as soon as the budget allows */
/* Finds the VM of a process, or adds it. */
int core_vm_get(struct core *c, const struct peer_process *peer, const char *name, const char *uuid,
		struct vm **ret);
u64 core_cpu_us(const struct core *c);

/* agents.c */
int agents_start(struct core *c);
void agents_stop(struct core *c);
void agents_forget_vm(struct vm *vm); /* the VM goes; its connection, if any, is closed */
extern const struct engine_ops agent_engine_ops;
bool agent_has_pager(const struct vm *vm);
/* -ENOTSUP: not connected, or older than that. */
int agent_send_swap_file(struct vm *vm, int fd);
int agent_send_swap_out(struct vm *vm, u64 bytes);
int agent_send_pace(struct vm *vm, u32 pages, u32 ms);

/* swapfiles.c */
/* Gives the VM's agent a file, if it has said that it has none. */
void swapfile_offer(struct vm *vm);
/* The agent's figures: the first on a connection say whether it has a file. */
void swapfile_told(struct vm *vm, const struct wire_swap *s);
void swapfile_forget(struct vm *vm);
/* So much of its pool to its file. *ret_bytes: what is asked for. -ENODEV: it has none. */
int swapfile_out(struct vm *vm, u64 bytes, u64 *ret_bytes);
/* What the folder has room for, less [policy] swap_keep. Cuts files of VMMs that write more than
 * their pager ever would. */
u64 swapfiles_free(struct core *c);

/* recovery.c */
int recovery_start(struct core *c);
void recovery_free(struct core *c);
/* The domain that a process's memory is merged in since before the restart; NULL: none. */
const char *recovery_domain(const struct core *c, pid_t pid, u64 starttime);
int recovery_save(struct core *c); /* logs what is wrong */

/* Pids of processes that a previous daemon's store was given to and that have not connected again.
 * 0: no more; begin with *@at = 0. */
pid_t recovery_next_pid(const struct core *c, u32 *at);

/* host.c */
int host_start(struct core *c);
void host_stop(struct core *c); /* while c->vms is still there: puts vm.max_map_count back */
void host_reload(struct core *c);
void host_refresh(struct core *c); /* reads anew what is available, for who cannot wait a second */
u32 host_cpu_permille(const struct core *c); /* the budget as it is now */

/* publish.c */
int core_view(struct core *c, struct view *ret);
int publish_start(struct core *c);
void publish_stop(struct core *c);

#endif
