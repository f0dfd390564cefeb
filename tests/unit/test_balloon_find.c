/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include "balloon/qmp_find.h"

/* @line: arguments between blanks. */
static enum qmp_find_result find(const char *line, char *path)
{
	size_t n = strlen(line) + 1;
	char *args = malloc(n); /* ends where it ends */
	enum qmp_find_result r;

	cr_assert(args);
	for (size_t i = 0; i < n; i++)
		args[i] = line[i] == ' ' ? '\0' : line[i];
	path[0] = '\0';
	r = qmp_find(args, n, path);
	free(args);
	return r;
}

Test(balloon_find, command_lines)
{
	static const struct {
		const char *line;
		enum qmp_find_result result;
		const char *path;
	} cases[] = {
		{ "qemu -qmp unix:/run/a.qmp,server=on,wait=off", QMP_FIND_FOUND, "/run/a.qmp" },
		{ "qemu -qmp unix:/run/a.qmp,server,nowait -m 5", QMP_FIND_FOUND, "/run/a.qmp" },
		{ "qemu --qmp unix:a.qmp,server", QMP_FIND_FOUND, "a.qmp" },
		{ "qemu -enable-kvm -qmp-pretty unix:/p,server", QMP_FIND_FOUND, "/p" },
		{ "qemu -qmp unix:/with,,comma,server=on", QMP_FIND_FOUND, "/with,comma" },
		{ "qemu -chardev socket,id=q,path=/run/q,server=on,wait=off -mon "
		  "chardev=q,mode=control",
		  QMP_FIND_FOUND, "/run/q" },
		{ "qemu -mon q,mode=control,pretty=on -chardev socket,path=/run/q,server,id=q",
		  QMP_FIND_FOUND, "/run/q" },
		{ "qemu -chardev socket,id=q,path=/q,server=on -qmp chardev:q", QMP_FIND_FOUND,
		  "/q" },
		/* The first; or the one that is meant for us. */
		{ "qemu -qmp unix:/1,server -qmp unix:/2,server", QMP_FIND_FOUND, "/1" },
		{ "qemu -qmp unix:/1,server -qmp unix:/ballast-2,server -qmp unix:/ballast-3,server",
		  QMP_FIND_FOUND, "/ballast-2" },
		{ "qemu -qmp unix:/1,server -chardev socket,id=ballast,path=/2,server=on -mon "
		  "chardev=ballast,mode=control",
		  QMP_FIND_FOUND, "/2" },
		/* No monitor, or one for people. */
		{ "qemu -m 5 -kernel -qmp", QMP_FIND_NONE, "" },
		{ "qemu", QMP_FIND_NONE, "" },
		{ "qemu -monitor unix:/hmp,server", QMP_FIND_NONE, "" },
		{ "qemu -chardev socket,id=q,path=/q,server=on -mon chardev=q,mode=readline",
		  QMP_FIND_NONE, "" },
		{ "qemu -chardev socket,id=q,path=/q,server=on -mon chardev=q", QMP_FIND_NONE, "" },
		{ "qemu -name -qmp -append qmp=unix:/x,server", QMP_FIND_NONE, "" },
		/* Monitors that nobody can connect to. */
		{ "qemu -qmp stdio", QMP_FIND_OTHER, "" },
		{ "qemu -qmp tcp:127.0.0.1:4444,server=on", QMP_FIND_OTHER, "" },
		{ "qemu -qmp unix:/run/a.qmp", QMP_FIND_OTHER, "" },
		{ "qemu -qmp unix:/run/a.qmp,server=off", QMP_FIND_OTHER, "" },
		{ "qemu -qmp unix:/a,server=on,abstract=on", QMP_FIND_OTHER, "" },
		{ "qemu -qmp chardev:none", QMP_FIND_OTHER, "" },
		{ "qemu -chardev pty,id=q -mon chardev=q,mode=control", QMP_FIND_OTHER, "" },
		{ "qemu -chardev socket,id=q,host=h,port=5,server=on -mon chardev=q,mode=control",
		  QMP_FIND_OTHER, "" },
		/* Others' monitors. */
		{ "qemu -chardev socket,id=charmonitor,fd=31,server=on,wait=off -mon "
		  "chardev=charmonitor,id=monitor,mode=control",
		  QMP_FIND_FOREIGN, "" },
		{ "qemu -chardev socket,id=m,path=/var/lib/libvirt/qemu/domain-1-a/monitor.sock,"
		  "server=on -mon chardev=m,mode=control",
		  QMP_FIND_FOREIGN, "" },
		{ "qemu -chardev socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off "
		  "-mon chardev=qmp,mode=control -chardev "
		  "socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5 -mon "
		  "chardev=qmp-event,mode=control",
		  QMP_FIND_FOREIGN, "" },
		/* Theirs and one more. */
		{ "qemu -chardev socket,id=charmonitor,fd=31,server=on -mon "
		  "chardev=charmonitor,mode=control -qmp unix:/run/second,server=on",
		  QMP_FIND_FOUND, "/run/second" },
		{ "qemu -qmp unix:/var/lib/libvirt/qemu/ballast/a.sock,server", QMP_FIND_FOUND,
		  "/var/lib/libvirt/qemu/ballast/a.sock" },
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		char path[QMP_FIND_PATH_MAX];

		cr_expect_eq(find(cases[i].line, path), cases[i].result, "%s", cases[i].line);
		cr_expect_str_eq(path, cases[i].path, "%s", cases[i].line);
	}
}

Test(balloon_find, what_does_not_fit)
{
	char line[1024], path[QMP_FIND_PATH_MAX];

	/* A path that is too long is none, and not another one. */
	memset(line, 'x', sizeof(line));
	memcpy(line, "qemu -qmp unix:/", 16);
	strcpy(line + 16 + 400, ",server=on");
	cr_expect_eq(find(line, path), QMP_FIND_OTHER);
	strcpy(line + 16 + 200, ",server=on");
	cr_expect_eq(find(line, path), QMP_FIND_FOUND);
	cr_expect_eq(strlen(path), 201);
	/* The end of the command line was cut. */
	cr_expect_eq(qmp_find("qemu\0-qmp\0unix:/a,server", 24, path), QMP_FIND_NONE);
	cr_expect_eq(qmp_find("", 0, path), QMP_FIND_NONE);
	cr_expect_eq(qmp_find("\0\0\0", 3, path), QMP_FIND_NONE);
}

/* Any bytes at all; under a sanitizer this finds what reads beyond. */
Test(balloon_find, any_bytes)
{
	static const char *const words[] = {
		"-qmp",		"-mon",	    "-chardev", "unix:",  "socket", ",",    ",,",
		"id=",		"q",	    "path=/p",	"server", "=on",    "fd=3", "chardev=",
		"mode=control", "chardev:", "",		"\0",	  "-"
	};
	u64 x = 1;

	for (u32 i = 0; i < 20000; i++) {
		char args[256], path[QMP_FIND_PATH_MAX];
		size_t n = 0;

		while (n < 200) {
			x = x * 6364136223846793005ULL + 1442695040888963407ULL;
			const char *w = words[(x >> 33) % ARRAY_SIZE(words)];

			memcpy(args + n, w, strlen(w));
			n += strlen(w);
			if (x & (1ULL << 60))
				args[n++] = '\0';
			if ((x >> 40) % 40 == 0)
				break;
		}
		char *copy = malloc(n + 1);

		memcpy(copy, args, n);
		if (qmp_find(copy, n, path) == QMP_FIND_FOUND)
			cr_assert(*path && strlen(path) < sizeof(path));
		free(copy);
	}
}
