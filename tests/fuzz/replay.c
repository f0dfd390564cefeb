/* SPDX-License-Identifier: MIT */
/*
 * Runs a fuzz target without libFuzzer: every seed of the corpus, then a number of mutations of
 * seeds, which are the same in every run. For make check, with any compiler.
 *
 *   replay CORPUS_FOLDER COUNT CRASH_FILE     prints "execs=N seeds=N seconds=S"
 *   replay FILE                               one input, such as a saved crash
 *
 * An input that aborts, crashes or takes longer than INPUT_SECONDS is saved as CRASH_FILE.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include "common/clock.h"
#include "tests/fuzz/fuzz.h"

#define INPUT_SECONDS 20
#define INPUT_MAX     131072
#define SEEDS_MAX     256

#pragma weak LLVMFuzzerInitialize

struct seed {
	u8 *data;
	size_t size;
};

static struct seed seeds[SEEDS_MAX];
static u32 nr_seeds;
static u64 nr_execs;
static u8 *current; /* the input at work; allocated to its size, so that ASan sees its end */
static size_t current_size;
static const char *crash_file;

static u64 random_state = 0x42616c6c617374;

static u64 next_random(u64 below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return below ? (random_state >> 11) % below : 0;
}

static void save_current(int sig)
{
	int fd = crash_file ? open(crash_file, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;

	if (fd >= 0 && write(fd, current, current_size) == (ssize_t)current_size)
		dprintf(STDERR_FILENO, "signal %d; the input is saved: %s\n", sig, crash_file);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void catch_signals(void)
{
	/* SEGV and the like are the sanitizer's to report, which then aborts. */
#ifdef __SANITIZE_ADDRESS__
	static const int sigs[] = { SIGABRT, SIGALRM };
#else
	static const int sigs[] = { SIGABRT, SIGALRM, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
#endif

	for (size_t i = 0; i < ARRAY_SIZE(sigs); i++)
		signal(sigs[i], save_current);
}

static void run(const u8 *data, size_t size)
{
	current = malloc(size ? size : 1);
	current_size = size;
	MUST(current);
	if (size)
		memcpy(current, data, size);
	alarm(INPUT_SECONDS);
	LLVMFuzzerTestOneInput(current, size);
	alarm(0);
	free(current);
	nr_execs++;
}

static int load(const char *path)
{
	struct seed *s = &seeds[nr_seeds];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0 || nr_seeds == SEEDS_MAX)
		goto fail;
	s->data = malloc(INPUT_MAX);
	MUST(s->data);
	n = read(fd, s->data, INPUT_MAX);
	if (n < 0)
		goto fail;
	s->size = (size_t)n;
	nr_seeds++;
	close(fd);
	return 0;
fail:
	perror(path);
	if (fd >= 0)
		close(fd);
	return -1;
}

/* In name order: the run must not depend on the file system's. */
static int load_folder(const char *folder)
{
	struct dirent **names;
	char path[4096];
	int n = scandir(folder, &names, NULL, alphasort), r = 0;

	if (n < 0) {
		perror(folder);
		return -1;
	}
	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, names[i]->d_name);
		if (r == 0 && names[i]->d_name[0] != '.')
			r = load(path);
		free(names[i]);
	}
	free(names);
	return r;
}

static size_t mutate_once(u8 *buf, size_t size)
{
	static const u8 edges[] = {
		0, 1, 0x7f, 0x80, 0xff, '"', '\n', ' ', '0', '9', '[', ']', '='
	};
	size_t at = next_random(size + 1), n = 1 + next_random(next_random(4) ? 8 : 256);
	const struct seed *other;

	switch (next_random(8)) {
	case 0: /* flip a bit */
		if (at < size)
			buf[at] ^= (u8)(1u << next_random(8));
		break;
	case 1:
		if (at < size)
			buf[at] = (u8)next_random(256);
		break;
	case 2:
		if (at < size)
			buf[at] = edges[next_random(ARRAY_SIZE(edges))];
		break;
	case 3: /* a little-endian number near a power of two */
		for (u64 i = 0, v = ((u64)1 << next_random(64)) - next_random(2);
		     i < 8 && at + i < size; i++)
			buf[at + i] = (u8)(v >> (8 * i));
		break;
	case 4: /* cut a piece out */
		n = MIN(n, size - at);
		memmove(buf + at, buf + at + n, size - at - n);
		return size - n;
	case 5: /* repeat a piece */
		n = MIN(n, MIN(size - at, INPUT_MAX - size));
		memmove(buf + at + n, buf + at, size - at);
		return size + n;
	case 6: /* a piece of another seed */
		other = &seeds[next_random(nr_seeds)];
		n = MIN(n, MIN(other->size, INPUT_MAX - size));
		memmove(buf + at + n, buf + at, size - at);
		if (n)
			memcpy(buf + at, other->data + next_random(other->size - n + 1), n);
		return size + n;
	default:
		return next_random(8) ? size : at; /* the end is missing */
	}
	return size;
}

static void run_mutations(u64 count)
{
	static u8 buf[INPUT_MAX];

	for (u64 i = 0; i < count; i++) {
		const struct seed *s = &seeds[next_random(nr_seeds)];
		size_t size = s->size;

		memcpy(buf, s->data, size);
		for (u64 k = 1 + next_random(6); k > 0; k--)
			size = mutate_once(buf, size);
		run(buf, size);
	}
}

int main(int argc, char **argv)
{
	u64 started = now_us();
	struct stat st;

	if (argc < 2 || stat(argv[1], &st) < 0) {
		fprintf(stderr, "usage: %s FOLDER COUNT CRASH_FILE | FILE\n", argv[0]);
		return 2;
	}
	if (LLVMFuzzerInitialize)
		LLVMFuzzerInitialize(&argc, &argv);
	crash_file = argc > 3 ? argv[3] : NULL;
	catch_signals();
	if ((S_ISDIR(st.st_mode) ? load_folder(argv[1]) : load(argv[1])) < 0)
		return 2;
	if (nr_seeds == 0) {
		fprintf(stderr, "%s: no seeds\n", argv[1]);
		return 2;
	}
	run(NULL, 0);
	for (u32 i = 0; i < nr_seeds; i++)
		run(seeds[i].data, seeds[i].size);
	if (argc > 2)
		run_mutations(strtoull(argv[2], NULL, 10));
	for (u32 i = 0; i < nr_seeds; i++)
		free(seeds[i].data);
	printf("execs=%llu seeds=%u seconds=%.1f\n", (unsigned long long)nr_execs, nr_seeds,
	       (double)(now_us() - started) / 1e6);
	return 0;
}
