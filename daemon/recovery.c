/* SPDX-License-Identifier: MIT */
/*
 * What a restarted daemon must know of its predecessor, however that one ended.
 *
 * RUN_DIR/state names the stores (device, inode) and the processes that were given them. It is
 * rewritten whole whenever either changes. A new daemon opens each store through /proc/PID/fd of a
 * process that still holds it: root may open for writing what the process can only read; device and
 * inode prove that it is the store and nothing that a VMM put in its place.
 *
 * Until every named process has connected again (and its mappings were read) or is gone, no page of
 * an old store is freed or used again (invariant 4: a mapping of it may exist).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/log.h"
#include "common/procfs.h"
#include "daemon/core.h"
#include "ksmd/store.h"

#define CHECK_US 500000
/* One file has at most so many lines; more is not a state that a daemon wrote. */
#define STORES_MAX 256
#define VMS_MAX	   (2 * CORE_VMS_MAX)

struct old_store {
	char domain[CONFIG_NAME_MAX];
	u64 dev, ino;
	bool found;
};

struct old_vm {
	pid_t pid;
	u64 starttime;
	char domain[CONFIG_NAME_MAX];
	bool done;
};

struct recovery {
	struct old_store stores[STORES_MAX];
	struct old_vm vms[VMS_MAX];
	u32 nr_stores, nr_vms;
	u64 since_us;
	bool warned;
};

static void state_path(const struct core *c, const char *suffix, char *buf, size_t size)
{
	snprintf(buf, size, "%s/state%s", c->config.run_dir, suffix);
}

static bool same_process(pid_t pid, u64 starttime)
{
	u64 now;
	int r = proc_starttime(pid, &now);

	/* Not being able to ask (no descriptors, no memory) is no sign that it is gone. */
	return r < 0 ? r != -ENOENT && r != -ESRCH : now == starttime;
}

int recovery_save(struct core *c)
{
	struct ksm_domain_stats domains[STORES_MAX];
	u32 nr = engine_domains(c->engine, domains, STORES_MAX);
	char path[160], tmp[160];
	bool ok;
	FILE *f;

	state_path(c, "", path, sizeof(path));
	state_path(c, ".new", tmp, sizeof(tmp));
	f = fopen(tmp, "we");
	if (!f) {
		int err = errno;

		log_err("cannot write %s: %s; new VMs are refused until it can be", tmp,
			strerror(err));
		return -err;
	}
	fprintf(f, "ballast-state 1\n");
	for (u32 i = 0; i < nr; i++) {
		struct ksm_domain *d;
		u64 dev, ino;

		if (engine_domain(c->engine, domains[i].name, &d) < 0)
			continue;
		store_identity(domain_store(d), &dev, &ino);
		fprintf(f, "store %s %" PRIu64 " %" PRIu64 "\n", domains[i].name, dev, ino);
	}
	for (const struct vm *vm = c->vms; vm; vm = vm->next)
		fprintf(f, "vm %d %" PRIu64 " %s\n", (int)vm->pid, vm->starttime, vm->domain);
	/* Those that have not come back yet are still waited for by whoever reads this. */
	for (u32 i = 0; c->recovery && i < c->recovery->nr_vms; i++)
		if (!c->recovery->vms[i].done)
			fprintf(f, "vm %d %" PRIu64 " %s\n", (int)c->recovery->vms[i].pid,
				c->recovery->vms[i].starttime, c->recovery->vms[i].domain);
	ok = fflush(f) == 0;
	if (fclose(f) != 0 || !ok || rename(tmp, path) < 0) {
		int err = errno;

		log_err("cannot write %s: %s; new VMs are refused until it can be", path,
			strerror(err));
		return -err;
	}
	return 0;
}

static void parse_line(struct recovery *rec, const char *line)
{
	struct old_store s = { 0 };
	struct old_vm v = { 0 };
	int pid;

	_Static_assert(CONFIG_NAME_MAX == 64, "the field width below");
	if (sscanf(line, "store %63s %" SCNu64 " %" SCNu64, s.domain, &s.dev, &s.ino) == 3 &&
	    rec->nr_stores < STORES_MAX) {
		rec->stores[rec->nr_stores++] = s;
	} else if (sscanf(line, "vm %d %" SCNu64 " %63s", &pid, &v.starttime, v.domain) == 3 &&
		   rec->nr_vms < VMS_MAX) {
		v.pid = pid;
		rec->vms[rec->nr_vms++] = v;
	}
}

static int read_state(struct core *c, struct recovery *rec)
{
	char path[160], line[256];
	FILE *f;

	state_path(c, "", path, sizeof(path));
	f = fopen(path, "re");
	if (!f)
		return -errno;
	if (!fgets(line, sizeof(line), f) || strcmp(line, "ballast-state 1\n") != 0) {
		fclose(f);
		return -EPROTO;
	}
	while (fgets(line, sizeof(line), f))
		parse_line(rec, line);
	fclose(f);
	return 0;
}

/* Opens the file with that identity among a process's descriptors, for reading and writing. */
static int open_held_file(pid_t pid, u64 dev, u64 ino)
{
	char path[64];
	struct dirent *e;
	int fd = -ENOENT;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	if (!d)
		return -errno;
	while (fd < 0 && (e = readdir(d))) {
		struct stat st;

		if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, 0) < 0 ||
		    st.st_dev != dev || st.st_ino != ino)
			continue;
		fd = openat(dirfd(d), e->d_name, O_RDWR | O_CLOEXEC);
		/* Looked up by name twice: what was opened is what counts. */
		if (fd >= 0 && (fstat(fd, &st) < 0 || st.st_dev != dev || st.st_ino != ino)) {
			close(fd);
			fd = -ENOENT;
		}
	}
	closedir(d);
	return fd;
}

struct reach {
	u64 dev, ino, end;
};

static int note_reach(const struct procmap *m, void *arg)
{
	struct reach *r = arg;

	if (m->ino == r->ino && m->dev == r->dev)
		r->end = MAX(r->end, (m->offset + (m->end - m->start)) >> PAGE_SHIFT);
	return 0;
}

/* Takes over one store, if any process still holds it. */
static void adopt(struct core *c, struct recovery *rec, struct old_store *os)
{
	struct reach reach = { .dev = os->dev, .ino = os->ino };
	struct ksm_domain *d;
	struct store *s;
	int fd = -ENOENT, r;

	for (u32 i = 0; i < rec->nr_vms; i++) {
		const struct old_vm *v = &rec->vms[i];

		if (v->done || strcmp(v->domain, os->domain) != 0)
			continue;
		if (fd < 0)
			fd = open_held_file(v->pid, os->dev, os->ino);
		r = procmaps_walk(v->pid, note_reach, &reach);
		/* What it maps is not known: nothing is put at the end of the store before recovery
		 * ends. */
		if (r < 0 && same_process(v->pid, v->starttime))
			reach.end = UINT64_MAX;
	}
	if (fd < 0)
		return;
	r = store_adopt(fd, c->config.store_max_bytes, &s);
	if (r < 0) {
		close(fd);
		log_warn("the store of domain %s cannot be taken over: %s", os->domain,
			 strerror(-r));
		return;
	}
	store_reserve(s, reach.end);
	r = engine_domain_adopt(c->engine, os->domain, s, &d);
	if (r < 0)
		log_warn("the store of domain %s cannot be read: %s", os->domain, strerror(-r));
	os->found = true;
}

static void finish(struct core *c)
{
	engine_recovered(c->engine);
	recovery_free(c);
	(void)recovery_save(c);
	log_info("recovery: all VMs of the previous daemon are accounted for");
}

/* It has connected again, and every mapping of the store that the kernel shows is in a region that
 * the engine has read. */
static bool accounted(const struct core *c, const struct old_vm *v)
{
	for (const struct vm *vm = c->vms; vm; vm = vm->next)
		if (vm->pid == v->pid && vm->starttime == v->starttime)
			return vm->agent && engine_vm_accounted(vm->ksm);
	return false;
}

static void check(struct core *c)
{
	struct recovery *rec = c->recovery;
	u32 left = 0;

	for (u32 i = 0; i < rec->nr_vms; i++) {
		struct old_vm *v = &rec->vms[i];

		if (!v->done)
			v->done = !same_process(v->pid, v->starttime) || accounted(c, v);
		left += !v->done;
	}
	if (!left) {
		finish(c);
	} else if (!rec->warned && now_us() - rec->since_us > 10000000) {
		rec->warned = true;
		log_warn(
			"recovery: %u VMs of the previous daemon have not connected again; until they do or end, "
			"freed pages of their store are not used again",
			left);
	}
}

static int on_timer(sd_event_source *s, uint64_t usec, void *arg)
{
	struct core *c = arg;

	if (c->recovery)
		check(c);
	if (!c->recovery)
		return sd_event_source_set_enabled(s, SD_EVENT_OFF);
	sd_event_source_set_time(s, now_us() + CHECK_US);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

int recovery_start(struct core *c)
{
	struct recovery *rec = calloc(1, sizeof(*rec));
	u32 live = 0, stores = 0;
	int r;

	if (!rec)
		return -ENOMEM;
	r = read_state(c, rec);
	if (r < 0) {
		free(rec);
		if (r != -ENOENT)
			log_warn(
				"%s/state is not readable (%s): starting without it; memory that is merged stays right, "
				"but is not found again",
				c->config.run_dir, strerror(-r));
		return 0;
	}
	for (u32 i = 0; i < rec->nr_vms; i++) {
		rec->vms[i].done = !same_process(rec->vms[i].pid, rec->vms[i].starttime);
		live += !rec->vms[i].done;
	}
	for (u32 i = 0; i < rec->nr_stores; i++) {
		adopt(c, rec, &rec->stores[i]);
		stores += rec->stores[i].found;
	}
	if (!live) {
		free(rec);
		return 0;
	}
	rec->since_us = now_us();
	c->recovery = rec;
	log_info("recovery: %u VMs and %u stores of the previous daemon are still there", live,
		 stores);
	return sd_event_add_time(c->event, &c->recovery_timer, CLOCK_MONOTONIC, now_us() + CHECK_US,
				 0, on_timer, c);
}

pid_t recovery_next_pid(const struct core *c, u32 *at)
{
	for (; c->recovery && *at < c->recovery->nr_vms; (*at)++) {
		const struct old_vm *v = &c->recovery->vms[*at];

		if (!v->done && same_process(v->pid, v->starttime)) {
			(*at)++;
			return v->pid;
		}
	}
	return 0;
}

void recovery_free(struct core *c)
{
	free(c->recovery);
	c->recovery = NULL;
}

static struct old_vm *find(const struct core *c, pid_t pid, u64 starttime)
{
	for (u32 i = 0; c->recovery && i < c->recovery->nr_vms; i++) {
		struct old_vm *v = &c->recovery->vms[i];

		if (v->pid == pid && v->starttime == starttime)
			return v;
	}
	return NULL;
}

const char *recovery_domain(const struct core *c, pid_t pid, u64 starttime)
{
	const struct old_vm *v = find(c, pid, starttime);

	return v && !v->done ? v->domain : NULL;
}
