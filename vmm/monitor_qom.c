/* SPDX-License-Identifier: MIT */
/*
 * The balloon on the control socket: query-balloon, balloon, and of QEMU's object tree the branch
 * that leads to its statistics:
 *
 *	/machine/peripheral/balloon0	guest-stats, guest-stats-polling-interval
 */
#include <errno.h>
#include <string.h>
#include "common/clock.h"
#include "vmm/monitor.h"
#include "vmm/virtio_balloon.h"

#define PERIPHERAL	"/machine/peripheral"
#define BALLOON_NAME	"balloon0"
#define STATS_SECONDS	3600 /* longest interval */
#define CHANGE_EVERY_US 1000000

static const char *const stat_names[BALLOON_STATS_MAX] = {
	[VIRTIO_BALLOON_S_SWAP_IN] = "stat-swap-in",
	[VIRTIO_BALLOON_S_SWAP_OUT] = "stat-swap-out",
	[VIRTIO_BALLOON_S_MAJFLT] = "stat-major-faults",
	[VIRTIO_BALLOON_S_MINFLT] = "stat-minor-faults",
	[VIRTIO_BALLOON_S_MEMFREE] = "stat-free-memory",
	[VIRTIO_BALLOON_S_MEMTOT] = "stat-total-memory",
	[VIRTIO_BALLOON_S_AVAIL] = "stat-available-memory",
	[VIRTIO_BALLOON_S_CACHES] = "stat-disk-caches",
	[VIRTIO_BALLOON_S_HTLB_PGALLOC] = "stat-htlb-pgalloc",
	[VIRTIO_BALLOON_S_HTLB_PGFAIL] = "stat-htlb-pgfail",
	/* Newer than the headers of Debian 12; the numbers are of Linux 6.12's virtio_balloon.h. */
	[10] = "stat-oom-kills",
	[11] = "stat-alloc-stalls",
	[12] = "stat-async-scans",
	[13] = "stat-direct-scans",
	[14] = "stat-async-reclaims",
	[15] = "stat-direct-reclaims",
};

static struct virtio_device *balloon_of(const struct vm *vm)
{
	for (u32 i = 0; i < vm->nr_devices; i++) {
		if (vm->devices[i]->ops->id == VIRTIO_ID_BALLOON)
			return vm->devices[i];
	}
	return NULL;
}

static struct virtio_device *need_balloon(struct monitor_call *c)
{
	struct virtio_device *d = balloon_of(c->vm);

	if (!d) {
		c->class = "DeviceNotActive";
		monitor_fail(c, "no balloon device: start the VM with --balloon");
	}
	return d;
}

int monitor_query_balloon(struct monitor_call *c)
{
	struct virtio_device *d = need_balloon(c);

	if (!d)
		return -ENODEV;
	c->ret = json_pack("{s:I}", "actual", (json_int_t)balloon_actual(d));
	return 0;
}

int monitor_balloon(struct monitor_call *c)
{
	struct virtio_device *d = need_balloon(c);
	const json_t *value = json_object_get(c->args, "value");

	if (!d)
		return -ENODEV;
	if (!json_is_integer(value) || json_integer_value(value) <= 0)
		return monitor_fail(c, "\"value\" must be the guest's memory in bytes");
	balloon_set_target(d, (u64)json_integer_value(value));
	return 0;
}

/* --- the tree ----------------------------------------------------------------------------------
 */

static int no_such(struct monitor_call *c, const char *what)
{
	c->class = "DeviceNotFound";
	monitor_fail(c, "no such %s", what);
	return -ENOENT;
}

static json_t *item(const char *name, const char *type)
{
	return json_pack("{s:s,s:s}", "name", name, "type", type);
}

int monitor_qom_list(struct monitor_call *c)
{
	const char *path = json_string_value(json_object_get(c->args, "path"));
	bool balloon = balloon_of(c->vm);

	if (!path)
		return monitor_fail(c, "\"path\" must be a string");
	if (strcmp(path, "/machine") == 0)
		c->ret = json_pack("[o,o]", item("peripheral", "child<container>"),
				   item("peripheral-anon", "child<container>"));
	else if (strcmp(path, PERIPHERAL "-anon") == 0 ||
		 (strcmp(path, PERIPHERAL) == 0 && !balloon))
		c->ret = json_array();
	else if (strcmp(path, PERIPHERAL) == 0)
		c->ret = json_pack("[o]", item(BALLOON_NAME, "child<virtio-balloon-mmio>"));
	else if (strcmp(path, PERIPHERAL "/" BALLOON_NAME) == 0 && balloon)
		c->ret = json_pack("[o,o]", item("guest-stats", "guest statistics"),
				   item("guest-stats-polling-interval", "int"));
	else
		return no_such(c, "path");
	return 0;
}

static json_t *stats_of(struct virtio_device *d)
{
	struct balloon_guest_stats s;
	json_t *stats = json_object();

	balloon_guest_stats(d, &s);
	for (u32 i = 0; i < BALLOON_STATS_MAX; i++) {
		/* What the guest did not say, and what JSON's integers do not hold, is -1. */
		bool known = s.value[i] <= INT64_MAX;

		json_object_set_new(stats, stat_names[i],
				    json_integer(known ? (json_int_t)s.value[i] : -1));
	}
	return json_pack("{s:I,s:o}", "last-update", (json_int_t)s.last_update_s, "stats", stats);
}

enum property {
	STATS,
	INTERVAL
};

/* Checks the arguments "path" and "property". */
static int find_property(struct monitor_call *c, enum property *ret)
{
	const char *path = json_string_value(json_object_get(c->args, "path"));
	const char *name = json_string_value(json_object_get(c->args, "property"));

	if (!path || !name)
		return monitor_fail(c, "\"path\" and \"property\" must be strings");
	if (strcmp(path, PERIPHERAL "/" BALLOON_NAME) != 0 || !balloon_of(c->vm))
		return no_such(c, "path");
	if (strcmp(name, "guest-stats") == 0)
		*ret = STATS;
	else if (strcmp(name, "guest-stats-polling-interval") == 0)
		*ret = INTERVAL;
	else
		return monitor_fail(c, "no such property");
	return 0;
}

int monitor_qom_get(struct monitor_call *c)
{
	enum property property;
	int r = find_property(c, &property);

	if (r < 0)
		return r;
	c->ret = property == STATS ? stats_of(balloon_of(c->vm))
				   : json_integer(balloon_stats_period(balloon_of(c->vm)));
	return 0;
}

int monitor_qom_set(struct monitor_call *c)
{
	const json_t *value = json_object_get(c->args, "value");
	enum property property;
	int r = find_property(c, &property);

	if (r < 0)
		return r;
	if (property != INTERVAL)
		return monitor_fail(c, "the property cannot be set");
	if (!json_is_integer(value) || json_integer_value(value) < 0 ||
	    json_integer_value(value) > STATS_SECONDS)
		return monitor_fail(c, "\"value\" must be 0 to %d seconds", STATS_SECONDS);
	r = balloon_set_stats_period(balloon_of(c->vm), (u32)json_integer_value(value));
	return r < 0 ? monitor_fail(c, "cannot poll: %s", strerror(-r)) : 0;
}

/* --- BALLOON_CHANGE ----------------------------------------------------------------------------
 */

/* At most one a second, as QEMU does; the last one of a burst is sent when its second is over. */
static int on_change_timer(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vm *vm = arg;

	monitor_event(vm->monitor, "BALLOON_CHANGE",
		      json_pack("{s:I}", "actual", (json_int_t)balloon_actual(balloon_of(vm))));
	return 0;
}

static void on_change(void *arg, u64 actual_bytes)
{
	struct vm *vm = arg;
	int enabled;

	if (sd_event_source_get_enabled(vm->balloon_timer, &enabled) >= 0 &&
	    enabled == SD_EVENT_OFF)
		sd_event_source_set_enabled(vm->balloon_timer, SD_EVENT_ONESHOT);
	else
		return;
	sd_event_source_set_time(vm->balloon_timer,
				 MAX(now_us(), vm->balloon_told_us + CHANGE_EVERY_US));
	vm->balloon_told_us = MAX(now_us(), vm->balloon_told_us + CHANGE_EVERY_US);
}

int monitor_watch_balloon(struct vm *vm)
{
	struct virtio_device *d = balloon_of(vm);
	struct balloon_callbacks cb = { .changed = on_change, .arg = vm };
	int r;

	if (!d)
		return 0;
	r = sd_event_add_time(vm->loop, &vm->balloon_timer, CLOCK_MONOTONIC, 0, 0, on_change_timer,
			      vm);
	if (r >= 0)
		r = sd_event_source_set_enabled(vm->balloon_timer, SD_EVENT_OFF);
	if (r >= 0)
		balloon_set_callbacks(d, &cb);
	return MIN(r, 0);
}
