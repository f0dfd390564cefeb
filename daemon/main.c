/* SPDX-License-Identifier: MIT */
/* ballastd: arguments, signals, start and stop. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>
#include "common/log.h"
#include "common/procfs.h"
#include "daemon/balloons.h"
#include "daemon/core.h"
#include "common/version.h"

static void usage(FILE *f)
{
	fprintf(f,
		"usage: ballastd [--config FILE] [--check-config | --print-config]\n"
		"  --config FILE    default " CONFIG_DEFAULT_PATH
		", and the *.conf of conf.d/ beside it\n"
		"  --check-config   read the configuration, say what is wrong with it, and end\n"
		"  --print-config   print every setting, with its meaning and the reason for its default\n"
		"  --version, --help\n"
		"SIGHUP reloads the configuration, SIGTERM stops; VMs run on as they are.\n");
}

static int on_sighup(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	sd_notify(0, "RELOADING=1");
	core_reload(arg);
	sd_notify(0, "READY=1");
	return 0;
}

/* What was taken from guests is given back before nobody looks after them any more. */
static int on_stop(sd_event_source *s, const struct signalfd_siginfo *si, void *arg)
{
	balloons_give_back(arg);
	return 0;
}

static int add_signals(struct core *c)
{
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	r = sd_event_add_signal(c->event, NULL, SIGTERM, on_stop, c);
	if (r >= 0)
		r = sd_event_add_signal(c->event, NULL, SIGINT, on_stop, c);
	if (r >= 0)
		r = sd_event_add_signal(c->event, NULL, SIGHUP, on_sighup, c);
	return r;
}

/* Two descriptors a VM and one a connection: the usual limit of 1,024 is for programs with
 * select(). */
static void raise_descriptors(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
		l.rlim_cur = MIN(l.rlim_max, (rlim_t)65536);
		setrlimit(RLIMIT_NOFILE, &l);
	}
}

static int lock_code(const struct procmap *m, void *arg)
{
	/* What is not read is not taken. Failing, it is as it would be without. */
	if (m->ino && !m->shared)
		mlock2((const void *)(uintptr_t)m->start, m->end - m->start, MLOCK_ONFAULT);
	return 0;
}

/*
 * When a host has no memory left the kernel takes program code first, which is on disk anyway:
 * ours, just when it is needed to free memory. Our heap stays as it is, since an allocator cannot
 * give locked memory back.
 */
static void keep_code_in_memory(void)
{
	if (procmaps_walk(getpid(), lock_code, NULL) < 0)
		log_debug("our own code may be taken out of memory");
}

static int run(struct core *c)
{
	int r = sd_event_default(&c->event);

	if (r < 0)
		return r;
	raise_descriptors();
	keep_code_in_memory();
	r = add_signals(c);
	if (r >= 0)
		r = core_start(c);
	if (r >= 0) {
		sd_event_set_watchdog(c->event, true);
		log_info("ballastd " BALLAST_VERSION " is ready: %s", c->config.agent_socket);
		sd_notify(0, "READY=1");
		r = sd_event_loop(c->event);
		sd_notify(0, "STOPPING=1");
		log_info("stopping; merged memory stays merged");
	}
	core_stop(c);
	sd_event_unref(c->event);
	return r;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "check-config", no_argument, NULL, 'k' },
		{ "print-config", no_argument, NULL, 'p' },
		{ "version", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	static struct core core = { .config_path = CONFIG_DEFAULT_PATH };
	struct config_error err;
	bool check_only = false, print = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'c':
			core.config_path = optarg;
			core.config_must_exist = true;
			break;
		case 'k':
			check_only = true;
			break;
		case 'p':
			print = true;
			break;
		case 'v':
			puts("ballastd " BALLAST_VERSION);
			return 0;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (optind < argc) {
		usage(stderr);
		return 2;
	}
	if (config_load(core.config_path, core.config_must_exist, &core.config, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	if (check_only || print) {
		if (print)
			config_print(&core.config, stdout);
		else
			printf("%s: ok\n", core.config_path);
		config_free(&core.config);
		return 0;
	}
	return run(&core) < 0 ? 1 : 0;
}
