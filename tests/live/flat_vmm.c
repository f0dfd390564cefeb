// SPDX-License-Identifier: MIT
/*
 * The flat test VMM: a 64-bit CPL 3 KVM guest that knows what every word of its memory must be, on
 * the real agent library. What it proves: while pages of it are merged, broken and merged again, no
 * access by a vCPU, by a thread of the VMM or by a system call ever sees a wrong byte, and none
 * waits long.
 *
 *   flat_vmm --seconds N --pages N --seed S --name NAME [options]      (--help lists them)
 *
 * The guest has no clock. It leaves by an OUT after every round of some 5,000 accesses, well under
 * a millisecond; the longest time between two rounds is the stall that is reported. It includes
 * waiting for a CPU.
 *
 * Prints one line a second, and one at the end with "final=1"; on SIGUSR1 a line with what the
 * kernel says of its sharing. Exits 0 if all was right, 1 on any wrong word or failed call, 2 on
 * bad usage or without an agent, 77 where KVM cannot run it (then --threads has the same loop run
 * by host threads).
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/live/flat/vmm.h"

#define WARMUP_TICKS   5    /* first faults of the guest's own page tables */
#define DEVICE_REST_US 2000 /* between two rounds: devices are idle for most of the time */
#define JOIN_LIMIT_S   10   /* a vCPU that has not come back by then never will */
#define CORRUPT_US     1000000

enum exit_status {
	EXIT_WRONG = 1,
	EXIT_USAGE = 2,
	EXIT_SKIP = 77,
};

static volatile sig_atomic_t stop_signal, count_signal;

static void on_stop(int sig)
{
	stop_signal = 1;
}

static void on_count(int sig)
{
	count_signal = 1;
}

static bool stopping(const struct flat_vm *vm)
{
	return __atomic_load_n(&vm->stop, __ATOMIC_RELAXED);
}

/* A round begins: time until its end counts as a stall. */
static void round_begin(struct flat_runner *r)
{
	pthread_mutex_lock(&r->lock);
	r->last_tick_us = now_us();
	r->resting = false;
	pthread_mutex_unlock(&r->lock);
}

/* A round is done: its time and the lane's state are recorded, and the window moves on if its time
 * has come. */
static void round_end(struct flat_runner *r, bool rest)
{
	u64 now = now_us();

	pthread_mutex_lock(&r->lock);
	if (r->ticks >= WARMUP_TICKS)
		r->max_stall_us = MAX(r->max_stall_us, now - r->last_tick_us);
	r->ticks++;
	r->last_tick_us = now;
	r->resting = rest;
	r->seen = *r->lane;
	pthread_mutex_unlock(&r->lock);
	r->lane->window = (now - r->vm->start_us) / ((u64)r->vm->opt.dwell_ms * 1000);
}

static int discard(struct flat_vm *vm, u64 page, u64 count)
{
	u8 *hva = vm->ram + (page << PAGE_SHIFT);

	if (page >= vm->opt.nr_pages || count > vm->opt.nr_pages - page)
		return -EINVAL;
	if (vm->agent)
		return bh_discard(vm->agent, hva, count << PAGE_SHIFT, MADV_DONTNEED);
	return madvise(hva, count << PAGE_SHIFT, MADV_DONTNEED) ? -errno : 0;
}

/* What the guest asks for by OUT; for hosted lanes, by call. Runs in the lane's thread. */
static void serve(struct flat_runner *r, u32 call)
{
	const struct flat_lane *l = r->lane;
	int rc = 0;

	switch (call) {
	case FLAT_CALL_TICK:
		round_end(r, false);
		return;
	case FLAT_CALL_DISCARD:
		rc = discard(r->vm, l->call_page, l->call_count);
		break;
	case FLAT_CALL_DISK:
		rc = flat_device_read(r->vm, l->call_page, l->call_id);
		break;
	default:
		rc = -ENOSYS;
	}
	if (rc) {
		fprintf(stderr, "flat_vmm %s: guest call %#x on page %" PRIu64 ": %s\n",
			r->vm->opt.name, call, l->call_page, strerror(-rc));
		pthread_mutex_lock(&r->lock);
		r->call_errors++;
		pthread_mutex_unlock(&r->lock);
	}
}

static void hosted_call(struct flat_lane *l, enum flat_call call)
{
	serve(l->call_arg, call);
}

static void runner_ended(struct flat_runner *r)
{
	pthread_mutex_lock(&r->lock);
	r->ended = true;
	r->seen = *r->lane;
	pthread_mutex_unlock(&r->lock);
}

static void *vcpu_main(void *arg)
{
	struct flat_runner *r = arg;

	round_begin(r);
	while (!stopping(r->vm)) {
		u32 call = FLAT_CALL_TICK;
		int rc = 0;

		if (r->vcpu)
			rc = flat_vcpu_run(r->vcpu, &call);
		else
			flat_tick(r->lane);
		if (rc == -EINTR || rc == -EAGAIN)
			continue;
		if (rc) {
			fprintf(stderr, "flat_vmm %s: the guest stopped: %s (exit reason %u)\n",
				r->vm->opt.name, strerror(-rc), call);
			pthread_mutex_lock(&r->lock);
			r->call_errors++;
			pthread_mutex_unlock(&r->lock);
			break;
		}
		serve(r, call);
	}
	runner_ended(r);
	return NULL;
}

static void *device_main(void *arg)
{
	struct flat_runner *r = arg;
	bool corrupted = !r->vm->opt.corrupt;

	while (!stopping(r->vm)) {
		round_begin(r);
		flat_device_round(r->vm, r);
		round_end(r, true);
		if (!corrupted && now_us() - r->vm->start_us > CORRUPT_US) {
			flat_device_corrupt(r->vm);
			corrupted = true;
		}
		usleep(DEVICE_REST_US);
	}
	runner_ended(r);
	return NULL;
}

/* The line of the VM's figures; returns the number of errors in it. */
static u64 print_line(struct flat_vm *vm, bool final)
{
	u64 iterations = 0, accesses = 0, writes = 0, errors = 0, stall = 0, rewrites = 0,
	    discards = 0;
	u64 disk_reads = 0;
	struct bh_stats s = { 0 };

	for (u32 n = 0; n < vm->nr_runners; n++) {
		struct flat_runner *r = &vm->runner[n];
		const struct flat_lane *l = &r->seen;

		pthread_mutex_lock(&r->lock);
		iterations += l->iterations;
		accesses += l->accesses;
		writes += l->writes;
		rewrites += l->rewrites;
		discards += l->discards;
		disk_reads += l->disk_reads;
		errors += l->errors + r->call_errors;
		stall = MAX(stall, r->max_stall_us);
		/* One that is stalled just now shows at once, not when it is over. */
		if (r->ticks > WARMUP_TICKS && !r->ended && !r->resting)
			stall = MAX(stall, now_us() - r->last_tick_us);
		pthread_mutex_unlock(&r->lock);
	}
	if (vm->agent)
		bh_stats(vm->agent, &s);
	printf("FLAT name=%s iterations=%" PRIu64 " accesses=%" PRIu64 " errors=%" PRIu64
	       " max_stall_us=%" PRIu64 " merged=%" PRIu64 " zeroed=%" PRIu64 " moved_back=%" PRIu64
	       " pinned=%" PRIu64 " failed=%" PRIu64 " wait_faults=%" PRIu64 " fill_faults=%" PRIu64
	       " connected=%d unmerged=%" PRIu64 " agent_cpu_us=%" PRIu64 " writes=%" PRIu64
	       " rewrites=%" PRIu64 " discards=%" PRIu64 " disk_reads=%" PRIu64 " final=%d\n",
	       vm->opt.name, iterations, accesses, errors, stall, s.merged_pages, s.zeroed_pages,
	       s.moved_back_pages, s.pinned_pages, s.failed_pages, s.wait_faults, s.fill_faults,
	       s.connected, s.unmerged_pages, s.cpu_us, writes, rewrites, discards, disk_reads,
	       final);
	fflush(stdout);
	return errors;
}

/* SIGUSR1: the outside count, as a line of its own. Not every second, for it walks all mappings. */
static void print_sharing(const struct flat_vm *vm)
{
	struct flat_sharing s;
	int rc = flat_sharing(vm, &s);

	if (rc)
		printf("SHARING name=%s error=%s\n", vm->opt.name, strerror(-rc));
	else
		printf("SHARING name=%s mappings=%" PRIu64 " shared=%" PRIu64 " broken=%" PRIu64
		       "\n",
		       vm->opt.name, s.mappings, s.shared_pages, s.broken_pages);
	fflush(stdout);
}

static void print_errors(const struct flat_vm *vm)
{
	for (u32 n = 0; n < vm->nr_runners; n++) {
		const struct flat_lane *l = vm->runner[n].lane;

		for (u32 i = 0; i < MIN(l->errors, (u64)FLAT_ERROR_LOG); i++)
			fprintf(stderr,
				"flat_vmm %s: lane %u page %" PRIu64 " word %" PRIu64 ": %#" PRIx64
				" where %#" PRIx64 " belongs\n",
				vm->opt.name, n, l->error[i].page, l->error[i].word,
				l->error[i].got, l->error[i].want);
	}
}

static void agent_log(void *arg, const char *line)
{
	const struct flat_vm *vm = arg;

	fprintf(stderr, "flat_vmm %s: agent: %s\n", vm->opt.name, line);
}

static int start_agent(struct flat_vm *vm)
{
	struct bh_config cfg = {
		.socket_path = vm->opt.socket,
		.name = vm->opt.name,
		.log = agent_log,
		.log_arg = vm,
	};
	int rc = bh_probe();

	if (rc == 0)
		rc = bh_new(&cfg, &vm->agent);
	if (rc == 0)
		rc = bh_region_add(vm->agent, vm->ram, flat_ram_bytes(vm), FLAT_RAM_GPA, "ram");
	return rc;
}

static int make_vcpus(struct flat_vm *vm)
{
	int rc = flat_kvm_new(vm->ctl, vm->ram, flat_ram_bytes(vm), &vm->kvm);

	for (u32 n = 0; rc == 0 && n < vm->opt.nr_vcpus; n++)
		rc = flat_vcpu_new(vm->kvm, n, FLAT_LANES_GPA + n * sizeof(struct flat_lane),
				   &vm->runner[n].vcpu);
	return rc;
}

static int start_runners(struct flat_vm *vm)
{
	vm->start_us = now_us();
	for (u32 n = 0; n < vm->nr_runners; n++) {
		struct flat_runner *r = &vm->runner[n];
		int rc = pthread_create(&r->thread, NULL,
					n == vm->nr_runners - 1 ? device_main : vcpu_main, r);

		if (rc)
			return -rc;
	}
	return 0;
}

/* False if a runner does not come back: then nothing of the VM may be touched any more. */
static bool stop_runners(struct flat_vm *vm)
{
	struct timespec limit;

	__atomic_store_n(&vm->stop, true, __ATOMIC_RELAXED);
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += JOIN_LIMIT_S;
	for (u32 n = 0; n < vm->nr_runners; n++) {
		if (pthread_timedjoin_np(vm->runner[n].thread, NULL, &limit)) {
			fprintf(stderr, "flat_vmm %s: lane %u is stuck\n", vm->opt.name, n);
			return false;
		}
	}
	return true;
}

static enum exit_status run(struct flat_vm *vm)
{
	u64 end, errors;
	int rc;

	vm->nr_runners = vm->opt.nr_vcpus + 1;
	rc = flat_memory_new(vm);
	if (rc == 0)
		rc = flat_device_new(vm);
	if (rc == 0 && !vm->opt.threads)
		rc = make_vcpus(vm);
	if (rc) {
		fprintf(stderr, "flat_vmm %s: cannot make the VM: %s\n", vm->opt.name,
			strerror(-rc));
		return EXIT_USAGE;
	}
	for (u32 n = 0; n < vm->nr_runners; n++) {
		vm->runner[n].vm = vm;
		vm->runner[n].lane->call = hosted_call;
		vm->runner[n].lane->call_arg = &vm->runner[n];
		pthread_mutex_init(&vm->runner[n].lock, NULL);
	}
	if (!vm->opt.no_agent) {
		rc = start_agent(vm);
		if (rc) {
			fprintf(stderr, "flat_vmm %s: no agent: %s\n", vm->opt.name, strerror(-rc));
			return EXIT_USAGE;
		}
	}
	rc = start_runners(vm);
	if (rc) {
		fprintf(stderr, "flat_vmm %s: no thread: %s\n", vm->opt.name, strerror(-rc));
		return EXIT_USAGE;
	}

	end = vm->start_us + (u64)vm->opt.seconds * 1000000;
	for (u64 next = vm->start_us + 1000000; !stop_signal && now_us() < end;) {
		usleep(20000);
		if (count_signal) {
			count_signal = 0;
			print_sharing(vm);
		}
		if (now_us() >= next) {
			print_line(vm, false);
			next += 1000000;
		}
	}
	if (!stop_runners(vm)) {
		print_line(vm, true);
		return EXIT_WRONG;
	}
	/* What no lane happened to read must be right as well. The device's lane takes the result.
	 */
	flat_memory_check(vm);
	runner_ended(&vm->runner[vm->nr_runners - 1]);
	errors = print_line(vm, true);
	if (errors)
		print_errors(vm);
	bh_free(vm->agent);
	return errors ? EXIT_WRONG : EXIT_SUCCESS;
}

static int usage(FILE *f)
{
	fputs("usage: flat_vmm --name NAME [options]\n"
	      "  --seconds N         run time (10); SIGTERM ends it early, in order\n"
	      "  --pages N           guest RAM in 4 KiB pages (16384)\n"
	      "  --seed S            makes the VM's own pages and its order of accesses (1)\n"
	      "  --vcpus 1|2         (1)\n"
	      "  --write-permille N  accesses that change the page (20)\n"
	      "  --dwell-ms N        how long writes stay in one window of blocks (100)\n"
	      "  --discard           the guest also gives memory back\n"
	      "  --socket PATH       the daemon's agent socket\n"
	      "  --no-agent          without Ballast\n"
	      "  --threads           host threads instead of vCPUs\n"
	      "  --corrupt           flip a bit after a second: the run must then fail\n"
	      "  --probe             only say whether KVM can run the guest: exit status 0 or 77\n",
	      f);
	return EXIT_USAGE;
}

static bool parse_u32(const char *text, u32 min, u32 max, u32 *ret)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || end == text || *end || v < min || v > max)
		return false;
	*ret = v;
	return true;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "pages", required_argument, NULL, 'p' },
		{ "seed", required_argument, NULL, 'S' },
		{ "name", required_argument, NULL, 'n' },
		{ "vcpus", required_argument, NULL, 'v' },
		{ "write-permille", required_argument, NULL, 'w' },
		{ "dwell-ms", required_argument, NULL, 'd' },
		{ "discard", no_argument, NULL, 'D' },
		{ "socket", required_argument, NULL, 'k' },
		{ "no-agent", no_argument, NULL, 'N' },
		{ "threads", no_argument, NULL, 't' },
		{ "corrupt", no_argument, NULL, 'c' },
		{ "probe", no_argument, NULL, 'P' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	static struct flat_vm vm = {
		.opt = { .name = "flat",
			 .seconds = 10,
			 .nr_pages = 16384,
			 .seed = 1,
			 .nr_vcpus = 1,
			 .write_permille = 20,
			 .dwell_ms = 100 },
	};
	struct flat_options *o = &vm.opt;
	struct sigaction act = { .sa_handler = on_stop }, count = { .sa_handler = on_count };
	bool probe = false, ok = true;
	const char *why;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's':
			ok &= parse_u32(optarg, 1, 1000000, &o->seconds);
			break;
		case 'p':
			/* 1,024 so that each lane gets blocks of its own. */
			ok &= parse_u32(optarg, 1024, FLAT_MAX_PAGES, &o->nr_pages);
			break;
		case 'S':
			ok &= parse_u32(optarg, 1, 255, &o->seed);
			break;
		case 'n':
			o->name = optarg;
			break;
		case 'v':
			ok &= parse_u32(optarg, 1, FLAT_MAX_VCPUS, &o->nr_vcpus);
			break;
		case 'w':
			ok &= parse_u32(optarg, 0, 1000, &o->write_permille);
			break;
		case 'd':
			ok &= parse_u32(optarg, 1, 1000000, &o->dwell_ms);
			break;
		case 'D':
			o->discard = true;
			break;
		case 'k':
			o->socket = optarg;
			break;
		case 'N':
			o->no_agent = true;
			break;
		case 't':
			o->threads = true;
			break;
		case 'c':
			o->corrupt = true;
			break;
		case 'P':
			probe = true;
			break;
		case 'h':
			usage(stdout);
			return EXIT_SUCCESS;
		default:
			return usage(stderr);
		}
	}
	/* Whole blocks of pages, and whole groups of eight for flat_content(). */
	o->nr_pages = ROUND_UP(o->nr_pages, FLAT_BLOCK_PAGES);
	if (!ok || optind != argc)
		return usage(stderr);

	if (!o->threads || probe) {
		int rc = flat_kvm_probe(&why);

		if (rc) {
			printf("SKIP: KVM cannot run the flat guest here: %s (%s); --threads can\n",
			       why, strerror(-rc));
			return EXIT_SKIP;
		}
		if (probe)
			return EXIT_SUCCESS;
	}
	sigaction(SIGTERM, &act, NULL);
	sigaction(SIGINT, &act, NULL);
	sigaction(SIGUSR1, &count, NULL);
	return run(&vm);
}
