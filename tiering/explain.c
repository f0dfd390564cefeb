/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include "tiering/policy.h"

const char *policy_state_name(enum policy_state s)
{
	static const char *const names[] = { "high", "soft", "hard", "low" };

	return names[s];
}

const char *policy_mechanism_name(enum policy_mechanism m)
{
	static const char *const names[] = { "sharing", "balloon", "compression", "swap" };

	return names[m];
}

#define MIB_OF(bytes) ((unsigned long long)(bytes) >> 20)

const char *policy_explain(const struct policy_action *a, const char *vm, char *buf, size_t size)
{
	const char *by = policy_mechanism_name(a->mechanism);
	char cost[32] = ""; /* of what was measured */

	switch (a->reason) {
	case POLICY_GUEST_PRESSURE:
		snprintf(buf, size, "%s gets %llu MiB back (%s): its guest is short of memory", vm,
			 MIB_OF(a->bytes), by);
		break;
	case POLICY_HOST_HAS:
		snprintf(buf, size, "%s gets %llu MiB back (%s): the host has memory to spare", vm,
			 MIB_OF(a->bytes), by);
		break;
	case POLICY_OVER_MAX:
		snprintf(buf, size,
			 "%s gives %llu MiB (%s): it has %llu MiB, and its maximum is %llu MiB", vm,
			 MIB_OF(a->bytes), by, MIB_OF(a->resident_bytes),
			 MIB_OF(a->entitled_bytes));
		break;
	case POLICY_USED_LESS:
		snprintf(buf, size,
			 "%s gives %llu MiB (%s): others use theirs more, and for its shares it is "
			 "entitled to %llu of the %llu MiB that it has",
			 vm, MIB_OF(a->bytes), by, MIB_OF(a->entitled_bytes),
			 MIB_OF(a->resident_bytes));
		break;
	case POLICY_HOST_SHORT:
	case POLICY_LAST_RESORT:
		if (a->cost_us_per_mib)
			snprintf(cost, sizeof(cost), ", %llu us a MiB",
				 (unsigned long long)a->cost_us_per_mib);
		snprintf(buf, size,
			 "%s gives %llu MiB (%s%s): the host is short, and for its shares it is "
			 "entitled to %llu of the %llu MiB that it has%s",
			 vm, MIB_OF(a->bytes), by, cost, MIB_OF(a->entitled_bytes),
			 MIB_OF(a->resident_bytes),
			 a->reason == POLICY_LAST_RESORT
				 ? "; this is below its minimum, as last_resort allows"
				 : "");
		break;
	}
	return buf;
}
