/* SPDX-License-Identifier: MIT */
/*
 * Ballast's agent: the part of Ballast that lives in a VMM.
 *
 * Only a process itself can move its pages atomically and change its mappings, so the work on guest
 * memory is done here, on the daemon's request, and every step of it is checked here: the daemon
 * proposes, the agent verifies.
 *
 * The story, from the VMM's side:
 *
 *   1. bh_probe() says whether this kernel can do it (UFFDIO_MOVE and PAGEMAP_SCAN: Linux 6.8). If
 *      not, the VMM runs as if Ballast were not there.
 *   2. bh_new() connects to the daemon and agrees on a protocol version. It fails at once when
 *      there is no daemon.
 *   3. bh_region_add() hands over a range of private anonymous guest RAM. From then on the daemon
 *      may watch which pages are written (userfaultfd write-protection, asynchronous: the guest
 *      never waits for anybody), and may ask for pages to be merged. The mapping stays the VMM's:
 *      it may read and write it at any time from any thread.
 *   4. When the VMM gives memory back (balloon, free page reporting: what it would do with
 *      MADV_DONTNEED), it calls bh_discard() instead. When it unmaps or remaps guest RAM,
 *      bh_region_del() first.
 *   5. bh_free() at the end, or never: when the process exits, the kernel cleans all up.
 *
 * Threads: the agent runs two of its own, "ballast-agent" (the daemon's requests) and
 * "ballast-fault" (userfaultfd events). All calls below are thread-safe. None of them is
 * async-signal-safe. After fork() the child has no agent.
 *
 * What a VMM may rely on (numbers are those of the invariants in docs/ARCHITECTURE.md):
 *   - guest RAM never changes content by merging, not for an instant (1, 2);
 *   - no access to guest RAM ever waits for the daemon; an access to a page that is being moved
 *     waits for microseconds, for the agent's own thread (6);
 *   - when anything fails the page stays private (7).
 *
 * Errors are negative errno values. Addresses are HVAs, lengths bytes; both multiples of the page
 * size.
 */
#ifndef BALLAST_HOOKS_H
#define BALLAST_HOOKS_H

#include <stddef.h>
#include <stdint.h>

#define BH_DEFAULT_SOCKET "/run/ballast/agent.sock"

struct bh_agent;

struct bh_config {
	const char *socket_path; /* NULL: $BALLAST_AGENT_SOCKET, else BH_DEFAULT_SOCKET */
	const char *name;	 /* the VM's name; NULL: "pid-N" */
	const char *uuid;	 /* NULL: none */
	/* Called with one line of text at rare events (connected, lost, refused); NULL: silent. */
	void (*log)(void *arg, const char *line);
	void *log_arg;
	/* The VMM's own word on DMA: returns non-zero while a device may write guest RAM past the
	 * page tables. NULL: the agent looks at the process's descriptors (O_DIRECT, VFIO, fixed
	 * io_uring buffers). */
	int (*dma_active)(void *arg); /* must take no lock, and touch no guest RAM */
	void *dma_arg;
};

/* 0, or why not: -ENOSYS (kernel too old), -EPERM (userfaultfd is not permitted to this user). */
int bh_probe(void);

/* One agent a process (-EBUSY). -ENOENT, -ECONNREFUSED: no daemon. -EPROTO: it does not speak our
 * versions. -ECONNABORTED: it refused us. */
int bh_new(const struct bh_config *cfg, struct bh_agent **ret);
void bh_free(struct bh_agent *a); /* merged pages stay merged; NULL is fine */

/* -EINVAL: not page aligned; -EEXIST: overlaps a region; -ENOTSUP: not private anonymous memory, or
 * locked, or on hugetlbfs. @gpa is what the guest calls the first byte; it only names the region.
 */
int bh_region_add(struct bh_agent *a, void *hva, size_t bytes, uint64_t gpa, const char *name);
/* Forgets every region that the range touches, whole (a VMM unmaps guest RAM together with its
 * guard pages). */
int bh_region_del(struct bh_agent *a, void *hva, size_t bytes);

/* Like madvise(@advice) on guest RAM, with MADV_DONTNEED or MADV_DONTNEED_LOCKED: the range reads
 * as zeros afterwards and costs nothing. */
int bh_discard(struct bh_agent *a, void *hva, size_t bytes, int advice);

/* Tells of madvise() attributes that the VMM set on guest RAM (MADV_DONTFORK, MADV_DONTDUMP,
 * MADV_HUGEPAGE and their opposites): the agent gives them to the mappings that it puts there. The
 * VMM makes the madvise() call itself. */
void bh_region_advise(struct bh_agent *a, void *hva, size_t bytes, int advice);

/* Around a call by which the VMM puts another mapping over part of its guest RAM (mmap(MAP_FIXED),
 * mremap(): QEMU does so after a memory error). That part is not Ballast's from then on. */
void bh_replace_begin(struct bh_agent *a, void *hva, size_t bytes);
void bh_replace_end(struct bh_agent *a, void *hva, size_t bytes);

struct bh_stats {
	uint64_t merged_pages, zeroed_pages, unmerged_pages; /* done, since bh_new() */
	uint64_t moved_back_pages; /* changed between the daemon's look and ours */
	uint64_t pinned_pages;	   /* refused: under DMA (EBUSY) */
	uint64_t failed_pages;	   /* any other reason */
	uint64_t wait_faults;	   /* guest accesses that waited for a move */
	uint64_t fill_faults;	   /* first touches of adopted memory, filled by the agent */
	uint64_t cpu_us;	   /* CPU time of the two threads */
	int connected;		   /* the daemon answers now */
};
void bh_stats(struct bh_agent *a, struct bh_stats *ret);

#endif
