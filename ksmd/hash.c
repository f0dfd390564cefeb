/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <sys/random.h>
#include "ksmd/hash.h"

u8 page_hash_secret[XXH3_SECRET_SIZE_MIN];

int page_hash_init(void)
{
	ssize_t n = getrandom(page_hash_secret, sizeof(page_hash_secret), 0);

	return n == (ssize_t)sizeof(page_hash_secret) ? 0 : n < 0 ? -errno : -EIO;
}
