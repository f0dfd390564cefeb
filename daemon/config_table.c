/* SPDX-License-Identifier: MIT */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "daemon/config_table.h"

const char *const config_section_names[NR_SECTIONS] = {
	[SEC_DAEMON] = "daemon", [SEC_METRICS] = "metrics", [SEC_SCAN] = "scan",
	[SEC_STORE] = "store",	 [SEC_POLICY] = "policy",   [SEC_VM] = "vm",
};

static int number_count(const char *s, u64 *ret)
{
	return parse_u64(s, 0, UINT64_MAX, ret);
}

static const char *count_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	snprintf(buf, PARSE_TEXT_MAX, "%" PRIu64, value);
	return buf;
}

/* 0 is a number like others for the parser, and a word for people. */
static int number_or_word_off(const char *s, int (*number)(const char *s, u64 *ret), u64 *ret)
{
	bool on;

	if (parse_bool(s, &on) == 0 && !on) {
		*ret = 0;
		return 0;
	}
	return number(s, ret);
}

static int number_or_off(const char *s, u64 *ret)
{
	return number_or_word_off(s, number_count, ret);
}

static const char *or_off_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	return value ? count_text(buf, value) : "off";
}

static int number_bytes_or_off(const char *s, u64 *ret)
{
	return number_or_word_off(s, parse_bytes, ret);
}

static const char *bytes_or_off_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	return value ? parse_bytes_text(buf, value) : "off";
}

static int number_mode(const char *s, u64 *ret)
{
	return parse_octal(s, 0, UINT64_MAX, ret);
}

static const char *mode_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	snprintf(buf, PARSE_TEXT_MAX, "0%" PRIo64, value);
	return buf;
}

static int number_bool(const char *s, u64 *ret)
{
	bool value;
	int r = parse_bool(s, &value);

	if (r == 0)
		*ret = value;
	return r;
}

static const char *bool_text(char buf[PARSE_TEXT_MAX], u64 value)
{
	return value ? "on" : "off";
}

static int check_path(const char *s)
{
	return s[0] == '/' ? 0 : -EINVAL;
}

static int check_qmp(const char *s)
{
	return strcmp(s, CONFIG_QMP_AUTO) == 0 || strcmp(s, CONFIG_QMP_OFF) == 0 ? 0
										 : check_path(s);
}

static int check_cgroup(const char *s)
{
	return strcmp(s, CONFIG_CGROUP_NONE) == 0 ? 0 : check_path(s);
}

static int check_address(const char *s)
{
	struct in6_addr a;

	return inet_pton(AF_INET, s, &a) == 1 || inet_pton(AF_INET6, s, &a) == 1 ? 0 : -EINVAL;
}

/* A domain's name becomes part of file names and of metric labels. */
static int check_domain(const char *s)
{
	static const char set[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

	return s[0] != '\0' && s[0] != '.' && s[strspn(s, set)] == '\0' ? 0 : -EINVAL;
}

static const struct word log_words[] = { { "info", 0 }, { "debug", 1 }, { 0 } };
static const struct word mode_words[] = {
	{ "observe", POLICY_OBSERVE },
	{ "act", POLICY_ACT },
	{ "off", POLICY_OFF },
	{ "on", POLICY_ACT },
	{ 0 },
};
static const struct word resort_words[] = { { "none", 0 }, { "below-min", 1 }, { 0 } };
static const struct word share_words[] = {
	{ "on", SHARE_ON },
	{ "off", SHARE_OFF },
	{ "zero-only", SHARE_ZERO_ONLY },
	{ "yes", SHARE_ON },
	{ "no", SHARE_OFF },
	{ "true", SHARE_ON },
	{ "false", SHARE_OFF },
	{ 0 },
};

static const struct value_type type_bool = {
	.accepts = PARSE_BOOL_ACCEPTS,
	.number = number_bool,
	.number_text = bool_text,
};
static const struct value_type type_log = {
	.accepts = "info or debug",
	.words = log_words,
};
static const struct value_type type_share = {
	.accepts = "on, off or zero-only",
	.words = share_words,
};
static const struct value_type type_policy_mode = {
	.accepts = "off, observe or act",
	.words = mode_words,
};
static const struct value_type type_resort = {
	.accepts = "none or below-min",
	.words = resort_words,
};
static const struct value_type type_bytes_or_off = {
	.accepts = "a size such as 512MiB or 4G, or off",
	.number = number_bytes_or_off,
	.zero_is_off = true,
	.number_text = bytes_or_off_text,
};
static const struct value_type type_cgroup = {
	.accepts = "an absolute path, or none",
	.check = check_cgroup,
};
static const struct value_type type_count = {
	.accepts = "a whole number",
	.number = number_count,
	.number_text = count_text,
};
static const struct value_type type_count_or_off = {
	.accepts = "a whole number, or off",
	.number = number_or_off,
	.number_text = or_off_text,
};
static const struct value_type type_mode = {
	.accepts = "an octal file mode such as 0660",
	.number = number_mode,
	.number_text = mode_text,
};
static const struct value_type type_percent = {
	.accepts = PARSE_PERCENT_ACCEPTS,
	.number = parse_percent_permille,
	.number_text = parse_percent_text,
};
static const struct value_type type_duration = {
	.accepts = PARSE_DURATION_ACCEPTS,
	.number = parse_duration_us,
	.number_text = parse_duration_text,
};
static const struct value_type type_bytes = {
	.accepts = PARSE_BYTES_ACCEPTS,
	.number = parse_bytes,
	.number_text = parse_bytes_text,
};
static const struct value_type type_path = {
	.accepts = "an absolute path",
	.check = check_path,
};
static const struct value_type type_qmp = {
	.accepts = "an absolute path, auto or off",
	.check = check_qmp,
};
static const struct value_type type_address = {
	.accepts =
		"an IPv4 or IPv6 address such as 127.0.0.1 or ::1 (host names are not looked up)",
	.check = check_address,
};
static const struct value_type type_user = {
	.accepts = "a user name or number, or any",
	.check = check_domain,
};
static const struct value_type type_domain = {
	.accepts = "a domain name made of A-Z a-z 0-9 . _ - that does not begin with a dot",
	.check = check_domain,
};

#define IN_CONFIG(m) .offset = offsetof(struct config, m), .size = sizeof(((struct config *)0)->m)
#define IN_VM(m)     .offset = offsetof(struct config_vm, m), .size = sizeof(((struct config_vm *)0)->m)

/* What sun_path holds, without its NUL; and a run_dir leaves room in it for "/control.sock". */
#define SOCKET_PATH_MAX 107
#define RUN_DIR_MAX	(SOCKET_PATH_MAX - 13)

const struct setting config_settings[] = {
	{ SEC_DAEMON, "run_dir", &type_path, IN_CONFIG(run_dir), 2, RUN_DIR_MAX, "/run/ballast",
	  "a tmpfs that is emptied at boot, as the state in it must be" },
	{ SEC_DAEMON, "agent_socket", &type_path, IN_CONFIG(agent_socket), 2, SOCKET_PATH_MAX, NULL,
	  "RUN_DIR/agent.sock, so that one key moves everything" },
	{ SEC_DAEMON, "control_socket", &type_path, IN_CONFIG(control_socket), 2, SOCKET_PATH_MAX,
	  NULL, "RUN_DIR/control.sock, so that one key moves everything" },
	{ SEC_DAEMON, "agent_socket_mode", &type_mode, IN_CONFIG(agent_socket_mode), 0600, 0777,
	  "0666",
	  "VMMs run as unprivileged users (libvirt-qemu), and a VMM is only given what it could see itself" },
	{ SEC_DAEMON, "log_level", &type_log, IN_CONFIG(log_debug), 0, 0, "info",
	  "rare events only; debug adds lines for each pass" },

	{ SEC_METRICS, "enabled", &type_bool, IN_CONFIG(metrics_enabled), 0, 0, "on",
	  "read-only and on loopback: safe to have, and missed when it is not there" },
	{ SEC_METRICS, "address", &type_address, IN_CONFIG(metrics_address), 2, 45, "127.0.0.1",
	  "names and sizes of VMs do not go to the network unless somebody asks for it" },
	{ SEC_METRICS, "port", &type_count, IN_CONFIG(metrics_port), 0, 65535, "9723",
	  "in the range where Prometheus exporters live; 0 takes any free port" },

	{ SEC_SCAN, "enabled", &type_bool, IN_CONFIG(scan_enabled), 0, 0, "on",
	  "sharing is what the daemon is for; off still watches and accounts, but merges nothing new" },
	{ SEC_SCAN, "cpu_percent", &type_percent, IN_CONFIG(scan_cpu_permille), 1, 16000, "5",
	  "of one core: what is tolerated in the background, and still about 350 MiB hashed a second" },
	{ SEC_SCAN, "interval", &type_duration, IN_CONFIG(scan_interval_us), 10000,
	  3600 * 1000000ULL, "1s",
	  "a page unwritten for a second tends to stay so, and a pass over idle memory costs 0.5 ms a GiB" },
	{ SEC_SCAN, "idle_interval", &type_duration, IN_CONFIG(scan_idle_interval_us), 1000000,
	  24 * 3600 * 1000000ULL, "60s",
	  "memory that nobody writes is looked at this rarely: then idle VMs cost next to nothing" },
	{ SEC_SCAN, "thp_split_min_saving", &type_bytes, IN_CONFIG(thp_split_min_saving), 4096,
	  MIB(2), "128KiB",
	  "a huge page is worth more to the guest than sharing a few pages of its 512" },
	{ SEC_SCAN, "threads", &type_count, IN_CONFIG(scan_threads), 1, 64, "1",
	  "one thread spends up to 100 cpu_percent; more are of use only above that" },
	{ SEC_SCAN, "cpu_percent_pressure", &type_percent, IN_CONFIG(scan_cpu_pressure_permille), 1,
	  16000, "20",
	  "in place of cpu_percent, if more, while the host is short of memory: CPU is not what is short then" },
	{ SEC_SCAN, "pressure_some", &type_percent, IN_CONFIG(pressure_some_permille), 0, 1000, "5",
	  "the host is short of memory when tasks wait for it 0.5 of 10 s (/proc/pressure/memory): idle hosts show 0; 0 is off" },
	{ SEC_SCAN, "pressure_available", &type_percent, IN_CONFIG(pressure_available_permille), 0,
	  1000, "10",
	  "or when less of its memory is available, so that there is time to merge before there is none; 0 is off" },
	{ SEC_SCAN, "max_map_count", &type_count_or_off, IN_CONFIG(max_map_count), 0, INT32_MAX,
	  "1048576",
	  "vm.max_map_count is raised to this while the daemon runs: 16 times the kernel's default, as several distributions do; off or 0 leaves it alone" },
	{ SEC_SCAN, "max_mappings", &type_count, IN_CONFIG(scan_max_mappings), 0, INT32_MAX,
	  "2147483647",
	  "no limit of its own: vm.max_map_count, less what is left to the VMM, always is one; 0 merges nothing but zero pages" },

	{ SEC_STORE, "max_size", &type_bytes, IN_CONFIG(store_max_bytes), MIB(1), GIB(16384),
	  "64GiB",
	  "per sharing domain: address space, not memory, which is taken only as pages are merged" },

	{ SEC_POLICY, "mode", &type_policy_mode, IN_CONFIG(policy_mode), 0, 0, "observe",
	  "deciding costs next to nothing and shows what it would do; taking guests' memory is for the administrator to allow" },
	{ SEC_POLICY, "interval", &type_duration, IN_CONFIG(policy_interval_us), 100000,
	  3600 * 1000000ULL, "1s", "as often as there is news of guests that are being ballooned" },
	{ SEC_POLICY, "soft", &type_percent, IN_CONFIG(policy_soft_permille), 1, 999, "6",
	  "ESX's states: below so much available memory sharing and ballooning begin" },
	{ SEC_POLICY, "hard", &type_percent, IN_CONFIG(policy_hard_permille), 1, 998, "4",
	  "below this also what costs guests more" },
	{ SEC_POLICY, "low", &type_percent, IN_CONFIG(policy_low_permille), 0, 997, "2",
	  "below this also memory in use; the kernel's own reclaim has begun by then" },
	{ SEC_POLICY, "hysteresis", &type_percent, IN_CONFIG(policy_hysteresis_permille), 0, 500,
	  "1",
	  "a state is left so much later than it began, and a guest gets memory back only when there is twice as much" },
	{ SEC_POLICY, "idle_tax", &type_percent, IN_CONFIG(policy_idle_tax_permille), 0, 990, "75",
	  "Waldspurger's: an idle page costs a VM four times the shares of one in use; 0 takes no notice of use" },
	{ SEC_POLICY, "cow_reserve", &type_percent, IN_CONFIG(policy_cow_reserve_permille), 0, 1000,
	  "25",
	  "of what the host would have to find if all sharing broke, kept available: guests of one system do not all diverge at once" },
	{ SEC_POLICY, "last_resort", &type_resort, IN_CONFIG(policy_below_min), 0, 0, "none",
	  "whether a VM may go below its min before the kernel kills one is for the administrator to say" },
	{ SEC_POLICY, "samples", &type_count_or_off, IN_CONFIG(policy_samples), 0, 512, "100",
	  "pages of a VM that are made to fault once, to learn how much it uses: ESX's number, a standard error of 5% in a round; with mode = act only" },
	{ SEC_POLICY, "sample_interval", &type_duration, IN_CONFIG(policy_sample_interval_us),
	  1000000, 3600 * 1000000ULL, "30s",
	  "what a guest did not touch for so long is idle: ESX's number" },
	{ SEC_POLICY, "cgroup", &type_cgroup, IN_CONFIG(policy_cgroup), 1, 107, CONFIG_CGROUP_NONE,
	  "the folder of a memory cgroup (v1 or v2) that all VMs are in, where one limits them: its limit counts when less is left in it than on the host" },

	{ SEC_VM, "share", &type_share, IN_VM(share), 0, 0, "on",
	  "only VMs that were started with the agent are seen at all: starting them so is the consent" },
	{ SEC_VM, "domain", &type_domain, IN_VM(domain), 1, CONFIG_NAME_MAX - 1, "default",
	  "one tenant a host is the common case; give each tenant a domain of its own otherwise" },
	{ SEC_VM, "user", &type_user, IN_VM(user), 1, CONFIG_NAME_MAX - 1, "any",
	  "most hosts run all VMMs as one user; where tenants have their own, their domains should name it" },
	{ SEC_VM, "qmp", &type_qmp, IN_VM(qmp), 2, SOCKET_PATH_MAX, CONFIG_QMP_AUTO,
	  "found on QEMU's command line and used for milliseconds at a time, so that others get their turn; a path given here is kept open" },
	{ SEC_VM, "min", &type_bytes, IN_VM(min_bytes), MIB(1), GIB(16384), "256MiB",
	  "ballooning leaves a guest no less than what current distributions ask for" },
	{ SEC_VM, "max", &type_bytes_or_off, IN_VM(max_bytes), MIB(1), GIB(16384), "off",
	  "of the host's memory, also when there is plenty; a VM may take all that it is configured for" },
	{ SEC_VM, "shares", &type_count, IN_VM(shares), 1, 1000000, "1000",
	  "equal: when memory is short it is divided by these, idle memory first" },
	{ SEC_VM, "priority", &type_count, IN_VM(priority), 0, 1000, "500",
	  "equal: who has less gives all that may be taken before who has more gives anything" },
	{ SEC_VM, "balloon", &type_bool, IN_VM(balloon), 0, 0, "on",
	  "whether the policy may balloon it; `ballastctl balloon` may in any case" },
	{ SEC_VM, "page_out", &type_bool, IN_VM(page_out), 0, 0, "on",
	  "whether the policy may have pages of it compressed when memory is short (state hard), and samples taken; not where share = off, since nobody knows then which are idle" },
};
_Static_assert(ARRAY_SIZE(config_settings) == CONFIG_NR_SETTINGS, "count the rows");

static void store_number(void *dst, size_t size, u64 value)
{
	u8 v8 = (u8)value;
	u16 v16 = (u16)value;
	u32 v32 = (u32)value;

	switch (size) {
	case 1:
		memcpy(dst, &v8, 1);
		break;
	case 2:
		memcpy(dst, &v16, 2);
		break;
	case 4:
		memcpy(dst, &v32, 4);
		break;
	default:
		memcpy(dst, &value, 8);
	}
}

static u64 load_number(const void *src, size_t size)
{
	u64 value = 0;

	memcpy(&value, src, size); /* little endian, as x86-64 is */
	return value;
}

static int find_word(const struct word *words, const char *s, u64 *ret)
{
	for (; words->word; words++) {
		if (strcasecmp(words->word, s) == 0) {
			*ret = words->value;
			return 0;
		}
	}
	return -EINVAL;
}

int config_set(const struct setting *s, void *base, const char *text)
{
	void *dst = (char *)base + s->offset;
	u64 value;
	int r;

	if (s->type->check) {
		size_t len = strlen(text);

		r = s->type->check(text);
		if (r == 0 && (len < s->min || len > s->max))
			r = -ERANGE;
		if (r == 0)
			memcpy(dst, text, len + 1);
		return r;
	}
	if (s->type->words) {
		r = find_word(s->type->words, text, &value);
	} else {
		r = s->type->number(text, &value);
		if (r == 0 && !(value == 0 && s->type->zero_is_off) && s->max &&
		    (value < s->min || value > s->max))
			r = -ERANGE;
	}
	if (r == 0)
		store_number(dst, s->size, value);
	return r;
}

void config_range_text(const struct setting *s, char *buf, size_t size)
{
	char min[PARSE_TEXT_MAX], max[PARSE_TEXT_MAX];

	if (s->type->number)
		snprintf(buf, size, "%s to %s", s->type->number_text(min, s->min),
			 s->type->number_text(max, s->max));
	else
		snprintf(buf, size, "%" PRIu64 " to %" PRIu64 " bytes long", s->min, s->max);
}

static void set_section_defaults(bool vm, void *base)
{
	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		const struct setting *s = &config_settings[i];
		int r;

		if ((s->section == SEC_VM) != vm || !s->def)
			continue;
		r = config_set(s, base, s->def);
		assert(r == 0);
		(void)r;
	}
}

void config_set_defaults(struct config *c)
{
	memset(c, 0, sizeof(*c));
	set_section_defaults(false, c);
	set_section_defaults(true, &c->vm_default);
	c->vm_default.glob[0] = '*';
}

void config_derive_paths(struct config *c)
{
	if (c->agent_socket[0] == '\0')
		snprintf(c->agent_socket, sizeof(c->agent_socket), "%.*s/agent.sock", RUN_DIR_MAX,
			 c->run_dir);
	if (c->control_socket[0] == '\0')
		snprintf(c->control_socket, sizeof(c->control_socket), "%.*s/control.sock",
			 RUN_DIR_MAX, c->run_dir);
}

void config_defaults(struct config *c)
{
	config_set_defaults(c);
	config_derive_paths(c);
}

static const char *word_for(const struct word *words, u64 value)
{
	for (; words->word; words++)
		if (words->value == value)
			return words->word;
	return "?";
}

const char *share_mode_name(enum share_mode m)
{
	return word_for(share_words, m);
}

const char *policy_mode_name(enum policy_mode m)
{
	return word_for(mode_words, m);
}

static const char *value_text(const struct setting *s, const void *base, char buf[PARSE_TEXT_MAX])
{
	const char *src = (const char *)base + s->offset;
	u64 value;

	if (s->type->check)
		return src;
	value = load_number(src, s->size);
	if (s->type->number_text)
		return s->type->number_text(buf, value);
	return word_for(s->type->words, value);
}

/* The keys of a section with, above each, what it accepts and why its default is what it is. */
static void print_section(FILE *out, enum section section, const void *base)
{
	char buf[PARSE_TEXT_MAX], range[96];

	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		const struct setting *s = &config_settings[i];

		if (s->section != section)
			continue;
		fprintf(out, "# %s", s->type->accepts);
		if (s->type->number && s->max) {
			config_range_text(s, range, sizeof(range));
			fprintf(out, " (%s)", range);
		}
		fprintf(out, "\n# default %s%s%s\n%s = %s\n", s->def ? s->def : "",
			s->def ? ": " : "", s->reason, s->key, value_text(s, base, buf));
	}
}

static void print_vm(FILE *out, const struct config_vm *v)
{
	fprintf(out, "\n[vm \"%s\"]\n", v->glob);
	print_section(out, SEC_VM, v);
}

int config_print(const struct config *c, FILE *out)
{
	bool catch_all = false;

	for (u32 i = 0; i < NR_SECTIONS; i++) {
		if (i == SEC_VM)
			continue;
		fprintf(out, "%s[%s]\n", i ? "\n" : "", config_section_names[i]);
		print_section(out, (enum section)i, c);
	}
	for (u32 i = 0; i < c->nr_vms; i++) {
		print_vm(out, &c->vms[i]);
		catch_all |= strcmp(c->vms[i].glob, c->vm_default.glob) == 0;
	}
	/* What VMs get that no section matches: saying it last changes nothing. */
	if (!catch_all)
		print_vm(out, &c->vm_default);
	return ferror(out) || fflush(out) ? -EIO : 0;
}
