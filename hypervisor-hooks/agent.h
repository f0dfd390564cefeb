/* SPDX-License-Identifier: MIT */
/*
 * Inside of the agent. How the files divide it:
 *
 *   agent.c    life: what the VMM calls first and last
 *   region.c   regions, discards, replaced mappings
 *   link.c     the thread "ballast-agent": connection, requests, answers
 *   merge.c    move, verify, map: what replaces a guest page
 *   adopt.c    which parts of a region are registered how
 *   fault.c    the thread "ballast-fault": first touches of adopted memory
 *   pins.c     pages under DMA, where the VMM says which
 *   dma.c      may a device write guest memory behind the page tables? where it does not
 *   pager.c    pages that wait, compressed, outside of the guest (pool.c)
 *   swap.c     the threads "ballast-swap": what of these goes to a file, and comes back
 *   image.c    memory that begins as a snapshot's
 *   reads.c    what came from which disk block: hints for the daemon
 *
 * Two userfaultfd contexts. @uffd tracks writes asynchronously (WP_ASYNC: nobody waits) and traps
 * accesses to holes in adopted chunks (MISSING). @uffd_sync stops writers of the few pages that are
 * being replaced inside a store mapping, which @uffd cannot do: asynchronous is a property of the
 * context.
 *
 * Locking: @lock is held for one step (at most BH_STEP_PAGES pages, some tens of microseconds) at a
 * time, by whoever changes guest mappings or the bitmaps that describe them. Rules:
 *
 *   i.  Who holds @lock never touches guest memory that may be a hole in an adopted chunk: filling
 *       that hole takes the fault thread, which takes @lock.
 *   ii. A page that is out of the guest (moved to staging) is back, or replaced, before @lock is
 *       released. So the fault thread, which holds @lock when it fills a hole, can never fill one
 *       whose page is out (invariant 1).
 *   iii. Who holds @lock allocates and frees nothing: an allocator that is not libc's own calls
 *       madvise() and munmap(), which the shim interposes, and which take @lock. Nor does it call
 *       anything else that may take a lock of the VMM.
 */
#ifndef BALLAST_HOOKS_AGENT_H
#define BALLAST_HOOKS_AGENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "common/uapi_compat.h"
#include "hypervisor-hooks/hooks.h"
#include "hypervisor-hooks/uffd.h"
#include "hypervisor-hooks/wire.h"

/* Pages, and runs of them, replaced in one step: bounds how long a guest access can wait, while
 * runs stay cheap. */
#define BH_STEP_PAGES	 64
#define BH_STEP_RUNS	 16
#define BH_DISCARD_QUEUE WIRE_RUNS_MAX
/* Of pages that are taken out: compressing one takes 10 us, with the lock held. */
#define PAGER_STEP_PAGES 8
/* So many pages that come back are news for the daemon at once: 16 MiB, which a guest can take in a
 * tenth of a second. */
#define PAGER_NEWS_PAGES 4096
/* Of one round; more are pages like others. */
#define PAGER_SAMPLES_MAX 512
/* A page's pins; at this many it is pinned for good. */
#define BH_PINS_MAX UINT16_MAX

enum bh_chunk_state {
	CHUNK_TRACKED = 0,   /* registered WP: nothing traps */
	CHUNK_ADOPTED = 1,   /* anonymous parts registered MISSING too: pages may be moved out */
	CHUNK_UNWATCHED = 2, /* parts could not be registered: to be tried again */
};

struct bh_region {
	u64 hva, bytes, gpa;
	char name[32];
	u64 *foreign; /* 1 bit a page: the VMM put something of its own there; never touched again
		       */
	u64 *mapped;  /* 1 bit a page: in a mapping of the store, not registered with @uffd */
	u16 *pins;    /* for each page: by how many bh_pin(); NULL unless cfg.pins_exactly */
	u8 *chunk_state;  /* enum bh_chunk_state, for each 2 MiB of the region */
	u8 *chunk_faults; /* first touches filled since the chunk was adopted */
	u32 **out; /* for each chunk: NULL, or for each page what holds it (pager.c); 0: nothing */
	u16 *out_nr;			 /* pages of the chunk that are out */
	bool announced;			 /* the daemon knows it */
	bool dont_fork, dont_dump, huge; /* madvise attributes, repeated on the mappings we make */
};

/*
 * Notes of disk reads that wait to be told (reads.c). @lock is taken with no other lock held, and
 * nothing that could wait is done with it.
 */
struct bh_reads {
	pthread_mutex_t lock;
	struct wire_read queue[WIRE_READS_MAX];
	u32 nr, pages;
	u64 since_us; /* when the first of them came */
	_Atomic u64 noted, dropped;
};

/* The request of bh_region_from_image() (image.c), with bh_agent.lock held. */
enum bh_image_state {
	IMAGE_NONE,
	IMAGE_WANTED, /* the link thread shall ask */
	IMAGE_ASKED,  /* the daemon's runs are taken */
	IMAGE_OVER,   /* the status is there for who waits */
};

struct bh_image {
	enum bh_image_state state;
	pthread_cond_t over;
	u64 hva, bytes, offset;
	int fd, pagemap_fd; /* of who waits */
	s32 status;
};

/* What the pager did (pager.c). Changed with bh_agent.lock held. */
struct bh_pager {
	_Atomic u64 pages, pool_bytes; /* out now, and the memory that they take */
	_Atomic u64 out_total, in_total, zero_total, refused_total;
	/* Pages that had come back when the daemon was last woken for it. */
	u64 in_woken;
	atomic_bool wake;
	/* The host is short: so many pages a second come back, until then. */
	_Atomic u64 pace, pace_until_us;
	u64 due_us; /* of the fault thread: when the next one may */
	/* The round of samples of the working set: where those are that are out. */
	_Atomic u64 round, sampled, sample_faults;
	u64 sample_at[PAGER_SAMPLES_MAX];
	u32 nr_sample_at;
};

/* How long guest accesses of a kind waited; buckets as in bh_stats. */
struct bh_latency {
	_Atomic u64 sum_ns, buckets[BH_LATENCY_BUCKETS];
};

#define SWAP_THREADS 3
#define SWAP_QUEUE   32

/* A guest access to a page that has to be read first. */
struct bh_swap_request {
	u64 hva; /* 0: none */
	u64 read_ns;
	bool taken;
};

/* The pager's swap file (swap.c). Changed with bh_agent.lock held. */
struct bh_swap {
	int fd;	     /* -1: none */
	bool direct; /* its writes are past the page cache */
	pthread_cond_t work;
	pthread_t threads[SWAP_THREADS];
	u32 threads_started;
	struct bh_swap_request in[SWAP_QUEUE];
	u64 wanted_bytes;		   /* of the pool, to be written */
	bool writing;			   /* one thread does */
	_Atomic u64 retry_us;		   /* after a failure of writing: not before then */
	u64 write_pause_us, read_pause_us; /* after failures (swap.c) */
	_Atomic u64 medium_bytes, written_bytes, read_pages, failures;
	_Atomic int error; /* of the last failure; 0 once it went well again */
};

struct bh_agent {
	struct bh_config cfg;
	char socket_path[108], name[WIRE_NAME_MAX], uuid[WIRE_UUID_MAX];
	int uffd, uffd_sync;
	int wake_fd; /* eventfd: the link thread has something new to send, or shall stop */
	int sock;    /* of the link thread; -1: not connected */
	pthread_t link_thread, fault_thread;
	bool threads_started;
	atomic_bool dead; /* in a child after fork(): the userfaultfds are the parent's */
	atomic_bool stop;

	pthread_mutex_t lock;
	atomic_uint
		urgent; /* who waits for @lock and must not wait long: guests' faults, the VMM */
	struct bh_region *regions[WIRE_REGIONS_MAX];
	u32 nr_regions;
	struct wire_range discards[BH_DISCARD_QUEUE]; /* merged pages discarded, to be told */
	u32 nr_discards;
	struct wire_range deleted[WIRE_REGIONS_MAX]; /* regions gone, to be told */
	u32 nr_deleted;
	atomic_bool unwatched; /* there may be chunks that are CHUNK_UNWATCHED */
	atomic_bool
		resync; /* too much to tell: reconnect, and the daemon reads our mappings anew */
	struct bh_reads reads;
	struct bh_image image;
	struct pool *pool; /* NULL: no page was ever taken out */
	void *lz4_state;
	u8 *fill; /* a page, to bring back */
	struct bh_pager pager;
	struct bh_swap swap;

	/* Owned by the link thread. */
	int store_fd;
	u64 store_bytes, store_ino;
	u8 *staging; /* BH_STEP_PAGES pages, registered MISSING: where pages wait while they are
			verified */
	bool staging_full; /* pages of an earlier batch are in it still */
	u8 *reference;	   /* BH_STEP_PAGES pages: the store's content, to compare with */
	/* Last, on this connection. */
	struct wire_pager pager_told;
	struct wire_swap swap_told;
	struct wire_latency latency_told;
	u64 pager_told_us, figures_told_us;
	int mounts_fd; /* /proc/self/mountinfo, which tells of changes by poll(2) */
	bool mounts_read, network_fs;
	struct wire_message *rx, *tx;
	s32 status[WIRE_PAGES_MAX];

	_Atomic u64 merged_pages, zeroed_pages, unmerged_pages, moved_back_pages, pinned_pages,
		failed_pages, wait_faults, fill_faults, image_pages;
	struct bh_latency latency[BH_FAULT_KINDS];
	atomic_bool connected;
	atomic_uint version; /* of the protocol, on this connection */
};

/*
 * The kernel's madvise() and mmap(), not libc's: the preload shim interposes those, takes them for
 * the VMM's, and asks for @lock.
 */
static inline int kernel_madvise(void *at, size_t bytes, int advice)
{
	return (int)syscall(SYS_madvise, at, bytes, advice);
}

static inline void *kernel_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, at, bytes, prot, flags, fd, offset);
}

static inline bool page_mapped(const struct bh_region *r, u64 page)
{
	return r->mapped[page / 64] >> (page % 64) & 1;
}

static inline void page_set_mapped(struct bh_region *r, u64 page, u64 nr, bool on)
{
	for (u64 p = page; p < page + nr; p++) {
		if (on)
			r->mapped[p / 64] |= (u64)1 << (p % 64);
		else
			r->mapped[p / 64] &= ~((u64)1 << (p % 64));
	}
}

static inline bool page_foreign(const struct bh_region *r, u64 page)
{
	return r->foreign[page / 64] >> (page % 64) & 1;
}

static inline void page_set_foreign(struct bh_region *r, u64 page, u64 nr)
{
	for (u64 p = page; p < page + nr; p++)
		r->foreign[p / 64] |= (u64)1 << (p % 64);
}

/* With @lock held. A pinned page is neither moved nor replaced (pins.c). */
static inline bool page_pinned(const struct bh_region *r, u64 page)
{
	return r->pins && r->pins[page];
}

/* What may be done with a page. */
enum bh_page_kind {
	PAGE_ANONYMOUS, /* registered with @uffd */
	PAGE_MAPPED,	/* in a mapping of the store */
	PAGE_FOREIGN,
};

static inline enum bh_page_kind page_kind(const struct bh_region *r, u64 page)
{
	if (page_foreign(r, page))
		return PAGE_FOREIGN;
	return page_mapped(r, page) ? PAGE_MAPPED : PAGE_ANONYMOUS;
}

/* Pages from @page on, below @end, of the first one's kind. */
static inline u64 same_kind(const struct bh_region *r, u64 page, u64 end)
{
	u64 p = page + 1;

	while (p < end && page_kind(r, p) == page_kind(r, page))
		p++;
	return p - page;
}

static inline u64 page_hva(const struct bh_region *r, u64 page)
{
	return r->hva + (page << PAGE_SHIFT);
}

/*
 * @lock for those that a guest or the VMM waits for, and for the link thread, which lets them go
 * first: a mutex alone is not fair, and the link thread takes it again at once, step after step.
 */
static inline void lock_urgent(struct bh_agent *a)
{
	a->urgent++;
	pthread_mutex_lock(&a->lock);
	a->urgent--;
}

static inline void lock_step(struct bh_agent *a)
{
	while (a->urgent)
		usleep(50);
	pthread_mutex_lock(&a->lock);
}

/* agent.c */
void agent_log(struct bh_agent *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
u64 agent_cpu_us(struct bh_agent *a);
void agent_kick(struct bh_agent *a); /* the link thread has something new to do */

/* region.c */
struct bh_region *region_find(struct bh_agent *a, u64 hva, u64 bytes);
void bh_region_free(struct bh_region *r); /* NULL is fine */
typedef void (*region_part_fn)(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr);
/* Calls @fn, with @lock held, for each part of the range that lies in a region, whole pages. True
 * if there was one. */
bool region_for_each_part(struct bh_agent *a, const void *from, size_t bytes, region_part_fn fn);

/* adopt.c: all with @lock held; @page and @nr in pages of the region */
int region_track(struct bh_agent *a, struct bh_region *r);
int region_adopt(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr);
void chunk_release(struct bh_agent *a, struct bh_region *r, u64 chunk);
/* Registers what is CHUNK_UNWATCHED: the daemon would never look at it again. */
void regions_watch(struct bh_agent *a);
/* Gives @nr pages an empty anonymous mapping in place of whatever is there, registered as its chunk
 * is; where that cannot be, the chunk is UNWATCHED from then on, which is no error. */
int region_replace_anon(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr);
/* Ends the protection of pages by @uffd_sync, whose events nobody reads: a write that it went on
 * stopping would wait for ever. So this does not fail. */
void region_unprotect(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr);
/* Maps @nr pages of the store there. */
int region_replace_store(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr,
			 u64 store_offset);

/* Gives those pages of the range that map the store empty memory. False: not all of them. */
bool region_unmap(struct bh_agent *a, u64 hva, u64 bytes);

/* merge.c: on the link thread, without @lock; one status a page, in the order of the runs */
void merge_runs(struct bh_agent *a, const struct wire_run *runs, u32 nr_runs, s32 *status);
void unmerge_range(struct bh_agent *a, u64 hva, u64 nr, s32 *status);

/* pager.c; all but pager_prepare() and pager_free() with @lock held */
/* Room to note what becomes of at most PAGER_STEP_PAGES pages. */
int pager_prepare(struct bh_agent *a, u64 hva, u32 nr);
/* Keeps the content of a page that is out of the guest. @round: of samples; 0: of none. -EFBIG: it
 * is not worth it, -ENOSPC, -EAGAIN: it belongs back. */
int pager_put(struct bh_agent *a, struct bh_region *r, u64 page, const void *content, u64 round);
bool pager_holds(const struct bh_region *r, u64 page);
/* What it is kept as in the pool; POOL_NONE: it is not out. */
u32 pager_object(const struct bh_region *r, u64 page);
bool pager_on_medium(const struct bh_agent *a, const struct bh_region *r, u64 page);
/* Brings a page back. -ENOENT: it is not out, or what is mapped there is not the region's any more.
 */
int pager_fill(struct bh_agent *a, struct bh_region *r, u64 page);
/* The same for one that is out, with what was read of the medium. */
int pager_fill_read(struct bh_agent *a, struct bh_region *r, u64 page, const void *packed,
		    u32 bytes);
void pager_drop(struct bh_agent *a, struct bh_region *r, u64 page, u64 nr); /* it is lost */
void pager_restore(struct bh_agent *a, struct bh_region *r);		    /* all of the region */
void pager_note(struct bh_agent *a); /* what the pool takes, for the figures */
void pager_free(struct bh_agent *a);

/* swap.c; with @lock held but for swap_use(), swap_start() and swap_stop() */
/* Takes over @fd, unless it fails. -EEXIST: it has a file; -EINVAL: it is none to be used. */
int swap_use(struct bh_agent *a, int fd);
/* May something be written now? */
bool swap_takes(const struct bh_agent *a);
/* So much more of the pool shall leave memory. */
void swap_out(struct bh_agent *a, u64 bytes);
/* True: a thread reads the page, brings it back and wakes who waits. False: they are too busy. */
bool swap_will_fill(struct bh_agent *a, u64 hva, u64 read_ns);
/* An object on the medium, by way of @blocks (POOL_PLACE_BLOCKS of them, aligned), without @lock or
 * with. Does not fail: the VM ends. */
struct pool_place;
const void *swap_read(struct bh_agent *a, const struct pool_place *at, void *blocks,
		      u32 *ret_bytes);
int swap_start(struct bh_agent *a);
void *swap_main(void *agent);
void swap_stop(struct bh_agent *a); /* once bh_agent.stop is set */

/* link.c */
int link_connect(struct bh_agent *a); /* connects and shakes hands, waiting at most a second */
void *link_main(void *agent);

/* image.c: on the link thread */
int image_tell(struct bh_agent *a);
/* Maps what the daemon says; one status a page. */
void image_map(struct bh_agent *a, const struct wire_run *runs, u32 nr_runs, s32 *status);
/* It is over, by the daemon's word or because that is lost; without a request it is nothing. */
void image_end(struct bh_agent *a, s32 status, bool lost);

/* reads.c: on the link thread */
void reads_forget(struct bh_agent *a);
/* Until they shall be told: 0 now, -1 never (there are none). */
int reads_wait_ms(struct bh_agent *a);
/* Tells them if it is time. A daemon that does not take them does not get them. */
int reads_tell(struct bh_agent *a);

/* fault.c */
void *fault_main(void *agent);
/* The guest runs on already. */
void fault_tell(struct bh_agent *a, u64 hva, enum bh_fault_kind kind, u64 read_ns);

/* dma.c */
bool dma_possible(struct bh_agent *a);		/* to a page that UFFDIO_MOVE was not asked about */
bool dma_unpinned_possible(struct bh_agent *a); /* to a page that UFFDIO_MOVE took for unpinned */

#endif
