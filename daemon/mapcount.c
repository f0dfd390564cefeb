/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "common/parse.h"
#include "daemon/mapcount.h"

/* For what the VMM maps itself: a QEMU has some hundreds, a thread's stack takes two. Also covers
 * the one request that an agent may still be at when the daemon stops. */
#define LEFT_TO_VMM 8192

u64 mapcount_budget(u64 limit)
{
	return limit > 2 * LEFT_TO_VMM ? limit - LEFT_TO_VMM : limit / 2;
}

u64 mapcount_at_start(u64 wanted, u64 now, struct map_record *record)
{
	/* A predecessor's record counts only while the limit is still what it made it. */
	if (record->raised != now)
		*record = (struct map_record){ 0 };
	if (wanted <= now)
		return 0;
	if (!record->raised)
		record->original = now;
	record->raised = wanted;
	return wanted;
}

enum map_stop mapcount_at_stop(u64 now, const struct map_record *record, u64 most)
{
	if (!record->raised)
		return MAP_STOP_NOTHING;
	if (now != record->raised)
		return MAP_STOP_FOREIGN;
	return most > mapcount_budget(record->original) ? MAP_STOP_IN_USE : MAP_STOP_RESTORE;
}

static int read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;
	int r = 0;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	if (n < 0)
		r = -errno;
	else
		buf[n] = '\0';
	close(fd);
	return r;
}

/* In one write(): /proc/sys takes no other. */
static int write_text(const char *path, int flags, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | flags, 0600);
	ssize_t n;
	int r = 0;

	if (fd < 0)
		return -errno;
	n = write(fd, text, strlen(text));
	if (n != (ssize_t)strlen(text))
		r = n < 0 ? -errno : -EIO;
	if (close(fd) < 0 && r == 0)
		r = -errno;
	return r;
}

int mapcount_read(const char *path, u64 *ret)
{
	char text[64];
	int r = read_text(path, text, sizeof(text));

	return r < 0 ? r : parse_u64(text, 1, UINT64_MAX, ret);
}

int mapcount_write(const char *path, u64 value)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64 "\n", value);
	return write_text(path, 0, text);
}

int mapcount_record_load(const char *path, struct map_record *ret)
{
	struct map_record rec = { 0 };
	char text[128];
	int r = read_text(path, text, sizeof(text));

	if (r < 0 && r != -ENOENT)
		return r;
	if (r < 0 ||
	    sscanf(text, "original %" SCNu64 " raised %" SCNu64, &rec.original, &rec.raised) != 2 ||
	    !rec.original || rec.original >= rec.raised)
		rec = (struct map_record){ 0 };
	*ret = rec;
	return 0;
}

int mapcount_record_save(const char *path, const struct map_record *record)
{
	char text[96], fresh[160];
	int r;

	if (!record->raised)
		return unlink(path) == 0 || errno == ENOENT ? 0 : -errno;
	snprintf(text, sizeof(text), "original %" PRIu64 " raised %" PRIu64 "\n", record->original,
		 record->raised);
	if ((size_t)snprintf(fresh, sizeof(fresh), "%s.new", path) >= sizeof(fresh))
		return -ENAMETOOLONG;
	r = write_text(fresh, O_CREAT | O_TRUNC, text);
	if (r == 0 && rename(fresh, path) < 0)
		r = -errno;
	return r;
}

int map_counter_start(struct map_counter *c, const char *path)
{
	c->lines = 0;
	c->fd = open(path, O_RDONLY | O_CLOEXEC);
	return c->fd < 0 ? -errno : 0;
}

int map_counter_step(struct map_counter *c, u64 *bytes)
{
	char buf[16384];
	int r;

	while (*bytes) {
		ssize_t n = read(c->fd, buf, sizeof(buf));

		if (n <= 0) {
			/* A process without any mapping has ended. */
			r = n < 0 ? -errno : c->lines ? 1 : -ESRCH;
			map_counter_end(c);
			return r;
		}
		for (const char *p = buf; (p = memchr(p, '\n', (size_t)(buf + n - p))); p++)
			c->lines++;
		*bytes -= MIN(*bytes, (u64)n);
	}
	return 0;
}

void map_counter_end(struct map_counter *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}
