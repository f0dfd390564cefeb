/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include "common/clock.h"
#include "ksmd/reader.h"

struct worker {
	struct reader_pool *pool;
	struct reader_job *job; /* being run, or waiting to be picked up */
	bool given_up;
	bool busy;
	pthread_t thread;
};

struct reader_pool {
	pthread_mutex_t lock;
	pthread_cond_t work, done;
	struct worker **workers;
	u32 nr;
	u64 given_up;
	bool stop;
};

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct reader_pool *p = w->pool;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		while (!w->job && !p->stop)
			pthread_cond_wait(&p->work, &p->lock);
		if (!w->job)
			break;
		pthread_mutex_unlock(&p->lock);
		w->job->run(w->job);
		pthread_mutex_lock(&p->lock);
		if (w->given_up) {
			/* Nobody waits any more, the pool has forgotten this thread and may be gone
			 * soon. */
			pthread_mutex_unlock(&p->lock);
			w->job->free(w->job);
			free(w);
			return NULL;
		}
		w->job = NULL;
		w->busy = false;
		pthread_cond_signal(&p->done);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static int worker_new(struct reader_pool *p, struct worker **ret)
{
	struct worker *w = calloc(1, sizeof(*w));
	sigset_t all, old;
	int err;

	if (!w)
		return -ENOMEM;
	w->pool = p;
	/* Signals are the main thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&w->thread, NULL, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err) {
		free(w);
		return -err;
	}
	pthread_setname_np(w->thread, "ballast-reader");
	*ret = w;
	return 0;
}

int reader_pool_new(u32 nr_threads, struct reader_pool **ret)
{
	struct reader_pool *p = calloc(1, sizeof(*p));
	pthread_condattr_t attr;

	if (!p)
		return -ENOMEM;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->done, &attr);
	pthread_condattr_destroy(&attr);
	p->workers = calloc(nr_threads, sizeof(*p->workers));
	for (; p->workers && p->nr < nr_threads; p->nr++) {
		int r = worker_new(p, &p->workers[p->nr]);

		if (r < 0) {
			reader_pool_free(p);
			return r;
		}
	}
	if (!p->workers) {
		reader_pool_free(p);
		return -ENOMEM;
	}
	*ret = p;
	return 0;
}

void reader_pool_free(struct reader_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (u32 i = 0; i < p->nr; i++) {
		pthread_join(p->workers[i]->thread, NULL);
		free(p->workers[i]);
	}
	free(p->workers);
	/* Readers that were given up still use the lock when they wake: then the pool is left to
	 * the process's end. */
	if (p->given_up)
		return;
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->done);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

u32 reader_pool_threads(const struct reader_pool *p)
{
	return p->nr;
}

u64 reader_pool_given_up(const struct reader_pool *p)
{
	return p->given_up;
}

/* With the lock held: the worker keeps its job; another one takes its place if a thread can be had.
 */
static void give_up(struct reader_pool *p, u32 i)
{
	struct worker *fresh;

	p->workers[i]->given_up = true;
	p->given_up++;
	pthread_detach(p->workers[i]->thread);
	if (worker_new(p, &fresh) == 0)
		p->workers[i] = fresh;
	else
		p->workers[i] = p->workers[--p->nr];
}

static bool wait_done(struct reader_pool *p, const struct worker *w, u64 deadline_us)
{
	struct timespec t = {
		.tv_sec = (time_t)(deadline_us / 1000000),
		.tv_nsec = (long)(deadline_us % 1000000) * 1000,
	};

	while (w->busy)
		if (pthread_cond_timedwait(&p->done, &p->lock, &t) == ETIMEDOUT)
			return !w->busy;
	return true;
}

int reader_run(struct reader_pool *p, struct reader_job **jobs, u32 nr, u64 timeout_us,
	       int *ret_stage)
{
	int r = 0;

	if (!p->nr)
		return -EAGAIN;
	pthread_mutex_lock(&p->lock);
	/* Rounds of as many jobs as there are readers. */
	for (u32 first = 0, n; first < nr && p->nr; first += n) {
		u64 deadline = now_us() + timeout_us;

		n = MIN(nr - first, p->nr);
		for (u32 i = 0; i < n; i++) {
			p->workers[i]->busy = true;
			p->workers[i]->job = jobs[first + i];
		}
		pthread_cond_broadcast(&p->work);
		/* Downwards, because giving one up may move the last one into its place. */
		for (u32 i = n; i-- > 0;) {
			if (wait_done(p, p->workers[i], deadline))
				continue;
			/* Still ours to look at: its reader frees it only with the lock. */
			*ret_stage = jobs[first + i]->stage;
			give_up(p, i);
			jobs[first + i] = NULL;
			r = -ETIMEDOUT;
		}
		if (r < 0)
			break;
	}
	pthread_mutex_unlock(&p->lock);
	return r;
}
