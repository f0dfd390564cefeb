/* SPDX-License-Identifier: MIT */
/* What devices tell Ballast's agent of guest RAM. Without an agent all of it is nothing. */
#include "vmm/memory.h"

void memory_pin(const struct guest_memory *m, const void *hva, u64 bytes)
{
	bh_pin(m->agent, hva, bytes);
}

void memory_unpin(const struct guest_memory *m, const void *hva, u64 bytes)
{
	bh_unpin(m->agent, hva, bytes);
}

u64 memory_note_disk_read(const struct guest_memory *m, const void *hva, u64 bytes,
			  const struct bh_disk *disk, u64 sector)
{
	if (!m->agent || (uintptr_t)hva % PAGE_BYTES || bytes < PAGE_BYTES)
		return 0;
	bytes = ROUND_DOWN(bytes, PAGE_BYTES);
	bh_note_disk_read(m->agent, hva, bytes, disk, sector);
	return bytes / PAGE_BYTES;
}

void memory_note_written(const struct guest_memory *m, const void *hva, u64 bytes)
{
	bh_note_written(m->agent, hva, bytes);
}
