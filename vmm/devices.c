/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include "vmm/devices.h"
#include "vmm/virtio_balloon.h"
#include "vmm/virtio_blk.h"
#include "vmm/virtio_mem.h"
#include "vmm/virtio_net.h"
#include "vmm/virtio_rng.h"

/* Owns @d: plugs it in, or frees it. */
static int plug(struct vm *vm, struct virtio_device *d, char *error)
{
	int r = virtio_add(vm, d);

	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot add the %s device: %s", d->ops->name,
			 r == -ENOSPC ? "there are too many devices" : strerror(-r));
		virtio_free(d);
	}
	return r;
}

static int add_disk(struct vm *vm, u32 index, char *error)
{
	const struct disk_config *disk = &vm->cfg->disks[index];
	struct blk_image_config cfg = { .path = disk->path,
					.overlay = disk->overlay,
					.readonly = disk->readonly,
					.direct = disk->direct };
	struct virtio_device *d;
	struct blk_image *img;
	char serial[24];
	int r = blk_image_open(&cfg, &img, error);

	if (r < 0)
		return r;
	snprintf(serial, sizeof(serial), "ballast-%u", index);
	r = virtio_blk_new(vm, img, serial, &d);
	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot start disk %s: io_uring: %s", disk->path,
			 strerror(-r));
		return r;
	}
	return plug(vm, d, error);
}

/* The same for the same VM in every run, so that its interface keeps its name and address. */
static void make_mac(const struct vm *vm, u32 index, u8 mac[NET_MAC_BYTES])
{
	u64 hash = XXH3_64bits_withSeed(vm->cfg->name, strlen(vm->cfg->name), index);

	memcpy(mac, &hash, NET_MAC_BYTES);
	mac[0] = (u8)((mac[0] & 0xfc) | 2); /* locally administered, of one station */
}

static const char *why_no_tap(int error)
{
	switch (error) {
	case -ENOENT:
		return "no /dev/net/tun on this host (modprobe tun)";
	case -EPERM:
		return "not permitted; make it for this user: ip tuntap add NAME mode tap user USER";
	case -EBUSY:
		return "in use by another process";
	case -EINVAL:
		return "not a tap interface";
	default:
		return strerror(-error);
	}
}

static int add_net(struct vm *vm, u32 index, char *error)
{
	const struct net_config *net = &vm->cfg->nets[index];
	int fd = net_tap_open(net->tap), r;
	struct virtio_device *d;
	u8 mac[NET_MAC_BYTES];

	if (fd < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot open the interface %s: %s", net->tap,
			 why_no_tap(fd));
		return fd;
	}
	if (net->has_mac)
		memcpy(mac, net->mac, sizeof(mac));
	else
		make_mac(vm, index, mac);
	r = virtio_net_new(vm, fd, mac, &d);
	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot make the network device on %s: %s", net->tap,
			 strerror(-r));
		return r;
	}
	return plug(vm, d, error);
}

/* Devices that need nothing but the machine. */
static int add_simple(struct vm *vm, const char *what,
		      int (*make)(struct vm *vm, struct virtio_device **ret), char *error)
{
	struct virtio_device *d;
	int r = make(vm, &d);

	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot make the %s device: %s", what, strerror(-r));
		return r;
	}
	return plug(vm, d, error);
}

int devices_add(struct vm *vm, char error[VM_ERROR_MAX])
{
	int r = 0;

	_Static_assert(VM_ERROR_MAX >= BLK_IMAGE_ERROR_MAX, "one buffer for both");
	for (u32 i = 0; i < vm->cfg->nr_disks && r == 0; i++)
		r = add_disk(vm, i, error);
	for (u32 i = 0; i < vm->cfg->nr_nets && r == 0; i++)
		r = add_net(vm, i, error);
	if (r == 0 && vm->cfg->balloon)
		r = add_simple(vm, "balloon", virtio_balloon_new, error);
	if (r == 0 && vm->cfg->rng)
		r = add_simple(vm, "rng", virtio_rng_new, error);
	if (r == 0 && vm->cfg->hotplug_bytes)
		r = add_simple(vm, "mem", virtio_mem_new, error);
	return r;
}
