/* SPDX-License-Identifier: MIT */
/*
 * The state file of a snapshot: records of bytes, each named by a tag and an instance ("vcpu-regs"
 * of vCPU 1). Who writes a record defines its bytes, and checks them when they come back: a state
 * file is as hostile as a guest (the framing is checked here, once, when it is opened).
 *
 * Layout, little endian: "BLSTSTAT", u32 version, u32 number of records; each record is a tag of 16
 * bytes (NUL-padded), u32 instance, u32 bytes, the bytes, padding to 8.
 */
#ifndef BALLAST_VMM_STATE_H
#define BALLAST_VMM_STATE_H

#include "common/types.h"

#define STATE_VERSION	 1
#define STATE_TAG_BYTES	 16
#define STATE_FILE_MAX	 MIB(64)
#define STATE_RECORD_MAX MIB(16)

/* Zero-initialised is empty. */
struct state_writer {
	u8 *data;
	size_t bytes, capacity;
	u32 nr_records;
};

struct state_reader {
	u8 *data;
	size_t bytes;
};

/* Adds a record; @tag has at most 15 characters. -ENOMEM; -EINVAL: too long, or given already. */
int state_put(struct state_writer *w, const char *tag, u32 instance, const void *data,
	      size_t bytes);
/* To a new file, synced; -EEXIST when there is one. */
int state_writer_save(const struct state_writer *w, int dir_fd, const char *name);
void state_writer_free(struct state_writer *w);

/* Reads and checks the framing. -EBADMSG: not a state file, or damaged; -ENOTSUP: version. */
int state_reader_open(struct state_reader *r, int dir_fd, const char *name);
/* The same on bytes that the reader then owns (malloc). */
int state_reader_init(struct state_reader *r, u8 *data, size_t bytes);
void state_reader_free(struct state_reader *r);

/* A record's bytes, 8-aligned, or NULL when there is none. Valid until the reader is freed. */
const void *state_get(const struct state_reader *r, const char *tag, u32 instance,
		      size_t *ret_bytes);
/* Copies a record that must have just this size. -ENOENT; -EBADMSG: another size. */
int state_get_exact(const struct state_reader *r, const char *tag, u32 instance, void *ret,
		    size_t bytes);

#endif
