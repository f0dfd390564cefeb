/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "vmm/blk_image.h"

/* Where the kernel does not say what direct I/O wants (STATX_DIOALIGN, Linux 6.1, not on every file
 * system). */
#define DIRECT_ALIGN_DEFAULT 512
/* Guests know no larger block. */
#define BLOCK_MAX 4096

static int fail(char *error, int r, const char *path, const char *what)
{
	snprintf(error, BLK_IMAGE_ERROR_MAX, "disk image %s: %s", path, what);
	return r;
}

/* Open file description locks: another process that uses the image is seen; locks end with the
 * descriptor. A file system without locks is no reason to refuse. */
static int lock_file(int fd, bool writable)
{
	struct flock l = { .l_type = writable ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };

	if (fcntl(fd, F_OFD_SETLK, &l) < 0 && (errno == EAGAIN || errno == EACCES))
		return -EBUSY;
	return 0;
}

static void ask_alignment(struct blk_file *f)
{
	f->mem_align = f->offset_align = DIRECT_ALIGN_DEFAULT;
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (statx(f->direct_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
	    stx.stx_mask & STATX_DIOALIGN && stx.stx_dio_mem_align) {
		f->mem_align = stx.stx_dio_mem_align;
		f->offset_align = stx.stx_dio_offset_align;
	}
#endif
}

int blk_file_open(struct blk_file *f, const char *path, int flags, bool direct,
		  char error[BLK_IMAGE_ERROR_MAX])
{
	struct stat st;
	int r;

	*f = BLK_FILE_NONE;
	/* O_NONBLOCK: a FIFO must not make us wait before it is refused. */
	f->fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
	if (f->fd < 0)
		return fail(error, -errno, path, strerror(errno));
	if (fstat(f->fd, &st) < 0) {
		r = fail(error, -errno, path, strerror(errno));
		goto out;
	}
	if (S_ISREG(st.st_mode)) {
		f->bytes = (u64)st.st_size;
	} else if (!S_ISBLK(st.st_mode) || ioctl(f->fd, BLKGETSIZE64, &f->bytes) < 0) {
		r = fail(error, -EINVAL, path, "is neither a file nor a block device");
		goto out;
	}
	r = lock_file(f->fd, (flags & O_ACCMODE) != O_RDONLY);
	if (r < 0) {
		fail(error, r, path,
		     "is in use by another VM; give each one an overlay= of its own");
		goto out;
	}
	r = bh_disk_identity(f->fd, &f->id);
	if (r < 0) {
		fail(error, r, path, strerror(-r));
		goto out;
	}
	if (direct) {
		f->direct_fd = open(path, (flags & O_ACCMODE) | O_DIRECT | O_CLOEXEC);
		if (f->direct_fd < 0) {
			r = fail(error, -errno, path,
				 "this file system has no direct I/O; leave out direct");
			goto out;
		}
		ask_alignment(f);
	}
	return 0;
out:
	blk_file_close(f);
	return r;
}

void blk_file_close(struct blk_file *f)
{
	if (f->direct_fd >= 0)
		close(f->direct_fd);
	if (f->fd >= 0)
		close(f->fd);
	*f = BLK_FILE_NONE;
}

int blk_file_read(const struct blk_file *f, u64 offset, void *buf, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n = pread(f->fd, (u8 *)buf + done, bytes - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

int blk_file_write(const struct blk_file *f, u64 offset, const void *buf, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n =
			pwrite(f->fd, (const u8 *)buf + done, bytes - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* --- raw ----------------------------------------------------------------------------------------
 */

static void raw_locate(struct blk_image *img, u64 offset, u64 *bytes, bool write,
		       struct blk_place *ret)
{
	*ret = (struct blk_place){ .file = &img->file, .offset = offset, .base = img->readonly };
}

static void raw_close(struct blk_image *img)
{
	blk_file_close(&img->file);
	free(img);
}

static const struct blk_image_ops raw_ops = {
	.name = "raw",
	.locate = raw_locate,
	.close = raw_close,
};

static int raw_open(const struct blk_image_config *cfg, struct blk_image **ret, char *error)
{
	struct blk_image *img = calloc(1, sizeof(*img));
	int r;

	if (!img)
		return fail(error, -ENOMEM, cfg->path, "out of memory");
	img->ops = &raw_ops;
	img->readonly = cfg->readonly;
	r = blk_file_open(&img->file, cfg->path, cfg->readonly ? O_RDONLY : O_RDWR, cfg->direct,
			  error);
	if (r < 0) {
		free(img);
		return r;
	}
	img->bytes = img->file.bytes;
	*ret = img;
	return 0;
}

/* --- all kinds ----------------------------------------------------------------------------------
 */

int blk_image_open(const struct blk_image_config *cfg, struct blk_image **ret,
		   char error[BLK_IMAGE_ERROR_MAX])
{
	struct blk_image *img;
	int r = cfg->overlay ? blk_overlay_open(cfg, &img, error) : raw_open(cfg, &img, error);

	if (r < 0)
		return r;
	if (!img->bytes || img->bytes % BLK_SECTOR || img->bytes > INT64_MAX / 2) {
		/* Not rounded: a tail that the guest cannot see is a loss that nobody notices. */
		r = fail(error, -EINVAL, cfg->path,
			 img->bytes ? "its size is no multiple of 512 bytes (truncate -s %512)"
				    : "is empty");
		goto fail;
	}
	/* Page cache and direct I/O are never mixed in one block. So a guest has
	 * to know what direct I/O wants. */
	img->block_bytes = MAX(img->block_bytes, BLK_SECTOR);
	if (cfg->direct)
		img->block_bytes = MAX(img->block_bytes, img->file.offset_align);
	if (img->block_bytes > BLOCK_MAX || img->bytes % img->block_bytes) {
		r = fail(error, -EINVAL, cfg->path,
			 "direct I/O wants larger blocks here than the disk has; leave out direct");
		goto fail;
	}
	*ret = img;
	return 0;
fail:
	img->ops->close(img);
	return r;
}

void blk_image_close(struct blk_image *img)
{
	if (!img)
		return;
	if (!img->readonly && (!img->ops->begin_flush || img->ops->begin_flush(img) == 0)) {
		int r = 1;

		while (r == 1) {
			r = fdatasync(img->file.fd) ? -errno : 0;
			if (img->ops->end_flush)
				r = img->ops->end_flush(img, r);
		}
	}
	img->ops->close(img);
}
