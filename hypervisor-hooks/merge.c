/* SPDX-License-Identifier: MIT */
/*
 * Move, verify, map: how a page of a guest is replaced by a page of the store, or by the zero page.
 *
 * A request is done in batches: pieces of its runs, at most BH_STEP_PAGES pages in all, so that
 * what costs a system call whatever its size is paid once for many single pages.
 *
 * Anonymous pages (nearly all):
 *   1. The chunk is adopted, so that an access to a hole waits instead of reading zeros.
 *   2. UFFDIO_MOVE takes the pages out of the guest, atomically, to the staging area. A page pinned
 *      for DMA cannot be moved (EBUSY), so no device can write it from here on; nobody else has it
 *      mapped. What has come is read from the page table, not from what the call returns:
 *      arrived().
 *   3. Every byte is compared with what shall replace it. Nothing can change now: invariant 2.
 *   4. Equal: the replacement is mapped in the hole's place. Different: the page is moved back.
 *      Either way it happens before @lock is released, then the waiters are woken.
 *
 * Pages inside a mapping of the store (the guest broke copy-on-write and wrote them): UFFDIO_MOVE
 * does not take pages out of file mappings. Instead they are write-protected with the second,
 * synchronous context: reads go on, a write waits. Then compared in place, and the replacement is
 * mapped over them in one mmap(), which no access can see the middle of. Write-protection does not
 * stop a device that pinned the page before, so this is done only where no descriptor of the
 * process can start such DMA (dma.c), or the VMM says which pages are under DMA: those are left
 * alone from the start (pins.c).
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
/* A second: what is wanting that long (memory for a page table) will not come. */
#define LAST_TRIES    1000
#define LAST_PAUSE_US 1000
/* Of a page while it is in the staging area: no errno, and not yet done. */
#define TAKEN 1

static const u8 zero_page[PAGE_BYTES] __attribute__((aligned(PAGE_BYTES)));

/* One piece of a batch: @nr pages of a region from @page on, and what shall replace them. */
struct step {
	struct bh_agent *a;
	struct bh_region *r; /* NULL: nothing to be done, the status is set */
	bool anonymous;	     /* else in a mapping of the store */
	u64 hva, page;
	u32 nr;
	u32 slot; /* its first page in the staging area and in @reference */
	enum wire_run_kind kind;
	u64 store_offset; /* of WIRE_RUN_SAMPLE: the round */
	s32 *status;
	u32 taken; /* pages that are out of the guest: the first ones */
};

struct batch {
	struct step steps[BH_STEP_PAGES]; /* a step may have to be cut down to single pages */
	u32 nr, pages;
};

static bool same_as_replacement(const struct step *s, u32 i, const void *content)
{
	const void *want = s->kind == WIRE_RUN_ZERO ? zero_page
						    : s->a->reference + (s->slot + i) * PAGE_BYTES;

	return memcmp(content, want, PAGE_BYTES) == 0;
}

static void set_status(struct step *s, u32 i, u32 nr, s32 value)
{
	for (u32 k = i; k < i + nr; k++)
		s->status[k] = value;
}

static u64 staged(const struct step *s, u32 i)
{
	return (u64)(uintptr_t)s->a->staging + (s->slot + i) * PAGE_BYTES;
}

static void give_up(const struct step *s, const char *what, int err)
{
	agent_log(s->a, "cannot %s (%s): stopping the VM rather than letting it read wrong bytes",
		  what, strerror(-err));
	abort();
}

/*
 * How many of the step's pages from @i on are in their slots of the staging area, up to the first
 * that is not. The slots were empty before, so a page that is there was moved, whatever UFFDIO_MOVE
 * returned: where a page was under migration, Linux 6.18 (mm/userfaultfd.c, move_pages()) moves it,
 * tries a second time, and returns the EEXIST that it finds then. To believe that the page never
 * left would throw its only copy away with the staging area (invariant 1).
 */
static u32 arrived(const struct step *s, u32 i)
{
	u8 there[BH_STEP_PAGES];
	u32 nr = s->nr - i, n = 0;

	for (u32 tries = 0; syscall(SYS_mincore, staged(s, i), nr * PAGE_BYTES, there) < 0;
	     tries++) {
		if (tries > LAST_TRIES)
			give_up(s, "tell where a guest page is", -errno);
		usleep(LAST_PAUSE_US);
	}
	while (n < nr && there[n] & 1)
		n++;
	return n;
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
		/* Back in spite of the error. */
		if (!arrived(s, i + done)) {
			done++;
			continue;
		}
		if (err != -EAGAIN &&
		    uffd_copy(s->a->uffd, hva, (void *)(uintptr_t)staged(s, i + done),
			      PAGE_BYTES) == 0) {
			done++;
			continue;
		}
		if (tries > LAST_TRIES)
			give_up(s, "put a guest page back", err);
		usleep(LAST_PAUSE_US);
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
	for (u32 end = i + nr, n; i < end; i += n) {
		bool same = same_as_replacement(s, i, (const void *)(uintptr_t)staged(s, i));
		int err = -EILSEQ;

		for (n = 1; i + n < end; n++)
			if (same_as_replacement(s, i + n,
						(const void *)(uintptr_t)staged(s, i + n)) != same)
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

/* Moves pages of the step out of the guest, as far as they can be: status 1 for those that are. */
static void take_out(struct step *s)
{
	u32 tries = 0;
	int err = region_adopt(s->a, s->r, s->page, s->nr);

	if (err < 0) {
		set_status(s, 0, s->nr, err);
		return;
	}
	for (u32 i = 0; i < s->nr;) {
		u64 hva = page_hva(s->r, s->page + i), moved;

		err = uffd_move(s->a->uffd, staged(s, i), hva, (s->nr - i) * PAGE_BYTES, &moved);
		/* One call takes pages of one mapping only, and there may be a seam in the step. */
		if (err == -EINVAL && !moved && s->nr - i > 1)
			err = uffd_move(s->a->uffd, staged(s, i), hva, PAGE_BYTES, &moved);
		if (!moved)
			moved = arrived(s, i) * PAGE_BYTES;
		if (moved) {
			set_status(s, i, (u32)(moved >> PAGE_SHIFT), TAKEN);
			s->taken += (u32)(moved >> PAGE_SHIFT);
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
}

static bool goes_out(const struct step *s)
{
	return s->kind == WIRE_RUN_OUT || s->kind == WIRE_RUN_SAMPLE;
}

/* Pages [i, i + nr) are in staging, and the pager shall keep them. What it does not take goes back.
 */
static void settle_out(struct step *s, u32 i, u32 nr)
{
	for (u32 end = i + nr; i < end; i++) {
		int err = pager_put(s->a, s->r, s->page + i, (const void *)(uintptr_t)staged(s, i),
				    s->kind == WIRE_RUN_SAMPLE ? s->store_offset : 0);

		if (err < 0) {
			move_back(s, i, 1);
			s->a->pager.refused_total++;
		}
		s->status[i] = err;
	}
}

/* What became of the pages that take_out() took: in their place again, one way or the other. */
static void settle(struct step *s, bool unpinned_dma)
{
	for (u32 i = 0, n; i < s->nr; i += n) {
		n = 1;
		if (s->status[i] != TAKEN)
			continue;
		while (i + n < s->nr && s->status[i + n] == TAKEN)
			n++;
		if (unpinned_dma) {
			move_back(s, i, n);
			set_status(s, i, n, -EBUSY);
		} else if (goes_out(s)) {
			settle_out(s, i, n);
		} else {
			settle_moved(s, i, n);
		}
	}
}

/* Frees the copies of what was replaced; what was moved back is not there any more. After an
 * mlockall() of the VMM only the second way works. */
static void empty_staging(struct bh_agent *a)
{
	const size_t bytes = BH_STEP_PAGES * PAGE_BYTES;

	a->staging_full = kernel_madvise(a->staging, bytes, MADV_DONTNEED) < 0 &&
			  kernel_madvise(a->staging, bytes, MADV_DONTNEED_LOCKED) < 0;
}

static void merge_anonymous(struct bh_agent *a, struct batch *b)
{
	u64 start = UINT64_MAX, end = 0;
	bool unpinned_dma;

	/* It could not be emptied the last time: what is in it must not be taken for what comes
	 * (arrived()). */
	if (a->staging_full)
		empty_staging(a);
	for (u32 i = 0; i < b->nr; i++) {
		struct step *s = &b->steps[i];

		if (!s->r || !s->anonymous)
			continue;
		if (a->staging_full) {
			set_status(s, 0, s->nr, -ENOMEM);
			continue;
		}
		take_out(s);
		if (s->taken) {
			start = MIN(start, s->hva);
			end = MAX(end, s->hva + s->nr * PAGE_BYTES);
		}
	}
	if (!end)
		return;
	/* UFFDIO_MOVE refuses pages that are pinned, but some users of direct I/O only hold a
	 * reference (dma.c). Asked now: what starts later finds the hole, and waits. */
	unpinned_dma = dma_unpinned_possible(a);
	for (u32 i = 0; i < b->nr; i++)
		if (b->steps[i].taken)
			settle(&b->steps[i], unpinned_dma);
	/* Whoever waits for a page in between looks again, and waits on if it must. */
	uffd_wake(a->uffd, start, end - start);
	empty_staging(a);
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
			region_unprotect(a, s->r, s->page + i, n);
	}
	uffd_wake(a->uffd_sync, hva, bytes);
}

static void count(struct bh_agent *a, const struct step *s)
{
	for (u32 i = 0; i < s->nr; i++) {
		switch (s->status[i]) {
		case 0:
			if (goes_out(s))
				break;
			(*(s->kind == WIRE_RUN_ZERO ? &a->zeroed_pages : &a->merged_pages))++;
			break;
		case -EBUSY:
			a->pinned_pages++;
			break;
		case -EFBIG: /* counted by the pager */
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
static int read_reference(struct bh_agent *a, u32 slot, u64 offset, u64 bytes)
{
	u64 done = 0;

	if (offset + bytes < offset || !store_has(a, offset + bytes))
		return -ERANGE;
	while (done < bytes) {
		ssize_t n = pread(a->store_fd, a->reference + slot * PAGE_BYTES + done,
				  bytes - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (u64)n;
	}
	return 0;
}

/* Before @lock is taken. Steps whose store pages follow each other, as they mostly do, are one
 * read. */
static void read_references(struct bh_agent *a, struct batch *b)
{
	for (u32 i = 0, n; i < b->nr; i += n) {
		struct step *s = &b->steps[i];
		u32 pages = s->nr;
		int err = 0;

		n = 1;
		if (s->kind != WIRE_RUN_STORE)
			continue;
		while (i + n < b->nr && s[n].kind == WIRE_RUN_STORE &&
		       s[n].store_offset == s->store_offset + pages * PAGE_BYTES)
			pages += s[n++].nr;
		err = read_reference(a, s->slot, s->store_offset, pages * PAGE_BYTES);
		for (u32 k = 0; err < 0 && k < n; k++)
			set_status(&s[k], 0, s[k].nr, err);
	}
}

/* Pages from @page on, below @end, that are all pinned or all not. */
static u64 same_pinned(const struct bh_region *r, u64 page, u64 end)
{
	u64 p = page + 1;

	if (!r->pins)
		return end - page;
	while (p < end && page_pinned(r, p) == page_pinned(r, page))
		p++;
	return p - page;
}

/*
 * Finds what the step's pages are. A step is one kind of memory: it ends where the kind changes,
 * and the rest becomes a step of its own. Pins cannot change from here on until @lock is released,
 * after the step's pages are in their place again (pins.c).
 */
static void resolve(struct bh_agent *a, struct batch *b, struct step *s)
{
	struct bh_region *r = region_find(a, s->hva, s->nr * PAGE_BYTES);
	u32 nr;

	if (s->status[0] < 0)
		return; /* its reference could not be read */
	if (!r || discard_is_due(a, s->hva, s->nr * PAGE_BYTES)) {
		set_status(s, 0, s->nr, -ENOENT);
		return;
	}
	s->page = (s->hva - r->hva) >> PAGE_SHIFT;
	nr = (u32)same_kind(r, s->page, s->page + s->nr);
	nr = (u32)same_pinned(r, s->page, s->page + nr);
	if (nr < s->nr) {
		/* There is room: no step is empty, and all have BH_STEP_PAGES pages at most. */
		struct step *rest = &b->steps[b->nr++];

		*rest = *s;
		rest->hva += nr * PAGE_BYTES;
		rest->nr -= nr;
		rest->slot += nr;
		rest->store_offset += goes_out(s) ? 0 : nr * PAGE_BYTES;
		rest->status += nr;
		s->nr = nr;
	}
	if (page_kind(r, s->page) == PAGE_FOREIGN) {
		set_status(s, 0, nr, -ENOENT);
		return;
	}
	if (page_pinned(r, s->page)) {
		set_status(s, 0, nr, -EBUSY);
		return;
	}
	s->anonymous = page_kind(r, s->page) == PAGE_ANONYMOUS;
	if (goes_out(s) && !s->anonymous) {
		/* UFFDIO_MOVE does not take pages out of file mappings. */
		set_status(s, 0, nr, -EAGAIN);
		return;
	}
	s->r = r;
}

static void merge_batch(struct bh_agent *a, struct batch *b)
{
	for (u32 i = 0; i < b->nr; i++)
		set_status(&b->steps[i], 0, b->steps[i].nr, 0);
	read_references(a, b);
	for (u32 i = 0; i < b->nr; i++) {
		struct step *s = &b->steps[i];
		int err = goes_out(s) ? pager_prepare(a, s->hva, s->nr) : 0;

		if (err < 0)
			set_status(s, 0, s->nr, err);
	}
	lock_step(a);
	for (u32 i = 0; i < b->nr; i++)
		resolve(a, b, &b->steps[i]);
	for (u32 i = 0; i < b->nr; i++)
		if (b->steps[i].r && !b->steps[i].anonymous)
			merge_in_mapping(&b->steps[i]);
	merge_anonymous(a, b);
	pthread_mutex_unlock(&a->lock);
	for (u32 i = 0; i < b->nr; i++)
		count(a, &b->steps[i]);
}

void merge_runs(struct bh_agent *a, const struct wire_run *runs, u32 nr_runs, s32 *status)
{
	u32 run = 0, done = 0; /* the run that is next, and how much of it is done */

	while (run < nr_runs && !a->stop) {
		bool out = runs[run].kind == WIRE_RUN_OUT || runs[run].kind == WIRE_RUN_SAMPLE;
		u32 most = out ? PAGER_STEP_PAGES : BH_STEP_PAGES;
		struct batch b = { 0 };

		while (run < nr_runs && b.nr < BH_STEP_RUNS && b.pages < most) {
			const struct wire_run *w = &runs[run];
			struct step *s = &b.steps[b.nr++];

			*s = (struct step){
				.a = a,
				.hva = w->hva + done * PAGE_BYTES,
				.nr = MIN(w->nr_pages - done, most - b.pages),
				.slot = b.pages,
				.kind = w->kind,
				.store_offset = w->store_offset + (out ? 0 : done * PAGE_BYTES),
				.status = status,
			};
			status += s->nr;
			b.pages += s->nr;
			done += s->nr;
			if (done == w->nr_pages) {
				run++;
				done = 0;
			}
		}
		merge_batch(a, &b);
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
