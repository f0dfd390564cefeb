/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "vmm/layout.h"
#include "vmm/memory.h"

#define HOTPLUG_ALIGN GIB(1)

/* Anonymous memory, aligned to 2 MiB: what is too much is unmapped again. */
static u8 *map_aligned(u64 bytes)
{
	u8 *start = mmap(NULL, bytes + CHUNK_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	u8 *p;

	if (start == MAP_FAILED)
		return NULL;
	p = (u8 *)ROUND_UP((uintptr_t)start, CHUNK_BYTES);
	if (p > start)
		munmap(start, (size_t)(p - start));
	if (start + CHUNK_BYTES > p)
		munmap(p + bytes, (size_t)(start + CHUNK_BYTES - p));
	return p;
}

/* Fails where the kernel has no huge pages, which is fine. */
static void advise(void *hva, u64 bytes)
{
	madvise(hva, bytes, MADV_HUGEPAGE);
	madvise(hva, bytes, MADV_DONTDUMP);
	madvise(hva, bytes, MADV_DONTFORK);
}

static int slot_add(struct guest_memory *m, u64 gpa, u64 bytes, const char *name, bool hotplug)
{
	u8 *hva;

	if (bytes == 0)
		return 0;
	hva = map_aligned(bytes);
	if (!hva)
		return -ENOMEM;
	advise(hva, bytes);
	m->slots[m->nr_slots++] = (struct memory_slot){
		.gpa = gpa, .bytes = bytes, .hva = hva, .name = name, .hotplug = hotplug
	};
	return 0;
}

int memory_init(struct guest_memory *m, u64 ram_bytes, u64 hotplug_bytes)
{
	u64 low = MIN(ram_bytes, LAYOUT_HOLE), high = ram_bytes - low;
	int r;

	memset(m, 0, sizeof(*m));
	if (ram_bytes == 0 || ram_bytes % CHUNK_BYTES || hotplug_bytes % CHUNK_BYTES)
		return -EINVAL;
	m->ram_bytes = ram_bytes;
	r = slot_add(m, 0, low, "ram-low", false);
	if (r == 0)
		r = slot_add(m, LAYOUT_HIGH_RAM, high, "ram-high", false);
	if (r == 0)
		r = slot_add(m, ROUND_UP(LAYOUT_HIGH_RAM + high, HOTPLUG_ALIGN), hotplug_bytes,
			     "hotplug", true);
	if (r < 0)
		memory_free(m);
	return r;
}

void memory_free(struct guest_memory *m)
{
	bh_free(m->agent);
	m->agent = NULL;
	for (u32 i = 0; i < m->nr_slots; i++)
		munmap(m->slots[i].hva, m->slots[i].bytes);
	m->nr_slots = 0;
}

int memory_map_file(struct guest_memory *m, u32 slot, int fd, u64 offset)
{
	const struct memory_slot *s = &m->slots[slot];

	if (mmap(s->hva, s->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
		 fd, (off_t)offset) == MAP_FAILED)
		return -errno;
	advise(s->hva, s->bytes);
	m->restored = true;
	return 0;
}

static const struct memory_slot *find_slot(const struct guest_memory *m, u64 gpa, u64 bytes)
{
	for (u32 i = 0; i < m->nr_slots; i++) {
		const struct memory_slot *s = &m->slots[i];

		if (gpa >= s->gpa && gpa - s->gpa < s->bytes)
			return s->bytes - (gpa - s->gpa) >= bytes ? s : NULL;
	}
	return NULL;
}

void *memory_at(const struct guest_memory *m, u64 gpa, u64 bytes)
{
	const struct memory_slot *s = bytes ? find_slot(m, gpa, bytes) : NULL;

	return s ? s->hva + (gpa - s->gpa) : NULL;
}

u64 memory_gpa(const struct guest_memory *m, const void *hva)
{
	for (u32 i = 0; i < m->nr_slots; i++) {
		const struct memory_slot *s = &m->slots[i];
		u64 offset = (u64)((uintptr_t)hva - (uintptr_t)s->hva);

		if ((uintptr_t)hva >= (uintptr_t)s->hva && offset < s->bytes)
			return s->gpa + offset;
	}
	return UINT64_MAX;
}

/* Why there is no agent, in words that fit behind "memory is not shared: ". */
static const char *why_not(int error)
{
	switch (error) {
	case -ENOENT:
	case -ECONNREFUSED:
		return "no ballastd is running";
	case -ENOSYS:
		return "the kernel is too old (Linux 6.8 has what it takes)";
	case -EPERM:
	case -EACCES:
		return "no permission (ballastd's agent socket, /dev/userfaultfd)";
	case -EPROTO:
		return "ballastd speaks another version of the protocol";
	case -ECONNABORTED:
		return "ballastd refused this VM";
	default:
		return strerror(-error);
	}
}

int memory_attach(struct guest_memory *m, const struct bh_config *cfg, const char **ret_why)
{
	struct bh_agent *a;
	int r = bh_probe();

	*ret_why = NULL;
	if (r == 0)
		r = bh_new(cfg, &a);
	if (r < 0) {
		*ret_why = why_not(r);
		return 0;
	}
	for (u32 i = 0; i < m->nr_slots && r == 0; i++) {
		const struct memory_slot *s = &m->slots[i];

		r = bh_region_add(a, s->hva, s->bytes, s->gpa, s->name);
		if (r == 0) {
			bh_region_advise(a, s->hva, s->bytes, MADV_HUGEPAGE);
			bh_region_advise(a, s->hva, s->bytes, MADV_DONTDUMP);
			bh_region_advise(a, s->hva, s->bytes, MADV_DONTFORK);
		}
	}
	if (r < 0) {
		bh_free(a);
		*ret_why = why_not(r);
		return 0;
	}
	m->agent = a;
	return 0;
}

int memory_discard(struct guest_memory *m, u64 gpa, u64 bytes)
{
	void *hva = memory_at(m, gpa, bytes);

	if (!hva || !page_aligned(gpa) || !page_aligned(bytes))
		return -EINVAL;
	if (m->agent)
		return bh_discard(m->agent, hva, bytes, MADV_DONTNEED);
	/* A hole in a private mapping of a file shows the file again, not zeros. */
	if (m->restored) {
		if (mmap(hva, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
			 0) == MAP_FAILED)
			return -errno;
		advise(hva, bytes);
		return 0;
	}
	return madvise(hva, bytes, MADV_DONTNEED) ? -errno : 0;
}
