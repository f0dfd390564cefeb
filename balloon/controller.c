/* SPDX-License-Identifier: MIT */
#include "balloon/controller.h"

const struct controller_config controller_defaults = {
	/* What current distributions ask for at least; the configuration says better. */
	.floor_bytes = MIB(256),
	/* A guest frees 64 MiB within a second even where it must write them to a slow disk; a
	 * guest of 64 GiB gives 1 GiB in the same time. */
	.step_bytes = MIB(64),
	.step_permille = 16,
	.interval_us = 1000000,
	/* Two huge pages: less is noise of drivers that work in chunks. */
	.deadband_bytes = MIB(4),
	/* Five periods of statistics: a busy guest misses one or two. */
	.stale_us = 10000000,
	/* By then it is not busy but gone, and whether it can spare the memory is a guess. */
	.silent_us = 60000000,
	/* Stock drivers retry five times a second; one that moves nothing in so long will not. */
	.progress_us = 20000000,
	/* A driver may be loaded, an upgrade finish: worth another look, not worth a nuisance. */
	.stuck_us = 600000000,
	/* A load that came once comes again within the minute, more often than not. */
	.holdoff_us = 60000000,
	/* Asking twice costs nothing, and a release must not be lost with a connection. */
	.repeat_us = 5000000,
	/* Below this Linux starts to reclaim from what is in use; small guests need the 32 MiB. */
	.available_bytes = MIB(32),
	.available_permille = 50,
	/* A guest that reads its swap back needs what it had; stray pages are less than 1 MiB/s. */
	.swap_in_bytes_per_s = MIB(1),
	/* Starting programs faults in bursts of some tens; a thrashing guest does hundreds. */
	.major_faults_per_s = 100,
	/* An allocation that had to wait for reclaim is late already; single ones happen. */
	.alloc_stalls_per_s = 10,
	/* Idle and healthy busy guests show 0 to 2%. */
	.psi_permille = 100,
};

static const struct {
	const char *name, *text;
} reasons[CONTROLLER_NR_REASONS] = {
	[CONTROLLER_IDLE] = { "idle", "nothing is asked of it" },
	[CONTROLLER_NOT_LINKED] = { "not-linked", "its QMP socket does not answer" },
	[CONTROLLER_NO_BALLOON] = { "no-balloon", "it has no balloon device" },
	[CONTROLLER_FROZEN] = { "frozen", "it is paused or migrates: the balloon stays as it is" },
	[CONTROLLER_PRESSURE] = { "pressure", "the guest is short of memory: all is given back" },
	[CONTROLLER_REBOOT] = { "reboot", "the guest started anew: all is given back" },
	[CONTROLLER_OFF] = { "off", "memory is being given back, nothing is asked of it any more" },
	[CONTROLLER_SILENT] = { "silent", "the guest says nothing for long: all is given back" },
	[CONTROLLER_STALE] = { "stale", "its statistics are missing or old: nothing is taken" },
	[CONTROLLER_HOLDOFF] = { "holdoff", "it was short of memory, or rebooted, a moment ago" },
	[CONTROLLER_STUCK] = { "stuck", "the guest did not follow the target, which is withdrawn" },
	[CONTROLLER_LIMIT] = { "limit", "the guest can spare no more" },
	[CONTROLLER_DEFLATE] = { "deflate", "memory is being given back" },
	[CONTROLLER_INFLATE] = { "inflate", "memory is being taken" },
	[CONTROLLER_REACHED] = { "reached", "the target is reached" },
};

const char *controller_reason_name(enum controller_reason reason)
{
	return reasons[reason].name;
}

const char *controller_reason_text(enum controller_reason reason)
{
	return reasons[reason].text;
}

/* --- what the guest says ---------------------------------------------------------------------- */

/* What it can use without swapping; false: it does not say. Old kernels and Windows do not know
 * "available": unused memory and what can be dropped of the page cache come close. */
static bool available(const struct guest_stats *s, u64 *ret)
{
	if (guest_stats_has(s, GUEST_STAT_AVAILABLE)) {
		*ret = s->last.value[GUEST_STAT_AVAILABLE];
		return true;
	}
	if (!guest_stats_has(s, GUEST_STAT_FREE))
		return false;
	*ret = s->last.value[GUEST_STAT_FREE] + s->last.value[GUEST_STAT_CACHES];
	return true;
}

static u64 low_mark(const struct controller_config *cfg, const struct controller_input *in)
{
	return MAX(cfg->available_bytes, in->ram_bytes / 1000 * cfg->available_permille);
}

bool controller_pressure(const struct controller_config *cfg, const struct controller_input *in)
{
	const struct guest_stats *s = in->stats;
	u64 bytes;

	if (in->has_psi && in->psi_permille >= cfg->psi_permille)
		return true;
	if (available(s, &bytes) && bytes < low_mark(cfg, in))
		return true;
	return s->has_rates && (s->swap_in_bytes_per_s >= cfg->swap_in_bytes_per_s ||
				s->major_faults_per_s >= cfg->major_faults_per_s ||
				s->alloc_stalls_per_s >= cfg->alloc_stalls_per_s || s->oom_kills);
}

u64 controller_headroom(const struct controller_config *cfg, const struct controller_input *in)
{
	u64 bytes, keep = 2 * low_mark(cfg, in);

	return available(in->stats, &bytes) && bytes > keep ? bytes - keep : 0;
}

/* --- deciding --------------------------------------------------------------------------------- */

static void set(struct controller *c, const struct controller_input *in, u64 target,
		struct controller_decision *d)
{
	d->set = true;
	d->target_bytes = target;
	if (c->target_bytes != target) {
		c->best_bytes = in->actual_bytes;
		c->progress_us = in->now_us;
	}
	c->target_bytes = target;
	c->target_us = in->now_us;
}

static u64 distance(u64 a, u64 b)
{
	return a > b ? a - b : b - a;
}

/* Has the guest come closer to the target within progress_us? */
static bool moves(struct controller *c, const struct controller_config *cfg,
		  const struct controller_input *in)
{
	/* A page now and then is no progress: a quarter of the deadband is. */
	if (distance(in->actual_bytes, c->target_bytes) + cfg->deadband_bytes / 4 <=
	    distance(c->best_bytes, c->target_bytes)) {
		c->best_bytes = in->actual_bytes;
		c->progress_us = in->now_us;
	}
	return in->now_us - c->progress_us < cfg->progress_us;
}

/* All memory back. True: that is done, or there was nothing to give back. */
static bool release(struct controller *c, const struct controller_config *cfg,
		    const struct controller_input *in, struct controller_decision *d)
{
	bool own_wish = d->reason == CONTROLLER_OFF;

	if (!c->target_bytes)
		return true;
	if (c->target_bytes != in->ram_bytes) {
		if (!own_wish)
			c->releases_total++;
		set(c, in, in->ram_bytes, d);
		return false;
	}
	if (in->actual_bytes + cfg->deadband_bytes > in->ram_bytes) {
		c->target_bytes = 0;
		c->stuck = false;
		return true;
	}
	/* Nothing to withdraw, but worth to be known. */
	c->stuck = !moves(c, cfg, in);
	if (in->now_us - c->target_us >= cfg->repeat_us)
		set(c, in, in->ram_bytes, d);
	return false;
}

/* A target that did not move: the guest is left with what it has now, and is marked. */
static void withdraw(struct controller *c, const struct controller_config *cfg,
		     const struct controller_input *in, struct controller_decision *d)
{
	d->reason = CONTROLLER_STUCK;
	c->stuck = true;
	c->stuck_wish_bytes = in->wish_bytes;
	c->stuck_until_us = in->now_us + cfg->stuck_us;
	c->withdrawn_total++;
	set(c, in, in->actual_bytes, d);
}

static void inflate(struct controller *c, const struct controller_config *cfg,
		    const struct controller_input *in, u64 wish, struct controller_decision *d)
{
	u64 step = MAX(cfg->step_bytes, in->ram_bytes / 1000 * cfg->step_permille);
	u64 room = controller_headroom(cfg, in);

	d->reason = CONTROLLER_INFLATE;
	/* The last step is under way. */
	if (c->target_bytes && c->target_bytes + cfg->deadband_bytes <= in->actual_bytes) {
		if (!moves(c, cfg, in))
			withdraw(c, cfg, in, d);
		else if (room < cfg->deadband_bytes) {
			/* It was more than the guest can spare now: what is left of it is dropped.
			 */
			d->reason = CONTROLLER_LIMIT;
			set(c, in, in->actual_bytes, d);
		}
		return;
	}
	if (room < cfg->deadband_bytes) {
		d->reason = CONTROLLER_LIMIT;
		return;
	}
	if (c->target_bytes && in->now_us - c->target_us < cfg->interval_us)
		return;
	step = MIN(MIN(step, room), in->actual_bytes - wish);
	set(c, in, ROUND_UP(in->actual_bytes - step, PAGE_BYTES), d);
}

static void follow_wish(struct controller *c, const struct controller_config *cfg,
			const struct controller_input *in, struct controller_decision *d)
{
	u64 floor = MIN(cfg->floor_bytes, in->ram_bytes);
	u64 wish = MIN(MAX(in->wish_bytes, floor), in->ram_bytes);

	if (c->stuck && (in->wish_bytes != c->stuck_wish_bytes || in->now_us >= c->stuck_until_us))
		c->stuck = false;
	if (wish >= in->actual_bytes + cfg->deadband_bytes ||
	    (wish == in->ram_bytes && in->actual_bytes < wish)) {
		d->reason = CONTROLLER_DEFLATE;
		if (c->target_bytes != wish || in->now_us - c->target_us >= cfg->repeat_us)
			set(c, in, wish, d);
		c->stuck = !moves(c, cfg, in);
	} else if (c->stuck) {
		d->reason = CONTROLLER_STUCK;
	} else if (wish + cfg->deadband_bytes <= in->actual_bytes) {
		inflate(c, cfg, in, wish, d);
	} else {
		d->reason = CONTROLLER_REACHED;
	}
}

/* Something that the guest needs: it gets all back, and is left alone for a time. */
static void give_back(struct controller *c, const struct controller_config *cfg,
		      const struct controller_input *in, enum controller_reason reason,
		      struct controller_decision *d)
{
	d->reason = reason;
	(void)release(c, cfg, in, d);
}

static bool is_fresh(const struct controller_config *cfg, const struct controller_input *in)
{
	return guest_stats_age_us(in->stats, in->now_us) <= cfg->stale_us;
}

static void note_reboot(struct controller *c, const struct controller_config *cfg,
			const struct controller_input *in)
{
	if (c->started && in->nr_resets != c->nr_resets) {
		c->rebooted = c->target_bytes != 0;
		c->holdoff_until_us = in->now_us + cfg->holdoff_us;
		c->stuck = false;
	}
	c->nr_resets = in->nr_resets;
	if (!c->started)
		c->heard_us = in->now_us;
	c->started = true;
}

void controller_step(struct controller *c, const struct controller_config *cfg,
		     const struct controller_input *input, struct controller_decision *ret)
{
	struct controller_input checked = *input, *in = &checked;
	struct controller_decision d = { 0 };
	u64 now = in->now_us;
	bool fresh = is_fresh(cfg, in);

	/* No guest has more than its RAM. */
	in->actual_bytes = MIN(in->actual_bytes, in->ram_bytes);
	note_reboot(c, cfg, in);
	if (!in->linked || in->run == CONTROLLER_UNKNOWN) {
		d.reason = CONTROLLER_NOT_LINKED;
	} else if (!in->has_actual || !in->ram_bytes) {
		d.reason = CONTROLLER_NO_BALLOON;
	} else if (in->run == CONTROLLER_PAUSED) {
		d.reason = CONTROLLER_FROZEN;
	}
	if (d.reason != CONTROLLER_IDLE) {
		/* The guest can neither speak nor follow: none of the clocks runs. */
		c->heard_us = c->progress_us = now;
		goto out;
	}

	if (fresh)
		c->heard_us = now;
	if (fresh && controller_pressure(cfg, in)) {
		c->holdoff_until_us = now + cfg->holdoff_us;
		give_back(c, cfg, in, CONTROLLER_PRESSURE, &d);
		goto out;
	}
	if (in->run == CONTROLLER_MIGRATING) {
		d.reason = CONTROLLER_FROZEN;
		c->progress_us = now;
		goto out;
	}
	if (c->rebooted) {
		give_back(c, cfg, in, CONTROLLER_REBOOT, &d);
		c->rebooted = c->target_bytes != 0;
	} else if (!in->has_wish) {
		d.reason = CONTROLLER_OFF;
		if (release(c, cfg, in, &d))
			d.reason = CONTROLLER_IDLE;
		c->stuck = c->stuck && c->target_bytes;
	} else if (!fresh) {
		d.reason = CONTROLLER_STALE;
		if (c->target_bytes && now - c->heard_us >= cfg->silent_us)
			give_back(c, cfg, in, CONTROLLER_SILENT, &d);
	} else if (now < c->holdoff_until_us) {
		/* What was begun to be given back is, whatever became of the connection. */
		d.reason = CONTROLLER_HOLDOFF;
		if (c->target_bytes == in->ram_bytes)
			(void)release(c, cfg, in, &d);
	} else {
		follow_wish(c, cfg, in, &d);
	}
out:
	*ret = d;
}
