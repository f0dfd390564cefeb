/* SPDX-License-Identifier: MIT */
/*
 * Fails each system call of the agent in turn, and looks at what becomes of a guest (invariants 1,
 * 2, 7): every byte right, no access that hangs, pages private or merged as the agent says, and
 * merging works again once calls do.
 *
 *   tool_faults DIR each [SCENARIO]   every site of every scenario, with every error that fits
 *   tool_faults DIR lasting           every call of a kind, for some time
 *   tool_faults DIR back              pages are out of the guest and cannot go back, for some time
 *   tool_faults DIR lost              and for good: the VM stops (SIGABRT)
 *   tool_faults DIR random SEC SEED   any call, at any time
 *   tool_faults DIR life              calls of bh_new() and bh_free()
 *   tool_faults DIR dma               calls that look for DMA: nothing merges in doubt
 *
 * DIR is for the socket. Prints "bad WHERE: WHAT" for all that is wrong, and ends with one line of
 * figures. Exit status 0 if nothing is.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "common/clock.h"
#include "tests/live/faults/scenarios.h"

#define STUCK_S	  30
#define SLOW_US	  300000
#define COUNTS	  3
#define SITES_MAX 24 /* of one kind in one scenario: the others are more of the same loop */
#define BAD_MAX	  40

static char socket_path[96];
static char where[160];
static bool verbose;
static u32 nr_cases, nr_sites, nr_bad, nr_missed;

static void on_alarm(int sig)
{
	static const char text[] = ": hangs\n";

	if (write(STDOUT_FILENO, "bad ", 4) < 0 || write(STDOUT_FILENO, where, strlen(where)) < 0 ||
	    write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

static void say(void *arg, const char *line)
{
	if (verbose)
		printf("# %s: %s\n", where, line);
	/* It may be the last. */
	fflush(stdout);
}

static void bad(const char *what)
{
	printf("bad %s: %s\n", where, what);
	fflush(stdout);
	/* The guest cannot be had back from a hang, nor trusted after a wrong byte. */
	if (++nr_bad >= BAD_MAX || strstr(what, "hangs") || guest_complaint())
		_exit(1);
}

static int new_agent(void)
{
	const struct bh_config cfg = { .socket_path = socket_path, .name = "faults", .log = say };

	return bh_new(&cfg, &agent);
}

static void take_rules(const char *scenario, const struct rule *rules, u32 nr)
{
	int n = snprintf(where, sizeof(where), "%s", scenario);

	for (u32 i = 0; i < nr; i++)
		n += snprintf(where + n, sizeof(where) - (size_t)n, " %s:%s:%u+%u:%s",
			      inject_role_name(rules[i].role), inject_call_name(rules[i].call),
			      rules[i].from, rules[i].times, inject_error_name(rules[i].error));
	alarm(STUCK_S);
}

/* One scenario under these rules. Returns how many calls failed. */
static u32 run_case(const struct scenario *s, const struct rule *rules, u32 nr)
{
	u64 begin = now_us();
	u32 failed = 0;

	take_rules(s->name, rules, nr);
	if (scenario_begin()) {
		inject_open(rules, nr);
		s->act();
		failed = inject_close();
		if (!scenario_trouble())
			s->after();
	}
	scenario_end();
	if (scenario_trouble())
		bad(scenario_trouble());
	scenario_forgive();
	nr_cases++;
	if (now_us() - begin > SLOW_US)
		say(NULL, "slow");
	return failed;
}

static void count_sites(const struct scenario *s, u32 sites[NR_ROLES][NR_CALLS])
{
	memset(sites, 0, sizeof(sites[0]) * NR_ROLES);
	/* What the guest runs into, and what the threads still get done, differs a little. */
	for (u32 i = 0; i < COUNTS; i++) {
		run_case(s, NULL, 0);
		for (u32 r = 0; r < NR_ROLES; r++)
			for (u32 c = 0; c < NR_CALLS; c++)
				sites[r][c] = MAX(sites[r][c], inject_seen(r, c));
	}
}

static void each_of(const struct scenario *s, u32 sites[NR_ROLES][NR_CALLS])
{
	for (u32 r = 0; r < NR_ROLES; r++)
		for (u32 c = 0; c < NR_CALLS; c++)
			for (u32 n = 1; n <= MIN(sites[r][c], SITES_MAX); n++) {
				nr_sites++;
				for (u32 e = 0; inject_error(c, e); e++) {
					struct rule rule = { r, c, n, 1, inject_error(c, e) };

					if (!run_case(s, &rule, 1))
						nr_missed++;
				}
			}
}

static void run_each(const char *only)
{
	u32 sites[NR_ROLES][NR_CALLS];

	for (u32 i = 0; i < nr_scenarios; i++) {
		u64 begin = now_us();
		u32 cases = nr_cases, first = nr_sites;

		if (only && strcmp(only, scenarios[i].name) != 0)
			continue;
		count_sites(&scenarios[i], sites);
		each_of(&scenarios[i], sites);
		printf("# %s: %u sites, %u cases, %.1f s\n", scenarios[i].name, nr_sites - first,
		       nr_cases - cases, (double)(now_us() - begin) / 1e6);
	}
}

static void run_lasting(void)
{
	u32 sites[NR_ROLES][NR_CALLS];

	for (u32 i = 0; i < nr_scenarios; i++) {
		count_sites(&scenarios[i], sites);
		for (u32 r = 0; r < NR_ROLES; r++)
			for (u32 c = 0; c < NR_CALLS; c++)
				for (u32 e = 0; sites[r][c] && inject_error(c, e); e++) {
					struct rule rule = { r, c, 1, 40, inject_error(c, e) };

					run_case(&scenarios[i], &rule, 1);
				}
	}
}

/*
 * Every MOVE from the n-th on fails, and every COPY, as often as @times says. Where pages are out
 * of the guest then, they must come back when memory does.
 */
static void run_back(void)
{
	static const int errors[] = { ENOMEM, EAGAIN, EBUSY };
	static const u32 times[] = { 1, 5, 100 };
	u32 sites[NR_ROLES][NR_CALLS];

	for (u32 i = 0; i < nr_scenarios; i++) {
		count_sites(&scenarios[i], sites);
		for (u32 n = 2; n <= MIN(sites[ROLE_LINK][CALL_MOVE], SITES_MAX); n++)
			for (u32 k = 0; k < ARRAY_SIZE(times) * ARRAY_SIZE(errors); k++) {
				int error = errors[k / ARRAY_SIZE(times)];
				u32 t = times[k % ARRAY_SIZE(times)];
				const struct rule rules[] = {
					{ ROLE_LINK, CALL_MOVE, n, t, error },
					{ ROLE_LINK, CALL_COPY, 1, t, error },
				};
				struct rule rule;

				if (k % ARRAY_SIZE(times) == 2 && n % 3)
					continue; /* these take their time */
				run_case(&scenarios[i], rules, 2);
				/* Moving never works again: there is another way. */
				rule = rules[0];
				rule.times = UINT32_MAX;
				if (error != EAGAIN)
					run_case(&scenarios[i], &rule, 1);
			}
	}
}

static void run_lost(void)
{
	const struct rule rules[] = {
		{ ROLE_LINK, CALL_MOVE, 2, UINT32_MAX, ENOMEM },
		{ ROLE_LINK, CALL_COPY, 1, UINT32_MAX, ENOMEM },
	};

	/* Not worth a core. */
	prctl(PR_SET_DUMPABLE, 0);
	signal(SIGABRT, SIG_DFL);
	run_case(&scenarios[0], rules, 2);
	bad("the VM runs on without a page");
}

static void run_random(u64 seconds, u64 seed)
{
	u64 end = now_us() + seconds * 1000000;

	for (u32 i = 0; now_us() < end; i++) {
		const struct scenario *s = &scenarios[i % nr_scenarios];
		u32 permille = i % 3 == 0 ? 300 : i % 3 == 1 ? 100 : 20;

		take_rules(s->name, NULL, 0);
		snprintf(where, sizeof(where), "random %s, case %u of seed %llu", s->name, i,
			 (unsigned long long)seed);
		if (scenario_begin()) {
			inject_open_random(permille, seed + i);
			s->act();
			inject_close();
			if (!scenario_trouble())
				s->after();
		}
		scenario_end();
		if (scenario_trouble())
			bad(scenario_trouble());
		scenario_forgive();
		nr_cases++;
	}
}

static u32 count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	u32 n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

/* bh_new() works or says why not, and leaves nothing; whatever bh_free() is told, it ends. */
static bool one_life(const struct rule *rule, u32 nr, u32 sites[NR_ROLES][NR_CALLS])
{
	u32 fds = count_fds(), failed, left, tries = 0;
	bool died = false;
	int r;

	take_rules("life", rule, nr);
	inject_open(rule, nr);
	inject_as_vmm(true);
	r = bh_probe();
	if (r == 0)
		r = new_agent();
	inject_as_vmm(false);
	if (r == 0 && scenario_begin()) {
		scenarios[0].act();
		scenario_end();
	} else if (r == 0) {
		died = true;
		scenario_end();
	}
	inject_as_vmm(true);
	if (r == 0)
		bh_free(agent);
	inject_as_vmm(false);
	for (u32 i = 0; sites && i < NR_ROLES; i++)
		for (u32 c = 0; c < NR_CALLS; c++)
			sites[i][c] = inject_seen(i, c);
	failed = inject_close();
	/* The peer closes its end when it sees ours closed; that of the case before may have been
	 * open still when we counted. */
	while ((left = count_fds()) > fds && tries++ < 5000)
		usleep(1000);
	/* Not counted again: the peer may take a connection that is closed already. */
	if (left > fds)
		bad("descriptors are left open");
	/* Setting the guest up is not what is tested here: it may fail. */
	if (scenario_trouble() && (!died || guest_complaint()))
		bad(scenario_trouble());
	scenario_forgive();
	nr_cases++;
	return failed;
}

/* A store that could shrink under a guest is none: @fd is that of such a file, open for writing. */
static void offer_unsealed(int fd)
{
	char path[64];
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	if (ro < 0 || ftruncate(fd, (off_t)peer_store_bytes()) < 0)
		bad("no file to offer");
	peer_offer(ro);
	if (new_agent() == 0)
		bad("a store that can shrink was taken");
	peer_offer(-1);
	close(ro);
	close(fd);
	nr_cases++;
}

static void run_life(const char *dir)
{
	u32 sites[NR_ROLES][NR_CALLS];

	take_rules("life: store without seals", NULL, 0);
	offer_unsealed(memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	offer_unsealed(open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)); /* knows of no seals */
	one_life(NULL, 0, sites);
	for (u32 c = 0; c < NR_CALLS; c++)
		for (u32 n = 1; n <= MIN(sites[ROLE_VMM][c], SITES_MAX); n++) {
			nr_sites++;
			for (u32 e = 0; inject_error(c, e); e++) {
				struct rule rule = { ROLE_VMM, c, n, 1, inject_error(c, e) };

				if (!one_life(&rule, 1, NULL))
					nr_missed++;
			}
		}
	one_life(NULL, 0, NULL);
}

/* --- dma ---------------------------------------------------------------------------------------
 */

/* A new agent, which has looked at nothing yet, and one page to merge. Returns its status. */
static s32 merge_one(const struct rule *rules, u32 nr, u32 sites[NR_CALLS])
{
	struct wire_run run;
	s32 status = 1;

	if (new_agent() < 0 || guest_new() < 0) {
		bad("no agent");
		return 1;
	}
	guest_write(0, 1, PAGE_STILL);
	run = (struct wire_run){ .hva = guest_hva(0),
				 .nr_pages = 1,
				 .kind = WIRE_RUN_STORE,
				 .store_offset = PAGE_BYTES };
	if (bh_region_add(agent, guest_page(0), GUEST_BYTES, 0, "ram") < 0 ||
	    !peer_knows(guest_hva(0)))
		bad("the memory is not taken");
	inject_open(rules, nr);
	if (peer_merge(&run, 1, &status) == 0 && status == 0 && nr)
		bad("a page was replaced that a device may write");
	inject_close();
	for (u32 c = 0; sites && c < NR_CALLS; c++)
		sites[c] = inject_seen(ROLE_LINK, c);
	if (!guest_lives() || guest_complaint())
		bad(guest_complaint() ? guest_complaint() : "a guest access hangs");
	bh_region_del(agent, guest_page(0), GUEST_BYTES);
	bh_free(agent);
	guest_delete();
	nr_cases++;
	return status;
}

static void run_dma(const char *dir)
{
	static const enum call calls[] = { CALL_FSTAT, CALL_FSTATFS,  CALL_OPEN,  CALL_READLINK,
					   CALL_READ,  CALL_GETDENTS, CALL_FCNTL, CALL_LSEEK,
					   CALL_POLL,  CALL_ACCESS };
	u32 sites[NR_CALLS], with_none[NR_CALLS];
	char path[128];
	int fd;

	take_rules("dma", NULL, 0);
	/* The control: without such a descriptor it merges. */
	if (merge_one(NULL, 0, with_none) != 0)
		bad("a page does not merge");
	snprintf(path, sizeof(path), "%s/direct", dir);
	fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	if (fd < 0) {
		bad("no O_DIRECT here");
		return;
	}
	inject_fake_nfs(true);
	if (merge_one(NULL, 0, sites) != -EBUSY)
		bad("a file with O_DIRECT on NFS is not minded");
	for (u32 i = 0; i < ARRAY_SIZE(calls); i++)
		for (u32 n = 1; n <= MIN(sites[calls[i]], SITES_MAX); n++) {
			nr_sites++;
			for (u32 e = 0; inject_error(calls[i], e); e++) {
				struct rule rule = { ROLE_LINK, calls[i], n, 1,
						     inject_error(calls[i], e) };

				take_rules("dma", &rule, 1);
				merge_one(&rule, 1, NULL);
			}
		}
	inject_fake_nfs(false);
	close(fd);
	if (merge_one(NULL, 0, NULL) != 0)
		bad("afterwards: a page does not merge");
}

int main(int argc, char **argv)
{
	const char *dir = argc > 2 ? argv[1] : "", *what = argc > 2 ? argv[2] : "";
	u64 begin = now_us();
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	/* What the agent looks at is the same wherever this runs. */
	dup2(null, STDIN_FILENO);
	signal(SIGALRM, on_alarm);
	verbose = getenv("FAULTS_VERBOSE") || strcmp(what, "lost") == 0;
	snprintf(socket_path, sizeof(socket_path), "%s/faults.%d", dir, (int)getpid());
	if (guest_start() < 0 || peer_start(socket_path) < 0) {
		perror("tool_faults");
		return 2;
	}
	if (strcmp(what, "life") == 0) {
		run_life(dir);
	} else if (strcmp(what, "dma") == 0) {
		run_dma(dir);
	} else {
		if (new_agent() < 0)
			return 2;
		if (strcmp(what, "each") == 0)
			run_each(argc > 3 ? argv[3] : NULL);
		else if (strcmp(what, "lasting") == 0)
			run_lasting();
		else if (strcmp(what, "back") == 0)
			run_back();
		else if (strcmp(what, "lost") == 0)
			run_lost();
		else if (strcmp(what, "random") == 0 && argc > 4)
			run_random(strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10));
		else
			return 2;
		alarm(STUCK_S);
		bh_free(agent);
	}
	unlink(socket_path);
	printf("FAULTS mode=%s cases=%u sites=%u failed_calls=%llu kinds=%u distinct=%u missed=%u "
	       "accesses=%llu seconds=%.1f bad=%u\n",
	       what, nr_cases, nr_sites, (unsigned long long)inject_total(), inject_kinds(),
	       inject_distinct(), nr_missed, (unsigned long long)guest_accesses(),
	       (double)(now_us() - begin) / 1e6, nr_bad);
	/* The guest and the peer run on: they end with the process. */
	fflush(stdout);
	_exit(nr_bad ? 1 : 0);
}
