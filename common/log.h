/* SPDX-License-Identifier: MIT */
/*
 * Log lines of the two mains. Libraries (ksmd/, hypervisor-hooks/, metrics/) do not log: they
 * return negative errno, and the caller logs once.
 *
 * Lines go to stderr. Under systemd they carry the "<N>" priority prefix of sd-daemon(3), so the
 * journal knows warning from notice; on a terminal they carry the word.
 */
#ifndef BALLAST_COMMON_LOG_H
#define BALLAST_COMMON_LOG_H

enum log_level {
	LOG_LEVEL_ERR = 3,
	LOG_LEVEL_WARN = 4,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7,
};

/* Lines above @level are dropped. Default: LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/*
 * The same for lines that a stranger can cause: each place in the code writes at most LOG_LIMIT of
 * them in ten seconds; those beyond are counted, and the number is told by the next one that is
 * written.
 */
#define LOG_LIMIT 30
struct log_limit {
	unsigned long long since_us;
	unsigned int written, dropped;
};
void log_write_limited(struct log_limit *l, enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
#define log_limited(level, ...)                                             \
	do {                                                                \
		static struct log_limit limit_of_this_line;                 \
		log_write_limited(&limit_of_this_line, level, __VA_ARGS__); \
	} while (0)
#define log_warn_limited(...) log_limited(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info_limited(...) log_limited(LOG_LEVEL_INFO, __VA_ARGS__)

#define log_err(...)	      log_write(LOG_LEVEL_ERR, __VA_ARGS__)
#define log_warn(...)	      log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)	      log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)	      log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
