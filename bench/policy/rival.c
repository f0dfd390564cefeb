/* SPDX-License-Identifier: MIT */
/*
 * What hosts do today, for make bench-policy: the kernel's KSM as ksmtuned drives it, and
 * ballooning as Proxmox VE does it.
 *
 *   rival CGROUP FLOOR_MIB SOCKET...      until it is ended
 *
 * The host is memory cgroup CGROUP (v1), the guests are QEMU's at those QMP sockets, none of which
 * goes below FLOOR_MIB. Once in ten seconds it looks at the balloons, once a minute at KSM, and
 * says on stdout what it did. KSM's settings are the caller's to put back.
 *
 * Sources: pve-manager, PVE/AutoBalloon.pm and PVE/Service/pvestatd.pm (80% of the host's memory
 * shall be in use; at most 100 MiB a guest and round; memory beyond the floors is divided by
 * shares, all equal here; a guest with little free memory gets first and gives last); ksmtuned and
 * its ksmtuned.conf (rules in ksm_round()).
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/types.h"

#define GUESTS_MAX    64
#define BALLOON_S     10
#define KSM_S	      60
#define TARGET_PCT    80
#define CHANGE_MAX    MIB(100)
#define CHANGE_MIN    MIB(10)
#define BALLOON_PATH  "/machine/peripheral/balloon0"
#define KSM_DIR	      "/sys/kernel/mm/ksm/"
#define NPAGES_MAX    1250
#define NPAGES_MIN    64
#define NPAGES_BOOST  300
#define NPAGES_DECAY  (-50)
#define SLEEP_MS      10
#define THRES_PERCENT 20
#define THRES_BYTES   MIB(2048)

struct guest {
	FILE *in, *out;
	u64 size, actual, free; /* bytes */
	u64 wanted;
	bool answers, roomy, done;
};

struct host {
	const char *group;
	u64 memory, used, floor;
	u32 nr;
	struct guest guests[GUESTS_MAX];
	s64 npages;
};

static void die(const char *what)
{
	fprintf(stderr, "rival: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* 0 for what is missing. */
static u64 read_number(const char *dir, const char *name)
{
	char path[512];
	u64 v = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	if (!f)
		return 0;
	if (fscanf(f, "%" SCNu64, &v) != 1)
		v = 0;
	fclose(f);
	return v;
}

static void ksm_set(const char *name, s64 value)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), KSM_DIR "%s", name);
	f = fopen(path, "we");
	if (!f || fprintf(f, "%" PRId64 "\n", value) < 0 || fclose(f))
		die(path);
}

/* --- QMP ------------------------------------------------------------------------------------ */

/* The answer's "return"; NULL when the guest does not answer (any more) or refuses. */
static json_t *qmp(struct guest *g, const char *command)
{
	char line[65536];

	if (fprintf(g->out, "%s\n", command) < 0 || fflush(g->out))
		return NULL;
	while (fgets(line, sizeof(line), g->in)) {
		json_t *answer = json_loads(line, 0, NULL);
		json_t *value = json_incref(json_object_get(answer, "return"));
		bool refused = json_object_get(answer, "error");

		json_decref(answer);
		if (value || refused)
			return value;
	}
	return NULL;
}

static void qmp_open(struct guest *g, const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(sa.sun_path))
		die(path);
	memcpy(sa.sun_path, path, strlen(path) + 1);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		die(path);
	g->in = fdopen(fd, "r");
	g->out = fdopen(dup(fd), "w");
	if (!g->in || !g->out)
		die(path);
	json_decref(qmp(g, "{\"execute\": \"qmp_capabilities\"}"));
	json_decref(qmp(g, "{\"execute\": \"qom-set\", \"arguments\": {\"path\": \"" BALLOON_PATH
			   "\", \"property\": \"guest-stats-polling-interval\", \"value\": 2}}"));
}

static void guest_look(struct guest *g)
{
	json_t *balloon = qmp(g, "{\"execute\": \"query-balloon\"}");
	json_t *stats = qmp(g,
			    "{\"execute\": \"qom-get\", \"arguments\": {\"path\": \"" BALLOON_PATH
			    "\", \"property\": \"guest-stats\"}}");
	json_t *free = json_object_get(json_object_get(stats, "stats"), "stat-free-memory");

	g->actual = (u64)json_integer_value(json_object_get(balloon, "actual"));
	/* -1: the guest has not said. */
	g->free = json_integer_value(free) > 0 ? (u64)json_integer_value(free) : 0;
	g->answers = g->actual > 0;
	/* Nobody's balloon is inflated at the start. */
	if (!g->size)
		g->size = g->actual;
	g->wanted = g->actual;
	json_decref(balloon);
	json_decref(stats);
}

/* --- ballooning ----------------------------------------------------------------------------- */

static bool in_list(const struct guest *g, int roomy)
{
	return g->answers && (roomy < 0 || g->roomy == roomy);
}

/*
 * Divides @bytes (less than 0: takes them) among the guests of a list, so that each has the same
 * beyond its floor. Returns what is left. A guest that is at its limit falls out, and the others
 * are asked again.
 */
static s64 change(struct host *h, int roomy, s64 bytes)
{
	bool grow = bytes > 0, repeat = true;

	for (u32 i = 0; i < h->nr; i++)
		h->guests[i].done = false;
	while (bytes && repeat) {
		s64 beyond = 0, changed = 0;
		u32 n = 0;

		for (u32 i = 0; i < h->nr; i++) {
			const struct guest *g = &h->guests[i];

			if (in_list(g, roomy) && !g->done) {
				beyond += (s64)g->wanted - (s64)h->floor;
				n++;
			}
		}
		repeat = false;
		for (u32 i = 0; n && i < h->nr; i++) {
			struct guest *g = &h->guests[i];
			s64 now = (s64)g->actual, desired = (s64)h->floor + (beyond + bytes) / n,
			    to;

			if (!in_list(g, roomy) || g->done)
				continue;
			desired = MIN(MAX(desired, (s64)h->floor), (s64)g->size);
			if (grow && desired > now) {
				to = MIN(desired, now + (s64)CHANGE_MAX);
			} else if (desired < now) {
				to = MAX(desired, now - (s64)CHANGE_MAX);
			} else {
				g->done = true;
				continue;
			}
			changed += to - (s64)g->wanted;
			repeat |= to != (s64)g->wanted;
			g->wanted = (u64)to;
		}
		bytes -= changed;
	}
	return bytes;
}

static void balloon_round(struct host *h)
{
	s64 goal = (s64)(h->memory / 100 * TARGET_PCT) - (s64)h->used, rest;

	for (u32 i = 0; i < h->nr; i++) {
		struct guest *g = &h->guests[i];

		guest_look(g);
		g->roomy = g->free > h->floor / 4 && g->actual >= h->floor;
	}
	if (goal > (s64)CHANGE_MIN) {
		rest = change(h, 0, goal);
		if (rest >= goal)
			change(h, -1, rest);
	} else if (goal < -(s64)CHANGE_MIN) {
		rest = change(h, 1, goal);
		if (rest <= goal)
			change(h, -1, rest);
	}
	printf("rival: used %" PRIu64 " of %" PRIu64 " MiB:", h->used >> 20, h->memory >> 20);
	for (u32 i = 0; i < h->nr; i++) {
		struct guest *g = &h->guests[i];
		char command[128];

		printf(" %" PRIu64, g->wanted >> 20);
		if (!g->answers || g->wanted == g->actual)
			continue;
		snprintf(command, sizeof(command),
			 "{\"execute\": \"balloon\", \"arguments\": {\"value\": %" PRIu64 "}}",
			 g->wanted);
		json_decref(qmp(g, command));
	}
	putchar('\n');
}

/* --- KSM ------------------------------------------------------------------------------------ */

/*
 * ksmtuned: where what the VMs have and a threshold (20% of memory, at least 2 GiB) do not fit into
 * memory, KSM runs; it scans 300 pages more a turn while less than the threshold is free, else 50
 * less, between 64 and 1250; and sleeps 10 ms on a host of 16 GiB, longer on a smaller one.
 */
static void ksm_round(struct host *h)
{
	u64 threshold = MAX(h->memory / 100 * THRES_PERCENT, THRES_BYTES),
	    free = h->memory - MIN(h->used, h->memory);
	u64 sleep_ms = SLEEP_MS * 16 * 1024 / (h->memory >> 20);

	if (h->used + threshold <= h->memory) {
		ksm_set("run", 0);
		return;
	}
	h->npages += free < threshold ? NPAGES_BOOST : NPAGES_DECAY;
	h->npages = MIN(MAX(h->npages, NPAGES_MIN), NPAGES_MAX);
	ksm_set("pages_to_scan", h->npages);
	ksm_set("sleep_millisecs", (s64)MAX(sleep_ms, 10));
	ksm_set("run", 1);
}

int main(int argc, char **argv)
{
	static struct host h;

	if (argc < 4 || argc - 3 > GUESTS_MAX) {
		fprintf(stderr, "usage: rival CGROUP FLOOR_MIB SOCKET...\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN); /* a guest may have been killed */
	h.group = argv[1];
	h.floor = MIB(strtoull(argv[2], NULL, 10));
	h.memory = read_number(h.group, "memory.limit_in_bytes");
	h.nr = (u32)argc - 3;
	for (u32 i = 0; i < h.nr; i++)
		qmp_open(&h.guests[i], argv[3 + i]);
	for (u32 s = 0;; s += BALLOON_S) {
		h.used = read_number(h.group, "memory.usage_in_bytes");
		balloon_round(&h);
		if (s % KSM_S == 0)
			ksm_round(&h);
		sleep(BALLOON_S);
	}
}
