/* SPDX-License-Identifier: MIT */
/*
 * The thread "ballast-fault": answers accesses to holes in adopted chunks.
 *
 * A hole is there because the pager has the page (pager.c), or because the guest never touched it,
 * or because it was discarded: then it reads as zeros. It is never a page on its way to the store,
 * since that one is in its place again before @lock is released (agent.h, ii). Nothing here asks
 * the daemon (invariant 6).
 */
#include <errno.h>
#include <poll.h>
#include <unistd.h>
#include "common/clock.h"
#include "hypervisor-hooks/agent.h"

/* After this many first touches a chunk is no longer worth trapping for. */
#define FAULTS_BEFORE_RELEASE 8

/* A sleep is longer than it was asked for: what was slept too long is made up for. */
#define PACE_BURST_US	 2000
#define PACE_WAIT_MAX_US 20000

static const u8 zeros[PAGE_BYTES] __attribute__((aligned(PAGE_BYTES)));

/* Bucket i is for less than 2^i us. */
static u32 latency_bucket(u64 ns)
{
	u64 us = ns / 1000;
	u32 bucket = us ? 64 - (u32)__builtin_clzll(us) : 0;

	return MIN(bucket, BH_LATENCY_BUCKETS - 1u);
}

void fault_tell(struct bh_agent *a, u64 hva, enum bh_fault_kind kind, u64 read_ns)
{
	const struct bh_fault f = { .hva = hva, .kind = kind, .latency_ns = now_ns() - read_ns };

	a->latency[kind].sum_ns += f.latency_ns;
	a->latency[kind].buckets[latency_bucket(f.latency_ns)]++;
	if (a->cfg.fault)
		a->cfg.fault(a->cfg.fault_arg, &f);
}

/*
 * What comes back takes memory. Where the host has next to none left it comes no faster than the
 * daemon said a moment ago (invariant 6: nobody waits for it to say so): the guest is slow for a
 * while, where it would be killed otherwise.
 */
static void keep_pace(struct bh_agent *a)
{
	u64 now = now_us(), pace = a->pager.pace, *due = &a->pager.due_us;

	if (!pace || now >= a->pager.pace_until_us)
		return;
	*due = MAX(*due + 1000000 / pace, now > PACE_BURST_US ? now - PACE_BURST_US : 0);
	if (*due > now)
		usleep((useconds_t)MIN(*due - now, (u64)PACE_WAIT_MAX_US));
}

/* A hole that nobody has the content of. */
static enum bh_fault_kind fill_zero(struct bh_agent *a, struct bh_region *r, u64 hva, bool write)
{
	u64 done;
	int err;

	/* A write gets its page at once; a read gets the shared zero page. Fails with EEXIST or
	 * ENOENT when the page is there by now: the event was of an access that waited for a move.
	 */
	err = write ? uffd_copy(a->uffd, hva, zeros, PAGE_BYTES)
		    : uffd_zeropage(a->uffd, hva, PAGE_BYTES, &done);
	/* A hole that carries a write-protection marker takes no zero page, but a copy. */
	if (!write && err == -EEXIST)
		err = uffd_copy(a->uffd, hva, zeros, PAGE_BYTES);
	if (err < 0) {
		a->wait_faults++;
		return BH_FAULT_WAIT;
	}
	a->fill_faults++;
	if (r) {
		u64 c = (hva - r->hva) >> CHUNK_SHIFT;

		if (r->chunk_faults[c] < FAULTS_BEFORE_RELEASE)
			r->chunk_faults[c]++;
		if (r->chunk_faults[c] == FAULTS_BEFORE_RELEASE)
			chunk_release(a, r, c);
	}
	return BH_FAULT_FILL;
}

static void answer(struct bh_agent *a, u64 addr, bool write, u64 read_ns)
{
	u64 hva = ROUND_DOWN(addr, PAGE_BYTES);
	enum bh_fault_kind kind = BH_FAULT_IN;
	struct bh_region *r;
	u64 page;

	keep_pace(a);
	lock_urgent(a);
	r = region_find(a, hva, PAGE_BYTES);
	page = r ? (hva - r->hva) >> PAGE_SHIFT : 0;
	/* Others do not wait for a medium. */
	if (r && pager_on_medium(a, r, page) && swap_will_fill(a, hva, read_ns)) {
		pthread_mutex_unlock(&a->lock);
		return;
	}
	/* What the pager holds is never filled with zeros, whatever becomes of bringing it back
	 * (invariant 8): the access comes again. */
	if (r && pager_holds(r, page))
		(void)pager_fill(a, r, page);
	else
		kind = fill_zero(a, r, hva, write);
	pthread_mutex_unlock(&a->lock);
	uffd_wake(a->uffd, hva, PAGE_BYTES);
	fault_tell(a, hva, kind, read_ns);
}

void *fault_main(void *agent)
{
	struct bh_agent *a = agent;
	struct uffd_msg msg[16];

	while (!a->stop) {
		struct pollfd p = { .fd = a->uffd, .events = POLLIN };
		u64 read_ns;
		ssize_t n;

		if (poll(&p, 1, 1000) <= 0)
			continue;
		n = read(a->uffd, msg, sizeof(msg));
		read_ns = now_ns();
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(msg[0]); i++)
			if (msg[i].event == UFFD_EVENT_PAGEFAULT)
				answer(a, msg[i].arg.pagefault.address,
				       msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
				       read_ns);
	}
	return NULL;
}
