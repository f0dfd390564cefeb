/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <linux/virtio_mem.h>
#include <stdlib.h>
#include <string.h>
#include "vmm/virtio_mem.h"
#include "vmm/vm.h"

#define MEM_TAG "mem"
/* Requests a turn of the main loop: each may discard the whole area. */
#define BUDGET 32

/* Everything is guarded by the device's lock. */
struct mem {
	struct virtio_device d;
	struct virtio_mem_config config;
	u32 nr_blocks;
	u64 *plugged; /* bitmap */
	u64 refused;
	void (*changed)(void *arg, u64 plugged_bytes);
	void *arg;
};

/* What a snapshot holds; the bitmap follows. */
struct mem_state {
	u64 requested, area_bytes;
};

static struct mem *mem_of(struct virtio_device *d)
{
	return container_of(d, struct mem, d);
}

static bool is_plugged(const struct mem *m, u32 block)
{
	return m->plugged[block / 64] >> (block % 64) & 1;
}

static u32 count_plugged(const struct mem *m, u32 first, u32 nr)
{
	u32 n = 0;

	for (u32 i = 0; i < nr; i++)
		n += is_plugged(m, first + i);
	return n;
}

static void set_plugged(struct mem *m, u32 first, u32 nr, bool on)
{
	for (u32 i = first; i < first + nr; i++) {
		if (on)
			m->plugged[i / 64] |= 1ULL << (i % 64);
		else
			m->plugged[i / 64] &= ~(1ULL << (i % 64));
	}
	m->config.plugged_size = (u64)count_plugged(m, 0, m->nr_blocks) * VIRTIO_MEM_BLOCK;
}

/* Blocks of the area that a request names (5.15.6): aligned, at least one, all in the area. */
static bool find_blocks(const struct mem *m, u64 addr, u16 nr, u32 *ret_first)
{
	u64 offset = addr - m->config.addr;

	if (addr < m->config.addr || offset % VIRTIO_MEM_BLOCK || nr == 0)
		return false;
	if (offset / VIRTIO_MEM_BLOCK >= m->nr_blocks ||
	    nr > m->nr_blocks - offset / VIRTIO_MEM_BLOCK)
		return false;
	*ret_first = (u32)(offset / VIRTIO_MEM_BLOCK);
	return true;
}

static int discard(struct mem *m, u32 first, u32 nr)
{
	return memory_discard(&m->d.vm->mem, m->config.addr + (u64)first * VIRTIO_MEM_BLOCK,
			      (u64)nr * VIRTIO_MEM_BLOCK);
}

static u16 plug(struct mem *m, u32 first, u16 nr)
{
	if (count_plugged(m, first, nr))
		return VIRTIO_MEM_RESP_ERROR;
	/* 5.15.6.1: not beyond what is requested. */
	if (m->config.plugged_size + (u64)nr * VIRTIO_MEM_BLOCK > m->config.requested_size)
		return VIRTIO_MEM_RESP_NACK;
	/* The driver may have written to them; plugged memory starts as zeros. */
	if (discard(m, first, nr) < 0)
		return VIRTIO_MEM_RESP_BUSY;
	set_plugged(m, first, nr, true);
	return VIRTIO_MEM_RESP_ACK;
}

static u16 unplug(struct mem *m, u32 first, u16 nr)
{
	if (count_plugged(m, first, nr) != nr)
		return VIRTIO_MEM_RESP_ERROR;
	if (discard(m, first, nr) < 0)
		return VIRTIO_MEM_RESP_BUSY;
	set_plugged(m, first, nr, false);
	return VIRTIO_MEM_RESP_ACK;
}

static u16 unplug_all(struct mem *m)
{
	if (discard(m, 0, m->nr_blocks) < 0)
		return VIRTIO_MEM_RESP_BUSY;
	set_plugged(m, 0, m->nr_blocks, false);
	return VIRTIO_MEM_RESP_ACK;
}

static u16 state(const struct mem *m, u32 first, u16 nr, u16 *ret_state)
{
	u32 n = count_plugged(m, first, nr);

	*ret_state = n == nr ? VIRTIO_MEM_STATE_PLUGGED
		     : n     ? VIRTIO_MEM_STATE_MIXED
			     : VIRTIO_MEM_STATE_UNPLUGGED;
	return VIRTIO_MEM_RESP_ACK;
}

static void answer(struct mem *m, const struct virtio_mem_req *req, struct virtio_mem_resp *resp)
{
	/* plug, unplug and state have the same layout. */
	u64 addr = req->u.plug.addr;
	u16 nr = req->u.plug.nb_blocks;
	u32 first = 0;

	memset(resp, 0, sizeof(*resp));
	resp->type = VIRTIO_MEM_RESP_ERROR;
	if (req->type == VIRTIO_MEM_REQ_UNPLUG_ALL)
		resp->type = unplug_all(m);
	else if (!find_blocks(m, addr, nr, &first))
		resp->type = VIRTIO_MEM_RESP_ERROR;
	else if (req->type == VIRTIO_MEM_REQ_PLUG)
		resp->type = plug(m, first, nr);
	else if (req->type == VIRTIO_MEM_REQ_UNPLUG)
		resp->type = unplug(m, first, nr);
	else if (req->type == VIRTIO_MEM_REQ_STATE)
		resp->type = state(m, first, nr, &resp->u.state.state);
	if (resp->type == VIRTIO_MEM_RESP_ERROR)
		m->refused++;
}

static void mem_kick(struct virtio_device *d, u32 i)
{
	struct mem *m = mem_of(d);
	struct virtqueue *q = &d->queues[i];
	struct virtqueue_request r;
	struct virtio_mem_resp resp;
	struct virtio_mem_req req;
	u32 budget = BUDGET;
	u64 before = m->config.plugged_size;
	int e;

	do {
		virtqueue_kicks_off(q);
		while (budget && (e = virtqueue_pop(q, &r)) != 0) {
			if (e < 0) {
				virtio_broken(d, q->why_broken);
				return;
			}
			memset(&req, 0xff, sizeof(req));
			virtqueue_read(&r, 0, &req, sizeof(req));
			answer(m, &req, &resp);
			virtqueue_push(q, r.head, (u32)virtqueue_write(&r, 0, &resp, sizeof(resp)));
			budget--;
		}
		if (!budget) {
			virtio_kick(d, i);
			break;
		}
	} while (virtqueue_kicks_on(q));
	virtio_interrupt(d, q);
	if (m->changed && m->config.plugged_size != before)
		m->changed(m->arg, m->config.plugged_size);
}

static void mem_config_read(struct virtio_device *d, u32 offset, void *data, u32 bytes)
{
	memcpy(data, (u8 *)&mem_of(d)->config + offset, bytes);
}

static int mem_save(struct virtio_device *d, struct state_writer *w)
{
	const struct mem *m = mem_of(d);
	struct mem_state s = { .requested = m->config.requested_size,
			       .area_bytes = m->config.region_size };
	size_t map_bytes = DIV_ROUND_UP(m->nr_blocks, 64) * sizeof(u64);
	u8 *record = malloc(sizeof(s) + map_bytes);
	int r;

	if (!record)
		return -ENOMEM;
	memcpy(record, &s, sizeof(s));
	memcpy(record + sizeof(s), m->plugged, map_bytes);
	r = state_put(w, MEM_TAG, d->index, record, sizeof(s) + map_bytes);
	free(record);
	return r;
}

static int mem_load(struct virtio_device *d, struct state_reader *r)
{
	struct mem *m = mem_of(d);
	size_t map_bytes = DIV_ROUND_UP(m->nr_blocks, 64) * sizeof(u64), bytes;
	const u8 *record = state_get(r, MEM_TAG, d->index, &bytes);
	struct mem_state s;

	if (!record)
		return -ENOENT;
	if (bytes != sizeof(s) + map_bytes)
		return -EBADMSG;
	memcpy(&s, record, sizeof(s));
	if (s.area_bytes != m->config.region_size || s.requested > s.area_bytes ||
	    s.requested % VIRTIO_MEM_BLOCK)
		return -EBADMSG;
	memcpy(m->plugged, record + sizeof(s), map_bytes);
	m->config.requested_size = s.requested;
	/* Also counts. Bits behind the last block are never looked at. */
	set_plugged(m, 0, 0, true);
	return 0;
}

static void mem_free(struct virtio_device *d)
{
	struct mem *m = mem_of(d);

	free(m->plugged);
	virtio_device_fini(d);
	free(m);
}

/* No reset: blocks stay plugged when the driver goes (5.15.5). The machine's reset is another
 * matter, but the next driver begins with UNPLUG_ALL, as after a kexec. */
static const struct virtio_ops mem_ops = {
	.name = "mem",
	.id = VIRTIO_ID_MEM,
	.nr_queues = 1,
	.queue_size = 64,
	.kick = mem_kick,
	.config_read = mem_config_read,
	.save = mem_save,
	.load = mem_load,
	.free = mem_free,
};

int virtio_mem_new(struct vm *vm, struct virtio_device **ret)
{
	const struct memory_slot *area = NULL;
	struct mem *m;

	for (u32 i = 0; i < vm->mem.nr_slots; i++) {
		if (vm->mem.slots[i].hotplug)
			area = &vm->mem.slots[i];
	}
	if (!area)
		return -ENODEV;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	/* UNPLUGGED_INACCESSIBLE: a driver that takes it does not read what is unplugged, which
	 * would cost us page tables. One that does not is served as well. */
	virtio_device_init(&m->d, vm, &mem_ops, 1ULL << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE,
			   sizeof(m->config));
	m->nr_blocks = (u32)(area->bytes / VIRTIO_MEM_BLOCK);
	m->plugged = calloc(DIV_ROUND_UP(m->nr_blocks, 64), sizeof(u64));
	m->config.block_size = VIRTIO_MEM_BLOCK;
	m->config.addr = area->gpa;
	m->config.region_size = m->config.usable_region_size = area->bytes;
	if (!m->plugged) {
		virtio_free(&m->d);
		return -ENOMEM;
	}
	*ret = &m->d;
	return 0;
}

int virtio_mem_request(struct virtio_device *d, u64 bytes)
{
	struct mem *m = mem_of(d);

	if (bytes % VIRTIO_MEM_BLOCK || bytes > m->config.region_size)
		return -EINVAL;
	pthread_mutex_lock(&d->lock);
	m->config.requested_size = bytes;
	virtio_config_changed(d);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

void virtio_mem_info(struct virtio_device *d, struct virtio_mem_info *ret)
{
	const struct mem *m = mem_of(d);

	pthread_mutex_lock(&d->lock);
	*ret = (struct virtio_mem_info){
		.gpa = m->config.addr,
		.max_bytes = m->config.region_size,
		.requested_bytes = m->config.requested_size,
		.plugged_bytes = m->config.plugged_size,
		.refused = m->refused,
	};
	pthread_mutex_unlock(&d->lock);
}

void virtio_mem_on_change(struct virtio_device *d, void (*changed)(void *arg, u64 plugged_bytes),
			  void *arg)
{
	struct mem *m = mem_of(d);

	pthread_mutex_lock(&d->lock);
	m->changed = changed;
	m->arg = arg;
	pthread_mutex_unlock(&d->lock);
}
