/* SPDX-License-Identifier: MIT */
#include "daemon/json_make.h"

json_t *json_text(const char *s, size_t size)
{
	json_t *j = json_stringn(s, strnlen(s, size));
	char ascii[256] = "";

	if (j)
		return j;
	for (size_t i = 0; i < MIN(size, sizeof(ascii) - 1) && s[i]; i++)
		ascii[i] = (s[i] & 0x80) ? '?' : s[i];
	return json_string(ascii);
}
