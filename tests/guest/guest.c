/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "tests/guest/guest.h"

/* The finaliser of splitmix64: a bijection, so different inputs never give the same word. */
u64 content_mix(u64 x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

u64 content_word(u64 key, u32 word)
{
	return key == CONTENT_ZERO ? 0 : content_mix(key * PAGE_WORDS + word);
}

void content_fill(u64 *page, u64 key)
{
	for (u32 w = 0; w < PAGE_WORDS; w++)
		page[w] = content_word(key, w);
}

u64 guest_param(const char *name, u64 dflt)
{
	static char line[4096];
	size_t n = strlen(name);

	if (!line[0]) {
		FILE *f = fopen("/proc/cmdline", "re");

		if (!f || !fgets(line, sizeof(line), f))
			guest_die("/proc/cmdline");
		fclose(f);
	}
	for (char *p = line; (p = strstr(p, name)); p += n) {
		if ((p == line || p[-1] == ' ') && p[n] == '=')
			return strtoull(p + n + 1, NULL, 10);
	}
	return dflt;
}

void *guest_alloc(u64 bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		guest_die("mmap");
	return p;
}

void guest_die(const char *what)
{
	perror(what);
	puts("GUEST-FAILED");
	fflush(stdout);
	exit(1);
}
