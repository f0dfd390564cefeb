/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include "daemon/pacing.h"

/* A worker that takes every slice it is given, for @us: how much CPU does it use? */
static u64 greedy(u32 permille, u64 us, u64 overshoot_us)
{
	struct pacing p = { .permille = permille };
	u64 now = 1000000, cpu = 0, end = now + us;

	pacing_update(&p, now, cpu);
	while (now < end) {
		u64 slice = pacing_slice_us(&p);

		if (slice) {
			now += slice + overshoot_us;
			cpu += slice + overshoot_us;
		} else {
			u64 ready = pacing_ready_us(&p);

			cr_assert_gt(ready, now - 1);
			now = ready > now ? ready : now + 1;
		}
		pacing_update(&p, now, cpu);
	}
	return cpu;
}

Test(pacing, holds_the_budget_over_ten_seconds)
{
	cr_assert_leq(greedy(50, 10000000, 0), 10000000 / 1000 * 50 + 12000);
	cr_assert_geq(greedy(50, 10000000, 0), 10000000 / 1000 * 48);
	cr_assert_geq(greedy(1000, 1000000, 0), 980000u);
}

Test(pacing, pays_back_what_a_slice_overran)
{
	cr_assert_leq(greedy(50, 10000000, 30000), 10000000 / 1000 * 50 + 45000);
}

Test(pacing, does_not_save_up_for_later)
{
	struct pacing p = { .permille = 50 };
	u64 burst = 0;

	pacing_update(&p, 0, 0);
	pacing_update(&p, 3600000000ull, 0); /* an idle hour */
	while (pacing_slice_us(&p)) {
		burst += pacing_slice_us(&p);
		pacing_update(&p, 3600000000ull, burst);
	}
	cr_assert_leq(burst, 12000u);
}
