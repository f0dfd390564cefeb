/* SPDX-License-Identifier: MIT */
/*
 * Guest RAM of a VMM that knows nothing of us, read from outside.
 *
 * Nothing of it is changed, and no page is brought into memory by looking: only pages that the
 * page table says are present are read. Needs ptrace rights over the process (root, as a rule).
 */
#ifndef BALLAST_CTL_GUESTMEM_H
#define BALLAST_CTL_GUESTMEM_H

#include <sys/types.h>
#include "ctl/analysis.h"

/* Guest RAM starts here; QEMU's other private memory (heap, stacks, thread arenas) is smaller
 * as a rule. */
#define GUESTMEM_RANGE_MIN MIB(16)

struct guest_range {
	u64 start, end;
	bool mergeable; /* marked with MADV_MERGEABLE, as QEMU does with guest RAM */
	bool ballast;	/* has mappings of a Ballast store in it */
};

struct guest {
	pid_t pid;
	char name[32]; /* of the process; may hold any bytes */
	struct guest_range *ranges;
	u32 nr_ranges;
	/* Filled by guestmem_read(), in pages. */
	u64 resident;	 /* present, without kernel_zero */
	u64 zero;	 /* of them: hold zeros only */
	u64 kernel_zero; /* present as the kernel's zero page: cost nothing already */
	u64 huge;	 /* of resident: in a transparent huge page, which sharing would split */
	u64 unreadable;	 /* of resident: went away while we looked */
	u64 ksm_merged;	 /* that the kernel's KSM has merged already (all of the process) */
};

/* Pages of all VMs, growing. */
struct guest_pages {
	struct analysis_page *v;
	size_t nr, cap;
};

/*
 * Finds the ranges that look like guest RAM: private, anonymous, writable, not executable (which
 * leaves out TCG's code buffer), at least GUESTMEM_RANGE_MIN; mappings of a Ballast store belong
 * to their neighbours. Where a process has marked such ranges with MADV_MERGEABLE, only those are
 * taken. No range at all is no error. -ESRCH: no such process, or it has no memory (ended and not
 * yet reaped; a kernel thread). -EACCES: not permitted.
 */
int guestmem_find(pid_t pid, struct guest *ret);
void guestmem_free(struct guest *g);

enum guestmem_method {
	GUESTMEM_AUTO,	  /* PAGEMAP_SCAN where the kernel has it (6.7) */
	GUESTMEM_PAGEMAP, /* read /proc/PID/pagemap, 8 bytes a page */
};

/* Appends the pages of @g, as VM number @vm, to @pages, but for those that are all zeros. On
 * failure @pages has just what it had. */
int guestmem_read(struct guest *g, u32 vm, enum guestmem_method method, struct guest_pages *pages);

#endif
