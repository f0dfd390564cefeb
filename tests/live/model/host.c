// SPDX-License-Identifier: MIT
/* The daemon under test: its configuration, its process, its control socket. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/live/model/model.h"

/* More CPU than there is: the test wants as many merges as there can be. */
#define CPU_PERCENT 200
/* A sanitized daemon on a busy machine is slow, but not slower than this. */
#define ANSWER_S     20
#define REPLY_MAX    65536
#define MAX_PATH_LEN 200

int host_write_config(const struct host *h)
{
	const struct host_config *c = &h->config;
	char path[MAX_PATH_LEN], fresh[MAX_PATH_LEN];
	FILE *f;

	snprintf(path, sizeof(path), "%s/ballast.conf", h->dir);
	snprintf(fresh, sizeof(fresh), "%s/ballast.conf.new", h->dir);
	f = fopen(fresh, "we");
	if (!f)
		return -errno;
	/* vm.max_map_count is the whole host's: left alone. */
	fprintf(f,
		"[daemon]\nrun_dir = %s\n[metrics]\nenabled = no\n[scan]\ncpu_percent = %d\n"
		"interval = 10ms\nidle_interval = 1s\nmax_map_count = off\nmax_mappings = %u\n"
		"thp_split_min_saving = %uKiB\n[store]\nmax_size = %llu\n"
		"[policy]\nswap_dir = %s\nswap_keep = 0\n",
		h->dir, CPU_PERCENT, c->max_mappings, c->thp_split_kib,
		(unsigned long long)c->store_max_bytes, h->dir);
	for (u32 i = 0; i < MODEL_VMS; i++)
		fprintf(f, "[vm \"vm%u\"]\nshare = %s\ndomain = %s\n", i, c->share[i],
			c->domain[i]);
	if (fclose(f) != 0 || rename(fresh, path) < 0)
		return -errno;
	return 0;
}

void host_redirect(const struct host *h, const char *file)
{
	char path[MAX_PATH_LEN];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", h->dir, file);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	close(fd);
}

int host_start(struct host *h)
{
	char config[MAX_PATH_LEN];

	snprintf(config, sizeof(config), "%s/ballast.conf", h->dir);
	h->pid = fork();
	if (h->pid < 0) {
		h->pid = 0;
		return -errno;
	}
	if (h->pid)
		return 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	host_redirect(h, "ballastd.log");
	execl(h->daemon, h->daemon, "--config", config, NULL);
	perror(h->daemon);
	_exit(127);
}

static int dial(const struct host *h, u32 timeout_ms)
{
	struct timeval t = { .tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), err;

	if (fd < 0)
		return -errno;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/control.sock", h->dir);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
		return fd;
	err = errno;
	close(fd);
	return -err;
}

/* One request, one reply. */
static int call(const struct host *h, json_t *request, u32 timeout_ms, json_t **ret)
{
	char *text = json_dumps(request, JSON_COMPACT), reply[REPLY_MAX];
	int fd = dial(h, timeout_ms), err = -EIO;
	size_t len = 0;
	ssize_t n;

	json_decref(request);
	if (fd < 0) {
		free(text);
		return fd;
	}
	if (!text || send(fd, text, strlen(text), MSG_NOSIGNAL) < 0 ||
	    send(fd, "\n", 1, MSG_NOSIGNAL) < 0)
		goto out;
	while (len < sizeof(reply) && !memchr(reply, '\n', len)) {
		n = recv(fd, reply + len, sizeof(reply) - len, 0);
		if (n <= 0) {
			err = n < 0 ? -errno : -EPIPE;
			goto out;
		}
		len += (size_t)n;
	}
	*ret = json_loadb(reply, len, 0, NULL);
	err = *ret ? 0 : -EPROTO;
out:
	close(fd);
	free(text);
	return err;
}

bool host_answers(const struct host *h, u32 timeout_ms)
{
	json_t *reply;

	if (call(h, json_pack("{s:s}", "command", "counters"), timeout_ms, &reply) < 0)
		return false;
	json_decref(reply);
	return true;
}

int host_command(const struct host *h, const char *command, pid_t pid)
{
	json_t *request = json_pack("{s:s}", "command", command), *reply;
	int r;

	if (pid)
		json_object_set_new(request, "vm", json_integer(pid));
	if (strcmp(command, "page-out") == 0 || strcmp(command, "swap-out") == 0)
		json_object_set_new(request, "bytes", json_integer(MIB(1)));
	r = call(h, request, ANSWER_S * 1000, &reply);
	if (r < 0)
		return r;
	r = json_is_true(json_object_get(reply, "ok")) ? 0 : 1;
	json_decref(reply);
	return r;
}

static u64 number(const json_t *j, const char *key)
{
	return (u64)json_integer_value(json_object_get(j, key));
}

static void read_vm(const json_t *j, struct vm_status *vm)
{
	*vm = (struct vm_status){
		.connected = json_is_true(json_object_get(j, "connected")),
		.unmerged = json_is_true(json_object_get(j, "unmerged")),
		.shared = number(j, "shared_pages"),
		.zero = number(j, "zero_pages"),
		.merged = number(j, "merged_pages_total"),
		.broken = number(j, "broken_pages_total"),
		.discarded = number(j, "discarded_pages_total"),
		.mappings = number(j, "mappings"),
	};
	snprintf(vm->domain, sizeof(vm->domain), "%s",
		 json_string_value(json_object_get(j, "domain")));
}

static void read_domain(const json_t *j, struct domain_status *d)
{
	d->pages = number(j, "store_pages");
	d->refs = number(j, "store_refs");
	d->entries = number(j, "index_entries");
	snprintf(d->name, sizeof(d->name), "%s", json_string_value(json_object_get(j, "name")));
}

int host_status(const struct host *h, const pid_t pids[MODEL_VMS], struct host_status *ret)
{
	json_t *reply, *vms, *domains;
	int r = call(h, json_pack("{s:s}", "command", "counters"), ANSWER_S * 1000, &reply);

	if (r < 0)
		return r;
	*ret = (struct host_status){ 0 };
	vms = json_object_get(reply, "vms");
	domains = json_object_get(reply, "domains");
	ret->nr_vms = (u32)json_array_size(vms);
	for (u32 i = 0; i < ret->nr_vms; i++) {
		const json_t *j = json_array_get(vms, i);

		for (u32 v = 0; v < MODEL_VMS; v++) {
			if (!pids[v] || number(j, "pid") != (u64)pids[v])
				continue;
			ret->known[v] = true;
			read_vm(j, &ret->vm[v]);
		}
	}
	ret->nr_domains = MIN((u32)json_array_size(domains), HOST_DOMAINS_MAX);
	for (u32 i = 0; i < ret->nr_domains; i++)
		read_domain(json_array_get(domains, i), &ret->domain[i]);
	json_decref(reply);
	return 0;
}
