/* SPDX-License-Identifier: MIT */
/*
 * What the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput(); it links with
 * libFuzzer (make fuzz) or with replay.c (make check).
 */
#ifndef BALLAST_TESTS_FUZZ_H
#define BALLAST_TESTS_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/types.h"

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
/* Optional, called once. */
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* A property that does not hold. Never compiled out: it is what the target is for. */
#define MUST(cond)                                                                                \
	do {                                                                                      \
		if (!(cond)) {                                                                    \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #cond); \
			abort();                                                                  \
		}                                                                                 \
	} while (0)

/* Reads an input as a sequence of choices; when it has ended all choices are 0. */
struct input {
	const u8 *at, *end;
};

static inline size_t input_left(const struct input *in)
{
	return (size_t)(in->end - in->at);
}

static inline void input_bytes(struct input *in, void *dst, size_t n)
{
	size_t have = MIN(n, input_left(in));

	memset(dst, 0, n);
	if (have)
		memcpy(dst, in->at, have);
	in->at += have;
}

static inline u8 input_u8(struct input *in)
{
	u8 v;

	input_bytes(in, &v, sizeof(v));
	return v;
}

static inline u32 input_u32(struct input *in)
{
	u32 v;

	input_bytes(in, &v, sizeof(v));
	return v;
}

static inline u64 input_u64(struct input *in)
{
	u64 v;

	input_bytes(in, &v, sizeof(v));
	return v;
}

/* The descriptor that the next open() gets: the same before and after means that none leaked. */
static inline int lowest_free_fd(void)
{
	int fd = dup(STDERR_FILENO);

	MUST(fd >= 0);
	close(fd);
	return fd;
}

#endif
