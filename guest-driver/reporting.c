// SPDX-License-Identifier: GPL-2.0
/*
 * Free page reporting (virtio 1.2, section 5.5.6.7): the kernel hands over blocks of free pages,
 * and takes them back when the host has seen them.
 */
#include <linux/mm.h>
#include <linux/virtio_config.h>
#include "balloon.h"

static int report(struct page_reporting_dev_info *info, struct scatterlist *sg, unsigned int nr)
{
	struct bb *b = container_of(info, struct bb, reporting);
	struct virtqueue *vq = b->vq[BB_VQ_REPORTING];
	unsigned int len;
	int err;

	/* While the machine is suspended there is no queue; the kernel goes on reporting. */
	if (!vq)
		return -ENODEV;
	err = virtqueue_add_inbuf(vq, sg, nr, b, GFP_NOWAIT | __GFP_NOWARN);
	/* A queue without room: the kernel tries again later. */
	if (err)
		return err;
	virtqueue_kick(vq);
	wait_event(b->acked, virtqueue_get_buf(vq, &len) || virtqueue_is_broken(vq));
	return virtqueue_is_broken(vq) ? -EIO : 0;
}

int bb_reporting_start(struct bb *b)
{
	int err;

	if (virtio_has_feature(b->vdev, VIRTIO_BALLOON_F_PAGE_POISON)) {
		u32 poison = want_init_on_free() ? 0 : 0xaaaaaaaa; /* PAGE_POISON in each byte */

		virtio_cwrite_le(b->vdev, struct virtio_balloon_config, poison_val, &poison);
	}
	if (!b->vq[BB_VQ_REPORTING] ||
	    virtqueue_get_vring_size(b->vq[BB_VQ_REPORTING]) < PAGE_REPORTING_CAPACITY)
		return 0;
	b->reporting.report = report;
	err = page_reporting_register(&b->reporting);
	b->reports = !err;
	/* Only one driver may report; the balloon works without it. */
	return 0;
}

void bb_reporting_stop(struct bb *b)
{
	if (b->reports)
		page_reporting_unregister(&b->reporting);
	b->reports = false;
}
