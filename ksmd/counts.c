/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include "ksmd/counts.h"

struct far_counts {
	u32 spn;
	struct counts counts;
};

static bool is_far(const struct small_counts *m)
{
	return m->refs == COUNT_FAR;
}

static struct far_counts *find(const struct far_table *t, u32 spn)
{
	for (u32 i = 0; i < t->nr; i++)
		if (t->list[i].spn == spn)
			return &t->list[i];
	return NULL;
}

static struct far_counts *add(struct far_table *t, u32 spn)
{
	if (t->nr == t->cap) {
		u32 cap = t->cap ? t->cap * 2 : 8;
		struct far_counts *grown = realloc(t->list, cap * sizeof(*grown));

		if (!grown)
			return NULL;
		t->list = grown;
		t->cap = cap;
	}
	t->list[t->nr].spn = spn;
	return &t->list[t->nr++];
}

struct counts counts_get(const struct far_table *t, const struct small_counts *m, u32 spn)
{
	const struct far_counts *f;

	if (!is_far(m))
		return (struct counts){ m->refs, m->covers };
	f = find(t, spn);
	return f ? f->counts : (struct counts){ COUNT_FAR, COUNT_FAR };
}

void counts_set(struct far_table *t, struct small_counts *m, u32 spn, struct counts c)
{
	struct far_counts *f = is_far(m) ? find(t, spn) : NULL;

	if (is_far(m) && !f)
		return; /* there was no memory for it */
	if (c.refs >= COUNT_FAR || c.covers >= COUNT_FAR) {
		m->refs = m->covers = COUNT_FAR;
		if (!f)
			f = add(t, spn);
		if (f)
			f->counts = c;
		return;
	}
	if (f)
		*f = t->list[--t->nr];
	m->refs = (u16)c.refs;
	m->covers = (u16)c.covers;
}

void far_free(struct far_table *t)
{
	free(t->list);
	*t = (struct far_table){ 0 };
}

u64 far_bytes(const struct far_table *t)
{
	return t->cap * sizeof(t->list[0]);
}
