/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include "balloon/guest_stats.h"

#define SECOND 1000000ULL
#define WALL   1795676287ULL

static int parse(const char *text, struct guest_stats_reply *ret)
{
	json_t *j = json_loads(text, JSON_DECODE_ANY, NULL);
	int r;

	if (!j) /* as the session does */
		j = json_loads(text, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
	cr_assert(j, "%s", text);
	r = guest_stats_parse(j, ret);
	json_decref(j);
	return r;
}

static bool has(const struct guest_stats_reply *r, enum guest_stat stat)
{
	return r->present & (1U << stat);
}

/* As QEMU 7.2 with Linux 6.12 says it. */
Test(balloon_stats, of_a_stock_guest)
{
	struct guest_stats_reply r;

	cr_assert_eq(parse("{\"stats\": {\"stat-htlb-pgalloc\": 0, \"stat-swap-out\": 0, "
			   "\"stat-available-memory\": 192684032, \"stat-htlb-pgfail\": 0, "
			   "\"stat-free-memory\": 195964928, \"stat-minor-faults\": 515, "
			   "\"stat-major-faults\": 3, \"stat-total-memory\": 223608832, "
			   "\"stat-swap-in\": 8192, \"stat-disk-caches\": 4206592}, "
			   "\"last-update\": 1795676287}",
			   &r),
		     0);
	cr_expect_eq(r.last_update_s, WALL);
	cr_expect(has(&r, GUEST_STAT_AVAILABLE) && r.value[GUEST_STAT_AVAILABLE] == 192684032);
	cr_expect(has(&r, GUEST_STAT_FREE) && r.value[GUEST_STAT_FREE] == 195964928);
	cr_expect(has(&r, GUEST_STAT_TOTAL) && r.value[GUEST_STAT_TOTAL] == 223608832);
	cr_expect(has(&r, GUEST_STAT_CACHES) && r.value[GUEST_STAT_CACHES] == 4206592);
	cr_expect(has(&r, GUEST_STAT_SWAP_IN) && r.value[GUEST_STAT_SWAP_IN] == 8192);
	cr_expect(has(&r, GUEST_STAT_MAJOR_FAULTS) && r.value[GUEST_STAT_MAJOR_FAULTS] == 3);
	cr_expect_not(has(&r, GUEST_STAT_OOM_KILLS), "not sent, yet there");
}

Test(balloon_stats, what_is_not_known)
{
	static const struct {
		const char *value;
		int r;
		bool present;
	} cases[] = {
		{ "5", 0, true },
		{ "0", 0, true },
		{ "-1", 0, false },
		{ "18446744073709551615", 0, false },
		{ "18446744073709551614", 0, false },
		{ "-2", 0, false },
		{ "144115188075855872", 0, false }, /* 2^57 bytes: no machine has that */
		{ "\"5\"", -EPROTO, false },
		{ "{}", -EPROTO, false },
		{ "null", -EPROTO, false },
		{ "1.5", -EPROTO, false },
	};
	char text[160];

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct guest_stats_reply r = { 0 };

		snprintf(text, sizeof(text),
			 "{\"stats\": {\"stat-free-memory\": %s, \"stat-total-memory\": 7, "
			 "\"stat-of-tomorrow\": \"x\"}, \"last-update\": 1795676287}",
			 cases[i].value);
		cr_expect_eq(parse(text, &r), cases[i].r, "%s", text);
		cr_expect_eq(has(&r, GUEST_STAT_FREE), cases[i].present, "%s", text);
		/* The others, and the stamp, are as exact as ever. */
		cr_expect(cases[i].r < 0 ||
				  (r.value[GUEST_STAT_TOTAL] == 7 && r.last_update_s == WALL),
			  "%s", text);
	}
}

Test(balloon_stats, what_cannot_be)
{
	struct guest_stats_reply r;

	cr_assert_eq(parse("{\"stats\": {\"stat-free-memory\": 101, \"stat-total-memory\": 100,"
			   " \"stat-available-memory\": 100, \"stat-disk-caches\": 1e3},"
			   " \"last-update\": 5}",
			   &r),
		     0);
	cr_expect_not(has(&r, GUEST_STAT_FREE), "more free than there is");
	cr_expect_not(has(&r, GUEST_STAT_CACHES));
	cr_expect(has(&r, GUEST_STAT_AVAILABLE));
}

Test(balloon_stats, not_that_form)
{
	static const char *const texts[] = {
		"{}",
		"[]",
		"3",
		"{\"stats\": {}}",
		"{\"last-update\": 3}",
		"{\"stats\": [], \"last-update\": 3}",
		"{\"stats\": {}, \"last-update\": -1}",
		"{\"stats\": {}, \"last-update\": \"3\"}",
		"{\"stats\": {}, \"last-update\": 9000000000000000000}",
	};
	struct guest_stats_reply r;

	for (u32 i = 0; i < ARRAY_SIZE(texts); i++)
		cr_expect_eq(parse(texts[i], &r), -EPROTO, "%s", texts[i]);
}

static struct guest_stats_reply reply_at(u64 last_update_s)
{
	return (struct guest_stats_reply){
		.last_update_s = last_update_s,
		.present = 1U << GUEST_STAT_FREE | 1U << GUEST_STAT_SWAP_IN |
			   1U << GUEST_STAT_MAJOR_FAULTS,
	};
}

static bool update(struct guest_stats *s, u64 last_update_s, u64 now_s, u64 wall_s)
{
	struct guest_stats_reply r = reply_at(last_update_s);

	return guest_stats_update(s, &r, now_s * SECOND, wall_s);
}

Test(balloon_stats, age)
{
	struct guest_stats s = { 0 };

	cr_expect_eq(guest_stats_age_us(&s, 5 * SECOND), UINT64_MAX);
	cr_expect_not(update(&s, 0, 100, WALL), "never answered");
	cr_expect_eq(guest_stats_age_us(&s, 100 * SECOND), UINT64_MAX);
	cr_expect_not(guest_stats_has(&s, GUEST_STAT_FREE));
	/* Its first answer, three seconds ago by the wall clock. */
	cr_expect(update(&s, WALL + 7, 110, WALL + 10));
	cr_expect_eq(guest_stats_age_us(&s, 110 * SECOND), 3 * SECOND);
	cr_expect(guest_stats_has(&s, GUEST_STAT_FREE));
	/* The same answer again gets older, whatever the wall clock does. */
	cr_expect_not(update(&s, WALL + 7, 120, WALL - 5000));
	cr_expect_eq(guest_stats_age_us(&s, 120 * SECOND), 13 * SECOND);
	/* A new one after the wall clock was set forward by a day: no older than the last look. */
	cr_expect(update(&s, WALL + 12, 125, WALL + 86400));
	cr_expect_eq(guest_stats_age_us(&s, 125 * SECOND), 5 * SECOND);
	/* Set back: an answer from the future is of now. */
	cr_expect(update(&s, WALL + 90000, 127, WALL));
	cr_expect_eq(guest_stats_age_us(&s, 127 * SECOND), 0);
	cr_expect(update(&s, WALL + 1, 129, WALL + 2));
	cr_expect_eq(guest_stats_age_us(&s, 129 * SECOND), SECOND);
	cr_expect_eq(guest_stats_age_us(&s, 10 * SECOND), 0, "a clock that is behind");
}

/* The first look at a VM that has long been silent. */
Test(balloon_stats, age_at_the_first_look)
{
	struct guest_stats s = { 0 };

	cr_expect(update(&s, WALL - 300, 1000, WALL));
	cr_expect_eq(guest_stats_age_us(&s, 1000 * SECOND), 300 * SECOND);
	s = (struct guest_stats){ 0 };
	/* Longer than our clock has run. */
	cr_expect(update(&s, 5, 1000, WALL));
	cr_expect_geq(guest_stats_age_us(&s, 1000 * SECOND), 999 * SECOND);
	cr_expect_lt(guest_stats_age_us(&s, 1000 * SECOND), 1000 * SECOND);
}

Test(balloon_stats, a_reboot_makes_it_unknown_again)
{
	struct guest_stats s = { 0 };

	cr_expect(update(&s, WALL, 10, WALL));
	guest_stats_restart(&s);
	cr_expect_eq(guest_stats_age_us(&s, 11 * SECOND), UINT64_MAX);
	cr_expect_not(guest_stats_has(&s, GUEST_STAT_FREE));
	cr_expect_not(update(&s, WALL, 12, WALL + 2), "an answer of before the reboot");
	cr_expect(update(&s, WALL + 9, 20, WALL + 10));
	cr_expect_not(s.has_rates, "a rate over a reboot");
}

Test(balloon_stats, a_reboot_that_nobody_told_of)
{
	struct guest_stats_reply r = reply_at(WALL);
	struct guest_stats s = { 0 };

	r.present |= 1U << GUEST_STAT_MINOR_FAULTS;
	r.value[GUEST_STAT_MINOR_FAULTS] = 1000;
	cr_assert(guest_stats_update(&s, &r, 10 * SECOND, WALL));
	r.last_update_s++;
	cr_assert(guest_stats_update(&s, &r, 11 * SECOND, WALL));
	cr_expect_eq(s.nr_restarts, 0);
	r.last_update_s++;
	r.value[GUEST_STAT_MINOR_FAULTS] = 999;
	cr_assert(guest_stats_update(&s, &r, 12 * SECOND, WALL));
	cr_expect_eq(s.nr_restarts, 1);
	/* Where it is told of, it counts once. */
	guest_stats_restart(&s);
	r.last_update_s++;
	r.value[GUEST_STAT_MINOR_FAULTS] = 5;
	cr_assert(guest_stats_update(&s, &r, 13 * SECOND, WALL));
	cr_expect_eq(s.nr_restarts, 1);
}

Test(balloon_stats, rates)
{
	struct guest_stats_reply r = reply_at(WALL);
	struct guest_stats s = { 0 };

	r.value[GUEST_STAT_SWAP_IN] = 1000;
	r.value[GUEST_STAT_MAJOR_FAULTS] = 10;
	cr_assert(guest_stats_update(&s, &r, 100 * SECOND, WALL));
	cr_expect_not(s.has_rates);
	r.last_update_s += 4;
	r.value[GUEST_STAT_SWAP_IN] = 41000;
	r.value[GUEST_STAT_MAJOR_FAULTS] = 18;
	cr_assert(guest_stats_update(&s, &r, 104 * SECOND, WALL + 4));
	cr_expect(s.has_rates && s.swap_in_bytes_per_s == 10000 && s.major_faults_per_s == 2);
	/* Two answers within a second count as one second. */
	r.last_update_s += 1;
	r.value[GUEST_STAT_SWAP_IN] += 5000;
	cr_assert(guest_stats_update(&s, &r, 104 * SECOND + 100, WALL + 5));
	cr_expect_eq(s.swap_in_bytes_per_s, 5000);
	cr_expect_eq(s.major_faults_per_s, 0);
	/* A counter that starts anew is no rate of 2^64. */
	r.last_update_s += 2;
	r.value[GUEST_STAT_SWAP_IN] = 3;
	cr_assert(guest_stats_update(&s, &r, 107 * SECOND, WALL + 7));
	cr_expect_eq(s.swap_in_bytes_per_s, 0);
	/* One that is no longer told is none either. */
	r.last_update_s += 2;
	r.present = 0;
	cr_assert(guest_stats_update(&s, &r, 109 * SECOND, WALL + 9));
	cr_expect_eq(s.swap_in_bytes_per_s, 0);
}

/* What our driver tells: time that tasks waited for memory. */
Test(balloon_stats, psi)
{
	struct guest_stats_reply r = reply_at(WALL);
	struct guest_stats s = { 0 };

	r.present = 1U << GUEST_STAT_PSI_TOTAL_US;
	r.value[GUEST_STAT_PSI_TOTAL_US] = 7000000;
	cr_assert(guest_stats_update(&s, &r, 100 * SECOND, WALL));
	cr_expect_not(s.has_psi);
	r.last_update_s += 2;
	r.value[GUEST_STAT_PSI_TOTAL_US] += 300000;
	cr_assert(guest_stats_update(&s, &r, 102 * SECOND, WALL + 2));
	cr_expect(s.has_psi && s.psi_permille == 150, "%u", s.psi_permille);
	/* More than there is time, as a lie: all of it. */
	r.last_update_s += 2;
	r.value[GUEST_STAT_PSI_TOTAL_US] += 1ULL << 50;
	cr_assert(guest_stats_update(&s, &r, 104 * SECOND, WALL + 4));
	cr_expect(s.has_psi && s.psi_permille == 1000, "%u", s.psi_permille);
	r.last_update_s += 2;
	r.present = 0;
	cr_assert(guest_stats_update(&s, &r, 106 * SECOND, WALL + 6));
	cr_expect(!s.has_psi && s.psi_permille == 0);
}

Test(balloon_stats, names)
{
	for (int i = 0; i < GUEST_NR_STATS; i++)
		cr_expect(guest_stat_name(i) && strncmp(guest_stat_name(i), "stat-", 5) == 0, "%d",
			  i);
}
