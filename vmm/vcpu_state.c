/* SPDX-License-Identifier: MIT */
/* A vCPU's state out of KVM and back, for reset and snapshot. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include "vmm/vcpu.h"

#define MSR_TSC		 0x10
#define MSR_TSC_DEADLINE 0x6e0

struct msr_block {
	struct kvm_msrs h;
	struct kvm_msr_entry entries[VCPU_MSRS_MAX];
};

/* One register block: how it is read and written, and where it is in struct vcpu_state. */
struct block {
	unsigned long get, set;
	size_t offset;
};

#define BLOCK(name, what)                                                         \
	{                                                                         \
		KVM_GET_##what, KVM_SET_##what, offsetof(struct vcpu_state, name) \
	}

/* In the order in which they are written: the local APIC needs its base (sregs), MSRs come after
 * it, and events last of all. */
static const struct block blocks_before_msrs[] = {
	BLOCK(mp_state, MP_STATE), BLOCK(regs, REGS),		BLOCK(sregs, SREGS),
	BLOCK(xcrs, XCRS),	   BLOCK(debugregs, DEBUGREGS), BLOCK(lapic, LAPIC),
};
static const struct block block_events = BLOCK(events, VCPU_EVENTS);

static int get_block(const struct vcpu *v, const struct block *b, struct vcpu_state *s)
{
	return ioctl(v->fd, b->get, (u8 *)s + b->offset) < 0 ? -errno : 0;
}

static int set_block(const struct vcpu *v, const struct block *b, const struct vcpu_state *s)
{
	return ioctl(v->fd, b->set, (const u8 *)s + b->offset) < 0 ? -errno : 0;
}

/* KVM stops at the first one that it does not give; that one is left out. */
static int get_msrs(const struct vcpu *v, struct vcpu_state *s)
{
	u32 indices[VCPU_MSRS_MAX], at = 0;
	int nr = cpu_msr_list(v->vm->kvm_fd, indices, VCPU_MSRS_MAX);
	struct msr_block *m;

	if (nr < 0)
		return nr;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	s->nr_msrs = 0;
	while (at < (u32)nr) {
		int done;

		m->h.nmsrs = (u32)nr - at;
		for (u32 i = 0; i < m->h.nmsrs; i++)
			m->entries[i] = (struct kvm_msr_entry){ .index = indices[at + i] };
		done = ioctl(v->fd, KVM_GET_MSRS, m);
		if (done < 0) {
			int r = -errno;

			free(m);
			return r;
		}
		memcpy(s->msrs + s->nr_msrs, m->entries, (u32)done * sizeof(m->entries[0]));
		s->nr_msrs += (u32)done;
		at += (u32)done + 1;
	}
	free(m);
	return 0;
}

/* Sets those that @which says; one that KVM refuses (it is read-only, say) is left out. */
static int set_msrs(const struct vcpu *v, const struct vcpu_state *s, bool tsc)
{
	struct msr_block *m = calloc(1, sizeof(*m));
	u32 at = 0, nr = 0;

	if (!m)
		return -ENOMEM;
	/* The deadline is a time of the local APIC's timer: after all others. */
	for (u32 i = 0; i < s->nr_msrs; i++) {
		if (s->msrs[i].index != MSR_TSC_DEADLINE && (tsc || s->msrs[i].index != MSR_TSC))
			m->entries[nr++] = s->msrs[i];
	}
	for (u32 i = 0; i < s->nr_msrs; i++) {
		if (s->msrs[i].index == MSR_TSC_DEADLINE)
			m->entries[nr++] = s->msrs[i];
	}
	while (at < nr) {
		int done;

		m->h.nmsrs = nr - at;
		memmove(m->entries, m->entries + at, m->h.nmsrs * sizeof(m->entries[0]));
		nr -= at;
		done = ioctl(v->fd, KVM_SET_MSRS, m);
		if (done < 0) {
			int r = -errno;

			free(m);
			return r;
		}
		at = (u32)done + 1;
	}
	free(m);
	return 0;
}

/* AMX state is larger than the 4 KiB of KVM_GET_XSAVE. */
static u32 xsave_bytes(const struct vcpu *v)
{
	int bytes = ioctl(v->vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	return bytes > 0 ? (u32)bytes : (u32)sizeof(struct kvm_xsave);
}

static int get_xsave(const struct vcpu *v, struct vcpu_state *s)
{
	s->xsave_bytes = xsave_bytes(v);
	if (s->xsave_bytes > sizeof(s->xsave))
		return -E2BIG;
	if (s->xsave_bytes > sizeof(struct kvm_xsave))
		return ioctl(v->fd, KVM_GET_XSAVE2, s->xsave) < 0 ? -errno : 0;
	return ioctl(v->fd, KVM_GET_XSAVE, s->xsave) < 0 ? -errno : 0;
}

int vcpu_get_state(const struct vcpu *v, struct vcpu_state *ret)
{
	int r = 0;

	memset(ret, 0, sizeof(*ret));
	for (size_t i = 0; i < ARRAY_SIZE(blocks_before_msrs) && r == 0; i++)
		r = get_block(v, &blocks_before_msrs[i], ret);
	if (r == 0)
		r = get_xsave(v, ret);
	if (r == 0)
		r = get_msrs(v, ret);
	if (r == 0)
		r = get_block(v, &block_events, ret);
	return r;
}

int vcpu_set_state(const struct vcpu *v, const struct vcpu_state *s, bool tsc)
{
	int r = 0;

	if (s->nr_msrs > VCPU_MSRS_MAX || s->xsave_bytes != xsave_bytes(v))
		return -EINVAL;
	for (size_t i = 0; i < ARRAY_SIZE(blocks_before_msrs) && r == 0; i++)
		r = set_block(v, &blocks_before_msrs[i], s);
	if (r == 0)
		r = ioctl(v->fd, KVM_SET_XSAVE, s->xsave) < 0 ? -errno : 0;
	if (r == 0)
		r = set_msrs(v, s, tsc);
	if (r == 0)
		r = set_block(v, &block_events, s);
	return r;
}
