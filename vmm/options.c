/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/parse.h"
#include "common/version.h"
#include "vmm/options.h"
#include "vmm/vm.h"

/* Enough for a distribution's kernel and initrd with room to work in. */
#define MEMORY_DEFAULT MIB(256)
#define MEMORY_MIN     MIB(32) /* less than that no 64-bit Linux boots */

static const char usage[] =
	"usage: ballast-vmm --kernel IMAGE [options]\n"
	"\n"
	"Runs one virtual machine on KVM, with its serial console on stdin and stdout.\n"
	"On a terminal, Ctrl-A x ends it.\n"
	"\n"
	"what to run\n"
	"  --kernel IMAGE        a bzImage, or a vmlinux with a PVH entry point\n"
	"  --initrd FILE\n"
	"  --cmdline TEXT        default: console=ttyS0\n"
	"  --flat IMAGE          instead of a kernel: raw code that runs in user mode (vmm/boot.h)\n"
	"  --restore DIR         go on from a snapshot (x-ballast-snapshot-save on the control\n"
	"                        socket); --kernel is then what a reboot starts. Give devices as they\n"
	"                        were; memory and processors are the snapshot's\n"
	"\n"
	"the machine\n"
	"  --memory SIZE         RAM, a multiple of 2M; default 256M\n"
	"  --hotplug SIZE        area for memory that is plugged in later (virtio-mem); default 0\n"
	"  --cpus N              1 to 16; default 1\n"
	"  --name NAME           for messages, and for ballastd; default: ballast-PID\n"
	"  --uuid UUID\n"
	"\n"
	"devices\n"
	"  --disk path=FILE[,readonly][,direct][,overlay=FILE]\n"
	"                        a raw image, up to 8. readonly: the guest cannot write it.\n"
	"                        direct: past the host's page cache. overlay: what the guest writes\n"
	"                        goes to that file (made if absent), and the image stays as it is\n"
	"  --net tap=INTERFACE|passt=SOCKET[,mac=XX:XX:XX:XX:XX:XX]\n"
	"                        a tap interface that exists, or the socket of passt(1); up to 4\n"
	"  --balloon             memory balloon\n"
	"  --rng                 random numbers of the host\n"
	"\n"
	"control\n"
	"  --qmp PATH            control socket (QMP), made with mode 0600\n"
	"  --paused              wait for \"cont\" on the control socket\n"
	"  --no-reboot           a reboot of the guest ends it (exit status 4)\n"
	"  --agent-socket PATH   ballastd's; default $BALLAST_AGENT_SOCKET, or /run/ballast/agent.sock\n"
	"  --no-agent            do without ballastd, even where there is one\n"
	"  --no-sandbox          no seccomp filter, and keep privileges: for debugging\n"
	"  --help, --version\n"
	"\n"
	"exit status: 0 powered off, or ended by a signal or \"quit\"; 1 failed (see the message);\n"
	"2 wrong usage; 3 the guest crashed (triple fault, KVM cannot go on); 4 rebooted, with\n"
	"--no-reboot; 77 no usable /dev/kvm\n";

static const char version[] = "ballast-vmm " BALLAST_VERSION "\n";

struct parser {
	struct vm_config *c;
	char *error;
};

static int wrong(const struct parser *p, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
static int wrong(const struct parser *p, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->error, OPTIONS_ERROR_MAX, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

static int set_string(const struct parser *p, char **to, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return wrong(p, "out of memory");
	free(*to);
	*to = copy;
	return 0;
}

static int set_size(const struct parser *p, const char *option, const char *value, u64 min, u64 max,
		    u64 *to)
{
	char low[PARSE_TEXT_MAX], high[PARSE_TEXT_MAX];
	u64 bytes;
	int r = parse_bytes(value, &bytes);

	if (r == -EINVAL)
		return wrong(p, "--%s %s: give " PARSE_BYTES_ACCEPTS, option, value);
	if (r < 0 || bytes < min || bytes > max)
		return wrong(p, "--%s %s: give %s to %s", option, value, parse_bytes_text(low, min),
			     parse_bytes_text(high, max));
	if (bytes % CHUNK_BYTES)
		return wrong(p, "--%s %s: give a multiple of 2M", option, value);
	*to = bytes;
	return 0;
}

static int opt_kernel(const struct parser *p, const char *value)
{
	return set_string(p, &p->c->kernel, value);
}

static int opt_initrd(const struct parser *p, const char *value)
{
	return set_string(p, &p->c->initrd, value);
}

static int opt_cmdline(const struct parser *p, const char *value)
{
	return set_string(p, &p->c->cmdline, value);
}

static int opt_flat(const struct parser *p, const char *value)
{
	return set_string(p, &p->c->flat, value);
}

static int opt_restore(const struct parser *p, const char *value)
{
	return set_string(p, &p->c->restore, value);
}

static int opt_memory(const struct parser *p, const char *value)
{
	return set_size(p, "memory", value, MEMORY_MIN, VM_MEMORY_MAX, &p->c->memory_bytes);
}

static int opt_hotplug(const struct parser *p, const char *value)
{
	return set_size(p, "hotplug", value, 0, VM_MEMORY_MAX, &p->c->hotplug_bytes);
}

static int opt_cpus(const struct parser *p, const char *value)
{
	u64 n;

	if (parse_u64(value, 1, VM_VCPUS_MAX, &n) < 0)
		return wrong(p, "--cpus %s: give a number from 1 to %d", value, VM_VCPUS_MAX);
	p->c->cpus = (u32)n;
	return 0;
}

static int opt_name(const struct parser *p, const char *value)
{
	size_t len = strlen(value);

	if (len == 0 || len > VM_NAME_MAX)
		return wrong(p, "--name: give 1 to %d characters", VM_NAME_MAX);
	for (size_t i = 0; i < len; i++) {
		if ((u8)value[i] < ' ' || value[i] == 0x7f)
			return wrong(p, "--name: it has a control character in it");
	}
	return set_string(p, &p->c->name, value);
}

/* 8-4-4-4-12 hex digits. */
static bool is_uuid(const char *s)
{
	for (int i = 0; i < 36; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? s[i] != '-' : !s[i] || !strchr("0123456789abcdefABCDEF", s[i]))
			return false;
	}
	return s[36] == '\0';
}

static int opt_uuid(const struct parser *p, const char *value)
{
	if (!is_uuid(value))
		return wrong(p, "--uuid %s: give one such as 123e4567-e89b-12d3-a456-426614174000",
			     value);
	return set_string(p, &p->c->uuid, value);
}

/* Splits "key=value,key,..." in place. NULL at the end; *ret_value NULL where there is no '='. */
static const char *next_key(char **rest, const char **ret_value)
{
	char *key = strsep(rest, ","), *eq;

	if (!key)
		return NULL;
	eq = strchr(key, '=');
	if (eq)
		*eq++ = '\0';
	*ret_value = eq;
	return key;
}

static int parse_disk(const struct parser *p, struct disk_config *d, char *text)
{
	const char *key, *value;
	int r = 0;

	while (r == 0 && (key = next_key(&text, &value))) {
		if (strcmp(key, "path") == 0 && value && *value)
			r = set_string(p, &d->path, value);
		else if (strcmp(key, "overlay") == 0 && value && *value)
			r = set_string(p, &d->overlay, value);
		else if (strcmp(key, "readonly") == 0 && !value)
			d->readonly = true;
		else if (strcmp(key, "direct") == 0 && !value)
			d->direct = true;
		else
			r = wrong(p,
				  "--disk: \"%s\" is not one of path=FILE, readonly, direct, "
				  "overlay=FILE",
				  key);
	}
	if (r == 0 && !d->path)
		r = wrong(p, "--disk: give path=FILE");
	if (r == 0 && d->readonly && d->overlay)
		r = wrong(p, "--disk: readonly and overlay exclude each other");
	return r;
}

static int opt_disk(const struct parser *p, const char *value)
{
	char *text;
	int r;

	if (p->c->nr_disks == VM_DISKS_MAX)
		return wrong(p, "--disk: more than %d", VM_DISKS_MAX);
	text = strdup(value);
	if (!text)
		return wrong(p, "out of memory");
	r = parse_disk(p, &p->c->disks[p->c->nr_disks++], text);
	free(text);
	return r;
}

static int parse_mac(const char *s, u8 mac[6])
{
	unsigned int m[6];
	int end = 0;

	if (sscanf(s, "%2x:%2x:%2x:%2x:%2x:%2x%n", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5],
		   &end) != 6 ||
	    s[end] != '\0' || (m[0] & 1))
		return -EINVAL;
	for (int i = 0; i < 6; i++)
		mac[i] = (u8)m[i];
	return 0;
}

static int parse_net(const struct parser *p, struct net_config *n, char *text)
{
	const char *key, *value;
	int r = 0;

	while (r == 0 && (key = next_key(&text, &value))) {
		if (strcmp(key, "tap") == 0 && value && *value) {
			r = set_string(p, &n->tap, value);
		} else if (strcmp(key, "passt") == 0 && value && *value) {
			r = set_string(p, &n->passt, value);
		} else if (strcmp(key, "mac") == 0 && value) {
			n->has_mac = true;
			if (parse_mac(value, n->mac) < 0)
				r = wrong(p,
					  "--net: mac=%s is no address of one card, such as "
					  "02:00:00:00:00:01",
					  value);
		} else {
			r = wrong(
				p,
				"--net: \"%s\" is not one of tap=INTERFACE, passt=SOCKET, mac=ADDRESS",
				key);
		}
	}
	if (r == 0 && !n->tap == !n->passt)
		r = wrong(p, "--net: give tap=INTERFACE (ip tuntap add mode tap INTERFACE) or "
			     "passt=SOCKET");
	return r;
}

static int opt_net(const struct parser *p, const char *value)
{
	char *text;
	int r;

	if (p->c->nr_nets == VM_NETS_MAX)
		return wrong(p, "--net: more than %d", VM_NETS_MAX);
	text = strdup(value);
	if (!text)
		return wrong(p, "out of memory");
	r = parse_net(p, &p->c->nets[p->c->nr_nets++], text);
	free(text);
	return r;
}

static int opt_qmp(const struct parser *p, const char *value)
{
	return set_string(p, &p->c->qmp, value);
}

static int opt_agent_socket(const struct parser *p, const char *value)
{
	return set_string(p, &p->c->agent_socket, value);
}

#define FLAG(name) offsetof(struct vm_config, name)

static const struct option_row {
	const char *name;
	int (*set)(const struct parser *p, const char *value); /* NULL: a flag, at ... */
	size_t flag;
} rows[] = {
	{ "kernel", opt_kernel, 0 },
	{ "initrd", opt_initrd, 0 },
	{ "cmdline", opt_cmdline, 0 },
	{ "flat", opt_flat, 0 },
	{ "restore", opt_restore, 0 },
	{ "memory", opt_memory, 0 },
	{ "hotplug", opt_hotplug, 0 },
	{ "cpus", opt_cpus, 0 },
	{ "name", opt_name, 0 },
	{ "uuid", opt_uuid, 0 },
	{ "disk", opt_disk, 0 },
	{ "net", opt_net, 0 },
	{ "qmp", opt_qmp, 0 },
	{ "agent-socket", opt_agent_socket, 0 },
	{ "balloon", NULL, FLAG(balloon) },
	{ "rng", NULL, FLAG(rng) },
	{ "paused", NULL, FLAG(paused) },
	{ "no-reboot", NULL, FLAG(no_reboot) },
	{ "no-agent", NULL, FLAG(no_agent) },
	{ "no-sandbox", NULL, FLAG(no_sandbox) },
};

enum {
	VAL_HELP = ARRAY_SIZE(rows),
	VAL_VERSION,
	NR_VALS
};

static int set_defaults(const struct parser *p)
{
	struct vm_config *c = p->c;
	char name[VM_NAME_MAX];
	int r = 0;

	if (!c->cmdline)
		r = set_string(p, &c->cmdline, "console=ttyS0");
	snprintf(name, sizeof(name), "ballast-%d", (int)getpid());
	if (r == 0 && !c->name)
		r = set_string(p, &c->name, name);
	/* A snapshot has its own. */
	if (!c->memory_bytes && !c->restore)
		c->memory_bytes = MEMORY_DEFAULT;
	if (!c->cpus && !c->restore)
		c->cpus = 1;
	return r;
}

static int check_whole(const struct parser *p)
{
	const struct vm_config *c = p->c;

	if (!c->kernel && !c->flat && !c->restore)
		return wrong(p, "nothing to run: give --kernel IMAGE or --restore DIR");
	if (c->kernel && c->flat)
		return wrong(p, "--kernel and --flat exclude each other");
	if (c->initrd && !c->kernel)
		return wrong(p, "--initrd needs --kernel");
	if (c->paused && !c->qmp)
		return wrong(p, "--paused needs --qmp PATH, by which it can be continued");
	return 0;
}

static enum options_result parse(int argc, char **argv, const struct parser *p,
				 const char **ret_text)
{
	struct option longs[NR_VALS + 1] = { 0 };
	int val, r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		longs[i] = (struct option){ rows[i].name,
					    rows[i].set ? required_argument : no_argument, NULL,
					    (int)i };
	longs[VAL_HELP] = (struct option){ "help", no_argument, NULL, VAL_HELP };
	longs[VAL_VERSION] = (struct option){ "version", no_argument, NULL, VAL_VERSION };
	opterr = 0;
	optind = 0;
	while (r == 0 && (val = getopt_long(argc, argv, ":", longs, NULL)) != -1) {
		if (val == VAL_HELP || val == VAL_VERSION) {
			*ret_text = val == VAL_HELP ? usage : version;
			return OPTIONS_TEXT;
		}
		if (val == ':')
			r = wrong(p, "%s needs a value (--help)", argv[optind - 1]);
		else if (val == '?')
			r = wrong(p, "%s: no such option, or one that takes no value (--help)",
				  argv[optind - 1]);
		else if (rows[val].set)
			r = rows[val].set(p, optarg);
		else
			*((bool *)((char *)p->c + rows[val].flag)) = true;
	}
	if (r == 0 && optind < argc)
		r = wrong(p, "\"%s\" is not an option (--help)", argv[optind]);
	if (r == 0)
		r = check_whole(p);
	if (r == 0)
		r = set_defaults(p);
	return r == 0 ? OPTIONS_RUN : OPTIONS_WRONG;
}

enum options_result options_parse(int argc, char **argv, struct vm_config *ret,
				  char error[OPTIONS_ERROR_MAX], const char **ret_text)
{
	struct parser p = { ret, error };
	enum options_result result;

	memset(ret, 0, sizeof(*ret));
	result = parse(argc, argv, &p, ret_text);
	if (result != OPTIONS_RUN)
		vm_config_free(ret);
	return result;
}

void vm_config_free(struct vm_config *c)
{
	for (u32 i = 0; i < c->nr_disks; i++) {
		free(c->disks[i].path);
		free(c->disks[i].overlay);
	}
	for (u32 i = 0; i < c->nr_nets; i++) {
		free(c->nets[i].tap);
		free(c->nets[i].passt);
	}
	free(c->kernel);
	free(c->initrd);
	free(c->cmdline);
	free(c->flat);
	free(c->restore);
	free(c->name);
	free(c->uuid);
	free(c->qmp);
	free(c->agent_socket);
	memset(c, 0, sizeof(*c));
}
