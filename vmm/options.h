/* SPDX-License-Identifier: MIT */
/* The command line of ballast-vmm. What each option means is in its usage text (options.c). */
#ifndef BALLAST_VMM_OPTIONS_H
#define BALLAST_VMM_OPTIONS_H

#include "common/types.h"

#define VM_DISKS_MAX  8
#define VM_NETS_MAX   4
#define VM_MEMORY_MAX GIB(1024) /* of RAM, and of what can be plugged in */
#define VM_NAME_MAX   63

struct disk_config {
	char *path;
	char *overlay; /* a private file that takes all writes; NULL: none */
	bool readonly, direct;
};

struct net_config {
	char *tap;    /* an interface that exists, or else */
	char *passt;  /* the socket of passt(1) */
	bool has_mac; /* else one is made from the VM's name and the interface's place */
	u8 mac[6];
};

struct vm_config {
	char *kernel, *initrd, *cmdline; /* cmdline is never NULL */
	char *flat;			 /* instead of a kernel */
	char *restore;			 /* instead of a kernel: a snapshot's folder */
	u64 memory_bytes, hotplug_bytes;
	u32 cpus;
	char *name, *uuid; /* name is never NULL */
	struct disk_config disks[VM_DISKS_MAX];
	u32 nr_disks;
	struct net_config nets[VM_NETS_MAX];
	u32 nr_nets;
	bool balloon, rng;
	char *qmp; /* path of the control socket; NULL: none */
	bool no_reboot, no_sandbox, no_agent, paused;
	char *agent_socket; /* NULL: the agent's default */
};

#define OPTIONS_ERROR_MAX 256

enum options_result {
	OPTIONS_RUN,
	OPTIONS_TEXT, /* --help or --version: *ret_text is to be printed, *ret is empty */
	OPTIONS_WRONG,
};

/* Strings in *ret are copies: vm_config_free(). On OPTIONS_WRONG @error is one line that names the
 * option and the remedy. */
enum options_result options_parse(int argc, char **argv, struct vm_config *ret,
				  char error[OPTIONS_ERROR_MAX], const char **ret_text);
void vm_config_free(struct vm_config *c);

#endif
