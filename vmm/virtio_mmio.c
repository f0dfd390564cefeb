/* SPDX-License-Identifier: MIT */
/*
 * The memory-mapped transport, version 2 (virtio 1.2, section 4.2): one page of registers a device,
 * on the VM's MMIO bus.
 *
 * A write to QUEUE_NOTIFY does not leave the kernel: it is a KVM_IOEVENTFD for each queue. An
 * interrupt is an eventfd, too (KVM_IRQFD), an edge on the device's line of the IOAPIC: the driver
 * reads and acknowledges INTERRUPT_STATUS before it looks at the queues, so a cause that comes
 * after that makes an edge of its own, and none is lost.
 */
#include <errno.h>
#include <linux/virtio_mmio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "vmm/virtio.h"
#include "vmm/vm.h"

#define MAGIC	0x74726976 /* "virt" */
#define VERSION 2
#define VENDOR	0x54534c42 /* "BLST" */

static struct virtqueue *selected(struct virtio_device *d)
{
	return d->queue_select < d->ops->nr_queues ? &d->queues[d->queue_select] : NULL;
}

static u32 read_register(struct virtio_device *d, u64 offset)
{
	const struct virtqueue *q = selected(d);

	switch (offset) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return MAGIC;
	case VIRTIO_MMIO_VERSION:
		return VERSION;
	case VIRTIO_MMIO_DEVICE_ID:
		return d->ops->id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return d->feature_select < 2 ? (u32)(d->offered >> (32 * d->feature_select)) : 0;
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return q ? q->size_max : 0;
	case VIRTIO_MMIO_QUEUE_READY:
		return q ? q->ready : 0;
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return atomic_load(&d->config_generation);
	/* No shared memory regions: a length of -1 says so (4.2.2). */
	case VIRTIO_MMIO_SHM_LEN_LOW:
	case VIRTIO_MMIO_SHM_LEN_HIGH:
	case VIRTIO_MMIO_SHM_BASE_LOW:
	case VIRTIO_MMIO_SHM_BASE_HIGH:
		return UINT32_MAX;
	default:
		return 0;
	}
}

static void mmio_read(void *dev, u64 offset, void *data, u32 bytes)
{
	struct virtio_device *d = dev;
	u32 value = 0;

	memset(data, 0, bytes);
	if (offset >= VIRTIO_MMIO_CONFIG) {
		offset -= VIRTIO_MMIO_CONFIG;
		if (!d->ops->config_read || offset + bytes > d->config_bytes)
			return;
		pthread_mutex_lock(&d->lock);
		d->ops->config_read(d, (u32)offset, data, bytes);
		pthread_mutex_unlock(&d->lock);
		return;
	}
	/* Registers are 32 bits wide and read as such (4.2.2.2). */
	if (bytes != sizeof(value) || offset % sizeof(value))
		return;
	switch (offset) {
	/* Read in every interrupt: without the lock, which a busy device may hold. */
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		value = atomic_load(&d->interrupt_status);
		break;
	case VIRTIO_MMIO_STATUS:
		value = atomic_load(&d->status);
		break;
	default:
		pthread_mutex_lock(&d->lock);
		value = read_register(d, offset);
		pthread_mutex_unlock(&d->lock);
		break;
	}
	memcpy(data, &value, sizeof(value));
}

static void set_half(u64 *at, bool high, u32 value)
{
	if (high)
		*at = (*at & UINT32_MAX) | (u64)value << 32;
	else
		*at = (*at & ~(u64)UINT32_MAX) | value;
}

/* The queue's registers: only between FEATURES_OK and DRIVER_OK, because the device uses the queue
 * after that, and what a queue may do depends on the features. */
static void write_queue(struct virtio_device *d, u64 offset, u32 value)
{
	const u32 both = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
	struct virtqueue *q = selected(d);

	if (!q || (atomic_load(&d->status) & both) != VIRTIO_CONFIG_S_FEATURES_OK)
		return;
	if (offset == VIRTIO_MMIO_QUEUE_READY) {
		if (value != 1)
			q->ready = false;
		else if (!q->ready && virtqueue_enable(q) < 0)
			virtio_broken(d, "the rings of a queue are not in RAM");
		return;
	}
	if (q->ready)
		return;
	switch (offset) {
	case VIRTIO_MMIO_QUEUE_NUM:
		/* One that is not allowed does not pass virtqueue_enable(). */
		q->size = value <= q->size_max ? (u16)value : 0;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_half(&q->desc_gpa, offset == VIRTIO_MMIO_QUEUE_DESC_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		set_half(&q->avail_gpa, offset == VIRTIO_MMIO_QUEUE_AVAIL_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		set_half(&q->used_gpa, offset == VIRTIO_MMIO_QUEUE_USED_HIGH, value);
		break;
	}
}

static void write_features(struct virtio_device *d, u32 value)
{
	if (atomic_load(&d->status) & VIRTIO_CONFIG_S_FEATURES_OK)
		return;
	if (d->driver_feature_select < 2)
		set_half(&d->driver_features, d->driver_feature_select == 1, value);
}

static void write_register(struct virtio_device *d, u64 offset, u32 value)
{
	switch (offset) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		d->feature_select = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		d->driver_feature_select = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		write_features(d, value);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		d->queue_select = value;
		break;
	default:
		write_queue(d, offset, value);
		break;
	}
}

static void mmio_write(void *dev, u64 offset, const void *data, u32 bytes)
{
	struct virtio_device *d = dev;
	u32 value;

	if (offset >= VIRTIO_MMIO_CONFIG) {
		offset -= VIRTIO_MMIO_CONFIG;
		if (!d->ops->config_write || offset + bytes > d->config_bytes)
			return;
		pthread_mutex_lock(&d->lock);
		d->ops->config_write(d, (u32)offset, data, bytes);
		pthread_mutex_unlock(&d->lock);
		return;
	}
	if (bytes != sizeof(value) || offset % sizeof(value))
		return;
	memcpy(&value, data, sizeof(value));
	switch (offset) {
	case VIRTIO_MMIO_INTERRUPT_ACK:
		atomic_fetch_and(&d->interrupt_status, ~value);
		break;
	case VIRTIO_MMIO_STATUS:
		virtio_set_status(d, value & 0xff);
		break;
	/* Comes here when there is no ioeventfd for it. */
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		if (value < d->ops->nr_queues)
			virtio_kick(d, value);
		break;
	default:
		pthread_mutex_lock(&d->lock);
		write_register(d, offset, value);
		pthread_mutex_unlock(&d->lock);
		break;
	}
}

static const struct bus_ops mmio_ops = {
	.read = mmio_read,
	.write = mmio_write,
};

static int on_kick(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct virtio_device *d = arg;
	eventfd_t n;
	u32 q = 0;

	while (q < d->ops->nr_queues - 1 && d->kick_fds[q] != fd)
		q++;
	if (eventfd_read(fd, &n) < 0)
		return 0;
	pthread_mutex_lock(&d->lock);
	atomic_fetch_add_explicit(&d->kicks, 1, memory_order_relaxed);
	if (d->live && !(atomic_load(&d->status) & VIRTIO_CONFIG_S_NEEDS_RESET))
		d->ops->kick(d, q);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

static int connect_interrupt(struct virtio_device *d)
{
	struct kvm_irqfd irqfd = { .gsi = layout_virtio_irq(d->index) };

	d->irq_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->irq_fd < 0)
		return -errno;
	irqfd.fd = (u32)d->irq_fd;
	if (d->vm->vm_fd >= 0 && ioctl(d->vm->vm_fd, KVM_IRQFD, &irqfd) < 0)
		return -errno;
	return 0;
}

static int connect_kick(struct virtio_device *d, u32 q, u64 base)
{
	struct kvm_ioeventfd ioeventfd = { .datamatch = q,
					   .addr = base + VIRTIO_MMIO_QUEUE_NOTIFY,
					   .len = sizeof(u32),
					   .flags = KVM_IOEVENTFD_FLAG_DATAMATCH };
	/* A thread of its own waits in read(), by io_uring. */
	int fd = eventfd(0, EFD_CLOEXEC | (d->ops->own_thread ? 0 : EFD_NONBLOCK));

	if (fd < 0)
		return -errno;
	d->kick_fds[q] = fd;
	ioeventfd.fd = fd;
	if (d->vm->vm_fd >= 0 && ioctl(d->vm->vm_fd, KVM_IOEVENTFD, &ioeventfd) < 0)
		return -errno;
	if (d->ops->own_thread)
		return 0;
	return sd_event_add_io(d->vm->loop, &d->kick_sources[q], fd, EPOLLIN, on_kick, d);
}

int virtio_add(struct vm *vm, struct virtio_device *d)
{
	u64 base = LAYOUT_VIRTIO + (u64)vm->nr_devices * LAYOUT_VIRTIO_STRIDE;
	int r;

	if (vm->nr_devices == LAYOUT_VIRTIO_MAX)
		return -ENOSPC;
	d->index = vm->nr_devices;
	r = connect_interrupt(d);
	for (u32 q = 0; r >= 0 && q < d->ops->nr_queues; q++)
		r = connect_kick(d, q, base);
	if (r < 0)
		return r;
	r = bus_add(&vm->mmio, base, LAYOUT_VIRTIO_STRIDE, &mmio_ops, d);
	if (r < 0)
		return r;
	vm->devices[vm->nr_devices++] = d;
	return 0;
}
