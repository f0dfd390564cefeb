/* SPDX-License-Identifier: MIT */
/*
 * What changes a guest's memory on the control socket: query-balloon, balloon, and of QEMU's object
 * tree the branches that lead to
 *
 *	/machine/peripheral/balloon0	guest-stats, guest-stats-polling-interval
 *	/machine/peripheral/vmem0	requested-size, size
 */
#include <errno.h>
#include <string.h>
#include "common/clock.h"
#include "vmm/monitor.h"
#include "vmm/virtio_balloon.h"
#include "vmm/virtio_mem.h"

#define PERIPHERAL	"/machine/peripheral"
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
	[BALLOON_STATS_STANDARD] = "stat-ballast-reason",
	[BALLOON_STATS_STANDARD + 1] = "stat-ballast-psi-total-us",
	[BALLOON_STATS_STANDARD + 2] = "stat-ballast-given-back",
};

static struct virtio_device *device_of(const struct vm *vm, u32 id)
{
	for (u32 i = 0; i < vm->nr_devices; i++) {
		if (vm->devices[i]->ops->id == id)
			return vm->devices[i];
	}
	return NULL;
}

static struct virtio_device *balloon_of(const struct vm *vm)
{
	return device_of(vm, VIRTIO_ID_BALLOON);
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

static json_t *get_stats(struct virtio_device *d)
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

static json_t *get_stats_period(struct virtio_device *d)
{
	return json_integer(balloon_stats_period(d));
}

static int set_stats_period(struct virtio_device *d, u64 v)
{
	return v > STATS_SECONDS ? -ERANGE : balloon_set_stats_period(d, (u32)v);
}

static json_t *get_plugged(struct virtio_device *d)
{
	struct virtio_mem_info info;

	virtio_mem_info(d, &info);
	return json_integer((json_int_t)info.plugged_bytes);
}

static json_t *get_requested(struct virtio_device *d)
{
	struct virtio_mem_info info;

	virtio_mem_info(d, &info);
	return json_integer((json_int_t)info.requested_bytes);
}

/* What can be asked of which device, in QEMU's words. */
static const struct property {
	u32 id; /* VIRTIO_ID_* */
	const char *name, *type;
	json_t *(*get)(struct virtio_device *d);
	int (*set)(struct virtio_device *d, u64 v); /* NULL: cannot be set */
} properties[] = {
	{ VIRTIO_ID_BALLOON, "guest-stats", "guest statistics", get_stats, NULL },
	{ VIRTIO_ID_BALLOON, "guest-stats-polling-interval", "int", get_stats_period,
	  set_stats_period },
	{ VIRTIO_ID_MEM, "requested-size", "size", get_requested, virtio_mem_request },
	{ VIRTIO_ID_MEM, "size", "size", get_plugged, NULL },
};

static const struct node {
	u32 id;
	const char *name, *type;
} nodes[] = {
	{ VIRTIO_ID_BALLOON, "balloon0", "child<virtio-balloon-mmio>" },
	{ VIRTIO_ID_MEM, "vmem0", "child<virtio-mem-mmio>" },
};

static int no_such(struct monitor_call *c, const char *what)
{
	c->class = "DeviceNotFound";
	monitor_fail(c, "no such %s", what);
	return -ENOENT;
}

/* The device at @path; NULL: none there. */
static struct virtio_device *device_at(const struct vm *vm, const char *path)
{
	static const char prefix[] = PERIPHERAL "/";

	if (strncmp(path, prefix, sizeof(prefix) - 1) != 0)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
		if (strcmp(path + sizeof(prefix) - 1, nodes[i].name) == 0)
			return device_of(vm, nodes[i].id);
	}
	return NULL;
}

static void append(json_t *list, const char *name, const char *type)
{
	json_array_append_new(list, json_pack("{s:s,s:s}", "name", name, "type", type));
}

int monitor_qom_list(struct monitor_call *c)
{
	const char *path = json_string_value(json_object_get(c->args, "path"));
	const struct virtio_device *d;

	if (!path)
		return monitor_fail(c, "\"path\" must be a string");
	d = device_at(c->vm, path);
	if (!d && strcmp(path, "/machine") != 0 && strcmp(path, PERIPHERAL) != 0 &&
	    strcmp(path, PERIPHERAL "-anon") != 0)
		return no_such(c, "path");
	c->ret = json_array();
	if (strcmp(path, "/machine") == 0) {
		append(c->ret, "peripheral", "child<container>");
		append(c->ret, "peripheral-anon", "child<container>");
	}
	for (size_t i = 0; strcmp(path, PERIPHERAL) == 0 && i < ARRAY_SIZE(nodes); i++) {
		if (device_of(c->vm, nodes[i].id))
			append(c->ret, nodes[i].name, nodes[i].type);
	}
	for (size_t i = 0; d && i < ARRAY_SIZE(properties); i++) {
		if (properties[i].id == d->ops->id)
			append(c->ret, properties[i].name, properties[i].type);
	}
	return 0;
}

/* By the arguments "path" and "property". */
static int find_property(struct monitor_call *c, struct virtio_device **ret,
			 const struct property **ret_property)
{
	const char *path = json_string_value(json_object_get(c->args, "path"));
	const char *name = json_string_value(json_object_get(c->args, "property"));

	if (!path || !name)
		return monitor_fail(c, "\"path\" and \"property\" must be strings");
	*ret = device_at(c->vm, path);
	if (!*ret)
		return no_such(c, "path");
	for (size_t i = 0; i < ARRAY_SIZE(properties); i++) {
		if (properties[i].id == (*ret)->ops->id && strcmp(properties[i].name, name) == 0) {
			*ret_property = &properties[i];
			return 0;
		}
	}
	return monitor_fail(c, "no such property");
}

int monitor_qom_get(struct monitor_call *c)
{
	const struct property *p;
	struct virtio_device *d;
	int r = find_property(c, &d, &p);

	if (r == 0)
		c->ret = p->get(d);
	return r;
}

int monitor_qom_set(struct monitor_call *c)
{
	const json_t *value = json_object_get(c->args, "value");
	const struct property *p;
	struct virtio_device *d;
	int r = find_property(c, &d, &p);

	if (r < 0)
		return r;
	if (!p->set)
		return monitor_fail(c, "the property cannot be set");
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return monitor_fail(c, "\"value\" must be an integer that is not negative");
	r = p->set(d, (u64)json_integer_value(value));
	return r < 0 ? monitor_fail(c, "the value is refused: %s", strerror(-r)) : 0;
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
