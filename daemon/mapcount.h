/* SPDX-License-Identifier: MIT */
/*
 * vm.max_map_count: how many mappings a process of this host may have. Sharing spends mappings (one
 * for each run of pages), so the daemon raises the limit while it runs and puts it back when it
 * stops.
 *
 * Rules:
 *
 *   i.   It is only ever raised. A host that allows as much as is wanted, or more, is left alone.
 *   ii.  What was there before is on disk (RUN_DIR/max_map_count) before the limit is raised: a
 *        daemon that is killed leaves the limit raised and the record, and the next one goes on
 *        from there.
 *   iii. It is put back only if it still holds what we wrote. Any other value is somebody else's.
 *   iv.  It is not put back under a VMM that has more mappings than the old limit leaves room for:
 *        that process could not start a thread any more. The record stays, and a later stop tries
 *        again.
 *
 * The decisions are pure; what touches files takes their paths. Return values: 0 or negative errno.
 */
#ifndef BALLAST_DAEMON_MAPCOUNT_H
#define BALLAST_DAEMON_MAPCOUNT_H

#include "common/types.h"

/* The kernel's default (include/linux/mm.h), where the limit cannot be read. */
#define MAPCOUNT_KERNEL_DEFAULT 65530

/* What we did to the limit; @raised 0: nothing. */
struct map_record {
	u64 original, raised;
};

/* Of a limit, what sharing may use: the rest is the VMM's own. */
u64 mapcount_budget(u64 limit);

/* At a start or reload. @wanted 0: leave the limit alone. Returns the value to write (0: none);
 * *record, what is on disk, becomes what is to be there. */
u64 mapcount_at_start(u64 wanted, u64 now, struct map_record *record);

enum map_stop {
	MAP_STOP_NOTHING, /* we did nothing to it */
	MAP_STOP_RESTORE,
	MAP_STOP_FOREIGN, /* somebody else has set it since: it is theirs, and our record is void */
	MAP_STOP_IN_USE,  /* rule iv: it stays raised, and the record too */
};
/* @most: mappings of the VMM that has most. */
enum map_stop mapcount_at_stop(u64 now, const struct map_record *record, u64 most);

int mapcount_read(const char *path, u64 *ret);
int mapcount_write(const char *path, u64 value);
/* No file, or one that no daemon wrote: 0 and an empty record. */
int mapcount_record_load(const char *path, struct map_record *ret);
int mapcount_record_save(const char *path, const struct map_record *record);

/* Counts the lines of a /proc/PID/maps, a part at a time: a VMM may have a million. */
struct map_counter {
	int fd;
	u64 lines;
};
int map_counter_start(struct map_counter *c, const char *path);
/* Reads about *@bytes, less what it has read. 1: that was all, @c->lines is the number; 0: there is
 * more. The counter is closed unless 0 is returned. */
int map_counter_step(struct map_counter *c, u64 *bytes);
void map_counter_end(struct map_counter *c);

#endif
