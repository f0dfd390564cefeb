/* SPDX-License-Identifier: MIT */
/*
 * The view: filled here from the registry and the engine. The metrics thread must not look at
 * either, so once a second a copy is published for it by RCU: it reads the last one under
 * rcu_read_lock(), and never waits for the main thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <urcu.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/procfs.h"
#include "daemon/balloons.h"
#include "daemon/core.h"
#include "daemon/exporter.h"
#include "daemon/governor.h"
#include "ksmd/store.h"

#define PUBLISH_US 1000000
/* A mapping's kernel memory: a vm_area_struct (192), its part of a maple tree node (23), and once a
 * page in it broke an anon_vma and its chain (104, 64). Page tables are not in it: sharing adds
 * none (docs/ARCHITECTURE.md, "What sharing costs"). */
#define MAPPING_BYTES 384
/* The agent's books in the VMM: two bits a page, two bytes for 2 MiB (hypervisor-hooks/agent.h).
 * Not in it: two bytes a page where the VMM has pinned some, which it does not tell. */
#define AGENT_BYTES(configured) ((configured) / PAGE_BYTES / 4 + (configured) / CHUNK_BYTES * 2)
#define DOMAINS_MAX		256

struct published {
	struct rcu_head rcu;
	struct view view;
};

static void fill_vm(const struct vm *vm, struct vm_view *v)
{
	struct ksm_vm_stats s;

	u64 vmm_bytes;

	engine_vm_stats(vm->ksm, &s);
	vmm_bytes = s.mappings * MAPPING_BYTES + AGENT_BYTES(s.configured_pages << PAGE_SHIFT);
	*v = (struct vm_view){
		.pid = vm->pid,
		.connected = vm->agent != NULL,
		.unmerged = s.unmerged,
		.configured_bytes = s.configured_pages << PAGE_SHIFT,
		.shared_pages = s.shared_pages,
		.zero_pages = s.zero_pages,
		.broken_pages = s.broken_pages,
		.candidate_pages = s.candidate_pages,
		.mappings = s.mappings,
		.overhead_bytes = s.meta_bytes + vmm_bytes,
		.vmm_bytes = vmm_bytes,
		.map_count = vm->maps_known ? vm->maps_own + s.mappings : 0,
		.map_limit = mapcount_budget(vm->core->host.max_map_count),
		.scanned_pages_total = s.scanned_total,
		.hashed_pages_total = s.hashed_total,
		.merged_pages_total = s.merged_total,
		.zeroed_pages_total = s.zeroed_total,
		.broken_pages_total = s.broken_total,
		.discarded_pages_total = s.discarded_total,
		.unmerged_pages_total = s.unmerged_total,
		.failed_pages_total = s.failed_total,
		.pinned_pages_total = s.pinned_total,
		.repaired_pages_total = s.repaired_total,
		.image_pages_total = s.image_total,
		.share_on_read_pages_total = s.read_shared_total,
		.huge_splits_total = s.huge_split_total,
		.huge_pages = s.huge_chunks,
		.huge_saving_pages = s.huge_saving_pages,
		.passes_total = s.passes_total,
		.swap_asked_pages_total = s.swap_asked_total,
		.agent_cpu_us_total = vm->cpu_us,
		.max_bytes = vm->max_bytes,
		.shares = vm->shares,
		.priority = vm->priority,
		.may_balloon = vm->may_balloon,
		.may_page_out = vm->may_page_out,
		.may_swap = vm->may_swap,
		.has_pager = agent_has_pager(vm),
		.paged_pages = vm->pager.pages,
		.pool_bytes = vm->pager.pool_bytes,
		.has_swap_file = vm->swap.has_file,
		.swap_file_fails = vm->swap.error != 0,
		.swap_file_bytes = vm->swap.bytes,
		.swap_file_written_bytes_total = vm->swap.written_bytes,
		.swap_file_read_pages_total = vm->swap.read_pages,
		.swap_file_failures_total = vm->swap.failures,
		.latency = vm->latency,
		.paged_out_pages_total = vm->pager.out_total,
		.paged_in_pages_total = vm->pager.in_total,
		.working_set_bytes = working_set_bytes(&vm->working_set, vm->resident_bytes),
		.resident_bytes = vm->resident_bytes,
		.swapped_bytes = vm->swapped_bytes,
		.entitled_bytes = vm->entitled_bytes,
		.guest_faults_total = vm->guest_faults,
	};
	snprintf(v->name, sizeof(v->name), "%s", vm->name);
	snprintf(v->uuid, sizeof(v->uuid), "%s", vm->uuid);
	snprintf(v->domain, sizeof(v->domain), "%s", vm->domain);
	snprintf(v->share, sizeof(v->share), "%s", share_mode_name(vm->share));
	balloon_view(vm, &v->balloon);
}

/* What the store's file takes by the kernel's word; what is in its books if that cannot be had. */
static u64 store_memory_bytes(struct core *c, const struct ksm_domain_stats *s)
{
	struct ksm_domain *d;
	struct stat st;

	if (engine_domain(c->engine, s->name, &d) < 0 ||
	    fstat(store_fd_readonly(domain_store(d)), &st) < 0)
		return s->store_pages * PAGE_BYTES;
	return (u64)st.st_blocks * 512;
}

static int fill_domains(struct core *c, struct view *v)
{
	struct ksm_domain_stats stats[DOMAINS_MAX];

	v->nr_domains = engine_domains(c->engine, stats, DOMAINS_MAX);
	v->domains = calloc(v->nr_domains + 1, sizeof(v->domains[0]));
	if (!v->domains)
		return -ENOMEM;
	for (u32 i = 0; i < v->nr_domains; i++) {
		struct domain_view *d = &v->domains[i];

		snprintf(d->name, sizeof(d->name), "%s", stats[i].name);
		d->store_pages = stats[i].store_pages;
		d->store_refs = stats[i].store_refs;
		d->index_entries = stats[i].index_entries;
		d->index_bytes = stats[i].index_bytes;
		d->store_meta_bytes = stats[i].store_meta_bytes;
		d->store_memory_bytes = store_memory_bytes(c, &stats[i]);
	}
	return 0;
}

int core_view(struct core *c, struct view *ret)
{
	const struct host *h = &c->host;
	struct view v = { 0 };
	u64 rss = 0;
	u32 i = 0;

	v.vms = calloc(c->nr_vms + 1, sizeof(v.vms[0]));
	if (!v.vms || fill_domains(c, &v) < 0) {
		view_free(&v);
		return -ENOMEM;
	}
	for (const struct vm *vm = c->vms; vm; vm = vm->next)
		fill_vm(vm, &v.vms[i++]);
	v.nr_vms = i;
	/* On failure it stays 0; the rest of the view is still right. */
	(void)proc_status_bytes(getpid(), "VmRSS", &rss);
	v.host = (struct host_view){
		.scanning = c->config.scan_enabled && !c->paused,
		.uptime_us = now_us() - c->started_us,
		.cpu_us_total = core_cpu_us(c),
		.daemon_rss_bytes = rss,
		.scan_cpu_permille = host_cpu_permille(c),
		.max_map_count = h->max_map_count,
		.max_map_count_original = h->map_record.raised == h->max_map_count
						  ? h->map_record.original
						  : h->max_map_count,
		.pressure = h->pressure.on,
		.has_pressure_some = h->sample.has_some,
		.pressure_some_permille = h->sample.some_permille,
		.memory_bytes = h->sample.total_bytes,
		.available_bytes = h->sample.available_bytes,
		.swap_free_bytes = h->sample.swap_free_bytes,
		.policy = governor_view(c),
		.reloads_total = c->reloads,
		.reload_errors_total = c->reload_errors,
		.protocol_errors_total = c->protocol_errors,
		.blocked_readers_total = engine_given_up(c->engine),
	};
	*ret = v;
	return 0;
}

static void published_free(struct rcu_head *head)
{
	struct published *p = caa_container_of(head, struct published, rcu);

	view_free(&p->view);
	free(p);
}

static void publish(struct core *c)
{
	struct published *p = calloc(1, sizeof(*p)), *old = c->published;

	if (!p)
		return;
	if (core_view(c, &p->view) < 0) {
		free(p);
		return;
	}
	rcu_assign_pointer(c->published, p);
	if (old)
		call_rcu(&old->rcu, published_free);
}

/* On the HTTP thread. */
static void collect(struct mx_writer *w, void *arg)
{
	struct core *c = arg;
	const struct published *p;

	rcu_read_lock();
	p = rcu_dereference(c->published);
	if (p)
		exporter_write(w, &p->view);
	rcu_read_unlock();
}

static int on_publish_timer(sd_event_source *s, uint64_t usec, void *arg)
{
	struct core *c = arg;

	publish(c);
	sd_event_source_set_time(s, now_us() + PUBLISH_US);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

int publish_start(struct core *c)
{
	int r;

	if (!c->config.metrics_enabled)
		return 0;
	publish(c);
	r = sd_event_add_time(c->event, &c->publish_timer, CLOCK_MONOTONIC, now_us() + PUBLISH_US,
			      0, on_publish_timer, c);
	if (r < 0)
		return r;
	r = mx_http_start(c->config.metrics_address, c->config.metrics_port, collect, c, &c->http);
	if (r < 0) {
		log_err("metrics: cannot listen on %s port %u: %s ([metrics] port = another, or enabled = off)",
			c->config.metrics_address, c->config.metrics_port, strerror(-r));
		return r;
	}
	log_info("metrics: http://%s:%u/metrics", c->config.metrics_address, mx_http_port(c->http));
	return 0;
}

void publish_stop(struct core *c)
{
	mx_http_stop(c->http);
	c->http = NULL;
	c->publish_timer = sd_event_source_disable_unref(c->publish_timer);
	if (c->published) {
		struct published *p = c->published;

		/* The only reader has ended. */
		c->published = NULL;
		rcu_barrier();
		published_free(&p->rcu);
	}
}
