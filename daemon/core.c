/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/procfs.h"
#include "daemon/balloons.h"
#include "daemon/core.h"
#include "daemon/governor.h"

/* A VM may be larger than the host, within reason. */
#define VM_MAX_TIMES_HOST 4

static enum ksm_mode mode_of(enum share_mode share)
{
	return share == SHARE_ON ? KSM_ON : share == SHARE_ZERO_ONLY ? KSM_ZERO_ONLY : KSM_OFF;
}

static struct engine_config engine_config_of(const struct core *c)
{
	return (struct engine_config){
		.interval_us = c->config.scan_interval_us,
		.idle_interval_us = c->config.scan_idle_interval_us,
		.thp_split_min_saving = c->config.thp_split_min_saving,
		.store_max_bytes = c->config.store_max_bytes,
		.threads = c->config.scan_threads,
		/* At a small budget a request is small, so that the budget is kept second by
		   second. */
		.request_pages = MIN(MAX(host_cpu_permille(c) * 8, 128u), ENGINE_PAGES_MAX),
		.enabled = c->config.scan_enabled && !c->paused,
		.maps_limit =
			MIN(mapcount_budget(c->host.max_map_count), c->config.scan_max_mappings),
		.vm_max_bytes = (u64)sysconf(_SC_PHYS_PAGES) * PAGE_BYTES * VM_MAX_TIMES_HOST,
		.image_max_bytes = (u64)sysconf(_SC_PHYS_PAGES) * PAGE_BYTES,
		.pressure = c->host.pressure.on || governor_hurries(c),
	};
}

void core_apply(struct core *c)
{
	struct engine_config cfg = engine_config_of(c);

	engine_configure(c->engine, &cfg);
	c->pacing.permille = host_cpu_permille(c);
	log_set_level(c->config.log_debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
}

/* --- the registry
 * ---------------------------------------------------------------------------------------------- */

static void vm_free(struct vm *vm)
{
	balloon_del(vm);
	swapfile_forget(vm);
	sd_event_source_disable_unref(vm->exit_source);
	if (vm->pidfd >= 0)
		close(vm->pidfd);
	free(vm);
}

static void vm_unlink(struct vm *vm)
{
	struct vm **p = &vm->core->vms;

	while (*p != vm)
		p = &(*p)->next;
	*p = vm->next;
	vm->core->nr_vms--;
}

/* The process is gone: this, and nothing that an agent says, ends its references. */
static int on_exit_of_vm(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct vm *vm = arg;
	struct core *c = vm->core;

	if (vm->agent) {
		/* Its socket will tell that it is closed; the process cannot come back meanwhile.
		 */
		log_debug("VM %s: process %d is gone before its connection", vm->name,
			  (int)vm->pid);
	}
	log_info_limited("VM %s (pid %d) is gone", vm->name, (int)vm->pid);
	engine_vm_exit(vm->ksm);
	vm->ksm = NULL;
	c->gone_cpu_us += vm->cpu_us;
	c->gone_paging_cpu_us += vm->paging_cpu_us;
	vm_unlink(vm);
	agents_forget_vm(vm);
	vm_free(vm);
	(void)recovery_save(c); /* a process too many in it does no harm */
	core_kick(c);
	return 0;
}

static bool is_alive(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, 0) == 0;
}

/* The pidfd is of the process that connected, whatever became of its pid since. */
static int vm_watch(struct vm *vm, int pidfd)
{
	vm->pidfd = fcntl(pidfd, F_DUPFD_CLOEXEC, 0);
	if (vm->pidfd < 0)
		return -errno;
	if (!is_alive(vm->pidfd))
		return -ESRCH;
	return sd_event_add_io(vm->core->event, &vm->exit_source, vm->pidfd, EPOLLIN, on_exit_of_vm,
			       vm);
}

static void apply_vm_config(struct vm *vm)
{
	const struct config_vm *cv =
		config_vm_match(&vm->core->config, vm->name, vm->uuid, vm->uid);

	vm->share = cv->share;
	vm->max_bytes = cv->max_bytes;
	vm->shares = cv->shares;
	vm->priority = cv->priority;
	vm->may_balloon = cv->balloon;
	vm->may_page_out = cv->page_out;
	vm->may_swap = cv->swap;
	engine_vm_set_mode(vm->ksm, mode_of(cv->share));
	/* Pages that are merged stay in the store that they are in: a domain is for a VM's life. */
	if (strcmp(vm->domain, cv->domain) != 0)
		log_warn("VM %s stays in domain %s until it restarts (the configuration says %s)",
			 vm->name, vm->domain, cv->domain);
}

int core_vm_get(struct core *c, const struct peer_process *peer, const char *name, const char *uuid,
		struct vm **ret)
{
	const struct config_vm *cv = config_vm_match(&c->config, name, uuid, peer->uid);
	struct ksm_domain *d;
	const char *domain;
	struct vm *vm;
	u64 starttime;
	int r = proc_starttime(peer->pid, &starttime);

	if (r < 0)
		return r;
	for (vm = c->vms; vm; vm = vm->next) {
		if (vm->pid == peer->pid && vm->starttime == starttime) {
			*ret = vm;
			return 0;
		}
	}
	/* The state file must be able to name them all, those of a previous daemon twice. */
	if (c->nr_vms >= CORE_VMS_MAX)
		return -ENOSPC;
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return -ENOMEM;
	vm->core = c;
	vm->pid = peer->pid;
	vm->uid = peer->uid;
	vm->starttime = starttime;
	vm->pidfd = vm->swap_fd = -1;
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	snprintf(vm->uuid, sizeof(vm->uuid), "%s", uuid);
	domain = recovery_domain(c, vm->pid, starttime);
	snprintf(vm->domain, sizeof(vm->domain), "%s", domain ? domain : cv->domain);
	r = vm_watch(vm, peer->pidfd);
	if (r == 0)
		r = engine_domain(c->engine, vm->domain, &d);
	if (r == 0)
		r = engine_vm_add(c->engine, vm->pid, d, KSM_OFF, &vm->ksm);
	if (r < 0) {
		vm_free(vm);
		return r;
	}
	vm->next = c->vms;
	c->vms = vm;
	c->nr_vms++;
	/* Before it is given the store: a daemon after us must know of every process that may map
	 * it (invariant 4). */
	r = recovery_save(c);
	if (r < 0) {
		vm_unlink(vm);
		engine_vm_exit(vm->ksm);
		vm_free(vm);
		return r;
	}
	apply_vm_config(vm);
	balloon_add(vm);
	*ret = vm;
	return 0;
}

/* --- work ------------------------------------------------------------------------------------- */

u64 core_cpu_us(const struct core *c)
{
	u64 us = process_cpu_us() + c->gone_cpu_us;

	for (const struct vm *vm = c->vms; vm; vm = vm->next)
		us += vm->cpu_us;
	return us;
}

/* What the scan's budget is for. */
static u64 scan_cpu_us(const struct core *c)
{
	u64 paging = c->gone_paging_cpu_us + c->policy_cpu_us;

	for (const struct vm *vm = c->vms; vm; vm = vm->next)
		paging += vm->paging_cpu_us;
	return core_cpu_us(c) - paging;
}

static void arm_work(struct core *c, u64 at_us)
{
	sd_event_source_set_time(c->work_timer, at_us);
	sd_event_source_set_enabled(c->work_timer,
				    at_us == UINT64_MAX ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
}

void core_kick(struct core *c)
{
	u64 at;

	pacing_update(&c->pacing, now_us(), scan_cpu_us(c));
	if (sd_event_source_get_time(c->work_timer, &at) < 0 || at > pacing_ready_us(&c->pacing) ||
	    !sd_event_source_get_enabled(c->work_timer, NULL))
		arm_work(c, pacing_ready_us(&c->pacing));
}

static int on_work(sd_event_source *s, uint64_t usec, void *arg)
{
	struct core *c = arg;
	u64 slice, due;

	pacing_update(&c->pacing, now_us(), scan_cpu_us(c));
	slice = pacing_slice_us(&c->pacing);
	due = slice ? engine_run(c->engine, slice) : 0;
	pacing_update(&c->pacing, now_us(), scan_cpu_us(c));
	arm_work(c, MAX(due, pacing_ready_us(&c->pacing)));
	return 0;
}

/* --- what the control socket asks for
 * -------------------------------------------------------------------------- */

static struct vm *find_vm(struct core *c, const char *id)
{
	char *end;
	long pid = strtol(id, &end, 10);

	for (struct vm *vm = c->vms; vm; vm = vm->next)
		if (strcmp(vm->name, id) == 0 || (*vm->uuid && strcasecmp(vm->uuid, id) == 0))
			return vm;
	for (struct vm *vm = c->vms; vm; vm = vm->next)
		if (*id && !*end && vm->pid == pid)
			return vm;
	return NULL;
}

static int op_view(void *core, struct view *ret)
{
	return core_view(core, ret);
}

static int op_set_paused(void *core, bool paused)
{
	struct core *c = core;

	c->paused = paused;
	core_apply(c);
	log_info("merging %s", paused ? "paused" : "resumed");
	core_kick(c);
	return 0;
}

static int op_unmerge(void *core, const char *id, u64 *ret_pages)
{
	struct vm *vm = find_vm(core, id);
	int r;

	if (!vm)
		return -ENOENT;
	r = engine_unmerge(vm->ksm, ret_pages);
	core_kick(core);
	return r;
}

static int op_share(void *core, const char *id)
{
	struct vm *vm = find_vm(core, id);

	if (!vm)
		return -ENOENT;
	engine_share(vm->ksm);
	core_kick(core);
	return 0;
}

static int op_balloon(void *core, const char *id, bool on, u64 bytes, u64 *ret_bytes,
		      struct balloon_view *ret_view)
{
	struct vm *vm = find_vm(core, id);
	int r;

	if (!vm)
		return -ENOENT;
	r = balloon_wish(vm, on, bytes, ret_bytes);
	balloon_view(vm, ret_view);
	return r;
}

static int op_page_out(void *core, const char *id, u64 bytes, u64 *ret_pages)
{
	struct vm *vm = find_vm(core, id);

	if (!vm)
		return -ENOENT;
	if (!vm->agent)
		return -ENOTCONN;
	if (!agent_has_pager(vm))
		return -ENOTSUP;
	*ret_pages = engine_page_out(vm->ksm, bytes >> PAGE_SHIFT, false);
	core_kick(core);
	return 0;
}

static int op_swap_out(void *core, const char *id, u64 bytes, u64 *ret_bytes)
{
	struct vm *vm = find_vm(core, id);

	if (!vm)
		return -ENOENT;
	return vm->agent ? swapfile_out(vm, bytes, ret_bytes) : -ENOTCONN;
}

static int op_plan(void *core, struct view *ret_view, struct plan *ret)
{
	return governor_plan(core, ret_view, ret);
}

static const struct control_ops control_ops = {
	.view = op_view,
	.set_paused = op_set_paused,
	.unmerge = op_unmerge,
	.share = op_share,
	.balloon = op_balloon,
	.page_out = op_page_out,
	.swap_out = op_swap_out,
	.plan = op_plan,
};

/* --- life ------------------------------------------------------------------------------------- */

void core_reload(struct core *c)
{
	struct config_error err;
	struct config fresh;

	if (config_load(c->config_path, c->config_must_exist, &fresh, &err) < 0) {
		c->reload_errors++;
		log_err("%s", err.text);
		log_err("the configuration stays as it was");
		return;
	}
	c->reloads++;
	/* Sockets, threads and the store's size are of the start. */
	if (strcmp(fresh.run_dir, c->config.run_dir) != 0 ||
	    strcmp(fresh.agent_socket, c->config.agent_socket) != 0 ||
	    strcmp(fresh.control_socket, c->config.control_socket) != 0 ||
	    strcmp(fresh.metrics_address, c->config.metrics_address) != 0 ||
	    fresh.metrics_port != c->config.metrics_port ||
	    fresh.metrics_enabled != c->config.metrics_enabled ||
	    fresh.scan_threads != c->config.scan_threads ||
	    fresh.store_max_bytes != c->config.store_max_bytes)
		log_warn(
			"changed paths, metrics listener, threads or store size take effect at the next start");
	config_free(&c->config);
	c->config = fresh;
	host_reload(c);
	core_apply(c);
	for (struct vm *vm = c->vms; vm; vm = vm->next) {
		apply_vm_config(vm);
		balloon_reload(vm);
		swapfile_offer(vm);
	}
	governor_reload(c);
	log_info("configuration reloaded");
	core_kick(c);
}

static int take_lock(struct core *c)
{
	char path[160];

	if (mkdir(c->config.run_dir, 0755) < 0 && errno != EEXIST) {
		log_err("cannot make the run folder %s: %s ([daemon] run_dir = another)",
			c->config.run_dir, strerror(errno));
		return -errno;
	}
	snprintf(path, sizeof(path), "%s/lock", c->config.run_dir);
	c->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (c->lock_fd < 0) {
		log_err("cannot open %s: %s", path, strerror(errno));
		return -errno;
	}
	if (flock(c->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		log_err("another ballastd runs with run_dir = %s", c->config.run_dir);
		return -EBUSY;
	}
	return 0;
}

int core_start(struct core *c)
{
	struct engine_config ecfg;
	int r;

	c->started_us = now_us();
	c->lock_fd = c->agent_fd = -1;
	r = take_lock(c);
	if (r < 0)
		return r;
	r = host_start(c);
	if (r < 0)
		return r;
	ecfg = engine_config_of(c);
	r = engine_new(&ecfg, &agent_engine_ops, &c->engine);
	if (r < 0) {
		log_err("cannot start the engine: %s", strerror(-r));
		return r;
	}
	core_apply(c);
	r = sd_event_add_time(c->event, &c->work_timer, CLOCK_MONOTONIC, now_us(), 1000, on_work,
			      c);
	if (r < 0)
		return r;
	r = balloons_start(c);
	if (r < 0)
		return r;
	r = governor_start(c);
	if (r < 0)
		return r;
	r = recovery_start(c);
	if (r < 0)
		return r;
	r = recovery_save(c);
	if (r < 0)
		return r;
	r = control_new(c->event, c->config.control_socket, &control_ops, c, &c->control);
	if (r < 0) {
		log_err("cannot listen on %s: %s", c->config.control_socket, strerror(-r));
		return r;
	}
	r = publish_start(c);
	if (r < 0)
		return r;
	/* Last: from here on VMs come. */
	return agents_start(c);
}

void core_stop(struct core *c)
{
	agents_stop(c);
	control_free(c->control);
	governor_stop(c);
	publish_stop(c);
	host_stop(c);
	/* What is merged stays merged, and the next daemon finds it by the state file. */
	while (c->vms) {
		struct vm *vm = c->vms;

		vm_unlink(vm);
		vm_free(vm);
	}
	sd_event_source_disable_unref(c->work_timer);
	sd_event_source_disable_unref(c->recovery_timer);
	balloons_stop(c);
	recovery_free(c);
	engine_free(c->engine);
	config_free(&c->config);
	if (c->lock_fd >= 0)
		close(c->lock_fd);
}
