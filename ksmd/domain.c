/* SPDX-License-Identifier: MIT */
/*
 * Sharing domains: each has a store and an index of its own, and nothing of one is ever compared
 * with the other's (invariant 5).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "ksmd/core.h"
#include "ksmd/hash.h"

static int domain_new(struct engine *e, const char *name, struct store *s, struct ksm_domain **ret)
{
	struct ksm_domain *d;
	int r = -ENOMEM;

	if (e->nr_domains == DOMAINS_MAX)
		return -ENOSPC;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	strncpy(d->name, name, sizeof(d->name) - 1);
	d->engine = e;
	if (index_new(&d->index) < 0 || index_new(&d->broken) < 0)
		goto fail;
	d->store = s;
	if (!s) {
		r = store_new(d->name, e->cfg.store_max_bytes, &d->store);
		if (r < 0)
			goto fail;
	}
	e->domains[e->nr_domains++] = d;
	*ret = d;
	return 0;
fail:
	index_free(d->index);
	index_free(d->broken);
	free(d);
	return r;
}

int engine_domain(struct engine *e, const char *name, struct ksm_domain **ret)
{
	for (u32 i = 0; i < e->nr_domains; i++) {
		if (strncmp(e->domains[i]->name, name, DOMAIN_NAME_MAX - 1) == 0) {
			*ret = e->domains[i];
			return 0;
		}
	}
	return domain_new(e, name, NULL, ret);
}

struct store *domain_store(struct ksm_domain *d)
{
	return d->store;
}

/* Content found in an adopted store goes into the index again. */
static int index_stored_page(struct store *s, u32 spn, void *arg)
{
	struct ksm_domain *d = arg;
	u8 page[PAGE_BYTES] __attribute__((aligned(16)));
	int r = store_read(s, spn, page, 1);

	if (r < 0)
		return r;
	store_set_hash(s, spn, page_hash(page));
	return index_add(d->index, hash_tag(store_hash(s, spn)), INDEX_STORE_FLAG | spn);
}

int engine_domain_adopt(struct engine *e, const char *name, struct store *s,
			struct ksm_domain **ret)
{
	int r = domain_new(e, name, s, ret);

	return r < 0 ? r : store_walk(s, index_stored_page, *ret);
}

static void unindex_page(struct store *s, u32 spn, void *arg)
{
	struct ksm_domain *d = arg;

	index_del(d->index, hash_tag(store_hash(s, spn)), INDEX_STORE_FLAG | spn);
}

void engine_recovered(struct engine *e)
{
	for (u32 i = 0; i < e->nr_domains; i++)
		store_recovered(e->domains[i]->store, unindex_page, e->domains[i]);
}

u32 engine_domains(const struct engine *e, struct ksm_domain_stats *ret, u32 max)
{
	u32 n = MIN(max, e->nr_domains);

	for (u32 i = 0; i < n; i++) {
		const struct ksm_domain *d = e->domains[i];

		ret[i] = (struct ksm_domain_stats){
			.name = d->name,
			.store_pages = store_pages(d->store),
			.store_refs = store_total_refs(d->store) - d->image_refs,
			.index_entries = index_entries(d->index),
			.index_bytes = index_bytes(d->index) + index_bytes(d->broken) +
				       (d->blocks ? blocks_bytes(d->blocks) : 0),
			.store_meta_bytes = store_meta_bytes(d->store) + images_bytes(d),
		};
	}
	return n;
}
