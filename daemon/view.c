/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include "daemon/view.h"

void view_free(struct view *v)
{
	if (!v)
		return;
	free(v->vms);
	free(v->domains);
	v->vms = NULL;
	v->nr_vms = 0;
	v->domains = NULL;
	v->nr_domains = 0;
}

bool view_vm_saved_bytes(const struct view *v, const struct vm_view *vm, s64 *ret)
{
	const struct domain_view *d = NULL;
	u64 part = 0;

	for (u32 i = 0; i < v->nr_domains && !d; i++)
		if (strcmp(v->domains[i].name, vm->domain) == 0)
			d = &v->domains[i];
	if (vm->shared_pages) {
		if (!d || !d->store_refs)
			return false;
		part = (u64)((__uint128_t)d->store_pages * vm->shared_pages * PAGE_BYTES /
			     d->store_refs);
	}
	*ret = (s64)((vm->shared_pages + vm->zero_pages) * PAGE_BYTES) - (s64)part;
	return true;
}
