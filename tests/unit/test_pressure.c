/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/pressure.h"

#define SECOND 1000000ULL

static const struct pressure_limits limits = { .some_permille = 50, .available_permille = 100 };

static struct pressure_sample sample(u32 some_permille, u64 available_mib)
{
	return (struct pressure_sample){ .has_some = true,
					 .some_permille = some_permille,
					 .available_bytes = MIB(available_mib),
					 .total_bytes = MIB(1000) };
}

Test(pressure, either_sign_turns_it_on_at_once)
{
	static const struct {
		u32 some;
		u64 available;
		bool on;
	} cases[] = {
		{ 0, 500, false }, { 49, 100, false }, { 50, 500, true },
		{ 0, 99, true },   { 1000, 0, true },  { 0, 100, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct pressure_sample s = sample(cases[i].some, cases[i].available);
		struct pressure p = { 0 };

		cr_expect_eq(pressure_update(&p, &limits, &s, SECOND), cases[i].on, "case %zu", i);
		cr_expect_eq(p.on, cases[i].on, "case %zu", i);
		cr_expect_not(pressure_update(&p, &limits, &s, 2 * SECOND), "told twice");
	}
}

/* On, then @s for @seconds: is it still on? */
static bool on_after(struct pressure_sample s, u32 seconds)
{
	struct pressure_sample bad = sample(900, 10);
	struct pressure p = { 0 };

	cr_assert(pressure_update(&p, &limits, &bad, SECOND));
	for (u32 i = 0; i <= seconds; i++)
		pressure_update(&p, &limits, &s, (2 + i) * SECOND);
	return p.on;
}

Test(pressure, turns_off_after_a_calm_while)
{
	cr_expect(on_after(sample(0, 500), 9));
	cr_expect_not(on_after(sample(0, 500), 10));
	cr_expect_not(on_after(sample(24, 125), 10));
	/* Not far enough from either threshold: for ever. */
	cr_expect(on_after(sample(25, 500), 1000));
	cr_expect(on_after(sample(0, 124), 1000));
}

Test(pressure, calm_has_to_last)
{
	struct pressure_sample bad = sample(60, 500), middle = sample(40, 500),
			       good = sample(0, 500);
	struct pressure p = { 0 };
	u64 now = SECOND;

	cr_assert(pressure_update(&p, &limits, &bad, now));
	for (int i = 0; i < 20; i++) {
		for (int k = 0; k < 9; k++)
			cr_assert_not(pressure_update(&p, &limits, &good, now += SECOND));
		cr_assert_not(pressure_update(&p, &limits, i % 2 ? &bad : &middle, now += SECOND));
		cr_assert(p.on);
	}
	for (int k = 0; k < 10; k++)
		cr_assert_not(pressure_update(&p, &limits, &good, now += SECOND));
	cr_expect(pressure_update(&p, &limits, &good, now + SECOND));
	cr_expect_not(p.on);
	/* A second time is like the first. */
	cr_expect(pressure_update(&p, &limits, &bad, now + 2 * SECOND));
	cr_expect(p.on);
}

Test(pressure, a_sign_can_be_off_or_missing)
{
	const struct pressure_limits psi_only = { .some_permille = 50 },
				     memory_only = { .available_permille = 100 }, none = { 0 };
	struct pressure_sample waiting = sample(900, 500), little = sample(0, 1);
	struct pressure p = { 0 };

	cr_expect_not(pressure_update(&p, &none, &waiting, SECOND));
	cr_expect_not(pressure_update(&p, &none, &little, SECOND));
	cr_expect_not(pressure_update(&p, &psi_only, &little, SECOND));
	cr_expect_not(pressure_update(&p, &memory_only, &waiting, SECOND));
	/* A kernel without PSI: the field says nothing. */
	waiting.has_some = false;
	cr_expect_not(pressure_update(&p, &limits, &waiting, SECOND));
	cr_expect(pressure_update(&p, &memory_only, &little, SECOND));
	/* Both signs switched off by a reload: it ends. */
	for (u64 t = 2; t < 12; t++)
		cr_expect_not(pressure_update(&p, &none, &little, t * SECOND));
	cr_expect(pressure_update(&p, &none, &little, 12 * SECOND));
	/* The smallest threshold there is can be left, too. */
	waiting = sample(0, 500);
	p = (struct pressure){ .on = true };
	cr_expect_not(pressure_update(&p, &(struct pressure_limits){ .some_permille = 1 }, &waiting,
				      SECOND));
	cr_expect(pressure_update(&p, &(struct pressure_limits){ .some_permille = 1 }, &waiting,
				  20 * SECOND));
}

static char dir[64], psi[96], meminfo[96];

static void make_dir(void)
{
	strcpy(dir, "/tmp/ballast-pressure-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(psi, sizeof(psi), "%s/psi", dir);
	snprintf(meminfo, sizeof(meminfo), "%s/meminfo", dir);
}

static void remove_dir(void)
{
	unlink(psi);
	unlink(meminfo);
	cr_assert_eq(rmdir(dir), 0);
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	cr_assert(f);
	fputs(text, f);
	fclose(f);
}

Test(pressure, files, .init = make_dir, .fini = remove_dir)
{
	struct pressure_sample s = { .available_bytes = 7 };

	cr_expect_eq(pressure_read(psi, meminfo, &s), -ENOENT);
	write_file(meminfo, "MemTotal:       24683716 kB\nMemFree:   1 kB\n");
	cr_expect_eq(pressure_read(psi, meminfo, &s), -EPROTO);
	cr_expect_eq(s.available_bytes, 7, "set by a failure");
	write_file(meminfo, "MemTotal:       24683716 kB\nMemFree:        22894540 kB\n"
			    "MemAvailable:   23571456 kB\nSwapFree:          1024 kB\n");
	cr_expect_eq(pressure_read(psi, meminfo, &s), 0);
	cr_expect_not(s.has_some);
	cr_expect_eq(s.total_bytes, 24683716ULL * 1024);
	cr_expect_eq(s.available_bytes, 23571456ULL * 1024);
	cr_expect_eq(s.swap_free_bytes, MIB(1));
	write_file(psi, "some avg10=12.34 avg60=0.56 avg300=0.11 total=1234\n"
			"full avg10=99.00 avg60=0.00 avg300=0.00 total=0\n");
	cr_expect_eq(pressure_read(psi, meminfo, &s), 0);
	cr_expect(s.has_some);
	cr_expect_eq(s.some_permille, 123);
	write_file(psi, "some avg10=0.09 avg60=0.00 avg300=0.00 total=0\n");
	cr_expect_eq(pressure_read(psi, meminfo, &s), 0);
	cr_expect(s.has_some && s.some_permille == 0);
	write_file(psi, "nonsense\n");
	cr_expect_eq(pressure_read(psi, meminfo, &s), 0);
	cr_expect_not(s.has_some);
	write_file(psi, "some avg10=4000000000.00 avg60");
	cr_expect_eq(pressure_read(psi, meminfo, &s), 0);
	cr_expect_not(s.has_some);
}

/* What this kernel has. */
Test(pressure, this_host)
{
	struct pressure_sample s;

	cr_assert_eq(pressure_read("/proc/pressure/memory", "/proc/meminfo", &s), 0);
	cr_expect_gt(s.total_bytes, MIB(64));
	cr_expect_leq(s.available_bytes, s.total_bytes);
	cr_expect_eq(s.has_some, access("/proc/pressure/memory", R_OK) == 0);
}
