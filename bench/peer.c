/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "bench/atend.h"
#include "bench/host.h"
#include "bench/peer.h"

/* CPU time of the threads of @pid whose names begin with @prefix, as the scheduler counts it. */
static u64 threads_cpu_us(pid_t pid, const char *prefix)
{
	char path[64];
	struct dirent *e;
	u64 us = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	d = opendir(path);
	while (d && (e = readdir(d))) {
		char file[340], comm[32] = "";
		u64 ns;
		FILE *f;

		if (e->d_name[0] == '.')
			continue;
		snprintf(file, sizeof(file), "%s/%s/comm", path, e->d_name);
		f = fopen(file, "re");
		if (f && !fgets(comm, sizeof(comm), f))
			comm[0] = '\0';
		if (f)
			fclose(f);
		if (strncmp(comm, prefix, strlen(prefix)) != 0)
			continue;
		snprintf(file, sizeof(file), "%s/%s/schedstat", path, e->d_name);
		f = fopen(file, "re");
		if (f && fscanf(f, "%" SCNu64, &ns) == 1)
			us += ns / 1000;
		if (f)
			fclose(f);
	}
	if (d)
		closedir(d);
	return us;
}

/* --- the kernel's KSM --------------------------------------------------------------------------
 */

#define KSM_DIR "/sys/kernel/mm/ksm/"

/* What is set for a run, and put back after it. */
static const char *const ksm_files[] = {
	"run",	      "pages_to_scan",	 "sleep_millisecs", "use_zero_pages",
	"smart_scan", "max_page_sharing"
};
static char ksm_saved[ARRAY_SIZE(ksm_files)][32];
static bool ksm_is_saved;

struct ksm_setting {
	u32 pages_to_scan, sleep_ms;
};

static const struct ksm_setting flat_out = { 100000, 0 };
static const struct ksm_setting kernel_default = { 100, 20 };
/*
 * ksmtuned raises pages_to_scan by 300 a minute under pressure, up to 1250, and sleeps 100 ms * 16
 * GiB / MemTotal (at least 10 ms). This is where it ends up on a host of 24 GiB.
 */
static const struct ksm_setting ksmtuned = { 1250, 66 };

static int ksm_read(const char *name, char *buf, size_t size)
{
	char path[96];
	FILE *f;

	snprintf(path, sizeof(path), KSM_DIR "%s", name);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	if (!fgets(buf, (int)size, f))
		buf[0] = '\0';
	fclose(f);
	return 0;
}

static u64 ksm_number(const char *name)
{
	char buf[64];

	return ksm_read(name, buf, sizeof(buf)) == 0 ? strtoull(buf, NULL, 10) : 0;
}

/* Only system calls, for ksm_restore(). */
static int ksm_write(const char *name, const char *value)
{
	char path[96] = KSM_DIR;
	ssize_t n;
	int fd;

	strncat(path, name, sizeof(path) - sizeof(KSM_DIR));
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = write(fd, value, strlen(value));
	close(fd);
	return n < 0 ? -EIO : 0;
}

static int ksm_write_number(const char *name, u64 value)
{
	char buf[32];

	snprintf(buf, sizeof(buf), "%" PRIu64, value);
	return ksm_write(name, buf);
}

static void ksm_restore(void)
{
	if (!ksm_is_saved)
		return;
	ksm_write("run", "2"); /* unmerge, so that nothing of the run is left */
	for (u32 i = ARRAY_SIZE(ksm_files); i-- > 0;)
		ksm_write(ksm_files[i], ksm_saved[i]);
	ksm_is_saved = false;
}

static pid_t find_ksmd(void)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	pid_t pid = 0;

	while (d && !pid && (e = readdir(d))) {
		char path[300], comm[32] = "";
		FILE *f;

		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", e->d_name);
		f = fopen(path, "re");
		if (f && fgets(comm, sizeof(comm), f) && strcmp(comm, "ksmd\n") == 0)
			pid = atoi(e->d_name);
		if (f)
			fclose(f);
	}
	if (d)
		closedir(d);
	return pid;
}

static int ksm_prepare(struct peer *p)
{
	p->pid = find_ksmd();
	if (!p->pid)
		return -ENOSYS;
	if (!ksm_is_saved) {
		for (u32 i = 0; i < ARRAY_SIZE(ksm_files); i++)
			if (ksm_read(ksm_files[i], ksm_saved[i], sizeof(ksm_saved[i])) < 0)
				return -EACCES;
		ksm_is_saved = true;
		at_end(ksm_restore);
	}
	ksm_write("run", "2");
	ksm_write("run", "0");
	/* Zero pages as Ballast treats them: mapped to the kernel's one, which is also the cheapest
	 * for KSM. */
	ksm_write("use_zero_pages", "1");
	ksm_write_number("pages_to_scan", p->setting->pages_to_scan);
	return ksm_write_number("sleep_millisecs", p->setting->sleep_ms);
}

static int ksm_start(struct peer *p)
{
	return ksm_write("run", "1");
}

static int ksm_saved_pages(struct peer *p, u64 *ret)
{
	*ret = ksm_number("pages_sharing") + ksm_number("ksm_zero_pages");
	return 0;
}

static int ksm_stop(struct peer *p, bool stopped)
{
	return ksm_write("run", stopped ? "0" : "1");
}

static u64 ksm_cpu_us(struct peer *p)
{
	return threads_cpu_us(p->pid, "");
}

static u64 ksm_passes(struct peer *p)
{
	return ksm_number("full_scans");
}

/*
 * A ksm_rmap_item for each page that it has seen, a ksm_stable_node for each that is shared: 64
 * bytes each (mm/ksm.c, Linux 6.18, 64 bits). /proc/slabinfo does not tell: the slabs are merged
 * with others of that size.
 */
static u64 ksm_metadata(struct peer *p)
{
	u64 nodes = ksm_number("pages_shared"), items = nodes;

	items += ksm_number("pages_sharing") + ksm_number("pages_unshared") +
		 ksm_number("pages_volatile");
	return (items + nodes) * 64;
}

static void ksm_finish(struct peer *p)
{
	ksm_restore();
}

#define KSM_OPS(label)                                                                         \
	{                                                                                      \
		.name = label, .host_mode = "ksm", .prepare = ksm_prepare, .start = ksm_start, \
		.stop = ksm_stop, .saved_pages = ksm_saved_pages, .cpu_us = ksm_cpu_us,        \
		.passes = ksm_passes, .metadata_bytes = ksm_metadata, .finish = ksm_finish,    \
	}

static const struct peer_ops ksm_flat_out_ops = KSM_OPS("ksm-flat-out");
static const struct peer_ops ksm_default_ops = KSM_OPS("ksm-default");
static const struct peer_ops ksm_ksmtuned_ops = KSM_OPS("ksm-ksmtuned");

/* --- Ballast -----------------------------------------------------------------------------------
 */

static json_t *control(struct peer *p, const char *request)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	json_t *reply = NULL;
	char *line = NULL;
	size_t cap = 0;
	FILE *f;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/control.sock", p->dir);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    !(f = fdopen(fd, "r+"))) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	fprintf(f, "%s\n", request);
	fflush(f);
	if (getline(&line, &cap, f) > 0)
		reply = json_loads(line, 0, NULL);
	free(line);
	fclose(f);
	if (reply && !json_is_true(json_object_get(reply, "ok"))) {
		json_decref(reply);
		reply = NULL;
	}
	return reply;
}

static int command(struct peer *p, const char *request)
{
	json_t *reply = control(p, request);

	json_decref(reply);
	return reply ? 0 : -EIO;
}

/* The daemon that runs, for the end of the benchmark. */
static pid_t ballast_pid;
static char ballast_dir[64];

static void ballast_end(void)
{
	static const char *const files[] = { "ballast.conf", "state", "lock" };
	int dir;

	if (!ballast_dir[0])
		return;
	child_stop(ballast_pid);
	ballast_pid = 0;
	dir = open(ballast_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (u32 i = 0; i < ARRAY_SIZE(files); i++)
		unlinkat(dir, files[i], 0);
	if (dir >= 0)
		close(dir);
	rmdir(ballast_dir);
	ballast_dir[0] = '\0';
}

static void ballast_finish(struct peer *p)
{
	ballast_end();
	p->pid = 0;
	unsetenv("BALLAST_AGENT_SOCKET");
}

static int ballast_prepare(struct peer *p)
{
	char program[256], conf[160], sock[160], log[256];
	char *argv[] = { program, "--config", conf, NULL };
	FILE *f;
	int r;

	strcpy(p->dir, "/tmp/ballast-bench.XXXXXX");
	if (!mkdtemp(p->dir))
		return -errno;
	strcpy(ballast_dir, p->dir);
	at_end(ballast_end);
	snprintf(conf, sizeof(conf), "%s/ballast.conf", p->dir);
	f = fopen(conf, "we");
	if (!f)
		return -errno;
	fprintf(f, "[daemon]\nrun_dir = %s\n[metrics]\nenabled = off\n[scan]\ncpu_percent = %s\n",
		p->dir, p->cpu_percent);
	fclose(f);
	bench_program("ballastd", program, sizeof(program));
	bench_program("bench/ballastd.log", log, sizeof(log)); /* of the latest daemon */
	r = child_start(argv, log, NULL, NULL, &p->pid);
	ballast_pid = r < 0 ? 0 : p->pid;
	for (int i = 0; r == 0 && i < 500 && command(p, "{\"command\":\"status\"}") < 0; i++)
		usleep(10000);
	snprintf(sock, sizeof(sock), "%s/agent.sock", p->dir);
	setenv("BALLAST_AGENT_SOCKET", sock, 1);
	return r;
}

/* It runs since prepare(), and knows of no VM. */
static int ballast_start(struct peer *p)
{
	return 0;
}

/* No guest ever waits for the daemon (invariant 6), so this is as if there were none. */
static int ballast_stop(struct peer *p, bool stopped)
{
	return kill(p->pid, stopped ? SIGSTOP : SIGCONT) < 0 ? -errno : 0;
}

static u64 sum(const json_t *array, const char *key)
{
	u64 total = 0;
	size_t i;
	json_t *o;

	json_array_foreach (array, i, o)
		total += (u64)json_integer_value(json_object_get(o, key));
	return total;
}

static int ballast_saved_pages(struct peer *p, u64 *ret)
{
	json_t *s = control(p, "{\"command\":\"counters\"}");
	u64 have, cost;

	if (!s)
		return -EIO;
	have = sum(json_object_get(s, "vms"), "shared_pages") +
	       sum(json_object_get(s, "vms"), "zero_pages");
	cost = sum(json_object_get(s, "domains"), "store_pages");
	*ret = have > cost ? have - cost : 0;
	json_decref(s);
	return 0;
}

static u64 ballast_cpu_us(struct peer *p)
{
	u64 us = threads_cpu_us(p->pid, "");

	for (u32 i = 0; i < p->nr_hosts; i++)
		us += threads_cpu_us(p->hosts[i], "ballast-");
	return us;
}

static u64 ballast_passes(struct peer *p)
{
	json_t *s = control(p, "{\"command\":\"counters\"}"), *vms = json_object_get(s, "vms"), *o;
	u64 least = UINT64_MAX;
	size_t i;

	json_array_foreach (vms, i, o)
		least = MIN(least, (u64)json_integer_value(json_object_get(o, "passes_total")));
	json_decref(s);
	return least == UINT64_MAX ? 0 : least;
}

static u64 ballast_metadata(struct peer *p)
{
	json_t *s = control(p, "{\"command\":\"counters\"}");
	const json_t *d = json_object_get(s, "domains");
	u64 bytes = sum(d, "index_bytes") + sum(d, "store_meta_bytes") +
		    sum(json_object_get(s, "vms"), "overhead_bytes");

	json_decref(s);
	return bytes;
}

#define BALLAST_OPS(label)                                                                        \
	{                                                                                         \
		.name = label, .host_mode = "ballast", .prepare = ballast_prepare,                \
		.start = ballast_start, .stop = ballast_stop, .saved_pages = ballast_saved_pages, \
		.cpu_us = ballast_cpu_us, .passes = ballast_passes,                               \
		.metadata_bytes = ballast_metadata, .finish = ballast_finish,                     \
	}

static const struct peer_ops ballast_ops = BALLAST_OPS("ballast");
static const struct peer_ops ballast_default_ops = BALLAST_OPS("ballast-default");

int peer_init(struct peer *p, u32 which)
{
	static const struct peer peers[NR_PEERS] = {
		[PEER_KSM_FLAT_OUT] = { .ops = &ksm_flat_out_ops, .setting = &flat_out },
		[PEER_KSM_DEFAULT] = { .ops = &ksm_default_ops, .setting = &kernel_default },
		[PEER_KSM_KSMTUNED] = { .ops = &ksm_ksmtuned_ops, .setting = &ksmtuned },
		[PEER_BALLAST] = { .ops = &ballast_ops, .cpu_percent = "100" },
		[PEER_BALLAST_DEFAULT] = { .ops = &ballast_default_ops, .cpu_percent = "5" },
	};

	if (which >= NR_PEERS)
		return -EINVAL;
	*p = peers[which];
	return 0;
}
