/* SPDX-License-Identifier: MIT */
/*
 * Move, verify, map: how a page of a guest is replaced by a page of the store, or by the zero page.
 *
 * Anonymous pages (nearly all):
 *   1. The chunk is adopted, so that an access to a hole waits instead of reading zeros.
 *   2. UFFDIO_MOVE takes the pages out of the guest, atomically, to the staging area. A page pinned
 *      for DMA cannot be moved (EBUSY), so no device can write it from here on; nobody else has it
 *      mapped.
 *   3. Every byte is compared with what shall replace it. Nothing can change now: invariant 2.
 *   4. Equal: the replacement is mapped in the hole's place. Different: the page is moved back.
 *      Either way it happens before @lock is released, then the waiters are woken.
 *
 * Pages inside a mapping of the store (the guest broke copy-on-write and wrote them): UFFDIO_MOVE
 * does not take pages out of file mappings. Instead they are write-protected with the second,
 * synchronous context: reads go on, a write waits. Then compared in place, and the replacement is
 * mapped over them in one mmap(), which no access can see the middle of. Write-protection does not
 * stop a device that pinned the page before, so this is done only where no descriptor of the
 * process can start such DMA (dma.c).
 */
#include <errno.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "hypervisor-hooks/agent.h"

/* UFFDIO_MOVE says EAGAIN when the mappings change under it; that passes, or the page can stay
 * private. */
#define MOVE_TRIES 8

static const u8 zero_page[PAGE_BYTES] __attribute__((aligned(PAGE_BYTES)));

/* What one step works on: @nr pages of a region from @page on, and what shall replace them. */
struct step {
	struct bh_agent *a;
	struct bh_region *r;
	u64 page;
	u32 nr;
	enum wire_run_kind kind;
	u64 store_offset;
	s32 *status;
};

static bool same_as_replacement(const struct step *s, u32 i, const void *content)
{
	const void *want = s->kind == WIRE_RUN_ZERO ? zero_page : s->a->reference + i * PAGE_BYTES;

	return memcmp(content, want, PAGE_BYTES) == 0;
}

static void set_status(struct step *s, u32 i, u32 nr, s32 value)
{
	for (u32 k = i; k < i + nr; k++)
		s->status[k] = value;
}

static u64 staged(const struct step *s, u32 i)
{
	return (u64)(uintptr_t)s->a->staging + i * PAGE_BYTES;
}

/*
 * Puts pages back into the hole that they left. This must succeed: the content exists nowhere else.
 * The hole is ours alone (accesses wait, @lock is held), so all that can go wrong is a shortage of
 * memory for a page table.
 */
static void move_back(struct step *s, u32 i, u32 nr)
{
	for (u32 done = 0, tries = 0; done < nr; tries++) {
		u64 hva = page_hva(s->r, s->page + i + done);
		u64 moved;
		int err = uffd_move(s->a->uffd, hva, staged(s, i + done), (nr - done) * PAGE_BYTES,
				    &moved);

		done += (u32)(moved >> PAGE_SHIFT);
		if (err == 0 || moved)
			continue;
		if (err != -EAGAIN &&
		    uffd_copy(s->a->uffd, hva, (void *)(uintptr_t)staged(s, i + done),
			      PAGE_BYTES) == 0) {
			done++;
			continue;
		}
		if (tries > 1000) {
			agent_log(s->a,
				  "cannot put a guest page back (%s): stopping the VM rather than "
				  "letting it read wrong bytes",
				  strerror(-err));
			abort();
		}
		usleep(1000);
	}
}

/* Replaces pages that are out of the guest and verified. */
static int map_replacement(struct step *s, u32 i, u32 nr)
{
	u64 done;
	int err;

	if (s->kind == WIRE_RUN_STORE)
		return region_replace_store(s->a, s->r, s->page + i, nr,
					    s->store_offset + i * PAGE_BYTES);
	err = uffd_zeropage(s->a->uffd, page_hva(s->r, s->page + i), nr * PAGE_BYTES, &done);
	if (err < 0 && done > 0) {
		/* Part of it is done: those pages are right as they are, and the others go back. */
		move_back(s, i + (u32)(done >> PAGE_SHIFT), nr - (u32)(done >> PAGE_SHIFT));
		set_status(s, i + (u32)(done >> PAGE_SHIFT), nr - (u32)(done >> PAGE_SHIFT), err);
		return 0;
	}
	return err;
}

/* Pages [i, i + nr) are in staging: verify each, map or move back each. */
static void settle_moved(struct step *s, u32 i, u32 nr)
{
	/* UFFDIO_MOVE refuses pages that are pinned, but some users of direct I/O only hold a
	 * reference (dma.c). Asked now: what starts later finds the hole, and waits. */
	if (dma_unpinned_possible(s->a)) {
		move_back(s, i, nr);
		set_status(s, i, nr, -EBUSY);
		return;
	}
	for (u32 end = i + nr, n; i < end; i += n) {
		bool same = same_as_replacement(s, i, s->a->staging + i * PAGE_BYTES);
		int err = -EILSEQ;

		for (n = 1; i + n < end; n++)
			if (same_as_replacement(s, i + n, s->a->staging + (i + n) * PAGE_BYTES) !=
			    same)
				break;
		if (same) {
			set_status(s, i, n, 0);
			err = map_replacement(s, i, n);
		}
		if (err < 0) {
			move_back(s, i, n);
			set_status(s, i, n, err);
		}
	}
}

static int take_out(struct step *s, u32 i, u32 nr, u64 *ret_moved)
{
	return uffd_move(s->a->uffd, staged(s, i), page_hva(s->r, s->page + i), nr * PAGE_BYTES,
			 ret_moved);
}

static void merge_anonymous(struct step *s)
{
	u64 hva = page_hva(s->r, s->page);
	int err = region_adopt(s->a, s->r, s->page, s->nr);
	u32 tries = 0;

	if (err < 0) {
		set_status(s, 0, s->nr, err);
		return;
	}
	for (u32 i = 0; i < s->nr;) {
		u64 moved;

		err = take_out(s, i, s->nr - i, &moved);
		/* One call takes pages of one mapping only, and there may be a seam in the step. */
		if (err == -EINVAL && !moved && s->nr - i > 1)
			err = take_out(s, i, 1, &moved);
		if (moved) {
			settle_moved(s, i, (u32)(moved >> PAGE_SHIFT));
			i += (u32)(moved >> PAGE_SHIFT);
			tries = 0;
		} else if (err == -EAGAIN && ++tries < MOVE_TRIES) {
			continue;
		} else {
			/* The page never left: it stays private (invariant 7). */
			s->status[i++] = err;
			tries = 0;
		}
	}
	uffd_wake(s->a->uffd, hva, s->nr * PAGE_BYTES);
	/* Frees the copies of what was replaced; what was moved back is not there any more. After
	 * an mlockall() of the VMM only the second way works. */
	if (kernel_madvise(s->a->staging, s->nr * PAGE_BYTES, MADV_DONTNEED) < 0)
		kernel_madvise(s->a->staging, s->nr * PAGE_BYTES, MADV_DONTNEED_LOCKED);
}

static int replace_in_place(struct step *s, u32 i, u32 nr)
{
	if (s->kind == WIRE_RUN_STORE)
		return region_replace_store(s->a, s->r, s->page + i, nr,
					    s->store_offset + i * PAGE_BYTES);
	return region_replace_anon(s->a, s->r, s->page + i, nr);
}

/*
 * Is there a discard that the daemon does not know of yet? It is older than this step but told
 * after this step's answer: a page merged now would be forgotten by it while it is mapped
 * (invariant 4).
 */
static bool discard_is_due(const struct bh_agent *a, u64 hva, u64 bytes)
{
	for (u32 i = 0; i < a->nr_discards; i++)
		if (a->discards[i].hva < hva + bytes &&
		    hva < a->discards[i].hva + a->discards[i].bytes)
			return true;
	return false;
}

static void merge_in_mapping(struct step *s)
{
	struct bh_agent *a = s->a;
	u64 hva = page_hva(s->r, s->page), bytes = s->nr * PAGE_BYTES;
	int err;

	err = uffd_register(a->uffd_sync, hva, bytes, UFFDIO_REGISTER_MODE_WP);
	if (err < 0) {
		set_status(s, 0, s->nr, err);
		return;
	}
	err = uffd_writeprotect(a->uffd_sync, hva, bytes, true);
	/* Asked after the protection: DMA that starts later has to fault, and waits. */
	if (err == 0 && dma_possible(a))
		err = -EBUSY;
	if (err < 0)
		set_status(s, 0, s->nr, err);
	for (u32 i = 0, n; err == 0 && i < s->nr; i += n) {
		const u8 *guest = (const u8 *)(uintptr_t)hva;
		bool same = same_as_replacement(s, i, guest + i * PAGE_BYTES);

		for (n = 1; i + n < s->nr; n++)
			if (same_as_replacement(s, i + n, guest + (i + n) * PAGE_BYTES) != same)
				break;
		set_status(s, i, n, same ? replace_in_place(s, i, n) : -EILSEQ);
	}
	/* What was replaced is not registered any more: unregister only what stayed. */
	for (u32 i = 0, n; i < s->nr; i += n) {
		bool stayed = s->status[i] != 0;

		for (n = 1; i + n < s->nr; n++)
			if ((s->status[i + n] != 0) != stayed)
				break;
		if (stayed)
			uffd_unregister(a->uffd_sync, hva + i * PAGE_BYTES, n * PAGE_BYTES);
	}
	uffd_wake(a->uffd_sync, hva, bytes);
}

static void count(struct bh_agent *a, const struct step *s)
{
	for (u32 i = 0; i < s->nr; i++) {
		switch (s->status[i]) {
		case 0:
			(*(s->kind == WIRE_RUN_ZERO ? &a->zeroed_pages : &a->merged_pages))++;
			break;
		case -EBUSY:
			a->pinned_pages++;
			break;
		case -EILSEQ:
			a->moved_back_pages++;
			break;
		default:
			a->failed_pages++;
		}
	}
}

/* The store's file grows, and never shrinks. */
static bool store_has(struct bh_agent *a, u64 bytes)
{
	struct stat st;

	if (bytes > a->store_bytes && fstat(a->store_fd, &st) == 0)
		a->store_bytes = (u64)st.st_size;
	return bytes <= a->store_bytes;
}

/* The store's pages, to compare with; not by a mapping, which would count as memory of this VMM. */
static int read_reference(struct bh_agent *a, u64 offset, u64 bytes)
{
	u64 done = 0;

	if (offset + bytes < offset || !store_has(a, offset + bytes))
		return -ERANGE;
	while (done < bytes) {
		ssize_t n = pread(a->store_fd, a->reference + done, bytes - done,
				  (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (u64)n;
	}
	return 0;
}

void merge_run(struct bh_agent *a, const struct wire_run *run, s32 *status)
{
	for (u32 done = 0, n; done < run->nr_pages; done += n) {
		struct step s = {
			.a = a,
			.kind = run->kind,
			.store_offset = run->store_offset + done * PAGE_BYTES,
			.status = status + done,
		};
		u64 hva = run->hva + done * PAGE_BYTES;
		int err = 0;

		n = MIN(run->nr_pages - done, BH_STEP_PAGES);
		if (run->kind == WIRE_RUN_STORE)
			err = read_reference(a, s.store_offset, n * PAGE_BYTES);
		lock_step(a);
		s.r = region_find(a, hva, n * PAGE_BYTES);
		if (!s.r || discard_is_due(a, hva, n * PAGE_BYTES))
			err = -ENOENT;
		else
			s.page = (hva - s.r->hva) >> PAGE_SHIFT;
		if (err < 0) {
			s.nr = n;
			set_status(&s, 0, n, err);
		} else {
			/* A step is one kind of memory; the rest of it is the next step. */
			n = (u32)same_kind(s.r, s.page, s.page + n);
			s.nr = n;
			switch (page_kind(s.r, s.page)) {
			case PAGE_ANONYMOUS:
				merge_anonymous(&s);
				break;
			case PAGE_MAPPED:
				merge_in_mapping(&s);
				break;
			case PAGE_FOREIGN:
				set_status(&s, 0, n, -ENOENT);
			}
		}
		pthread_mutex_unlock(&a->lock);
		count(a, &s);
	}
}

void unmerge_range(struct bh_agent *a, u64 hva, u64 nr, s32 *status)
{
	for (u64 done = 0, n; done < nr; done += n) {
		struct bh_region *r;
		int err = 0;

		n = MIN(nr - done, BH_STEP_PAGES);
		lock_step(a);
		r = region_find(a, hva + (done << PAGE_SHIFT), n << PAGE_SHIFT);
		if (!r) {
			err = -ENOENT;
		} else {
			u64 page = (hva + (done << PAGE_SHIFT) - r->hva) >> PAGE_SHIFT;

			n = same_kind(r, page, page + n);
			/* The kernel breaks copy-on-write as a guest write would, but changes no
			 * byte. */
			if (page_kind(r, page) == PAGE_MAPPED &&
			    kernel_madvise((void *)(uintptr_t)page_hva(r, page), n << PAGE_SHIFT,
					   MADV_POPULATE_WRITE) < 0)
				err = -errno;
		}
		pthread_mutex_unlock(&a->lock);
		for (u64 i = done; i < done + n; i++)
			status[i] = err;
		if (err == 0)
			a->unmerged_pages += n;
	}
}
