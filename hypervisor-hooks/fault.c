/* SPDX-License-Identifier: MIT */
/*
 * The thread "ballast-fault": answers accesses to holes in adopted chunks.
 *
 * A hole is there because the guest never touched the page, or because it was discarded: it reads
 * as zeros. It is never a page on its way to the store, since that one is in its place again before
 * @lock is released (agent.h, ii). Nothing here asks the daemon (invariant 6).
 */
#include <errno.h>
#include <poll.h>
#include <unistd.h>
#include "hypervisor-hooks/agent.h"

/* After this many first touches a chunk is no longer worth trapping for. */
#define FAULTS_BEFORE_RELEASE 8

static const u8 zeros[PAGE_BYTES] __attribute__((aligned(PAGE_BYTES)));

static void answer(struct bh_agent *a, u64 addr, bool write)
{
	u64 hva = ROUND_DOWN(addr, PAGE_BYTES), done;
	struct bh_region *r;
	int err;

	lock_urgent(a);
	r = region_find(a, hva, PAGE_BYTES);
	/* A write gets its page at once; a read gets the shared zero page. Fails with EEXIST or
	 * ENOENT when the page is there by now: the event was of an access that waited for a move.
	 */
	err = write ? uffd_copy(a->uffd, hva, zeros, PAGE_BYTES)
		    : uffd_zeropage(a->uffd, hva, PAGE_BYTES, &done);
	/* A hole that carries a write-protection marker takes no zero page, but a copy. */
	if (!write && err == -EEXIST)
		err = uffd_copy(a->uffd, hva, zeros, PAGE_BYTES);
	if (err == 0) {
		a->fill_faults++;
		if (r) {
			u64 c = (hva - r->hva) >> CHUNK_SHIFT;

			if (++r->chunk_faults[c] >= FAULTS_BEFORE_RELEASE)
				chunk_release(a, r, c);
		}
	} else {
		a->wait_faults++;
	}
	pthread_mutex_unlock(&a->lock);
	uffd_wake(a->uffd, hva, PAGE_BYTES);
}

void *fault_main(void *agent)
{
	struct bh_agent *a = agent;
	struct uffd_msg msg[16];

	while (!a->stop) {
		struct pollfd p = { .fd = a->uffd, .events = POLLIN };
		ssize_t n;

		if (poll(&p, 1, 1000) <= 0)
			continue;
		n = read(a->uffd, msg, sizeof(msg));
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(msg[0]); i++)
			if (msg[i].event == UFFD_EVENT_PAGEFAULT)
				answer(a, msg[i].arg.pagefault.address,
				       msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE);
	}
	return NULL;
}
