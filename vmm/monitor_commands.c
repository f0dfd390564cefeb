/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include "common/version.h"
#include "vmm/monitor.h"
#include "vmm/snapshot.h"
#include "vmm/virtio_mem.h"

static int cmd_stop(struct monitor_call *c)
{
	return vm_pause(c->vm) < 0 ? monitor_fail(c, "the VM does not run") : 0;
}

static int cmd_cont(struct monitor_call *c)
{
	return vm_resume(c->vm) < 0 ? monitor_fail(c, "the VM has ended") : 0;
}

static int cmd_quit(struct monitor_call *c)
{
	vm_end(c->vm, VM_END_POWEROFF, "host-qmp-quit");
	return 0;
}

static int cmd_system_powerdown(struct monitor_call *c)
{
	pm_power_button(&c->vm->pm);
	monitor_event(c->vm->monitor, "POWERDOWN", NULL);
	return 0;
}

static int cmd_system_reset(struct monitor_call *c)
{
	vm_end(c->vm, VM_END_REBOOT, "host-qmp-system-reset");
	return 0;
}

static const char *status_name(const struct vm *vm)
{
	static const char *const names[] = {
		[VM_PRELAUNCH] = "prelaunch",
		[VM_RUNNING] = "running",
		[VM_PAUSED] = "paused",
		[VM_ENDED] = "shutdown",
	};

	return names[vm->state];
}

static int cmd_query_status(struct monitor_call *c)
{
	c->ret = json_pack("{s:b,s:b,s:s}", "running", c->vm->state == VM_RUNNING, "singlestep", 0,
			   "status", status_name(c->vm));
	return 0;
}

static int cmd_query_version(struct monitor_call *c)
{
	c->ret = json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "major", 0, "minor", 1, "micro", 0,
			   "package", "ballast-vmm " BALLAST_VERSION);
	return 0;
}

static int cmd_query_commands(struct monitor_call *c)
{
	c->ret = json_array();
	json_array_append_new(c->ret, json_pack("{s:s}", "name", "qmp_capabilities"));
	for (const struct monitor_command *cmd = monitor_commands; cmd->name; cmd++)
		json_array_append_new(c->ret, json_pack("{s:s}", "name", cmd->name));
	return 0;
}

static int cmd_query_name(struct monitor_call *c)
{
	/* A name from the command line need not be UTF-8; then there is none here. */
	json_t *name = json_string(c->vm->name);

	c->ret = json_object();
	if (name)
		json_object_set_new(c->ret, "name", name);
	return 0;
}

static int cmd_query_uuid(struct monitor_call *c)
{
	c->ret = json_pack("{s:s}", "UUID",
			   c->vm->cfg->uuid ? c->vm->cfg->uuid
					    : "00000000-0000-0000-0000-000000000000");
	return 0;
}

static int cmd_query_kvm(struct monitor_call *c)
{
	c->ret = json_pack("{s:b,s:b}", "enabled", 1, "present", 1);
	return 0;
}

static int cmd_query_memory(struct monitor_call *c)
{
	struct virtio_mem_info info = { 0 };

	for (u32 i = 0; i < c->vm->nr_devices; i++) {
		if (c->vm->devices[i]->ops->id == VIRTIO_ID_MEM)
			virtio_mem_info(c->vm->devices[i], &info);
	}
	c->ret = json_pack("{s:I,s:I}", "base-memory", (json_int_t)c->vm->mem.ram_bytes,
			   "plugged-memory", (json_int_t)info.plugged_bytes);
	return 0;
}

/* There is no migration; QEMU answers so while there was none. */
static int cmd_query_migrate(struct monitor_call *c)
{
	return 0;
}

/* {"directory": path of a folder that is made} */
static int cmd_snapshot_save(struct monitor_call *c)
{
	const char *dir = json_string_value(json_object_get(c->args, "directory"));
	bool runs = c->vm->state == VM_RUNNING;
	char error[VM_ERROR_MAX];
	int r;

	if (!dir || dir[0] != '/')
		return monitor_fail(c, "\"directory\" must be an absolute path");
	if (vm_pause(c->vm) < 0)
		return monitor_fail(c, "the VM has ended");
	r = snapshot_save(c->vm, dir, error);
	if (runs)
		vm_resume(c->vm);
	return r < 0 ? monitor_fail(c, "%s", error) : 0;
}

const struct monitor_command monitor_commands[] = {
	{ "balloon", monitor_balloon },
	{ "cont", cmd_cont },
	{ "qom-get", monitor_qom_get },
	{ "qom-list", monitor_qom_list },
	{ "qom-set", monitor_qom_set },
	{ "query-balloon", monitor_query_balloon },
	{ "query-commands", cmd_query_commands },
	{ "query-kvm", cmd_query_kvm },
	{ "query-memory-size-summary", cmd_query_memory },
	{ "query-migrate", cmd_query_migrate },
	{ "query-name", cmd_query_name },
	{ "query-status", cmd_query_status },
	{ "query-uuid", cmd_query_uuid },
	{ "query-version", cmd_query_version },
	{ "quit", cmd_quit },
	{ "stop", cmd_stop },
	{ "system_powerdown", cmd_system_powerdown },
	{ "system_reset", cmd_system_reset },
	{ "x-ballast-snapshot-save", cmd_snapshot_save },
	{ "x-ballast-stats", monitor_stats },
	{ NULL, NULL },
};
