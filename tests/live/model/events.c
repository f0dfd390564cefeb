// SPDX-License-Identifier: MIT
/* What happens to daemon and VMs while the VMs work. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/live/model/run.h"

#define MS	    1000u
#define DAEMON_UP_S 60
#define CALM_S	    60
#define END_S	    30

static const char *const domains[] = { "red", "blue" };

static u32 between(struct run *r, u32 low, u32 high)
{
	return low + model_below(&r->rng, high - low);
}

/* --- daemon ------------------------------------------------------------------------------------
 */

void run_configure(struct run *r, bool plain)
{
	struct host_config *c = &r->h.config;
	u32 budget = model_below(&r->rng, 10);

	c->store_max_bytes = plain || model_below(&r->rng, 3) ? MIB(1) : MIB(64);
	c->max_mappings = plain || budget > 2 ? INT32_MAX : budget == 2 ? 0 : 40 + 100 * budget;
	c->thp_split_kib = model_below(&r->rng, 2) ? 4 : 128;
	for (u32 v = 0; v < MODEL_VMS; v++) {
		u32 share = model_below(&r->rng, 10);

		c->share[v] = plain || share > 1 ? "on" : share ? "zero-only" : "off";
		/* Mostly two VMs in each. */
		c->domain[v] = domains[(v + (model_below(&r->rng, 4) == 0)) % ARRAY_SIZE(domains)];
	}
	if (host_write_config(&r->h) < 0)
		model_fail(r->m, "cannot write a configuration to %s", r->h.dir);
}

static void start_daemon(struct run *r)
{
	r->ready = false;
	r->paused = false;
	r->daemon_start_at = 0;
	r->daemon_started_us = now_us();
	if (host_start(&r->h) < 0)
		model_fail(r->m, "cannot start %s", r->h.daemon);
}

/* What it counted is lost with it. */
static void daemon_gone(struct run *r)
{
	r->h.pid = 0;
	r->ready = false;
	r->daemon_cont_at = 0;
	memset(r->breaks_seen, 0, sizeof(r->breaks_seen));
}

static int reap(pid_t pid, int *status, u32 seconds)
{
	u64 end = now_us() + (u64)seconds * 1000 * MS;

	while (waitpid(pid, status, WNOHANG) != pid) {
		if (now_us() > end)
			return -ETIME;
		usleep(2 * MS);
	}
	return 0;
}

void run_end_daemon(struct run *r, bool kill_it)
{
	pid_t pid = r->h.pid;
	int status = 0;

	if (!pid)
		return;
	kill(pid, kill_it ? SIGKILL : SIGTERM);
	if (r->daemon_cont_at)
		kill(pid, SIGCONT);
	if (reap(pid, &status, END_S) < 0) {
		model_fail(r->m, "ballastd does not end on SIGTERM");
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	} else if (!kill_it && (!WIFEXITED(status) || WEXITSTATUS(status))) {
		model_fail(r->m, "ballastd ended with status %#x on SIGTERM (%s/ballastd.log)",
			   status, r->h.dir);
	}
	daemon_gone(r);
}

int run_status(struct run *r, struct host_status *ret)
{
	int err = host_status(&r->h, r->vm_pid, ret);

	if (err < 0)
		return err;
	for (u32 v = 0; v < MODEL_VMS; v++) {
		const struct vm_status *s = &ret->vm[v];

		if (!ret->known[v])
			continue;
		r->t->breaks += s->broken - MIN(s->broken, r->breaks_seen[v]);
		r->breaks_seen[v] = s->broken;
		if (!r->vm_domain[v][0])
			memcpy(r->vm_domain[v], s->domain, sizeof(s->domain));
		if (strcmp(r->vm_domain[v], s->domain) != 0)
			model_fail(r->m, "VM %u (pid %d) went from domain %s to domain %s", v,
				   (int)r->vm_pid[v], r->vm_domain[v], s->domain);
	}
	return 0;
}

/* --- VMs ---------------------------------------------------------------------------------------
 */

static void start_vm(struct run *r, u32 v)
{
	struct model_vm *vm = &r->m->vm[v];
	pid_t pid;

	vm->index = v;
	vm->life++;
	/* As QEMU does, or not; with huge pages, or without. */
	vm->dont_fork = v % 2 == 0;
	vm->huge = v / 2 % 2;
	vm->has_agent = 0;
	memset(vm->of, 0, sizeof(vm->of));
	for (u32 i = 0; i < MODEL_REGIONS; i++)
		vm->region[i].base = 0;
	for (u32 i = 0; i < MODEL_THREADS; i++)
		vm->acked[i] = 0;
	r->vm_domain[v][0] = '\0';
	r->breaks_seen[v] = 0;
	r->vm_start_at[v] = 0;
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		host_redirect(&r->h, "vms.log");
		model_worker(r->m, v);
	}
	if (pid < 0)
		model_fail(r->m, "fork: %s", strerror(errno));
	r->vm_pid[v] = MAX(pid, 0);
}

static void vm_gone(struct run *r, u32 v)
{
	const struct model_vm *vm = &r->m->vm[v];

	for (u32 i = 0; i < MODEL_THREADS; i++) {
		const struct model_counts *c = &vm->of[i];

		r->t->ops += c->ops;
		r->t->checks += c->checks;
		r->t->discards += c->discards;
		r->t->forks += c->forks;
		r->t->remaps += c->remaps;
		r->t->leaves += c->leaves;
		r->t->merged += c->merged;
		r->t->zeroed += c->zeroed;
		r->t->moved_back += c->moved_back;
		r->t->wait_faults += c->wait_faults;
		r->t->paged_out += c->paged_out;
		r->t->paged_in += c->paged_in;
		r->t->swap_read += c->swap_read;
		r->t->slowest_us = MAX(r->t->slowest_us, c->slowest_us);
	}
	r->vm_pid[v] = 0;
	r->vm_cont_at[v] = 0;
}

void run_end_vm(struct run *r, u32 v, bool kill_it)
{
	pid_t pid = r->vm_pid[v];
	int status = 0;

	if (!pid)
		return;
	if (kill_it)
		kill(pid, SIGKILL);
	else
		r->m->vm[v].command = ++r->epoch * NR_CMDS + CMD_QUIT;
	if (r->vm_cont_at[v])
		kill(pid, SIGCONT);
	if (reap(pid, &status, END_S) < 0) {
		model_fail(r->m, "VM %u (pid %d) does not end", v, (int)pid);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	} else if (!kill_it && (!WIFEXITED(status) || WEXITSTATUS(status))) {
		model_fail(r->m, "VM %u (pid %d) ended with status %#x", v, (int)pid, status);
	}
	vm_gone(r, v);
}

/* --- what is due -------------------------------------------------------------------------------
 */

static void watch_daemon(struct run *r, u64 now)
{
	int status;

	if (!r->h.pid) {
		if (now >= r->daemon_start_at)
			start_daemon(r);
		return;
	}
	if (waitpid(r->h.pid, &status, WNOHANG) == r->h.pid) {
		model_fail(r->m, "ballastd ended by itself with status %#x (%s/ballastd.log)",
			   status, r->h.dir);
		daemon_gone(r);
		return;
	}
	if (r->daemon_cont_at && now >= r->daemon_cont_at) {
		kill(r->h.pid, SIGCONT);
		r->daemon_cont_at = 0;
	}
	if (!r->ready && !r->daemon_cont_at)
		r->ready = host_answers(&r->h, 50);
	if (!r->ready && !r->daemon_cont_at &&
	    now - r->daemon_started_us > DAEMON_UP_S * 1000000ULL)
		model_fail(r->m, "ballastd does not answer %u s after its start", DAEMON_UP_S);
}

static void watch_vm(struct run *r, u32 v, u64 now)
{
	int status;

	if (!r->vm_pid[v]) {
		if (now >= r->vm_start_at[v]) {
			r->m->vm[v].command = r->epoch * NR_CMDS + r->command;
			start_vm(r, v);
		}
		return;
	}
	if (waitpid(r->vm_pid[v], &status, WNOHANG) == r->vm_pid[v]) {
		model_fail(r->m, "VM %u (pid %d) ended by itself with status %#x", v,
			   (int)r->vm_pid[v], status);
		vm_gone(r, v);
		return;
	}
	if (r->vm_cont_at[v] && now >= r->vm_cont_at[v]) {
		kill(r->vm_pid[v], SIGCONT);
		r->vm_cont_at[v] = 0;
	}
}

void run_tick(struct run *r)
{
	u64 now = now_us();

	watch_daemon(r, now);
	for (u32 v = 0; v < MODEL_VMS; v++)
		watch_vm(r, v, now);
}

/* --- events ------------------------------------------------------------------------------------
 */

static void order(struct run *r, const char *command, pid_t pid)
{
	int err;

	/* It is on its way up, down or stopped: it would not answer. */
	if (!r->ready || r->daemon_cont_at)
		return;
	err = host_command(&r->h, command, pid);
	if (err < 0)
		model_fail(r->m, "ballastd does not answer to %s: %s", command, strerror(-err));
}

static void event_kill_daemon(struct run *r)
{
	struct host_status s;

	/* Also one that is hardly up, or stopped. */
	if (!r->h.pid)
		return;
	if (r->ready && !r->daemon_cont_at)
		(void)run_status(r, &s);
	run_end_daemon(r, true);
	r->t->daemon_kills++;
	if (model_below(&r->rng, 2))
		run_configure(r, false);
	r->daemon_start_at = now_us() + between(r, 0, 600) * MS;
}

static void event_end_daemon(struct run *r)
{
	if (!r->ready || r->daemon_cont_at)
		return;
	run_end_daemon(r, false);
	r->t->daemon_ends++;
	r->daemon_start_at = now_us() + between(r, 0, 300) * MS;
}

static void event_stop_daemon(struct run *r)
{
	if (!r->h.pid || r->daemon_cont_at)
		return;
	kill(r->h.pid, SIGSTOP);
	r->t->daemon_stops++;
	r->daemon_cont_at = now_us() + between(r, 10, 400) * MS;
}

static void event_reload(struct run *r)
{
	if (!r->ready)
		return;
	run_configure(r, false);
	kill(r->h.pid, SIGHUP);
	r->t->reloads++;
}

static void event_kill_vm(struct run *r)
{
	u32 v = model_below(&r->rng, MODEL_VMS);

	if (!r->vm_pid[v])
		return;
	run_end_vm(r, v, true);
	r->t->vm_kills++;
	r->vm_start_at[v] = now_us() + (model_below(&r->rng, 2) ? 0 : between(r, 0, 400) * MS);
}

static void event_stop_vm(struct run *r)
{
	u32 v = model_below(&r->rng, MODEL_VMS);

	if (!r->vm_pid[v] || r->vm_cont_at[v])
		return;
	kill(r->vm_pid[v], SIGSTOP);
	r->t->vm_stops++;
	r->vm_cont_at[v] = now_us() + between(r, 10, 300) * MS;
}

static void event_unmerge(struct run *r)
{
	u32 v = model_below(&r->rng, MODEL_VMS);

	if (r->vm_pid[v] && r->ready && !r->daemon_cont_at) {
		order(r, "unmerge", r->vm_pid[v]);
		r->t->unmerges++;
	}
}

/* Pages leave the guests, and are read, written, discarded, merged and unmerged while they are out.
 */
static void event_page_out(struct run *r)
{
	u32 v = model_below(&r->rng, MODEL_VMS);

	if (r->vm_pid[v]) {
		order(r, "page-out", r->vm_pid[v]);
		r->t->page_outs++;
		/* What left before goes on to its swap file. */
		if (model_below(&r->rng, 2))
			order(r, "swap-out", r->vm_pid[v]);
	}
}

static void event_share(struct run *r)
{
	for (u32 v = 0; v < MODEL_VMS; v++)
		if (r->vm_pid[v])
			order(r, "share", r->vm_pid[v]);
}

static void event_pause(struct run *r)
{
	order(r, r->paused ? "resume" : "pause", 0);
	r->paused = r->ready && !r->daemon_cont_at ? !r->paused : r->paused;
}

static const struct {
	void (*run)(struct run *r);
	u32 weight;
} events[] = {
	{ event_kill_daemon, 3 }, { event_end_daemon, 1 }, { event_stop_daemon, 6 },
	{ event_reload, 8 },	  { event_kill_vm, 5 },	   { event_stop_vm, 6 },
	{ event_unmerge, 6 },	  { event_share, 12 },	   { event_pause, 12 },
	{ event_page_out, 60 },
};

void run_event(struct run *r)
{
	u32 all = 0, choice, i;

	for (i = 0; i < ARRAY_SIZE(events); i++)
		all += events[i].weight;
	choice = model_below(&r->rng, all);
	for (i = 0; choice >= events[i].weight; i++)
		choice -= events[i].weight;
	events[i].run(r);
}

/* --- life --------------------------------------------------------------------------------------
 */

void run_start(struct run *r)
{
	run_configure(r, true);
	start_daemon(r);
	for (u32 v = 0; v < MODEL_VMS; v++)
		r->vm_start_at[v] = 0;
}

int run_calm(struct run *r, bool resume)
{
	u64 end = now_us() + CALM_S * 1000000ULL;

	for (;;) {
		bool calm = r->h.pid && r->ready && !r->daemon_cont_at;

		for (u32 v = 0; v < MODEL_VMS; v++)
			calm = calm && r->vm_pid[v] && !r->vm_cont_at[v];
		if (calm)
			break;
		if (run_failed(r))
			return -EIO;
		if (now_us() > end) {
			model_fail(r->m, "daemon and VMs are not all up after %u s", CALM_S);
			return -ETIME;
		}
		usleep(5 * MS);
		run_tick(r);
	}
	if (resume && r->paused)
		event_pause(r);
	return run_failed(r) ? -EIO : 0;
}

void run_kill_all(struct run *r)
{
	for (u32 v = 0; v < MODEL_VMS; v++)
		run_end_vm(r, v, true);
	run_end_daemon(r, true);
}
