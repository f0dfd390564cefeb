/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include "balloon/qmp_find.h"

#define ID_MAX	     64
#define CHARDEVS_MAX 64

struct socket {
	char id[ID_MAX];
	char path[QMP_FIND_PATH_MAX]; /* "": not a UNIX socket that QEMU listens on */
	bool foreign;
};

struct finder {
	struct socket *chardevs; /* CHARDEVS_MAX: more than any VM has */
	u32 nr_chardevs;
	struct socket best;
	bool found, foreign, other;
};

static const char *const result_texts[] = {
	[QMP_FIND_FOUND] = "found",
	[QMP_FIND_NONE] = "no QMP monitor is on its command line",
	[QMP_FIND_FOREIGN] = "its QMP monitor belongs to libvirt or another manager: give it a "
			     "second one, or set qmp = PATH",
	[QMP_FIND_OTHER] = "its QMP monitor is not a UNIX socket with a path",
};

const char *qmp_find_text(enum qmp_find_result result)
{
	return result_texts[result];
}

bool qmp_find_is_foreign(const char *path)
{
	return strstr(path, "/libvirt/") || strstr(path, "/qemu-server/");
}

/* The next part of "a,b=c,,d": up to a single comma, doubled ones being one of the text. Cut if
 * longer than @size; false at the end. */
static bool next_part(const char **at, char *part, size_t size)
{
	const char *s = *at;
	size_t n = 0;

	if (!*s)
		return false;
	for (; *s; s++) {
		if (*s == ',' && s[1] != ',')
			break;
		if (*s == ',')
			s++;
		if (n + 1 < size)
			part[n++] = *s;
	}
	part[n] = '\0';
	*at = *s ? s + 1 : s;
	return true;
}

/* The value of "key=value", or NULL. */
static const char *value_of(const char *part, const char *key)
{
	size_t n = strlen(key);

	return strncmp(part, key, n) == 0 && part[n] == '=' ? part + n + 1 : NULL;
}

static bool is_on(const char *value)
{
	return strcmp(value, "on") == 0 || strcmp(value, "yes") == 0 || strcmp(value, "true") == 0;
}

static void copy(char *dst, size_t size, const char *src)
{
	size_t n = strnlen(src, size - 1);

	memcpy(dst, src, n);
	dst[n] = '\0';
}

/* The parts after the kind: common to "-chardev socket,..." and "-qmp unix:PATH,...". */
static void take_socket_parts(struct socket *s, const char *at)
{
	char part[QMP_FIND_PATH_MAX + 16];
	bool server = false, abstract = false;
	const char *v;

	while (next_part(&at, part, sizeof(part))) {
		if ((v = value_of(part, "id")))
			copy(s->id, sizeof(s->id), v);
		else if ((v = value_of(part, "path")))
			copy(s->path, sizeof(s->path), v);
		else if ((v = value_of(part, "server")))
			server = is_on(v);
		else if (strcmp(part, "server") == 0)
			server = true;
		else if (strcmp(part, "abstract") == 0 ||
			 ((v = value_of(part, "abstract")) && is_on(v)))
			abstract = true;
		else if (value_of(part, "fd")) /* made by whoever started QEMU */
			s->foreign = true;
	}
	/* One that was cut is not the one that was meant. */
	if (!server || abstract || strlen(s->path) == sizeof(s->path) - 1)
		s->path[0] = '\0';
	if (qmp_find_is_foreign(s->path))
		s->foreign = true;
}

static void take_chardev(struct finder *f, const char *arg)
{
	struct socket s = { 0 };
	char kind[32];

	if (f->nr_chardevs == CHARDEVS_MAX || !next_part(&arg, kind, sizeof(kind)))
		return;
	if (strcmp(kind, "socket") == 0 || strcmp(kind, "backend=socket") == 0) {
		take_socket_parts(&s, arg);
	} else { /* all that matters is that it is not one */
		char part[QMP_FIND_PATH_MAX];
		const char *v;

		while (next_part(&arg, part, sizeof(part)))
			if ((v = value_of(part, "id")))
				copy(s.id, sizeof(s.id), v);
	}
	f->chardevs[f->nr_chardevs++] = s;
}

static bool is_ours(const struct socket *s)
{
	return strstr(s->path, "ballast") || strstr(s->id, "ballast");
}

static void take_monitor(struct finder *f, const struct socket *s)
{
	if (s->foreign && !is_ours(s)) {
		f->foreign = true;
	} else if (!s->path[0]) {
		f->other = true;
	} else if (!f->found || (is_ours(s) && !is_ours(&f->best))) {
		f->best = *s;
		f->found = true;
	}
}

static void take_chardev_monitor(struct finder *f, const char *id)
{
	for (u32 i = 0; i < f->nr_chardevs; i++) {
		if (*id && strcmp(f->chardevs[i].id, id) == 0) {
			take_monitor(f, &f->chardevs[i]);
			return;
		}
	}
	f->other = true;
}

static void take_qmp(struct finder *f, const char *arg)
{
	struct socket s = { 0 };
	char path[QMP_FIND_PATH_MAX + 16];

	if (strncmp(arg, "chardev:", 8) == 0) {
		take_chardev_monitor(f, arg + 8);
		return;
	}
	if (strncmp(arg, "unix:", 5) == 0) {
		arg += 5;
		if (next_part(&arg, path, sizeof(path))) {
			copy(s.path, sizeof(s.path), path);
			take_socket_parts(&s, arg);
		}
	}
	take_monitor(f, &s);
}

static void take_mon(struct finder *f, const char *arg)
{
	char part[ID_MAX + 16], id[ID_MAX] = "";
	bool control = false, first = true;
	const char *v;

	while (next_part(&arg, part, sizeof(part))) {
		if ((v = value_of(part, "chardev")))
			copy(id, sizeof(id), v);
		else if ((v = value_of(part, "mode")))
			control = strcmp(v, "control") == 0;
		else if (first && !strchr(part, '='))
			copy(id, sizeof(id), part);
		first = false;
	}
	if (control)
		take_chardev_monitor(f, id);
}

/* Each option with its argument. A chardev may stand after the monitor that uses it: two passes. */
static void walk(struct finder *f, const char *args, size_t len, bool monitors)
{
	const char *option = NULL;

	for (size_t at = 0; at < len;) {
		const char *arg = args + at;
		size_t n = strnlen(arg, len - at);

		if (n == len - at) /* no NUL: the end of it is missing */
			return;
		at += n + 1;
		if (!option) {
			if (arg[0] == '-')
				option = arg + (arg[1] == '-' ? 2 : 1);
			continue;
		}
		/* Options without an argument are followed by the next option. */
		if (arg[0] == '-') {
			option = arg + (arg[1] == '-' ? 2 : 1);
			continue;
		}
		if (!monitors && strcmp(option, "chardev") == 0)
			take_chardev(f, arg);
		else if (monitors && strcmp(option, "mon") == 0)
			take_mon(f, arg);
		else if (monitors &&
			 (strcmp(option, "qmp") == 0 || strcmp(option, "qmp-pretty") == 0))
			take_qmp(f, arg);
		option = NULL;
	}
}

enum qmp_find_result qmp_find(const char *args, size_t len, char path[QMP_FIND_PATH_MAX])
{
	struct finder f = { .chardevs = calloc(CHARDEVS_MAX, sizeof(struct socket)) };

	if (!f.chardevs)
		return QMP_FIND_NONE;
	walk(&f, args, len, false);
	walk(&f, args, len, true);
	free(f.chardevs);
	if (f.found) {
		memcpy(path, f.best.path, QMP_FIND_PATH_MAX);
		return QMP_FIND_FOUND;
	}
	return f.foreign ? QMP_FIND_FOREIGN : f.other ? QMP_FIND_OTHER : QMP_FIND_NONE;
}
