/* SPDX-License-Identifier: MIT */
/* Entropy device (virtio 1.2, section 5.4): the guest's buffers are filled by getrandom(). Nothing
 * to save; a clone reads the host's entropy, and so gets other bytes than its siblings. */
#ifndef BALLAST_VMM_VIRTIO_RNG_H
#define BALLAST_VMM_VIRTIO_RNG_H

#include "vmm/virtio.h"

int virtio_rng_new(struct vm *vm, struct virtio_device **ret);

#endif
