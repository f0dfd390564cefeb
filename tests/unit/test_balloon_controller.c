/* SPDX-License-Identifier: MIT */
/* The balloon controller: tables of single decisions, a made-up guest that follows or does not, and
 * random histories in which some things must never happen. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "balloon/controller.h"

#define SECOND	   1000000ULL
#define RAM	   GIB(4)
#define FLOOR	   GIB(1)
#define LOW	   (RAM / 1000 * 50) /* where pressure begins */
#define BITS(stat) (1U << GUEST_STAT_##stat)

static struct controller_config cfg(void)
{
	struct controller_config c = controller_defaults;

	c.floor_bytes = FLOOR;
	return c;
}

/* A guest that has plenty, asked to do with 2 GiB. */
struct scene {
	struct controller_config cfg;
	struct controller c;
	struct controller_input in;
	struct guest_stats stats;
	struct controller_decision d;
	u32 nr_sets;
};

static void scene_init(struct scene *s)
{
	memset(s, 0, sizeof(*s));
	s->cfg = cfg();
	s->in = (struct controller_input){
		.now_us = 1000 * SECOND,
		.linked = true,
		.has_actual = true,
		.actual_bytes = RAM,
		.ram_bytes = RAM,
		.run = CONTROLLER_RUNNING,
		.stats = &s->stats,
		.has_wish = true,
		.wish_bytes = GIB(2),
	};
	s->stats.taken_us = s->in.now_us;
	s->stats.has_rates = true;
	s->stats.last.present = BITS(AVAILABLE) | BITS(FREE) | BITS(TOTAL);
	s->stats.last.value[GUEST_STAT_AVAILABLE] = GIB(3);
	s->stats.last.value[GUEST_STAT_TOTAL] = RAM;
}

static struct controller_decision step(struct scene *s)
{
	controller_step(&s->c, &s->cfg, &s->in, &s->d);
	s->nr_sets += s->d.set;
	return s->d;
}

/* The guest takes on the target to that degree, time passes, its statistics are fresh. */
static void pass(struct scene *s, u64 us, u32 percent)
{
	s64 way = s->c.target_bytes ? (s64)s->c.target_bytes - (s64)s->in.actual_bytes : 0;
	s64 moved = way * percent / 100;

	s->in.actual_bytes += (u64)moved;
	s->stats.last.value[GUEST_STAT_AVAILABLE] += (u64)moved;
	s->in.now_us += us;
	s->stats.taken_us = s->in.now_us;
}

/* So many seconds of a guest that follows (100) or not (0). */
static void run(struct scene *s, u32 seconds, u32 percent)
{
	for (u32 i = 0; i < seconds; i++) {
		step(s);
		pass(s, SECOND, percent);
	}
	step(s);
}

TestSuite(balloon_controller, .timeout = 120);

/* --- single decisions ------------------------------------------------------------------------- */

static void s_none(struct scene *s)
{
}
static void s_no_wish(struct scene *s)
{
	s->in.has_wish = false;
}
static void s_not_linked(struct scene *s)
{
	s->in.linked = false;
}
static void s_run_unknown(struct scene *s)
{
	s->in.run = CONTROLLER_UNKNOWN;
}
static void s_no_device(struct scene *s)
{
	s->in.has_actual = false;
}
static void s_no_ram(struct scene *s)
{
	s->in.ram_bytes = 0;
}
static void s_paused(struct scene *s)
{
	s->in.run = CONTROLLER_PAUSED;
}
static void s_migrating(struct scene *s)
{
	s->in.run = CONTROLLER_MIGRATING;
}
static void s_never(struct scene *s)
{
	s->stats.taken_us = 0;
}
static void s_old(struct scene *s)
{
	s->stats.taken_us -= s->cfg.stale_us + 1;
}
static void s_just_fresh(struct scene *s)
{
	s->stats.taken_us -= s->cfg.stale_us;
}
static void s_low(struct scene *s)
{
	s->stats.last.value[GUEST_STAT_AVAILABLE] = LOW - 1;
}
static void s_not_low(struct scene *s)
{
	s->stats.last.value[GUEST_STAT_AVAILABLE] = LOW;
}
static void s_room_of_16_mib(struct scene *s)
{
	s->stats.last.value[GUEST_STAT_AVAILABLE] = 2 * LOW + MIB(16);
}
static void s_low_free_only(struct scene *s)
{
	s->stats.last.present = BITS(FREE) | BITS(CACHES);
	s->stats.last.value[GUEST_STAT_FREE] = LOW - 2;
	s->stats.last.value[GUEST_STAT_CACHES] = 1;
}
static void s_caches_count(struct scene *s)
{
	s->stats.last.present = BITS(FREE) | BITS(CACHES);
	s->stats.last.value[GUEST_STAT_FREE] = LOW;
	s->stats.last.value[GUEST_STAT_CACHES] = GIB(1);
}
static void s_says_nothing_of_memory(struct scene *s)
{
	s->stats.last.present = BITS(MAJOR_FAULTS);
}
static void s_swaps(struct scene *s)
{
	s->stats.swap_in_bytes_per_s = MIB(1);
}
static void s_faults(struct scene *s)
{
	s->stats.major_faults_per_s = 100;
}
static void s_stalls(struct scene *s)
{
	s->stats.alloc_stalls_per_s = 10;
}
static void s_oom(struct scene *s)
{
	s->stats.oom_kills = 1;
}
static void s_psi(struct scene *s)
{
	s->in.has_psi = true;
	s->in.psi_permille = 100;
}
static void s_psi_little(struct scene *s)
{
	s->in.has_psi = true;
	s->in.psi_permille = 99;
}
static void s_psi_unknown(struct scene *s)
{
	s->in.psi_permille = 1000;
}
static void s_wish_is_met(struct scene *s)
{
	s->in.wish_bytes = RAM - MIB(3);
}
static void s_wish_below_floor(struct scene *s)
{
	s->in.wish_bytes = 0;
	s->in.actual_bytes = FLOOR + MIB(10);
}
static void s_at_floor(struct scene *s)
{
	s->in.wish_bytes = 0;
	s->in.actual_bytes = FLOOR;
}
static void s_below_floor(struct scene *s)
{
	s->in.wish_bytes = 0;
	s->in.actual_bytes = FLOOR / 2;
}
static void s_wish_more(struct scene *s)
{
	s->in.actual_bytes = GIB(1);
}
static void s_wish_more_than_ram(struct scene *s)
{
	s->in.actual_bytes = GIB(2);
	s->in.wish_bytes = GIB(100);
}
static void s_floor_above_ram(struct scene *s)
{
	s->cfg.floor_bytes = GIB(8);
}
static void s_actual_above_ram(struct scene *s)
{
	s->in.actual_bytes = 1ULL << 50;
}

Test(balloon_controller, one_decision)
{
	static const struct {
		const char *name;
		void (*change)(struct scene *s);
		enum controller_reason reason;
		u64 target; /* 0: none is set */
	} cases[] = {
		{ "inflate", s_none, CONTROLLER_INFLATE, RAM - RAM / 1000 * 16 },
		{ "no_wish", s_no_wish, CONTROLLER_IDLE, 0 },
		{ "not_linked", s_not_linked, CONTROLLER_NOT_LINKED, 0 },
		{ "run_unknown", s_run_unknown, CONTROLLER_NOT_LINKED, 0 },
		{ "no_device", s_no_device, CONTROLLER_NO_BALLOON, 0 },
		{ "no_ram", s_no_ram, CONTROLLER_NO_BALLOON, 0 },
		{ "paused", s_paused, CONTROLLER_FROZEN, 0 },
		{ "migrating", s_migrating, CONTROLLER_FROZEN, 0 },
		{ "never", s_never, CONTROLLER_STALE, 0 },
		{ "old", s_old, CONTROLLER_STALE, 0 },
		{ "just_fresh", s_just_fresh, CONTROLLER_INFLATE, RAM - RAM / 1000 * 16 },
		{ "low", s_low, CONTROLLER_PRESSURE, 0 }, /* nothing was taken: nothing to give */
		{ "not_low", s_not_low, CONTROLLER_LIMIT, 0 },
		{ "room", s_room_of_16_mib, CONTROLLER_INFLATE, RAM - MIB(16) },
		{ "low_free_only", s_low_free_only, CONTROLLER_PRESSURE, 0 },
		{ "caches_count", s_caches_count, CONTROLLER_INFLATE, RAM - RAM / 1000 * 16 },
		{ "no_memory_stats", s_says_nothing_of_memory, CONTROLLER_LIMIT, 0 },
		{ "swaps", s_swaps, CONTROLLER_PRESSURE, 0 },
		{ "faults", s_faults, CONTROLLER_PRESSURE, 0 },
		{ "stalls", s_stalls, CONTROLLER_PRESSURE, 0 },
		{ "oom", s_oom, CONTROLLER_PRESSURE, 0 },
		{ "psi", s_psi, CONTROLLER_PRESSURE, 0 },
		{ "psi_little", s_psi_little, CONTROLLER_INFLATE, RAM - RAM / 1000 * 16 },
		{ "psi_unknown", s_psi_unknown, CONTROLLER_INFLATE, RAM - RAM / 1000 * 16 },
		{ "wish_is_met", s_wish_is_met, CONTROLLER_REACHED, 0 },
		{ "wish_below_floor", s_wish_below_floor, CONTROLLER_INFLATE, FLOOR },
		{ "at_floor", s_at_floor, CONTROLLER_REACHED, 0 },
		{ "below_floor", s_below_floor, CONTROLLER_DEFLATE, FLOOR },
		{ "wish_more", s_wish_more, CONTROLLER_DEFLATE, GIB(2) },
		{ "wish_more_than_ram", s_wish_more_than_ram, CONTROLLER_DEFLATE, RAM },
		{ "floor_above_ram", s_floor_above_ram, CONTROLLER_REACHED, 0 },
		{ "actual_above_ram", s_actual_above_ram, CONTROLLER_INFLATE,
		  RAM - RAM / 1000 * 16 },
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct scene s;

		scene_init(&s);
		cases[i].change(&s);
		step(&s);
		cr_expect_eq(s.d.reason, cases[i].reason, "%s: %s", cases[i].name,
			     controller_reason_name(s.d.reason));
		cr_expect_eq(s.d.set, cases[i].target != 0, "%s", cases[i].name);
		cr_expect_eq(s.d.target_bytes, ROUND_UP(cases[i].target, PAGE_BYTES),
			     "%s: %llu, not %llu", cases[i].name,
			     (unsigned long long)s.d.target_bytes,
			     (unsigned long long)cases[i].target);
	}
}

/* The same changes while the balloon is inflated: who gets its memory back, in one step. */
Test(balloon_controller, inflated)
{
	static const struct {
		const char *name;
		void (*change)(struct scene *s);
		enum controller_reason reason;
		bool released;
	} cases[] = {
		{ "reached", s_none, CONTROLLER_REACHED, false },
		{ "no_wish", s_no_wish, CONTROLLER_OFF, true },
		{ "not_linked", s_not_linked, CONTROLLER_NOT_LINKED, false },
		{ "no_device", s_no_device, CONTROLLER_NO_BALLOON, false },
		{ "paused", s_paused, CONTROLLER_FROZEN, false },
		{ "migrating", s_migrating, CONTROLLER_FROZEN, false },
		{ "old", s_old, CONTROLLER_STALE, false },
		{ "low", s_low, CONTROLLER_PRESSURE, true },
		{ "swaps", s_swaps, CONTROLLER_PRESSURE, true },
		{ "faults", s_faults, CONTROLLER_PRESSURE, true },
		{ "oom", s_oom, CONTROLLER_PRESSURE, true },
		{ "psi", s_psi, CONTROLLER_PRESSURE, true },
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct scene s;

		scene_init(&s);
		run(&s, 60, 100);
		cr_assert_eq(s.d.reason, CONTROLLER_REACHED, "%s",
			     controller_reason_name(s.d.reason));
		cr_assert_leq(s.in.actual_bytes, GIB(2) + MIB(4));
		cases[i].change(&s);
		step(&s);
		cr_expect_eq(s.d.reason, cases[i].reason, "%s: %s", cases[i].name,
			     controller_reason_name(s.d.reason));
		cr_expect_eq(s.d.set, cases[i].released, "%s", cases[i].name);
		cr_expect_eq(s.d.target_bytes, cases[i].released ? RAM : 0, "%s", cases[i].name);
		/* Need is as good a reason while it migrates, or is silent otherwise. */
		if (s.d.reason == CONTROLLER_PRESSURE) {
			scene_init(&s);
			run(&s, 60, 100);
			cases[i].change(&s);
			s.in.run = CONTROLLER_MIGRATING;
			step(&s);
			cr_expect(s.d.set && s.d.target_bytes == RAM, "%s, migrating",
				  cases[i].name);
		}
	}
}

/* --- histories -------------------------------------------------------------------------------- */

Test(balloon_controller, takes_step_by_step)
{
	struct scene s;
	u64 least = RAM, set_us = 0;

	scene_init(&s);
	for (u32 i = 0; i < 400; i++) {
		u64 before = s.in.actual_bytes;

		step(&s);
		if (s.d.set) {
			cr_assert_leq(before - s.d.target_bytes, RAM / 1000 * 16);
			cr_assert_lt(s.d.target_bytes, least);
			cr_assert_geq(s.in.now_us - set_us, SECOND);
			least = s.d.target_bytes;
			set_us = s.in.now_us;
		}
		pass(&s, 100000, 100); /* it follows at once */
	}
	/* 2 GiB in steps of 68 MB, one a second: 32 of them, for all that it is called ten times a
	 * second. */
	cr_expect_eq(s.in.actual_bytes, GIB(2));
	cr_expect(s.nr_sets >= 31 && s.nr_sets <= 33, "%u", s.nr_sets);
	cr_expect_eq(s.d.reason, CONTROLLER_REACHED);
	cr_expect_not(s.c.stuck);
}

Test(balloon_controller, waits_for_a_slow_guest)
{
	struct scene s;

	scene_init(&s);
	/* A fifth of the way a second: slow, but it moves. */
	for (u32 i = 0; i < 2000 && s.d.reason != CONTROLLER_REACHED; i++) {
		step(&s);
		cr_assert_not(s.c.stuck, "at %u", i);
		pass(&s, SECOND, 20);
	}
	cr_expect_eq(s.d.reason, CONTROLLER_REACHED);
}

Test(balloon_controller, a_target_that_does_not_move_is_withdrawn)
{
	struct scene s;
	u32 seconds = 0;

	scene_init(&s);
	while (!s.c.stuck && seconds < 100) {
		step(&s);
		pass(&s, SECOND, 0);
		seconds++;
	}
	cr_expect_eq(seconds, 21);
	cr_expect(s.d.set && s.d.target_bytes == RAM && s.d.reason == CONTROLLER_STUCK);
	cr_expect_eq(s.c.withdrawn_total, 1);
	/* Marked, and left alone for ten minutes. */
	s.nr_sets = 0;
	run(&s, 590, 0);
	cr_expect(s.nr_sets == 0 && s.c.stuck && s.d.reason == CONTROLLER_STUCK);
	run(&s, 20, 0);
	cr_expect_eq(s.nr_sets, 1, "another look");
	/* Another wish is another try. */
	run(&s, 30, 0);
	cr_expect(s.c.stuck && s.c.withdrawn_total == 2);
	s.in.wish_bytes = GIB(3);
	step(&s);
	cr_expect(s.d.set && !s.c.stuck);
	/* One that comes half-way keeps what it has given. */
	pass(&s, SECOND, 50);
	run(&s, 30, 0);
	cr_expect(s.c.stuck && s.c.target_bytes == s.in.actual_bytes);
	cr_expect_eq(s.c.withdrawn_total, 3);
	/* The wish taken back takes the mark away. */
	s.in.has_wish = false;
	run(&s, 3, 100);
	cr_expect(!s.c.stuck && s.d.reason == CONTROLLER_IDLE && s.in.actual_bytes == RAM);
}

Test(balloon_controller, a_page_now_and_then_is_no_progress)
{
	struct scene s;

	scene_init(&s);
	for (u32 i = 0; i < 60 && !s.c.stuck; i++) {
		step(&s);
		pass(&s, SECOND, 0);
		s.in.actual_bytes -= PAGE_BYTES;
	}
	cr_expect(s.c.stuck);
}

Test(balloon_controller, does_not_take_what_the_guest_would_need)
{
	struct scene s;

	scene_init(&s);
	/* It can spare 1 GiB and no more: the rest is in use. */
	s.stats.last.value[GUEST_STAT_AVAILABLE] = GIB(1) + 2 * LOW;
	run(&s, 200, 100);
	cr_expect_eq(s.d.reason, CONTROLLER_LIMIT);
	cr_expect_geq(s.in.actual_bytes, GIB(3));
	cr_expect_leq(s.in.actual_bytes, GIB(3) + MIB(4));
	cr_expect_eq(s.c.releases_total, 0, "it never came under pressure by us");
	/* Its use grows a little while a step is under way: what is left of that is dropped. */
	s.stats.last.value[GUEST_STAT_AVAILABLE] += MIB(100);
	step(&s);
	cr_assert(s.d.set && s.d.target_bytes < s.in.actual_bytes);
	s.in.now_us += SECOND;
	s.stats.taken_us = s.in.now_us;
	s.stats.last.value[GUEST_STAT_AVAILABLE] -= MIB(98);
	step(&s);
	cr_expect(s.d.set && s.d.target_bytes == s.in.actual_bytes &&
		  s.d.reason == CONTROLLER_LIMIT);
}

Test(balloon_controller, pressure_and_what_follows)
{
	struct scene s;

	scene_init(&s);
	run(&s, 60, 100);
	s_low(&s);
	step(&s);
	cr_expect(s.d.set && s.d.target_bytes == RAM && s.c.releases_total == 1);
	/* The guest takes it back slowly: asked again every five seconds, counted once. */
	s.nr_sets = 0;
	for (u32 i = 0; i < 10; i++) {
		pass(&s, SECOND, 10);
		s_low(&s);
		step(&s);
	}
	cr_expect(s.nr_sets == 2 && s.c.releases_total == 1, "%u", s.nr_sets);
	/* Well again: it gets the rest, and nothing is taken for a minute. */
	s.stats.last.value[GUEST_STAT_AVAILABLE] = GIB(3);
	run(&s, 59, 100);
	cr_expect_eq(s.d.reason, CONTROLLER_HOLDOFF);
	cr_expect(s.in.actual_bytes == RAM && s.c.target_bytes == 0);
	run(&s, 3, 100);
	cr_expect_eq(s.d.reason, CONTROLLER_INFLATE);
}

Test(balloon_controller, a_silent_guest_gets_all_back)
{
	struct scene s;

	scene_init(&s);
	run(&s, 60, 100);
	s.in.now_us += 61 * SECOND;
	step(&s); /* the connection may have been slow: the guest's silence counts from here */
	cr_expect_eq(s.d.reason, CONTROLLER_SILENT);
	cr_expect(s.d.set && s.d.target_bytes == RAM);

	/* A guest that was paused for an hour was not silent. */
	scene_init(&s);
	run(&s, 60, 100);
	s.in.run = CONTROLLER_PAUSED;
	for (u32 i = 0; i < 60; i++) {
		s.in.now_us += 60 * SECOND;
		step(&s);
		cr_assert_not(s.d.set);
	}
	s.in.run = CONTROLLER_RUNNING;
	s.in.now_us += SECOND;
	step(&s);
	cr_expect(!s.d.set && s.d.reason == CONTROLLER_STALE);
	s.in.now_us += 59 * SECOND;
	step(&s);
	cr_expect(s.d.set && s.d.target_bytes == RAM && s.d.reason == CONTROLLER_SILENT);
}

Test(balloon_controller, a_reboot_gives_all_back)
{
	struct scene s;

	scene_init(&s);
	run(&s, 60, 100);
	s.in.nr_resets++;
	s.stats.taken_us = 0;
	step(&s);
	cr_expect(s.d.set && s.d.target_bytes == RAM && s.d.reason == CONTROLLER_REBOOT);
	/* The driver is not there yet; then it is, and takes the memory back. */
	s.in.now_us += 10 * SECOND;
	step(&s);
	cr_expect(s.d.set && s.d.target_bytes == RAM);
	pass(&s, SECOND, 100);
	run(&s, 30, 100);
	cr_expect(s.d.reason == CONTROLLER_HOLDOFF && s.in.actual_bytes == RAM);
	run(&s, 30, 100);
	cr_expect_eq(s.d.reason, CONTROLLER_INFLATE);
	/* A VM that was never ballooned is left alone at boot, too. */
	scene_init(&s);
	s.in.has_wish = false;
	step(&s);
	s.in.nr_resets++;
	step(&s);
	cr_expect(!s.d.set && s.d.reason == CONTROLLER_IDLE);
}

Test(balloon_controller, a_lost_connection_does_not_lose_a_release)
{
	struct scene s;

	scene_init(&s);
	run(&s, 60, 100);
	s.in.has_wish = false;
	step(&s);
	cr_assert(s.d.set);
	/* It did not get there. */
	s.in.linked = false;
	run(&s, 100, 0);
	cr_expect_eq(s.d.reason, CONTROLLER_NOT_LINKED);
	s.in.linked = true;
	step(&s);
	cr_expect(s.d.set && s.d.target_bytes == RAM && s.d.reason == CONTROLLER_OFF);
	cr_expect_not(s.c.stuck);
}

Test(balloon_controller, anothers_balloon_is_not_touched)
{
	struct scene s;

	scene_init(&s);
	s.in.has_wish = false;
	s.in.actual_bytes = GIB(1);
	run(&s, 100, 100);
	s_low(&s);
	step(&s);
	s.in.now_us += 1000 * SECOND;
	step(&s);
	cr_expect_eq(s.nr_sets, 0);
}

Test(balloon_controller, every_reason_has_its_words)
{
	for (int i = 0; i < CONTROLLER_NR_REASONS; i++)
		cr_expect(controller_reason_name(i) && controller_reason_text(i), "%d", i);
}

/* --- what must never happen ------------------------------------------------------------------- */

static u64 random_state;

static u32 rnd(u32 below)
{
	random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (u32)(random_state >> 33) % below;
}

static void change_something(struct scene *s)
{
	static void (*const changes[])(struct scene * s) = {
		s_low,	 s_not_low, s_swaps,	  s_faults,	    s_stalls,
		s_oom,	 s_psi,	    s_psi_little, s_room_of_16_mib, s_says_nothing_of_memory,
		s_never, s_old,	    s_no_device,  s_not_linked,	    s_low_free_only,
	};
	u64 actual = s->in.actual_bytes, now = s->in.now_us, resets = s->in.nr_resets;
	struct controller_config keep = s->cfg;
	struct controller c = s->c;
	u32 what = rnd(20);

	if (what < 8) { /* all is well again */
		scene_init(s);
		s->cfg = keep;
		s->c = c;
		s->in.actual_bytes = actual;
		s->in.now_us = s->stats.taken_us = now;
		s->in.nr_resets = resets;
	}
	switch (what) {
	case 8:
	case 9:
		s->in.wish_bytes = (u64)rnd(1 << 20) * 8192;
		break;
	case 10:
		s->in.has_wish = rnd(3);
		break;
	case 11:
		s->in.run = rnd(4);
		break;
	case 12:
		s->in.nr_resets++;
		break;
	case 13:
		s->in.actual_bytes = (u64)rnd(1 << 20) * 8192; /* somebody else's target */
		break;
	default:
		if (what >= 14)
			changes[rnd(ARRAY_SIZE(changes))](s);
	}
}

static void must_hold(const struct scene *s, const struct controller *before, u64 seed, u32 at)
{
	const struct controller_input *in = &s->in;
	const struct controller_decision *d = &s->d;
	u64 actual = MIN(in->actual_bytes, in->ram_bytes);
	bool fresh = guest_stats_age_us(in->stats, in->now_us) <= s->cfg.stale_us;
	bool runs = in->linked && in->has_actual &&
		    (in->run == CONTROLLER_RUNNING || in->run == CONTROLLER_MIGRATING);
	bool pressed = runs && fresh && controller_pressure(&s->cfg, in);

#define HOLDS(cond) cr_assert(cond, "seed %llu, step %u: " #cond, (unsigned long long)seed, at)
	if (d->set) {
		HOLDS(runs);
		HOLDS(d->target_bytes >= MIN(s->cfg.floor_bytes, in->ram_bytes));
		HOLDS(d->target_bytes <= in->ram_bytes);
		HOLDS(s->c.target_bytes == d->target_bytes);
	}
	if (d->set && d->target_bytes < actual) { /* takes */
		HOLDS(in->run == CONTROLLER_RUNNING);
		HOLDS(fresh && !pressed && in->has_wish);
		HOLDS(in->now_us >= before->holdoff_until_us);
		HOLDS(actual - d->target_bytes <=
		      MAX(s->cfg.step_bytes, in->ram_bytes / 1000 * s->cfg.step_permille));
		HOLDS(d->target_bytes + MIB(1) > MAX(in->wish_bytes, s->cfg.floor_bytes));
		HOLDS(d->reason == CONTROLLER_INFLATE);
		HOLDS(!before->target_bytes ||
		      in->now_us - before->target_us >= s->cfg.interval_us);
	}
	/* What we took is given back in the same step, all of it. */
	if (pressed && before->target_bytes)
		HOLDS(s->c.target_bytes == 0 || s->c.target_bytes == in->ram_bytes);
	if (pressed && before->target_bytes && before->target_bytes != in->ram_bytes)
		HOLDS(d->set && d->target_bytes == in->ram_bytes);
	if (!in->has_wish && !before->target_bytes)
		HOLDS(!d->set);
#undef HOLDS
}

Test(balloon_controller, random_histories)
{
	u32 takes = 0, releases = 0, withdrawn = 0;

	for (u64 seed = 1; seed <= 2000; seed++) {
		struct scene s;

		random_state = seed * 977;
		scene_init(&s);
		s.cfg.floor_bytes = (u64)rnd(6) * MIB(700);
		for (u32 i = 0; i < 300; i++) {
			struct controller before = s.c;

			if (rnd(6) == 0)
				change_something(&s);
			step(&s);
			must_hold(&s, &before, seed, i);
			takes += s.d.set && s.d.reason == CONTROLLER_INFLATE;
			releases += s.d.set && s.d.reason == CONTROLLER_PRESSURE;
			if (rnd(10) == 0) { /* time passes, the guest says nothing */
				s.in.now_us += rnd(100) * SECOND;
			} else {
				u64 taken = s.stats.taken_us;

				pass(&s, rnd(30) * 100000, (u32[]){ 0, 20, 100 }[rnd(3)]);
				if (!taken)
					s.stats.taken_us = 0;
			}
		}
		withdrawn += s.c.withdrawn_total;
	}
	/* Enough of each happened for the above to mean something. */
	cr_expect(takes > 10000 && releases > 1000 && withdrawn > 100, "%u %u %u", takes, releases,
		  withdrawn);
}
