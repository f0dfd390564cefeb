/* SPDX-License-Identifier: MIT */
/*
 * The host, looked at once a second: is it short of memory (pressure.h), what is vm.max_map_count
 * now (mapcount.h), how many mappings have the VMMs? Decisions are made there; here they are
 * carried out and logged.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "common/clock.h"
#include "common/log.h"
#include "daemon/core.h"
#include "daemon/governor.h"

#define MAX_MAP_COUNT_PATH "/proc/sys/vm/max_map_count"
#define PSI_PATH	   "/proc/pressure/memory"
#define MEMINFO_PATH	   "/proc/meminfo"

#define LOOK_US		   1000000
/* Mappings are counted for the eye: each VM so often, ever more rarely while there is nothing new,
 * and so much of the kernel's text a second. The kernel writes 60,000 lines (3 MB) in 32 ms, so
 * this is 1.4 ms a second at most. */
#define COUNT_VM_US	 10000000
#define COUNT_VM_MOST_US (64 * COUNT_VM_US)
#define COUNT_NEWS	 256
#define COUNT_BYTES	 (128 * 1024)
#define COUNT_ALL_NOW	 UINT64_MAX

u32 host_cpu_permille(const struct core *c)
{
	u32 usual = c->config.scan_cpu_permille;

	return c->host.pressure.on || governor_hurries(c)
		       ? MAX(usual, c->config.scan_cpu_pressure_permille)
		       : usual;
}

/* --- vm.max_map_count ------------------------------------------------------------------------- */

static void record_path(const struct core *c, char *buf, size_t size)
{
	snprintf(buf, size, "%s/max_map_count", c->config.run_dir);
}

static u64 read_limit(void)
{
	u64 limit;

	return mapcount_read(MAX_MAP_COUNT_PATH, &limit) < 0 ? MAPCOUNT_KERNEL_DEFAULT : limit;
}

/* Raises the limit if that is wanted and allowed. Whatever goes wrong, there is a limit to work
 * with. */
static void raise_limit(struct core *c)
{
	struct map_record *rec = &c->host.map_record, old = *rec;
	u64 now = read_limit(), value = mapcount_at_start(c->config.max_map_count, now, rec);
	char path[160];
	int r = 0;

	c->host.max_map_count_wanted = c->config.max_map_count;
	record_path(c, path, sizeof(path));
	if (rec->original != old.original || rec->raised != old.raised)
		r = mapcount_record_save(path, rec);
	if (r == 0 && value)
		r = mapcount_write(MAX_MAP_COUNT_PATH, value);
	c->host.max_map_count = read_limit();
	if (r == 0) {
		if (value)
			log_info("vm.max_map_count: %llu, was %llu, until the daemon stops",
				 (unsigned long long)value, (unsigned long long)rec->original);
		return;
	}
	*rec = now == old.raised ? old : (struct map_record){ 0 };
	(void)mapcount_record_save(path, rec);
	if (value)
		log_info(
			"vm.max_map_count stays %llu (%s): sharing is bounded by that ([scan] max_map_count = off if that is meant)",
			(unsigned long long)c->host.max_map_count, strerror(-r));
}

static void load_record(struct core *c)
{
	char path[160];
	int r;

	record_path(c, path, sizeof(path));
	r = mapcount_record_load(path, &c->host.map_record);
	if (r < 0)
		log_warn("cannot read %s: %s", path, strerror(-r));
}

/* Mappings of a process, all at once; 0 if it is gone or cannot be looked at. */
static u64 count_now(pid_t pid)
{
	struct map_counter m;
	u64 all = COUNT_ALL_NOW;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	return map_counter_start(&m, path) == 0 && map_counter_step(&m, &all) == 1 ? m.lines : 0;
}

/* Of the VMM that has most; or of one that has more than @enough, which is enough to know. */
static u64 most_mappings(const struct core *c, u64 enough)
{
	u64 most = 0;
	u32 at = 0;
	pid_t pid;

	for (const struct vm *vm = c->vms; vm && most <= enough; vm = vm->next)
		most = MAX(most, count_now(vm->pid));
	while (most <= enough && (pid = recovery_next_pid(c, &at)))
		most = MAX(most, count_now(pid));
	return most;
}

static void restore_limit(struct core *c)
{
	struct map_record *rec = &c->host.map_record;
	u64 now = read_limit();
	u64 most = rec->raised ? most_mappings(c, mapcount_budget(rec->original)) : 0;
	char path[160];
	int r;

	switch (mapcount_at_stop(now, rec, most)) {
	case MAP_STOP_NOTHING:
		return;
	case MAP_STOP_IN_USE:
		log_info(
			"vm.max_map_count stays %llu: a VM has %llu mappings, too many for the %llu it was; a later stop puts it back",
			(unsigned long long)now, (unsigned long long)most,
			(unsigned long long)rec->original);
		return;
	case MAP_STOP_FOREIGN:
		log_info(
			"vm.max_map_count is %llu and not the %llu that it was raised to: left alone",
			(unsigned long long)now, (unsigned long long)rec->raised);
		break;
	case MAP_STOP_RESTORE:
		r = mapcount_write(MAX_MAP_COUNT_PATH, rec->original);
		if (r < 0) {
			log_warn("vm.max_map_count stays %llu, cannot be put back to %llu: %s",
				 (unsigned long long)now, (unsigned long long)rec->original,
				 strerror(-r));
			return;
		}
		log_info("vm.max_map_count: %llu again", (unsigned long long)rec->original);
		break;
	}
	*rec = (struct map_record){ 0 };
	record_path(c, path, sizeof(path));
	(void)mapcount_record_save(path, rec);
}

/* --- once a second ---------------------------------------------------------------------------- */

static struct vm *vm_of(struct core *c, pid_t pid)
{
	struct vm *vm = c->vms;

	while (vm && vm->pid != pid)
		vm = vm->next;
	return vm;
}

/* The VM that waits for longest. */
static struct vm *next_to_count(struct core *c, u64 now)
{
	struct vm *next = NULL;

	for (struct vm *vm = c->vms; vm; vm = vm->next)
		if (vm->maps_due_us <= now && (!next || vm->maps_due_us < next->maps_due_us))
			next = vm;
	return next;
}

/* A count may be some minutes old; what sharing adds is known at any time, so only the rest is
 * kept.
 */
static void note_count(struct vm *vm, u64 lines)
{
	struct ksm_vm_stats s;
	u64 own;
	bool news;

	engine_vm_stats(vm->ksm, &s);
	own = lines > s.mappings ? lines - s.mappings : 0;
	news = !vm->maps_known || own > vm->maps_own + COUNT_NEWS ||
	       vm->maps_own > own + COUNT_NEWS;
	vm->maps_interval_us = news ? COUNT_VM_US
				    : MIN(2 * vm->maps_interval_us, (u64)COUNT_VM_MOST_US);
	vm->maps_due_us = now_us() + vm->maps_interval_us;
	vm->maps_own = own;
	vm->maps_known = true;
}

static void count_mappings(struct core *c)
{
	struct host *h = &c->host;
	u64 bytes = COUNT_BYTES, now = now_us();

	while (bytes) {
		struct vm *vm;
		char path[32];
		int r = 0;

		if (h->counter.fd < 0) {
			vm = next_to_count(c, now);
			if (!vm)
				return;
			/* Unless it is counted before. */
			vm->maps_due_us = now + COUNT_VM_US;
			h->counting = vm->pid;
			snprintf(path, sizeof(path), "/proc/%d/maps", (int)vm->pid);
			r = map_counter_start(&h->counter, path);
		}
		if (r == 0)
			r = map_counter_step(&h->counter, &bytes);
		vm = vm_of(c, h->counting);
		if (r == 1 && vm)
			note_count(vm, h->counter.lines);
		/* Its pid may be another's by now: then the next look puts it right. */
	}
}

static void look_at_pressure(struct core *c)
{
	const struct pressure_limits limits = {
		.some_permille = c->config.pressure_some_permille,
		.available_permille = c->config.pressure_available_permille,
	};
	struct host *h = &c->host;

	/* What cannot be read changes nothing. */
	if (pressure_read(PSI_PATH, MEMINFO_PATH, &h->sample) < 0 ||
	    !pressure_update(&h->pressure, &limits, &h->sample, now_us()))
		return;
	core_apply(c);
	core_kick(c);
	log_info_limited(
		"host memory: %s (%llu of %llu MiB available, tasks wait %u.%u%%): %u.%u%% of a core",
		h->pressure.on ? "short" : "enough again",
		(unsigned long long)h->sample.available_bytes >> 20,
		(unsigned long long)h->sample.total_bytes >> 20, h->sample.some_permille / 10,
		h->sample.some_permille % 10, host_cpu_permille(c) / 10, host_cpu_permille(c) % 10);
}

void host_refresh(struct core *c)
{
	/* What cannot be read stays as it was. */
	(void)pressure_read(PSI_PATH, MEMINFO_PATH, &c->host.sample);
}

static int on_look(sd_event_source *s, uint64_t usec, void *arg)
{
	struct core *c = arg;
	u64 limit = read_limit();

	if (limit != c->host.max_map_count) {
		log_info_limited("vm.max_map_count was changed from %llu to %llu",
				 (unsigned long long)c->host.max_map_count,
				 (unsigned long long)limit);
		c->host.max_map_count = limit;
		core_apply(c);
	}
	look_at_pressure(c);
	count_mappings(c);
	sd_event_source_set_time(s, now_us() + LOOK_US);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

int host_start(struct core *c)
{
	c->host.counter.fd = -1;
	load_record(c);
	raise_limit(c);
	return sd_event_add_time(c->event, &c->host.timer, CLOCK_MONOTONIC, now_us(), 0, on_look,
				 c);
}

/* Another value in the configuration is somebody's wish; a value that somebody set in the kernel
 * meanwhile is not overruled by a reload that is about something else. */
void host_reload(struct core *c)
{
	if (c->config.max_map_count != c->host.max_map_count_wanted)
		raise_limit(c);
}

void host_stop(struct core *c)
{
	/* Not started: another daemon's limit, perhaps. */
	if (!c->host.max_map_count)
		return;
	c->host.timer = sd_event_source_disable_unref(c->host.timer);
	map_counter_end(&c->host.counter);
	restore_limit(c);
	c->host.max_map_count = 0;
}
