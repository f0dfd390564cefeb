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

u64 view_vm_cow_debt_bytes(const struct vm_view *vm)
{
	return (vm->shared_pages + vm->zero_pages) * PAGE_BYTES;
}

void view_totals(const struct view *v, struct view_totals *ret)
{
	struct view_totals t = { 0 };
	s64 freed = 0, metadata = 0;

	for (u32 i = 0; i < v->nr_vms; i++) {
		const struct vm_view *vm = &v->vms[i];

		t.configured += (s64)vm->configured_bytes;
		t.shared += (s64)(vm->shared_pages * PAGE_BYTES);
		t.zero += (s64)(vm->zero_pages * PAGE_BYTES);
		t.overhead += (s64)vm->vmm_bytes;
		t.cow_debt += (s64)view_vm_cow_debt_bytes(vm);
		metadata += (s64)(vm->overhead_bytes - vm->vmm_bytes);
	}
	for (u32 i = 0; i < v->nr_domains; i++) {
		const struct domain_view *d = &v->domains[i];
		u64 pages = d->store_pages * PAGE_BYTES;

		t.store += (s64)pages;
		t.overhead += (s64)(MAX(d->store_memory_bytes, pages) - pages);
		t.overhead += (s64)(d->store_memory_bytes / PAGE_BYTES * STORE_PAGE_KERNEL_BYTES);
		metadata += (s64)(d->index_bytes + d->store_meta_bytes);
		/* Pages without references (there are some after a restart) would not be freed. */
		freed += (s64)(MIN(d->store_pages, d->store_refs) * PAGE_BYTES);
	}
	/* Where the kernel does not tell, what we know of it. */
	t.overhead += v->host.daemon_rss_bytes ? (s64)v->host.daemon_rss_bytes : metadata;
	t.saved = t.shared + t.zero - t.store;
	t.net_saved = t.saved - t.overhead;
	t.cow_debt = MAX(t.cow_debt - freed, 0);
	*ret = t;
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
