/* SPDX-License-Identifier: MIT */
/*
 * Reading the files. What keys there are, and what they may hold, is in config_table.c.
 *
 * inih splits a line into key and value and knows comments. Lines and section headers are read
 * here, because inih (as Debian builds it) does not say on which line a key stands, cuts section
 * names at 49 bytes and long lines anywhere, and does not tell when a section starts a second
 * time.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <ini.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "daemon/config_table.h"

/* A real configuration is a few KiB; the bound keeps --config /dev/zero from eating the host. */
#define FILE_BYTES_MAX	(1 << 20)
#define VM_SECTIONS_MAX 4096

/* Everything that reading one file needs to remember. Lines count from 1; 0 means not seen. */
struct loader {
	struct config *c;
	struct config_error *err;
	int result; /* 0, or the first error */
	const char *file;
	const char *next, *end; /* what is still unread of the file */
	u32 line;
	enum section section;
	u32 vm; /* index in c->vms, when in SEC_VM */
	u32 section_line[NR_SECTIONS];
	u32 key_line[CONFIG_NR_SETTINGS]; /* in the current section */
	u32 vm_line[VM_SECTIONS_MAX];
};

/* For error messages: control characters and bytes that are no ASCII as '?', cut where it gets
 * long. */
struct quoted {
	char text[48];
};

static struct quoted quote(const char *s)
{
	struct quoted q;
	size_t n = 0;

	for (; n < sizeof(q.text) - 4 && s[n] != '\0'; n++)
		q.text[n] = s[n] >= ' ' && s[n] < 0x7f ? s[n] : '?';
	memcpy(q.text + n, s[n] == '\0' ? "" : "...", s[n] == '\0' ? 1 : 4);
	return q;
}

static int set_error(struct config_error *err, int error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static int set_error(struct config_error *err, int error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	return error;
}

/* The first error counts; what follows it is often only its consequence. */
static int fail_line(struct loader *l, u32 line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static int fail_line(struct loader *l, u32 line, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	if (l->result < 0)
		return l->result;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	l->result = set_error(l->err, -EINVAL, "%s:%u: %s", l->file, line, text);
	return l->result;
}
#define fail(l, ...) fail_line(l, (l)->line, __VA_ARGS__)

/* Edits that turn @a into @b, for "did you mean"; both are short. */
static u32 edit_distance(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b);
	u32 row[64];

	if (la >= ARRAY_SIZE(row) || lb >= ARRAY_SIZE(row))
		return UINT32_MAX;
	for (size_t j = 0; j <= lb; j++)
		row[j] = (u32)j;
	for (size_t i = 1; i <= la; i++) {
		u32 diagonal = row[0];

		row[0] = (u32)i;
		for (size_t j = 1; j <= lb; j++) {
			u32 same = diagonal + (tolower((u8)a[i - 1]) != tolower((u8)b[j - 1]));

			diagonal = row[j];
			row[j] = MIN(same, MIN(row[j], row[j - 1]) + 1);
		}
	}
	return row[lb];
}

/* A typing error changes a letter or two, not half of the word. */
static bool is_near(const char *a, const char *b)
{
	u32 d = edit_distance(a, b);

	return d <= 3 && d * 2 <= strlen(b);
}

static int fail_unknown_key(struct loader *l, const char *key)
{
	const char *name = config_section_names[l->section];
	char known[256] = "";
	size_t at = 0;

	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		if (config_settings[i].section == l->section &&
		    is_near(key, config_settings[i].key))
			return fail(l, "unknown key \"%s\" in [%s] (did you mean \"%s\"?)",
				    quote(key).text, name, config_settings[i].key);
	}
	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		if (strcmp(config_settings[i].key, key) == 0)
			return fail(l, "key \"%s\" does not belong in [%s] (it belongs in [%s])",
				    config_settings[i].key, name,
				    config_section_names[config_settings[i].section]);
	}
	for (size_t i = 0; i < CONFIG_NR_SETTINGS && at < sizeof(known); i++) {
		if (config_settings[i].section == l->section)
			at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s",
					       at ? ", " : "", config_settings[i].key);
	}
	return fail(l, "unknown key \"%s\" in [%s] (its keys: %s)", quote(key).text, name, known);
}

static int apply_key(struct loader *l, const char *key, const char *value)
{
	const struct setting *s = NULL;
	void *base = l->section == SEC_VM ? (void *)&l->c->vms[l->vm] : (void *)l->c;
	char range[96];
	size_t i;
	int r;

	if (l->section == SEC_NONE)
		return fail(l,
			    "key \"%s\" stands before the first section (put it under [daemon], "
			    "[metrics], [scan], [store], [policy] or [vm \"NAME\"])",
			    quote(key).text);
	for (i = 0; i < CONFIG_NR_SETTINGS && !s; i++) {
		if (config_settings[i].section == l->section &&
		    strcmp(config_settings[i].key, key) == 0)
			s = &config_settings[i];
	}
	if (!s)
		return fail_unknown_key(l, key);
	i = (size_t)(s - config_settings);
	if (l->key_line[i])
		return fail(
			l, "key \"%s\" is given twice in this section (first on line %u; keep one)",
			s->key, l->key_line[i]);
	l->key_line[i] = l->line;
	r = config_set(s, base, value);
	if (r == -ERANGE) {
		config_range_text(s, range, sizeof(range));
		return fail(l, "%s = %s is out of range (accepted: %s)", s->key, quote(value).text,
			    range);
	}
	if (r < 0)
		return fail(l, "%s = \"%s\" is not %s", s->key, quote(value).text,
			    s->type->accepts);
	return 0;
}

/* Finds or appends the section of @glob and makes it the current one. */
static int enter_vm(struct loader *l, const char *glob, size_t len)
{
	struct config *c = l->c;
	struct config_vm *v;
	u32 i;

	if (len == 0 || len >= CONFIG_NAME_MAX)
		return fail(l, "the name in [vm \"NAME\"] is %s (1 to %d bytes)",
			    len ? "too long" : "empty", CONFIG_NAME_MAX - 1);
	for (i = 0; i < c->nr_vms; i++) {
		if (strlen(c->vms[i].glob) == len && memcmp(c->vms[i].glob, glob, len) == 0)
			break;
	}
	if (i < c->nr_vms && l->vm_line[i])
		return fail(l, "section [vm \"%s\"] is given twice (first on line %u; join them)",
			    quote(c->vms[i].glob).text, l->vm_line[i]);
	if (i == VM_SECTIONS_MAX)
		return fail(l, "more than %d [vm] sections (use patterns such as [vm \"web-*\"])",
			    VM_SECTIONS_MAX);
	if (i == c->nr_vms) {
		v = reallocarray(c->vms, c->nr_vms + 1, sizeof(*v));
		if (!v)
			return l->result = set_error(l->err, -ENOMEM, "%s:%u: out of memory",
						     l->file, l->line);
		c->vms = v;
		v = &c->vms[c->nr_vms++];
		*v = c->vm_default;
		memset(v->glob, 0, sizeof(v->glob));
		memcpy(v->glob, glob, len);
	}
	l->vm_line[i] = l->line;
	l->section = SEC_VM;
	l->vm = i;
	return 0;
}

static int enter_section(struct loader *l, const char *name)
{
	for (u32 i = 0; i < NR_SECTIONS; i++) {
		if (strcmp(config_section_names[i], name) != 0)
			continue;
		if (i == SEC_VM)
			return fail(
				l,
				"section [vm] names no VM (write [vm \"NAME\"] or [vm \"web-*\"])");
		if (l->section_line[i])
			return fail(l, "section [%s] is given twice (first on line %u; join them)",
				    name, l->section_line[i]);
		l->section_line[i] = l->line;
		l->section = (enum section)i;
		return 0;
	}
	for (u32 i = 0; i < NR_SECTIONS; i++) {
		if (is_near(name, config_section_names[i]))
			return fail(l, "unknown section [%s] (did you mean [%s]?)",
				    quote(name).text, config_section_names[i]);
	}
	return fail(l,
		    "unknown section [%s] (known: [daemon], [metrics], [scan], [store], "
		    "[vm \"NAME\"])",
		    quote(name).text);
}

/* @s begins with '[' and has no line end. A name in quotes may hold any byte but a quote. */
static int parse_header(struct loader *l, char *s)
{
	char *name = s + 1 + strspn(s + 1, " \t"), *glob = NULL, *end;
	size_t len = 0;

	end = name + strcspn(name, "]\"");
	if (*end == '"') {
		glob = end + 1;
		len = strcspn(glob, "\"");
		end = glob[len] ? glob + len + 1 + strspn(glob + len + 1, " \t") : glob + len;
	}
	if (*end != ']')
		return fail(l, "section header does not end (write [SECTION] or [vm \"NAME\"])");
	s = end + 1 + strspn(end + 1, " \t");
	if (*s != '\0' && *s != '#' && *s != ';')
		return fail(l, "text after the section header (put \"%s\" on a line of its own)",
			    quote(s).text);
	/* Cut the section's word out of the line: it ends at the quote or the bracket. */
	*(glob ? glob - 1 : end) = '\0';
	for (end = name + strlen(name); end > name && (end[-1] == ' ' || end[-1] == '\t');)
		*--end = '\0';
	memset(l->key_line, 0, sizeof(l->key_line));
	if (!glob)
		return enter_section(l, name);
	if (strcmp(name, config_section_names[SEC_VM]) != 0)
		return fail(l, "section [%s \"...\"] takes no name (only [vm \"NAME\"] does)",
			    quote(name).text);
	return enter_vm(l, glob, len);
}

/* inih's line reader: hands on the lines that hold a key, and empty ones for all others. */
static char *read_line(char *buf, int size, void *stream)
{
	struct loader *l = stream;
	const char *s = l->next, *end;
	size_t len;

	if (l->result < 0 || s == l->end)
		return NULL;
	end = memchr(s, '\n', (size_t)(l->end - s));
	l->next = end ? end + 1 : l->end;
	end = end ? end : l->end;
	l->line++;
	if (memchr(s, '\0', (size_t)(end - s))) {
		fail(l, "a NUL byte: this is not a text file");
		return NULL;
	}
	if (l->line == 1 && end - s >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0)
		s += 3; /* a byte order mark */
	while (s < end && isspace((u8)*s))
		s++;
	while (end > s && isspace((u8)end[-1]))
		end--;
	if (s == end || *s == '#' || *s == ';') /* of any length */
		return strcpy(buf, "\n");
	len = (size_t)(end - s);
	/* inih cuts a longer line silently; it wants room for CR, LF and NUL. */
	if (len > (size_t)size - 3) {
		fail(l, "line of %zu bytes is too long (at most %d)", len, size - 3);
		return NULL;
	}
	memcpy(buf, s, len);
	buf[len] = '\0';
	if (*buf == '[') {
		if (parse_header(l, buf) < 0)
			return NULL;
		strcpy(buf, "\n");
	}
	return buf;
}

static int handle_key(void *user, const char *section, const char *key, const char *value)
{
	struct loader *l = user;

	return apply_key(l, key, value ? value : "") == 0;
}

/* The whole file in memory, so that its size is bounded and a file that changes is read once. */
static int read_file(const char *path, char **ret, size_t *ret_len)
{
	/* O_NONBLOCK: opening a FIFO must not wait for its writer. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	size_t len = 0;
	struct stat st;
	char *buf = NULL;
	int r = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0) {
		r = -errno;
		goto out;
	}
	if (!S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode)) { /* /dev/null: "no settings" */
		r = S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
		goto out;
	}
	buf = malloc(FILE_BYTES_MAX + 1);
	if (!buf) {
		r = -ENOMEM;
		goto out;
	}
	while (len <= FILE_BYTES_MAX) {
		ssize_t n = read(fd, buf + len, FILE_BYTES_MAX + 1 - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			r = -errno;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	if (r == 0 && len > FILE_BYTES_MAX)
		r = -EFBIG;
	if (r < 0)
		goto out;
	*ret = buf;
	*ret_len = len;
	buf = NULL;
out:
	free(buf);
	close(fd);
	return r;
}

static int fail_file(struct config_error *err, const char *path, int error)
{
	static const struct {
		int error;
		const char *remedy;
	} remedies[] = {
		{ -ENOENT, "create it, or leave --config out to run on the defaults" },
		{ -EACCES, "run as root, or make it readable" },
		{ -EISDIR, "name the file, not its folder" },
		{ -EINVAL, "it is not a regular file" },
		{ -EFBIG, "a configuration has at most 1 MiB" },
	};
	const char *remedy = "";

	for (size_t i = 0; i < ARRAY_SIZE(remedies); i++) {
		if (remedies[i].error == error)
			remedy = remedies[i].remedy;
	}
	return set_error(err, error, "%s: cannot read: %s%s%s%s", path, strerror(-error),
			 *remedy ? " (" : "", remedy, *remedy ? ")" : "");
}

static int load_file(const char *path, bool must_exist, struct config *c, struct config_error *err)
{
	struct loader *l = NULL;
	char *text = NULL;
	size_t len = 0;
	int r;

	r = read_file(path, &text, &len);
	if (r == -ENOENT && !must_exist)
		return 0;
	if (r < 0)
		return fail_file(err, path, r);
	l = calloc(1, sizeof(*l));
	if (!l) {
		r = fail_file(err, path, -ENOMEM);
		goto out;
	}
	l->c = c;
	l->err = err;
	l->file = path;
	l->next = text;
	l->end = text + len;
	l->section = SEC_NONE;
	/* inih's settings are process-wide; nothing else in the daemon uses it. */
	ini_allow_multiline = false;
	ini_stop_on_first_error = true;
	ini_inline_comment_prefixes = (char *)";#";
	r = ini_parse_stream(read_line, l, handle_key, l);
	if (r > 0) /* the handler's own error, if there is one, came first and stays */
		fail_line(l, (u32)r, "neither KEY = VALUE nor [SECTION]");
	else if (r < 0 && l->result == 0)
		l->result = fail_file(err, path, -ENOMEM);
	r = l->result;
out:
	free(l);
	free(text);
	return r;
}

/* "*.conf", but no editor's lock or backup files such as ".#10-web.conf". */
static int is_drop_in(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return d->d_name[0] != '.' && n > 5 && strcmp(d->d_name + n - 5, ".conf") == 0;
}

/* By bytes: the order must not depend on the locale of whoever starts the daemon. */
static int compare_names(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int load_drop_ins(const char *path, struct config *c, struct config_error *err)
{
	const char *slash = strrchr(path, '/');
	struct dirent **names = NULL;
	char *dir = NULL, *file;
	int n = 0, r = 0;

	if (asprintf(&dir, "%.*sconf.d", slash ? (int)(slash - path + 1) : 0, path) < 0)
		return fail_file(err, path, -ENOMEM);
	n = scandir(dir, &names, is_drop_in, compare_names);
	if (n < 0) {
		r = errno == ENOENT ? 0 : fail_file(err, dir, -errno);
		goto out;
	}
	for (int i = 0; i < n && r == 0; i++) {
		if (asprintf(&file, "%s/%s", dir, names[i]->d_name) < 0) {
			r = fail_file(err, dir, -ENOMEM);
			break;
		}
		r = load_file(file, true, c, err);
		free(file);
	}
out:
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
	free(dir);
	return r;
}

/* What single values cannot show. */
static int check_together(const char *path, const struct config *c, struct config_error *err)
{
	if (c->policy_soft_permille <= c->policy_hard_permille ||
	    c->policy_hard_permille <= c->policy_low_permille)
		return set_error(
			err, -EINVAL,
			"%s: [policy] soft, hard and low are not in this order (each begins "
			"with less memory available than the one before: 6%%, 4%%, 2%%)",
			path);
	for (u32 i = 0; i < c->nr_vms; i++) {
		const struct config_vm *v = &c->vms[i];

		if (v->max_bytes && v->max_bytes < v->min_bytes)
			return set_error(err, -EINVAL,
					 "%s: [vm \"%s\"] max is less than min (%llu and %llu MiB; "
					 "raise the one or lower the other)",
					 path, quote(v->glob).text,
					 (unsigned long long)v->max_bytes >> 20,
					 (unsigned long long)v->min_bytes >> 20);
	}
	return 0;
}

int config_load(const char *path, bool must_exist, struct config *ret, struct config_error *err)
{
	struct config c = { 0 };
	int r;

	err->text[0] = '\0';
	config_set_defaults(&c);
	r = load_file(path, must_exist, &c, err);
	if (r == 0)
		r = load_drop_ins(path, &c, err);
	if (r == 0)
		r = check_together(path, &c, err);
	if (r < 0) {
		config_free(&c);
		return r;
	}
	config_derive_paths(&c);
	*ret = c;
	return 0;
}

void config_free(struct config *c)
{
	if (!c)
		return;
	free(c->vms);
	c->vms = NULL;
	c->nr_vms = 0;
}

static bool is_user(const char *user, uid_t uid)
{
	const struct passwd *pw;
	char *end;
	unsigned long n;

	if (strcmp(user, "any") == 0)
		return true;
	n = strtoul(user, &end, 10);
	if (*user && !*end)
		return n == uid;
	pw = getpwnam(user);
	return pw && pw->pw_uid == uid;
}

const struct config_vm *config_vm_match(const struct config *c, const char *name, const char *uuid,
					uid_t uid)
{
	for (u32 i = 0; i < c->nr_vms; i++) {
		const char *glob = c->vms[i].glob;

		if (!is_user(c->vms[i].user, uid))
			continue;
		if ((name && fnmatch(glob, name, 0) == 0) ||
		    (uuid && fnmatch(glob, uuid, FNM_CASEFOLD) == 0))
			return &c->vms[i];
	}
	return &c->vm_default;
}
