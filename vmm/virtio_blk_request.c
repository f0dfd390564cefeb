/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include "vmm/virtio_blk_request.h"
#include "vmm/vm.h"

static void count(_Atomic u64 *counter, u64 n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* --- answers ------------------------------------------------------------------------------------
 */

static void answer(struct virtio_blk *b, struct blk_request *r, u8 status)
{
	if (status == VIRTIO_BLK_S_IOERR)
		count(&b->counters.errors, 1);
	/* The status is the last byte the device writes (5.2.6), in whatever buffer that is. */
	virtqueue_write(&r->vq, r->vq.in_bytes - 1, &status, 1);
	virtqueue_push(&b->d.queues[0], r->vq.head, (u32)r->vq.in_bytes);
	free(r->bounce);
	r->bounce = NULL;
	r->next = b->free;
	b->free = r;
	b->nr_busy--;
	b->ended = true;
}

static void end_image_access(struct virtio_blk *b, struct blk_request *r, bool ok)
{
	const struct blk_image_ops *ops = b->img->ops;

	if (!r->begun)
		return;
	r->begun = false;
	if (r->phase == BLK_DATA && r->write && ops->end_write)
		ops->end_write(b->img, r->offset, r->bytes, ok);
	if (r->phase == BLK_ZERO && ops->end_zero)
		ops->end_zero(b->img, r->offset, r->bytes, ok);
}

static void failed(struct virtio_blk *b, struct blk_request *r)
{
	end_image_access(b, r, false);
	answer(b, r, VIRTIO_BLK_S_IOERR);
}

static void defer(struct virtio_blk *b, struct blk_request *r)
{
	r->next = b->deferred;
	b->deferred = r;
}

static void submit(struct blk_request *r, struct io_uring_sqe *sqe)
{
	sqe->user_data = (u64)(uintptr_t)r;
}

/* --- flush --------------------------------------------------------------------------------------
 */

static void submit_sync(struct virtio_blk *b, struct blk_request *r)
{
	struct io_uring_sqe *sqe = blk_sqe(b);

	io_uring_prep_fsync(sqe, b->img->file.fd, IORING_FSYNC_DATASYNC);
	submit(r, sqe);
}

static void step_flush(struct virtio_blk *b, struct blk_request *r)
{
	int e = 0;

	if (b->img->readonly) {
		answer(b, r, VIRTIO_BLK_S_OK);
		return;
	}
	if (b->img->flush_failed) {
		failed(b, r);
		return;
	}
	if (b->img->ops->begin_flush)
		e = b->img->ops->begin_flush(b->img);
	if (e == -EAGAIN)
		defer(b, r);
	else if (e < 0)
		failed(b, r);
	else
		submit_sync(b, r);
}

static void complete_flush(struct virtio_blk *b, struct blk_request *r, int result)
{
	int e = result;

	/* -EINTR: asked again. Any other failure is for good: the kernel forgets what it could not
	 * write, and the next fdatasync() would say that all is well. */
	if (result == -EINTR || result == -EAGAIN) {
		submit_sync(b, r);
		return;
	}
	if (b->img->ops->end_flush)
		e = b->img->ops->end_flush(b->img, result);
	if (e > 0) {
		submit_sync(b, r);
	} else if (e < 0) {
		b->img->flush_failed = true;
		failed(b, r);
	} else {
		answer(b, r, VIRTIO_BLK_S_OK);
	}
}

/* --- read and write -----------------------------------------------------------------------------
 */

static bool aligned(const struct blk_request *r, const struct blk_file *f)
{
	u64 bits = 0;

	for (u32 i = 0; i < r->nr_iov; i++)
		bits |= (uintptr_t)r->iov[i].iov_base | r->iov[i].iov_len;
	return bits % f->mem_align == 0;
}

/* Direct I/O into buffers that are not aligned for it: by way of one that is. -ENOMEM. */
static int use_bounce(struct blk_request *r)
{
	r->part = MIN(r->part, BLK_BOUNCE_BYTES);
	if (!r->bounce)
		r->bounce = aligned_alloc(PAGE_BYTES, BLK_BOUNCE_BYTES);
	if (!r->bounce)
		return -ENOMEM;
	if (r->write)
		virtqueue_read(&r->vq, sizeof(struct virtio_blk_outhdr) + r->done, r->bounce,
			       r->part);
	r->iov[0] = (struct iovec){ .iov_base = r->bounce, .iov_len = r->part };
	r->nr_iov = 1;
	return 0;
}

static void pin(struct virtio_blk *b, struct blk_request *r, bool on)
{
	for (u32 i = 0; r->direct && !r->bounce && i < r->nr_iov; i++) {
		if (on)
			memory_pin(&b->d.vm->mem, r->iov[i].iov_base, r->iov[i].iov_len);
		else
			memory_unpin(&b->d.vm->mem, r->iov[i].iov_base, r->iov[i].iov_len);
	}
}

/* The next part of a read or write, at one place. */
static void submit_part(struct virtio_blk *b, struct blk_request *r)
{
	struct io_uring_sqe *sqe;
	const struct blk_file *f;

	r->part = r->bytes - r->done;
	b->img->ops->locate(b->img, r->offset + r->done, &r->part, r->write, &r->place);
	f = r->place.file;
	r->direct = f->direct_fd >= 0;
	if (r->write)
		r->nr_iov = virtqueue_slice(r->vq.iov, r->vq.nr_out,
					    sizeof(struct virtio_blk_outhdr) + r->done, r->part,
					    r->iov);
	else
		r->nr_iov = virtqueue_slice(r->vq.iov + r->vq.nr_out, r->vq.nr_in, r->done, r->part,
					    r->iov);
	if (r->direct && (r->bounce || !aligned(r, f)) && use_bounce(r) < 0) {
		failed(b, r);
		return;
	}
	pin(b, r, true);
	sqe = blk_sqe(b);
	if (r->write)
		io_uring_prep_writev(sqe, r->direct ? f->direct_fd : f->fd, r->iov, r->nr_iov,
				     r->place.offset);
	else
		io_uring_prep_readv(sqe, r->direct ? f->direct_fd : f->fd, r->iov, r->nr_iov,
				    r->place.offset);
	submit(r, sqe);
}

static void step_data(struct virtio_blk *b, struct blk_request *r)
{
	if (r->done < r->bytes && r->write && !r->begun && b->img->ops->begin_write) {
		int e = b->img->ops->begin_write(b->img, r->offset, r->bytes);

		if (e == -EAGAIN) {
			defer(b, r);
			return;
		}
		if (e < 0) {
			failed(b, r);
			return;
		}
		r->begun = true;
	}
	if (r->done < r->bytes) {
		submit_part(b, r);
		return;
	}
	end_image_access(b, r, true);
	count(r->write ? &b->counters.write_bytes : &b->counters.read_bytes, r->bytes);
	if (r->write && b->writethrough) {
		r->phase = BLK_FLUSH;
		step_flush(b, r);
		return;
	}
	answer(b, r, VIRTIO_BLK_S_OK);
}

/* Tells the agent what the pages hold now that were just read. */
static void note_read(struct virtio_blk *b, const struct blk_request *r, u64 got)
{
	const struct guest_memory *m = &b->d.vm->mem;
	u64 offset = r->place.offset, pages = 0;

	for (u32 i = 0; i < r->nr_iov && got; i++) {
		u64 n = MIN((u64)r->iov[i].iov_len, got);

		if (r->place.base)
			pages += memory_note_disk_read(m, r->iov[i].iov_base, n, &r->place.file->id,
						       offset / BLK_SECTOR);
		else
			memory_note_written(m, r->iov[i].iov_base, n);
		offset += n;
		got -= n;
	}
	if (pages)
		count(&b->counters.disk_read_pages, pages);
}

static void complete_data(struct virtio_blk *b, struct blk_request *r, int result)
{
	pin(b, r, false);
	if (result == -EINTR || result == -EAGAIN) {
		submit_part(b, r);
		return;
	}
	/* 0: the file ends before the disk does; somebody made it shorter. */
	if (result <= 0) {
		failed(b, r);
		return;
	}
	if (!r->write && r->bounce)
		virtqueue_write(&r->vq, r->done, r->bounce, (size_t)result);
	else if (!r->write)
		note_read(b, r, (u64)result);
	r->done += (u64)result;
	step_data(b, r);
}

/* --- discard and write zeroes -------------------------------------------------------------------
 */

static int write_zeros(const struct blk_file *f, u64 offset, u64 bytes)
{
	static const u8 zeros[65536];
	int r = 0;

	while (r == 0 && bytes) {
		u64 n = MIN(bytes, sizeof(zeros));

		r = blk_file_write(f, offset, zeros, n);
		offset += n;
		bytes -= n;
	}
	return r;
}

static void step_zero(struct virtio_blk *b, struct blk_request *r)
{
	for (; r->range < r->nr_ranges; r->range++) {
		struct io_uring_sqe *sqe;
		u64 offset = r->ranges[r->range].sector * BLK_SECTOR;
		u64 bytes = (u64)r->ranges[r->range].num_sectors * BLK_SECTOR;
		int e = 0;

		if (bytes && b->img->ops->begin_zero)
			e = b->img->ops->begin_zero(b->img, &offset, &bytes, r->need_zero);
		if (e == -EAGAIN) {
			defer(b, r);
			return;
		}
		if (e < 0) {
			failed(b, r);
			return;
		}
		if (!bytes)
			continue;
		r->begun = true;
		r->offset = offset;
		r->bytes = r->part = bytes;
		b->img->ops->locate(b->img, offset, &r->part, true, &r->place);
		sqe = blk_sqe(b);
		io_uring_prep_fallocate(sqe, r->place.file->fd,
					FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					(off_t)r->place.offset, (off_t)r->part);
		submit(r, sqe);
		return;
	}
	if (r->need_zero && b->writethrough) {
		r->phase = BLK_FLUSH;
		step_flush(b, r);
		return;
	}
	answer(b, r, VIRTIO_BLK_S_OK);
}

static void complete_zero(struct virtio_blk *b, struct blk_request *r, int result)
{
	bool punched = result == 0;

	if (result == -EINTR || result == -EAGAIN) {
		end_image_access(b, r, false);
		step_zero(b, r);
		return;
	}
	/* No holes on this file system. A discard was only a wish. */
	if (result == -EOPNOTSUPP || result == -ENOSYS) {
		result = r->need_zero ? write_zeros(r->place.file, r->place.offset, r->part) : 0;
		punched = r->need_zero && result == 0;
	}
	if (result < 0) {
		failed(b, r);
		return;
	}
	end_image_access(b, r, punched);
	count(&b->counters.discards, 1);
	r->range++;
	step_zero(b, r);
}

/* --- from the queue -----------------------------------------------------------------------------
 */

/* Whether the disk has these sectors, in whole blocks. */
static bool on_disk(const struct virtio_blk *b, u64 sector, u64 bytes)
{
	u64 block = b->img->block_bytes, capacity = b->config.capacity;

	return bytes % block == 0 && sector <= capacity &&
	       bytes / BLK_SECTOR <= capacity - sector && sector * BLK_SECTOR % block == 0;
}

static void begin_data(struct virtio_blk *b, struct blk_request *r, u64 sector, u64 bytes)
{
	if (!on_disk(b, sector, bytes) || (r->write && b->img->readonly)) {
		answer(b, r, VIRTIO_BLK_S_IOERR);
		return;
	}
	r->phase = BLK_DATA;
	r->offset = sector * BLK_SECTOR;
	r->bytes = bytes;
	count(r->write ? &b->counters.write_requests : &b->counters.read_requests, 1);
	step_data(b, r);
}

static void begin_zero(struct virtio_blk *b, struct blk_request *r, u64 bytes)
{
	u32 flags_known = r->need_zero ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;

	r->nr_ranges = (u32)(bytes / sizeof(r->ranges[0]));
	if (bytes == 0 || bytes % sizeof(r->ranges[0]) || bytes > sizeof(r->ranges) ||
	    b->img->readonly) {
		answer(b, r, VIRTIO_BLK_S_IOERR);
		return;
	}
	virtqueue_read(&r->vq, sizeof(struct virtio_blk_outhdr), r->ranges, bytes);
	for (u32 i = 0; i < r->nr_ranges; i++) {
		const struct virtio_blk_discard_write_zeroes *s = &r->ranges[i];

		/* 5.2.6.2: a flag that we do not know. */
		if (s->flags & ~flags_known) {
			answer(b, r, VIRTIO_BLK_S_UNSUPP);
			return;
		}
		if (s->num_sectors > BLK_ZERO_SECTORS_MAX ||
		    !on_disk(b, s->sector, (u64)s->num_sectors * BLK_SECTOR)) {
			answer(b, r, VIRTIO_BLK_S_IOERR);
			return;
		}
	}
	r->phase = BLK_ZERO;
	r->range = 0;
	step_zero(b, r);
}

static void begin_get_id(struct virtio_blk *b, struct blk_request *r)
{
	char id[VIRTIO_BLK_ID_BYTES] = { 0 };

	/* No NUL if all 20 are used (5.2.6). */
	memcpy(id, b->serial, MIN(strlen(b->serial), sizeof(id)));
	virtqueue_write(&r->vq, 0, id, MIN(sizeof(id), r->vq.in_bytes - 1));
	answer(b, r, VIRTIO_BLK_S_OK);
}

void blk_request_begin(struct virtio_blk *b, struct blk_request *r)
{
	struct virtio_blk_outhdr hdr;
	u64 out_data;

	r->begun = r->write = r->need_zero = false;
	r->done = 0;
	r->nr_iov = 0;
	/* Without room for a status, or a header, there is no answer that the driver could read. */
	if (!r->vq.in_bytes || virtqueue_read(&r->vq, 0, &hdr, sizeof(hdr)) != sizeof(hdr)) {
		b->d.queues[0].broken = true;
		virtio_broken(&b->d, "a request without header or status");
		r->next = b->free;
		b->free = r;
		b->nr_busy--;
		return;
	}
	out_data = r->vq.out_bytes - sizeof(hdr);
	switch (hdr.type) {
	case VIRTIO_BLK_T_IN:
		begin_data(b, r, hdr.sector, r->vq.in_bytes - 1);
		break;
	case VIRTIO_BLK_T_OUT:
		r->write = true;
		begin_data(b, r, hdr.sector, out_data);
		break;
	case VIRTIO_BLK_T_FLUSH:
		r->phase = BLK_FLUSH;
		count(&b->counters.flushes, 1);
		step_flush(b, r);
		break;
	case VIRTIO_BLK_T_GET_ID:
		begin_get_id(b, r);
		break;
	case VIRTIO_BLK_T_DISCARD:
		begin_zero(b, r, out_data);
		break;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		r->need_zero = true;
		begin_zero(b, r, out_data);
		break;
	default:
		answer(b, r, VIRTIO_BLK_S_UNSUPP);
		break;
	}
}

void blk_request_step(struct virtio_blk *b, struct blk_request *r)
{
	switch (r->phase) {
	case BLK_DATA:
		step_data(b, r);
		break;
	case BLK_ZERO:
		step_zero(b, r);
		break;
	case BLK_FLUSH:
		step_flush(b, r);
		break;
	}
}

void blk_request_complete(struct virtio_blk *b, struct blk_request *r, int result)
{
	switch (r->phase) {
	case BLK_DATA:
		complete_data(b, r, result);
		break;
	case BLK_ZERO:
		complete_zero(b, r, result);
		break;
	case BLK_FLUSH:
		complete_flush(b, r, result);
		break;
	}
}
