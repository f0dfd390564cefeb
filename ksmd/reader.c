/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include "common/clock.h"
#include "ksmd/reader.h"

/* Between two looks at how long the readers have been at it. */
#define WAIT_US 50000

struct worker {
	struct reader_pool *pool;
	struct reader_job *job; /* being run; NULL: idle */
	u32 index;		/* of it in the pool's jobs */
	u64 waited_us;		/* for it, so far */
	bool given_up;
	pthread_t thread;
};

struct reader_pool {
	pthread_mutex_t lock;
	pthread_cond_t work, done;
	struct worker **workers;
	u32 nr;
	u64 given_up;
	u32 hung; /* of those, the ones that have not ended yet */
	bool stop, orphan;

	/* What reader_run() was given. Readers take one job after the other, so that a wake-up is
	 * paid once for all. */
	struct reader_job **jobs;
	u32 nr_jobs, next, running;
};

static void pool_destroy(struct reader_pool *p)
{
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->done);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct reader_pool *p = w->pool;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		while (p->next == p->nr_jobs && !p->stop)
			pthread_cond_wait(&p->work, &p->lock);
		if (p->next == p->nr_jobs)
			break;
		w->index = p->next++;
		w->job = p->jobs[w->index];
		w->waited_us = 0;
		p->running++;
		pthread_mutex_unlock(&p->lock);
		w->job->run(w->job);
		pthread_mutex_lock(&p->lock);
		if (w->given_up) {
			/* Nobody waits any more, and the pool has forgotten this thread. */
			bool last = --p->hung == 0 && p->orphan;

			pthread_mutex_unlock(&p->lock);
			w->job->free(w->job);
			free(w);
			if (last)
				pool_destroy(p);
			return NULL;
		}
		w->job = NULL;
		p->running--;
		if (p->next == p->nr_jobs && !p->running)
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
	u32 hung;

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
	/* Readers that hang still use the lock when they wake: the last of them ends the pool. */
	pthread_mutex_lock(&p->lock);
	p->orphan = true;
	hung = p->hung;
	pthread_mutex_unlock(&p->lock);
	if (!hung)
		pool_destroy(p);
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
	p->hung++;
	p->running--;
	pthread_detach(p->workers[i]->thread);
	if (worker_new(p, &fresh) == 0)
		p->workers[i] = fresh;
	else
		p->workers[i] = p->workers[--p->nr];
}

/*
 * Waits for the end of all jobs, a little while, and adds that to what those who work have had.
 * When the whole daemon stood still meanwhile (stopped, or the host suspended), so did the readers:
 * that is nobody's fault.
 */
static void wait_a_while(struct reader_pool *p)
{
	u64 now = now_us(), until = now + WAIT_US, waited;
	struct timespec t = {
		.tv_sec = (time_t)(until / 1000000),
		.tv_nsec = (long)(until % 1000000) * 1000,
	};

	pthread_cond_timedwait(&p->done, &p->lock, &t);
	waited = MIN(now_us() - now, 2 * (u64)WAIT_US);
	for (u32 i = 0; i < p->nr; i++)
		p->workers[i]->waited_us += waited;
}

/* Gives up those whose time is over. The others finish what they have; nothing new is begun. */
static int give_up_late(struct reader_pool *p, u64 timeout_us, int *ret_stage)
{
	int r = 0;

	/* Downwards, because giving one up may move the last one into its place. */
	for (u32 i = p->nr; i-- > 0;) {
		struct worker *w = p->workers[i];

		if (!w->job || w->waited_us < timeout_us)
			continue;
		/* Still ours to look at: its reader frees it only with the lock. */
		*ret_stage = w->job->stage;
		p->jobs[w->index] = NULL;
		p->next = p->nr_jobs;
		r = -ETIMEDOUT;
		give_up(p, i);
	}
	return r;
}

int reader_run(struct reader_pool *p, struct reader_job **jobs, u32 nr, u64 timeout_us,
	       int *ret_stage)
{
	int r = 0;

	if (!p->nr)
		return -EAGAIN;
	pthread_mutex_lock(&p->lock);
	p->jobs = jobs;
	p->nr_jobs = nr;
	p->next = 0;
	for (u32 i = 0; i < MIN(nr, p->nr); i++)
		pthread_cond_signal(&p->work);
	while (p->next < p->nr_jobs || p->running) {
		wait_a_while(p);
		if (give_up_late(p, timeout_us, ret_stage) < 0)
			r = -ETIMEDOUT;
		/* All were given up, and no thread could be had in their place. */
		if (!p->nr) {
			r = -ETIMEDOUT;
			break;
		}
	}
	p->nr_jobs = p->next = 0;
	p->jobs = NULL;
	pthread_mutex_unlock(&p->lock);
	return r;
}
