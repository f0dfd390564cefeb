/* SPDX-License-Identifier: MIT */
/*
 * Guest physical memory: where it is in the guest (GPA), where it is in us (HVA), and the one way
 * from the first to the second.
 *
 *	0 ........... 3 GiB	RAM, as far as there is
 *	3 GiB ....... 4 GiB	no RAM: devices (layout.h)
 *	4 GiB .......		the rest of RAM
 *	then, 1 GiB aligned	the hotplug area of virtio-mem, if there is one
 *
 * All RAM is private anonymous memory, 2 MiB aligned in HVA as in GPA, so that huge pages are
 * possible and Ballast's agent can take it over (hypervisor-hooks/hooks.h).
 *
 * An address that comes from the guest is hostile: it becomes a pointer by memory_at() and by
 * nothing else. Pointers stay valid for the VM's life: slots are only added before it starts.
 */
#ifndef BALLAST_VMM_MEMORY_H
#define BALLAST_VMM_MEMORY_H

#include "common/types.h"
#include "hypervisor-hooks/hooks.h"

#define MEMORY_SLOTS_MAX 4

struct memory_slot {
	u64 gpa, bytes;
	u8 *hva;
	const char *name; /* "ram-low", "ram-high", "hotplug": constant */
	bool hotplug; /* virtio-mem's: what is unplugged in it is no RAM (memory_at() still finds
			 it: reading it gives zeros, and hurts nobody but the guest) */
};

struct guest_memory {
	struct memory_slot slots[MEMORY_SLOTS_MAX];
	u32 nr_slots;
	u64 ram_bytes;		/* without the hotplug area */
	bool restored;		/* slots are private mappings of a snapshot's memory file */
	struct bh_agent *agent; /* NULL: no daemon; then all below is plain madvise() */
};

/* Maps @ram_bytes of RAM (a multiple of 2 MiB) and @hotplug_bytes of hotplug area (0: none).
 * -ENOMEM. */
int memory_init(struct guest_memory *m, u64 ram_bytes, u64 hotplug_bytes);
void memory_free(struct guest_memory *m);

/* Shows @fd from @offset on in slot @slot, privately: for a snapshot, before there is an agent's
 * region or a pointer into it. */
int memory_map_file(struct guest_memory *m, u32 slot, int fd, u64 offset);

/* The pointer to [gpa, gpa + bytes), or NULL when that is not RAM, whole, in one slot. @bytes > 0.
 */
void *memory_at(const struct guest_memory *m, u64 gpa, u64 bytes);

/* GPA of a pointer into guest RAM; (u64)-1 if it is not one. */
u64 memory_gpa(const struct guest_memory *m, const void *hva);

/* Hands all slots to Ballast's daemon, when there is one. Returns 0 also without: the VM runs as
 * well, and *ret_why (constant) says what is missing. */
int memory_attach(struct guest_memory *m, const struct bh_config *cfg, const char **ret_why);

/* The range reads as zeros afterwards and costs nothing (balloon, free page reporting, unplug).
 * Whole pages inside RAM only: -EINVAL. */
int memory_discard(struct guest_memory *m, u64 gpa, u64 bytes);

/*
 * memory_hooks.c, for devices, from any thread. A device pins what is read or written past the page
 * tables (direct I/O) before the kernel is handed the address, and unpins just that when it is
 * done.
 */
void memory_pin(const struct guest_memory *m, const void *hva, u64 bytes);
void memory_unpin(const struct guest_memory *m, const void *hva, u64 bytes);
/* The range was just filled from an image that nobody writes, from @sector (512 bytes) on. Before
 * the guest is told. A hint; whole pages only. Returns how many pages it was told of. */
u64 memory_note_disk_read(const struct guest_memory *m, const void *hva, u64 bytes,
			  const struct bh_disk *disk, u64 sector);
/* The range was just filled with something else. */
void memory_note_written(const struct guest_memory *m, const void *hva, u64 bytes);

#endif
