/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "tests/live/faults/world.h"

#define PAGEMAP_FILE ((u64)1 << 61)

u8 contents[NR_CONTENTS][PAGE_BYTES];

static struct {
	u32 content;
	enum page_use use;
	u64 counter; /* PAGE_HOT: what its first word holds */
} model[GUEST_PAGES];

/* Held by the guest for one look at all pages, by others to change what they are. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint waiting;
static _Atomic u64 rounds, accesses;
static atomic_bool wrong;
static char complaint[160];
static u8 *ram;
static int pagemap_fd;

static void complain(u32 page, const u8 *got, const char *what)
{
	u32 at = 0;

	if (wrong)
		return;
	while (at < PAGE_BYTES - 1 && got[at] == contents[model[page].content][at])
		at++;
	snprintf(complaint, sizeof(complaint),
		 "page %u, which holds content %u: %s; byte %u is %#x and not %#x", page,
		 model[page].content, what, at, got[at], contents[model[page].content][at]);
	wrong = true;
}

static void look_at(u32 page)
{
	u8 *p = ram + ((u64)page << PAGE_SHIFT);
	const u8 *want = contents[model[page].content];
	volatile u64 *word = (volatile u64 *)p;

	switch (model[page].use) {
	case PAGE_AWAY:
		return;
	case PAGE_STILL:
		if (memcmp(p, want, PAGE_BYTES) != 0)
			complain(page, p, "a read got other bytes");
		break;
	case PAGE_HOT:
		if (*word != model[page].counter)
			complain(page, p, "a write is lost");
		*word = ++model[page].counter;
		if (memcmp(p + sizeof(u64), want + sizeof(u64), PAGE_BYTES - sizeof(u64)) != 0)
			complain(page, p, "a read beside a write got other bytes");
	}
	accesses++;
}

static void *guest_main(void *arg)
{
	for (;;) {
		while (waiting)
			usleep(20);
		pthread_mutex_lock(&lock);
		for (u32 i = 0; ram && i < GUEST_PAGES; i++)
			look_at(i);
		rounds++;
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

/* False: the guest hangs in an access, with the lock held. */
static bool take(void)
{
	struct timespec end;
	int r;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += PATIENCE_MS / 1000;
	waiting++;
	r = pthread_mutex_timedlock(&lock, &end);
	waiting--;
	return r == 0;
}

static void give(void)
{
	pthread_mutex_unlock(&lock);
}

int guest_start(void)
{
	pthread_t t;

	for (u64 id = 1; id < NR_CONTENTS; id++) {
		u64 *word = (u64 *)contents[id];

		for (u64 i = 0; i < PAGE_BYTES / sizeof(u64); i++)
			word[i] = (id << 32 | (id < PACKABLE ? i : i % 32)) * 0x9e3779b97f4a7c15;
	}
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		return -errno;
	return -pthread_create(&t, NULL, guest_main, NULL);
}

int guest_new(void)
{
	/* Without neighbours that could become one mapping with it. */
	u8 *at = mmap(NULL, GUEST_BYTES + 2 * CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);

	if (at == MAP_FAILED)
		return -errno;
	at = (u8 *)(uintptr_t)ROUND_UP((u64)(uintptr_t)at + PAGE_BYTES, CHUNK_BYTES);
	if (mmap(at, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		 -1, 0) == MAP_FAILED ||
	    madvise(at, GUEST_BYTES, MADV_NOHUGEPAGE) < 0)
		return -errno;
	if (!take())
		return -ETIMEDOUT;
	memset(model, 0, sizeof(model));
	ram = at;
	give();
	return 0;
}

void guest_delete(void)
{
	u8 *at = ram;

	if (!take())
		return;
	ram = NULL;
	give();
	/* The room on both sides stays with it: no page of this address is ever used again. */
	mmap(at, GUEST_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

u8 *guest_page(u32 page)
{
	return ram + ((u64)page << PAGE_SHIFT);
}

u64 guest_hva(u32 page)
{
	return (u64)(uintptr_t)guest_page(page);
}

void guest_write(u32 page, u32 content, enum page_use use)
{
	if (!take())
		return;
	model[page].content = content;
	model[page].use = use;
	memcpy(guest_page(page), contents[content], PAGE_BYTES);
	memcpy(&model[page].counter, contents[content], sizeof(u64));
	give();
}

void guest_use(u32 page, u32 nr, enum page_use use)
{
	if (!take())
		return;
	for (u32 i = page; i < page + nr; i++)
		model[i].use = use;
	give();
}

void guest_expect(u32 page, u32 content)
{
	if (!take())
		return;
	model[page].content = content;
	memcpy(&model[page].counter, contents[content], sizeof(u64));
	give();
}

u32 guest_content(u32 page)
{
	return model[page].content;
}

enum page_use guest_uses(u32 page)
{
	return model[page].use;
}

bool guest_lives(void)
{
	u64 from = rounds, end = now_us() + PATIENCE_MS * 1000;

	/* One more than that which may have been half done. */
	while (rounds < from + 2 && now_us() < end)
		usleep(20);
	return rounds >= from + 2;
}

const char *guest_complaint(void)
{
	return wrong ? complaint : NULL;
}

u64 guest_accesses(void)
{
	return accesses;
}

bool guest_page_is_watched(u32 page)
{
	const struct pagemap_query q = { .all = PAGE_IS_WPALLOWED };
	struct page_region r;
	u64 end;

	return pagemap_scan(pagemap_fd, guest_hva(page), guest_hva(page + 1), &q, &r, 1, &end) == 1;
}

bool guest_page_is_file(u32 page)
{
	u64 entry = 0;

	if (pread(pagemap_fd, &entry, sizeof(entry),
		  (off_t)((guest_hva(page) >> PAGE_SHIFT) * sizeof(entry))) != sizeof(entry))
		return false;
	return entry & PAGEMAP_FILE;
}
