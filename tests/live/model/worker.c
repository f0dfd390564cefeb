// SPDX-License-Identifier: MIT
/*
 * A VMM of the model test: memory, two threads that use it, and the agent.
 *
 * The main thread has the agent: it connects when there is a daemon, gives it the regions that are
 * OUT, and now and then takes it away and brings it back (bh_free()), as a VMM may. The other
 * threads call the agent under a read lock, so that it does not go under their feet.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "common/clock.h"
#include "hypervisor-hooks/hooks.h"
#include "tests/live/model/model.h"

/* A thread rests after so many operations, so that the machine is not the guests' alone. */
#define OPS_AT_ONCE 8
#define REST_US	    2000
#define IDLE_US	    1000
#define MAIN_US	    20000
/* The agent leaves about once in so many turns of the main thread: a minute. */
#define LEAVE_ONE_IN 3000

static const u32 region_pages[MODEL_REGIONS] = { 512, 640, MODEL_PAGES_MAX };

static pthread_rwlock_t agent_lock = PTHREAD_RWLOCK_INITIALIZER;
static struct bh_agent *agent;

struct bh_agent *worker_agent_get(void)
{
	pthread_rwlock_rdlock(&agent_lock);
	return agent;
}

void worker_agent_put(void)
{
	pthread_rwlock_unlock(&agent_lock);
}

/* --- regions -----------------------------------------------------------------------------------
 */

static void advise(const struct model_vm *vm, u64 base, u32 nr_pages)
{
	void *at = (void *)(uintptr_t)base;

	madvise(at, (size_t)nr_pages << PAGE_SHIFT, vm->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (vm->dont_fork)
		madvise(at, (size_t)nr_pages << PAGE_SHIFT, MADV_DONTFORK);
}

/* At @fixed, or where there is room on a 2 MiB boundary. */
static u64 map_region(struct model *m, u32 nr_pages, u64 fixed)
{
	size_t bytes = (size_t)nr_pages << PAGE_SHIFT, more = fixed ? bytes : bytes + CHUNK_BYTES;
	u8 *p = mmap((void *)(uintptr_t)fixed, more, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (fixed ? MAP_FIXED : 0), -1, 0);
	u8 *at = (u8 *)ROUND_UP((u64)(uintptr_t)p, CHUNK_BYTES);

	if (p == MAP_FAILED) {
		model_fail(m, "mmap of a region: %s", strerror(errno));
		_exit(1);
	}
	if (fixed)
		return fixed;
	if (at > p)
		munmap(p, (size_t)(at - p));
	munmap(at + bytes, (size_t)(p + CHUNK_BYTES - at));
	return (u64)(uintptr_t)at;
}

static void add_region(struct model *m, const struct model_vm *vm, struct model_region *r,
		       u32 index)
{
	void *at = (void *)(uintptr_t)r->base;
	size_t bytes = (size_t)r->nr_pages << PAGE_SHIFT;
	char name[16];
	int err;

	snprintf(name, sizeof(name), "ram%u", index);
	err = bh_region_add(agent, at, bytes, (u64)index << 32, name);
	if (err < 0) {
		model_fail(m, "VM %u: bh_region_add of region %u: %s", vm->index, index,
			   strerror(-err));
		return;
	}
	bh_region_advise(agent, at, bytes, vm->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (vm->dont_fork)
		bh_region_advise(agent, at, bytes, MADV_DONTFORK);
	r->state = REGION_IN;
}

void worker_region_leave(struct lane *l, u32 region)
{
	struct model_region *r = &l->vm->region[region];
	struct bh_agent *a = worker_agent_get();

	if (a && r->state == REGION_IN) {
		int err = bh_region_del(a, model_at(r, 0), (size_t)r->nr_pages << PAGE_SHIFT);

		if (err < 0)
			model_fail(l->model, "bh_region_del: %s", strerror(-err));
		r->state = REGION_LEFT;
		l->counts->leaves++;
	}
	worker_agent_put();
}

void worker_region_remap(struct lane *l, u32 region)
{
	struct model_region *r = &l->vm->region[region];
	u64 old = r->base;

	/* The main thread looks at the state under the lock before it adds. */
	worker_agent_get();
	if (model_below(&l->rng, 2)) {
		r->base = map_region(l->model, r->nr_pages, old);
	} else {
		r->base = map_region(l->model, r->nr_pages, 0);
		munmap((void *)(uintptr_t)old, (size_t)r->nr_pages << PAGE_SHIFT);
	}
	advise(l->vm, r->base, r->nr_pages);
	memset(r->page, 0, sizeof(r->page));
	r->state = REGION_OUT;
	l->counts->remaps++;
	worker_agent_put();
}

/* --- threads -----------------------------------------------------------------------------------
 */

static void run_a_while(struct lane *l)
{
	for (u32 i = 0; i < OPS_AT_ONCE; i++)
		model_op(l);
	usleep(REST_US);
}

static void *lane_main(void *arg)
{
	struct lane *l = arg;
	_Atomic u32 *acked = &l->vm->acked[l->thread];

	for (;;) {
		u32 command = l->vm->command;

		switch (command % NR_CMDS) {
		case CMD_RUN:
			*acked = command;
			run_a_while(l);
			break;
		case CMD_CHECK:
			if (*acked != command)
				model_check_all(l);
			*acked = command;
			usleep(IDLE_US);
			break;
		case CMD_QUIT:
			return NULL;
		default:
			*acked = command;
			usleep(IDLE_US);
		}
	}
}

/* --- the agent ---------------------------------------------------------------------------------
 */

static void agent_log_line(void *arg, const char *line)
{
	printf("vm%u: %s\n", ((const struct model_vm *)arg)->index, line);
	fflush(stdout);
}

static void publish(struct model_vm *vm, const struct bh_stats *before)
{
	struct bh_stats now;

	bh_stats(agent, &now);
	vm->of[0].merged = before->merged_pages + now.merged_pages;
	vm->of[0].zeroed = before->zeroed_pages + now.zeroed_pages;
	vm->of[0].moved_back = before->moved_back_pages + now.moved_back_pages;
	vm->of[0].wait_faults = before->wait_faults + now.wait_faults;
	vm->of[0].paged_out = before->paged_out_pages + now.paged_out_pages;
	vm->of[0].paged_in = before->paged_in_pages + now.paged_in_pages;
	vm->of[0].swap_read = before->swap_read_pages + now.swap_read_pages;
}

static void connect_agent(struct model_vm *vm)
{
	char name[16];
	/* Half of them know their DMA, of which all have none but what op_disk_read() makes
	 * believe. */
	struct bh_config cfg = {
		.name = name,
		.log = agent_log_line,
		.log_arg = vm,
		.pins_exactly = vm->index % 2,
	};

	snprintf(name, sizeof(name), "vm%u", vm->index);
	if (bh_new(&cfg, &agent) < 0)
		agent = NULL;
	vm->has_agent = agent != NULL;
}

/* Merged memory stays merged, and is used on. */
static void drop_agent(struct model_vm *vm, struct bh_stats *before)
{
	struct bh_stats now;

	bh_stats(agent, &now);
	before->merged_pages += now.merged_pages;
	before->zeroed_pages += now.zeroed_pages;
	before->moved_back_pages += now.moved_back_pages;
	before->wait_faults += now.wait_faults;
	before->paged_out_pages += now.paged_out_pages;
	before->paged_in_pages += now.paged_in_pages;
	before->swap_read_pages += now.swap_read_pages;
	bh_free(agent);
	agent = NULL;
	vm->has_agent = 0;
	for (u32 i = 0; i < MODEL_REGIONS; i++)
		if (vm->region[i].state == REGION_IN)
			vm->region[i].state = REGION_LEFT;
}

static void main_turn(struct model *m, struct model_vm *vm, u64 *rng, struct bh_stats *before)
{
	bool running = vm->command % NR_CMDS == CMD_RUN;

	pthread_rwlock_wrlock(&agent_lock);
	if (agent && running && !model_below(rng, LEAVE_ONE_IN))
		drop_agent(vm, before);
	else if (!agent)
		connect_agent(vm);
	for (u32 i = 0; agent && i < MODEL_REGIONS; i++)
		if (vm->region[i].state == REGION_OUT)
			add_region(m, vm, &vm->region[i], i);
	if (agent)
		publish(vm, before);
	pthread_rwlock_unlock(&agent_lock);
}

static void init_memory(struct model *m, struct model_vm *vm)
{
	for (u32 i = 0; i < MODEL_REGIONS; i++) {
		struct model_region *r = &vm->region[i];

		memset(r->page, 0, sizeof(r->page));
		r->state = REGION_OUT;
		r->nr_pages = region_pages[i];
		r->base = map_region(m, r->nr_pages, 0);
		advise(vm, r->base, r->nr_pages);
	}
}

void model_worker(struct model *m, u32 index)
{
	struct model_vm *vm = &m->vm[index];
	struct lane lanes[MODEL_THREADS];
	pthread_t threads[MODEL_THREADS];
	struct bh_stats before = { 0 };
	u64 rng = m->seed << 24 ^ (u64)index << 16 ^ (u64)vm->life << 4;

	init_memory(m, vm);
	for (u32 i = 0; i < MODEL_THREADS; i++) {
		lanes[i] = (struct lane){ .model = m,
					  .vm = vm,
					  .thread = i,
					  .rng = model_mix(rng | (i + 1)),
					  .counts = &vm->of[i] };
		if (pthread_create(&threads[i], NULL, lane_main, &lanes[i]) != 0) {
			model_fail(m, "no thread");
			_exit(1);
		}
	}
	while (vm->command % NR_CMDS != CMD_QUIT) {
		main_turn(m, vm, &rng, &before);
		usleep(MAIN_US);
	}
	for (u32 i = 0; i < MODEL_THREADS; i++)
		pthread_join(threads[i], NULL);
	bh_free(agent);
	exit(0);
}
