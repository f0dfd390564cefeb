/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "hypervisor-hooks/agent.h"
#include "tests/live/faults/scenarios.h"

/* The guest's pages, and what is in them: content numbers follow the pages, from the one named. */
#define NEW	    0 /* 16 anonymous pages that the store has */
#define NEW_CONTENT 1
#define HOT	    16 /* 4 that are written all the time, and follow them in the store, too */
#define NR_NEW	    20
#define ZERO	    20 /* 12 of zeros */
#define NR_ZERO	    12
#define MERGED	    32 /* 16 merged */
#define NR_MERGED   16
#define BROKEN	    48 /* 8 merged, then written; two of them all the time */
#define BROKEN_HOT  52
#define NR_BROKEN   8
#define BROKEN_ZERO 56 /* 4 merged, then filled with zeros */
#define NR_SHOWN    28 /* MERGED to the end of BROKEN_ZERO: what the store showed at first */
#define SHOWN_FIRST 33
#define BROKEN_NOW  64 /* content of BROKEN */
#define OTHER	    60 /* 4 of which the store has no like */
#define OTHER_NOW   100
#define OTHER_ASKED 104
#define HOLES	    64 /* 16 that were never touched */
#define NR_HOLES    16
#define IMAGE	    128 /* 32 that were never touched, and shall be a snapshot's */
#define NR_IMAGE    32
#define IMAGE_FIRST 7	/* its first content */
#define OUT	    192 /* 16 that were never touched: compressible, they leave the guest */
#define OUT_AGAIN   224 /* the same once more, as pages of store mappings do not leave */
#define NR_OUT	    16

#define STATUS_MAX  128
#define TRIES	    20

struct bh_agent *agent;

static char trouble[512];
static s32 status[STATUS_MAX];
static bool was_file[GUEST_PAGES];

const char *scenario_trouble(void)
{
	return trouble[0] ? trouble : NULL;
}

void scenario_forgive(void)
{
	trouble[0] = '\0';
}

static __attribute__((format(printf, 1, 2))) void say(const char *fmt, ...)
{
	va_list ap;

	/* The first is the cause. */
	if (trouble[0])
		return;
	va_start(ap, fmt);
	vsnprintf(trouble, sizeof(trouble), fmt, ap);
	va_end(ap);
}

/* --- hooks, as a VMM calls them ----------------------------------------------------------------
 */

static int vmm_discard(u32 page, u32 nr)
{
	int r;

	inject_as_vmm(true);
	r = bh_discard(agent, guest_page(page), nr * PAGE_BYTES, MADV_DONTNEED);
	inject_as_vmm(false);
	return r;
}

static int vmm_add(void)
{
	int r;

	inject_as_vmm(true);
	r = bh_region_add(agent, guest_page(0), GUEST_BYTES, 0, "ram");
	inject_as_vmm(false);
	return r;
}

static int vmm_del(void)
{
	int r;

	inject_as_vmm(true);
	r = bh_region_del(agent, guest_page(0), GUEST_BYTES);
	inject_as_vmm(false);
	return r;
}

/* --- requests ----------------------------------------------------------------------------------
 */

static struct wire_run store_run(u32 page, u32 nr, u32 content)
{
	return (struct wire_run){ .hva = guest_hva(page),
				  .nr_pages = nr,
				  .kind = WIRE_RUN_STORE,
				  .store_offset = content * PAGE_BYTES };
}

static struct wire_run zero_run(u32 page, u32 nr)
{
	return (struct wire_run){ .hva = guest_hva(page), .nr_pages = nr, .kind = WIRE_RUN_ZERO };
}

static u32 run_page(const struct wire_run *run)
{
	return (u32)((run->hva - guest_hva(0)) >> PAGE_SHIFT);
}

/* What the run would put into its @i-th page. The store has zeros beyond the contents. */
static u32 run_content(const struct wire_run *run, u32 i)
{
	u64 page = (run->store_offset >> PAGE_SHIFT) + i;

	return run->kind == WIRE_RUN_ZERO || page >= NR_CONTENTS ? 0 : (u32)page;
}

static bool can_merge(const struct wire_run *run, u32 i)
{
	u32 page = run_page(run) + i;

	return guest_uses(page) == PAGE_STILL && guest_content(page) == run_content(run, i);
}

/* The answer is the truth: what the daemon believes decides what it does with the store's pages. */
static void check_answer(const struct wire_run *runs, u32 nr)
{
	u32 n = 0;

	for (u32 r = 0; r < nr; r++)
		for (u32 i = 0; i < runs[r].nr_pages; i++, n++) {
			u32 page = run_page(&runs[r]) + i;
			bool file = guest_page_is_file(page);

			if (guest_uses(page) != PAGE_STILL)
				continue;
			if (status[n] > 0 || (status[n] == 0 && !can_merge(&runs[r], i)))
				say("page %u: status %d for a page that differs", page, status[n]);
			else if (status[n] == 0 && file != (runs[r].kind == WIRE_RUN_STORE))
				say("page %u: said to be merged, and is not", page);
			else if (status[n] < 0 && file && !was_file[page])
				say("page %u: said to be private (%s), and is merged", page,
				    strerrorname_np(-status[n]));
		}
}

/* Under injection: it may fail, and the connection may break. */
static void merge(const struct wire_run *runs, u32 nr)
{
	int r;

	for (u32 i = 0; i < GUEST_PAGES; i++)
		was_file[i] = guest_page_is_file(i);
	r = peer_merge(runs, nr, status);
	if (r == -ETIMEDOUT)
		say("no answer to a request");
	else if (r == -EPROTO)
		say("the answer is not to what was asked");
	if (!guest_lives())
		say("a guest access hangs");
	else if (r == 0)
		check_answer(runs, nr);
}

/* Without injection: all that can merge does, if not at once (discards may be due, the agent may
 * just connect again). */
static void merge_all(const struct wire_run *runs, u32 nr)
{
	u32 left = 1, worst = 0, tries;
	int r = 0;

	for (tries = 0; tries < TRIES && left && !trouble[0]; tries++) {
		u32 n = 0;

		if (!peer_knows(guest_hva(0))) {
			say("the agent does not tell of its memory");
			return;
		}
		r = peer_merge(runs, nr, status);
		if (r == -ECONNRESET)
			continue;
		if (r < 0 || !guest_lives()) {
			say("afterwards: %s", r < 0 ? strerror(-r) : "a guest access hangs");
			return;
		}
		left = 0;
		for (u32 k = 0; k < nr; k++)
			for (u32 i = 0; i < runs[k].nr_pages; i++, n++)
				if (can_merge(&runs[k], i) && status[n] != 0) {
					left++;
					worst = run_page(&runs[k]) + i;
					r = status[n];
				}
	}
	if (left)
		say("afterwards: %u pages do not merge, like %u: %s", left, worst, strerror(-r));
	else if (r == 0)
		check_answer(runs, nr);
}

/* --- the guest ---------------------------------------------------------------------------------
 */

static void write_all(u32 page, u32 nr, u32 content, u32 step, enum page_use use)
{
	for (u32 i = 0; i < nr; i++)
		guest_write(page + i, content + i * step, use);
}

bool scenario_begin(void)
{
	struct wire_run shown;

	if (guest_new() < 0) {
		say("no memory for a guest");
		return false;
	}
	write_all(NEW, HOT - NEW, NEW_CONTENT, 1, PAGE_STILL);
	write_all(HOT, NR_NEW - HOT, NEW_CONTENT + HOT, 1, PAGE_HOT);
	write_all(ZERO, NR_ZERO, 0, 0, PAGE_STILL);
	write_all(MERGED, NR_SHOWN, SHOWN_FIRST, 1, PAGE_STILL);
	write_all(OTHER, 4, OTHER_NOW, 1, PAGE_STILL);
	if (bh_region_add(agent, guest_page(0), GUEST_BYTES, 0, "ram") < 0 ||
	    !peer_knows(guest_hva(0))) {
		say("the memory is not taken");
		return false;
	}
	/* So that the mappings are given attributes, too. */
	bh_region_advise(agent, guest_page(0), GUEST_BYTES, MADV_DONTDUMP);
	shown = store_run(MERGED, NR_SHOWN, SHOWN_FIRST);
	merge_all(&shown, 1);
	write_all(BROKEN, NR_BROKEN, BROKEN_NOW, 1, PAGE_STILL);
	guest_use(BROKEN_HOT, 2, PAGE_HOT);
	write_all(BROKEN_ZERO, 4, 0, 0, PAGE_STILL);
	return !trouble[0];
}

void scenario_end(void)
{
	if (!guest_lives())
		say("a guest access hangs");
	if (guest_complaint())
		say("%s", guest_complaint());
	bh_region_del(agent, guest_page(0), GUEST_BYTES);
	guest_delete();
}

/* After a discard that failed or not: each page is zeros or what it was, the whole page. */
static void settle_discard(u32 page, u32 nr, int r)
{
	for (u32 p = page; p < page + nr; p++) {
		if (memcmp(guest_page(p), contents[0], PAGE_BYTES) == 0)
			guest_expect(p, 0);
		else if (r == 0)
			say("page %u is not zeros after its discard", p);
		else if (memcmp(guest_page(p), contents[guest_content(p)], PAGE_BYTES) != 0)
			say("page %u is neither discarded nor what it was", p);
	}
	guest_use(page, nr, PAGE_STILL);
}

/* The daemon looks only at memory that is watched. What could not be is tried again. */
static void check_watched(u32 page, u32 nr)
{
	u32 blind = nr;

	for (u32 i = 0; i < TRIES && blind; i++) {
		blind = 0;
		/* Anything that makes the agent look after its affairs. */
		if (!peer_knows(guest_hva(0)) || peer_unmerge(guest_hva(page), PAGE_BYTES) < 0)
			blind = 1;
		for (u32 p = page; p < page + nr; p++)
			blind += !guest_page_is_watched(p);
	}
	if (blind)
		say("afterwards: %u pages are not watched", blind);
}

/* --- scenarios ---------------------------------------------------------------------------------
 */

static u32 anon_runs(struct wire_run *runs)
{
	runs[0] = store_run(NEW, NR_NEW, NEW_CONTENT);
	runs[1] = store_run(OTHER, 4, OTHER_ASKED);
	return 2;
}

static void anon_act(void)
{
	struct wire_run runs[2];

	merge(runs, anon_runs(runs));
}

static void anon_after(void)
{
	struct wire_run runs[2];

	merge_all(runs, anon_runs(runs));
}

/* Pages of both kinds in turn: many short runs in one request. */
static u32 scattered_runs(struct wire_run *runs)
{
	u32 n = 0;

	for (u32 i = 0; i < 16; i += 3)
		runs[n++] = store_run(NEW + i, i % 2 ? 2 : 1, NEW_CONTENT + i);
	for (u32 i = 0; i < NR_ZERO; i += 4)
		runs[n++] = zero_run(ZERO + i, 2);
	runs[n++] = store_run(BROKEN + 1, 1, BROKEN_NOW + 1);
	runs[n++] = store_run(MERGED + 3, 1, SHOWN_FIRST + 3);
	runs[n++] = store_run(OTHER, 1, OTHER_ASKED);
	return n;
}

static void scattered_act(void)
{
	struct wire_run runs[16];

	merge(runs, scattered_runs(runs));
}

static void scattered_after(void)
{
	struct wire_run runs[16];

	merge_all(runs, scattered_runs(runs));
}

/* What an earlier request compared with must serve for no later one: these pages are equal to the
 * first request's, and not to what the second would put there. */
static void stale_act(void)
{
	struct wire_run run = store_run(NEW, 8, NEW_CONTENT);

	write_all(NEW + 8, 8, NEW_CONTENT, 1, PAGE_STILL);
	merge(&run, 1);
	run = store_run(NEW + 8, 8, OTHER_ASKED);
	merge(&run, 1);
}

static void stale_after(void)
{
	struct wire_run run = store_run(NEW + 8, 8, NEW_CONTENT);

	merge_all(&run, 1);
}

static u32 zero_runs(struct wire_run *runs)
{
	runs[0] = zero_run(ZERO, NR_ZERO);
	runs[1] = zero_run(OTHER, 2);
	return 2;
}

static void zero_act(void)
{
	struct wire_run runs[2];

	merge(runs, zero_runs(runs));
}

static void zero_after(void)
{
	struct wire_run runs[2];

	merge_all(runs, zero_runs(runs));
}

static u32 broken_runs(struct wire_run *runs)
{
	runs[0] = store_run(BROKEN, NR_BROKEN, BROKEN_NOW);
	runs[1] = zero_run(BROKEN_ZERO, 4);
	return 2;
}

static void broken_act(void)
{
	struct wire_run runs[2];

	merge(runs, broken_runs(runs));
}

static void broken_after(void)
{
	struct wire_run runs[2];

	merge_all(runs, broken_runs(runs));
	check_watched(BROKEN_ZERO, 4);
	/* What was written in the mapping, and stays there, is still the guest's to write. */
	write_all(BROKEN, NR_BROKEN, NEW_CONTENT, 1, PAGE_STILL);
	runs[0] = store_run(BROKEN, NR_BROKEN, NEW_CONTENT);
	merge_all(runs, 1);
}

static void unmerge_act(void)
{
	if (peer_unmerge(guest_hva(MERGED), NR_MERGED * PAGE_BYTES) == -ETIMEDOUT)
		say("no answer to UNMERGE");
}

static void unmerge_all(u32 page, u32 nr)
{
	int r = -ECONNRESET;

	for (u32 i = 0; i < TRIES && r == -ECONNRESET; i++)
		if (peer_knows(guest_hva(0)))
			r = peer_unmerge(guest_hva(page), nr * PAGE_BYTES);
	if (r < 0)
		say("afterwards: UNMERGE: %s", strerror(-r));
	for (u32 p = page; r == 0 && p < page + nr; p++)
		if (guest_page_is_file(p))
			say("afterwards: page %u does not become private", p);
}

static void unmerge_after(void)
{
	struct wire_run run = store_run(MERGED, NR_MERGED, SHOWN_FIRST);

	unmerge_all(MERGED, NR_MERGED);
	merge_all(&run, 1);
}

static bool discarded;

static void discard_act(void)
{
	struct wire_run runs[2];
	int r;

	guest_use(MERGED, 8, PAGE_AWAY);
	guest_use(NEW, 8, PAGE_AWAY);
	r = vmm_discard(MERGED, 8);
	discarded = r == 0;
	settle_discard(MERGED, 8, r);
	settle_discard(NEW, 8, vmm_discard(NEW, 8));
	if (!guest_lives())
		say("a guest access hangs");
	runs[0] = zero_run(MERGED, 8);
	runs[1] = zero_run(NEW, 8);
	merge(runs, 2);
}

static void discard_after(void)
{
	struct wire_run runs[2];

	if (discarded)
		check_watched(MERGED, 8);
	write_all(MERGED, 8, SHOWN_FIRST, 1, PAGE_STILL);
	write_all(NEW, 8, NEW_CONTENT, 1, PAGE_STILL);
	runs[0] = store_run(MERGED, 8, SHOWN_FIRST);
	runs[1] = store_run(NEW, 8, NEW_CONTENT);
	merge_all(runs, 2);
}

/* A whole chunk, which is let go then. */
static void chunk_act(void)
{
	/* What a counter has reached could not be told from what it was. */
	write_all(HOT, NR_NEW - HOT, NEW_CONTENT, 1, PAGE_STILL);
	write_all(BROKEN_HOT, 2, NEW_CONTENT, 1, PAGE_STILL);
	guest_use(0, CHUNK_PAGES, PAGE_AWAY);
	settle_discard(0, HOLES, vmm_discard(0, CHUNK_PAGES));
	guest_use(HOLES, NR_HOLES, PAGE_HOT);
}

static void chunk_after(void)
{
	check_watched(HOLES, NR_HOLES);
	discarded = false;
	discard_after();
}

/* First touches of an adopted chunk; then it is let go. */
static void holes_act(void)
{
	guest_use(HOLES, NR_HOLES / 2, PAGE_STILL);
	guest_use(HOLES + NR_HOLES / 2, NR_HOLES / 2, PAGE_HOT);
	if (!guest_lives())
		say("a guest access hangs");
}

static void holes_after(void)
{
	struct wire_run run = zero_run(HOLES, NR_HOLES / 2);

	check_watched(HOLES, NR_HOLES);
	merge_all(&run, 1);
	write_all(HOLES, NR_HOLES, NEW_CONTENT, 1, PAGE_STILL);
	run = store_run(HOLES, NR_HOLES, NEW_CONTENT);
	merge_all(&run, 1);
}

static void region_act(void)
{
	vmm_del();
	vmm_add();
}

static void region_after(void)
{
	struct wire_run runs[2];
	int r;

	/* What was merged before is no anonymous memory. The VMM puts new memory there. */
	bh_region_del(agent, guest_page(0), GUEST_BYTES);
	if (!peer_forgets(guest_hva(0)))
		say("the agent does not take its memory back");
	guest_delete();
	if (guest_new() < 0)
		return;
	write_all(NEW, HOT - NEW, NEW_CONTENT, 1, PAGE_STILL);
	write_all(HOT, NR_NEW - HOT, NEW_CONTENT + HOT, 1, PAGE_HOT);
	write_all(OTHER, 4, OTHER_NOW, 1, PAGE_STILL);
	r = bh_region_add(agent, guest_page(0), GUEST_BYTES, 0, "ram");
	if (r < 0)
		say("afterwards: memory is not taken: %s", strerror(-r));
	merge_all(runs, anon_runs(runs));
}

/* Memory that comes while the agent is at work. */
static void add_act(void)
{
	bh_region_del(agent, guest_page(0), GUEST_BYTES);
	guest_delete();
	if (guest_new() < 0)
		return;
	write_all(NEW, HOT - NEW, NEW_CONTENT, 1, PAGE_STILL);
	vmm_add();
}

/* A file with the contents, as the store has them. */
static int snapshot(void)
{
	static int fd = -1;

	if (fd < 0) {
		fd = memfd_create("snapshot", MFD_CLOEXEC);
		if (write(fd, contents, sizeof(contents)) != sizeof(contents))
			say("no snapshot");
	}
	return fd;
}

static int vmm_image(void)
{
	return bh_region_from_image(agent, guest_page(IMAGE), NR_IMAGE * PAGE_BYTES, snapshot(),
				    IMAGE_FIRST * PAGE_BYTES);
}

/* All or nothing. */
static void settle_image(int r)
{
	bool done = r == 0;

	/* Memory that may be either must not be used. */
	if (r == -ENOTRECOVERABLE)
		return;
	for (u32 p = IMAGE; p < IMAGE + NR_IMAGE; p++) {
		u32 want = done ? IMAGE_FIRST + p - IMAGE : 0;

		if (memcmp(guest_page(p), contents[want], PAGE_BYTES) != 0)
			say("page %u is not %s", p, done ? "the image's" : "empty");
		guest_expect(p, want);
	}
	guest_use(IMAGE, NR_IMAGE, PAGE_STILL);
}

static void image_act(void)
{
	int r;

	(void)snapshot();
	inject_as_vmm(true);
	r = vmm_image();
	inject_as_vmm(false);
	settle_image(r);
	if (!guest_lives())
		say("a guest access hangs");
}

static void image_after(void)
{
	struct wire_run run = store_run(IMAGE, NR_IMAGE, NEW_CONTENT);
	int r = -EBUSY;

	/* Whatever came of it, the memory is like any other. */
	write_all(IMAGE, NR_IMAGE, NEW_CONTENT, 1, PAGE_STILL);
	merge_all(&run, 1);
	guest_use(IMAGE, NR_IMAGE, PAGE_AWAY);
	/* Busy: the agent still fills holes for accesses of before, which went on by another way.
	 */
	for (u32 i = 0; i < TRIES && r == -EBUSY; i++) {
		if (!peer_knows(guest_hva(0)))
			say("the agent does not tell of its memory");
		bh_discard(agent, guest_page(IMAGE), NR_IMAGE * PAGE_BYTES, MADV_DONTNEED);
		r = vmm_image();
	}
	if (r < 0)
		say("afterwards: no memory from an image: %s", strerror(-r));
	settle_image(r);
}

/* --- paging --- */

static u32 out_runs(struct wire_run *runs, u32 page)
{
	runs[0] = (struct wire_run){ .hva = guest_hva(page),
				     .nr_pages = NR_OUT - 4,
				     .kind = WIRE_RUN_OUT };
	/* Samples, and pages of zeros. */
	runs[1] = (struct wire_run){ .hva = guest_hva(page + NR_OUT - 4),
				     .nr_pages = 4,
				     .kind = WIRE_RUN_SAMPLE,
				     .store_offset = 1 };
	runs[2] = (struct wire_run){ .hva = guest_hva(ZERO), .nr_pages = 4, .kind = WIRE_RUN_OUT };
	return 3;
}

/* Nobody touches them, so that they stay out. */
static void out_begin(u32 page)
{
	bh_region_advise(agent, guest_page(0), GUEST_BYTES, MADV_DONTFORK);
	write_all(page, NR_OUT, PACKABLE, 1, PAGE_STILL);
	guest_use(page, NR_OUT, PAGE_AWAY);
}

static u64 pages_out(void)
{
	struct bh_stats s;

	bh_stats(agent, &s);
	return s.paged_pages;
}

/* They leave, come back half by an access and half not at all: discarded. */
static void out_act(void)
{
	struct wire_run runs[3];
	u32 nr = out_runs(runs, OUT);

	out_begin(OUT);
	if (peer_page_out(runs, nr, status) == -ETIMEDOUT)
		say("no answer to PAGE_OUT");
	guest_use(OUT, NR_OUT / 2, PAGE_STILL);
	if (!guest_lives())
		say("a guest access hangs");
	settle_discard(OUT + NR_OUT / 2, 4, vmm_discard(OUT + NR_OUT / 2, 4));
	/* Merged while some of it is out. */
	runs[0] = store_run(OUT, NR_OUT, PACKABLE);
	merge(runs, 1);
	guest_use(OUT, NR_OUT, PAGE_STILL);
	if (!guest_lives())
		say("a guest access hangs");
}

static void out_after(void)
{
	struct wire_run runs[3];
	u32 nr = out_runs(runs, OUT_AGAIN), left = 1;

	out_begin(OUT_AGAIN);
	for (u32 tries = 0; tries < TRIES && left; tries++) {
		left = NR_OUT;
		if (!peer_knows(guest_hva(0)) || peer_page_out(runs, nr, status) < 0)
			continue;
		left = 0;
		/* What is out already is not there to be taken. */
		for (u32 i = 0; i < NR_OUT; i++)
			left += status[i] != 0 && status[i] != -ENOENT;
	}
	if (left || pages_out() != NR_OUT)
		say("afterwards: %u pages do not leave (%s), %llu are out", left,
		    strerror(-status[0]), (unsigned long long)pages_out());
	guest_use(OUT_AGAIN, NR_OUT, PAGE_STILL);
	if (!guest_lives())
		say("a guest access hangs");
	/* The guest goes on before the agent has noted it. */
	for (u32 tries = 0; tries < 1000 && pages_out(); tries++)
		usleep(1000);
	if (pages_out())
		say("afterwards: %llu pages do not come back", (unsigned long long)pages_out());
}

/* --- the swap file --- */

#define SWAP_WAIT_MS 50

static u64 swap_bytes(void)
{
	struct bh_stats s;

	bh_stats(agent, &s);
	return s.swap_bytes;
}

/* Pages leave, and their content for the file. False: it does not get there. */
static bool swap_pages(u32 page)
{
	struct wire_run runs[3];
	u32 nr = out_runs(runs, page);

	agent->swap.write_pause_us = agent->swap.read_pause_us = 1000;
	out_begin(page);
	if (peer_page_out(runs, nr, status) == -ETIMEDOUT)
		say("no answer to PAGE_OUT");
	peer_swap_out(MIB(1));
	for (u32 ms = 0; ms < SWAP_WAIT_MS && !swap_bytes(); ms++)
		usleep(1000);
	return swap_bytes() > 0;
}

/* They come back half by an access and half not at all. */
static void swap_act(void)
{
	peer_swap_clear();
	swap_pages(OUT);
	guest_use(OUT, NR_OUT / 2, PAGE_STILL);
	if (!guest_lives())
		say("a guest access hangs");
	settle_discard(OUT + NR_OUT / 2, 4, vmm_discard(OUT + NR_OUT / 2, 4));
	guest_use(OUT, NR_OUT, PAGE_STILL);
	if (!guest_lives())
		say("a guest access hangs");
}

/* And by the end of their region. */
static void swap_after(void)
{
	bool gone = false;

	if (!peer_knows(guest_hva(0)))
		say("the agent does not tell of its memory");
	for (u32 tries = 0; tries < TRIES && !gone; tries++)
		gone = swap_pages(OUT_AGAIN);
	if (!gone)
		say("afterwards: nothing gets to the swap file");
	bh_region_del(agent, guest_page(0), GUEST_BYTES);
	guest_use(OUT_AGAIN, NR_OUT, PAGE_STILL);
	if (!guest_lives())
		say("a guest access hangs");
	if (pages_out() || swap_bytes())
		say("afterwards: %llu pages do not come back", (unsigned long long)pages_out());
}

static struct wire_run grow_run(void)
{
	struct wire_run run = store_run(ZERO, 1, 0);

	run.store_offset = peer_store_bytes() - PAGE_BYTES;
	return run;
}

static void grow_act(void)
{
	struct wire_run run;

	peer_store_grow();
	run = grow_run();
	merge(&run, 1);
}

static void grow_after(void)
{
	struct wire_run run = grow_run();

	merge_all(&run, 1);
}

const struct scenario scenarios[] = {
	{ "anon", anon_act, anon_after },	   { "scattered", scattered_act, scattered_after },
	{ "stale", stale_act, stale_after },	   { "zero", zero_act, zero_after },
	{ "broken", broken_act, broken_after },	   { "unmerge", unmerge_act, unmerge_after },
	{ "discard", discard_act, discard_after }, { "chunk", chunk_act, chunk_after },
	{ "holes", holes_act, holes_after },	   { "region", region_act, region_after },
	{ "add", add_act, region_after },	   { "grow", grow_act, grow_after },
	{ "image", image_act, image_after },	   { "out", out_act, out_after },
	{ "swap", swap_act, swap_after },
};
const u32 nr_scenarios = ARRAY_SIZE(scenarios);
