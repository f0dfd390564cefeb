/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "vmm/state.h"

static struct state_writer w;

static void set_up(void)
{
	memset(&w, 0, sizeof(w));
	cr_assert_eq(state_put(&w, "one", 0, "abc", 3), 0);
	cr_assert_eq(state_put(&w, "one", 1, "defg", 4), 0);
	cr_assert_eq(state_put(&w, "empty", 7, NULL, 0), 0);
	cr_assert_eq(state_put(&w, "fifteen-letters", 0, "12345678", 8), 0);
}

static void tear_down(void)
{
	state_writer_free(&w);
}

static u8 *copy(size_t bytes)
{
	u8 *data = malloc(bytes + 1);

	memcpy(data, w.data, bytes);
	return data;
}

Test(vmm_state, what_goes_in_comes_out, .init = set_up, .fini = tear_down)
{
	struct state_reader r;
	char buf[8];
	size_t n;

	cr_assert_eq(state_reader_init(&r, copy(w.bytes), w.bytes), 0);
	cr_assert_eq(state_get_exact(&r, "one", 1, buf, 4), 0);
	cr_assert_eq(memcmp(buf, "defg", 4), 0);
	cr_assert_eq(memcmp(state_get(&r, "one", 0, &n), "abc", 3), 0);
	cr_assert_eq(n, 3);
	cr_assert_not_null(state_get(&r, "empty", 7, &n));
	cr_assert_eq(n, 0);
	cr_assert_not_null(state_get(&r, "fifteen-letters", 0, &n));
	cr_assert_null(state_get(&r, "one", 2, &n));
	cr_assert_null(state_get(&r, "on", 0, &n));
	cr_assert_eq(state_get_exact(&r, "two", 0, buf, 4), -ENOENT);
	cr_assert_eq(state_get_exact(&r, "one", 1, buf, 5), -EBADMSG);
	state_reader_free(&r);
}

Test(vmm_state, refuses_what_it_could_not_give_back, .init = set_up, .fini = tear_down)
{
	static u8 big[STATE_RECORD_MAX + 1];

	cr_assert_eq(state_put(&w, "one", 0, "again", 5), -EINVAL);
	cr_assert_eq(state_put(&w, "sixteen-letters-", 0, "x", 1), -EINVAL);
	cr_assert_eq(state_put(&w, "big", 0, big, sizeof(big)), -EINVAL);
	cr_assert_eq(state_put(&w, "big", 0, big, sizeof(big) - 1), 0);
}

/* Every length but the whole one, and every byte of the framing changed. */
Test(vmm_state, damaged_files, .init = set_up, .fini = tear_down)
{
	struct state_reader r;

	for (size_t n = 0; n < w.bytes; n++)
		cr_assert_eq(state_reader_init(&r, copy(n), n), -EBADMSG, "%zu bytes", n);
	for (size_t i = 0; i < 16; i++) {
		u8 *data = copy(w.bytes);

		data[i] ^= 0xff;
		cr_assert_lt(state_reader_init(&r, data, w.bytes), 0, "byte %zu", i);
	}
	for (size_t i = 16; i < w.bytes; i++) {
		for (int bit = 0; bit < 8; bit++) {
			u8 *data = copy(w.bytes);
			size_t n;

			data[i] ^= (u8)(1 << bit);
			if (state_reader_init(&r, data, w.bytes) < 0)
				continue;
			/* Accepted: then all that is found lies inside. */
			for (u32 instance = 0; instance < 8; instance++) {
				const u8 *p = state_get(&r, "one", instance, &n);

				if (p)
					cr_assert_leq(p + n, r.data + r.bytes);
			}
			state_reader_free(&r);
		}
	}
}

Test(vmm_state, files, .init = set_up, .fini = tear_down)
{
	char dir[] = "/tmp/ballast-state.XXXXXX";
	struct state_reader r;
	size_t n;
	int fd;

	cr_assert_not_null(mkdtemp(dir));
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cr_assert_eq(state_writer_save(&w, fd, "state"), 0);
	cr_assert_eq(state_writer_save(&w, fd, "state"), -EEXIST);
	cr_assert_eq(state_reader_open(&r, fd, "state"), 0);
	cr_assert_not_null(state_get(&r, "one", 1, &n));
	state_reader_free(&r);
	cr_assert_eq(state_reader_open(&r, fd, "none"), -ENOENT);
	cr_assert_eq(state_reader_open(&r, fd, "."), -EBADMSG);
	unlinkat(fd, "state", 0);
	close(fd);
	rmdir(dir);
}
