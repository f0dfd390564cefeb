/* SPDX-License-Identifier: MIT */
/* ballast-vmm: from the command line to the exit status. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
#include "vmm/console.h"
#include "vmm/snapshot.h"
#include "vmm/vm.h"

/* A crash of ours must not leave the terminal raw. */
static void on_fatal(int sig)
{
	console_restore();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void catch_fatal(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT };

	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		signal(signals[i], on_fatal);
}

/* Or what is opened first would be taken for stdin, stdout or stderr. */
static void fill_standard_fds(void)
{
	for (int fd = 0; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			_exit(VM_END_FAILED);
	}
}

int main(int argc, char **argv)
{
	char error[VM_ERROR_MAX];
	struct vm_config cfg = { 0 };
	const char *text;
	enum vm_end end;
	struct vm *vm;

	fill_standard_fds();
	_Static_assert(VM_ERROR_MAX >= OPTIONS_ERROR_MAX, "one buffer for both");
	switch (options_parse(argc, argv, &cfg, error, &text)) {
	case OPTIONS_TEXT:
		fputs(text, stdout);
		return 0;
	case OPTIONS_WRONG:
		fprintf(stderr, "ballast-vmm: %s\n", error);
		return VM_END_USAGE;
	case OPTIONS_RUN:
		break;
	}
	catch_fatal();
	end = VM_END_FAILED;
	if ((cfg.restore && snapshot_complete_config(cfg.restore, &cfg, error) < 0) ||
	    vm_new(&cfg, &vm, &end, error) < 0) {
		fprintf(stderr, "ballast-vmm: %s\n", error);
	} else {
		end = vm_run(vm);
		vm_free(vm);
	}
	vm_config_free(&cfg);
	return (int)end;
}
