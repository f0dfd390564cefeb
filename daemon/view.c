/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
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
