/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "balloon/balloon_vm.h"
#include "balloon/controller.h"
#include "balloon/qmp_find.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/procfs.h"
#include "daemon/balloons.h"
#include "daemon/core.h"

/* What a stop waits for at most: QEMU answers within milliseconds, or not at all. */
#define GIVE_BACK_US 3000000
/* QEMU's command lines have some KiB. */
#define CMDLINE_MAX (256 * 1024)

/* Wishes of before the restart, until their VM is back. 0 bytes: none, but not all that was taken
 * is given back yet. */
struct saved {
	pid_t pid;
	u64 starttime, bytes, policy_bytes;
};

struct balloons {
	struct saved saved[CORE_VMS_MAX];
	u32 nr_saved;
	bool giving_back;
	bool changed; /* the policy's wishes, since they were saved */
};

struct balloon {
	struct vm *vm;
	char setting[sizeof(((struct config_vm *)0)->qmp)]; /* of "qmp", as it was set up by */
	const char *why; /* why there is no socket; NULL: there is */
	struct bvm *bvm;
	struct controller controller;
	struct controller_config cfg;
	struct controller_decision last;
	bool has_wish, restored;
	u64 wish_bytes;
	u64 policy_bytes;	 /* the policy's wish; 0: none */
	u64 spare_bytes;	 /* that the guest could spare, by what it said last */
	char said[QMP_TEXT_MAX]; /* the last trouble that was logged */
};

/* --- wishes that outlive the daemon ----------------------------------------------------------- */

static void saved_path(const struct core *c, char *buf, size_t size, const char *suffix)
{
	snprintf(buf, size, "%s/balloons%s", c->config.run_dir, suffix);
}

/* Has it taken memory that is not all given back? */
static bool is_ours(const struct balloon *b)
{
	return b->controller.target_bytes || b->restored;
}

/* What counts: the administrator's wish, else the policy's. 0: none. */
static u64 wished(const struct balloon *b)
{
	return b->has_wish ? b->wish_bytes : b->policy_bytes;
}

static void write_wish(FILE *f, const struct saved *s)
{
	fprintf(f, "%d %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", (int)s->pid, s->starttime, s->bytes,
		s->policy_bytes);
}

static int write_wishes(const struct core *c, FILE *f)
{
	const struct balloons *all = c->balloons;

	for (u32 i = 0; i < all->nr_saved; i++)
		write_wish(f, &all->saved[i]);
	for (const struct vm *vm = c->vms; vm; vm = vm->next) {
		const struct balloon *b = vm->balloon;

		if (b && (wished(b) || is_ours(b)))
			write_wish(f, &(struct saved){ vm->pid, vm->starttime, b->wish_bytes,
						       b->policy_bytes });
	}
	return ferror(f) ? -EIO : 0;
}

static void save_wishes(const struct core *c)
{
	char path[160], tmp[160];
	FILE *f;
	int r;

	saved_path(c, path, sizeof(path), "");
	saved_path(c, tmp, sizeof(tmp), ".new");
	f = fopen(tmp, "we");
	r = f ? write_wishes(c, f) : -errno;
	if (f && fclose(f) != 0 && r == 0)
		r = -errno;
	if (r == 0 && rename(tmp, path) < 0)
		r = -errno;
	if (r < 0)
		log_warn_limited("cannot write %s: %s (a restart will not know what was wished)",
				 path, strerror(-r));
}

static void load_wishes(struct core *c)
{
	struct balloons *all = c->balloons;
	char path[160], line[128];
	struct saved s;
	u64 starttime;
	FILE *f;
	int pid;

	saved_path(c, path, sizeof(path), "");
	f = fopen(path, "re");
	if (!f)
		return;
	while (all->nr_saved < ARRAY_SIZE(all->saved) && fgets(line, sizeof(line), f)) {
		s.policy_bytes = 0; /* an older version does not say */
		if (sscanf(line, "%d %" SCNu64 " %" SCNu64 " %" SCNu64, &pid, &s.starttime,
			   &s.bytes, &s.policy_bytes) < 3)
			continue;
		s.pid = pid;
		/* Gone, or its pid is another's by now. */
		if (proc_starttime(s.pid, &starttime) < 0 || starttime != s.starttime)
			continue;
		all->saved[all->nr_saved++] = s;
	}
	fclose(f);
}

static void restore_wish(struct balloon *b)
{
	struct balloons *all = b->vm->core->balloons;

	for (u32 i = 0; i < all->nr_saved; i++) {
		if (all->saved[i].pid != b->vm->pid || all->saved[i].starttime != b->vm->starttime)
			continue;
		b->restored = true;
		b->wish_bytes = all->saved[i].bytes;
		b->has_wish = b->wish_bytes != 0;
		/* With the policy off, what it took is given back. */
		if (b->vm->core->config.policy_mode == POLICY_ACT)
			b->policy_bytes = all->saved[i].policy_bytes;
		all->saved[i] = all->saved[--all->nr_saved];
		log_info("VM %s: balloon: the wish of before the restart stands (%llu MiB%s)",
			 b->vm->name, (unsigned long long)wished(b) >> 20,
			 wished(b) ? "" : ": off");
		return;
	}
}

/* --- carrying wishes out ---------------------------------------------------------------------- */

static void log_decision(const struct balloon *b, const struct bvm_info *i)
{
	switch (b->last.reason) {
	case CONTROLLER_PRESSURE:
	case CONTROLLER_REBOOT:
	case CONTROLLER_SILENT:
	case CONTROLLER_STUCK:
		if (!b->last.set)
			return;
		log_info_limited("VM %s: balloon: %s (it has %llu of %llu MiB)", b->vm->name,
				 controller_reason_text(b->last.reason),
				 (unsigned long long)i->actual_bytes >> 20,
				 (unsigned long long)i->ram_bytes >> 20);
		return;
	default:
		if (b->last.set)
			log_debug("VM %s: balloon: %s, target %llu MiB", b->vm->name,
				  controller_reason_name(b->last.reason),
				  (unsigned long long)b->last.target_bytes >> 20);
	}
}

/* Each trouble once, and not again while it lasts. */
static void log_trouble(struct balloon *b)
{
	const char *text = qmp_error_text(bvm_qmp(b->bvm));

	if (bvm_linked(b->bvm) || strcmp(text, b->said) == 0)
		return;
	snprintf(b->said, sizeof(b->said), "%s", text);
	if (*text)
		log_info_limited("VM %s: its QMP socket %s", b->vm->name, text);
}

static void decide(struct balloon *b)
{
	static const enum controller_run runs[] = {
		[BVM_RUN_UNKNOWN] = CONTROLLER_UNKNOWN,
		[BVM_RUNNING] = CONTROLLER_RUNNING,
		[BVM_PAUSED] = CONTROLLER_PAUSED,
		[BVM_MIGRATING] = CONTROLLER_MIGRATING,
	};
	const struct bvm_info *i = bvm_info(b->bvm);
	struct controller_input in = {
		.now_us = now_us(),
		.linked = bvm_linked(b->bvm),
		.has_actual = i->has_actual,
		.actual_bytes = i->actual_bytes,
		.ram_bytes = i->ram_bytes,
		.run = runs[i->run],
		.nr_resets = i->nr_resets,
		.stats = &i->stats,
		.has_psi = i->stats.has_psi,
		.psi_permille = i->stats.psi_permille,
		.has_wish = wished(b) != 0,
		.wish_bytes = wished(b),
	};
	bool ours = is_ours(b);

	/* The balloon is ours from before the restart; how far it was to go is not known. */
	if (b->restored && i->has_actual && i->ram_bytes) {
		b->controller.target_bytes = i->ram_bytes;
		b->restored = false;
	}
	controller_step(&b->controller, &b->cfg, &in, &b->last);
	log_decision(b, i);
	if (ours && !is_ours(b) && !wished(b))
		save_wishes(b->vm->core);
	b->spare_bytes = controller_headroom(&b->cfg, &in);
	bvm_hurry(b->bvm, wished(b) || is_ours(b));
	if (b->last.set)
		(void)bvm_set_target(b->bvm, b->last.target_bytes); /* asked for again if lost */
}

/* Has QEMU been told to give everything back? */
static bool given_back(const struct balloon *b)
{
	const struct bvm_info *i;

	/* Nothing was taken, or there is nobody to tell. */
	if (!b || !b->bvm || !bvm_linked(b->bvm) || !is_ours(b))
		return true;
	i = bvm_info(b->bvm);
	return i->target_bytes == i->ram_bytes;
}

/* Before a stop, whatever state the VM is in: one that is paused finds its memory there later. */
static void give_back(struct balloon *b)
{
	u64 ram = bvm_info(b->bvm)->ram_bytes;

	if (!given_back(b) && ram)
		(void)bvm_set_target(b->bvm, ram); /* or in the next round */
}

static bool all_given_back(const struct core *c)
{
	for (const struct vm *vm = c->vms; vm; vm = vm->next)
		if (!given_back(vm->balloon))
			return false;
	return true;
}

static void on_changed(void *arg)
{
	struct balloon *b = arg;
	struct core *c = b->vm->core;

	if (!c->balloons->giving_back) {
		decide(b);
		log_trouble(b);
		return;
	}
	give_back(b);
	if (all_given_back(c))
		sd_event_exit(c->event, 0);
}

static const struct bvm_ops bvm_ops = { .changed = on_changed };

/* --- the socket ------------------------------------------------------------------------------- */

static void let_go(struct balloon *b)
{
	bvm_free(b->bvm);
	b->bvm = NULL;
	b->said[0] = '\0';
}

static void connect_to(struct balloon *b, const char *path, bool visits)
{
	struct bvm_config cfg = BVM_CONFIG_DEFAULT;
	int r;

	if (!visits)
		cfg.visit_us = 0;
	r = bvm_new(b->vm->core->event, path, b->vm->pid, &cfg, &bvm_ops, b, &b->bvm);
	b->why = r < 0 ? "out of memory" : NULL;
}

/* By the VMM's command line. */
static void find_socket(struct balloon *b)
{
	char found[QMP_FIND_PATH_MAX], path[QMP_FIND_PATH_MAX + 32];
	char *args = malloc(CMDLINE_MAX);
	enum qmp_find_result found_it = QMP_FIND_NONE;
	size_t len = 0;
	int r = args ? proc_cmdline(b->vm->pid, args, CMDLINE_MAX, &len) : -ENOMEM;

	if (r == 0)
		found_it = qmp_find(args, len, found);
	free(args);
	if (found_it != QMP_FIND_FOUND) {
		b->why = r < 0 ? "its command line cannot be read" : qmp_find_text(found_it);
		return;
	}
	/* As the VMM sees it, which may be in a container. */
	snprintf(path, sizeof(path), "/proc/%d/%s%s", (int)b->vm->pid,
		 found[0] == '/' ? "root" : "cwd/", found);
	connect_to(b, path, true);
}

static void set_up(struct balloon *b, const char *setting)
{
	snprintf(b->setting, sizeof(b->setting), "%s", setting);
	if (strcmp(setting, CONFIG_QMP_OFF) == 0) {
		b->why = "qmp = off";
	} else if (strcmp(setting, CONFIG_QMP_AUTO) == 0) {
		find_socket(b);
	} else {
		/* A manager's socket is the manager's, also if we are told to use it. */
		connect_to(b, setting, qmp_find_is_foreign(setting));
	}
}

static const struct config_vm *config_of(const struct vm *vm)
{
	return config_vm_match(&vm->core->config, vm->name, vm->uuid, vm->uid);
}

void balloon_add(struct vm *vm)
{
	const struct config_vm *cv = config_of(vm);
	struct balloon *b = calloc(1, sizeof(*b));

	if (!b)
		return;
	b->vm = vm;
	b->cfg = controller_defaults;
	b->cfg.floor_bytes = cv->min_bytes;
	vm->balloon = b;
	restore_wish(b);
	set_up(b, cv->qmp);
}

void balloon_del(struct vm *vm)
{
	struct balloon *b = vm->balloon;

	if (!b)
		return;
	vm->balloon = NULL;
	let_go(b);
	free(b);
}

void balloon_reload(struct vm *vm)
{
	const struct config_vm *cv = config_of(vm);
	struct balloon *b = vm->balloon;

	if (!b)
		return;
	b->cfg.floor_bytes = cv->min_bytes;
	if (strcmp(b->setting, cv->qmp) == 0)
		return;
	if (b->controller.target_bytes)
		log_warn("VM %s: its balloon stays as it is until \"qmp\" leads to it again",
			 vm->name);
	let_go(b);
	set_up(b, cv->qmp);
}

int balloon_wish(struct vm *vm, bool on, u64 bytes, u64 *ret_bytes)
{
	struct balloon *b = vm->balloon;
	u64 ram;

	if (!b || (on && !b->bvm))
		return -ENODEV;
	ram = b->bvm ? bvm_info(b->bvm)->ram_bytes : 0;
	bytes = MAX(bytes, b->cfg.floor_bytes);
	if (ram)
		bytes = MIN(bytes, ram);
	b->has_wish = on;
	b->wish_bytes = on ? bytes : 0;
	*ret_bytes = b->wish_bytes;
	if (on)
		log_info("VM %s: balloon: it shall do with %llu MiB", vm->name,
			 (unsigned long long)bytes >> 20);
	else
		log_info("VM %s: balloon: off", vm->name);
	save_wishes(vm->core);
	if (b->bvm)
		bvm_poll(b->bvm);
	return 0;
}

void balloon_policy(struct vm *vm, s64 change_bytes)
{
	struct balloon *b = vm->balloon;
	const struct bvm_info *i;
	u64 to;

	if (!b || !b->bvm || b->has_wish || !bvm_linked(b->bvm))
		return;
	i = bvm_info(b->bvm);
	if (!i->has_actual || !i->ram_bytes || (!change_bytes && !b->policy_bytes))
		return;
	to = change_bytes < 0 && (u64)-change_bytes > i->actual_bytes
		     ? 0
		     : i->actual_bytes + (u64)change_bytes;
	/* What is being given back goes on; what is being taken has been enough. */
	if (!change_bytes)
		to = MAX(b->policy_bytes, to);
	to = MIN(MAX(to, b->cfg.floor_bytes), i->ram_bytes);
	if (to == i->ram_bytes)
		to = 0;
	if (to == b->policy_bytes)
		return;
	b->policy_bytes = to;
	vm->core->balloons->changed = true;
	bvm_poll(b->bvm);
}

void balloon_policy_end(struct vm *vm)
{
	struct balloon *b = vm->balloon;

	if (!b || !b->policy_bytes)
		return;
	b->policy_bytes = 0;
	vm->core->balloons->changed = true;
	if (b->bvm)
		bvm_poll(b->bvm);
}

void balloons_save(struct core *c)
{
	if (c->balloons->changed)
		save_wishes(c);
	c->balloons->changed = false;
}

/* --- what is known ---------------------------------------------------------------------------- */

static const char *state_of(const struct balloon *b)
{
	if (!b->bvm)
		return "none";
	if (bvm_linked(b->bvm))
		return bvm_info(b->bvm)->has_actual ? "up" : "no-device";
	if (qmp_error(bvm_qmp(b->bvm)) == -EBUSY)
		return "busy";
	return qmp_error(bvm_qmp(b->bvm)) ? "failed" : "connecting";
}

#define PUT(array, ...) snprintf(array, sizeof(array), __VA_ARGS__)

void balloon_view(const struct vm *vm, struct balloon_view *ret)
{
	const struct balloon *b = vm->balloon;
	const struct bvm_info *i;
	u64 age;

	memset(ret, 0, sizeof(*ret));
	if (!b)
		return;
	PUT(ret->state, "%s", state_of(b));
	ret->has_wish = wished(b) != 0;
	ret->policy_wish = !b->has_wish && b->policy_bytes;
	ret->wish_bytes = wished(b);
	ret->stuck = b->controller.stuck;
	ret->has_target = b->controller.target_bytes != 0;
	ret->target_bytes = b->controller.target_bytes;
	ret->floor_bytes = b->cfg.floor_bytes;
	ret->releases_total = b->controller.releases_total;
	ret->withdrawn_total = b->controller.withdrawn_total;
	if (!b->bvm) {
		PUT(ret->error, "%s", b->why ? b->why : "");
		return;
	}
	i = bvm_info(b->bvm);
	if (!bvm_linked(b->bvm)) {
		PUT(ret->error, "its QMP socket %s", qmp_error_text(bvm_qmp(b->bvm)));
		if (!qmp_error(bvm_qmp(b->bvm)))
			ret->error[0] = '\0';
		return;
	}
	ret->linked = true;
	if (!i->has_actual)
		PUT(ret->error, "%s", controller_reason_text(CONTROLLER_NO_BALLOON));
	else if (i->driver == BVM_DRIVER_NONE)
		PUT(ret->error, "its guest does not answer: it has no balloon driver, or none that "
				"tells statistics");
	else
		PUT(ret->error, "%s", bvm_target_error(b->bvm));
	ret->reason = b->last.reason;
	PUT(ret->run, "%s", bvm_run_name(i->run));
	PUT(ret->driver, "%s", bvm_driver_name(i->driver));
	ret->ram_bytes = i->ram_bytes;
	ret->has_actual = i->has_actual;
	ret->actual_bytes = i->actual_bytes;
	age = guest_stats_age_us(&i->stats, now_us());
	ret->has_stats = age != UINT64_MAX;
	ret->stats_age_us = age;
	ret->spare_bytes = b->spare_bytes;
	for (u32 s = 0; s < GUEST_NR_STATS; s++)
		if (guest_stats_has(&i->stats, s)) {
			ret->present |= 1U << s;
			ret->stats[s] = i->stats.last.value[s];
		}
}

/* --- life ------------------------------------------------------------------------------------- */

int balloons_start(struct core *c)
{
	c->balloons = calloc(1, sizeof(*c->balloons));
	if (!c->balloons)
		return -ENOMEM;
	load_wishes(c);
	return 0;
}

static int on_waited_enough(sd_event_source *s, uint64_t usec, void *arg)
{
	struct core *c = arg;

	log_warn("some guests could not be given all of their memory back");
	return sd_event_exit(c->event, 0);
}

void balloons_give_back(struct core *c)
{
	bool again = c->balloons->giving_back;

	c->balloons->giving_back = true;
	if (again || all_given_back(c) ||
	    sd_event_add_time(c->event, NULL, CLOCK_MONOTONIC, now_us() + GIVE_BACK_US, 0,
			      on_waited_enough, c) < 0) {
		sd_event_exit(c->event, 0);
		return;
	}
	for (struct vm *vm = c->vms; vm; vm = vm->next)
		if (!given_back(vm->balloon))
			bvm_poll(vm->balloon->bvm);
}

void balloons_stop(struct core *c)
{
	free(c->balloons);
	c->balloons = NULL;
}
