/* SPDX-License-Identifier: MIT */
/*
 * What the agent is asked to do while its calls fail. Each scenario begins with a guest of its own:
 *
 *   scenario_begin()   memory, a region of it, some of it merged: nothing fails
 *   act()              the work, with calls failing; checks what must hold whatever fails
 *   after()            the same, nothing failing: all of it must be done now
 *   scenario_end()     every byte is right; the memory goes
 */
#ifndef BALLAST_TESTS_FAULTS_SCENARIOS_H
#define BALLAST_TESTS_FAULTS_SCENARIOS_H

#include "tests/live/faults/inject.h"
#include "tests/live/faults/world.h"

struct scenario {
	const char *name;
	void (*act)(void);
	void (*after)(void);
};

extern const struct scenario scenarios[];
extern const u32 nr_scenarios;
extern struct bh_agent *agent;

bool scenario_begin(void);
void scenario_end(void);
/* What went wrong since scenario_forgive(), the first of it; NULL. */
const char *scenario_trouble(void);
void scenario_forgive(void);

#endif
