/* SPDX-License-Identifier: MIT */
/*
 * The wire protocol between an agent (in a VMM) and ballastd: SOCK_SEQPACKET, one message a packet.
 *
 *   agent                                    daemon
 *     |------ HELLO (versions, name) --------->|      state NEW
 *     |<----- WELCOME (version, +store fd) ----|      state READY  (or REFUSE, and it closes)
 *     |------ REGION_ADD / REGION_DEL -------->|      any time from here on
 *     |<----- MERGE (seq, runs) ---------------|      at most one MERGE or UNMERGE is outstanding:
 *     |------ DISCARD (ranges) --------------->|      the daemon sends the next one after DONE
 *     |------ DONE (seq, segments) ----------->|
 *     |<----- UNMERGE (seq, ranges) -----------|
 *     |------ DONE (seq, segments) ----------->|
 *     |------ DISK_READ (reads) -------------->|      version 2, any time: a hint, never answered
 *     |------ IMAGE (range, +file) ----------->|      version 2, one at a time
 *     |<----- IMAGE_RUNS (seq, runs) ----------|      as a MERGE: in turn with those
 *     |------ DONE (seq, segments) ----------->|
 *     |<----- IMAGE_END (status) --------------|      after the last of them, or at once
 *     |<----- PAGE_OUT (seq, runs) ------------|      version 3, as a MERGE: in turn with those
 *     |------ PAGER (counts) ----------------->|      version 3, before each such
 *     |------ DONE (seq, segments) ----------->|      and now and then, when something has changed
 *     |<----- SWAP_FILE (+file) ---------------|      version 4, once: for its pager to write to
 *     |<----- SWAP_OUT (bytes) ----------------|      version 4, any time; what came of it is told
 *     |<----- PACE (pages a second) -----------|      version 4, any time
 *     |------ SWAP, LATENCY (counts) --------->|      version 4, now and then, as PAGER
 *     close by either side: mappings stay as they are; the agent connects again, and the daemon
 *     reads their state from the kernel (/proc/PID/maps), never from the agent's word.
 *
 * Order: DISCARD tells of discards that hit merged pages. It is sent after the DONE of the request
 * during which they happened, and an agent does not merge a page whose DISCARD is still to be sent
 * (-ENOENT), so that applying messages in order gives the true state.
 *
 * Version rule: the header and HELLO never change. HELLO names the lowest and highest version that
 * the agent speaks; WELCOME names the one that both use from then on: the highest common one. A new
 * message, or a change of any other, takes a new version. A header names the version that its
 * message's layout is of, so a message that is as it was in version 1 says 1 on every connection;
 * one of a later version than the connection's is a protocol error. So are unknown types, and any
 * length, count or range that does not fit: the receiver closes the connection. Nothing of a bad
 * message is acted on.
 *
 *   version 1   all but what follows
 *   version 2   DISK_READ, IMAGE, IMAGE_RUNS, IMAGE_END
 *   version 3   PAGE_OUT, PAGER
 *   version 4   SWAP_FILE, SWAP_OUT, PACE, SWAP, LATENCY
 *
 * All integers are in host order: both ends are on one machine. Addresses are HVAs of the VMM, in
 * bytes.
 */
#ifndef BALLAST_HOOKS_WIRE_H
#define BALLAST_HOOKS_WIRE_H

#include <sys/types.h>
#include "common/types.h"

#define WIRE_MAGIC	    0x54534c42u /* "BLST" */
#define WIRE_VERSION_LOWEST 1
#define WIRE_VERSION	    4
#define WIRE_PAGER_VERSION  3 /* the first with PAGE_OUT and PAGER */
#define WIRE_SWAP_VERSION   4 /* the first with SWAP_FILE and what goes with it */
#define WIRE_NAME_MAX	    64
#define WIRE_UUID_MAX	    40

/* Bounds what one message can make the receiver do, and keeps a packet below the default socket
 * buffer. */
#define WIRE_MESSAGE_MAX 65536
#define WIRE_RUNS_MAX	 1024 /* runs in a MERGE, ranges in DISCARD and UNMERGE */
#define WIRE_PAGES_MAX	 2048 /* pages in all runs of one MERGE: DONE then fits in a message */
#define WIRE_REGIONS_MAX 64   /* regions of one agent */
#define WIRE_READS_MAX	 1024 /* in a DISK_READ */
#define WIRE_READ_PAGES_MAX \
	16384 /* in all of them: some milliseconds of the daemon's time at most */

enum wire_type {
	WIRE_HELLO = 1,
	WIRE_WELCOME,
	WIRE_REFUSE,
	WIRE_REGION_ADD,
	WIRE_REGION_DEL,
	WIRE_MERGE,
	WIRE_UNMERGE,
	WIRE_DISCARD,
	WIRE_DONE,
	WIRE_DISK_READ,
	WIRE_IMAGE,
	WIRE_IMAGE_RUNS,
	WIRE_IMAGE_END,
	WIRE_PAGE_OUT,
	WIRE_PAGER,
	WIRE_SWAP_FILE,
	WIRE_SWAP_OUT,
	WIRE_SWAP,
	WIRE_LATENCY,
	WIRE_PACE,
	WIRE_TYPE_END,
};

struct wire_header {
	u32 magic;
	u16 type;
	u16 version; /* of the message's layout; in HELLO the sender's highest */
	u32 bytes;   /* of the whole message */
	u32 seq; /* MERGE, UNMERGE, IMAGE_RUNS: chosen by the daemon; DONE: the one it answers; else
		    0 */
};

struct wire_hello {
	u16 version_lowest, version_highest;
	u32 page_bytes;
	char name[WIRE_NAME_MAX]; /* NUL-terminated, as all strings here */
	char uuid[WIRE_UUID_MAX];
};

struct wire_welcome {
	u16 version;
	u16 pad[3];
	u64 store_bytes; /* size of the store's file, which comes as the message's one descriptor,
			    read-only */
	char domain[WIRE_NAME_MAX];
};

struct wire_refuse {
	s32 error; /* negative errno */
	char reason[124];
};

struct wire_region {
	u64 hva, bytes, gpa;
	char name[32];
};

enum wire_run_kind {
	WIRE_RUN_STORE = 1, /* map store pages from @store_offset on */
	WIRE_RUN_ZERO = 2,  /* map the zero page */
	/* In PAGE_OUT alone: compress the pages and take them out of the guest; */
	WIRE_RUN_OUT = 3,
	WIRE_RUN_SAMPLE = 4, /* and count which of them the guest comes back for: samples of one
				round have one number, @store_offset; with another number those of
				before are pages like others */
};

struct wire_run {
	u64 hva;
	u64 store_offset; /* bytes */
	u32 nr_pages;
	u32 kind;
};

struct wire_range {
	u64 hva, bytes;
};

/* These pages were filled from the disk @disk (hooks.h, bh_disk_identity()), from @sector (512
 * bytes) on, before the guest was told of them. */
struct wire_read {
	u64 hva;
	u64 disk[2];
	u64 sector;
	u32 nr_pages, pad;
};

/*
 * IMAGE: this memory of the guest, which is empty and not in use, shall be what the file holds from
 * @offset on. The file comes as the message's one descriptor. What the agent is then told to map by
 * IMAGE_RUNS (WIRE_RUN_STORE, at most WIRE_PAGES_MAX pages as in a MERGE) it does not compare:
 * there is nothing in the guest to compare it with. Pages that are not told are zeros.
 */
struct wire_image {
	u64 hva, bytes, offset;
};

struct wire_image_end {
	s32 status; /* 0: all of it is there; else it is not, and what is must be dropped */
	u32 pad;
	u64 nr_pages; /* that were mapped */
};

/* What the agent's pager has, and has done since HELLO. */
struct wire_pager {
	u64 pages, pool_bytes;		     /* out now, and the memory that they take */
	u64 out_total, in_total, zero_total; /* pages */
	/* The round of samples: its number, how many were taken out, how many came back. */
	u64 sample_round, sampled, sample_faults;
};

/*
 * SWAP_FILE has no payload. The file is the message's one descriptor: a regular one, open for
 * reading and writing, empty and unlinked, the agent's own from here on. One that has a file
 * already keeps that.
 */

/* So much of the pager's pool shall go to the file. */
struct wire_swap_out {
	u64 bytes;
};

/* The host is nearly out of memory: for so long no more than so many pages a second come back into
 * the guest. A daemon that dies meanwhile is not waited for. */
#define WIRE_PACE_MS_MAX 1000
struct wire_pace {
	u32 pages, ms; /* pages 0: as many as there are */
};

/* The pager's file. */
struct wire_swap {
	u64 has_file; /* 1, or 0 */
	u64 bytes;    /* in it now */
	/* Since HELLO's process began. */
	u64 written_bytes, read_pages, failures;
	s64 error; /* negative errno of a failed write, while no other is tried */
};

/* How long guest accesses waited for the agent, since its process began: bucket i counts those of
 * less than 2^i us that are in none before it; the last one has all the rest. */
#define WIRE_LATENCY_BUCKETS 20
#define WIRE_LATENCY_KINDS   3
struct wire_latency {
	struct wire_latency_of {
		u64 sum_ns, buckets[WIRE_LATENCY_BUCKETS];
	} kinds[WIRE_LATENCY_KINDS]; /* enum bh_fault_kind (hooks.h) */
};

/* What became of consecutive pages. */
struct wire_segment {
	u64 hva;
	u32 nr_pages;
	s32 status; /* 0: done; -EBUSY: pinned; -EILSEQ: content differs; -ENOENT: absent; -ENOSPC:
		       no mappings left; -EFBIG: does not compress */
};

/* DONE: this, then the segments. */
struct wire_done {
	u64 cpu_us;	 /* CPU time of the agent's threads since HELLO */
	u64 wait_faults; /* guest accesses that waited for a move, since HELLO */
	u64 fill_faults;
};

/* A message as a buffer. Large enough for all; aligned for all structs above. */
struct wire_message {
	struct wire_header h;
	union {
		struct wire_hello hello;
		struct wire_welcome welcome;
		struct wire_refuse refuse;
		struct wire_region region; /* REGION_ADD */
		struct wire_range range;   /* REGION_DEL */
		struct wire_run runs[WIRE_RUNS_MAX];
		struct wire_range ranges[WIRE_RUNS_MAX];
		struct wire_read reads[WIRE_READS_MAX];
		struct wire_image image;
		struct wire_image_end image_end;
		struct wire_pager pager;
		struct wire_swap_out swap_out;
		struct wire_swap swap;
		struct wire_pace pace;
		struct wire_latency latency;
		struct {
			struct wire_done done;
			struct wire_segment segments[WIRE_PAGES_MAX];
		};
		u8 bytes[WIRE_MESSAGE_MAX - sizeof(struct wire_header)];
	};
};

/* Fills the header for @payload bytes behind it. */
void wire_init(struct wire_message *m, enum wire_type type, u32 seq, size_t payload);

/*
 * Checks all that can be checked without knowing the other end's state: magic, version, type,
 * length, counts, string termination, page alignment, ranges that wrap around. @bytes is what was
 * received, @nr_fds how many descriptors came with it. Returns 0 or -EPROTO, with a constant
 * sentence in *ret_why.
 */
int wire_check(const struct wire_message *m, size_t bytes, u32 nr_fds, const char **ret_why);

/* Elements of the array in a checked message. */
u32 wire_count(const struct wire_message *m);

/* The highest version that an agent of these versions and we have in common; 0: none. */
u32 wire_common_version(u32 lowest, u32 highest);

/* Sends without blocking for longer than @timeout_ms (0: not at all). -EAGAIN when the peer does
 * not read. */
int wire_send(int sock, const struct wire_message *m, int fd, int timeout_ms);

/*
 * Receives one packet, without blocking, and checks it. 0, -EAGAIN, -ECONNRESET (closed), -EPROTO.
 * A descriptor is only taken of a WELCOME, an IMAGE or a SWAP_FILE, and only where @ret_fd is not
 * NULL; what else comes is -EPROTO, and is never opened here: to close a file can hang, if it is of
 * a file system of the sender's own (FUSE).
 *
 * *ret_fd is -1 or the descriptor, owned by the caller; also on -EPROTO, where more than one came.
 */
int wire_recv(int sock, struct wire_message *m, int *ret_fd, const char **ret_why);

#endif
