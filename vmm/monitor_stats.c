/* SPDX-License-Identifier: MIT */
/* x-ballast-stats: what the machine counts. Names are for tools: they stay. */
#include <stdio.h>
#include "vmm/monitor.h"
#include "vmm/vcpu.h"
#include "vmm/virtio_balloon.h"
#include "vmm/virtio_blk.h"
#include "vmm/virtio_net.h"

/* The names of KVM's exit reasons that can happen with an interrupt controller in the kernel. */
static const char *const exit_names[VM_EXIT_REASONS] = {
	[KVM_EXIT_UNKNOWN] = "unknown",
	[KVM_EXIT_IO] = "io",
	[KVM_EXIT_HLT] = "halt",
	[KVM_EXIT_MMIO] = "mmio",
	[KVM_EXIT_SHUTDOWN] = "shutdown",
	[KVM_EXIT_FAIL_ENTRY] = "fail-entry",
	[KVM_EXIT_INTR] = "signal",
	[KVM_EXIT_INTERNAL_ERROR] = "internal-error",
	[KVM_EXIT_SYSTEM_EVENT] = "system-event",
};

static json_t *exits_of(const struct vm *vm)
{
	json_t *exits = json_object();

	for (u32 reason = 0; reason < VM_EXIT_REASONS; reason++) {
		char number[16];
		u64 nr = 0;

		for (u32 i = 0; i < vm->nr_vcpus; i++)
			nr += vm->vcpus[i]->exits[reason];
		if (nr == 0)
			continue;
		snprintf(number, sizeof(number), "reason-%u", reason);
		json_object_set_new(exits, exit_names[reason] ? exit_names[reason] : number,
				    json_integer((json_int_t)nr));
	}
	return exits;
}

static json_t *latencies_of(const u64 *buckets)
{
	json_t *list = json_array();

	for (u32 i = 0; i < BH_LATENCY_BUCKETS; i++)
		json_array_append_new(list, json_integer((json_int_t)buckets[i]));
	return list;
}

/* A row of statistics: a name and a value. */
struct stat_row {
	const char *name;
	u64 value;
};

static void add_rows(json_t *to, const struct stat_row *rows, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		json_object_set_new(to, rows[i].name, json_integer((json_int_t)rows[i].value));
}

static json_t *agent_of(const struct vm *vm)
{
	struct bh_stats s;
	json_t *agent;

	if (!vm->mem.agent)
		return json_null();
	bh_stats(vm->mem.agent, &s);
	agent = json_pack("{s:b,s:o,s:o}", "connected", s.connected, "wait-latency-us-log2",
			  latencies_of(s.wait_latency), "fill-latency-us-log2",
			  latencies_of(s.fill_latency));
	{
		const struct stat_row rows[] = {
			{ "image-pages", s.image_pages },
			{ "merged-pages", s.merged_pages },
			{ "zeroed-pages", s.zeroed_pages },
			{ "unmerged-pages", s.unmerged_pages },
			{ "moved-back-pages", s.moved_back_pages },
			{ "pinned-pages", s.pinned_pages },
			{ "failed-pages", s.failed_pages },
			{ "wait-faults", s.wait_faults },
			{ "fill-faults", s.fill_faults },
			{ "disk-reads-noted", s.disk_reads_noted },
			{ "disk-reads-dropped", s.disk_reads_dropped },
			{ "cpu-us", s.cpu_us },
		};

		add_rows(agent, rows, ARRAY_SIZE(rows));
	}
	return agent;
}

static void add_block(json_t *to, struct virtio_device *d)
{
	struct virtio_blk_stats s;

	virtio_blk_stats(d, &s);
	add_rows(to,
		 (const struct stat_row[]){ { "read-requests", s.read_requests },
					    { "read-bytes", s.read_bytes },
					    { "write-requests", s.write_requests },
					    { "write-bytes", s.write_bytes },
					    { "flushes", s.flushes },
					    { "discards", s.discards },
					    { "errors", s.errors },
					    { "disk-read-pages", s.disk_read_pages } },
		 8);
}

static void add_net(json_t *to, struct virtio_device *d)
{
	struct virtio_net_stats s;

	virtio_net_stats(d, &s);
	add_rows(to,
		 (const struct stat_row[]){ { "rx-packets", s.rx_packets },
					    { "rx-bytes", s.rx_bytes },
					    { "tx-packets", s.tx_packets },
					    { "tx-bytes", s.tx_bytes },
					    { "rx-dropped", s.rx_dropped },
					    { "tx-dropped", s.tx_dropped } },
		 6);
}

static void add_balloon(json_t *to, struct virtio_device *d)
{
	struct balloon_counters s;

	balloon_counters(d, &s);
	add_rows(to,
		 (const struct stat_row[]){ { "inflated-pages", s.inflated_pages },
					    { "deflated-pages", s.deflated_pages },
					    { "reported-bytes", s.reported_bytes },
					    { "hinted-bytes", s.hinted_bytes },
					    { "discards", s.discards },
					    { "bad-frames", s.bad_frames },
					    { "failed-discards", s.failed_discards } },
		 7);
}

static json_t *devices_of(const struct vm *vm)
{
	static const struct {
		u32 id;
		void (*add)(json_t *to, struct virtio_device *d);
	} kinds[] = {
		{ VIRTIO_ID_BLOCK, add_block },
		{ VIRTIO_ID_NET, add_net },
		{ VIRTIO_ID_BALLOON, add_balloon },
	};
	json_t *devices = json_array();

	for (u32 i = 0; i < vm->nr_devices; i++) {
		struct virtio_device *d = vm->devices[i];
		json_t *o = json_pack("{s:i,s:s,s:i,s:I,s:I}", "index", (int)d->index, "type",
				      d->ops->name, "status", (int)d->status, "kicks",
				      (json_int_t)d->kicks, "interrupts",
				      (json_int_t)d->interrupts);

		for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
			if (kinds[k].id == d->ops->id)
				kinds[k].add(o, d);
		}
		json_array_append_new(devices, o);
	}
	return devices;
}

int monitor_stats(struct monitor_call *c)
{
	c->ret = json_pack("{s:o,s:o,s:o,s:I,s:I}", "exits", exits_of(c->vm), "agent",
			   agent_of(c->vm), "devices", devices_of(c->vm), "resets",
			   (json_int_t)c->vm->nr_resets, "start-us", (json_int_t)c->vm->start_us);
	return c->ret ? 0 : monitor_fail(c, "out of memory");
}
