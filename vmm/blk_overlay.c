/* SPDX-License-Identifier: MIT */
/*
 * An overlay: a base image that is only read, and a sparse file of our own in which every cluster
 * (4 KiB, what a guest's file system writes at least) that was ever written has its fixed place. A
 * bitmap says which are there.
 *
 *	offset			what
 *	0			struct overlay_header, 4 KiB
 *	4096			bitmap: bit c % 8 of byte c / 8 is set: cluster c is in this file
 *	header.data_offset	cluster c at data_offset + c * 4096; a hole where it is not
 *
 * Numbers are little-endian. The base is known again by its size and time of last change: another
 * one under the same overlay would be a file system in pieces.
 *
 * What survives a crash. The file's bitmap is written only by a flush, and only with bits of
 * clusters whose data an fdatasync() has made safe before: copy the changed pages of the bitmap,
 * sync, write the copy, sync, and then the flush is acknowledged. So a bit that is found set never
 * leads to data that is not there; and a write that no flush followed may be lost, as on a disk
 * with a write cache.
 *
 * A write of less than a cluster that is not there yet copies the cluster from the base first. If
 * another write to the same cluster is under way it waits for that, or the copy would overwrite it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "vmm/blk_image.h"

#define MAGIC	      "BLSTOVL\n"
#define VERSION	      1
#define CLUSTER	      4096
#define BITMAP_OFFSET 4096
/* Data begin aligned to this, so that an overlay on huge blocks is not fragmented by a header. */
#define DATA_ALIGN MIB(1)
/* Clusters that one page of the bitmap tells of. */
#define PAGE_CLUSTERS (PAGE_BYTES * 8)
/* Writes under way at a time; a block device has at most a queue of them. */
#define WRITES_MAX 256

struct overlay_header {
	char magic[8];
	u32 version, cluster_bytes;
	u64 disk_bytes, bitmap_offset, bitmap_bytes, data_offset;
	u64 base_bytes, base_mtime_s, base_mtime_ns;
	u64 hash; /* XXH3 of all before */
};

struct range {
	u64 first, last; /* clusters */
};

struct overlay {
	struct blk_image img; /* img.file is the overlay file */
	struct blk_file base;
	u64 data_offset, nr_clusters;
	u8 *bitmap;   /* of bitmap_pages pages */
	u8 *changed;  /* one byte a page of it: differs from the file's */
	u8 *flushing; /* NULL, or one byte a page: is in @copies */
	u8 *copies;   /* of the pages that are being flushed, in order */
	u64 bitmap_pages;
	bool second_sync;

	struct range writes[WRITES_MAX]; /* under way */
	u32 nr_writes;
};

static struct overlay *overlay_of(struct blk_image *img)
{
	return container_of(img, struct overlay, img);
}

static bool present(const struct overlay *o, u64 c)
{
	return o->bitmap[c / 8] >> (c % 8) & 1;
}

static void set_present(struct overlay *o, u64 c)
{
	if (present(o, c))
		return;
	o->bitmap[c / 8] |= (u8)(1 << (c % 8));
	o->changed[c / PAGE_CLUSTERS] = 1;
}

static void overlay_locate(struct blk_image *img, u64 offset, u64 *bytes, bool write,
			   struct blk_place *ret)
{
	struct overlay *o = overlay_of(img);
	u64 c = offset / CLUSTER, end = c + 1, last = (offset + *bytes - 1) / CLUSTER;
	bool here = write || present(o, c);

	if (!write) {
		while (end <= last && present(o, end) == here)
			end++;
		*bytes = MIN(*bytes, end * CLUSTER - offset);
	}
	*ret = (struct blk_place){ .file = here ? &img->file : &o->base,
				   .offset = here ? o->data_offset + offset : offset,
				   .base = !here };
}

/* --- writes -------------------------------------------------------------------------------------
 */

static bool under_way(const struct overlay *o, u64 cluster)
{
	for (u32 i = 0; i < o->nr_writes; i++) {
		if (o->writes[i].first <= cluster && cluster <= o->writes[i].last)
			return true;
	}
	return false;
}

/* The base may end within the last cluster; so does the disk. */
static u64 cluster_bytes(const struct overlay *o, u64 c)
{
	return MIN((u64)CLUSTER, o->img.bytes - c * CLUSTER);
}

/* The cluster at the edge of a range that covers only part of it. */
static int fill_cluster(struct overlay *o, u64 c)
{
	u8 buf[CLUSTER];
	int r;

	if (present(o, c))
		return 0;
	if (under_way(o, c))
		return -EAGAIN;
	r = blk_file_read(&o->base, c * CLUSTER, buf, cluster_bytes(o, c));
	if (r == 0)
		r = blk_file_write(&o->img.file, o->data_offset + c * CLUSTER, buf,
				   cluster_bytes(o, c));
	if (r == 0)
		set_present(o, c);
	return r;
}

static bool covers_start(u64 offset)
{
	return offset % CLUSTER == 0;
}

static bool covers_end(const struct overlay *o, u64 end)
{
	return end % CLUSTER == 0 || end == o->img.bytes;
}

static int fill_edges(struct overlay *o, u64 offset, u64 bytes)
{
	u64 end = offset + bytes;
	int r = 0;

	if (!covers_start(offset))
		r = fill_cluster(o, offset / CLUSTER);
	if (r == 0 && !covers_end(o, end))
		r = fill_cluster(o, (end - 1) / CLUSTER);
	return r;
}

static int overlay_begin_write(struct blk_image *img, u64 offset, u64 bytes)
{
	struct overlay *o = overlay_of(img);
	int r;

	if (o->nr_writes == WRITES_MAX)
		return -EAGAIN;
	r = fill_edges(o, offset, bytes);
	if (r < 0)
		return r;
	o->writes[o->nr_writes++] =
		(struct range){ offset / CLUSTER, (offset + bytes - 1) / CLUSTER };
	return 0;
}

static void overlay_end_write(struct blk_image *img, u64 offset, u64 bytes, bool ok)
{
	struct overlay *o = overlay_of(img);
	struct range w = { offset / CLUSTER, (offset + bytes - 1) / CLUSTER };

	for (u32 i = 0; i < o->nr_writes; i++) {
		if (o->writes[i].first == w.first && o->writes[i].last == w.last) {
			o->writes[i] = o->writes[--o->nr_writes];
			break;
		}
	}
	/* A write that failed: the base's content stays visible where it was. */
	for (u64 c = w.first; ok && c <= w.last; c++)
		set_present(o, c);
}

static int write_zeros(struct overlay *o, u64 offset, u64 bytes)
{
	static const u8 zeros[CLUSTER];

	return bytes ? blk_file_write(&o->img.file, o->data_offset + offset, zeros, bytes) : 0;
}

static int overlay_begin_zero(struct blk_image *img, u64 *offset, u64 *bytes, bool need)
{
	struct overlay *o = overlay_of(img);
	u64 end = *offset + *bytes;
	u64 start_in = ROUND_UP(*offset, CLUSTER);
	u64 end_in = covers_end(o, end) ? end : ROUND_DOWN(end, CLUSTER);
	int r;

	if (!need) {
		*offset = MIN(start_in, end);
		*bytes = end_in > start_in ? end_in - start_in : 0;
		return *bytes ? overlay_begin_write(img, *offset, *bytes) : 0;
	}
	/* Zeros go through the page cache. A direct write to the same page would not see them. */
	if ((!covers_start(*offset) && under_way(o, *offset / CLUSTER)) ||
	    (!covers_end(o, end) && under_way(o, (end - 1) / CLUSTER)))
		return -EAGAIN;
	r = fill_edges(o, *offset, *bytes);
	if (r < 0)
		return r;
	if (start_in >= end_in) {
		/* Within one cluster, or the end of one and the start of the next. */
		u64 first = MIN(end, start_in) - *offset;

		r = write_zeros(o, *offset, first);
		if (r == 0)
			r = write_zeros(o, *offset + first, *bytes - first);
		*offset = end;
		*bytes = 0;
		return r;
	}
	r = write_zeros(o, *offset, start_in - *offset);
	if (r == 0)
		r = write_zeros(o, end_in, end - end_in);
	*offset = start_in;
	*bytes = end_in - start_in;
	return r < 0 ? r : overlay_begin_write(img, *offset, *bytes);
}

/* --- flush --------------------------------------------------------------------------------------
 */

static void forget_copies(struct overlay *o, bool written)
{
	for (u64 p = 0; o->flushing && !written && p < o->bitmap_pages; p++)
		o->changed[p] |= o->flushing[p];
	free(o->flushing);
	free(o->copies);
	o->flushing = o->copies = NULL;
	o->second_sync = false;
}

static int overlay_begin_flush(struct blk_image *img)
{
	struct overlay *o = overlay_of(img);
	u64 nr = 0;

	if (o->flushing)
		return -EAGAIN;
	for (u64 p = 0; p < o->bitmap_pages; p++)
		nr += o->changed[p];
	o->flushing = calloc(1, o->bitmap_pages);
	o->copies = malloc(MAX(nr, 1ULL) * PAGE_BYTES);
	if (!o->flushing || !o->copies) {
		forget_copies(o, true);
		return -ENOMEM;
	}
	nr = 0;
	for (u64 p = 0; p < o->bitmap_pages; p++) {
		if (!o->changed[p])
			continue;
		o->flushing[p] = 1;
		o->changed[p] = 0;
		memcpy(o->copies + nr++ * PAGE_BYTES, o->bitmap + p * PAGE_BYTES, PAGE_BYTES);
	}
	return 0;
}

/* After the first sync: the bits of what is safe now. Returns pages written. */
static int write_copies(struct overlay *o)
{
	int nr = 0;

	for (u64 p = 0; p < o->bitmap_pages; p++) {
		int r;

		if (!o->flushing[p])
			continue;
		r = blk_file_write(&o->img.file, BITMAP_OFFSET + p * PAGE_BYTES,
				   o->copies + (u64)nr * PAGE_BYTES, PAGE_BYTES);
		if (r < 0)
			return r;
		nr++;
	}
	return nr;
}

static int overlay_end_flush(struct blk_image *img, int result)
{
	struct overlay *o = overlay_of(img);

	if (result == 0 && !o->second_sync) {
		result = write_copies(o);
		if (result > 0) {
			o->second_sync = true;
			return 1;
		}
	}
	forget_copies(o, result == 0);
	return result;
}

/* --- opening ------------------------------------------------------------------------------------
 */

static void overlay_close(struct blk_image *img)
{
	struct overlay *o = overlay_of(img);

	forget_copies(o, true);
	free(o->bitmap);
	free(o->changed);
	blk_file_close(&o->base);
	blk_file_close(&o->img.file);
	free(o);
}

static const struct blk_image_ops overlay_ops = {
	.name = "overlay",
	.locate = overlay_locate,
	.close = overlay_close,
	.begin_write = overlay_begin_write,
	.end_write = overlay_end_write,
	.begin_zero = overlay_begin_zero,
	.end_zero = overlay_end_write,
	.begin_flush = overlay_begin_flush,
	.end_flush = overlay_end_flush,
};

static u64 header_hash(const struct overlay_header *h)
{
	return XXH3_64bits(h, offsetof(struct overlay_header, hash));
}

/* What the header of an overlay over this base must be. */
static int expected_header(struct overlay *o, struct overlay_header *h)
{
	struct stat st;

	if (fstat(o->base.fd, &st) < 0)
		return -errno;
	memset(h, 0, sizeof(*h));
	memcpy(h->magic, MAGIC, sizeof(h->magic));
	h->version = VERSION;
	h->cluster_bytes = CLUSTER;
	h->disk_bytes = h->base_bytes = o->base.bytes;
	h->bitmap_offset = BITMAP_OFFSET;
	h->bitmap_bytes = o->bitmap_pages * PAGE_BYTES;
	h->data_offset = o->data_offset;
	h->base_mtime_s = (u64)st.st_mtim.tv_sec;
	h->base_mtime_ns = (u64)st.st_mtim.tv_nsec;
	h->hash = header_hash(h);
	return 0;
}

/* The header comes last: a file that has one is whole. */
static int make_new(struct overlay *o, const struct overlay_header *h)
{
	int r = 0;

	if (ftruncate(o->img.file.fd, (off_t)(o->data_offset + o->base.bytes)) < 0)
		return -errno;
	if (fsync(o->img.file.fd) < 0)
		return -errno;
	r = blk_file_write(&o->img.file, 0, h, sizeof(*h));
	if (r == 0 && fsync(o->img.file.fd) < 0)
		r = -errno;
	return r;
}

static const char *check_header(const struct overlay *o, const struct overlay_header *h,
				const struct overlay_header *want)
{
	if (memcmp(h->magic, MAGIC, sizeof(h->magic)) != 0)
		return "is not an overlay: remove it, or name another file";
	if (h->version != VERSION)
		return "is an overlay of another version";
	if (h->hash != header_hash(h))
		return "is damaged (the hash of its header is wrong)";
	if (h->base_bytes != want->base_bytes || h->base_mtime_s != want->base_mtime_s ||
	    h->base_mtime_ns != want->base_mtime_ns)
		return "belongs to another base, or the base was changed: give the base it was "
		       "made for, or remove it";
	if (memcmp(h, want, sizeof(*h)) != 0 || o->img.file.bytes != o->data_offset + o->base.bytes)
		return "is damaged (its sizes do not fit)";
	return NULL;
}

/* Holes are zeros: only data are read. */
static int read_bitmap(struct overlay *o)
{
	u64 end = BITMAP_OFFSET + o->bitmap_pages * PAGE_BYTES, at = BITMAP_OFFSET;
	off_t data;

	while (at < end && (data = lseek(o->img.file.fd, (off_t)at, SEEK_DATA)) >= 0 &&
	       (u64)data < end) {
		int r;

		at = ROUND_DOWN((u64)data, PAGE_BYTES);
		r = blk_file_read(&o->img.file, at, o->bitmap + (at - BITMAP_OFFSET), PAGE_BYTES);
		if (r < 0)
			return r;
		at += PAGE_BYTES;
	}
	/* Bits of clusters that the disk does not have would never be used. */
	return 0;
}

static int load(struct overlay *o, const char *path, char *error)
{
	struct overlay_header want, have;
	const char *why;
	int r = expected_header(o, &want);

	if (r == 0 && o->img.file.bytes == 0) {
		r = make_new(o, &want);
	} else if (r == 0) {
		r = blk_file_read(&o->img.file, 0, &have, sizeof(have));
		why = r == 0 ? check_header(o, &have, &want)
			     : "is not an overlay: remove it, or name another file";
		if (why) {
			snprintf(error, BLK_IMAGE_ERROR_MAX, "disk overlay %s: it %s", path, why);
			return -EINVAL;
		}
		r = read_bitmap(o);
	}
	if (r < 0)
		snprintf(error, BLK_IMAGE_ERROR_MAX, "disk overlay %s: %s", path, strerror(-r));
	return r;
}

int blk_overlay_open(const struct blk_image_config *cfg, struct blk_image **ret,
		     char error[BLK_IMAGE_ERROR_MAX])
{
	struct overlay *o = calloc(1, sizeof(*o));
	int r = -ENOMEM;

	if (!o) {
		snprintf(error, BLK_IMAGE_ERROR_MAX, "out of memory");
		return r;
	}
	o->img.ops = &overlay_ops;
	o->img.readonly = cfg->readonly;
	o->base = o->img.file = BLK_FILE_NONE;
	r = blk_file_open(&o->base, cfg->path, O_RDONLY, cfg->direct, error);
	if (r < 0)
		goto fail;
	/* blk_image_open() says what is wrong with such a base, before a file is made for it. */
	o->img.bytes = o->base.bytes;
	o->img.block_bytes = o->base.offset_align;
	if (!o->base.bytes || o->base.bytes % BLK_SECTOR || o->base.bytes > INT64_MAX / 2) {
		*ret = &o->img;
		return 0;
	}
	o->nr_clusters = DIV_ROUND_UP(o->base.bytes, CLUSTER);
	o->bitmap_pages = DIV_ROUND_UP(o->nr_clusters, PAGE_CLUSTERS);
	o->data_offset = ROUND_UP(BITMAP_OFFSET + o->bitmap_pages * PAGE_BYTES, DATA_ALIGN);
	o->bitmap = calloc(o->bitmap_pages, PAGE_BYTES);
	o->changed = calloc(o->bitmap_pages, 1);
	if (!o->bitmap || !o->changed) {
		r = -ENOMEM;
		snprintf(error, BLK_IMAGE_ERROR_MAX, "disk overlay %s: out of memory",
			 cfg->overlay);
		goto fail;
	}
	r = blk_file_open(&o->img.file, cfg->overlay, O_RDWR | O_CREAT, cfg->direct, error);
	if (r == 0)
		r = load(o, cfg->overlay, error);
	if (r < 0)
		goto fail;
	*ret = &o->img;
	return 0;
fail:
	overlay_close(&o->img);
	return r;
}
