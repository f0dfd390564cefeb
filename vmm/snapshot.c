/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "vmm/machine.h"
#include "vmm/snapshot.h"
#include "vmm/state.h"
#include "vmm/virtio.h"

#define STATE_FILE  "state"
#define MEMORY_FILE "memory"

/* What must be the same in the machine that a snapshot is restored to. */
struct snapshot_config {
	u64 memory_bytes, hotplug_bytes;
	u32 cpus, nr_devices;
	u32 devices[LAYOUT_VIRTIO_MAX]; /* VIRTIO_ID_* */
};

static struct snapshot_config config_of(const struct vm *vm)
{
	struct snapshot_config c = { .memory_bytes = vm->cfg->memory_bytes,
				     .hotplug_bytes = vm->cfg->hotplug_bytes,
				     .cpus = vm->nr_vcpus,
				     .nr_devices = vm->nr_devices };

	for (u32 i = 0; i < vm->nr_devices; i++)
		c.devices[i] = vm->devices[i]->ops->id;
	return c;
}

/* --- save --------------------------------------------------------------------------------------
 */

static bool is_zero(const u8 *page)
{
	return page[0] == 0 && memcmp(page, page + 1, PAGE_BYTES - 1) == 0;
}

static int write_all(int fd, const u8 *data, u64 bytes, u64 offset)
{
	while (bytes) {
		ssize_t n = pwrite(fd, data, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		offset += (u64)n;
		bytes -= (u64)n;
	}
	return 0;
}

/* What is not zero, in runs. */
static int write_slot(int fd, const struct memory_slot *s, u64 offset)
{
	u64 at = 0;
	int r = 0;

	while (at < s->bytes && r == 0) {
		u64 end = at;

		while (end < s->bytes && !is_zero(s->hva + end))
			end += PAGE_BYTES;
		if (end > at)
			r = write_all(fd, s->hva + at, end - at, offset + at);
		for (at = end; at < s->bytes && is_zero(s->hva + at);)
			at += PAGE_BYTES;
	}
	return r;
}

static u64 memory_file_bytes(const struct guest_memory *m)
{
	u64 bytes = 0;

	for (u32 i = 0; i < m->nr_slots; i++)
		bytes += m->slots[i].bytes;
	return bytes;
}

static int save_memory(const struct guest_memory *m, int dir_fd)
{
	int r, fd = openat(dir_fd, MEMORY_FILE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	u64 offset = 0;

	if (fd < 0)
		return -errno;
	r = ftruncate(fd, (off_t)memory_file_bytes(m)) < 0 ? -errno : 0;
	for (u32 i = 0; i < m->nr_slots && r == 0; i++) {
		r = write_slot(fd, &m->slots[i], offset);
		offset += m->slots[i].bytes;
	}
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (close(fd) < 0 && r == 0)
		r = -errno;
	return r;
}

static int save_state(struct vm *vm, int dir_fd)
{
	struct snapshot_config c = config_of(vm);
	struct state_writer w = { 0 };
	int r = state_put(&w, "config", 0, &c, sizeof(c));

	if (r == 0)
		r = machine_save(vm, &w);
	for (u32 i = 0; i < vm->nr_devices && r == 0; i++)
		r = virtio_save(vm->devices[i], &w);
	if (r == 0)
		r = state_writer_save(&w, dir_fd, STATE_FILE);
	state_writer_free(&w);
	return r;
}

int snapshot_save(struct vm *vm, const char *dir, char error[VM_ERROR_MAX])
{
	int r, dir_fd;

	if (vm->state != VM_PAUSED)
		return vm_fail(error, -EINVAL, "the VM is not paused");
	if (mkdir(dir, 0700) < 0)
		return vm_fail(error, -errno, "cannot make the folder %s: %s", dir,
			       strerror(errno));
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	r = dir_fd < 0 ? -errno : save_memory(&vm->mem, dir_fd);
	/* The state comes last: without it there is no snapshot. */
	if (r == 0)
		r = save_state(vm, dir_fd);
	if (r == 0 && fsync(dir_fd) < 0)
		r = -errno;
	if (r < 0) {
		if (dir_fd >= 0) {
			unlinkat(dir_fd, MEMORY_FILE, 0);
			unlinkat(dir_fd, STATE_FILE, 0);
		}
		rmdir(dir);
		vm_fail(error, r, "cannot write the snapshot %s: %s", dir, strerror(-r));
	}
	if (dir_fd >= 0)
		close(dir_fd);
	return r;
}

/* --- restore -----------------------------------------------------------------------------------
 */

static const char *load_error(int r)
{
	switch (r) {
	case -EBADMSG:
	case -ENOENT:
		return "damaged, or of another machine";
	case -ENOTSUP:
		return "of another version of ballast-vmm";
	case -EINVAL:
		return "KVM refuses its state: of another kind of processor?";
	default:
		return strerror(-r);
	}
}

static int open_dir(const char *dir, char *error)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? vm_fail(error, -errno, "cannot open the snapshot %s: %s", dir,
				strerror(errno))
		      : fd;
}

static int read_config(int dir_fd, struct state_reader *reader, struct snapshot_config *ret)
{
	int r = state_reader_open(reader, dir_fd, STATE_FILE);

	if (r < 0)
		return r;
	r = state_get_exact(reader, "config", 0, ret, sizeof(*ret));
	if (r == 0 && (ret->cpus == 0 || ret->cpus > VM_VCPUS_MAX || ret->memory_bytes == 0 ||
		       ret->memory_bytes > VM_MEMORY_MAX || ret->hotplug_bytes > VM_MEMORY_MAX ||
		       ret->memory_bytes % CHUNK_BYTES || ret->hotplug_bytes % CHUNK_BYTES ||
		       ret->nr_devices > LAYOUT_VIRTIO_MAX))
		r = -EBADMSG;
	if (r < 0)
		state_reader_free(reader);
	return r;
}

int snapshot_complete_config(const char *dir, struct vm_config *cfg, char error[VM_ERROR_MAX])
{
	struct state_reader reader;
	struct snapshot_config c;
	int r, dir_fd = open_dir(dir, error);

	if (dir_fd < 0)
		return dir_fd;
	r = read_config(dir_fd, &reader, &c);
	close(dir_fd);
	if (r < 0)
		return vm_fail(error, r, "snapshot %s: %s", dir, load_error(r));
	state_reader_free(&reader);
	if ((cfg->memory_bytes && cfg->memory_bytes != c.memory_bytes) ||
	    (cfg->hotplug_bytes && cfg->hotplug_bytes != c.hotplug_bytes) ||
	    (cfg->cpus && cfg->cpus != c.cpus))
		return vm_fail(error, -EINVAL,
			       "snapshot %s is of a machine with --memory %lluM --hotplug %lluM "
			       "--cpus %u: leave these options out",
			       dir, (unsigned long long)(c.memory_bytes >> 20),
			       (unsigned long long)(c.hotplug_bytes >> 20), c.cpus);
	cfg->memory_bytes = c.memory_bytes;
	cfg->hotplug_bytes = c.hotplug_bytes;
	cfg->cpus = c.cpus;
	return 0;
}

static int read_range(int fd, u8 *to, u64 bytes, u64 offset)
{
	while (bytes) {
		ssize_t n = pread(fd, to, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EBADMSG;
		to += n;
		offset += (u64)n;
		bytes -= (u64)n;
	}
	return 0;
}

/* Reads what is no hole into memory that is all zeros. */
static int read_slot(int fd, const struct memory_slot *s, u64 start)
{
	u64 end = start + s->bytes, at = start;
	int r = 0;

	while (r == 0 && at < end) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA), hole;

		if (data < 0)
			return errno == ENXIO ? 0 : -errno; /* only a hole is left */
		if ((u64)data >= end)
			return 0;
		hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		at = MIN((u64)hole, end);
		r = read_range(fd, s->hva + ((u64)data - start), at - (u64)data, (u64)data);
	}
	return r;
}

/*
 * With an agent a slot begins as a mapping of the domain's store, which the daemon has read the
 * file into once for all that are restored from it: a clone costs what it writes, and is up in
 * milliseconds. Where the daemon does not do that (it is busy, full, paused, older), the memory is
 * read, because only anonymous memory can be merged. Without an agent the file is mapped: the VM is
 * up at once, too, and shares what it does not write with the page cache.
 */
static int load_slot(struct guest_memory *m, u32 slot, int fd, u64 offset)
{
	const struct memory_slot *s = &m->slots[slot];
	int r;

	if (!m->agent)
		return memory_map_file(m, slot, fd, offset);
	r = bh_region_from_image(m->agent, s->hva, s->bytes, fd, offset);
	/* After any other error the slot is as empty as it was. */
	if (r == 0 || r == -ENOTRECOVERABLE)
		return r;
	return read_slot(fd, s, offset);
}

static int load_memory(struct guest_memory *m, int dir_fd)
{
	int r = 0, fd = openat(dir_fd, MEMORY_FILE, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	u64 offset = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		r = -errno;
	else if (!S_ISREG(st.st_mode) || (u64)st.st_size != memory_file_bytes(m))
		r = -EBADMSG;
	for (u32 i = 0; i < m->nr_slots && r == 0; i++) {
		r = load_slot(m, i, fd, offset);
		offset += m->slots[i].bytes;
	}
	close(fd);
	return r;
}

static int check_devices(const struct vm *vm, const struct snapshot_config *c)
{
	if (c->nr_devices != vm->nr_devices)
		return -EINVAL;
	for (u32 i = 0; i < vm->nr_devices; i++) {
		if (c->devices[i] != vm->devices[i]->ops->id)
			return -EINVAL;
	}
	return 0;
}

int snapshot_load(struct vm *vm, const char *dir, char error[VM_ERROR_MAX])
{
	struct state_reader reader;
	struct snapshot_config c;
	int r, dir_fd = open_dir(dir, error);

	if (dir_fd < 0)
		return dir_fd;
	r = read_config(dir_fd, &reader, &c);
	if (r < 0) {
		close(dir_fd);
		return vm_fail(error, r, "snapshot %s: %s", dir, load_error(r));
	}
	if (check_devices(vm, &c) < 0)
		r = vm_fail(error, -EINVAL,
			    "snapshot %s has other devices: give the options for them as they were",
			    dir);
	else if ((r = load_memory(&vm->mem, dir_fd)) < 0 || (r = machine_load(vm, &reader)) < 0)
		vm_fail(error, r, "snapshot %s: %s", dir, load_error(r));
	for (u32 i = 0; i < vm->nr_devices && r == 0; i++) {
		r = virtio_load(vm->devices[i], &reader);
		if (r < 0)
			vm_fail(error, r, "snapshot %s: %s device: %s", dir,
				vm->devices[i]->ops->name, load_error(r));
	}
	state_reader_free(&reader);
	close(dir_fd);
	return r;
}
