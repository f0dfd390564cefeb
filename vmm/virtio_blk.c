/* SPDX-License-Identifier: MIT */
/*
 * The device's thread: takes requests from the queue, submits them, answers what is complete. What
 * a request is made of is in virtio_blk_request.c.
 *
 *	want	written by the ops below, under @control, and the thread is woken by wake_fd
 *	state	written by the thread: what it does. STOPPED: nothing is under way.
 */
#include <errno.h>
#include <liburing.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "vmm/virtio_blk_request.h"
#include "vmm/vm.h"

#define RING_ENTRIES 256

/* user_data of what is no request. */
enum {
	TAG_KICK = 1,
	TAG_WAKE = 2
};

static struct virtio_blk *blk_of(struct virtio_device *d)
{
	return container_of(d, struct virtio_blk, d);
}

/* --- the thread ---------------------------------------------------------------------------------
 */

struct io_uring_sqe *blk_sqe(struct virtio_blk *b)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&b->ring);

	/* Full of what is not submitted yet: each request has one at a time, so this is rare. */
	while (!sqe) {
		io_uring_submit(&b->ring);
		sqe = io_uring_get_sqe(&b->ring);
	}
	return sqe;
}

static void arm(struct virtio_blk *b, int fd, u64 *counter, bool *armed, u64 tag)
{
	struct io_uring_sqe *sqe;

	if (*armed)
		return;
	sqe = blk_sqe(b);
	io_uring_prep_read(sqe, fd, counter, sizeof(*counter), 0);
	sqe->user_data = tag;
	*armed = true;
}

/* Takes what the guest has queued, as far as there is room. A guest that queues faster than we
 * answer must not keep us from hearing what the machine wants. */
static void take_requests(struct virtio_blk *b)
{
	struct virtqueue *q = &b->d.queues[0];
	u32 budget = VIRTIO_BUDGET;

	do {
		virtqueue_kicks_off(q);
		while (b->free && budget) {
			struct blk_request *r = b->free;
			int e = virtqueue_pop(q, &r->vq);

			if (e == 0)
				break;
			if (e < 0) {
				virtio_broken(&b->d, q->why_broken);
				return;
			}
			budget--;
			b->free = r->next;
			b->nr_busy++;
			blk_request_begin(b, r);
		}
		/* Kicks stay off, and the queue is looked at when one has ended. */
		if (!b->free)
			return;
		if (!budget) {
			b->kicked = true;
			return;
		}
	} while (virtqueue_kicks_on(q));
}

/* Those that waited for another to end. */
static void retry_deferred(struct virtio_blk *b)
{
	struct blk_request *r = b->deferred, *next;

	b->deferred = NULL;
	for (; r; r = next) {
		next = r->next;
		blk_request_step(b, r);
	}
}

/* Begins what can be begun. One that ended makes room, and others may have waited for it. */
static void work(struct virtio_blk *b, bool run)
{
	bool look = b->kicked || b->ended;

	b->kicked = false;
	do {
		b->ended = false;
		retry_deferred(b);
		if (run && look)
			take_requests(b);
		look = b->ended;
	} while (b->ended && !b->kicked);
	virtio_interrupt(&b->d, &b->d.queues[0]);
}

static void reap(struct virtio_blk *b)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&b->ring, &cqe) == 0) {
		u64 tag = cqe->user_data;
		int result = cqe->res;

		io_uring_cqe_seen(&b->ring, cqe);
		if (tag == TAG_KICK) {
			b->kick_armed = false;
			b->kicked = true;
			atomic_fetch_add_explicit(&b->d.kicks, 1, memory_order_relaxed);
		} else if (tag == TAG_WAKE) {
			b->wake_armed = false;
		} else {
			blk_request_complete(b, (struct blk_request *)(uintptr_t)tag, result);
		}
	}
}

/* Follows what the ops want. Returns false at the end. */
static bool follow(struct virtio_blk *b, bool *ret_run)
{
	enum blk_thread_state want;

	pthread_mutex_lock(&b->control);
	while (b->want != BLK_RUN && b->nr_busy == 0) {
		if (b->state != b->want) {
			b->state = b->want;
			pthread_cond_broadcast(&b->changed);
		}
		if (b->want == BLK_EXIT)
			break;
		pthread_cond_wait(&b->changed, &b->control);
	}
	if (b->want == BLK_RUN && b->state != BLK_RUN) {
		b->state = BLK_RUN;
		pthread_cond_broadcast(&b->changed);
		b->kicked = true; /* whatever came meanwhile */
	}
	want = b->want;
	pthread_mutex_unlock(&b->control);
	*ret_run = want == BLK_RUN;
	return want != BLK_EXIT || b->nr_busy;
}

static void serve(struct virtio_blk *b)
{
	bool run;

	while (follow(b, &run)) {
		int e;

		arm(b, b->wake_fd, &b->wakes, &b->wake_armed, TAG_WAKE);
		if (run)
			arm(b, b->d.kick_fds[0], &b->kick_count, &b->kick_armed, TAG_KICK);
		work(b, run);
		e = io_uring_submit_and_wait(&b->ring, b->kicked && run ? 0 : 1);
		if (e < 0 && e != -EINTR && e != -EAGAIN && e != -EBUSY) {
			vm_log(b->d.vm, "disk %u: io_uring: %s", b->d.index, strerror(-e));
			virtio_broken(&b->d, "io_uring failed");
		}
		reap(b);
	}
}

/* Linux 6.1 has both; less waking of our own thread by its own completions. */
static int ring_init(struct io_uring *ring)
{
	int r = io_uring_queue_init(RING_ENTRIES, ring,
				    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

	if (r == -EINVAL)
		r = io_uring_queue_init(RING_ENTRIES, ring, 0);
	return r;
}

static void *blk_thread(void *arg)
{
	struct virtio_blk *b = arg;
	int r = ring_init(&b->ring);

	pthread_setname_np(pthread_self(), "ballast-disk");
	pthread_mutex_lock(&b->control);
	b->ring_error = r;
	b->state = r < 0 ? BLK_EXIT : BLK_STOPPED;
	pthread_cond_broadcast(&b->changed);
	pthread_mutex_unlock(&b->control);
	if (r < 0)
		return NULL;
	serve(b);
	io_uring_queue_exit(&b->ring);
	return NULL;
}

/* --- what the machine asks of the thread --------------------------------------------------------
 */

static void wait_for_state(struct virtio_blk *b, enum blk_thread_state want)
{
	pthread_mutex_lock(&b->control);
	b->want = want;
	pthread_cond_broadcast(&b->changed);
	eventfd_write(b->wake_fd, 1);
	while (b->state != want)
		pthread_cond_wait(&b->changed, &b->control);
	pthread_mutex_unlock(&b->control);
}

static int blk_start(struct virtio_device *d)
{
	struct virtio_blk *b = blk_of(d);

	/* 5.2.5: a driver that cannot flush relies on every write being safe. */
	b->writethrough = !virtio_has(d, VIRTIO_BLK_F_FLUSH);
	if (!d->quiesced)
		wait_for_state(b, BLK_RUN);
	return 0;
}

static void blk_stop(struct virtio_device *d)
{
	wait_for_state(blk_of(d), BLK_STOPPED);
}

static void blk_resume(struct virtio_device *d)
{
	wait_for_state(blk_of(d), BLK_RUN);
}

static void blk_config_read(struct virtio_device *d, u32 offset, void *data, u32 bytes)
{
	memcpy(data, (u8 *)&blk_of(d)->config + offset, bytes);
}

static void blk_free(struct virtio_device *d)
{
	struct virtio_blk *b = blk_of(d);

	if (b->has_thread) {
		if (b->ring_error == 0)
			wait_for_state(b, BLK_EXIT);
		pthread_join(b->thread, NULL);
	}
	blk_image_close(b->img);
	if (b->wake_fd >= 0)
		close(b->wake_fd);
	pthread_cond_destroy(&b->changed);
	pthread_mutex_destroy(&b->control);
	free(b->requests);
	virtio_device_fini(d);
	free(b);
}

static const struct virtio_ops blk_ops = {
	.name = "block",
	.id = VIRTIO_ID_BLOCK,
	.nr_queues = 1,
	.queue_size = VIRTQUEUE_SIZE_MAX,
	.own_thread = true,
	.start = blk_start,
	.reset = blk_stop,
	.quiesce = blk_stop,
	.resume = blk_resume,
	.config_read = blk_config_read,
	.free = blk_free,
};

static void make_config(struct virtio_blk *b)
{
	struct virtio_blk_config *c = &b->config;
	u32 per_page = (u32)PAGE_BYTES / b->img->block_bytes;

	c->capacity = b->img->bytes / BLK_SECTOR;
	c->seg_max = VIRTQUEUE_SEGMENTS_MAX - 2;
	c->blk_size = b->img->block_bytes;
	while (1U << c->physical_block_exp < per_page)
		c->physical_block_exp++;
	c->min_io_size = (u16)per_page;
	c->wce = 1;
	c->max_discard_sectors = BLK_ZERO_SECTORS_MAX;
	c->max_discard_seg = BLK_DISCARD_SEGMENTS;
	c->discard_sector_alignment = PAGE_BYTES / BLK_SECTOR;
	c->max_write_zeroes_sectors = BLK_ZERO_SECTORS_MAX;
	c->max_write_zeroes_seg = 1;
	c->write_zeroes_may_unmap = 1;
}

static u64 offered_features(const struct blk_image *img)
{
	u64 f = 1ULL << VIRTIO_BLK_F_SEG_MAX | 1ULL << VIRTIO_BLK_F_BLK_SIZE |
		1ULL << VIRTIO_BLK_F_TOPOLOGY | 1ULL << VIRTIO_BLK_F_FLUSH;

	if (img->readonly)
		return f | 1ULL << VIRTIO_BLK_F_RO;
	return f | 1ULL << VIRTIO_BLK_F_DISCARD | 1ULL << VIRTIO_BLK_F_WRITE_ZEROES;
}

int virtio_blk_new(struct vm *vm, struct blk_image *img, const char *serial,
		   struct virtio_device **ret)
{
	struct virtio_blk *b = calloc(1, sizeof(*b));
	int r = -ENOMEM;

	if (!b) {
		blk_image_close(img);
		return -ENOMEM;
	}
	virtio_device_init(&b->d, vm, &blk_ops, offered_features(img), sizeof(b->config));
	b->img = img;
	make_config(b);
	if (serial)
		snprintf(b->serial, sizeof(b->serial), "%s", serial);
	pthread_mutex_init(&b->control, NULL);
	pthread_cond_init(&b->changed, NULL);
	b->wake_fd = eventfd(0, EFD_CLOEXEC);
	b->state = BLK_EXIT;
	b->requests = calloc(BLK_REQUESTS, sizeof(b->requests[0]));
	if (b->wake_fd < 0 || !b->requests)
		goto fail;
	for (u32 i = 0; i < BLK_REQUESTS; i++) {
		b->requests[i].next = b->free;
		b->free = &b->requests[i];
	}
	r = -pthread_create(&b->thread, NULL, blk_thread, b);
	if (r < 0)
		goto fail;
	b->has_thread = true;
	/* The thread says whether it has a ring, before a sandbox could be in its way. */
	pthread_mutex_lock(&b->control);
	while (b->state == BLK_EXIT && b->ring_error == 0)
		pthread_cond_wait(&b->changed, &b->control);
	r = b->ring_error;
	pthread_mutex_unlock(&b->control);
	if (r < 0)
		goto fail;
	*ret = &b->d;
	return 0;
fail:
	virtio_free(&b->d);
	return r;
}

void virtio_blk_stats(struct virtio_device *d, struct virtio_blk_stats *ret)
{
	const struct blk_counters *c = &blk_of(d)->counters;

	*ret = (struct virtio_blk_stats){
		.read_requests = atomic_load(&c->read_requests),
		.read_bytes = atomic_load(&c->read_bytes),
		.write_requests = atomic_load(&c->write_requests),
		.write_bytes = atomic_load(&c->write_bytes),
		.flushes = atomic_load(&c->flushes),
		.discards = atomic_load(&c->discards),
		.errors = atomic_load(&c->errors),
		.disk_read_pages = atomic_load(&c->disk_read_pages),
	};
}
