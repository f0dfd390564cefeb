/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include "vmm/devices.h"
#include "vmm/sandbox.h"
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

/* A device that needs nothing but the machine. */
static int add(struct vm *vm, int (*new)(struct vm *vm, struct virtio_device **ret),
	       const char *name, char *error)
{
	struct virtio_device *d;
	int r = new (vm, &d);

	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot make the %s device: %s", name, strerror(-r));
		return r;
	}
	return plug(vm, d, error);
}

static int open_disk(struct vm *vm, u32 index, struct blk_image **ret, char *error)
{
	const struct disk_config *disk = &vm->cfg->disks[index];
	struct blk_image_config cfg = { .path = disk->path,
					.overlay = disk->overlay,
					.readonly = disk->readonly,
					.direct = disk->direct };

	return blk_image_open(&cfg, ret, error);
}

static int add_disk(struct vm *vm, u32 index, struct blk_image *img, char *error)
{
	struct virtio_device *d;
	char serial[24];
	int r;

	snprintf(serial, sizeof(serial), "ballast-%u", index);
	r = virtio_blk_new(vm, img, serial, &d);
	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot start disk %s: io_uring: %s",
			 vm->cfg->disks[index].path, strerror(-r));
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
	struct net_backend *backend;
	struct virtio_device *d;
	u8 mac[NET_MAC_BYTES];
	int r = net->passt ? net_passt_open(net->passt, &backend)
			   : net_tap_open(net->tap, &backend);

	if (r < 0 && net->passt) {
		snprintf(error, VM_ERROR_MAX, "cannot connect to passt at %s: %s", net->passt,
			 strerror(-r));
		return r;
	}
	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot open the interface %s: %s", net->tap,
			 why_no_tap(r));
		return r;
	}
	if (net->has_mac)
		memcpy(mac, net->mac, sizeof(mac));
	else
		make_mac(vm, index, mac);
	r = virtio_net_new(vm, backend, mac, &d);
	if (r < 0) {
		snprintf(error, VM_ERROR_MAX, "cannot make the network device on %s: %s",
			 net->passt ? net->passt : net->tap, strerror(-r));
		return r;
	}
	return plug(vm, d, error);
}

/* A disk has a thread, which is to start without privileges: all images are opened before. */
static int add_disks(struct vm *vm, char *error)
{
	struct blk_image *images[VM_DISKS_MAX] = { 0 };
	u32 nr = vm->cfg->nr_disks, i;
	int r = 0;

	for (i = 0; i < nr && r == 0; i++)
		r = open_disk(vm, i, &images[i], error);
	if (r == 0 && !vm->cfg->no_sandbox) {
		r = sandbox_drop_privileges();
		if (r < 0)
			snprintf(error, VM_ERROR_MAX, "cannot give up privileges: %s",
				 strerror(-r));
	}
	for (i = 0; i < nr && r == 0; i++) {
		r = add_disk(vm, i, images[i], error);
		images[i] = NULL;
	}
	for (i = 0; i < nr; i++)
		blk_image_close(images[i]);
	return r;
}

int devices_add(struct vm *vm, char error[VM_ERROR_MAX])
{
	int r = 0;

	_Static_assert(VM_ERROR_MAX >= BLK_IMAGE_ERROR_MAX, "one buffer for both");
	if (vm->cfg->balloon)
		r = add(vm, virtio_balloon_new, "balloon", error);
	if (r == 0 && vm->cfg->rng)
		r = add(vm, virtio_rng_new, "entropy", error);
	if (r == 0 && vm->cfg->hotplug_bytes)
		r = add(vm, virtio_mem_new, "hotplug", error);
	for (u32 i = 0; i < vm->cfg->nr_nets && r == 0; i++)
		r = add_net(vm, i, error);
	/* Last: gives up the privileges that others need. */
	if (r == 0)
		r = add_disks(vm, error);
	return r;
}
