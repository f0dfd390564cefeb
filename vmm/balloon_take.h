/* SPDX-License-Identifier: MIT */
/*
 * What a balloon's queues say is given back, or taken again: frames (virtio 1.2, 5.5.6) or ranges
 * (docs/BALLOON-RANGES.md). Hostile: each address is checked, what is wrong is counted and passed
 * over. Neighbours become one discard, so that 2 MiB go back as a huge page.
 *
 * What is discarded reads as zeros from then on: the guest's own loss if it was in use.
 */
#ifndef BALLAST_VMM_BALLOON_TAKE_H
#define BALLAST_VMM_BALLOON_TAKE_H

#include "vmm/memory.h"
#include "vmm/virtio_balloon.h"

/* False: it was not RAM, or could not be discarded; counted in @c. */
bool balloon_discard(struct guest_memory *m, struct balloon_counters *c, u64 gpa, u64 bytes);
void balloon_take_frames(struct guest_memory *m, struct balloon_counters *c,
			 const struct virtqueue_request *r, bool inflate);
void balloon_take_ranges(struct guest_memory *m, struct balloon_counters *c,
			 const struct virtqueue_request *r, bool inflate);

#endif
