/* SPDX-License-Identifier: MIT */
/*
 * The table behind the configuration, for config.c alone: one row for each key (config_table.c)
 * says how its value is parsed (config_types.c), its range, its default and the reason for it.
 * Parsing, defaults, error texts and `ballastd --print-config` all come from the rows
 * (config_values.c).
 */
#ifndef BALLAST_DAEMON_CONFIG_TABLE_H
#define BALLAST_DAEMON_CONFIG_TABLE_H

#include "common/parse.h"
#include "daemon/config.h"

enum section {
	SEC_DAEMON,
	SEC_METRICS,
	SEC_SCAN,
	SEC_STORE,
	SEC_POLICY,
	SEC_VM,
	NR_SECTIONS,
	SEC_NONE
};

extern const char *const config_section_names[NR_SECTIONS];

/*
 * Value types. Exactly one of @words (a choice), @number (with its range in the setting) and @check
 * (text whose length is in the range) is set.
 */
struct word {
	const char *word;
	u64 value;
};

struct value_type {
	const char *accepts;	  /* completes "... is not" */
	const struct word *words; /* the first word of a value is the one that is printed */
	int (*number)(const char *s, u64 *ret);
	const char *(*number_text)(char buf[PARSE_TEXT_MAX], u64 value);
	int (*check)(const char *s);
	bool zero_is_off; /* so that it is in every range */
};

extern const struct value_type type_bool, type_log, type_share, type_policy_mode, type_resort,
	type_bytes_or_off, type_path_or_none, type_count, type_count_or_off, type_mode,
	type_percent, type_duration, type_bytes, type_path, type_qmp, type_address, type_user,
	type_domain;

/* The first word that stands for @value; "?": none does. */
const char *config_word(const struct word *words, u64 value);

/* What sun_path holds, without its NUL; and a run_dir leaves room in it for "/control.sock". */
#define SOCKET_PATH_MAX 107
#define RUN_DIR_MAX	(SOCKET_PATH_MAX - 13)

struct setting {
	enum section section;
	const char *key;
	const struct value_type *type;
	size_t offset, size; /* in struct config, or in struct config_vm for SEC_VM */
	u64 min, max;	     /* of a number; of the length of a text; max 0: no bounds */
	const char
		*def; /* parsed like a value of a file; NULL: derived, see config_derive_paths() */
	const char *reason;
};

#define CONFIG_NR_SETTINGS 45
extern const struct setting config_settings[];

/* Parses @text into its member of @base (struct config, or struct config_vm for SEC_VM). 0,
 * -EINVAL or -ERANGE, and then @base is untouched. */
int config_set(const struct setting *s, void *base, const char *text);

/* "10ms to 1h": completes "accepted: ". */
void config_range_text(const struct setting *s, char *buf, size_t size);

/* The defaults without the paths that follow from run_dir; and those, where no file has set
 * them. */
void config_set_defaults(struct config *c);
void config_derive_paths(struct config *c);

#endif
