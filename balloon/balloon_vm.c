/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "balloon/balloon_vm.h"
#include "common/clock.h"

/* A walk is two questions more: each so many rounds while there seems to be no device. */
#define WALK_EVERY 5

struct bvm {
	struct qmp *qmp;
	sd_event_source *timer;
	struct bvm_config cfg;
	const struct bvm_ops *ops;
	void *arg;
	struct bvm_info info;
	bool hurry;
	bool linked;
	bool polling; /* the statistics' period was looked at since the device was found */
	u32 nr_open;  /* questions of this round without an answer */
	bool in_round;
	u32 rounds_to_walk;
	bool stopped; /* query-status says that the guest does not run */
	bool migrating;
	u64 running_since_us; /* and asked for statistics; 0: not */
	u64 target_asked;
	char target_error[QMP_TEXT_MAX];
};

static const char *const run_names[] = {
	[BVM_RUN_UNKNOWN] = "unknown",
	[BVM_RUNNING] = "running",
	[BVM_PAUSED] = "paused",
	[BVM_MIGRATING] = "migrating",
};

static const char *const driver_names[] = {
	[BVM_DRIVER_UNKNOWN] = "unknown",
	[BVM_DRIVER_ANSWERS] = "answers",
	[BVM_DRIVER_SILENT] = "silent",
	[BVM_DRIVER_NONE] = "none",
};

const char *bvm_run_name(enum bvm_run run)
{
	return run_names[run];
}

const char *bvm_driver_name(enum bvm_driver driver)
{
	return driver_names[driver];
}

static bool is_one_of(const char *word, const char *const *words, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (strcmp(words[i], word) == 0)
			return true;
	return false;
}

/* --- what is known ---------------------------------------------------------------------------- */

/* The states in which the guest of query-status does not run because of a migration. */
static void update_run(struct bvm *b)
{
	static const char *const migration[] = { "inmigrate", "finish-migrate", "postmigrate",
						 "colo" };
	struct bvm_info *i = &b->info;

	if (!i->run_text[0]) /* not told yet */
		i->run = BVM_RUN_UNKNOWN;
	else if (b->migrating || is_one_of(i->run_text, migration, ARRAY_SIZE(migration)))
		i->run = BVM_MIGRATING;
	else
		i->run = b->stopped ? BVM_PAUSED : BVM_RUNNING;
	if (b->stopped || !i->stats_period_s)
		b->running_since_us = 0;
	else if (!b->running_since_us)
		b->running_since_us = now_us();
}

static void forget_device(struct bvm *b)
{
	struct bvm_info *i = &b->info;

	i->has_device = b->polling = false;
	i->device[0] = '\0';
	i->stats_period_s = 0;
	b->running_since_us = 0;
	b->rounds_to_walk = 0;
}

static void judge_driver(struct bvm *b)
{
	struct bvm_info *i = &b->info;
	u64 now = now_us(), age = guest_stats_age_us(&i->stats, now);
	bool long_enough = b->running_since_us && now - b->running_since_us >= b->cfg.silent_us;

	if (!i->has_device || !i->stats_period_s)
		i->driver = BVM_DRIVER_UNKNOWN;
	else if (age <= b->cfg.silent_us)
		i->driver = BVM_DRIVER_ANSWERS;
	else if (long_enough) /* a guest that does not run cannot answer */
		i->driver = i->stats.taken_us ? BVM_DRIVER_SILENT : BVM_DRIVER_NONE;
	else if (!i->stats.taken_us)
		i->driver = BVM_DRIVER_UNKNOWN;
}

/* --- a round ---------------------------------------------------------------------------------- */

static void arm(struct bvm *b, u64 us)
{
	sd_event_source_set_time(b->timer, now_us() + us);
	sd_event_source_set_enabled(b->timer, SD_EVENT_ONESHOT);
}

static bool visits(const struct bvm *b)
{
	return b->cfg.visit_us != 0;
}

static u64 until_next_round(const struct bvm *b)
{
	if (b->hurry)
		return b->cfg.hurry_us;
	return visits(b) ? b->cfg.visit_us : b->cfg.poll_us;
}

static void end_round(struct bvm *b)
{
	b->in_round = false;
	b->linked = true;
	b->info.nr_rounds++;
	judge_driver(b);
	b->ops->changed(b->arg);
	/* That may have begun something: a target. */
	if (visits(b) && !b->nr_open)
		qmp_rest(b->qmp);
	arm(b, until_next_round(b));
}

static void ask(struct bvm *b, const char *command, json_t *args, qmp_done done)
{
	if (qmp_command(b->qmp, command, args, done, b) == 0)
		b->nr_open++;
}

/* Each callback of a command ends with this. Errors other than these are no answers: the connection
 * has ended, which on_down() tells. */
static void answered(struct bvm *b, int error)
{
	b->nr_open--;
	if (b->nr_open ||
	    (error && error != -ENODEV && error != -EOPNOTSUPP && error != -EREMOTEIO))
		return;
	if (b->in_round)
		end_round(b);
	else if (visits(b)) /* a target that was set after the round */
		qmp_rest(b->qmp);
}

static void on_status(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;
	const char *status = json_string_value(json_object_get(value, "status"));

	if (error == 0 && status) {
		b->stopped = !json_is_true(json_object_get(value, "running"));
		qmp_printable(b->info.run_text, sizeof(b->info.run_text), status);
		update_run(b);
	}
	answered(b, error);
}

static void set_migration(struct bvm *b, const char *status)
{
	static const char *const active[] = {
		"setup",
		"active",
		"postcopy-active",
		"postcopy-paused",
		"postcopy-recover",
		"postcopy-recover-setup",
		"pre-switchover",
		"device",
		"wait-unplug",
		"cancelling",
		"colo",
	};

	b->migrating = status && is_one_of(status, active, ARRAY_SIZE(active));
	update_run(b);
}

static void on_migrate(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;

	if (error == 0)
		set_migration(b, json_string_value(json_object_get(value, "status")));
	answered(b, error);
}

static void on_memory(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;
	u64 base, plugged = 0;

	if (error == 0 && qmp_u64(json_object_get(value, "base-memory"), &base) == 0) {
		(void)qmp_u64(json_object_get(value, "plugged-memory"), &plugged);
		if (base < 1ULL << 56 && plugged < 1ULL << 56)
			b->info.ram_bytes = base + plugged;
	}
	answered(b, error);
}

static void set_actual(struct bvm *b, const json_t *data)
{
	u64 actual;

	if (qmp_u64(json_object_get(data, "actual"), &actual) < 0 || actual >= 1ULL << 56)
		return;
	b->info.actual_bytes = actual;
	b->info.has_actual = true;
	/* Where the VMM does not tell, the largest that was seen is what there is. */
	b->info.ram_bytes = MAX(b->info.ram_bytes, actual);
}

static void on_balloon_size(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;

	if (error == 0) {
		set_actual(b, value);
	} else if (error == -ENODEV || error == -EOPNOTSUPP || error == -EREMOTEIO) {
		b->info.has_actual = false;
		if (error == -ENODEV)
			forget_device(b);
	}
	answered(b, error);
}

static void on_stats(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;
	struct guest_stats *s = &b->info.stats;
	u64 restarts = s->nr_restarts;
	struct guest_stats_reply reply;

	if (error == 0 && guest_stats_parse(value, &reply) == 0) {
		guest_stats_update(s, &reply, now_us(), clock_us(CLOCK_REALTIME) / 1000000);
		/* Between visits nobody tells us of a reset. */
		b->info.nr_resets += s->nr_restarts - restarts;
	} else if (error == -ENODEV || error == -EREMOTEIO) { /* unplugged */
		forget_device(b);
	}
	answered(b, error);
}

static json_t *property_args(const struct bvm *b, const char *property)
{
	return json_pack("{s:s,s:s}", "path", b->info.device, "property", property);
}

static void ask_stats(struct bvm *b)
{
	ask(b, "qom-get", property_args(b, "guest-stats"), on_stats);
}

/* --- the statistics' period ------------------------------------------------------------------- */

#define PERIOD_PROPERTY "guest-stats-polling-interval"

/* Read back: what counts is what the device does. */
static void on_period_checked(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;
	u64 period;

	if (error == 0 && qmp_u64(value, &period) == 0 && period <= UINT32_MAX) {
		b->info.stats_period_s = (u32)period;
		update_run(b);
	}
	answered(b, error);
}

static void on_period_set(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;

	ask(b, "qom-get", property_args(b, PERIOD_PROPERTY), on_period_checked);
	answered(b, error);
}

static void on_period(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;
	json_t *args;
	u64 period;

	if (error == 0 && qmp_u64(value, &period) == 0) {
		b->polling = true;
		/* Who wants them more often than we is left alone. */
		if (period && period <= b->cfg.stats_period_s) {
			b->info.stats_period_s = (u32)period;
			update_run(b);
		} else {
			args = property_args(b, PERIOD_PROPERTY);
			json_object_set_new(args, "value", json_integer(b->cfg.stats_period_s));
			ask(b, "qom-set", args, on_period_set);
		}
	}
	answered(b, error);
}

/* --- finding the device ----------------------------------------------------------------------- */

static const char *const walk_paths[] = { "/machine/peripheral", "/machine/peripheral-anon" };

static bool is_balloon(const char *type)
{
	static const char wanted[] = "child<virtio-balloon";

	return type && strncmp(type, wanted, sizeof(wanted) - 1) == 0;
}

/* A name becomes part of a path, and is shown. */
static bool is_name(const char *name)
{
	char printable[64];

	return name && *name && strlen(name) < sizeof(printable) && !strchr(name, '/') &&
	       strcmp(qmp_printable(printable, sizeof(printable), name), name) == 0;
}

static void take_walk(struct bvm *b, const char *path, const json_t *list)
{
	const json_t *entry;
	size_t i;

	if (b->info.has_device)
		return;
	json_array_foreach (list, i, entry) {
		const char *name = json_string_value(json_object_get(entry, "name"));

		if (!is_balloon(json_string_value(json_object_get(entry, "type"))) ||
		    !is_name(name))
			continue;
		snprintf(b->info.device, sizeof(b->info.device), "%s/%s", path, name);
		b->info.has_device = true;
		ask(b, "qom-get", property_args(b, PERIOD_PROPERTY), on_period);
		ask_stats(b);
		return;
	}
}

static void on_walk(void *arg, int error, json_t *value, const char *text)
{
	if (error == 0)
		take_walk(arg, walk_paths[0], value);
	answered(arg, error);
}

static void on_walk_anon(void *arg, int error, json_t *value, const char *text)
{
	if (error == 0)
		take_walk(arg, walk_paths[1], value);
	answered(arg, error);
}

static void ask_for_device(struct bvm *b)
{
	/* A size without a device known is a device that came late. */
	if (b->rounds_to_walk && !b->info.has_actual) {
		b->rounds_to_walk--;
		return;
	}
	b->rounds_to_walk = WALK_EVERY - 1;
	ask(b, "qom-list", json_pack("{s:s}", "path", walk_paths[0]), on_walk);
	ask(b, "qom-list", json_pack("{s:s}", "path", walk_paths[1]), on_walk_anon);
}

static void begin_round(struct bvm *b)
{
	if (b->in_round || qmp_state(b->qmp) != QMP_UP)
		return;
	b->in_round = true;
	ask(b, "query-status", NULL, on_status);
	ask(b, "query-migrate", NULL, on_migrate);
	ask(b, "query-memory-size-summary", NULL, on_memory);
	ask(b, "query-balloon", NULL, on_balloon_size);
	if (!b->info.has_device) {
		ask_for_device(b);
	} else {
		if (!b->polling)
			ask(b, "qom-get", property_args(b, PERIOD_PROPERTY), on_period);
		ask_stats(b);
	}
	/* Nothing could be asked: out of memory, or it does not read. */
	if (!b->nr_open) {
		b->in_round = false;
		arm(b, b->cfg.poll_us);
	}
}

/* --- the connection --------------------------------------------------------------------------- */

static void on_up(void *arg)
{
	begin_round(arg);
}

static void on_down(void *arg, int error, const char *why)
{
	struct bvm *b = arg;

	b->linked = b->in_round = false;
	b->info.run = BVM_RUN_UNKNOWN;
	b->info.run_text[0] = '\0';
	b->info.has_actual = false;
	b->info.driver = BVM_DRIVER_UNKNOWN;
	b->migrating = b->stopped = false;
	/* It may be another device, and another period, when we are back. */
	forget_device(b);
	b->ops->changed(b->arg);
}

/* What is not one event's business is the next round's: those that only say "look" are here too. */
static void on_event(void *arg, const char *name, json_t *data)
{
	static const char *const look[] = { "SHUTDOWN", "SUSPEND", "SUSPEND_DISK", "WAKEUP",
					    "GUEST_PANICKED" };
	struct bvm *b = arg;
	const char *path = json_string_value(json_object_get(data, "path"));

	if (strcmp(name, "BALLOON_CHANGE") == 0) {
		set_actual(b, data);
	} else if (strcmp(name, "STOP") == 0 || strcmp(name, "RESUME") == 0) {
		b->stopped = name[0] == 'S';
		snprintf(b->info.run_text, sizeof(b->info.run_text), "%s",
			 b->stopped ? "paused" : "running");
		update_run(b);
	} else if (strcmp(name, "MIGRATION") == 0) {
		set_migration(b, json_string_value(json_object_get(data, "status")));
	} else if (strcmp(name, "RESET") == 0) {
		b->info.nr_resets++;
		guest_stats_restart(&b->info.stats);
		b->running_since_us = 0;
		update_run(b);
	} else if (strcmp(name, "DEVICE_DELETED") == 0 && path &&
		   strcmp(path, b->info.device) == 0) {
		forget_device(b);
		b->info.has_actual = false;
	} else if (is_one_of(name, look, ARRAY_SIZE(look))) {
		arm(b, 0);
		return;
	} else {
		return;
	}
	judge_driver(b);
	b->ops->changed(b->arg);
}

static const struct qmp_ops qmp_ops = {
	.up = on_up,
	.down = on_down,
	.event = on_event,
};

static int on_timer(sd_event_source *s, uint64_t usec, void *arg)
{
	struct bvm *b = arg;

	if (qmp_state(b->qmp) == QMP_RESTING)
		qmp_start(b->qmp);
	begin_round(b);
	/* A round that has no answer yet goes on; the client's own time limit ends it. */
	return 0;
}

/* --- for the caller --------------------------------------------------------------------------- */

int bvm_new(sd_event *event, const char *path, pid_t peer_pid, const struct bvm_config *cfg,
	    const struct bvm_ops *ops, void *arg, struct bvm **ret)
{
	struct bvm *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	b->cfg = *cfg;
	b->ops = ops;
	b->arg = arg;
	r = qmp_new(event, path, peer_pid, &qmp_ops, b, &b->qmp);
	if (r < 0)
		goto fail;
	qmp_set_retry(b->qmp, cfg->retry_min_us, cfg->retry_max_us);
	r = sd_event_add_time(event, &b->timer, CLOCK_MONOTONIC, now_us(), 1000, on_timer, b);
	if (r < 0)
		goto fail;
	*ret = b;
	return 0;
fail:
	bvm_free(b);
	return r;
}

void bvm_free(struct bvm *b)
{
	if (!b)
		return;
	b->in_round = false;
	qmp_free(b->qmp);
	sd_event_source_disable_unref(b->timer);
	free(b);
}

const struct bvm_info *bvm_info(const struct bvm *b)
{
	return &b->info;
}

const struct qmp *bvm_qmp(const struct bvm *b)
{
	return b->qmp;
}

bool bvm_linked(const struct bvm *b)
{
	return b->linked;
}

static void on_target(void *arg, int error, json_t *value, const char *text)
{
	struct bvm *b = arg;

	if (error == 0)
		b->info.target_bytes = b->target_asked;
	snprintf(b->target_error, sizeof(b->target_error), "%s", error ? text : "");
	if (error == 0)
		b->ops->changed(b->arg);
	answered(b, error);
}

int bvm_set_target(struct bvm *b, u64 bytes)
{
	int r = qmp_command(b->qmp, "balloon", json_pack("{s:I}", "value", (json_int_t)bytes),
			    on_target, b);

	if (r == 0) {
		b->nr_open++;
		b->target_asked = bytes;
	}
	return r;
}

const char *bvm_target_error(const struct bvm *b)
{
	return b->target_error;
}

void bvm_hurry(struct bvm *b, bool hurry)
{
	if (b->hurry == hurry)
		return;
	b->hurry = hurry;
	if (hurry && !b->in_round)
		bvm_poll(b);
}

void bvm_poll(struct bvm *b)
{
	arm(b, 0);
}
