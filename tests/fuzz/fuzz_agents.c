/* SPDX-License-Identifier: MIT */
/*
 * A whole conversation with the daemon: the real agents.c, registry and engine, with up to three
 * connections of a VMM that says and does whatever the input makes it. The VMM is this process; its
 * guest memory is a small arena, watched by userfaultfd as an agent would have it, where the
 * engine finds equal pages and asks for merges.
 *
 * The input is a sequence of steps (enum step), each a byte with its arguments behind it. For the
 * same input the engine does the same, but for what depends on the time that it took.
 *
 * Properties: no more than one request is outstanding, and there is none after an answer to what
 * was not asked; none speaks of memory that was not registered or of offsets that the store does
 * not have; the store's references are those of the pages and requests that the engine knows, after
 * every step, whatever was said; and when the VMM is gone, so is all that was kept for it.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include "common/log.h"
#include "daemon/core.h"
#include "hypervisor-hooks/uffd.h"
#include "ksmd/core.h"
#include "tests/fuzz/fuzz.h"

#define ARENA_PAGES 64
#define ARENA_BYTES ((u64)ARENA_PAGES * PAGE_BYTES)
#define SESSIONS    3
#define STORE_BYTES MIB(1)
#define STEPS_MAX   200
#define CONTENTS    7 /* different pages, the first one zero */
#define FEATURES \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_PAGEFAULT_FLAG_WP)
#define NEWCOMERS_GO_MAX 2000

enum step {
	STEP_CONNECT,
	STEP_CLOSE,
	STEP_HELLO,
	STEP_REGION_ADD,
	STEP_REGION_DEL,
	STEP_DISCARD,
	STEP_ANSWER, /* do what was asked, and say so */
	STEP_LIE,    /* do nothing, and say anything in the shape of an answer */
	STEP_RAW,    /* any message */
	STEP_WRITE,
	STEP_ANONYMOUS, /* empty memory over merged pages, without a word */
	STEP_UNMERGE,
	STEP_SHARE,
	STEP_MODE,
	STEP_PASSES,
	STEP_DISK_READ, /* pages get the blocks' content, or not, and it is said that they did */
	NR_STEPS
};

struct session {
	int fd; /* -1: closed */
	int store_fd;
	bool asked;
	bool lied; /* in a way that must end the connection */
	struct wire_message request;
};

static struct core core;
static u8 *arena;
static int uffd = -1;
static struct session sessions[SESSIONS];
static struct wire_message out;
static char folder[96];

static void clean_up(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/state", folder);
	unlink(path);
	rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *tmp = getenv("TMPDIR");

	/* A tmpfs, as /run is: a disk makes the daemon wait when it saves its state, and an agent
	 * that costs it time has to rest. */
	if (access("/dev/shm", W_OK) == 0)
		tmp = "/dev/shm";
	else if (!tmp || strlen(tmp) > 60)
		tmp = "/tmp";
	snprintf(folder, sizeof(folder), "%s/fuzz_agents.XXXXXX", tmp);
	MUST(mkdtemp(folder));
	atexit(clean_up);
	log_set_level(LOG_LEVEL_ERR);
	arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(arena != MAP_FAILED);
	uffd = uffd_open(FEATURES);
	if (uffd < 0) /* nothing is merged then, but everything can still be said */
		fprintf(stderr, "fuzz_agents: no userfaultfd: %s\n", strerror(-uffd));
	return 0;
}

/* --- the VMM's memory ------------------------------------------------------------------------- */

static void arena_empty(u32 page, u32 nr)
{
	u8 *at = arena + (u64)page * PAGE_BYTES;

	MUST(mmap(at, (u64)nr * PAGE_BYTES, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
	MUST(madvise(at, (u64)nr * PAGE_BYTES, MADV_NOHUGEPAGE) == 0);
	if (uffd >= 0)
		MUST(uffd_register(uffd, (u64)(uintptr_t)at, (u64)nr * PAGE_BYTES,
				   UFFDIO_REGISTER_MODE_WP) == 0);
}

static void arena_write(u32 page, u8 content)
{
	memset(arena + (u64)page * PAGE_BYTES, content % CONTENTS, PAGE_BYTES);
}

/* Bytes from @hva to the end of the arena; 0: it is not in it. */
static u64 arena_left(u64 hva)
{
	u64 at = hva - (u64)(uintptr_t)arena;

	return at < ARENA_BYTES ? ARENA_BYTES - at : 0;
}

/* A range of the arena, or now and then any. */
static struct wire_range choose_range(struct input *in)
{
	u8 page = input_u8(in), nr = input_u8(in);
	struct wire_range r;

	if (nr == 0xff) {
		r.hva = input_u64(in);
		r.bytes = input_u64(in);
		return r;
	}
	page %= ARENA_PAGES;
	r.hva = (u64)(uintptr_t)arena + (u64)page * PAGE_BYTES;
	r.bytes = (u64)(1 + nr % (ARENA_PAGES - page)) * PAGE_BYTES;
	return r;
}

/* --- the daemon ------------------------------------------------------------------------------- */

/* The engine works when the input says so, and not when the time has come. */
static int on_work(sd_event_source *s, uint64_t usec, void *arg)
{
	return 0;
}

static void daemon_start(struct input *in)
{
	struct engine_config cfg = {
		.interval_us = 3600000000,
		.store_max_bytes = STORE_BYTES,
		.threads = 1,
		.request_pages = 1 + input_u8(in) % 64,
		.enabled = true,
		.maps_limit = 4 + input_u8(in),
		.vm_max_bytes = MIB(64),
	};

	memset(&core, 0, sizeof(core));
	config_defaults(&core.config);
	core.config.metrics_enabled = false;
	snprintf(core.config.run_dir, sizeof(core.config.run_dir), "%s", folder);
	snprintf(core.config.agent_socket, sizeof(core.config.agent_socket), "%s/s", folder);
	core.lock_fd = core.agent_fd = -1;
	MUST(sd_event_new(&core.event) >= 0);
	MUST(sd_event_add_time(core.event, &core.work_timer, CLOCK_MONOTONIC, UINT64_MAX, 0,
			       on_work, NULL) >= 0);
	MUST(engine_new(&cfg, &agent_engine_ops, &core.engine) == 0);
	MUST(agents_start(&core) >= 0);
}

/* Every reference is a merged page's, or of a page in a request that is queued or sent. */
static void must_add_up(void)
{
	u64 refs[DOMAINS_MAX] = { 0 };

	for (const struct ksm_vm *vm = core.engine->vms; vm; vm = vm->next) {
		u64 n = 0, shared = 0;

		for (u32 i = 0; i < vm->nr_regions; i++)
			for (u32 p = 0; p < vm->regions[i]->nr_pages; p++)
				shared += vm->regions[i]->state[p] == PG_SHARED;
		for (u32 i = 0; i < vm->op_nr; i++)
			n += vm->op[i].zero ? 0 : vm->op[i].nr;
		for (u32 i = 0; i < vm->queue_nr; i++)
			n += vm->queue[i].zero ? 0 : vm->queue[i].nr;
		MUST(vm->stats.shared_pages == shared);
		for (u32 d = 0; d < core.engine->nr_domains; d++)
			if (core.engine->domains[d] == vm->domain)
				refs[d] += shared + n;
	}
	for (u32 d = 0; d < core.engine->nr_domains; d++)
		MUST(store_total_refs(core.engine->domains[d]->store) == refs[d]);
}

static void run_passes(u32 nr)
{
	while (nr--) {
		for (struct ksm_vm *vm = core.engine->vms; vm; vm = vm->next)
			vm->pass_due_us = 0;
		(void)engine_run(core.engine, 1000000);
	}
}

static void daemon_stop(void)
{
	struct engine *e = core.engine;

	for (u32 i = 0; core.nr_agents && i < NEWCOMERS_GO_MAX; i++)
		(void)sd_event_run(core.event, 10000);
	MUST(core.nr_agents == 0);
	/* What on_exit_of_vm() does. */
	for (struct vm *vm = core.vms; vm; vm = vm->next) {
		engine_vm_exit(vm->ksm);
		vm->ksm = NULL;
	}
	for (u32 i = 0; e->vms && i < 1000; i++)
		(void)engine_run(e, 1000000);
	MUST(!e->vms);
	for (u32 i = 0; i < e->nr_domains; i++) {
		MUST(store_pages(e->domains[i]->store) == 0);
		MUST(store_total_refs(e->domains[i]->store) == 0);
		for (u32 spn = 0; spn < STORE_BYTES / PAGE_BYTES; spn++)
			MUST(store_covers(e->domains[i]->store, spn) == 0);
		MUST(index_entries(e->domains[i]->index) == 0);
		MUST(index_entries(e->domains[i]->broken) == 0);
	}
	core_stop(&core);
	sd_event_unref(core.event);
}

/* --- the VMM's side of the connections -------------------------------------------------------- */

static void session_close(struct session *s)
{
	if (s->fd >= 0)
		close(s->fd);
	if (s->store_fd >= 0)
		close(s->store_fd);
	*s = (struct session){ .fd = -1, .store_fd = -1 };
}

static void session_open(struct session *s)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (s->fd >= 0)
		return;
	s->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	MUST(s->fd >= 0);
	strcpy(addr.sun_path, core.config.agent_socket);
	if (connect(s->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		session_close(s);
}

static void must_be_sensible(struct session *s)
{
	struct wire_message *m = &s->request;
	struct stat st;

	MUST(!s->asked && !s->lied);
	MUST(s->store_fd >= 0 && fstat(s->store_fd, &st) == 0);
	for (u32 i = 0; i < wire_count(m); i++) {
		bool merge = m->h.type == WIRE_MERGE;
		const struct wire_run *r = &m->runs[i];
		u64 hva = merge ? r->hva : m->ranges[i].hva;
		u64 bytes = merge ? (u64)r->nr_pages << PAGE_SHIFT : m->ranges[i].bytes;

		/* Memory outside is not registered with userfaultfd: nothing there is eligible. */
		MUST(bytes <= arena_left(hva));
		if (merge && r->kind == WIRE_RUN_STORE)
			MUST(r->store_offset + bytes <= (u64)st.st_size);
	}
}

static void session_read(struct session *s)
{
	struct wire_message *m = &s->request;
	static struct wire_message in;
	const char *why;
	int fd, r;

	while (s->fd >= 0) {
		r = wire_recv(s->fd, &in, &fd, &why);
		if (r == -EAGAIN)
			return;
		MUST(r != -EPROTO); /* the daemon's messages are good */
		if (r < 0) {
			session_close(s);
			return;
		}
		switch (in.h.type) {
		case WIRE_WELCOME:
			MUST(s->store_fd < 0);
			s->store_fd = fd;
			break;
		case WIRE_REFUSE:
			break;
		case WIRE_MERGE:
		case WIRE_UNMERGE:
			memcpy(m, &in, in.h.bytes);
			must_be_sensible(s);
			s->asked = true;
			break;
		default:
			MUST(!"a message that daemons do not send");
		}
	}
}

static void exchange(void)
{
	u32 nr = 0;

	for (u32 i = 0; i < 64 && sd_event_run(core.event, 0) > 0; i++)
		;
	for (u32 i = 0; i < SESSIONS; i++)
		session_read(&sessions[i]);
	/* Only who is let in gets the store, and a process has one agent. */
	for (u32 i = 0; i < SESSIONS; i++)
		nr += sessions[i].store_fd >= 0;
	MUST(nr <= 1);
}

static void say(struct session *s, enum wire_type type, u32 seq, size_t payload)
{
	if (s->fd < 0)
		return;
	wire_init(&out, type, seq, payload);
	(void)wire_send(s->fd, &out, -1, 0);
}

static void say_hello(struct session *s, struct input *in)
{
	u8 kind = input_u8(in);

	memset(&out.hello, 0, sizeof(out.hello));
	out.hello.version_lowest = kind & 1 ? input_u8(in) : WIRE_VERSION_LOWEST;
	out.hello.version_highest = kind & 1 ? input_u8(in) : WIRE_VERSION;
	out.hello.page_bytes = kind & 2 ? input_u32(in) : PAGE_BYTES;
	if (kind & 4)
		input_bytes(in, out.hello.name, sizeof(out.hello.name) - !(kind & 8));
	say(s, WIRE_HELLO, 0, sizeof(out.hello));
}

/* Maps a run of the store over guest memory, if that has the same content now. */
static s32 map_run(struct session *s, const struct wire_run *r)
{
	u64 bytes = (u64)r->nr_pages << PAGE_SHIFT;
	u8 *at = (u8 *)(uintptr_t)r->hva;
	static u8 store[ARENA_PAGES * PAGE_BYTES];

	if (r->kind == WIRE_RUN_ZERO) {
		memset(store, 0, bytes);
		return memcmp(at, store, bytes) == 0 ? 0 : -EILSEQ;
	}
	MUST(pread(s->store_fd, store, bytes, (off_t)r->store_offset) == (ssize_t)bytes);
	if (memcmp(at, store, bytes) != 0)
		return -EILSEQ;
	MUST(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, s->store_fd,
		  (off_t)r->store_offset) == at);
	return 0;
}

/* An unmerge is done by writing to the pages, as copy-on-write makes them private. */
static void unmap_range(const struct wire_range *r)
{
	for (u64 at = 0; at < r->bytes; at += PAGE_BYTES) {
		volatile u8 *p = (u8 *)(uintptr_t)(r->hva + at);

		*p += 0;
	}
}

static void answer(struct session *s)
{
	struct wire_message *m = &s->request;
	u32 n = 0;

	if (!s->asked)
		return;
	for (u32 i = 0; i < wire_count(m); i++) {
		if (m->h.type == WIRE_UNMERGE) {
			unmap_range(&m->ranges[i]);
			continue;
		}
		out.segments[n++] = (struct wire_segment){
			.hva = m->runs[i].hva,
			.nr_pages = m->runs[i].nr_pages,
			.status = map_run(s, &m->runs[i]),
		};
	}
	out.done = (struct wire_done){ .cpu_us = 10 };
	s->asked = false;
	say(s, WIRE_DONE, m->h.seq, sizeof(out.done) + n * sizeof(out.segments[0]));
}

/* Page by page, do @nr segments say what was asked? */
static bool fits(const struct session *s, u32 nr)
{
	const struct wire_message *m = &s->request;
	u32 n = 0, in_segment = 0;

	for (u32 i = 0; m->h.type == WIRE_MERGE && i < wire_count(m); i++) {
		for (u64 k = 0; k < m->runs[i].nr_pages; k++) {
			const struct wire_segment *g = &out.segments[n];

			if (n == nr || g->hva + (u64)in_segment * PAGE_BYTES !=
					       m->runs[i].hva + k * PAGE_BYTES)
				return false;
			if (++in_segment == g->nr_pages) {
				in_segment = 0;
				n++;
			}
		}
	}
	return s->asked && n == nr && !in_segment;
}

/* Segments as long as the input says, from the request's first page on. */
static void lie(struct session *s, struct input *in)
{
	static const s32 statuses[] = { 0,	 -EBUSY,     -EILSEQ, -ENOENT,
					-ENOSPC, -ECANCELED, -EIO,    INT32_MIN };
	struct wire_message *m = &s->request;
	u8 bend = input_u8(in);
	u32 n = 0;

	for (u32 i = 0; s->asked && m->h.type == WIRE_MERGE && i < wire_count(m); i++) {
		for (u32 k = 0; k < m->runs[i].nr_pages; n++) {
			u8 choice = input_u8(in);
			u32 nr = 1 + (choice >> 3) % (m->runs[i].nr_pages - k);

			out.segments[n] = (struct wire_segment){
				.hva = m->runs[i].hva + ((u64)k << PAGE_SHIFT),
				.nr_pages = nr,
				.status = statuses[choice % ARRAY_SIZE(statuses)],
			};
			k += nr;
		}
	}
	if (bend & 1)
		out.segments[n++] = (struct wire_segment){ (u64)(uintptr_t)arena, 1, 0 };
	if (bend & 2 && n)
		n--;
	if (bend & 4 && n)
		out.segments[n - 1].nr_pages += input_u8(in);
	out.done = (struct wire_done){ input_u64(in), input_u64(in), input_u64(in) };
	s->lied |= bend & 8 || !fits(s, n);
	s->asked = false;
	say(s, WIRE_DONE, m->h.seq + (bend & 8 ? 1 : 0),
	    sizeof(out.done) + n * sizeof(out.segments[0]));
}

static void say_raw(struct session *s, struct input *in)
{
	u8 type = input_u8(in) % (WIRE_TYPE_END + 1);
	u32 nr = input_u8(in);

	input_bytes(in, out.bytes, nr);
	say(s, (enum wire_type)type, input_u8(in), nr);
}

static void say_disk_reads(struct session *s, struct input *in)
{
	u8 nr = input_u8(in) % 8;

	for (u32 i = 0; i < nr; i++) {
		struct wire_range range = choose_range(in);
		u8 block = input_u8(in);

		out.reads[i] = (struct wire_read){
			.hva = range.hva,
			.disk = { block >> 6, 0 },
			.sector = block & 0x3f,
			.nr_pages = (u32)(range.bytes >> PAGE_SHIFT),
		};
		if (block & 1 && range.bytes && range.bytes <= arena_left(range.hva))
			arena_write((u32)((range.hva - (u64)(uintptr_t)arena) >> PAGE_SHIFT),
				    block);
	}
	say(s, WIRE_DISK_READ, 0, nr * sizeof(out.reads[0]));
}

static void take_step(enum step step, struct input *in)
{
	struct session *s = &sessions[0];
	struct ksm_vm *vm = core.vms ? core.vms->ksm : NULL;
	struct wire_range range;
	u8 page, nr;
	u64 pages;

	/* Most is said on the first one. */
	if (step <= STEP_HELLO || step == STEP_RAW)
		s = &sessions[input_u8(in) % SESSIONS];
	switch (step) {
	case STEP_CONNECT:
		session_open(s);
		break;
	case STEP_CLOSE:
		session_close(s);
		break;
	case STEP_HELLO:
		session_open(s);
		say_hello(s, in);
		break;
	case STEP_REGION_ADD:
		range = choose_range(in);
		memset(&out.region, 0, sizeof(out.region));
		out.region.hva = range.hva;
		out.region.bytes = range.bytes;
		say(s, WIRE_REGION_ADD, 0, sizeof(out.region));
		break;
	case STEP_REGION_DEL:
		out.range = choose_range(in);
		say(s, WIRE_REGION_DEL, 0, sizeof(out.range));
		break;
	case STEP_DISCARD:
		nr = input_u8(in) % 4;
		for (u32 i = 0; i < nr; i++)
			out.ranges[i] = choose_range(in);
		say(s, WIRE_DISCARD, 0, nr * sizeof(out.ranges[0]));
		break;
	case STEP_ANSWER:
		answer(s);
		break;
	case STEP_LIE:
		lie(s, in);
		break;
	case STEP_RAW:
		say_raw(s, in);
		break;
	case STEP_WRITE:
		page = input_u8(in) % ARENA_PAGES;
		nr = input_u8(in) % (ARENA_PAGES - page);
		for (u32 i = 0; i <= nr; i++)
			arena_write(page + i, input_u8(in));
		break;
	case STEP_ANONYMOUS:
		page = input_u8(in) % ARENA_PAGES;
		arena_empty(page, 1 + input_u8(in) % (ARENA_PAGES - page));
		break;
	case STEP_UNMERGE:
		if (vm)
			(void)engine_unmerge(vm, &pages);
		break;
	case STEP_SHARE:
		if (vm)
			engine_share(vm);
		break;
	case STEP_MODE:
		if (vm)
			engine_vm_set_mode(vm, (enum ksm_mode)(input_u8(in) % 3));
		break;
	case STEP_DISK_READ:
		say_disk_reads(s, in);
		break;
	default: /* STEP_PASSES */
		run_passes(1 + input_u8(in) % 8);
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input in = { data, data + size };
	int free_fd = lowest_free_fd();

	for (u32 i = 0; i < SESSIONS; i++)
		sessions[i] = (struct session){ .fd = -1, .store_fd = -1 };
	arena_empty(0, ARENA_PAGES);
	for (u32 i = 0; i < ARENA_PAGES; i++)
		arena_write(i, (u8)i);
	daemon_start(&in);
	for (u32 i = 0; i < STEPS_MAX && input_left(&in); i++) {
		take_step((enum step)(input_u8(&in) % NR_STEPS), &in);
		exchange();
		must_add_up();
	}
	for (u32 i = 0; i < SESSIONS; i++)
		session_close(&sessions[i]);
	arena_empty(0, ARENA_PAGES); /* as the kernel does for a process that ends */
	daemon_stop();
	MUST(lowest_free_fd() == free_fd);
	return 0;
}
