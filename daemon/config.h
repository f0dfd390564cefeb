/* SPDX-License-Identifier: MIT */
/*
 * The daemon's configuration: an INI file plus the *.conf files of a conf.d/ folder beside it, read
 * in name order, later files winning key by key. Defaults and their reasons are in config_table.c;
 * `ballastd
 * --print-config` prints them.
 *
 * A configuration is loaded whole or not at all: config_load() fills a new struct and leaves every
 * other alone, so that a reload with a bad file keeps the old one.
 */
#ifndef BALLAST_DAEMON_CONFIG_H
#define BALLAST_DAEMON_CONFIG_H

#include <stdio.h>
#include <sys/types.h>
#include "common/types.h"

#define CONFIG_DEFAULT_PATH "/etc/ballast/ballast.conf"
#define CONFIG_NAME_MAX	    64

/* What a VM's pages may take part in. */
enum share_mode {
	SHARE_OFF,	 /* not scanned at all */
	SHARE_ZERO_ONLY, /* zero pages only: nothing of the VM can be compared with another VM */
	SHARE_ON,
};
const char *share_mode_name(enum share_mode m);

enum policy_mode {
	POLICY_OFF,	/* nothing is decided, but when asked for a plan */
	POLICY_OBSERVE, /* decided, shown and counted, and not done */
	POLICY_ACT,
};
const char *policy_mode_name(enum policy_mode m);

/* One [vm "GLOB"] section. Sections are tried in file order; the first that matches the VM's name
 * or UUID applies; a key that it leaves out has the default. */
struct config_vm {
	char glob[CONFIG_NAME_MAX];
	enum share_mode share;
	char domain[CONFIG_NAME_MAX];
	/* The section is only for VMMs that run as this user (a name, a number, or "any"): a VM's
	 * name is its own word, its user is the kernel's. */
	char user[CONFIG_NAME_MAX];
	/* qmp: the VM's QMP socket, for its balloon; or one of the two words. */
	char qmp[108];
	u64 min_bytes; /* min: ballooning leaves the guest no less */
	u64 max_bytes; /* max: of the host's memory; 0: off */
	u32 shares;    /* shares, priority: tiering/policy.h */
	u32 priority;
	bool balloon;  /* balloon: the policy may balloon it */
	bool page_out; /* page_out: pages of it may be compressed, and sampled */
	bool swap;     /* swap: pages of it may go to the host's swap, or its swap file */
};

#define CONFIG_NONE	"none" /* where a path could be */
#define CONFIG_QMP_AUTO "auto" /* found on the VMM's command line */
#define CONFIG_QMP_OFF	"off"

struct config {
	/* [daemon] */
	char run_dir[108];	  /* run_dir: the lock and the restart state; created 0755 */
	char agent_socket[108];	  /* agent_socket: for VMMs; default RUN_DIR/agent.sock */
	char control_socket[108]; /* control_socket: root only; default RUN_DIR/control.sock */
	u32 agent_socket_mode;	  /* octal, default 0666: config_table.c says why */
	bool log_debug;		  /* log_level = info | debug */
	/* [metrics] */
	bool metrics_enabled;	  /* enabled */
	char metrics_address[46]; /* address: IPv4 or IPv6 literal, default 127.0.0.1 */
	u16 metrics_port;	  /* port: default 9723 */
	/* [scan] */
	bool scan_enabled;	   /* enabled: off = watch, account, but merge nothing new */
	u32 scan_cpu_permille;	   /* cpu_percent: of one core; daemon and agents together */
	u64 scan_interval_us;	   /* interval: between two passes over a VM; default 1s */
	u64 scan_idle_interval_us; /* idle_interval: between two looks at unwritten memory */
	u64 thp_split_min_saving;  /* bytes that splitting a huge page must save */
	u32 scan_threads;	   /* threads: reader threads, 1 to 64; default 1 */
	/* cpu_percent_pressure: while the host is short of memory, if more than cpu_percent */
	u32 scan_cpu_pressure_permille;
	u32 pressure_some_permille;	 /* pressure_some: PSI that counts as short; 0: off */
	u32 pressure_available_permille; /* pressure_available: of MemTotal, the same; 0: off */
	u64 max_map_count; /* max_map_count: what vm.max_map_count is raised to; 0: left alone */
	u32 scan_max_mappings; /* max_mappings: that sharing may add to one VMM */
	/* [store] */
	u64 store_max_bytes; /* max_size: of one sharing domain's store */
	/* [policy]: what the policy (tiering/policy.h) decides by */
	enum policy_mode policy_mode; /* mode = off | observe | act */
	u64 policy_interval_us;	      /* interval: between two decisions */
	u32 policy_soft_permille;     /* soft, hard, low: available, of the host's memory */
	u32 policy_hard_permille;
	u32 policy_low_permille;
	u32 policy_hysteresis_permille;	 /* hysteresis: how far above that a state is left */
	u32 policy_idle_tax_permille;	 /* idle_tax */
	u32 policy_cow_reserve_permille; /* cow_reserve: of what breaking of sharing would cost */
	bool policy_below_min;		 /* last_resort = none | below-min */
	u32 policy_samples;		 /* samples: pages a round and VM; 0: off */
	u64 policy_sample_interval_us;	 /* sample_interval: between two rounds */
	char policy_cgroup[108];	 /* cgroup: a folder whose limit counts too; or "none" */
	char policy_swap_dir[108];	 /* swap_dir: where the pagers' swap files are; or "none" */
	u64 policy_swap_keep;		 /* swap_keep: bytes that are left free there */
	/* [vm "GLOB"] */
	struct config_vm *vms; /* owned */
	u32 nr_vms;
	struct config_vm vm_default; /* for VMs that no section matches; its glob is "*" */
};

/* Where and why a file was refused: one line, "FILE:LINE: what is wrong (remedy)". */
struct config_error {
	char text[512];
};

void config_defaults(struct config *c);
/* A missing @path is an error only if @must_exist; a missing conf.d is not an error. */
int config_load(const char *path, bool must_exist, struct config *ret, struct config_error *err);
/* Writes @c as a file that config_load() reads back to the same settings, with a comment above each
 * key: what it accepts, its default and the reason. -EIO if @out fails. */
int config_print(const struct config *c, FILE *out);
void config_free(struct config *c); /* frees what @c owns, not @c */

/* The settings of a VM by name or UUID, either of which may be NULL; &c->vm_default if no section
 * matches. Valid until config_free(). */
const struct config_vm *config_vm_match(const struct config *c, const char *name, const char *uuid,
					uid_t uid);

#endif
