/* SPDX-License-Identifier: MIT */
/*
 * Disk images: where the bytes of a virtual disk are. An image is used by one thread, its block
 * device's; virtio_blk.c does the reading and writing itself (io_uring) at the places that the
 * image names, because only it knows what is under way.
 *
 *   raw		the file or block device is the disk
 *   overlay	a base that is only read, and a private file that takes all writes (blk_overlay.c)
 *
 * How a request goes: read: locate() and read there, until all is read. Write: begin_write(), then
 * locate() and write, end_write(). Discard and zeroes: begin_zero(), fallocate() what remains,
 * end_zero(). Flush: begin_flush(), fdatasync() and end_flush() until that returns 0.
 * What begin_*() answers with -EAGAIN waits until another request has ended, and asks again.
 */
#ifndef BALLAST_VMM_BLK_IMAGE_H
#define BALLAST_VMM_BLK_IMAGE_H

#include "common/types.h"
#include "hypervisor-hooks/hooks.h"

#define BLK_SECTOR	    512
#define BLK_IMAGE_ERROR_MAX 256

struct blk_image_config {
	const char *path;
	const char *overlay; /* NULL: none. Is made if it is not there. */
	bool readonly;
	bool direct; /* past the host's page cache */
};

/* One open file, in one or both ways. */
struct blk_file {
	int fd;			     /* through the page cache; -1: not open */
	int direct_fd;		     /* O_DIRECT; -1: none */
	u32 mem_align, offset_align; /* what direct I/O wants */
	u64 bytes;
	struct bh_disk id; /* of this content; another file has another */
};

struct blk_place {
	const struct blk_file *file;
	u64 offset;
	bool base; /* of a disk image that nobody writes: file->id says which content it is */
};

struct blk_image;

struct blk_image_ops {
	const char *name;
	/* Mandatory. [offset, offset + *bytes) of the disk is at *ret; *bytes becomes smaller when
	 * only a first part of it is. For a write, what begin_write() prepared. */
	void (*locate)(struct blk_image *img, u64 offset, u64 *bytes, bool write,
		       struct blk_place *ret);
	/* Mandatory. */
	void (*close)(struct blk_image *img);
	/* The rest may be NULL: nothing to do. 0, -EAGAIN or another negative errno. */
	int (*begin_write)(struct blk_image *img, u64 offset, u64 bytes);
	void (*end_write)(struct blk_image *img, u64 offset, u64 bytes, bool ok);
	/* Makes zeros of what cannot be punched out, and leaves in *offset, *bytes what can,
	 * perhaps nothing (then there is no end_zero()). @need: the range must read as zeros; else
	 * it is only no longer wanted. */
	int (*begin_zero)(struct blk_image *img, u64 *offset, u64 *bytes, bool need);
	void (*end_zero)(struct blk_image *img, u64 offset, u64 bytes, bool ok);
	int (*begin_flush)(struct blk_image *img);
	/* @result of fdatasync(): 1: once more; 0: all that was written before begin_flush() is
	 * safe; negative errno. */
	int (*end_flush)(struct blk_image *img, int result);
};

struct blk_image {
	const struct blk_image_ops *ops;
	u64 bytes;	 /* a multiple of block_bytes, not 0 */
	u32 block_bytes; /* requests are aligned to this: BLK_SECTOR, or what direct I/O wants */
	bool readonly;
	bool flush_failed;    /* what the host lost once it does not find again: no flush succeeds
				 after that */
	struct blk_file file; /* what is written, and flushed */
};

/* Opens and locks. Negative errno, with one line in @error that names the file and the remedy. */
int blk_image_open(const struct blk_image_config *cfg, struct blk_image **ret,
		   char error[BLK_IMAGE_ERROR_MAX]);
void blk_image_close(struct blk_image *img); /* flushes; NULL is fine */

/* For the kinds of images. */
#define BLK_FILE_NONE ((struct blk_file){ .fd = -1, .direct_fd = -1 })

/* A regular file or block device; @flags O_RDONLY or O_RDWR, perhaps O_CREAT. Locks it for us (for
 * others to read, too, if read-only). -EBUSY: in use. */
int blk_file_open(struct blk_file *f, const char *path, int flags, bool direct,
		  char error[BLK_IMAGE_ERROR_MAX]);
void blk_file_close(struct blk_file *f);
int blk_overlay_open(const struct blk_image_config *cfg, struct blk_image **ret,
		     char error[BLK_IMAGE_ERROR_MAX]);

/* All of it, or negative errno (-EIO: the file ends). */
int blk_file_read(const struct blk_file *f, u64 offset, void *buf, size_t bytes);
int blk_file_write(const struct blk_file *f, u64 offset, const void *buf, size_t bytes);

#endif
