/* SPDX-License-Identifier: MIT */
/*
 * A model test of the whole sharing engine: random operations on the memory of several VMs, against
 * a plain model of what each page must hold.
 *
 * The driver (tool_model.c) starts a real ballastd and MODEL_VMS "VMM" processes on the real agent
 * library. Each VMM has MODEL_THREADS threads that write, discard, check pages, and give regions
 * back and take them again, as fast as the daemon merges them; meanwhile the driver kills, stops
 * and reconfigures the daemon and kills VMMs. Nobody waits for anybody, but for a pause at the end
 * of each round, in which everything is checked:
 *
 *   - every page holds what the model says (by the VM's own reads);
 *   - what the daemon counts as shared is what the kernel shows as mapped from the store;
 *   - pages of two domains lie in different frames.
 *
 * Files: content.c (what pages hold), worker.c (a VMM), ops.c (what its threads do), host.c (the
 * daemon, its configuration and control socket), outside.c (the kernel's view), ../tool_model.c
 * (the driver: rounds, checks, report).
 *
 * Who may touch a page: each has one owner thread (model_owner()), which alone writes it, reads it
 * and changes its model. So no lock is needed and every read is checked exactly. The model lies in
 * memory shared by driver and VMMs; nothing of it is known to Ballast.
 *
 * All randomness comes from the seed: the driver's by round, a thread's by VM, life and thread. The
 * order of what happens between processes is the scheduler's, so a seed repeats a run only as far
 * as timing allows.
 */
#ifndef BALLAST_TESTS_LIVE_MODEL_H
#define BALLAST_TESTS_LIVE_MODEL_H

#include <stdatomic.h>
#include <sys/types.h>
#include "common/types.h"

#define MODEL_VMS	4u
#define MODEL_THREADS	2u
#define MODEL_REGIONS	3u
#define MODEL_PAGES_MAX 1024u
/* Region 0 is dealt out to the threads in blocks of this many pages. */
#define MODEL_BLOCK 64u
/* Contents 1 to this are common to all VMs: more than a store of 1 MiB can hold. */
#define MODEL_COMMON 400u

struct model_page {
	u32 content; /* 0: zeros; up to MODEL_COMMON: common; above: no other page ever has it */
	u32 dirty;   /* not 0: one word of it was changed, see model_word() */
};

enum model_region_state {
	REGION_OUT,  /* fresh memory, not given to the agent yet */
	REGION_IN,   /* the agent's */
	REGION_LEFT, /* given back, and may map the store: no discards until it is mapped anew */
};

struct model_region {
	u64 base; /* 0: not mapped */
	u32 nr_pages;
	_Atomic u32 state;
	struct model_page page[MODEL_PAGES_MAX];
};

enum model_command {
	CMD_RUN,
	CMD_IDLE,
	CMD_CHECK,
	CMD_QUIT,
	NR_CMDS
};

/* What went wrong first, in the VM's own words. */
struct model_error {
	_Atomic u32 claimed, complete;
	char text[512];
};

struct model_counts {
	u64 ops, checks, discards, forks, remaps, leaves;
	/* the agent's own counts */
	u64 merged, zeroed, moved_back, wait_faults, paged_out, paged_in, swap_read;
	u64 slowest_us; /* operation */
};

struct model_vm {
	struct model_region region[MODEL_REGIONS];
	u32 index, life;
	bool dont_fork, huge;
	_Atomic u32 command;		  /* NR_CMDS * epoch + enum model_command */
	_Atomic u32 acked[MODEL_THREADS]; /* the command that was complied with */
	_Atomic u32 has_agent;
	struct model_counts of[MODEL_THREADS]; /* each written by its thread; agent's: by main */
};

struct model {
	u64 seed;
	struct model_vm vm[MODEL_VMS];
	struct model_error error;
	_Atomic u32 unique; /* the last content number that was given out */
};

/* --- content.c ---------------------------------------------------------------------------------
 */

static inline u64 model_mix(u64 x)
{
	x += 0x9e3779b97f4a7c15UL;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebUL;
	return x ^ x >> 31;
}

static inline u64 model_random(u64 *state)
{
	*state += 0x9e3779b97f4a7c15UL;
	return model_mix(*state);
}

static inline u32 model_below(u64 *state, u32 n)
{
	return (u32)(model_random(state) >> 32) % n;
}

void model_fill(u64 *at, u32 content);
u32 model_dirty_word(struct model_page p); /* which word is changed */
u64 model_dirty_value(struct model_page p);
u64 model_word(struct model_page p, u32 word);
/* The first word that is not what @p says; PAGE_WORDS: all are right. */
#define PAGE_WORDS (PAGE_BYTES / sizeof(u64))
u32 model_compare(const u64 *at, struct model_page p);
/* What the page at @at holds, in words. */
void model_describe(const u64 *at, char *buf, size_t size);
/* Keeps the first error of all. */
void model_fail(struct model *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- worker.c: in a VMM
 * -------------------------------------------------------------------------*/

struct bh_agent;

/* A thread of a VMM. */
struct lane {
	struct model *model;
	struct model_vm *vm;
	u32 thread;
	u64 rng, step;
	struct model_counts *counts;
};

static inline u32 model_owner(u32 region, u32 page)
{
	return region ? region - 1 : page / MODEL_BLOCK % MODEL_THREADS;
}

static inline u64 *model_at(const struct model_region *r, u32 page)
{
	return (u64 *)(uintptr_t)(r->base + ((u64)page << PAGE_SHIFT));
}

/* The life of a VMM process; does not return. */
void model_worker(struct model *m, u32 index) __attribute__((noreturn));
/* The agent, which stays until worker_agent_put(); NULL: none now. */
struct bh_agent *worker_agent_get(void);
void worker_agent_put(void);
/* All for regions that one thread owns, by that thread. */
void worker_region_leave(struct lane *l, u32 region); /* IN to LEFT */
void worker_region_remap(struct lane *l, u32 region); /* LEFT or OUT to OUT, all zeros */

/* --- ops.c -------------------------------------------------------------------------------------
 */

void model_op(struct lane *l);	      /* one operation */
void model_check_all(struct lane *l); /* all pages that the thread owns */

/* --- host.c ------------------------------------------------------------------------------------
 */

struct host_config {
	u64 store_max_bytes;
	u32 max_mappings;
	u32 thp_split_kib;
	const char *share[MODEL_VMS], *domain[MODEL_VMS];
};

struct host {
	const char *daemon, *dir; /* program, folder of its own */
	pid_t pid;		  /* 0: does not run */
	struct host_config config;
};

struct vm_status {
	bool connected, unmerged;
	char domain[64];
	u64 shared, zero, merged, broken, discarded, mappings;
};

struct domain_status {
	char name[64];
	u64 pages, refs, entries;
};

#define HOST_DOMAINS_MAX 8

struct host_status {
	struct vm_status vm[MODEL_VMS]; /* by the pids that were asked for */
	bool known[MODEL_VMS];
	u32 nr_vms; /* all that the daemon lists */
	struct domain_status domain[HOST_DOMAINS_MAX];
	u32 nr_domains;
};

int host_write_config(const struct host *h);
int host_start(struct host *h); /* does not wait until it answers */
/* In a child: what it prints goes to the end of a file in the folder. */
void host_redirect(const struct host *h, const char *file);
bool host_answers(const struct host *h, u32 timeout_ms);
/* {"command":@command,"vm":@pid}; without "vm" if @pid is 0. 0: done; 1: the daemon said no;
 * -errno: no answer. */
int host_command(const struct host *h, const char *command, pid_t pid);
int host_status(const struct host *h, const pid_t pids[MODEL_VMS], struct host_status *ret);

/* --- outside.c ---------------------------------------------------------------------------------
 */

struct frame {
	u64 pfn;
	u32 vm;
};

struct outside {
	u64 shared; /* pages in mappings of a store that the guest has not broken */
	u64 broken;
	char domain[64]; /* of the store that it maps; "": none */
	bool two_stores; /* maps those of two domains */
	u32 *offsets;	 /* store pages that are shown, one a shared page */
};

/* One VM's memory, as the kernel shows it. @frames: all its frames are appended. */
int outside_vm(pid_t pid, const struct model_vm *vm, struct outside *ret, struct frame *frames,
	       u32 *nr_frames);
void outside_free(struct outside *o);
#define MODEL_FRAMES_MAX (MODEL_VMS * MODEL_REGIONS * MODEL_PAGES_MAX)
/* Memory of all stores that the daemon has open, in 512-byte blocks; how many stores. */
int outside_store_blocks(pid_t daemon, u64 *ret_blocks, u32 *ret_stores);

#endif
