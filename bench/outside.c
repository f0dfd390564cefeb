/* SPDX-License-Identifier: MIT */
/*
 * outside: counts what guests share, from outside. It asks the kernel and reads guest memory; it
 * never talks to ballastd nor to an agent, so that Ballast's own books can be checked against it.
 *
 *   outside --ram-bytes N [--stop] [--json] [--output FILE] [--timeout S] PID...
 *
 * Of each VMM it finds guest RAM, reads every page that has content, hashes it (XXH3, 128 bits),
 * and asks /proc/PID/pagemap which page frame it lies in. Duplicates are pages with equal content;
 * merged pages are pages that have the frame of another page. What the keys mean is in the tables
 * total_fields and guest_fields below.
 *
 * Finding RAM. Ballast replaces parts of the one anonymous mapping by private mappings of its
 * store, so RAM is a row of many mappings: the one contiguous row of readable and writable private
 * mappings of N bytes. A neighbour may touch it below, never above: QEMU puts an inaccessible guard
 * page behind each RAM block.
 *
 * Reading without leaving traces. An absent page of anonymous memory is not read: that would map a
 * zero page, or, where userfaultfd watches, wait for the agent for ever if it is stopped. Absence
 * is what PAGEMAP_SCAN says; its "swapped" includes markers that userfaultfd leaves in empty
 * entries, which are told from swap by their type. In a mapping of the store a page not yet mapped
 * does have content, and reading it is safe: nothing watches for it.
 *
 * --stop holds all processes with SIGSTOP while counting, for one consistent moment. The process
 * that stops them only waits: a child counts, and is killed if it takes longer than --timeout, so
 * the VMMs always go on. With it unreadable_pages and torn_frames must be 0.
 */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "bench/count.h"
#include "common/clock.h"

#define STOP_TIMEOUT_US	  2000000
#define DEFAULT_TIMEOUT_S 60

struct field {
	const char *name;
	size_t offset;
};

// clang-format off
#define TOTAL(f) { #f, offsetof(struct totals, f) }
#define GUEST(f) { #f, offsetof(struct guest, f) }
// clang-format on

static const struct field total_fields[] = {
	TOTAL(guests),
	TOTAL(pages),		  /* guest pages that have memory behind them */
	TOTAL(frames),		  /* their page frames; the kernel's zero page does not count */
	TOTAL(nonzero_pages),	  /* of pages: content is not all zeros */
	TOTAL(distinct_contents), /* of nonzero_pages */
	TOTAL(dup_pages),	  /* nonzero_pages - distinct_contents: what sharing could remove */
	TOTAL(nonzero_frames),	  /* page frames of nonzero_pages */
	TOTAL(merged_pages),	  /* nonzero_pages - nonzero_frames: what sharing has removed */
	TOTAL(zero_pages),	  /* of pages: content is all zeros */
	TOTAL(zero_kernel_pages), /* of zero_pages: mapped to the kernel's shared zero page */
	TOTAL(zero_frames),	  /* other page frames that hold zero_pages */
	TOTAL(zero_merged_pages), /* zero_pages - zero_frames */
	TOTAL(store_pages),	  /* of pages: mapped to a file, which is Ballast's store */
	TOTAL(store_frames),	  /* page frames of store_pages */
	TOTAL(broken_pages),	  /* of pages: in a mapping of the store, but written since */
	TOTAL(vmas),		  /* mappings that make up guest RAM */
	TOTAL(process_vmas),	  /* all mappings of the VMMs */
	TOTAL(unreadable_pages),  /* vanished while being read */
	TOTAL(torn_frames),	  /* frames read with two contents, i.e. written meanwhile */
	TOTAL(elapsed_us),
};

/* shared_pages: of nonzero_pages, those whose frame another page has too. */
static const struct field guest_fields[] = {
	GUEST(pid),
	GUEST(ram_start),
	GUEST(ram_bytes),
	GUEST(vmas),
	GUEST(process_vmas),
	GUEST(pages),
	GUEST(nonzero_pages),
	GUEST(zero_pages),
	GUEST(zero_kernel_pages),
	GUEST(shared_pages),
	GUEST(store_pages),
	GUEST(broken_pages),
	GUEST(unreadable_pages),
};

/* ---- output ---- */

static u64 field_value(const void *s, const struct field *f)
{
	return *(const u64 *)((const char *)s + f->offset);
}

static void print_kv(FILE *f, const struct totals *t, const struct guest *guests)
{
	for (size_t i = 0; i < ARRAY_SIZE(total_fields); i++)
		fprintf(f, "%s=%" PRIu64 "\n", total_fields[i].name,
			field_value(t, &total_fields[i]));
	for (u32 g = 0; g < t->guests; g++) {
		for (size_t i = 0; i < ARRAY_SIZE(guest_fields); i++)
			fprintf(f, "guest%u_%s=%" PRIu64 "\n", g + 1, guest_fields[i].name,
				field_value(&guests[g], &guest_fields[i]));
		fprintf(f, "guest%u_digest=%016" PRIx64 "%016" PRIx64 "\n", g + 1,
			guests[g].digest.high64, guests[g].digest.low64);
	}
}

static void print_json(FILE *f, const struct totals *t, const struct guest *guests)
{
	fputc('{', f);
	for (size_t i = 0; i < ARRAY_SIZE(total_fields); i++)
		fprintf(f, "\"%s\":%" PRIu64 ",", total_fields[i].name,
			field_value(t, &total_fields[i]));
	fputs("\"guest\":[", f);
	for (u32 g = 0; g < t->guests; g++) {
		fprintf(f, "%s\n{", g ? "," : "");
		for (size_t i = 0; i < ARRAY_SIZE(guest_fields); i++)
			fprintf(f, "\"%s\":%" PRIu64 ",", guest_fields[i].name,
				field_value(&guests[g], &guest_fields[i]));
		fprintf(f, "\"digest\":\"%016" PRIx64 "%016" PRIx64 "\"}", guests[g].digest.high64,
			guests[g].digest.low64);
	}
	fputs("]}\n", f);
}

struct options {
	u64 ram_bytes;
	bool stop, json;
	const char *output;
	u32 timeout_s;
};

static int count_all(const struct options *o, struct guest *guests, u32 nr)
{
	struct page_list nonzero = { 0 }, zero = { 0 }, store = { 0 };
	struct totals t = { .guests = nr };
	u64 start = now_us();
	FILE *f;
	int r;

	for (u32 i = 0; i < nr; i++) {
		r = count_guest(&guests[i], i, &nonzero, &zero, &store);
		if (r < 0)
			return r;
	}
	r = count_totals(&t, guests, &nonzero, &zero, &store);
	if (r < 0)
		return r;
	t.elapsed_us = now_us() - start;

	f = o->output ? fopen(o->output, "we") : stdout;
	if (!f) {
		perror(o->output);
		return -errno;
	}
	(o->json ? print_json : print_kv)(f, &t, guests);
	if (fflush(f) != 0 || ferror(f)) {
		perror("outside: output");
		return -EIO;
	}
	return 0;
}

/* ---- stopping the VMMs ---- */

/* True when every thread is stopped: the state of the process is that of its first thread only. */
static bool all_stopped(pid_t pid)
{
	struct dirent *d;
	char path[64];
	bool stopped = true;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (stopped && (d = readdir(dir))) {
		char stat[352], line[512], *p;
		FILE *f;

		if (d->d_name[0] == '.')
			continue;
		snprintf(stat, sizeof(stat), "%s/%s/stat", path, d->d_name);
		f = fopen(stat, "re");
		if (!f)
			continue; /* ended meanwhile */
		p = fgets(line, sizeof(line), f) ? strrchr(line, ')') : NULL;
		stopped = p && p[1] && (p[2] == 'T' || p[2] == 't');
		fclose(f);
	}
	closedir(dir);
	return stopped;
}

static int stop_all(const struct guest *guests, u32 nr)
{
	const struct timespec ms = { .tv_nsec = 1000000 };
	u64 start = now_us();

	for (u32 i = 0; i < nr; i++) {
		if (kill((pid_t)guests[i].pid, SIGSTOP) < 0)
			return count_fail(-errno, "cannot stop", guests[i].pid);
	}
	for (u32 i = 0; i < nr; i++) {
		while (!all_stopped((pid_t)guests[i].pid)) {
			if (now_us() - start > STOP_TIMEOUT_US)
				return count_fail(-ETIMEDOUT, "some thread does not stop",
						  guests[i].pid);
			nanosleep(&ms, NULL);
		}
	}
	return 0;
}

/* Runs count_all() in a child; see --stop above. Returns the exit status of the program. */
static int supervise(const struct options *o, struct guest *guests, u32 nr)
{
	struct timespec timeout = { .tv_sec = o->timeout_s };
	int status = 1 << 8, sig;
	sigset_t set, old;
	pid_t child = -1;

	/* From here on no signal but SIGKILL can end us between stopping and continuing. */
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGPIPE);
	sigprocmask(SIG_BLOCK, &set, &old);

	if (o->stop && stop_all(guests, nr) < 0)
		goto out;
	child = fork();
	if (child < 0) {
		perror("outside: fork");
		goto out;
	}
	if (child == 0) {
		sigprocmask(SIG_SETMASK, &old, NULL);
		_exit(count_all(o, guests, nr) < 0);
	}
	sig = sigtimedwait(&set, NULL, &timeout);
	if (sig != SIGCHLD) {
		kill(child, SIGKILL);
		if (sig < 0)
			fprintf(stderr, "outside: not done after %u s\n", o->timeout_s);
	}
out:
	for (u32 i = 0; o->stop && i < nr; i++)
		kill((pid_t)guests[i].pid, SIGCONT);
	/* Only now: a child that hangs in a page fault dies when the VMM goes on, if not before. */
	if (child > 0)
		waitpid(child, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static u64 parse_bytes(const char *s)
{
	char *end;
	u64 n = strtoull(s, &end, 10);

	switch (*end) {
	case 'G':
		return n << 30;
	case 'M':
		return n << 20;
	case 'K':
		return n << 10;
	default:
		return *end ? 0 : n;
	}
}

static const char usage[] =
	"usage: outside --ram-bytes N[K|M|G] [--stop] [--kv|--json] [--output FILE] [--timeout S] PID...\n"
	"Counts duplicate and merged pages of guests from outside (root only; see the head of bench/outside.c).\n";

int main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "ram-bytes", required_argument, NULL, 'r' },
		{ "stop", no_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "kv", no_argument, NULL, 'k' },
		{ "output", required_argument, NULL, 'o' },
		{ "timeout", required_argument, NULL, 't' },
		{ NULL, 0, NULL, 0 },
	};
	struct options o = { .timeout_s = DEFAULT_TIMEOUT_S };
	struct guest *guests;
	int c;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'r':
			o.ram_bytes = parse_bytes(optarg);
			break;
		case 's':
			o.stop = true;
			break;
		case 'j':
			o.json = true;
			break;
		case 'k':
			o.json = false;
			break;
		case 'o':
			o.output = optarg;
			break;
		case 't':
			o.timeout_s = (u32)strtoul(optarg, NULL, 10);
			break;
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	if (optind == argc || !o.ram_bytes || !page_aligned(o.ram_bytes)) {
		fputs(usage, stderr);
		return 2;
	}
	guests = calloc((size_t)(argc - optind), sizeof(*guests));
	if (!guests)
		return 1;
	for (int i = optind; i < argc; i++) {
		long pid = strtol(argv[i], NULL, 10);

		if (pid <= 1) {
			fprintf(stderr, "outside: %s is no PID\n", argv[i]);
			return 2;
		}
		guests[i - optind] = (struct guest){ .pid = (u64)pid, .ram_bytes = o.ram_bytes };
	}
	return supervise(&o, guests, (u32)(argc - optind));
}
