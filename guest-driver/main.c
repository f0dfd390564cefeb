// SPDX-License-Identifier: GPL-2.0
/*
 * The device: features, queues, the host's target, suspend and resume.
 */
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include "balloon.h"

/* Frames that are taken or given back before others get their turn: 64 MiB. */
#define STEP_PAGES (64ul << 20 >> VIRTIO_BALLOON_PFN_SHIFT)
/* After the guest had no more to spare. */
#define RETRY msecs_to_jiffies(200)

static void on_ack(struct virtqueue *vq)
{
	struct bb *b = vq->vdev->priv;

	wake_up(&b->acked);
}

bool bb_tell(struct bb *b, struct virtqueue *vq, void *data, unsigned int bytes)
{
	struct scatterlist sg;
	unsigned int len;

	sg_init_one(&sg, data, bytes);
	/* One buffer at a time, so there is always room. */
	if (virtqueue_add_outbuf(vq, &sg, 1, b, GFP_ATOMIC) < 0)
		return false;
	virtqueue_kick(vq);
	wait_event(b->acked, virtqueue_get_buf(vq, &len) || virtqueue_is_broken(vq));
	return !virtqueue_is_broken(vq);
}

/* --- the target --------------------------------------------------------------------------------
 */

/* Frames that the host wants; more than there are is as many as there are. */
static unsigned long target(struct bb *b)
{
	u32 pages;

	virtio_cread_le(b->vdev, struct virtio_balloon_config, num_pages, &pages);
	return pages;
}

void bb_update_actual(struct bb *b)
{
	u32 actual = (u32)bb_size(b);

	virtio_cwrite_le(b->vdev, struct virtio_balloon_config, actual, &actual);
}

void bb_queue_resize(struct bb *b, unsigned long delay)
{
	unsigned long flags;

	spin_lock_irqsave(&b->stop_lock, flags);
	if (!b->stopping)
		mod_delayed_work(b->wq, &b->resize, delay);
	spin_unlock_irqrestore(&b->stop_lock, flags);
}

static void on_resize(struct work_struct *work)
{
	struct bb *b = container_of(to_delayed_work(work), struct bb, resize);
	unsigned long want = target(b), have, moved = 0;
	unsigned long again = 0;

	mutex_lock(&b->lock);
	have = bb_size(b);
	if (want > have && bb_may_inflate(b)) {
		unsigned long nr = min(want - have, STEP_PAGES);

		moved = bb_inflate(b, nr);
		again = moved < nr ? RETRY : 0;
	} else if (want < have) {
		moved = bb_deflate(b, min(have - want, STEP_PAGES));
		again = moved ? 0 : RETRY;
	} else if (want > have) {
		again = RETRY;
	}
	if (moved)
		bb_update_actual(b);
	have = bb_size(b);
	mutex_unlock(&b->lock);
	if (want != have)
		bb_queue_resize(b, again);
}

static void on_config(struct virtio_device *vdev)
{
	bb_queue_resize(vdev->priv, 0);
}

/* --- queues ------------------------------------------------------------------------------------
 */

static int find_queues(struct bb *b)
{
	struct virtio_device *vdev = b->vdev;
	bool stats = virtio_has_feature(vdev, VIRTIO_BALLOON_F_STATS_VQ);
	bool reporting = virtio_has_feature(vdev, VIRTIO_BALLOON_F_REPORTING);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	struct virtqueue_info info[BB_NR_VQS] = {
		[BB_VQ_INFLATE] = { "inflate", on_ack },
		[BB_VQ_DEFLATE] = { "deflate", on_ack },
	};

	/* The free page queue is there only with the hinting feature, which is not accepted. */
	if (stats)
		info[BB_VQ_STATS] = (struct virtqueue_info){ "stats", bb_stats_request };
	if (reporting)
		info[BB_VQ_REPORTING] = (struct virtqueue_info){ "reporting_vq", on_ack };
	return virtio_find_vqs(vdev, BB_NR_VQS, b->vq, info, NULL);
#else
	vq_callback_t *callbacks[BB_NR_VQS] = { on_ack, on_ack };
	const char *names[BB_NR_VQS] = { "inflate", "deflate" };

	if (stats) {
		callbacks[BB_VQ_STATS] = bb_stats_request;
		names[BB_VQ_STATS] = "stats";
	}
	if (reporting) {
		callbacks[BB_VQ_REPORTING] = on_ack;
		names[BB_VQ_REPORTING] = "reporting_vq";
	}
	return virtio_find_vqs(vdev, BB_NR_VQS, b->vq, callbacks, names, NULL);
#endif
}

/* Queues, and the host may use them. */
static int start_device(struct bb *b)
{
	int err = find_queues(b);

	if (err)
		return err;
	b->ranges = virtio_has_feature(b->vdev, BB_F_RANGES);
	virtio_device_ready(b->vdev);
	if (b->vq[BB_VQ_STATS])
		bb_stats_start(b);
	return 0;
}

/* All memory is the guest's again, and the device is as new. */
static void stop_device(struct bb *b)
{
	mutex_lock(&b->lock);
	while (bb_size(b)) {
		/* Some may be on the move (compaction): they come back. */
		if (!bb_deflate(b, bb_size(b))) {
			mutex_unlock(&b->lock);
			msleep(20);
			mutex_lock(&b->lock);
		}
	}
	bb_update_actual(b);
	mutex_unlock(&b->lock);
	virtio_reset_device(b->vdev);
	b->vdev->config->del_vqs(b->vdev);
	memset(b->vq, 0, sizeof(b->vq));
}

static void stop_work(struct bb *b)
{
	spin_lock_irq(&b->stop_lock);
	b->stopping = true;
	spin_unlock_irq(&b->stop_lock);
	cancel_delayed_work_sync(&b->resize);
	cancel_work_sync(&b->stats_work);
}

static int probe(struct virtio_device *vdev)
{
	struct bb *b;
	int err;

	if (!vdev->config->get)
		return -EINVAL;
	b = kzalloc(sizeof(*b), GFP_KERNEL);
	if (!b)
		return -ENOMEM;
	b->vdev = vdev;
	vdev->priv = b;
	mutex_init(&b->lock);
	spin_lock_init(&b->stop_lock);
	init_waitqueue_head(&b->acked);
	INIT_DELAYED_WORK(&b->resize, on_resize);
	bb_pages_init(b);
	bb_stats_init(b);
	err = -ENOMEM;
	b->buf = kmalloc(sizeof(*b->buf), GFP_KERNEL);
	/* Freezable: nothing moves while the machine is suspended. */
	b->wq = alloc_workqueue("ballast_balloon", WQ_FREEZABLE | WQ_CPU_INTENSIVE, 0);
	if (!b->buf || !b->wq)
		goto fail;
	err = start_device(b);
	if (err)
		goto fail;
	err = bb_pressure_start(b);
	if (err)
		goto fail_device;
	err = bb_reporting_start(b);
	if (err)
		goto fail_pressure;
	bb_queue_resize(b, 0);
	return 0;

fail_pressure:
	bb_pressure_stop(b);
fail_device:
	stop_work(b);
	stop_device(b);
fail:
	if (b->wq)
		destroy_workqueue(b->wq);
	kfree(b->buf);
	kfree(b);
	return err;
}

static void remove(struct virtio_device *vdev)
{
	struct bb *b = vdev->priv;

	bb_reporting_stop(b);
	bb_pressure_stop(b);
	stop_work(b);
	stop_device(b);
	destroy_workqueue(b->wq);
	kfree(b->buf);
	kfree(b);
}

#ifdef CONFIG_PM_SLEEP
static int freeze(struct virtio_device *vdev)
{
	struct bb *b = vdev->priv;

	/* The workqueue is frozen already. */
	stop_device(b);
	return 0;
}

static int restore(struct virtio_device *vdev)
{
	struct bb *b = vdev->priv;
	int err = start_device(b);

	if (!err)
		bb_queue_resize(b, 0);
	return err;
}
#endif

static int validate(struct virtio_device *vdev)
{
	/* Where the kernel does not write its free pages, the host need not know with what. */
	if (!want_init_on_free() && !page_poisoning_enabled_static())
		__virtio_clear_bit(vdev, VIRTIO_BALLOON_F_PAGE_POISON);
	/* Reported pages come back as zeros, which a poisoned page must not. */
	else if (!virtio_has_feature(vdev, VIRTIO_BALLOON_F_PAGE_POISON))
		__virtio_clear_bit(vdev, VIRTIO_BALLOON_F_REPORTING);
	/* What is passed are the guest's physical addresses, whatever the platform's DMA needs. */
	__virtio_clear_bit(vdev, VIRTIO_F_ACCESS_PLATFORM);
	return 0;
}

static const unsigned int features[] = {
	VIRTIO_BALLOON_F_MUST_TELL_HOST, VIRTIO_BALLOON_F_STATS_VQ,
	VIRTIO_BALLOON_F_DEFLATE_ON_OOM, VIRTIO_BALLOON_F_PAGE_POISON,
	VIRTIO_BALLOON_F_REPORTING,	 BB_F_RANGES,
};

static const struct virtio_device_id ids[] = {
	{ VIRTIO_ID_BALLOON, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, ids);

static struct virtio_driver ballast_driver = {
	.feature_table = features,
	.feature_table_size = ARRAY_SIZE(features),
	.driver.name = KBUILD_MODNAME,
	.id_table = ids,
	.validate = validate,
	.probe = probe,
	.remove = remove,
	.config_changed = on_config,
#ifdef CONFIG_PM_SLEEP
	.freeze = freeze,
	.restore = restore,
#endif
};
module_virtio_driver(ballast_driver);

MODULE_DESCRIPTION("Balloon driver of Ballast for virtio balloon devices");
MODULE_AUTHOR("The Ballast authors");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
