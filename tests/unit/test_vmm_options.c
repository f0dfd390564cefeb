/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include "vmm/options.h"

static char error[OPTIONS_ERROR_MAX];
static const char *text;
static struct vm_config cfg;

/* @line is split at spaces. */
static enum options_result parse(const char *line)
{
	char *copy = strdup(line), *rest = copy, *argv[32] = { "ballast-vmm" };
	enum options_result r;
	int argc = 1;

	while (rest && *rest)
		argv[argc++] = strsep(&rest, " ");
	error[0] = '\0';
	text = NULL;
	r = options_parse(argc, argv, &cfg, error, &text);
	free(copy);
	return r;
}

static void wrong(const char *line, const char *says)
{
	cr_assert_eq(parse(line), OPTIONS_WRONG, "%s", line);
	cr_assert_not_null(strstr(error, says), "%s: \"%s\" without \"%s\"", line, error, says);
	cr_assert_null(strchr(error, '\n'));
}

Test(vmm_options, defaults)
{
	cr_assert_eq(parse("--kernel k"), OPTIONS_RUN, "%s", error);
	cr_assert_str_eq(cfg.kernel, "k");
	cr_assert_str_eq(cfg.cmdline, "console=ttyS0");
	cr_assert_eq(cfg.memory_bytes, MIB(256));
	cr_assert_eq(cfg.cpus, 1);
	cr_assert_eq(strncmp(cfg.name, "ballast-", 8), 0);
	cr_assert_not(cfg.balloon || cfg.rng || cfg.no_reboot || cfg.no_sandbox || cfg.paused);
	vm_config_free(&cfg);
}

Test(vmm_options, everything)
{
	cr_assert_eq(parse("--kernel k --initrd=i --memory 1G --hotplug 4G --cpus 16 --name vm "
			   "--uuid 123e4567-e89b-12d3-a456-426614174000 --disk path=a,readonly "
			   "--disk path=b,overlay=c,direct --net tap=t0 "
			   "--net tap=t1,mac=02:00:00:00:0a:ff --balloon --rng --qmp q "
			   "--paused --no-reboot --no-agent --no-sandbox --agent-socket s"),
		     OPTIONS_RUN, "%s", error);
	cr_assert_eq(cfg.memory_bytes, GIB(1));
	cr_assert_eq(cfg.hotplug_bytes, GIB(4));
	cr_assert_eq(cfg.cpus, 16);
	cr_assert_eq(cfg.nr_disks, 2);
	cr_assert(cfg.disks[0].readonly && !cfg.disks[0].direct && !cfg.disks[0].overlay);
	cr_assert(!cfg.disks[1].readonly && cfg.disks[1].direct);
	cr_assert_str_eq(cfg.disks[1].overlay, "c");
	cr_assert_eq(cfg.nr_nets, 2);
	cr_assert_not(cfg.nets[0].has_mac);
	cr_assert(cfg.nets[1].has_mac);
	cr_assert_eq(cfg.nets[1].mac[5], 0xff);
	cr_assert(cfg.balloon && cfg.rng && cfg.paused && cfg.no_reboot && cfg.no_agent &&
		  cfg.no_sandbox);
	cr_assert_str_eq(cfg.agent_socket, "s");
	vm_config_free(&cfg);
}

Test(vmm_options, a_snapshot_brings_its_own_sizes)
{
	cr_assert_eq(parse("--restore d"), OPTIONS_RUN, "%s", error);
	cr_assert_eq(cfg.memory_bytes, 0);
	cr_assert_eq(cfg.cpus, 0);
	vm_config_free(&cfg);
}

Test(vmm_options, errors_name_the_thing)
{
	wrong("", "--kernel");
	wrong("--kernel", "--kernel needs a value");
	wrong("--kernel k --frobnicate", "--frobnicate");
	wrong("--kernel k stray", "stray");
	wrong("--kernel k --rng=yes", "--rng");
	wrong("--kernel k --memory 1000", "--memory 1000");
	wrong("--kernel k --memory 1GB", "such as 512M");
	wrong("--kernel k --memory 33M", "multiple of 2M");
	wrong("--kernel k --memory 16M", "32MiB");
	wrong("--kernel k --memory 99999999999999999999G", "32MiB");
	wrong("--kernel k --cpus 0", "1 to 16");
	wrong("--kernel k --cpus 17", "1 to 16");
	wrong("--kernel k --cpus two", "1 to 16");
	wrong("--kernel k --uuid 123", "--uuid 123");
	wrong("--kernel k --disk readonly", "path=FILE");
	wrong("--kernel k --disk path=", "path");
	wrong("--kernel k --disk path=a,format=qcow2", "format");
	wrong("--kernel k --disk path=a,readonly,overlay=b", "exclude");
	wrong("--kernel k --net mac=02:00:00:00:00:01", "tap=INTERFACE");
	wrong("--kernel k --net tap=t,mac=01:00:00:00:00:01", "mac=01");
	wrong("--kernel k --net tap=t,mac=02:00:00:00:00", "mac=02");
	wrong("--kernel k --net tap=t,mac=02:00:00:00:00:01:02", "mac=02");
	wrong("--kernel k --flat f", "exclude");
	wrong("--kernel k --paused", "--qmp");
	wrong("--initrd i --restore d", "--kernel");
	wrong("--kernel k --name ", "--name");
}

Test(vmm_options, tables_are_bounded)
{
	char line[1024] = "--kernel k";

	for (int i = 0; i < VM_DISKS_MAX; i++)
		strcat(line, " --disk path=x");
	cr_assert_eq(parse(line), OPTIONS_RUN);
	vm_config_free(&cfg);
	strcat(line, " --disk path=x");
	wrong(line, "more than 8");
	strcpy(line, "--kernel k");
	for (int i = 0; i <= VM_NETS_MAX; i++)
		strcat(line, " --net tap=x");
	wrong(line, "more than 4");
}

Test(vmm_options, help_and_version)
{
	cr_assert_eq(parse("--help"), OPTIONS_TEXT);
	cr_assert_not_null(strstr(text, "--kernel"));
	cr_assert_not_null(strstr(text, "77"));
	cr_assert_eq(parse("--cpus 3 --version"), OPTIONS_TEXT);
	cr_assert_eq(strncmp(text, "ballast-vmm ", 12), 0);
}
