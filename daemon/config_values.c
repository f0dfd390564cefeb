/* SPDX-License-Identifier: MIT */
/* From the table's rows to values: parsing, defaults, printing. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "daemon/config_table.h"

static void store_number(void *dst, size_t size, u64 value)
{
	u8 v8 = (u8)value;
	u16 v16 = (u16)value;
	u32 v32 = (u32)value;

	switch (size) {
	case 1:
		memcpy(dst, &v8, 1);
		break;
	case 2:
		memcpy(dst, &v16, 2);
		break;
	case 4:
		memcpy(dst, &v32, 4);
		break;
	default:
		memcpy(dst, &value, 8);
	}
}

static u64 load_number(const void *src, size_t size)
{
	u64 value = 0;

	memcpy(&value, src, size); /* little endian, as x86-64 is */
	return value;
}

static int find_word(const struct word *words, const char *s, u64 *ret)
{
	for (; words->word; words++) {
		if (strcasecmp(words->word, s) == 0) {
			*ret = words->value;
			return 0;
		}
	}
	return -EINVAL;
}

int config_set(const struct setting *s, void *base, const char *text)
{
	void *dst = (char *)base + s->offset;
	u64 value;
	int r;

	if (s->type->check) {
		size_t len = strlen(text);

		r = s->type->check(text);
		if (r == 0 && (len < s->min || len > s->max))
			r = -ERANGE;
		if (r == 0)
			memcpy(dst, text, len + 1);
		return r;
	}
	if (s->type->words) {
		r = find_word(s->type->words, text, &value);
	} else {
		r = s->type->number(text, &value);
		if (r == 0 && !(value == 0 && s->type->zero_is_off) && s->max &&
		    (value < s->min || value > s->max))
			r = -ERANGE;
	}
	if (r == 0)
		store_number(dst, s->size, value);
	return r;
}

void config_range_text(const struct setting *s, char *buf, size_t size)
{
	char min[PARSE_TEXT_MAX], max[PARSE_TEXT_MAX];

	if (s->type->number)
		snprintf(buf, size, "%s to %s", s->type->number_text(min, s->min),
			 s->type->number_text(max, s->max));
	else
		snprintf(buf, size, "%" PRIu64 " to %" PRIu64 " bytes long", s->min, s->max);
}

static void set_section_defaults(bool vm, void *base)
{
	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		const struct setting *s = &config_settings[i];
		int r;

		if ((s->section == SEC_VM) != vm || !s->def)
			continue;
		r = config_set(s, base, s->def);
		assert(r == 0);
		(void)r;
	}
}

void config_set_defaults(struct config *c)
{
	memset(c, 0, sizeof(*c));
	set_section_defaults(false, c);
	set_section_defaults(true, &c->vm_default);
	c->vm_default.glob[0] = '*';
}

void config_derive_paths(struct config *c)
{
	if (c->agent_socket[0] == '\0')
		snprintf(c->agent_socket, sizeof(c->agent_socket), "%.*s/agent.sock", RUN_DIR_MAX,
			 c->run_dir);
	if (c->control_socket[0] == '\0')
		snprintf(c->control_socket, sizeof(c->control_socket), "%.*s/control.sock",
			 RUN_DIR_MAX, c->run_dir);
}

void config_defaults(struct config *c)
{
	config_set_defaults(c);
	config_derive_paths(c);
}

static const char *value_text(const struct setting *s, const void *base, char buf[PARSE_TEXT_MAX])
{
	const char *src = (const char *)base + s->offset;
	u64 value;

	if (s->type->check)
		return src;
	value = load_number(src, s->size);
	if (s->type->number_text)
		return s->type->number_text(buf, value);
	return config_word(s->type->words, value);
}

/* The keys of a section with, above each, what it accepts and why its default is what it is. */
static void print_section(FILE *out, enum section section, const void *base)
{
	char buf[PARSE_TEXT_MAX], range[96];

	for (size_t i = 0; i < CONFIG_NR_SETTINGS; i++) {
		const struct setting *s = &config_settings[i];

		if (s->section != section)
			continue;
		fprintf(out, "# %s", s->type->accepts);
		if (s->type->number && s->max) {
			config_range_text(s, range, sizeof(range));
			fprintf(out, " (%s)", range);
		}
		fprintf(out, "\n# default %s%s%s\n%s = %s\n", s->def ? s->def : "",
			s->def ? ": " : "", s->reason, s->key, value_text(s, base, buf));
	}
}

static void print_vm(FILE *out, const struct config_vm *v)
{
	fprintf(out, "\n[vm \"%s\"]\n", v->glob);
	print_section(out, SEC_VM, v);
}

int config_print(const struct config *c, FILE *out)
{
	bool catch_all = false;

	for (u32 i = 0; i < NR_SECTIONS; i++) {
		if (i == SEC_VM)
			continue;
		fprintf(out, "%s[%s]\n", i ? "\n" : "", config_section_names[i]);
		print_section(out, (enum section)i, c);
	}
	for (u32 i = 0; i < c->nr_vms; i++) {
		print_vm(out, &c->vms[i]);
		catch_all |= strcmp(c->vms[i].glob, c->vm_default.glob) == 0;
	}
	/* What VMs get that no section matches: saying it last changes nothing. */
	if (!catch_all)
		print_vm(out, &c->vm_default);
	return ferror(out) || fflush(out) ? -EIO : 0;
}
