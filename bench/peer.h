/* SPDX-License-Identifier: MIT */
/*
 * The engines that are compared: the kernel's KSM, as it is set in practice, and Ballast. Each is a
 * table of operations; the benchmark does not know which one it drives.
 */
#ifndef BALLAST_BENCH_PEER_H
#define BALLAST_BENCH_PEER_H

#include "common/types.h"

struct peer;

struct peer_ops {
	const char *name;
	const char *host_mode; /* memhost --mode */
	/* Before the hosts start. */
	int (*prepare)(struct peer *p);
	/* The engine runs; it shares whatever is offered to it from now on. */
	int (*start)(struct peer *p);
	/* Holds all its work (@stopped), or lets it go on; what is merged stays so. */
	int (*stop)(struct peer *p, bool stopped);
	/* Pages that need no frame of their own any more, by the engine's own books. */
	int (*saved_pages)(struct peer *p, u64 *ret_pages);
	/* CPU time used so far by the engine, all of its threads in whatever process, us; by the
	 * kernel's account of the threads. */
	u64 (*cpu_us)(struct peer *p);
	/* Whole passes over the memory so far. */
	u64 (*passes)(struct peer *p);
	/* Bytes of metadata now. */
	u64 (*metadata_bytes)(struct peer *p);
	/* After the hosts have ended: the host is as before. */
	void (*finish)(struct peer *p);
};

enum {
	PEER_KSM_FLAT_OUT,    /* never sleeps */
	PEER_KSM_DEFAULT,     /* 100 pages every 20 ms */
	PEER_KSM_KSMTUNED,    /* as ksmtuned sets it for this host under pressure */
	PEER_BALLAST,	      /* one core at most, as KSM's one thread has */
	PEER_BALLAST_DEFAULT, /* 5% of a core */
	NR_PEERS,
};

struct peer {
	const struct peer_ops *ops;
	const struct ksm_setting *setting; /* KSM */
	const char *cpu_percent;	   /* Ballast */
	pid_t pid;			   /* ksmd or ballastd */
	char dir[64];
	pid_t hosts[16]; /* whose memory it shares: the caller's to fill */
	u32 nr_hosts;
	u64 saved_before; /* pages that were so before the start (zero pages) */
};

int peer_init(struct peer *p, u32 which);

#endif
