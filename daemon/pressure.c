/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "daemon/pressure.h"

/* The average that is looked at is over 10 s: what it shows may be that old. */
#define CALM_US 10000000

static int read_meminfo(const char *path, struct pressure_sample *s)
{
	FILE *f = fopen(path, "re");
	char line[128];
	u64 kib;

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "MemTotal: %" SCNu64 " kB", &kib) == 1)
			s->total_bytes = kib * 1024;
		else if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
			s->available_bytes = kib * 1024;
		else if (sscanf(line, "SwapFree: %" SCNu64 " kB", &kib) == 1)
			s->swap_free_bytes = kib * 1024;
	}
	fclose(f);
	return s->total_bytes && s->available_bytes ? 0 : -EPROTO;
}

int pressure_read(const char *psi_path, const char *meminfo_path, struct pressure_sample *ret)
{
	struct pressure_sample s = { 0 };
	FILE *f = fopen(psi_path, "re");
	u32 whole, hundredths;
	int r;

	if (f) {
		if (fscanf(f, "some avg10=%u.%2u", &whole, &hundredths) == 2 && whole <= 100) {
			s.has_some = true;
			s.some_permille = whole * 10 + hundredths / 10;
		}
		fclose(f);
	}
	r = read_meminfo(meminfo_path, &s);
	if (r == 0)
		*ret = s;
	return r;
}

static u64 part(u64 bytes, u32 permille)
{
	return (u64)((__uint128_t)bytes * permille / 1000);
}

bool pressure_update(struct pressure *p, const struct pressure_limits *limits,
		     const struct pressure_sample *s, u64 now_us)
{
	bool some = limits->some_permille && s->has_some, high, low;
	u64 least = part(s->total_bytes, limits->available_permille);

	high = (some && s->some_permille >= limits->some_permille) || s->available_bytes < least;
	if (!p->on) {
		p->on = high;
		p->calm = false;
		return high;
	}
	/* Half the waiting, a quarter more memory: what the extra work frees must not end it. */
	low = (!some || s->some_permille < (limits->some_permille + 1) / 2) &&
	      s->available_bytes >= least + least / 4;
	if (!low || !p->calm) {
		p->calm = low;
		p->calm_since_us = now_us;
		return false;
	}
	if (now_us - p->calm_since_us < CALM_US)
		return false;
	p->on = p->calm = false;
	return true;
}
