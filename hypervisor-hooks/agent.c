/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include "common/clock.h"
#include "common/procfs.h"
#include "hypervisor-hooks/agent.h"

#define FEATURES_ASYNC                                                             \
	(UFFD_FEATURE_MOVE | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | \
	 UFFD_FEATURE_PAGEFAULT_FLAG_WP)
/* UNPOPULATED: an empty page is protected too; a write to it would be lost otherwise. */
#define FEATURES_SYNC (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED)

void agent_log(struct bh_agent *a, const char *fmt, ...)
{
	char line[512];
	va_list ap;

	if (!a->cfg.log)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	a->cfg.log(a->cfg.log_arg, line);
}

int bh_probe(void)
{
	struct page_region vec;
	struct pagemap_query q = { .any = PAGE_IS_PRESENT };
	u64 end, at = ROUND_DOWN((u64)(uintptr_t)&vec, PAGE_BYTES);
	int fd = uffd_open(FEATURES_ASYNC), r;

	if (fd < 0)
		return fd;
	close(fd);
	fd = pagemap_open(getpid());
	if (fd < 0)
		return fd;
	r = pagemap_scan(fd, at, at + PAGE_BYTES, &q, &vec, 1, &end);
	close(fd);
	return r < 0 ? -ENOSYS : 0;
}

static void copy_string(char *to, size_t size, const char *from)
{
	snprintf(to, size, "%s", from ? from : "");
}

void agent_kick(struct bh_agent *a)
{
	u64 one = 1;

	/* Else it can only fail when the counter is full, and then the thread is awake anyway. */
	while (write(a->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static int staging_new(struct bh_agent *a)
{
	size_t bytes = BH_STEP_PAGES * PAGE_BYTES;
	u8 there[BH_STEP_PAGES];

	a->staging = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (a->staging == MAP_FAILED) {
		a->staging = NULL;
		return -errno;
	}
	kernel_madvise(a->staging, bytes, MADV_NOHUGEPAGE);
	kernel_madvise(a->staging, bytes, MADV_DONTFORK);
	/* A page that is out of the guest hangs on this call (merge.c): a VMM whose seccomp filter
	 * refuses it stays without an agent. */
	if (syscall(SYS_mincore, a->staging, bytes, there) < 0)
		return -errno;
	return uffd_register(a->uffd, (u64)(uintptr_t)a->staging, bytes,
			     UFFDIO_REGISTER_MODE_MISSING);
}

/*
 * fork(): under @lock no page is out of the guest, so the child sees none missing. The child itself
 * has no agent: what it did with the userfaultfds would be done to the parent.
 */
static struct bh_agent *live_agent; /* one a process: regions of two could overlap */

static void before_fork(void)
{
	if (live_agent)
		lock_urgent(live_agent);
}

static void after_fork_in_parent(void)
{
	if (live_agent)
		pthread_mutex_unlock(&live_agent->lock);
}

static void after_fork_in_child(void)
{
	if (!live_agent)
		return;
	live_agent->dead = true;
	pthread_mutex_unlock(&live_agent->lock);
	live_agent = NULL;
}

static void register_fork_handlers(void)
{
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static int threads_start(struct bh_agent *a)
{
	sigset_t all, old;
	int err;

	/* The VMM's signals are the VMM's: ours are threads it does not know of. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&a->fault_thread, NULL, fault_main, a);
	if (err == 0) {
		err = -swap_start(a);
		if (err == 0)
			err = pthread_create(&a->link_thread, NULL, link_main, a);
		if (err) {
			a->stop = true;
			pthread_join(a->fault_thread, NULL);
			swap_stop(a);
		}
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		return -err;
	a->threads_started = true;
	pthread_setname_np(a->fault_thread, "ballast-fault");
	pthread_setname_np(a->link_thread, "ballast-agent");
	return 0;
}

int bh_new(const struct bh_config *cfg, struct bh_agent **ret)
{
	const char *path = cfg->socket_path ? cfg->socket_path : getenv("BALLAST_AGENT_SOCKET");
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_condattr_t attr;
	struct bh_agent *a;
	int r;

	if (live_agent)
		return -EBUSY;
	a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->cfg = *cfg;
	a->uffd = a->uffd_sync = a->wake_fd = a->sock = a->store_fd = a->mounts_fd = a->swap.fd =
		-1;
	pthread_mutex_init(&a->lock, NULL);
	pthread_mutex_init(&a->reads.lock, NULL);
	pthread_cond_init(&a->swap.work, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&a->image.over, &attr);
	pthread_condattr_destroy(&attr);
	copy_string(a->socket_path, sizeof(a->socket_path),
		    path && *path ? path : BH_DEFAULT_SOCKET);
	copy_string(a->uuid, sizeof(a->uuid), cfg->uuid);
	copy_string(a->name, sizeof(a->name), cfg->name);
	if (!a->name[0])
		snprintf(a->name, sizeof(a->name), "pid-%d", (int)getpid());

	a->rx = malloc(sizeof(*a->rx));
	a->tx = malloc(sizeof(*a->tx));
	a->reference = aligned_alloc(PAGE_BYTES, BH_STEP_PAGES * PAGE_BYTES);
	a->fill = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
	a->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = -ENOMEM;
	if (!a->rx || !a->tx || !a->reference || !a->fill || a->wake_fd < 0)
		goto fail;
	r = a->uffd = uffd_open(FEATURES_ASYNC);
	if (r < 0)
		goto fail;
	r = a->uffd_sync = uffd_open(FEATURES_SYNC);
	if (r < 0)
		goto fail;
	a->mounts_fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	r = staging_new(a);
	if (r < 0)
		goto fail;
	r = link_connect(a);
	if (r < 0)
		goto fail;
	r = threads_start(a);
	if (r < 0)
		goto fail;
	pthread_once(&once, register_fork_handlers);
	live_agent = a;
	*ret = a;
	return 0;

fail:
	bh_free(a);
	return r;
}

void bh_free(struct bh_agent *a)
{
	if (!a || a->dead)
		return;
	if (live_agent == a)
		live_agent = NULL;
	a->stop = true;
	if (a->threads_started) {
		agent_kick(a);
		pthread_join(a->link_thread, NULL);
		pthread_join(a->fault_thread, NULL);
		swap_stop(a);
	}
	for (u32 i = 0; i < a->nr_regions; i++)
		pager_restore(a, a->regions[i]);
	/* Closing the contexts unregisters all: from here on the guest's memory is ordinary.
	 * Mappings of the store stay, and stay right, since the store's pages live as long as they
	 * are mapped. */
	if (a->uffd >= 0)
		close(a->uffd);
	if (a->uffd_sync >= 0)
		close(a->uffd_sync);
	if (a->sock >= 0)
		close(a->sock);
	if (a->store_fd >= 0)
		close(a->store_fd);
	if (a->mounts_fd >= 0)
		close(a->mounts_fd);
	if (a->swap.fd >= 0)
		close(a->swap.fd);
	if (a->wake_fd >= 0)
		close(a->wake_fd);
	if (a->staging)
		syscall(SYS_munmap, a->staging, BH_STEP_PAGES * PAGE_BYTES);
	for (u32 i = 0; i < a->nr_regions; i++)
		bh_region_free(a->regions[i]);
	pager_free(a);
	free(a->fill);
	free(a->reference);
	free(a->rx);
	free(a->tx);
	pthread_cond_destroy(&a->image.over);
	pthread_cond_destroy(&a->swap.work);
	pthread_mutex_destroy(&a->lock);
	pthread_mutex_destroy(&a->reads.lock);
	free(a);
}

static u64 one_thread_cpu_us(pthread_t t)
{
	clockid_t clock;

	return pthread_getcpuclockid(t, &clock) == 0 ? clock_us(clock) : 0;
}

u64 agent_cpu_us(struct bh_agent *a)
{
	u64 us = one_thread_cpu_us(a->link_thread) + one_thread_cpu_us(a->fault_thread);

	for (u32 i = 0; i < a->swap.threads_started; i++)
		us += one_thread_cpu_us(a->swap.threads[i]);
	return us;
}

void bh_stats(struct bh_agent *a, struct bh_stats *ret)
{
	*ret = (struct bh_stats){
		.disk_reads_noted = a->reads.noted,
		.disk_reads_dropped = a->reads.dropped,
		.image_pages = a->image_pages,
		.merged_pages = a->merged_pages,
		.zeroed_pages = a->zeroed_pages,
		.unmerged_pages = a->unmerged_pages,
		.moved_back_pages = a->moved_back_pages,
		.pinned_pages = a->pinned_pages,
		.failed_pages = a->failed_pages,
		.wait_faults = a->wait_faults,
		.fill_faults = a->fill_faults,
		.paged_pages = a->pager.pages,
		.pool_bytes = a->pager.pool_bytes,
		.paged_out_pages = a->pager.out_total,
		.paged_in_pages = a->pager.in_total,
		.paged_zero_pages = a->pager.zero_total,
		.paged_refused_pages = a->pager.refused_total,
		.swap_bytes = a->swap.medium_bytes,
		.swap_written_bytes = a->swap.written_bytes,
		.swap_read_pages = a->swap.read_pages,
		.swap_failures = a->swap.failures,
		.cpu_us = agent_cpu_us(a),
		.connected = a->connected,
	};
	for (u32 i = 0; i < BH_LATENCY_BUCKETS; i++) {
		ret->wait_latency[i] = a->latency[BH_FAULT_WAIT].buckets[i];
		ret->fill_latency[i] = a->latency[BH_FAULT_FILL].buckets[i];
		ret->in_latency[i] = a->latency[BH_FAULT_IN].buckets[i];
	}
}
