/* SPDX-License-Identifier: MIT */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include "common/version.h"
#include "ctl/ctl.h"

static const struct command {
	const char *name, *args, *help;
	int min_args, max_args;
	int (*run)(const struct ctl_options *o, char **args);
} commands[] = {
	{ "status", "", "a table of the VMs: memory configured, resident, shared, zero, saved", 0,
	  0, ctl_status },
	{ "pause", "", "stop finding new sharing; what is shared stays so", 0, 0, ctl_pause },
	{ "resume", "", "undo pause", 0, 0, ctl_resume },
	{ "unmerge", "VM", "make all memory of a VM private, and keep it so", 1, 1, ctl_unmerge },
	{ "share", "VM", "undo unmerge", 1, 1, ctl_share },
	{ "balloon", "VM SIZE", "let the guest do with SIZE, as far as it can; off: give all back",
	  2, 2, ctl_balloon },
	{ "page-out", "VM SIZE", "compress so much of a VM's memory that was not written lately", 2,
	  2, ctl_page_out },
	{ "swap-out", "VM SIZE", "write so much of what is compressed of a VM to its swap file", 2,
	  2, ctl_swap_out },
	{ "plan", "", "what the policy would do now", 0, 0, ctl_plan },
	{ "explain", "VM",
	  "the same of one VM, with what it is based on, and what was decided before", 1, 1,
	  ctl_explain },
	{ "analyze", "PID...", "what sharing would save among running VMMs; needs no daemon", 1,
	  1 << 20, ctl_analyze },
};

static void help(FILE *out)
{
	fprintf(out, "usage: ballastctl [--socket PATH] [--json] COMMAND\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "  %-8s %-8s %s\n", commands[i].name, commands[i].args,
			commands[i].help);
	fprintf(out,
		"\n  -s, --socket PATH  the daemon's control socket (default: $BALLAST_CONTROL_SOCKET,\n"
		"                     else " CTL_DEFAULT_SOCKET ")\n"
		"  -j, --json         print JSON\n"
		"  -h, --help\n"
		"  -V, --version\n\n"
		"VM is a name, a UUID or a PID. Exit status: 0 done, 1 failed, 2 wrong usage.\n");
}

static int find_and_run(const struct ctl_options *o, int nr, char **words)
{
	const struct command *c = NULL;
	char name[CTL_CELL_MAX];

	if (nr == 0) {
		help(stderr);
		return CTL_USAGE;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands) && !c; i++) {
		if (strcmp(commands[i].name, words[0]) == 0)
			c = &commands[i];
	}
	if (!c) {
		ctl_error("unknown command \"%s\" (ballastctl --help lists them)",
			  ctl_safe(name, words[0]));
		return CTL_USAGE;
	}
	if (nr - 1 < c->min_args || nr - 1 > c->max_args) {
		ctl_error("usage: ballastctl %s%s%s", c->name, *c->args ? " " : "", c->args);
		return CTL_USAGE;
	}
	return c->run(o, words + 1);
}

/* A full disk or a closed pipe must not look like success. */
static int finish(int status)
{
	if (fflush(stdout) == 0 || status)
		return status;
	ctl_error("cannot write the output");
	return 1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "socket", required_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	const char *env = getenv("BALLAST_CONTROL_SOCKET");
	struct ctl_options o = { .socket = env && *env ? env : CTL_DEFAULT_SOCKET };
	int c;

	while ((c = getopt_long(argc, argv, "s:jhV", options, NULL)) != -1) {
		switch (c) {
		case 's':
			o.socket = optarg;
			break;
		case 'j':
			o.json = true;
			break;
		case 'h':
			help(stdout);
			return finish(0);
		case 'V':
			puts("ballastctl " BALLAST_VERSION);
			return finish(0);
		default:
			return CTL_USAGE;
		}
	}
	return finish(find_and_run(&o, argc - optind, argv + optind));
}
