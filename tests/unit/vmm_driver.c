/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <string.h>
#include "common/clock.h"
#include "tests/unit/vmm_driver.h"

#define RINGS_BYTES 0x10000
#define WAIT_US	    10000000

void driver_machine(struct driver *v, u64 hotplug_bytes)
{
	memset(v, 0, sizeof(*v));
	v->vm.vm_fd = v->vm.kvm_fd = -1;
	strcpy(v->vm.name, "unit");
	pthread_mutex_init(&v->vm.lock, NULL);
	cr_assert_eq(memory_init(&v->vm.mem, DRIVER_RAM, hotplug_bytes), 0);
	cr_assert_geq(sd_event_new(&v->vm.loop), 0);
}

void driver_end(struct driver *v)
{
	for (u32 i = 0; i < v->vm.nr_devices; i++)
		virtio_free(v->vm.devices[i]);
	sd_event_unref(v->vm.loop);
	memory_free(&v->vm.mem);
	pthread_mutex_destroy(&v->vm.lock);
}

u32 driver_read(struct driver *v, u64 offset)
{
	u32 value;

	bus_read(&v->vm.mmio, v->base + offset, &value, sizeof(value));
	return value;
}

void driver_write(struct driver *v, u64 offset, u32 value)
{
	bus_write(&v->vm.mmio, v->base + offset, &value, sizeof(value));
}

void driver_attach(struct driver *v, struct virtio_device *d)
{
	cr_assert_eq(virtio_add(&v->vm, d), 0);
	v->d = d;
	v->base = LAYOUT_VIRTIO + (u64)d->index * LAYOUT_VIRTIO_STRIDE;
}

void driver_negotiate(struct driver *v, u64 features)
{
	u64 offered = 0;

	driver_write(v, VIRTIO_MMIO_STATUS, 0);
	cr_assert_eq(driver_read(v, VIRTIO_MMIO_STATUS), 0u);
	driver_write(v, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	for (u32 i = 0; i < 2; i++) {
		driver_write(v, VIRTIO_MMIO_DEVICE_FEATURES_SEL, i);
		offered |= (u64)driver_read(v, VIRTIO_MMIO_DEVICE_FEATURES) << (32 * i);
	}
	features &= offered;
	for (u32 i = 0; i < 2; i++) {
		driver_write(v, VIRTIO_MMIO_DRIVER_FEATURES_SEL, i);
		driver_write(v, VIRTIO_MMIO_DRIVER_FEATURES, (u32)(features >> (32 * i)));
	}
	driver_write(v, VIRTIO_MMIO_STATUS,
		     VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
			     VIRTIO_CONFIG_S_FEATURES_OK);
	cr_assert(driver_read(v, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK);
}

static u64 rings(u32 q)
{
	return DRIVER_RINGS + (u64)q * RINGS_BYTES;
}

void driver_queues(struct driver *v)
{
	for (u32 q = 0; q < v->d->ops->nr_queues; q++) {
		memset(driver_at(v, rings(q)), 0, RINGS_BYTES);
		v->next_desc[q] = v->seen_used[q] = 0;
		driver_write(v, VIRTIO_MMIO_QUEUE_SEL, q);
		driver_write(v, VIRTIO_MMIO_QUEUE_NUM, driver_read(v, VIRTIO_MMIO_QUEUE_NUM_MAX));
		driver_write(v, VIRTIO_MMIO_QUEUE_DESC_LOW, (u32)rings(q));
		driver_write(v, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
		driver_write(v, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (u32)rings(q) + 0x4000);
		driver_write(v, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0);
		driver_write(v, VIRTIO_MMIO_QUEUE_USED_LOW, (u32)rings(q) + 0x8000);
		driver_write(v, VIRTIO_MMIO_QUEUE_USED_HIGH, 0);
		driver_write(v, VIRTIO_MMIO_QUEUE_READY, 1);
		cr_assert_eq(driver_read(v, VIRTIO_MMIO_QUEUE_READY), 1u);
	}
}

void driver_up(struct driver *v, u64 features)
{
	driver_negotiate(v, features);
	driver_queues(v);
	driver_write(v, VIRTIO_MMIO_STATUS,
		     driver_read(v, VIRTIO_MMIO_STATUS) | VIRTIO_CONFIG_S_DRIVER_OK);
}

struct vring_desc *driver_desc(struct driver *v, u32 q)
{
	return driver_at(v, rings(q));
}

struct vring_avail *driver_avail(struct driver *v, u32 q)
{
	return driver_at(v, rings(q) + 0x4000);
}

struct vring_used *driver_used(struct driver *v, u32 q)
{
	return driver_at(v, rings(q) + 0x8000);
}

u16 driver_queue(struct driver *v, u32 q, const struct driver_buf *bufs, u32 nr)
{
	u16 size = v->d->queues[q].size, head = v->next_desc[q] % size;
	struct vring_desc *desc = driver_desc(v, q);
	struct vring_avail *avail = driver_avail(v, q);

	for (u32 i = 0; i < nr; i++) {
		u16 at = v->next_desc[q]++ % size;

		desc[at] = (struct vring_desc){
			.addr = bufs[i].gpa,
			.len = bufs[i].bytes,
			.flags = (u16)((bufs[i].writable ? VRING_DESC_F_WRITE : 0) |
				       (i + 1 < nr ? VRING_DESC_F_NEXT : 0)),
			.next = (u16)((at + 1) % size),
		};
	}
	avail->ring[avail->idx % size] = head;
	__atomic_store_n(&avail->idx, avail->idx + 1, __ATOMIC_RELEASE);
	return head;
}

void driver_kick(struct driver *v, u32 q)
{
	driver_write(v, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

void driver_run(struct driver *v)
{
	while (sd_event_run(v->vm.loop, 0) > 0)
		;
}

struct vring_used_elem driver_wait(struct driver *v, u32 q)
{
	struct vring_used *used = driver_used(v, q);
	u64 end = now_us() + WAIT_US;

	while (__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE) == v->seen_used[q]) {
		cr_assert(now_us() < end, "the device does not answer");
		sd_event_run(v->vm.loop, 1000);
	}
	return used->ring[v->seen_used[q]++ % v->d->queues[q].size];
}

u32 driver_request(struct driver *v, u32 q, const struct driver_buf *bufs, u32 nr)
{
	u16 head = driver_queue(v, q, bufs, nr);
	struct vring_used_elem e;

	driver_kick(v, q);
	e = driver_wait(v, q);
	cr_assert_eq(e.id, head);
	return e.len;
}

void *driver_at(struct driver *v, u64 gpa)
{
	void *p = memory_at(&v->vm.mem, gpa, 1);

	cr_assert(p);
	return p;
}
