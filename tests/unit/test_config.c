/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/config.h"

static char dir[64], main_path[80];

static void make_dir(void)
{
	strcpy(dir, "/tmp/ballast-config-XXXXXX");
	cr_assert(mkdtemp(dir));
	snprintf(main_path, sizeof(main_path), "%s/ballast.conf", dir);
}

static void remove_dir(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	cr_assert(system(cmd) == 0);
}

TestSuite(config, .init = make_dir, .fini = remove_dir);

static void write_bytes(const char *name, const void *data, size_t len)
{
	char path[256], sub[96];
	FILE *f;

	snprintf(sub, sizeof(sub), "%s/conf.d", dir);
	if (strncmp(name, "conf.d/", 7) == 0)
		mkdir(sub, 0755);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	cr_assert(f);
	cr_assert(fwrite(data, 1, len, f) == len);
	fclose(f);
}

static void write_text(const char *name, const char *text)
{
	write_bytes(name, text, strlen(text));
}

static void load_ok(struct config *c)
{
	struct config_error err;
	int r = config_load(main_path, true, c, &err);

	cr_assert(r == 0, "%s", err.text);
}

/* The load must fail with DIR/@where (a name, or NAME:LINE) and @says in one line, and touch
 * nothing. */
static void expect_refused(int result, const char *where, const char *says)
{
	struct config c, pattern;
	struct config_error err;
	char prefix[256];
	int r;

	memset(&c, 0xa5, sizeof(c));
	memset(&pattern, 0xa5, sizeof(pattern));
	r = config_load(main_path, true, &c, &err);
	cr_expect(r == result, "%s: returned %d", where, r);
	cr_expect(memcmp(&c, &pattern, sizeof(c)) == 0, "%s: the old struct was changed", where);
	snprintf(prefix, sizeof(prefix), "%s/%s: ", dir, where);
	cr_expect(strncmp(err.text, prefix, strlen(prefix)) == 0, "\"%s\" is not at %s", err.text,
		  where);
	cr_expect(strstr(err.text, says) != NULL, "\"%s\" does not say \"%s\"", err.text, says);
	cr_expect(strpbrk(err.text, "\n\r\t\x1b") == NULL, "not one clean line");
}

Test(config, defaults)
{
	struct config c;

	config_defaults(&c);
	cr_expect_str_eq(c.run_dir, "/run/ballast");
	cr_expect_str_eq(c.agent_socket, "/run/ballast/agent.sock");
	cr_expect_str_eq(c.control_socket, "/run/ballast/control.sock");
	cr_expect_eq(c.agent_socket_mode, 0666);
	cr_expect_not(c.log_debug);
	cr_expect(c.metrics_enabled);
	cr_expect_str_eq(c.metrics_address, "127.0.0.1");
	cr_expect_eq(c.metrics_port, 9723);
	cr_expect(c.scan_enabled);
	cr_expect_eq(c.scan_cpu_permille, 50);
	cr_expect_eq(c.scan_interval_us, 1000000);
	cr_expect_eq(c.scan_threads, 1);
	cr_expect_eq(c.scan_cpu_pressure_permille, 200);
	cr_expect_eq(c.pressure_some_permille, 50);
	cr_expect_eq(c.pressure_available_permille, 100);
	cr_expect_eq(c.max_map_count, 1048576);
	cr_expect_eq(c.store_max_bytes, GIB(64));
	cr_expect_eq(c.nr_vms, 0);
	cr_expect_eq(config_vm_match(&c, "x", NULL, 1000)->share, SHARE_ON);
	cr_expect_str_eq(config_vm_match(&c, "x", NULL, 1000)->domain, "default");
	cr_expect_str_eq(config_vm_match(&c, "x", NULL, 1000)->qmp, CONFIG_QMP_AUTO);
	cr_expect_eq(config_vm_match(&c, "x", NULL, 1000)->min_bytes, MIB(256));
	cr_expect_eq(config_vm_match(&c, "x", NULL, 1000)->max_bytes, 0u);
	cr_expect_eq(config_vm_match(&c, "x", NULL, 1000)->shares, 1000u);
	cr_expect(config_vm_match(&c, "x", NULL, 1000)->balloon);
	cr_expect_eq(c.policy_mode, POLICY_OBSERVE);
	cr_expect_eq(c.policy_soft_permille, 60u);
	cr_expect_str_eq(c.policy_cgroup, CONFIG_NONE);
	config_free(&c);
	config_free(NULL);
}

Test(config, every_key)
{
	struct config c;

	write_text("ballast.conf",
		   "\xef\xbb\xbf# a comment\r\n"
		   "[daemon] ; here too\r\n"
		   "run_dir = /tmp/b   # and here\r\n"
		   "agent_socket=/tmp/a.sock\n"
		   "  agent_socket_mode : 0660\n"
		   "log_level = DEBUG\n"
		   "\n[metrics]\nenabled = no\naddress = ::1\nport = 0\n"
		   "[ scan ]\nenabled = off\ncpu_percent = 12.5%\ninterval = 250 ms\nthreads = 64\n"
		   "cpu_percent_pressure = 33.3\npressure_some = 0\npressure_available = 7%\n"
		   "max_map_count = 262144\n"
		   "[store]\nmax_size = 2TiB\n"
		   "[vm \"web-[0-9]*\"]\nshare = zero-only\n"
		   "[ vm  \"a ] # b\" ] # comment\ndomain = Tenant_1.a-b\n"
		   "[vm \"db\"]\nshare = off"); /* and no line end */
	load_ok(&c);
	cr_expect_str_eq(c.run_dir, "/tmp/b");
	cr_expect_str_eq(c.agent_socket, "/tmp/a.sock");
	cr_expect_str_eq(c.control_socket, "/tmp/b/control.sock");
	cr_expect_eq(c.agent_socket_mode, 0660);
	cr_expect(c.log_debug);
	cr_expect_not(c.metrics_enabled);
	cr_expect_str_eq(c.metrics_address, "::1");
	cr_expect_eq(c.metrics_port, 0);
	cr_expect_not(c.scan_enabled);
	cr_expect_eq(c.scan_cpu_permille, 125);
	cr_expect_eq(c.scan_interval_us, 250000);
	cr_expect_eq(c.scan_threads, 64);
	cr_expect_eq(c.scan_cpu_pressure_permille, 333);
	cr_expect_eq(c.pressure_some_permille, 0);
	cr_expect_eq(c.pressure_available_permille, 70);
	cr_expect_eq(c.max_map_count, 262144);
	cr_expect_eq(c.store_max_bytes, GIB(2048));
	cr_assert_eq(c.nr_vms, 3);
	cr_expect_str_eq(c.vms[0].glob, "web-[0-9]*");
	cr_expect_eq(c.vms[0].share, SHARE_ZERO_ONLY);
	cr_expect_str_eq(c.vms[0].domain, "default");
	cr_expect_str_eq(c.vms[1].glob, "a ] # b");
	cr_expect_eq(c.vms[1].share, SHARE_ON);
	cr_expect_str_eq(c.vms[1].domain, "Tenant_1.a-b");
	cr_expect_str_eq(c.vms[2].glob, "db");
	cr_expect_eq(c.vms[2].share, SHARE_OFF);
	config_free(&c);
}

/* Each file is bad in one place; the line is counted by hand. */
static const struct {
	const char *text;
	u32 line;
	const char *says;
} bad[] = {
	/* sections */
	{ "[scam]\n", 1, "did you mean [scan]?" },
	{ "\n\n[balloon]\nx = 1\n", 3, "unknown section [balloon] (known: [daemon], " },
	{ "[]\n", 1, "unknown section []" },
	{ "[Daemon]\n", 1, "did you mean [daemon]?" },
	{ "[scan]\nthreads = 1\n[store]\n\n[scan]\n", 5,
	  "given twice (first on line 1; join them)" },
	{ "[vm \"a\"]\n[vm \"b\"]\n[vm \"a\"]\n", 3, "[vm \"a\"] is given twice (first on line 1" },
	{ "[vm]\n", 1, "names no VM (write [vm \"NAME\"]" },
	{ "[vm \"\"]\n", 1, "is empty" },
	{ "[scan \"x\"]\n", 1, "only [vm \"NAME\"] does" },
	{ "[vm \"x]\nshare = on\n", 1, "does not end" },
	{ "[vm \"x\"\n", 1, "does not end" },
	{ "[scan\nthreads = 1\n", 1, "does not end" },
	{ "[scan] threads = 1\n", 1, "text after the section header" },
	{ "[vm \"0123456789012345678901234567890123456789012345678901234567890123\"]\n", 1,
	  "too long (1 to 63 bytes)" },
	/* keys */
	{ "# x\nthreads = 1\n", 2, "before the first section" },
	{ "[scan]\nthread = 1\n", 2, "did you mean \"threads\"?" },
	{ "[scan]\ncpu_precent = 1\n", 2, "did you mean \"cpu_percent\"?" },
	{ "[metrics]\nprot = 1\n", 2, "did you mean \"port\"?" },
	{ "[scan]\nThreads = 1\n", 2, "did you mean \"threads\"?" },
	{ "[daemon]\nthreads = 1\n", 2, "(it belongs in [scan])" },
	{ "[store]\nzzz = 1\n", 2, "(its keys: max_size)" },
	{ "[scan]\nthreads = 1\n# x\ninterval = 1s\nthreads = 1\n", 5,
	  "twice in this section (first "
	  "on line 2" },
	{ "[vm \"a\"]\nshare = on\n[vm \"b\"]\nshare = on\nshare = on\n", 5, "first on line 4" },
	{ "[scan]\n = 1\n", 2, "unknown key \"\"" },
	/* syntax */
	{ "[scan]\nthreads\n", 2, "neither KEY = VALUE nor [SECTION]" },
	{ "[scan]\nthreads = 1\n  continued\n", 3, "neither KEY = VALUE nor [SECTION]" },
	{ "[scan]\n\nthreads ; = 3\ninterval = 1\n", 3, "neither KEY = VALUE nor [SECTION]" },
	{ "\x7f"
	  "ELF\x02\x01\x01 junk\n",
	  1, "neither" },
	{ "[scan]\n\x1b[31m\xff = \x80\n", 2, "unknown key \"?[31m?\"" },
	/* values */
	{ "[scan]\nthreads = many\n", 2, "threads = \"many\" is not a whole number" },
	{ "[scan]\nthreads =\n", 2, "threads = \"\" is not a whole number" },
	{ "[scan]\nthreads = 0\n", 2, "out of range (accepted: 1 to 64)" },
	{ "[scan]\nthreads = 65\n", 2, "out of range (accepted: 1 to 64)" },
	{ "[scan]\nthreads = 4294967297\n", 2, "out of range" }, /* 1 if cut to 32 bits */
	{ "[scan]\ninterval = 5\n", 2, "not a duration with its unit, such as 500ms" },
	{ "[scan]\ninterval = 5 parsecs\n", 2, "not a duration" },
	{ "[scan]\ninterval = 9ms\n", 2, "out of range (accepted: 10ms to 1h)" },
	{ "[scan]\ninterval = 2h\n", 2, "out of range (accepted: 10ms to 1h)" },
	{ "[scan]\ncpu_percent = 0\n", 2, "out of range (accepted: 0.1 to 1600)" },
	{ "[scan]\ncpu_percent = 1600.1\n", 2, "out of range (accepted: 0.1 to 1600)" },
	{ "[scan]\ncpu_percent = lots\n", 2, "not a percentage" },
	{ "[scan]\npressure_some = 101\n", 2, "out of range (accepted: 0 to 100)" },
	{ "[scan]\ncpu_percent_pressure = 0\n", 2, "out of range (accepted: 0.1 to 1600)" },
	{ "[scan]\nmax_map_count = on\n", 2, "is not a whole number, or off" },
	{ "[scan]\nmax_map_count = 2147483648\n", 2, "out of range (accepted: off to 2147483647)" },
	{ "[scan]\nenabled = maybe\n", 2, "enabled = \"maybe\" is not on or off" },
	{ "[store]\nmax_size = 64GB\n", 2, "not a size such as 512M or 64GiB" },
	{ "[store]\nmax_size = 1k\n", 2, "out of range (accepted: 1MiB to 16TiB)" },
	{ "[store]\nmax_size = 99999999999999999999\n", 2, "out of range" },
	{ "[metrics]\nport = 65536\n", 2, "out of range (accepted: 0 to 65535)" },
	{ "[metrics]\naddress = localhost\n", 2, "host names are not looked up" },
	{ "[metrics]\naddress = 127.0.0.1:80\n", 2, "is not an IPv4 or IPv6 address" },
	{ "[daemon]\nlog_level = loud\n", 2, "is not info or debug" },
	{ "[daemon]\nrun_dir = run/ballast\n", 2, "is not an absolute path" },
	{ "[daemon]\nagent_socket_mode = 0888\n", 2, "is not an octal file mode" },
	{ "[daemon]\nagent_socket_mode = 0111\n", 2, "out of range (accepted: 0600 to 0777)" },
	{ "[vm \"a\"]\nqmp = a.sock\n", 2, "is not an absolute path, auto or off" },
	{ "[vm \"a\"]\nqmp = on\n", 2, "is not an absolute path, auto or off" },
	{ "[vm \"a\"]\nmin = 0\n", 2, "out of range" },
	{ "[vm \"a\"]\nshare = sometimes\n", 2, "is not on, off or zero-only" },
	{ "[vm \"a\"]\ndomain = a/b\n", 2, "is not a domain name made of" },
	{ "[vm \"a\"]\ndomain = ..\n", 2, "is not a domain name made of" },
	{ "[vm \"a\"]\ndomain =\n", 2, "is not a domain name made of" },
	{ "[vm \"a\"]\ndomain = 0123456789012345678901234567890123456789012345678901234567890123\n",
	  2, "out of range (accepted: 1 to 63 bytes long)" },
	{ "[daemon]\nrun_dir = /0123456789012345678901234567890123456789012345678901234567890123456789"
	  "0123456789012345678901234\n",
	  2, "out of range (accepted: 2 to 94 bytes long)" },
	/* the first error is the one that is told */
	{ "[scan]\nthreads = 0\nbogus = 1\n[nope]\njunk\n", 2, "threads" },
	{ "[scan]\njunk\nthreads = 0\n", 2, "neither" },
};

Test(config, bad_files)
{
	char where[32];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		write_text("ballast.conf", bad[i].text);
		snprintf(where, sizeof(where), "ballast.conf:%u", bad[i].line);
		expect_refused(-EINVAL, where, bad[i].says);
	}
}

Test(config, long_lines)
{
	char text[4096];
	struct config c;

	/* A long comment is fine; the last line that fits is; one byte more is an error, not
	 * cut. */
	snprintf(text, sizeof(text), "# %0700d\n[scan]\nthreads = %0*d\n", 1, 187, 2);
	write_text("ballast.conf", text);
	load_ok(&c);
	cr_expect_eq(c.scan_threads, 2);
	config_free(&c);
	snprintf(text, sizeof(text), "# %0700d\n[scan]\nthreads = %0*d\n", 1, 188, 2);
	write_text("ballast.conf", text);
	expect_refused(-EINVAL, "ballast.conf:3", "line of 198 bytes is too long (at most 197)");
	snprintf(text, sizeof(text), "[scan]\n[vm \"%0300d\"]\n", 1);
	write_text("ballast.conf", text);
	expect_refused(-EINVAL, "ballast.conf:2", "too long");
}

Test(config, nul_and_junk)
{
	static const char nul[] = "[scan]\nthreads = 1\0\n";
	u8 junk[8192];
	struct config c;
	struct config_error err;

	write_bytes("ballast.conf", nul, sizeof(nul) - 1);
	expect_refused(-EINVAL, "ballast.conf:2", "not a text file");
	/* In a comment too: editors and git would take the whole file for binary. */
	write_bytes("ballast.conf", "\n#\0\n", 4);
	expect_refused(-EINVAL, "ballast.conf:2", "not a text file");
	srandom(1);
	for (int i = 0; i < 300; i++) {
		size_t len = (size_t)random() % sizeof(junk);

		for (size_t j = 0; j < len; j++) {
			/* Half of the files from the alphabet of the format, so that they get
			 * deep. */
			static const char set[] = "[]\"=\n\n;# vm scandthre1\0k";

			junk[j] = i % 2 ? (u8)random() : (u8)set[(size_t)random() % sizeof(set)];
		}
		write_bytes("ballast.conf", junk, len);
		if (config_load(main_path, true, &c, &err) == 0)
			config_free(&c);
		else
			cr_expect(strncmp(err.text, main_path, strlen(main_path)) == 0, "%s",
				  err.text);
	}
}

Test(config, drop_ins)
{
	struct config c;

	write_text("ballast.conf",
		   "[scan]\nthreads = 2\ninterval = 3s\n"
		   "[vm \"a*\"]\nshare = off\ndomain = one\n[vm \"*\"]\ndomain = two\n");
	write_text("conf.d/20-b.conf", "[scan]\nthreads = 7\n");
	write_text("conf.d/10-a.conf", "[scan]\nthreads = 5\ncpu_percent = 1\n[vm \"new\"]\n");
	write_text("conf.d/30-vm.conf", "[vm \"a*\"]\ndomain = three\n[daemon]\nrun_dir = /x\n");
	write_text("conf.d/notes.txt", "not a configuration\n");
	write_text("conf.d/.#10-a.conf", "an editor's lock\n");
	write_text("conf.d/10-a.conf~", "an editor's backup\n");
	load_ok(&c);
	cr_expect_eq(c.scan_threads, 7);
	cr_expect_eq(c.scan_interval_us, 3000000);
	cr_expect_eq(c.scan_cpu_permille, 10);
	cr_expect_str_eq(c.control_socket, "/x/control.sock");
	cr_assert_eq(c.nr_vms, 3);
	cr_expect_str_eq(c.vms[0].glob, "a*");
	cr_expect_eq(c.vms[0].share, SHARE_OFF);
	cr_expect_str_eq(c.vms[0].domain, "three");
	cr_expect_str_eq(c.vms[1].domain, "two");
	cr_expect_str_eq(c.vms[2].glob, "new");
	config_free(&c);

	write_text("conf.d/15-bad.conf", "[scan]\n\nthreads = x\n");
	expect_refused(-EINVAL, "conf.d/15-bad.conf:3", "whole number");
	write_text("conf.d/15-bad.conf", "[vm \"a*\"]\n[vm \"a*\"]\n");
	expect_refused(-EINVAL, "conf.d/15-bad.conf:2", "twice (first on line 1");
}

Test(config, files_that_cannot_be_read)
{
	struct config c;
	struct config_error err;
	char path[128];

	expect_refused(-ENOENT, "ballast.conf", "No such file or directory (create it");
	cr_assert_eq(config_load(main_path, false, &c, &err), 0);
	cr_expect_eq(c.scan_threads, 1);
	config_free(&c);
	/* Drop-ins count even when there is no main file. */
	write_text("conf.d/a.conf", "[scan]\nthreads = 4\n");
	cr_assert_eq(config_load(main_path, false, &c, &err), 0);
	cr_expect_eq(c.scan_threads, 4);
	config_free(&c);

	cr_assert(mkdir(main_path, 0755) == 0);
	expect_refused(-EISDIR, "ballast.conf", "name the file");
	cr_assert(rmdir(main_path) == 0);
	cr_assert(mkfifo(main_path, 0644) == 0); /* must not wait for a writer */
	expect_refused(-EINVAL, "ballast.conf", "not a regular file");
	cr_assert(unlink(main_path) == 0);
	cr_assert(symlink("/dev/zero", main_path) == 0);
	expect_refused(-EFBIG, "ballast.conf", "at most 1 MiB");
	cr_assert(unlink(main_path) == 0);
	write_text("ballast.conf", "");
	snprintf(path, sizeof(path), "%s/conf.d/b.conf", dir);
	cr_assert(symlink("/nonexistent/x", path) == 0);
	expect_refused(-ENOENT, "conf.d/b.conf", "No such file");
}

Test(config, match)
{
	struct config c;

	write_text("ballast.conf", "[vm \"web-*\"]\ndomain = web\n"
				   "[vm \"6F9619FF-*\"]\ndomain = uuid\n"
				   "[vm \"?\"]\ndomain = short\n");
	load_ok(&c);
	cr_expect_str_eq(config_vm_match(&c, "web-1", NULL, 1000)->domain, "web");
	cr_expect_str_eq(config_vm_match(&c, "web-1", "6f9619ff-8b86", 1000)->domain, "web");
	cr_expect_str_eq(config_vm_match(&c, "zzz", "6f9619ff-8b86", 1000)->domain, "uuid");
	cr_expect_str_eq(config_vm_match(&c, NULL, "6F9619FF-8B86", 1000)->domain, "uuid");
	cr_expect_str_eq(config_vm_match(&c, "x", "", 1000)->domain, "short");
	cr_expect_str_eq(config_vm_match(&c, "WEB-1", NULL, 1000)->domain, "default");
	cr_expect_str_eq(config_vm_match(&c, NULL, NULL, 1000)->domain, "default");
	cr_expect_str_eq(share_mode_name(SHARE_ZERO_ONLY), "zero-only");
	config_free(&c);
}

static char *print_to_text(const struct config *c)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	cr_assert_eq(config_print(c, f), 0);
	fclose(f);
	return text;
}

/* What --print-config writes is a configuration, and means the same. */
Test(config, print_is_read_back)
{
	struct config a, b;
	char *first, *second;

	write_text("ballast.conf",
		   "[daemon]\nrun_dir = /r\nlog_level = debug\n[scan]\ncpu_percent = "
		   "2.5\nthreads = 3\ninterval = 1500ms\nmax_map_count = No\n"
		   "[vm \"a [x]\"]\nshare = zero-only\ndomain = d\n"
		   "qmp = /run/a.qmp\nmin = 1536MiB\n");
	load_ok(&a);
	first = print_to_text(&a);
	cr_expect(strstr(first, "cpu_percent = 2.5\n"));
	cr_expect(strstr(first, "max_map_count = off\n"));
	cr_expect(strstr(first, "[vm \"a [x]\"]\n"));
	cr_expect(strstr(first, "\nqmp = /run/a.qmp\n"));
	cr_expect(strstr(first, "\nmin = 1536MiB\n"));
	cr_expect(strstr(first, "# default 0666: "));
	write_text("ballast.conf", first);
	load_ok(&b);
	second = print_to_text(&b);
	cr_expect_str_eq(first, second);
	cr_expect_eq(b.nr_vms, 2); /* the one of the file, and "*" for the defaults */
	free(first);
	free(second);
	config_free(&a);
	config_free(&b);
}

/* A section that names a user does not apply to a VMM of another one, whatever the VM calls itself.
 */
Test(config, user_binds_a_name)
{
	struct config_error err;
	char path[] = "/tmp/ballast-config-user.XXXXXX";
	struct config c;
	FILE *f;
	int fd = mkstemp(path);

	cr_assert_geq(fd, 0);
	f = fdopen(fd, "w");
	fprintf(f,
		"[vm \"a-*\"]\nuser = 1234\ndomain = a\n[vm \"r-*\"]\nuser = root\ndomain = r\n");
	fclose(f);
	cr_assert_eq(config_load(path, true, &c, &err), 0, "%s", err.text);
	cr_expect_str_eq(config_vm_match(&c, "a-1", NULL, 1234)->domain, "a");
	cr_expect_str_eq(config_vm_match(&c, "a-1", NULL, 1235)->domain, "default");
	cr_expect_str_eq(config_vm_match(&c, "r-1", NULL, 0)->domain, "r");
	cr_expect_str_eq(config_vm_match(&c, "r-1", NULL, 1)->domain, "default");
	config_free(&c);
	unlink(path);
}

Test(config, policy)
{
	static const struct {
		const char *text, *says;
	} wrong[] = {
		{ "[policy]\nmode = perhaps\n", "is not off, observe or act" },
		{ "[policy]\nsoft = 3\n", "soft, hard and low are not in this order" },
		{ "[policy]\nlow = 4\n", "soft, hard and low are not in this order" },
		{ "[policy]\ncgroup = here\n", "is not an absolute path, or none" },
		{ "[policy]\nidle_tax = 100\n", "out of range (accepted: 0 to 99)" },
		{ "[vm \"a\"]\nmin = 1GiB\nmax = 512MiB\n",
		  "[vm \"a\"] max is less than min (512 and 1024 MiB" },
		{ "[vm \"a\"]\nshares = 0\n", "out of range (accepted: 1 to 1000000)" },
	};
	struct config_error err;
	struct config c;

	write_text("ballast.conf",
		   "[policy]\nmode = act\ninterval = 5s\nsoft = 10\nhard = 8\nlow = 5\n"
		   "last_resort = below-min\ncgroup = /sys/fs/cgroup/vms\n"
		   "[vm \"a\"]\nmin = 1GiB\nmax = 2GiB\nshares = 5\npriority = 0\n"
		   "balloon = off\n[vm \"b\"]\nmax = off\n");
	load_ok(&c);
	cr_expect(c.policy_mode == POLICY_ACT && c.policy_interval_us == 5000000 &&
		  c.policy_low_permille == 50 && c.policy_below_min);
	cr_expect_str_eq(c.policy_cgroup, "/sys/fs/cgroup/vms");
	cr_expect(c.vms[0].max_bytes == GIB(2) && c.vms[0].shares == 5 && !c.vms[0].priority &&
		  !c.vms[0].balloon && c.vms[1].max_bytes == 0);
	config_free(&c);
	for (u32 i = 0; i < ARRAY_SIZE(wrong); i++) {
		write_text("ballast.conf", wrong[i].text);
		cr_assert_lt(config_load(main_path, true, &c, &err), 0, "%u", i);
		cr_expect_not_null(strstr(err.text, wrong[i].says), "%s", err.text);
	}
}
