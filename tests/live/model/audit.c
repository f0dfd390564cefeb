// SPDX-License-Identifier: MIT
/* What must be true when nothing happens. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/live/model/run.h"

#define MS	  1000u
#define ACK_S	  60 /* no operation takes as long, even where all is slow */
#define SETTLE_S  30
#define SETTLE_US 20000
#define KPF_ZERO  24 /* bit of /proc/kpageflags: a zero page, small or huge */

void run_command(struct run *r, enum model_command cmd)
{
	r->epoch++;
	r->command = cmd;
	for (u32 v = 0; v < MODEL_VMS; v++)
		r->m->vm[v].command = r->epoch * NR_CMDS + cmd;
}

int run_wait_acked(struct run *r)
{
	u64 end = now_us() + ACK_S * 1000000ULL;

	for (u32 v = 0; v < MODEL_VMS; v++) {
		const struct model_vm *vm = &r->m->vm[v];

		for (u32 i = 0; i < MODEL_THREADS; i++) {
			while (vm->acked[i] != vm->command) {
				if (run_failed(r))
					return -EIO;
				if (now_us() > end) {
					model_fail(r->m,
						   "VM %u (pid %d) thread %u hangs: an access to "
						   "its memory, or a call of the agent",
						   v, (int)r->vm_pid[v], i);
					return -ETIME;
				}
				run_tick(r);
				usleep(1 * MS);
			}
		}
	}
	return run_failed(r) ? -EIO : 0;
}

/* --- the daemon's account and the kernel's ------------------------------------------------------
 */

struct view {
	struct host_status status;
	struct outside vm[MODEL_VMS];
	struct frame frames[MODEL_FRAMES_MAX];
	u32 nr_frames;
};

static void view_free(struct view *w)
{
	for (u32 v = 0; w && v < MODEL_VMS; v++)
		outside_free(&w->vm[v]);
	free(w);
}

static int look(struct run *r, struct view *w)
{
	int err = run_status(r, &w->status);

	w->nr_frames = 0;
	for (u32 v = 0; err == 0 && v < MODEL_VMS; v++) {
		outside_free(&w->vm[v]);
		err = outside_vm(r->vm_pid[v], &r->m->vm[v], &w->vm[v], w->frames, &w->nr_frames);
	}
	return err;
}

/* Memory that a VMM took back and uses on is known to the daemon that merged it, but not to its
 * successor: nothing can be said then. */
static bool comparable(const struct model_vm *vm)
{
	bool all = vm->has_agent;

	for (u32 i = 0; i < MODEL_REGIONS; i++)
		all = all && vm->region[i].state == REGION_IN;
	return all;
}

static int by_number(const void *a, const void *b)
{
	const u32 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* Store pages that the VMs of a domain show: how many, and how often. */
static u64 count_shown(const struct run *r, const struct view *w, const char *domain, u64 *ret_refs)
{
	u32 *all = calloc(MODEL_FRAMES_MAX, sizeof(*all)), nr = 0;
	u64 distinct = 0;

	if (!all)
		abort();
	for (u32 v = 0; v < MODEL_VMS; v++) {
		if (strcmp(r->vm_domain[v], domain) != 0)
			continue;
		memcpy(all + nr, w->vm[v].offsets, w->vm[v].shared * sizeof(*all));
		nr += w->vm[v].shared;
	}
	qsort(all, nr, sizeof(*all), by_number);
	for (u32 i = 0; i < nr; i++)
		distinct += i == 0 || all[i] != all[i - 1];
	free(all);
	*ret_refs = nr;
	return distinct;
}

/* NULL: the two accounts agree; or in what they do not. */
static const char *disagreement(const struct run *r, const struct view *w)
{
	static char text[256];
	bool all = true;

	if (w->status.nr_vms != MODEL_VMS) {
		snprintf(text, sizeof(text), "the daemon lists %u VMs", w->status.nr_vms);
		return text;
	}
	for (u32 v = 0; v < MODEL_VMS; v++) {
		const struct vm_status *s = &w->status.vm[v];

		if (!comparable(&r->m->vm[v])) {
			all = false;
			continue;
		}
		if (!w->status.known[v] || !s->connected)
			snprintf(text, sizeof(text), "VM %u (pid %d) is not connected", v,
				 (int)r->vm_pid[v]);
		else if (s->shared != w->vm[v].shared)
			snprintf(text, sizeof(text),
				 "VM %u (pid %d): the daemon counts %llu shared pages, the kernel "
				 "%llu (and %llu broken)",
				 v, (int)r->vm_pid[v], (unsigned long long)s->shared,
				 (unsigned long long)w->vm[v].shared,
				 (unsigned long long)w->vm[v].broken);
		else if (s->unmerged && s->shared)
			snprintf(text, sizeof(text),
				 "VM %u (pid %d): unmerged, and %llu pages shared", v,
				 (int)r->vm_pid[v], (unsigned long long)s->shared);
		else
			continue;
		return text;
	}
	for (u32 i = 0; all && i < w->status.nr_domains; i++) {
		const struct domain_status *d = &w->status.domain[i];
		u64 refs, shown = count_shown(r, w, d->name, &refs);

		if (refs != d->refs || shown != d->pages) {
			snprintf(text, sizeof(text),
				 "domain %s: the daemon counts %llu references to %llu store "
				 "pages, the kernel %llu to %llu",
				 d->name, (unsigned long long)d->refs, (unsigned long long)d->pages,
				 (unsigned long long)refs, (unsigned long long)shown);
			return text;
		}
	}
	return NULL;
}

/* Merging goes on for a while after the guests stopped, and a daemon that just came up has to find
 * what there is. */
static void check_accounts(struct run *r, struct view *w)
{
	u64 end = now_us() + SETTLE_S * 1000000ULL;
	const char *why;
	int err;

	for (;;) {
		err = look(r, w);
		if (err < 0) {
			model_fail(r->m, "no status, or no view from outside: %s", strerror(-err));
			return;
		}
		why = disagreement(r, w);
		if (!why)
			break;
		if (now_us() > end) {
			model_fail(r->m, "%u s after the VMs stopped: %s", SETTLE_S, why);
			return;
		}
		usleep(SETTLE_US);
		run_tick(r);
		if (run_failed(r))
			return;
	}
	for (u32 v = 0; v < MODEL_VMS; v++)
		r->t->audits += comparable(&r->m->vm[v]);
}

/* --- domains -----------------------------------------------------------------------------------
 */

static int by_pfn(const void *a, const void *b)
{
	const struct frame *x = a, *y = b;

	return x->pfn < y->pfn ? -1 : x->pfn > y->pfn;
}

static bool is_zero_page(u64 pfn)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	u64 flags = 0;
	bool ok = fd >= 0 &&
		  pread(fd, &flags, sizeof(flags), (off_t)(pfn * sizeof(flags))) == sizeof(flags);

	if (fd >= 0)
		close(fd);
	return ok && flags >> KPF_ZERO & 1;
}

/* The first frame that VMs of two domains show; NULL: none. */
static const struct frame *find_common(const struct run *r, struct view *w)
{
	u64 known_zero = 0;

	qsort(w->frames, w->nr_frames, sizeof(w->frames[0]), by_pfn);
	for (u32 i = 1; i < w->nr_frames; i++) {
		const struct frame *a = &w->frames[i - 1], *b = &w->frames[i];

		if (a->pfn != b->pfn || a->pfn == known_zero ||
		    strcmp(r->vm_domain[a->vm], r->vm_domain[b->vm]) == 0)
			continue;
		if (!is_zero_page(a->pfn))
			return a;
		known_zero = a->pfn;
	}
	return NULL;
}

/* Once more, with the daemon stopped and what it asked for done: while merging goes on a frame may
 * be one VM's at the first look into it, and another's at the next. */
static const struct frame *find_common_at_rest(struct run *r, struct view *w)
{
	const struct frame *f = NULL;
	int err = 0;

	kill(r->h.pid, SIGSTOP);
	usleep(300 * MS);
	w->nr_frames = 0;
	for (u32 v = 0; err == 0 && v < MODEL_VMS; v++) {
		outside_free(&w->vm[v]);
		err = outside_vm(r->vm_pid[v], &r->m->vm[v], &w->vm[v], w->frames, &w->nr_frames);
	}
	if (err == 0)
		f = find_common(r, w);
	kill(r->h.pid, SIGCONT);
	if (err < 0)
		model_fail(r->m, "no view from outside: %s", strerror(-err));
	return f;
}

static void check_domains(struct run *r, struct view *w)
{
	const struct frame *f;

	for (u32 v = 0; v < MODEL_VMS; v++)
		if (w->vm[v].two_stores ||
		    (w->vm[v].domain[0] && strcmp(w->vm[v].domain, r->vm_domain[v]) != 0))
			model_fail(r->m, "VM %u (pid %d) of domain %s maps the store of domain %s",
				   v, (int)r->vm_pid[v], r->vm_domain[v], w->vm[v].domain);
	if (!find_common(r, w))
		return;
	f = find_common_at_rest(r, w);
	if (f)
		model_fail(r->m, "VM %u of domain %s and VM %u of domain %s share frame %#llx",
			   f[0].vm, r->vm_domain[f[0].vm], f[1].vm, r->vm_domain[f[1].vm],
			   (unsigned long long)f->pfn);
}

/* --- all ---------------------------------------------------------------------------------------
 */

static int check_all_pages(struct run *r)
{
	run_command(r, CMD_CHECK);
	return run_wait_acked(r);
}

void run_audit(struct run *r)
{
	struct view *w = calloc(1, sizeof(*w));
	u64 shared = 0;

	if (!w)
		abort();
	run_command(r, CMD_IDLE);
	/* All pages at once, while the daemon is at it, or down, or stopped. */
	if (run_calm(r, false) < 0 || run_wait_acked(r) < 0 || check_all_pages(r) < 0)
		goto out;
	check_accounts(r, w);
	if (run_failed(r))
		goto out;
	check_domains(r, w);
	/* And what was merged meanwhile. */
	if (check_all_pages(r) < 0)
		goto out;
	for (u32 v = 0; v < MODEL_VMS; v++)
		shared += w->vm[v].shared;
	for (u32 i = 0; i < w->status.nr_domains; i++)
		r->t->full += w->status.domain[i].pages >= MIB(1) >> PAGE_SHIFT;
	r->t->shared_most = MAX(r->t->shared_most, shared);
out:
	view_free(w);
}

void run_check_empty(struct run *r)
{
	u64 end = now_us() + SETTLE_S * 1000000ULL, blocks = 0, left;
	struct host_status s = { 0 };
	u32 stores = 0;

	do {
		usleep(SETTLE_US);
		if (run_status(r, &s) < 0 || outside_store_blocks(r->h.pid, &blocks, &stores) < 0) {
			model_fail(r->m, "no status, or no look at the stores");
			return;
		}
		left = s.nr_vms;
		for (u32 i = 0; i < s.nr_domains; i++)
			left += s.domain[i].pages + s.domain[i].refs + s.domain[i].entries;
		if (!left && !blocks && stores)
			return;
	} while (now_us() < end);
	for (u32 i = 0; i < s.nr_domains; i++)
		printf("domain %s: %llu store pages, %llu references, %llu index entries\n",
		       s.domain[i].name, (unsigned long long)s.domain[i].pages,
		       (unsigned long long)s.domain[i].refs,
		       (unsigned long long)s.domain[i].entries);
	model_fail(r->m, "all VMs are gone, and not all is freed: %u VMs, %llu blocks of %u stores",
		   s.nr_vms, (unsigned long long)blocks, stores);
}
