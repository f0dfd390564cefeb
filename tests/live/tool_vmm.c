// SPDX-License-Identifier: MIT
/*
 * A hostile VMM: speaks the agent protocol as it should ($BALLAST_AGENT_SOCKET), and has memory
 * that no honest VMM has.
 *
 *   tool_vmm hang          is scanned, then every read of its memory hangs; SIGUSR1: it can be read
 * again tool_vmm slow MS       each read of a page takes MS milliseconds, and there are ever new
 * pages to read tool_vmm decoy         holds the contents common to all flat VMs; SIGUSR1: every
 * read of it hangs tool_vmm liar          says of all that it is asked that it is done, and does
 * nothing; claims hours of CPU tool_vmm eat MIB       reads the holes of the store, so that they
 * become pages, and ends tool_vmm write UID     as that user: tries all ways to write the store
 * that it was given; prints each that worked
 *   tool_vmm maps N          an honest one, with N mappings, that needs a new one all the time;
 *                            SIGUSR1: gives them up. It does not connect again.
 *
 * Runs until SIGTERM or SIGKILL. Its name is what it does. Prints a line at each step.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "hypervisor-hooks/uffd.h"
#include "hypervisor-hooks/wire.h"
#include "tests/live/flat/abi.h"

#define ANSWER_MS 5000
#define FEATURES \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_PAGEFAULT_FLAG_WP)
#define MODE	     (UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING)
#define HANG_PAGES   4096
#define LIAR_PAGES   8192
#define SLOW_WINDOWS 64
/* One page in each of the daemon's windows. */
#define SLOW_STEP 4096

static volatile sig_atomic_t stop_signal, go_signal;

static void on_stop(int sig)
{
	stop_signal = 1;
}

static void on_go(int sig)
{
	go_signal = 1;
}

static struct wire_message rx, tx;
static int sock, store = -1, uffd, pagemap;
static u64 store_bytes;
static u8 *ram;
static u64 ram_pages;

static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

static void __attribute__((noreturn)) give_up(const char *what, int error)
{
	say("failed: %s: %s", what, strerror(-error));
	exit(1);
}

static void attach(const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct pollfd p = { .events = POLLIN };
	const char *why;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", getenv("BALLAST_AGENT_SOCKET"));
	sock = p.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		give_up("connect", -errno);
	wire_init(&tx, WIRE_HELLO, 0, sizeof(tx.hello));
	tx.hello = (struct wire_hello){ .version_lowest = WIRE_VERSION_LOWEST,
					.version_highest = WIRE_VERSION,
					.page_bytes = PAGE_BYTES };
	snprintf(tx.hello.name, sizeof(tx.hello.name), "%s", name);
	if (wire_send(sock, &tx, -1, ANSWER_MS) < 0 || poll(&p, 1, ANSWER_MS) <= 0 ||
	    wire_recv(sock, &rx, &store, &why) < 0 || rx.h.type != WIRE_WELCOME)
		give_up("HELLO", -EPROTO);
	store_bytes = rx.welcome.store_bytes;
}

static void map_ram(u64 pages)
{
	ram_pages = pages;
	ram = mmap(NULL, pages << PAGE_SHIFT, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram == MAP_FAILED)
		give_up("mmap", -errno);
	madvise(ram, pages << PAGE_SHIFT, MADV_NOHUGEPAGE);
	uffd = uffd_open(FEATURES);
	pagemap = pagemap_open(getpid());
	if (uffd < 0 || pagemap < 0)
		give_up("userfaultfd, pagemap", MIN(uffd, pagemap));
}

static void fill_page(u8 *page, u64 content)
{
	for (u32 w = 0; w < FLAT_PAGE_WORDS; w++)
		((u64 *)page)[w] = flat_word(content, w);
}

/* Unlike any page of a flat VM, and any other of ours. */
static u64 own_content(u64 n)
{
	return (u64)3 << 62 | n;
}

static void watch_ram(void)
{
	int r = uffd_register(uffd, (u64)(uintptr_t)ram, ram_pages << PAGE_SHIFT, MODE);

	if (r < 0)
		give_up("register", r);
}

static void announce(void)
{
	wire_init(&tx, WIRE_REGION_ADD, 0, sizeof(tx.region));
	tx.region = (struct wire_region){ .hva = (u64)(uintptr_t)ram,
					  .bytes = ram_pages << PAGE_SHIFT,
					  .name = "ram" };
	if (wire_send(sock, &tx, -1, ANSWER_MS) < 0)
		give_up("REGION_ADD", -EPROTO);
}

static void answer(s32 status, u64 cpu_us)
{
	u32 nr = wire_count(&rx);

	if (rx.h.type != WIRE_MERGE)
		nr = 0;
	wire_init(&tx, WIRE_DONE, rx.h.seq, sizeof(tx.done) + nr * sizeof(tx.segments[0]));
	tx.done = (struct wire_done){ .cpu_us = cpu_us };
	for (u32 i = 0; i < nr; i++)
		tx.segments[i] = (struct wire_segment){ .hva = rx.runs[i].hva,
							.nr_pages = rx.runs[i].nr_pages,
							.status = status };
	wire_send(sock, &tx, -1, ANSWER_MS);
}

/* Answers what the daemon asks for @ms. */
static void serve(int ms, s32 status)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	u64 end = now_us() + (u64)ms * 1000;
	const char *why;
	int fd;

	do {
		if (poll(&p, 1, 5) <= 0)
			continue;
		if (wire_recv(sock, &rx, &fd, &why) < 0)
			give_up("connection", -ECONNRESET);
		answer(status, 0);
	} while (now_us() < end && !stop_signal);
}

/* The daemon has looked at all pages, and write-protected them, so that the next time it reads
 * them. */
static bool is_scanned(void)
{
	const struct pagemap_query written = { .all = PAGE_IS_WRITTEN | PAGE_IS_PRESENT };
	u64 start = (u64)(uintptr_t)ram, end;
	struct page_region found;

	return pagemap_scan(pagemap, start, start + (ram_pages << PAGE_SHIFT), &written, &found, 1,
			    &end) == 0;
}

static void wait_for_scan(void)
{
	while (!is_scanned() && !stop_signal)
		serve(0, -EBUSY);
}

static void drop_ram(void)
{
	if (madvise(ram, ram_pages << PAGE_SHIFT, MADV_DONTNEED) < 0)
		give_up("madvise", -errno);
}

static void release_ram(void)
{
	u64 done;

	uffd_zeropage(uffd, (u64)(uintptr_t)ram, ram_pages << PAGE_SHIFT, &done);
	uffd_wake(uffd, (u64)(uintptr_t)ram, ram_pages << PAGE_SHIFT);
}

static void run_hang(void)
{
	map_ram(HANG_PAGES);
	for (u64 p = 0; p < ram_pages; p++)
		fill_page(ram + (p << PAGE_SHIFT), own_content(p));
	watch_ram();
	announce();
	wait_for_scan();
	drop_ram();
	say("hanging");
	while (!stop_signal) {
		if (go_signal) {
			go_signal = 0;
			release_ram();
			say("readable");
		}
		serve(20, -EBUSY);
	}
}

static void run_decoy(void)
{
	map_ram(FLAT_COMMON_CONTENTS);
	for (u64 p = 0; p < ram_pages; p++)
		fill_page(ram + (p << PAGE_SHIFT), 1 + p);
	watch_ram();
	announce();
	say("ready");
	while (!stop_signal) {
		if (go_signal) {
			go_signal = 0;
			drop_ram();
			say("hanging");
		}
		serve(20, -EBUSY);
	}
}

/* Serves the one fault that came, if any, after @ms. */
static void serve_slowly(u32 ms)
{
	static u8 page[PAGE_BYTES] __attribute__((aligned(4096)));
	struct pollfd p = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	if (poll(&p, 1, 5) <= 0 || read(uffd, &msg, sizeof(msg)) != sizeof(msg) ||
	    msg.event != UFFD_EVENT_PAGEFAULT)
		return;
	usleep(ms * 1000);
	fill_page(page, own_content(now_us()));
	uffd_copy(uffd, ROUND_DOWN(msg.arg.pagefault.address, PAGE_BYTES), page, PAGE_BYTES);
}

static void run_slow(u32 ms)
{
	static u8 page[PAGE_BYTES] __attribute__((aligned(4096)));
	u64 faults = 0;

	map_ram((u64)SLOW_WINDOWS * SLOW_STEP);
	watch_ram();
	announce();
	while (!stop_signal) {
		u64 end;

		for (u64 p = 0; p < ram_pages; p += SLOW_STEP) {
			fill_page(page, own_content(now_us()));
			uffd_copy(uffd, (u64)(uintptr_t)ram + (p << PAGE_SHIFT), page, PAGE_BYTES);
		}
		wait_for_scan();
		drop_ram();
		say("slow %llu", (unsigned long long)faults++);
		end = now_us() + (u64)SLOW_WINDOWS * ms * 1000;
		while (now_us() < end && !stop_signal) {
			serve_slowly(ms);
			serve(0, -EBUSY);
		}
	}
}

static void run_liar(void)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	u64 pages = 0, cpu = 0;
	const char *why;
	int fd;

	map_ram(LIAR_PAGES);
	/* A quarter zeros, the rest in pairs. */
	memset(ram, 0, ram_pages << PAGE_SHIFT);
	for (u64 i = ram_pages / 4; i < ram_pages; i++)
		fill_page(ram + (i << PAGE_SHIFT), own_content(i / 2));
	watch_ram();
	announce();
	while (!stop_signal) {
		if (poll(&p, 1, 50) <= 0) {
			/* Ever new zero pages, for ever new requests. */
			for (u64 i = 0; i < ram_pages / 4; i += 16)
				*(volatile u8 *)(ram + (i << PAGE_SHIFT)) = 0;
			continue;
		}
		if (wire_recv(sock, &rx, &fd, &why) < 0)
			give_up("connection", -ECONNRESET);
		cpu += (u64)3600 * 1000000;
		answer(0, cpu);
		for (u32 i = 0; rx.h.type == WIRE_MERGE && i < wire_count(&rx); i++)
			pages += rx.runs[i].nr_pages;
		say("lied %llu", (unsigned long long)pages);
	}
}

/* From the end, where nothing of the store is yet. */
static void run_eat(u64 mib)
{
	u64 bytes = MIN(MIB(mib), store_bytes);
	u8 *at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, store, (off_t)(store_bytes - bytes));
	u64 sum = 0;

	if (at == MAP_FAILED)
		give_up("mmap of the store", -errno);
	for (u64 i = 0; i < bytes; i += PAGE_BYTES)
		sum += *(volatile u8 *)(at + i);
	say("ate %llu MiB%s", (unsigned long long)mib, sum ? ", not all zeros" : "");
}

static void tried(const char *what, bool worked)
{
	say("%s: %s", what, worked ? "WORKED" : "no");
}

static void run_write(void)
{
	char path[64], c = 1;
	void *at = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, store, 0);
	int fd;

	tried("shared mapping", at != MAP_FAILED);
	at = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, store, 0);
	tried("mprotect",
	      at != MAP_FAILED && mprotect(at, PAGE_BYTES, PROT_READ | PROT_WRITE) == 0);
	tried("pwrite", pwrite(store, &c, 1, 0) == 1);
	tried("ftruncate", ftruncate(store, 0) == 0);
	tried("punch", fallocate(store, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				 (off_t)store_bytes) == 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", store);
	fd = open(path, O_RDWR | O_CLOEXEC);
	tried("open for writing", fd >= 0);
	tried("chmod", fchmod(store, 0666) == 0);
}

/* Each page a mapping of its own, by its protection. */
static void run_maps(u64 n)
{
	u64 bytes = n << PAGE_SHIFT;
	u8 *at = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		give_up("mmap", -errno);
	for (u64 i = 0; i < n; i += 2)
		if (mprotect(at + (i << PAGE_SHIFT), PAGE_BYTES, PROT_READ) < 0)
			give_up("mprotect", -errno);
	say("mapped");
	while (!stop_signal) {
		/* As for the stack of a thread; no neighbour has its protection, so that it is a
		 * mapping more. */
		void *stack = mmap(NULL, PAGE_BYTES, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (stack == MAP_FAILED)
			give_up("one more mapping", -errno);
		munmap(stack, PAGE_BYTES);
		usleep(20000);
		if (go_signal) {
			go_signal = 0;
			munmap(at, bytes);
			say("unmapped");
		}
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	u32 n = argc > 2 ? (u32)strtoul(argv[2], NULL, 10) : 0;
	struct sigaction stop = { .sa_handler = on_stop }, go = { .sa_handler = on_go };

	sigaction(SIGTERM, &stop, NULL);
	sigaction(SIGUSR1, &go, NULL);
	if (strcmp(what, "write") == 0 &&
	    (setgroups(0, NULL) < 0 || setresgid(n, n, n) < 0 || setresuid(n, n, n) < 0))
		give_up("another user", -errno);
	attach(what);
	if (strcmp(what, "hang") == 0)
		run_hang();
	else if (strcmp(what, "slow") == 0)
		run_slow(n);
	else if (strcmp(what, "decoy") == 0)
		run_decoy();
	else if (strcmp(what, "liar") == 0)
		run_liar();
	else if (strcmp(what, "eat") == 0)
		run_eat(n);
	else if (strcmp(what, "write") == 0)
		run_write();
	else if (strcmp(what, "maps") == 0)
		run_maps(n);
	else
		return 2;
	return 0;
}
