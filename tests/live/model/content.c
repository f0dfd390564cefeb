// SPDX-License-Identifier: MIT
/* What pages hold, and how a page that holds something else is reported. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "tests/live/model/model.h"

/* Three of four contents can be compressed, to about an eighth; the others cannot at all. */
static u64 content_word(u32 content, u32 word)
{
	return content ? model_mix((u64)content << 16 | (content % 4 ? word % 64 : word)) : 0;
}

void model_fill(u64 *at, u32 content)
{
	for (u32 w = 0; w < PAGE_WORDS; w++)
		at[w] = content_word(content, w);
}

u32 model_dirty_word(struct model_page p)
{
	return (u32)(model_mix((u64)p.content << 32 | p.dirty) % PAGE_WORDS);
}

u64 model_dirty_value(struct model_page p)
{
	/* Odd, so that it is never 0 and a zero page with a dirty word is none any more. */
	return model_mix(~((u64)p.content << 32 | p.dirty)) | 1;
}

u64 model_word(struct model_page p, u32 word)
{
	return p.dirty && word == model_dirty_word(p) ? model_dirty_value(p)
						      : content_word(p.content, word);
}

u32 model_compare(const u64 *at, struct model_page p)
{
	u32 dirty = p.dirty ? model_dirty_word(p) : PAGE_WORDS, w;

	for (w = 0; w < PAGE_WORDS; w++) {
		u64 want = w == dirty ? model_dirty_value(p) : content_word(p.content, w);

		if (((const volatile u64 *)at)[w] != want)
			break;
	}
	return w;
}

void model_describe(const u64 *at, char *buf, size_t size)
{
	u64 page[PAGE_WORDS];

	memcpy(page, at, sizeof(page));
	/* Of two words, at most one is the dirty one. */
	for (u32 c = 0; c <= MODEL_COMMON; c++) {
		u32 wrong = 0;

		for (u32 w = 0; w < PAGE_WORDS; w++)
			wrong += page[w] != content_word(c, w);
		if (wrong < PAGE_WORDS / 2) {
			snprintf(buf, size, "content %u%s with %u words changed", c,
				 c ? "" : " (zeros)", wrong);
			return;
		}
	}
	snprintf(buf, size, "none of the common contents, words %016llx %016llx %016llx ...",
		 (unsigned long long)page[0], (unsigned long long)page[1],
		 (unsigned long long)page[2]);
}

void model_fail(struct model *m, const char *fmt, ...)
{
	va_list ap;

	if (atomic_exchange(&m->error.claimed, 1))
		return;
	va_start(ap, fmt);
	vsnprintf(m->error.text, sizeof(m->error.text), fmt, ap);
	va_end(ap);
	m->error.complete = 1;
}
