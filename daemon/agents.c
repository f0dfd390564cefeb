/* SPDX-License-Identifier: MIT */
/*
 * The agent socket. Whoever can connect speaks for its own process only: SO_PEERCRED names it, and
 * all that it says is checked against what was asked, or against the kernel (invariant 9). A
 * connection that breaks the protocol is closed; what its VM has merged stays accounted for until
 * the process ends.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "daemon/core.h"
#include "daemon/governor.h"
#include "ksmd/store.h"

#define AGENTS_MAX	    1024
#define NEWCOMERS_MAX	    64
#define NEWCOMERS_PID_MAX   4
#define CONNECTIONS_AT_ONCE 16
/* Who connects and does not say HELLO is dropped. */
#define HELLO_TIMEOUT_US 5000000
/* The dearest page there is: one that is replaced inside a mapping, after a look at all
 * descriptors. */
#define CPU_PAGE_MAX_US 1000
/* Of the main thread's time, before an agent has to rest. */
#define BUSY_MAX_US 50000
/* What one message may discard; an agent with more tells it in several. */
#define DISCARD_MAX GIB(16)
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
/* So many pages that came back since it last said are memory that is missing elsewhere: 16 MiB. */
#define PAGES_BACK_NEWS 4096
/* Messages taken from one agent before the others get their turn. */
#define MESSAGES_AT_ONCE 16

struct agent {
	TAILQ_ENTRY(agent) newcomer; /* before HELLO */
	struct core *core;
	int fd;
	pid_t pid;
	struct peer_process peer;
	sd_event_source *io, *hello_timer, *rest_timer;
	bool is_introduced;
	u32 version;   /* of the protocol, from HELLO on */
	u64 busy_us;   /* of our time that it has taken since it last rested */
	struct vm *vm; /* NULL before HELLO */
};

/* Those who have not said HELLO, oldest first: when there are too many, that one has to go. */
static TAILQ_HEAD(newcomers, agent) newcomers = TAILQ_HEAD_INITIALIZER(newcomers);
static u32 nr_newcomers;

static void introduced(struct agent *a)
{
	TAILQ_REMOVE(&newcomers, a, newcomer);
	nr_newcomers--;
	a->is_introduced = true;
}

/* One for all agents: messages are handled one at a time. */
static struct wire_message rx, tx;

static void agent_close(struct agent *a)
{
	struct core *c = a->core;

	if (a->vm) {
		engine_vm_disconnect(a->vm->ksm);
		a->vm->agent = NULL;
	}
	if (!a->is_introduced)
		introduced(a);
	sd_event_source_disable_unref(a->io);
	sd_event_source_disable_unref(a->hello_timer);
	sd_event_source_disable_unref(a->rest_timer);
	if (a->peer.pidfd >= 0)
		close(a->peer.pidfd);
	close(a->fd);
	free(a);
	if (c->nr_agents-- == AGENTS_MAX)
		sd_event_source_set_enabled(c->agent_source, SD_EVENT_ON);
}

void agents_forget_vm(struct vm *vm)
{
	if (!vm->agent)
		return;
	vm->agent->vm = NULL;
	agent_close(vm->agent);
	vm->agent = NULL;
}

/* Names come from a stranger and go to logs, tables and labels. */
static void clean_name(char *s)
{
	for (; *s; s++)
		if (*s < ' ' || *s > '~' || *s == '"' || *s == '\\')
			*s = '?';
}

static int refuse(struct agent *a, int err, const char *reason)
{
	wire_init(&tx, WIRE_REFUSE, 0, sizeof(tx.refuse));
	memset(&tx.refuse, 0, sizeof(tx.refuse));
	tx.refuse.error = err;
	snprintf(tx.refuse.reason, sizeof(tx.refuse.reason), "%s", reason);
	(void)wire_send(a->fd, &tx, -1, 0);
	log_warn_limited("process %d is refused: %s", (int)a->pid, reason);
	return -ECONNABORTED;
}

static int on_hello(struct agent *a)
{
	struct core *c = a->core;
	struct ksm_domain *d;
	struct vm *vm;
	char reason[96];
	int r;

	if (a->vm)
		return -EPROTO;
	a->version = wire_common_version(rx.hello.version_lowest, rx.hello.version_highest);
	if (!a->version) {
		snprintf(reason, sizeof(reason),
			 "no common protocol version (it speaks %u to %u, this daemon %d to %d)",
			 rx.hello.version_lowest, rx.hello.version_highest, WIRE_VERSION_LOWEST,
			 WIRE_VERSION);
		return refuse(a, -EPROTO, reason);
	}
	if (rx.hello.page_bytes != PAGE_BYTES)
		return refuse(a, -EPROTO, "its page size is not 4096");
	clean_name(rx.hello.name);
	clean_name(rx.hello.uuid);
	r = core_vm_get(c, &a->peer, rx.hello.name, rx.hello.uuid, &vm);
	if (r < 0) {
		snprintf(reason, sizeof(reason), "cannot look into the process: %s", strerror(-r));
		return refuse(a, r, reason);
	}
	if (vm->agent)
		return refuse(a, -EBUSY, "the process has an agent already");
	r = engine_domain(c->engine, vm->domain, &d);
	if (r < 0)
		return refuse(a, r, "no store for its domain");
	wire_init(&tx, WIRE_WELCOME, 0, sizeof(tx.welcome));
	tx.welcome = (struct wire_welcome){ .version = (u16)a->version,
					    .store_bytes = store_file_bytes(domain_store(d)) };
	snprintf(tx.welcome.domain, sizeof(tx.welcome.domain), "%s", vm->domain);
	r = wire_send(a->fd, &tx, store_fd_readonly(domain_store(d)), 0);
	if (r < 0)
		return r;
	a->hello_timer = sd_event_source_disable_unref(a->hello_timer);
	introduced(a);
	a->vm = vm;
	vm->agent = a;
	vm->cpu_us_seen = vm->guest_faults_seen = 0;
	vm->swap = (struct wire_swap){ 0 };
	vm->swap_known = vm->swap_offered = false;
	engine_vm_connect(vm->ksm, vm);
	log_info_limited("VM %s (pid %d) is connected, domain %s, share %s", vm->name, (int)vm->pid,
			 vm->domain, share_mode_name(vm->share));
	return 0;
}

/* Counters of an agent run since its process began; only their growth is added, and never a step
 * back. */
static u64 growth(u64 now, u64 *seen)
{
	u64 by = now > *seen ? now - *seen : 0;

	*seen = MAX(*seen, now);
	return by;
}

/*
 * What an agent says that a request has cost it counts against the budget of all. It cannot have
 * been more than its two threads had time for, nor than the work is ever worth.
 */
static u64 believable_cpu_us(const struct vm *vm, u64 claimed)
{
	u64 elapsed = now_us() - vm->asked_us;

	return MIN(claimed, MIN(2 * elapsed, (u64)vm->asked_pages * CPU_PAGE_MAX_US + 1000));
}

static int on_done(struct vm *vm)
{
	static struct ksm_segment segments[WIRE_PAGES_MAX];
	u32 nr = wire_count(&rx);
	bool paging = vm->asked_paging; /* the next request may be under way afterwards */
	u64 cpu_us, began = clock_us(CLOCK_THREAD_CPUTIME_ID);
	int r;

	for (u32 i = 0; i < nr; i++)
		segments[i] = (struct ksm_segment){ rx.segments[i].hva, rx.segments[i].nr_pages,
						    rx.segments[i].status };
	r = engine_done(vm->ksm, rx.h.seq, segments, nr);
	if (r < 0)
		return r;
	cpu_us = believable_cpu_us(vm, growth(rx.done.cpu_us, &vm->cpu_us_seen));
	vm->cpu_us += cpu_us;
	if (paging) {
		vm->paging_cpu_us += cpu_us;
		vm->core->policy_cpu_us += clock_us(CLOCK_THREAD_CPUTIME_ID) - began;
	}
	vm->guest_faults +=
		growth(rx.done.wait_faults + rx.done.fill_faults, &vm->guest_faults_seen);
	return 0;
}

static int on_discard(struct vm *vm)
{
	u64 bytes = 0;
	int r = 0;

	/* Once for each page at most; an honest agent tells of merged pages only. */
	for (u32 i = 0; i < wire_count(&rx); i++) {
		bytes += rx.ranges[i].bytes;
		if (rx.ranges[i].bytes > DISCARD_MAX || bytes > DISCARD_MAX)
			return -EPROTO;
	}
	for (u32 i = 0; r == 0 && i < wire_count(&rx); i++)
		r = engine_discard(vm->ksm, rx.ranges[i].hva, rx.ranges[i].bytes);
	return r;
}

static int on_disk_read(struct vm *vm)
{
	int r = 0;

	for (u32 i = 0; r == 0 && i < wire_count(&rx); i++)
		r = engine_disk_read(vm->ksm, rx.reads[i].hva, rx.reads[i].nr_pages,
				     rx.reads[i].disk, rx.reads[i].sector);
	return r;
}

/* Takes over @file. */
static int on_image(struct vm *vm, int file)
{
	return engine_image(vm->ksm, file, rx.image.hva, rx.image.bytes, rx.image.offset);
}

static int on_region_add(struct vm *vm)
{
	int r = engine_region_add(vm->ksm, rx.region.hva, rx.region.bytes);

	if (r == -EAGAIN)
		return -ECONNRESET; /* it connects again, and tells it again */
	if (r == 0)
		log_info_limited("VM %s: %llu MiB of guest memory", vm->name,
				 (unsigned long long)(rx.region.bytes >> 20));
	else
		log_warn_limited("VM %s: region of %llu MiB refused: %s", vm->name,
				 (unsigned long long)(rx.region.bytes >> 20), strerror(-r));
	/* Its own mistake, or no memory here: the region is not watched, and nothing else is lost.
	 */
	return r == -EPROTO ? r : 0;
}

/* Takes over *passed_fd where it is of use; leaves -1 then. */
static int handle(struct agent *a, int *passed_fd)
{
	struct vm *vm = a->vm;
	int fd = *passed_fd;

	if (rx.h.type == WIRE_HELLO)
		return on_hello(a);
	/* Of a later version than was agreed on, too. */
	if (!vm || rx.h.version > a->version)
		return -EPROTO;
	switch (rx.h.type) {
	case WIRE_REGION_ADD:
		return on_region_add(vm);
	case WIRE_REGION_DEL:
		return engine_region_del(vm->ksm, rx.range.hva, rx.range.bytes);
	case WIRE_DISCARD:
		return on_discard(vm);
	case WIRE_DONE:
		return on_done(vm);
	case WIRE_DISK_READ:
		return on_disk_read(vm);
	case WIRE_PAGER:
		if (rx.pager.in_total >= vm->pager.in_total + PAGES_BACK_NEWS)
			governor_hurry(vm->core);
		vm->pager = rx.pager;
		return 0;
	case WIRE_SWAP:
		swapfile_told(vm, &rx.swap);
		return 0;
	case WIRE_LATENCY:
		vm->latency = rx.latency;
		return 0;
	case WIRE_IMAGE:
		*passed_fd = -1;
		return on_image(vm, fd);
	default:
		return -EPROTO;
	}
}

static int on_rested(sd_event_source *s, uint64_t usec, void *arg)
{
	struct agent *a = arg;

	a->busy_us = 0;
	a->rest_timer = sd_event_source_disable_unref(a->rest_timer);
	return sd_event_source_set_enabled(a->io, SD_EVENT_ON);
}

/* An agent that keeps us busy gets a tenth of the time at most. */
static void rest(struct agent *a)
{
	if (!a->rest_timer && sd_event_add_time(a->core->event, &a->rest_timer, CLOCK_MONOTONIC,
						now_us() + 9 * a->busy_us, 0, on_rested, a) >= 0)
		sd_event_source_set_enabled(a->io, SD_EVENT_OFF);
}

static int on_message(sd_event_source *s, int fd, uint32_t revents, void *arg)
{
	struct agent *a = arg;
	struct core *c = a->core;
	const char *who;
	const char *why = "message out of place";
	u64 started = now_us();
	int passed_fd, r = 0;

	for (int i = 0; r == 0 && i < MESSAGES_AT_ONCE; i++) {
		passed_fd = -1;
		r = wire_recv(fd, &rx, a->vm ? &passed_fd : NULL, &why);
		if (r == 0) {
			why = "message out of place";
			r = handle(a, &passed_fd);
		}
		/* Of no use here, so of none to an honest agent. */
		if (passed_fd >= 0) {
			engine_close_file(a->vm->ksm, passed_fd);
			r = -EPROTO;
		}
	}
	who = a->vm ? a->vm->name : "not introduced";
	if (r < 0 && r != -EAGAIN) {
		if (r == -EPROTO) {
			c->protocol_errors++;
			log_warn_limited(
				"agent of process %d (%s) breaks the protocol: %s; connection closed",
				(int)a->pid, who, why);
		} else if (a->vm) {
			log_info_limited("VM %s (pid %d): agent disconnected (%s)", who,
					 (int)a->pid, strerror(-r));
		}
		agent_close(a);
	} else {
		a->busy_us += now_us() - started;
		if (a->busy_us > BUSY_MAX_US)
			rest(a);
	}
	core_kick(c);
	return 0;
}

static int on_hello_timeout(sd_event_source *s, uint64_t usec, void *arg)
{
	struct agent *a = arg;

	log_warn_limited(
		"process %d connected to the agent socket and said nothing; connection closed",
		(int)a->pid);
	agent_close(a);
	return 0;
}

static int on_accept_again(sd_event_source *s, uint64_t usec, void *arg)
{
	struct core *c = arg;

	c->accept_timer = sd_event_source_disable_unref(c->accept_timer);
	return sd_event_source_set_enabled(c->agent_source, SD_EVENT_ON);
}

static void pause_accept(struct core *c)
{
	log_warn_limited("cannot accept a connection: %s", strerror(errno));
	if (!c->accept_timer && sd_event_add_time(c->event, &c->accept_timer, CLOCK_MONOTONIC,
						  now_us() + 1000000, 0, on_accept_again, c) >= 0)
		sd_event_source_set_enabled(c->agent_source, SD_EVENT_OFF);
}

/* The process that connected. Without SO_PEERPIDFD (Linux 6.5) a pid could be another process's by
 * now. */
static int peer_pidfd(int sock)
{
	socklen_t len = sizeof(int);
	int fd;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) < 0)
		return -errno;
	return fd;
}

/* Who opens many connections and says nothing on them loses the older ones; it does not keep others
 * out. */
static void make_room(pid_t pid)
{
	struct agent *a, *oldest_of_pid = NULL;
	u32 of_pid = 0;

	for (a = TAILQ_FIRST(&newcomers); a; a = TAILQ_NEXT(a, newcomer)) {
		if (a->pid != pid)
			continue;
		if (!oldest_of_pid)
			oldest_of_pid = a;
		of_pid++;
	}
	if (of_pid >= NEWCOMERS_PID_MAX)
		agent_close(oldest_of_pid);
	else if (nr_newcomers >= NEWCOMERS_MAX)
		agent_close(TAILQ_FIRST(&newcomers));
}

static void agent_new(struct core *c, int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct agent *a = calloc(1, sizeof(*a));
	int pidfd = -1;

	if (!a || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.pid <= 0 ||
	    (pidfd = peer_pidfd(fd)) < 0) {
		free(a);
		close(fd);
		return;
	}
	make_room(cred.pid);
	a->core = c;
	a->fd = fd;
	a->pid = cred.pid;
	a->peer = (struct peer_process){ .pid = cred.pid, .uid = cred.uid, .pidfd = pidfd };
	TAILQ_INSERT_TAIL(&newcomers, a, newcomer);
	nr_newcomers++;
	/* At the limit nobody is accepted; those who wait, wait in the backlog. */
	if (++c->nr_agents == AGENTS_MAX)
		sd_event_source_set_enabled(c->agent_source, SD_EVENT_OFF);
	if (sd_event_add_io(c->event, &a->io, fd, EPOLLIN, on_message, a) < 0 ||
	    sd_event_add_time(c->event, &a->hello_timer, CLOCK_MONOTONIC,
			      now_us() + HELLO_TIMEOUT_US, 0, on_hello_timeout, a) < 0)
		agent_close(a);
}

static int on_connection(sd_event_source *s, int listen_fd, uint32_t revents, void *arg)
{
	struct core *c = arg;

	for (int i = 0; i < CONNECTIONS_AT_ONCE && c->nr_agents < AGENTS_MAX; i++) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			/* Out of descriptors, as a rule: the socket stays readable, so look again
			 * later. */
			if (errno != EAGAIN && errno != ECONNABORTED)
				pause_accept(c);
			break;
		}
		agent_new(c, fd);
	}
	return 0;
}

int agents_start(struct core *c)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const char *path = c->config.agent_socket;
	int r;

	c->agent_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->agent_fd < 0)
		return -errno;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	/* We hold the lock of the run folder: a socket that is there is a dead daemon's. */
	unlink(path);
	if (bind(c->agent_fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    chmod(path, c->config.agent_socket_mode) < 0 || listen(c->agent_fd, 64) < 0) {
		r = -errno;
		log_err("cannot listen on %s: %s ([daemon] agent_socket = another)", path,
			strerror(-r));
		return r;
	}
	return sd_event_add_io(c->event, &c->agent_source, c->agent_fd, EPOLLIN, on_connection, c);
}

void agents_stop(struct core *c)
{
	for (struct vm *vm = c->vms; vm; vm = vm->next)
		if (vm->agent)
			agent_close(vm->agent);
	c->agent_source = sd_event_source_disable_unref(c->agent_source);
	c->accept_timer = sd_event_source_disable_unref(c->accept_timer);
	if (c->agent_fd >= 0) {
		close(c->agent_fd);
		unlink(c->config.agent_socket);
	}
	c->agent_fd = -1;
}

/* --- the engine's side
 * ----------------------------------------------------------------------------------------- */

_Static_assert(ENGINE_RUNS_MAX <= WIRE_RUNS_MAX && ENGINE_PAGES_MAX <= WIRE_PAGES_MAX,
	       "a request fits in a message");

static int send_runs(void *conn, enum wire_type type, u32 seq, const struct ksm_run *runs, u32 nr)
{
	struct vm *vm = conn;

	vm->asked_us = now_us();
	vm->asked_pages = 0;
	vm->asked_paging = type == WIRE_PAGE_OUT;
	wire_init(&tx, type, seq, nr * sizeof(tx.runs[0]));
	for (u32 i = 0; i < nr; i++) {
		vm->asked_pages += runs[i].nr_pages;
		tx.runs[i] = (struct wire_run){
			.hva = runs[i].hva,
			.store_offset = runs[i].sample ?: runs[i].store_offset,
			.nr_pages = runs[i].nr_pages,
			.kind = type == WIRE_PAGE_OUT
					? runs[i].sample ? WIRE_RUN_SAMPLE : WIRE_RUN_OUT
				: runs[i].zero ? WIRE_RUN_ZERO
					       : WIRE_RUN_STORE,
		};
	}
	return wire_send(vm->agent->fd, &tx, -1, 0);
}

static int send_map_image(void *conn, u32 seq, const struct ksm_run *runs, u32 nr)
{
	return send_runs(conn, WIRE_IMAGE_RUNS, seq, runs, nr);
}

static int send_merge(void *conn, u32 seq, const struct ksm_run *runs, u32 nr)
{
	return send_runs(conn, WIRE_MERGE, seq, runs, nr);
}

static int send_image_end(void *conn, int status, u64 nr_pages)
{
	struct vm *vm = conn;

	if (status < 0)
		log_info_limited("VM %s: memory from an image: %s", vm->name, strerror(-status));
	else
		log_info_limited("VM %s: %llu MiB of memory from an image", vm->name,
				 (unsigned long long)(nr_pages << PAGE_SHIFT >> 20));
	wire_init(&tx, WIRE_IMAGE_END, 0, sizeof(tx.image_end));
	tx.image_end = (struct wire_image_end){ .status = status, .nr_pages = nr_pages };
	return wire_send(vm->agent->fd, &tx, -1, 0);
}

bool agent_has_pager(const struct vm *vm)
{
	return vm->agent && vm->agent->version >= WIRE_PAGER_VERSION;
}

int agent_send_swap_file(struct vm *vm, int fd)
{
	if (!vm->agent || vm->agent->version < WIRE_SWAP_VERSION)
		return -ENOTSUP;
	wire_init(&tx, WIRE_SWAP_FILE, 0, 0);
	return wire_send(vm->agent->fd, &tx, fd, 0);
}

int agent_send_swap_out(struct vm *vm, u64 bytes)
{
	if (!vm->agent || vm->agent->version < WIRE_SWAP_VERSION)
		return -ENOTSUP;
	wire_init(&tx, WIRE_SWAP_OUT, 0, sizeof(tx.swap_out));
	tx.swap_out = (struct wire_swap_out){ .bytes = bytes };
	return wire_send(vm->agent->fd, &tx, -1, 0);
}

int agent_send_pace(struct vm *vm, u32 pages, u32 ms)
{
	if (!vm->agent || vm->agent->version < WIRE_SWAP_VERSION)
		return -ENOTSUP;
	wire_init(&tx, WIRE_PACE, 0, sizeof(tx.pace));
	tx.pace = (struct wire_pace){ .pages = pages, .ms = ms };
	return wire_send(vm->agent->fd, &tx, -1, 0);
}

static int send_page_out(void *conn, u32 seq, const struct ksm_run *runs, u32 nr)
{
	return agent_has_pager(conn) ? send_runs(conn, WIRE_PAGE_OUT, seq, runs, nr) : -ENOTSUP;
}

static int send_unmerge(void *conn, u32 seq, const struct ksm_range *ranges, u32 nr)
{
	struct vm *vm = conn;

	vm->asked_us = now_us();
	vm->asked_pages = 0;
	vm->asked_paging = false;
	for (u32 i = 0; i < nr; i++)
		vm->asked_pages += (u32)(ranges[i].bytes >> PAGE_SHIFT);
	wire_init(&tx, WIRE_UNMERGE, seq, nr * sizeof(tx.ranges[0]));
	for (u32 i = 0; i < nr; i++)
		tx.ranges[i] = (struct wire_range){ ranges[i].hva, ranges[i].bytes };
	return wire_send(vm->agent->fd, &tx, -1, 0);
}

static void note_blocked(void *conn, bool blocked)
{
	const struct vm *vm = conn;

	if (!vm)
		return;
	if (blocked)
		log_warn_limited(
			"VM %s (pid %d) does not let its memory be read; it is left alone until it does",
			vm->name, (int)vm->pid);
	else
		log_info_limited("VM %s (pid %d) can be read again", vm->name, (int)vm->pid);
}

const struct engine_ops agent_engine_ops = {
	.merge = send_merge,
	.map_image = send_map_image,
	.image_end = send_image_end,
	.unmerge = send_unmerge,
	.page_out = send_page_out,
	.blocked = note_blocked,
};
