/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "vmm/balloon_take.h"
#include "vmm/virtio_balloon.h"
#include "vmm/vm.h"

#define BALLOON_TAG "balloon"

/* Buffers a turn of the main loop: one may be 256 discards. */
#define BUDGET 32
/* Ids of hinting rounds; those below have meanings of their own (5.5.6.7), and the driver takes any
 * other. QEMU's range. */
#define HINT_ID_FIRST 0x80000000u

/* What a queue is for. Which index that is, depends: see assign_queues(). */
enum role {
	ROLE_INFLATE,
	ROLE_DEFLATE,
	ROLE_STATS,
	ROLE_HINT,
	ROLE_REPORT,
	ROLES
};

static const struct {
	int feature; /* without which there is no such queue; -1: always */
} roles[ROLES] = {
	[ROLE_INFLATE] = { -1 },
	[ROLE_DEFLATE] = { -1 },
	[ROLE_STATS] = { VIRTIO_BALLOON_F_STATS_VQ },
	[ROLE_HINT] = { VIRTIO_BALLOON_F_FREE_PAGE_HINT },
	[ROLE_REPORT] = { VIRTIO_BALLOON_F_REPORTING },
};

/* Everything is guarded by the device's lock. */
struct balloon {
	struct virtio_device d;
	struct virtio_balloon_config config;
	enum role role[ROLES]; /* of each queue */
	u32 queue[ROLES];      /* of each role; ROLES: none */

	struct balloon_callbacks cb;
	bool changed, hint_ended; /* not told yet: tell() */
	int event_fd;
	sd_event_source *event_source;

	u32 stats_period_s;
	sd_event_source *stats_timer;
	bool stats_held; /* the driver's buffer, which asks for statistics when it is returned */
	u16 stats_head;
	struct balloon_guest_stats stats;

	u32 hint_id;	/* 0: none under way */
	bool hint_told; /* the driver has answered with our id */
	struct balloon_counters counters;
};

/* What a snapshot holds. */
struct balloon_state {
	u32 num_pages, actual, poison_val, stats_period_s;
	u32 hint_id, hint_cmd_id;
	u16 stats_head;
	u8 stats_held, hint_told, pad[4];
	struct balloon_guest_stats stats;
};

static struct balloon *balloon_of(struct virtio_device *d)
{
	return container_of(d, struct balloon, d);
}

/* The callbacks run later, on the main thread and without the lock: they may call what they like.
 */
static void tell(struct balloon *b, bool *what)
{
	*what = true;
	eventfd_write(b->event_fd, 1);
}

/* --- giving memory back -------------------------------------------------------------------------
 */

/* Whether the content of free pages is nothing to the guest. */
static bool free_means_free(const struct balloon *b)
{
	return !virtio_has(&b->d, VIRTIO_BALLOON_F_PAGE_POISON) || !b->config.poison_val;
}

/* The writable buffers of a report or a hint are the free memory itself. */
static u64 discard_buffers(struct balloon *b, const struct virtqueue_request *r)
{
	u64 bytes = 0;

	for (u32 i = r->nr_out; free_means_free(b) && i < r->nr_out + r->nr_in; i++) {
		if (balloon_discard(&b->d.vm->mem, &b->counters,
				    memory_gpa(&b->d.vm->mem, r->iov[i].iov_base),
				    r->iov[i].iov_len))
			bytes += r->iov[i].iov_len;
	}
	return bytes;
}

/* --- free page hinting (5.5.6.7) ----------------------------------------------------------------
 */

static void hint_end(struct balloon *b)
{
	b->hint_id = 0;
	b->hint_told = false;
	/* DONE lets the driver have its pages back. */
	b->config.free_page_hint_cmd_id = VIRTIO_BALLOON_CMD_ID_DONE;
	virtio_config_changed(&b->d);
	tell(b, &b->hint_ended);
}

static void take_hint(struct balloon *b, const struct virtqueue_request *r)
{
	u32 id;

	if (r->nr_out && virtqueue_read(r, 0, &id, sizeof(id)) == sizeof(id)) {
		if (b->hint_id && id == b->hint_id) {
			b->hint_told = true;
		} else if (b->hint_told && id == VIRTIO_BALLOON_CMD_ID_STOP) {
			hint_end(b);
			return;
		}
	}
	/* Of another round: the guest may be using that memory again. */
	if (b->hint_told)
		b->counters.hinted_bytes += discard_buffers(b, r);
}

/* --- statistics (5.5.6.3) -----------------------------------------------------------------------
 */

static void take_stats(struct balloon *b, const struct virtqueue_request *r)
{
	struct virtio_balloon_stat s;
	struct timespec now;

	for (size_t at = 0; virtqueue_read(r, at, &s, sizeof(s)) == sizeof(s); at += sizeof(s)) {
		u32 i = s.tag < BALLOON_S_OURS ? s.tag
					       : s.tag - BALLOON_S_OURS + BALLOON_STATS_STANDARD;

		if (i < (s.tag < BALLOON_S_OURS ? BALLOON_STATS_STANDARD : BALLOON_STATS_MAX))
			b->stats.value[i] = s.val;
		if (at > 4096)
			break;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	b->stats.last_update_s = (u64)now.tv_sec;
}

/* The buffer stays with us; when the driver has it back it fills it anew. One that gives another
 * without having had the first back is told to take both. */
static void hold_stats(struct balloon *b, struct virtqueue *q, const struct virtqueue_request *r)
{
	if (b->stats_held)
		virtqueue_push(q, b->stats_head, 0);
	b->stats_held = true;
	b->stats_head = r->head;
	take_stats(b, r);
}

static void ask_stats(struct balloon *b)
{
	struct virtqueue *q;

	if (!b->stats_held || b->queue[ROLE_STATS] == ROLES || !b->d.live || b->d.quiesced)
		return;
	q = &b->d.queues[b->queue[ROLE_STATS]];
	b->stats_held = false;
	virtqueue_push(q, b->stats_head, 0);
	virtio_interrupt(&b->d, q);
}

static int on_stats_timer(sd_event_source *s, uint64_t usec, void *arg)
{
	struct balloon *b = arg;

	pthread_mutex_lock(&b->d.lock);
	ask_stats(b);
	pthread_mutex_unlock(&b->d.lock);
	sd_event_source_set_time_relative(s, (u64)b->stats_period_s * 1000000);
	sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
	return 0;
}

/* --- queues -------------------------------------------------------------------------------------
 */

static void answer(struct balloon *b, struct virtqueue *q, enum role role,
		   const struct virtqueue_request *r)
{
	switch (role) {
	case ROLE_INFLATE:
	case ROLE_DEFLATE:
		(virtio_has(&b->d, BALLOON_F_RANGES) ? balloon_take_ranges : balloon_take_frames)(
			&b->d.vm->mem, &b->counters, r, role == ROLE_INFLATE);
		break;
	case ROLE_STATS:
		hold_stats(b, q, r);
		return;
	case ROLE_HINT:
		take_hint(b, r);
		break;
	case ROLE_REPORT:
		b->counters.reported_bytes += discard_buffers(b, r);
		break;
	case ROLES:
		break;
	}
	virtqueue_push(q, r->head, 0);
}

static void balloon_kick(struct virtio_device *d, u32 i)
{
	struct balloon *b = balloon_of(d);
	struct virtqueue *q = &d->queues[i];
	struct virtqueue_request r;
	u32 budget = BUDGET;
	int e;

	do {
		virtqueue_kicks_off(q);
		while (budget && (e = virtqueue_pop(q, &r)) != 0) {
			if (e < 0) {
				virtio_broken(d, q->why_broken);
				return;
			}
			answer(b, q, b->role[i], &r);
			budget--;
		}
		if (!budget) {
			virtio_kick(d, i);
			break;
		}
	} while (virtqueue_kicks_on(q));
	virtio_interrupt(d, q);
}

/*
 * The specification gives each queue an index of its own (5.5.2). Linux, and QEMU with it, number
 * only those that exist. Both agree while every feature is taken; if not, a driver that follows the
 * specification has made ready the one with the role's own index.
 */
static void assign_queues(struct balloon *b)
{
	u32 next = 0, last = ROLES;
	bool by_number;

	for (u32 role = 0; role < ROLES; role++) {
		b->role[role] = ROLES;
		if (roles[role].feature < 0 || virtio_has(&b->d, (u32)roles[role].feature))
			last = role;
	}
	by_number = b->d.queues[last].ready;
	for (u32 role = 0; role < ROLES; role++) {
		b->queue[role] = ROLES;
		if (roles[role].feature >= 0 && !virtio_has(&b->d, (u32)roles[role].feature))
			continue;
		b->queue[role] = by_number ? role : next++;
		b->role[b->queue[role]] = role;
	}
}

static int balloon_start(struct virtio_device *d)
{
	assign_queues(balloon_of(d));
	return 0;
}

static void balloon_reset(struct virtio_device *d)
{
	struct balloon *b = balloon_of(d);

	/* The next driver starts with an empty balloon; the target stays. */
	b->stats_held = false;
	b->config.actual = 0;
	b->config.poison_val = 0;
	b->config.free_page_hint_cmd_id = VIRTIO_BALLOON_CMD_ID_STOP;
	b->hint_id = 0;
	b->hint_told = false;
	tell(b, &b->changed);
}

static void balloon_config_read(struct virtio_device *d, u32 offset, void *data, u32 bytes)
{
	memcpy(data, (u8 *)&balloon_of(d)->config + offset, bytes);
}

/* The driver may write "actual" and the poison value. */
static void balloon_config_write(struct virtio_device *d, u32 offset, const void *data, u32 bytes)
{
	struct balloon *b = balloon_of(d);

	if (bytes != sizeof(u32))
		return;
	if (offset == offsetof(struct virtio_balloon_config, actual)) {
		memcpy(&b->config.actual, data, sizeof(u32));
		/* It cannot have more than there is. */
		b->config.actual = MIN(b->config.actual,
				       (u32)(d->vm->mem.ram_bytes >> VIRTIO_BALLOON_PFN_SHIFT));
		tell(b, &b->changed);
	} else if (offset == offsetof(struct virtio_balloon_config, poison_val) &&
		   virtio_has(d, VIRTIO_BALLOON_F_PAGE_POISON)) {
		memcpy(&b->config.poison_val, data, sizeof(u32));
	}
}

static int balloon_save(struct virtio_device *d, struct state_writer *w)
{
	const struct balloon *b = balloon_of(d);
	struct balloon_state s = {
		.num_pages = b->config.num_pages,
		.actual = b->config.actual,
		.poison_val = b->config.poison_val,
		.stats_period_s = b->stats_period_s,
		.hint_id = b->hint_id,
		.hint_cmd_id = b->config.free_page_hint_cmd_id,
		.stats_head = b->stats_head,
		.stats_held = b->stats_held,
		.hint_told = b->hint_told,
		.stats = b->stats,
	};

	return state_put(w, BALLOON_TAG, d->index, &s, sizeof(s));
}

static int balloon_load(struct virtio_device *d, struct state_reader *r)
{
	struct balloon *b = balloon_of(d);
	u32 ram_pages = (u32)(d->vm->mem.ram_bytes >> VIRTIO_BALLOON_PFN_SHIFT);
	struct balloon_state s;
	int e = state_get_exact(r, BALLOON_TAG, d->index, &s, sizeof(s));

	if (e < 0)
		return e;
	if (s.num_pages > ram_pages || s.actual > ram_pages)
		return -EBADMSG;
	b->config.num_pages = s.num_pages;
	b->config.actual = s.actual;
	b->config.poison_val = s.poison_val;
	b->config.free_page_hint_cmd_id = s.hint_cmd_id;
	b->hint_id = s.hint_id;
	b->hint_told = s.hint_told != 0;
	b->stats_head = s.stats_head;
	b->stats_held = s.stats_held != 0;
	b->stats = s.stats;
	/* Sources are the main thread's, and so are we. */
	b->stats_period_s = 0;
	return balloon_set_stats_period(d, s.stats_period_s);
}

static void balloon_free(struct virtio_device *d)
{
	struct balloon *b = balloon_of(d);

	sd_event_source_disable_unref(b->stats_timer);
	sd_event_source_disable_unref(b->event_source);
	if (b->event_fd >= 0)
		close(b->event_fd);
	virtio_device_fini(d);
	free(b);
}

static const struct virtio_ops balloon_ops = {
	.name = "balloon",
	.id = VIRTIO_ID_BALLOON,
	.nr_queues = ROLES,
	.queue_size = 128,
	.kick = balloon_kick,
	.start = balloon_start,
	.reset = balloon_reset,
	.config_read = balloon_config_read,
	.config_write = balloon_config_write,
	.save = balloon_save,
	.load = balloon_load,
	.free = balloon_free,
};

/* --- for the main thread ------------------------------------------------------------------------
 */

static int on_event(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct balloon *b = arg;
	bool changed, hint_ended;
	eventfd_t n;

	if (eventfd_read(fd, &n) < 0)
		return 0;
	pthread_mutex_lock(&b->d.lock);
	changed = b->changed;
	hint_ended = b->hint_ended;
	b->changed = b->hint_ended = false;
	pthread_mutex_unlock(&b->d.lock);
	if (changed && b->cb.changed)
		b->cb.changed(b->cb.arg, balloon_actual(&b->d));
	if (hint_ended && b->cb.hint_done)
		b->cb.hint_done(b->cb.arg);
	return 0;
}

int virtio_balloon_new(struct vm *vm, struct virtio_device **ret)
{
	struct balloon *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	virtio_device_init(&b->d, vm, &balloon_ops,
			   1ULL << VIRTIO_BALLOON_F_STATS_VQ |
				   1ULL << VIRTIO_BALLOON_F_DEFLATE_ON_OOM |
				   1ULL << VIRTIO_BALLOON_F_FREE_PAGE_HINT |
				   1ULL << VIRTIO_BALLOON_F_PAGE_POISON |
				   1ULL << VIRTIO_BALLOON_F_REPORTING | 1ULL << BALLOON_F_RANGES,
			   sizeof(b->config));
	memset(b->stats.value, 0xff, sizeof(b->stats.value));
	for (u32 role = 0; role < ROLES; role++)
		b->queue[role] = ROLES;
	b->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = b->event_fd < 0 ? -errno
			    : sd_event_add_io(vm->loop, &b->event_source, b->event_fd, EPOLLIN,
					      on_event, b);
	if (r < 0) {
		virtio_free(&b->d);
		return r;
	}
	*ret = &b->d;
	return 0;
}

void balloon_set_callbacks(struct virtio_device *d, const struct balloon_callbacks *cb)
{
	pthread_mutex_lock(&d->lock);
	balloon_of(d)->cb = *cb;
	pthread_mutex_unlock(&d->lock);
}

void balloon_set_target(struct virtio_device *d, u64 bytes)
{
	struct balloon *b = balloon_of(d);
	u64 ram = d->vm->mem.ram_bytes;

	pthread_mutex_lock(&d->lock);
	b->config.num_pages = (u32)((ram - MIN(bytes, ram)) >> VIRTIO_BALLOON_PFN_SHIFT);
	virtio_config_changed(d);
	pthread_mutex_unlock(&d->lock);
}

static u64 ram_without(const struct balloon *b, u32 pages)
{
	return b->d.vm->mem.ram_bytes - ((u64)pages << VIRTIO_BALLOON_PFN_SHIFT);
}

u64 balloon_target(struct virtio_device *d)
{
	struct balloon *b = balloon_of(d);
	u64 bytes;

	pthread_mutex_lock(&d->lock);
	bytes = ram_without(b, b->config.num_pages);
	pthread_mutex_unlock(&d->lock);
	return bytes;
}

u64 balloon_actual(struct virtio_device *d)
{
	struct balloon *b = balloon_of(d);
	u64 bytes;

	pthread_mutex_lock(&d->lock);
	bytes = ram_without(b, b->config.actual);
	pthread_mutex_unlock(&d->lock);
	return bytes;
}

int balloon_set_stats_period(struct virtio_device *d, u32 seconds)
{
	struct balloon *b = balloon_of(d);
	int r = 0;

	if (seconds && !b->stats_timer)
		r = sd_event_add_time_relative(d->vm->loop, &b->stats_timer, CLOCK_MONOTONIC, 0, 0,
					       on_stats_timer, b);
	else if (seconds)
		r = sd_event_source_set_time_relative(b->stats_timer, 0);
	if (r >= 0 && b->stats_timer)
		r = sd_event_source_set_enabled(b->stats_timer,
						seconds ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
	if (r < 0)
		return r;
	b->stats_period_s = seconds;
	return 0;
}

u32 balloon_stats_period(struct virtio_device *d)
{
	return balloon_of(d)->stats_period_s;
}

void balloon_guest_stats(struct virtio_device *d, struct balloon_guest_stats *ret)
{
	pthread_mutex_lock(&d->lock);
	*ret = balloon_of(d)->stats;
	pthread_mutex_unlock(&d->lock);
}

void balloon_counters(struct virtio_device *d, struct balloon_counters *ret)
{
	pthread_mutex_lock(&d->lock);
	*ret = balloon_of(d)->counters;
	pthread_mutex_unlock(&d->lock);
}

int balloon_hint_start(struct virtio_device *d)
{
	static u32 next_id = HINT_ID_FIRST;
	struct balloon *b = balloon_of(d);
	int r = 0;

	pthread_mutex_lock(&d->lock);
	if (!d->live || !virtio_has(d, VIRTIO_BALLOON_F_FREE_PAGE_HINT)) {
		r = -EOPNOTSUPP;
	} else if (b->hint_id) {
		r = -EBUSY;
	} else {
		b->hint_id = next_id;
		next_id = next_id == UINT32_MAX ? HINT_ID_FIRST : next_id + 1;
		b->config.free_page_hint_cmd_id = b->hint_id;
		virtio_config_changed(d);
	}
	pthread_mutex_unlock(&d->lock);
	return r;
}
