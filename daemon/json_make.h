/* SPDX-License-Identifier: MIT */
/* Making JSON of what the daemon knows. All take a failed allocation: NULL in, NULL or -1 out. */
#ifndef BALLAST_DAEMON_JSON_MAKE_H
#define BALLAST_DAEMON_JSON_MAKE_H

#include <jansson.h>
#include <string.h>
#include "common/types.h"

/* JSON text is UTF-8, but a VM's name is whatever its VMM said: other bytes become '?'. */
json_t *json_text(const char *s, size_t size);
#define JSON_TEXT(array) json_text(array, sizeof(array))

/* Takes over @value; 0 or -1, also when @value could not be made. */
static inline int json_put(json_t *object, const char *key, json_t *value)
{
	return json_object_set_new(object, key, value);
}

static inline json_t *json_u64(u64 value)
{
	return json_integer((json_int_t)MIN(value, (u64)INT64_MAX));
}

#endif
