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
 *      Where a region is MADV_DONTFORK idle pages may be taken out and kept compressed in this
 *      process; whoever touches one, guest, VMM or kernel, gets it back.
 *   4. When the VMM gives memory back (balloon, free page reporting: what it would do with
 *      MADV_DONTNEED), it calls bh_discard() instead. When it unmaps or remaps guest RAM,
 *      bh_region_del() first.
 *   5. Around each request of a device: bh_pin(), the I/O, and when that is complete bh_unpin();
 *      then, if it was a read of a base image that guests share, bh_note_disk_read(); then the
 *      guest is told.
 *   6. bh_free() at the end, or never: when the process exits, the kernel cleans all up.
 *
 * Threads: the agent runs two of its own, "ballast-agent" (the daemon's requests) and
 * "ballast-fault" (userfaultfd events). All calls below are thread-safe. None of them is
 * async-signal-safe. After fork() the child has no agent.
 *
 * What is called for each request of a device (bh_pin() to bh_note_written()) takes NULL for the
 * agent and does nothing then, so that a VMM without a daemon needs no second path.
 *
 * What a VMM may rely on (numbers are those of the invariants in docs/ARCHITECTURE.md):
 *   - guest RAM never changes content by merging, not for an instant (1, 2);
 *   - no access to guest RAM ever waits for the daemon; an access to a page that is being moved,
 *     or that was compressed, waits for microseconds, for the agent's own thread (6, 8);
 *   - when anything fails the page stays private (7).
 *
 * Errors are negative errno values. Addresses are HVAs, lengths bytes; both multiples of the page
 * size.
 */
#ifndef BALLAST_HOOKS_H
#define BALLAST_HOOKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BH_DEFAULT_SOCKET "/run/ballast/agent.sock"

struct bh_agent;

enum bh_fault_kind {
	BH_FAULT_FILL, /* first touch of adopted memory: the agent gave it a page of zeros */
	BH_FAULT_WAIT, /* an access that waited for a page that was being moved */
	BH_FAULT_IN,   /* an access to a page that was out: it was brought back */
};
#define BH_FAULT_KINDS 3

/* A guest access that the agent let go on. */
struct bh_fault {
	uint64_t hva; /* of the page */
	enum bh_fault_kind kind;
	/* From the moment the agent read the kernel's event to the one it woke the guest. How long
	 * the event waited to be read, the kernel does not tell. */
	uint64_t latency_ns;
};

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
	/* The VMM calls bh_pin() before any I/O that reaches guest RAM past the page tables, all of
	 * it. Then that is what counts, and the descriptors are not looked at. */
	bool pins_exactly;
	/* Called after a guest access was let go on, on one of the threads that such accesses wait
	 * for: it must not take long, and touch no guest RAM. NULL: none. */
	void (*fault)(void *arg, const struct bh_fault *f);
	void *fault_arg;
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

/*
 * The VMM has put new content into its guest RAM behind the agent's back: whatever was known of the
 * regions that the range touches is forgotten, whole regions at a time, and all of their pages are
 * private. For a restored snapshot that is a new mapping:
 *
 *   stop the vCPUs; bh_replace_begin(); mmap(MAP_FIXED) of private anonymous memory; fill it;
 *   bh_invalidate(); start the vCPUs
 *
 * A snapshot that is read into the memory that is there needs no call but bh_discard() of all of
 * it first, so that it does not break copy-on-write page by page.
 *
 * -ENOENT: no region there. -EBUSY: pages of it are pinned; nothing was done. -ENOTSUP: what is
 * mapped there now is not private anonymous memory; the region is not Ballast's any more.
 */
int bh_invalidate(struct bh_agent *a, void *hva, size_t bytes);

/*
 * For clones of a snapshot: this part of a region, which is empty and which neither the guest nor
 * the VMM uses yet, becomes what the file holds from @offset on (a multiple of the page size),
 * without a copy of its own: it is a private mapping of the domain's store. The daemon reads the
 * file once, for the first of the clones. To be called after bh_region_add() and before the vCPUs
 * run; waits for the daemon, for a minute at most.
 *
 * The file is a regular one that nobody writes any more: when its size, or its times of change, are
 * not those that the daemon knows, it is another image. On any error nothing is changed (the memory
 * is empty), and the VMM fills it itself:
 *
 * -ENOTSUP: the daemon is older. -ENOTCONN, -ECONNRESET: it is not there, or went away. -EINVAL:
 * not aligned, or in no region. -EBUSY: the memory is in use already, or another such call is under
 * way. -ENOSPC: the store is full, or the VMM would get too many mappings. -ETIMEDOUT, -EAGAIN
 * (sharing is paused), -ESTALE (the file was written meanwhile), or what reading the file gave.
 * Only -ENOTRECOVERABLE is no such error: memory ran out, part of the range could not be emptied
 * again, and the VMM must not use it.
 */
int bh_region_from_image(struct bh_agent *a, void *hva, size_t bytes, int fd, uint64_t offset);

/*
 * A device of the VMM is about to read or write these pages past the page tables: direct I/O, fixed
 * buffers, VFIO. When bh_pin() has returned no such page is being replaced, and none will be until
 * bh_unpin() of the same range: the daemon is told -EBUSY. Call it before the kernel is handed the
 * address, and bh_unpin() when the I/O is known to be complete.
 *
 * Exact by page, the ends rounded outwards; pins that overlap add up. Memory that is in no region
 * needs no pin, and is passed over. Costs some 70 ns, and 1.5 ns a page (test_56); waits for one
 * step of the agent at most (64 pages, some tens of microseconds). Takes 2 bytes a page of
 * guest RAM. A page with 65,535 pins at a time stays pinned for good.
 *
 * A region is neither added nor deleted while pages of it are pinned: the pins would be lost.
 *
 * -EINVAL: the range is empty or wraps around, or the VMM did not promise to pin exactly.
 */
int bh_pin(struct bh_agent *a, const void *hva, size_t bytes);
int bh_unpin(struct bh_agent *a, const void *hva, size_t bytes);

/* Who a disk image is: two VMMs that compute the same of a file mean the same content. */
struct bh_disk {
	uint64_t id[2];
};

/* From a file's device, inode, size and times of change. It is for images that nobody writes: after
 * a write the identity is another. */
int bh_disk_identity(int fd, struct bh_disk *ret);

/*
 * The VMM has just filled these pages from a base image: @sector (512 bytes) is what their first
 * byte came from, the rest follows. To be called before the guest is told. Only whole pages count.
 * When another guest of the domain has read the same block, the daemon looks at both pages at once,
 * without waiting for a scan.
 *
 * It is a hint: it is put in a queue and may be dropped; wrong ones cost some work, since every
 * byte is compared before pages are merged. Never waits.
 */
void bh_note_disk_read(struct bh_agent *a, const void *hva, size_t bytes,
		       const struct bh_disk *disk, uint64_t sector);
/* These pages do not hold what was noted of them any more: the VMM has written something else. What
 * the guest writes itself need not be told. */
void bh_note_written(struct bh_agent *a, const void *hva, size_t bytes);

#define BH_LATENCY_BUCKETS 20

struct bh_stats {
	uint64_t merged_pages, zeroed_pages, unmerged_pages; /* done, since bh_new() */
	uint64_t moved_back_pages; /* changed between the daemon's look and ours */
	uint64_t pinned_pages;	   /* refused: under DMA (EBUSY) */
	uint64_t failed_pages;	   /* any other reason */
	uint64_t wait_faults;	   /* guest accesses that waited for a move */
	uint64_t fill_faults;	   /* first touches of adopted memory, filled by the agent */
	/* How long they took (struct bh_fault): bucket i counts those of less than 2^i us that are
	 * in none before it; the last one has all the rest. */
	uint64_t wait_latency[BH_LATENCY_BUCKETS], fill_latency[BH_LATENCY_BUCKETS],
		in_latency[BH_LATENCY_BUCKETS];
	/* The pager: pages that are out of the guest now, compressed, and the memory that takes;
	 * since bh_new(): pages taken out, brought back, dropped as zeros, not worth compressing.
	 */
	uint64_t paged_pages, pool_bytes, paged_out_pages, paged_in_pages, paged_zero_pages,
		paged_refused_pages;
	/* Its swap file: what is in it now; since bh_new(): written, read back, failures of either.
	 */
	uint64_t swap_bytes, swap_written_bytes, swap_read_pages, swap_failures;
	uint64_t disk_reads_noted, disk_reads_dropped; /* pages: told to the daemon; not told */
	uint64_t image_pages;			       /* mapped by bh_region_from_image() */
	uint64_t cpu_us;			       /* CPU time of its threads */
	int connected;				       /* the daemon answers now */
};
void bh_stats(struct bh_agent *a, struct bh_stats *ret);

#endif
