/* SPDX-License-Identifier: MIT */
/*
 * Configuration files. Lines "%%" cut the input into ballast.conf and up to two files of conf.d/.
 *
 * Properties: a refused configuration leaves the caller's alone and says why in one printable line
 * that begins with the file's path; of an accepted one every value is within the bounds of its
 * setting, and what config_print() writes is accepted, gives the same settings to every VM, and is
 * printed the same again.
 */
#include <ctype.h>
#include <fcntl.h>
#include <sys/stat.h>
#include "daemon/config_table.h"
#include "tests/fuzz/fuzz.h"

#define FILES 3

static char folder[128];
static char paths[FILES][192], printed_path[192];

static void clean_up(void)
{
	char sub[192];

	for (int i = 0; i < FILES; i++)
		unlink(paths[i]);
	unlink(printed_path);
	snprintf(sub, sizeof(sub), "%s/conf.d", folder);
	rmdir(sub);
	snprintf(sub, sizeof(sub), "%s/printed", folder);
	rmdir(sub);
	rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : getenv("TMPDIR");
	char sub[192];

	snprintf(folder, sizeof(folder), "%s/fuzz_config.XXXXXX", tmp ? tmp : "/tmp");
	MUST(mkdtemp(folder));
	snprintf(sub, sizeof(sub), "%s/conf.d", folder);
	MUST(mkdir(sub, 0700) == 0);
	snprintf(sub, sizeof(sub), "%s/printed", folder);
	MUST(mkdir(sub, 0700) == 0);
	snprintf(paths[0], sizeof(paths[0]), "%s/ballast.conf", folder);
	snprintf(paths[1], sizeof(paths[1]), "%s/conf.d/10.conf", folder);
	snprintf(paths[2], sizeof(paths[2]), "%s/conf.d/20.conf", folder);
	snprintf(printed_path, sizeof(printed_path), "%s/printed/ballast.conf", folder);
	atexit(clean_up);
	return 0;
}

static void write_file(const char *path, const void *data, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	MUST(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	close(fd);
}

static void write_files(const u8 *data, size_t size)
{
	static const char cut[] = "\n%%\n";

	for (int i = 0; i < FILES; i++) {
		const u8 *end = i + 1 < FILES ? memmem(data, size, cut, strlen(cut)) : NULL;
		size_t n = end ? (size_t)(end - data) + 1 : size;

		if (i && !size)
			unlink(paths[i]);
		else
			write_file(paths[i], data, n);
		n = end ? n + strlen(cut) - 1 : n;
		data += n;
		size -= n;
	}
}

static u64 number_of(const struct setting *s, const void *base)
{
	u64 v = 0;

	memcpy(&v, (const char *)base + s->offset, s->size);
	return v;
}

static const char *text_of(const struct setting *s, const void *base)
{
	return (const char *)base + s->offset;
}

static void must_be_in_bounds(bool vm, const void *base)
{
	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		const struct setting *s = &config_settings[i];

		if ((s->section == SEC_VM) != vm)
			continue;
		if (s->type->check) {
			size_t len = strnlen(text_of(s, base), s->size);

			MUST(len < s->size && len >= s->min && len <= s->max);
		} else if (s->max && !(s->type->zero_is_off && !number_of(s, base))) {
			MUST(number_of(s, base) >= s->min && number_of(s, base) <= s->max);
		}
	}
}

static void must_be_equal(bool vm, const void *a, const void *b)
{
	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		const struct setting *s = &config_settings[i];

		if ((s->section == SEC_VM) != vm)
			continue;
		if (s->type->check)
			MUST(strcmp(text_of(s, a), text_of(s, b)) == 0);
		else
			MUST(number_of(s, a) == number_of(s, b));
	}
}

static void must_match_equally(const struct config *a, const struct config *b, const char *name)
{
	must_be_equal(true, config_vm_match(a, name, "0A-1b", 0),
		      config_vm_match(b, name, "0A-1b", 0));
	must_be_equal(true, config_vm_match(a, NULL, name, 1), config_vm_match(b, NULL, name, 1));
}

static char *print(const struct config *c, size_t *ret_size)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, ret_size);

	MUST(f);
	MUST(config_print(c, f) == 0);
	fclose(f);
	return text;
}

static void must_round_trip(const struct config *a)
{
	struct config_error err;
	struct config b;
	size_t size, size_again;
	char *text = print(a, &size), *again;

	write_file(printed_path, text, size);
	if (config_load(printed_path, true, &b, &err) < 0) {
		fprintf(stderr, "%s\n%s\n", text, err.text);
		MUST(!"what was printed is refused");
	}
	must_be_equal(false, a, &b);
	/* The defaults are said last, as the section of all VMs. */
	MUST(b.nr_vms == a->nr_vms || b.nr_vms == a->nr_vms + 1);
	for (u32 i = 0; i < a->nr_vms; i++) {
		MUST(strcmp(a->vms[i].glob, b.vms[i].glob) == 0);
		must_be_equal(true, &a->vms[i], &b.vms[i]);
		if (i < 4)
			must_match_equally(a, &b, a->vms[i].glob);
	}
	must_match_equally(a, &b, "web-1");
	again = print(&b, &size_again);
	MUST(size == size_again && memcmp(text, again, size) == 0);
	free(again);
	free(text);
	config_free(&b);
}

static void must_explain(const struct config_error *err)
{
	size_t len = strnlen(err->text, sizeof(err->text));

	MUST(len > strlen(folder) && len < sizeof(err->text));
	MUST(strncmp(err->text, folder, strlen(folder)) == 0);
	for (size_t i = 0; i < len; i++)
		MUST(err->text[i] >= ' ' && err->text[i] <= '~');
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static struct config c, untouched;
	struct config_error err;
	int free_fd = lowest_free_fd();
	int r;

	write_files(data, size);
	memset(&c, 0xa5, sizeof(c));
	memcpy(&untouched, &c, sizeof(c));
	r = config_load(paths[0], true, &c, &err);
	if (r < 0) {
		MUST(memcmp(&c, &untouched, sizeof(c)) == 0);
		must_explain(&err);
	} else {
		must_be_in_bounds(false, &c);
		for (u32 i = 0; i < c.nr_vms; i++)
			must_be_in_bounds(true, &c.vms[i]);
		must_be_in_bounds(true, &c.vm_default);
		must_round_trip(&c);
		config_free(&c);
	}
	MUST(lowest_free_fd() == free_fd);
	return 0;
}
