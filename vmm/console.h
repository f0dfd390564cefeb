/* SPDX-License-Identifier: MIT */
/*
 * Our stdin and stdout as the other end of the serial line. A terminal is put into raw mode and put
 * back by console_free(), and by console_restore() where the process ends another way. Ctrl-A x on
 * a terminal ends the VM; Ctrl-A Ctrl-A sends one Ctrl-A.
 *
 * A reader of stdout that stops reading stops the guest's transmitter and nothing else. The flags
 * of descriptors that are shared with others (a shell's terminal) are not changed.
 */
#ifndef BALLAST_VMM_CONSOLE_H
#define BALLAST_VMM_CONSOLE_H

#include <systemd/sd-event.h>
#include "common/types.h"

struct console;

/* All called on the main thread. */
struct console_client {
	size_t (*input)(void *arg, const u8 *data, size_t bytes); /* returns what it took */
	void (*output_ready)(void *arg);			  /* room again after a false */
	void (*quit)(void *arg);				  /* Ctrl-A x */
	void *arg;
};

int console_new(sd_event *loop, const struct console_client *client, struct console **ret);
/* Writes what is still there, for a second at most. NULL is fine. */
void console_free(struct console *c);

/* Any thread. False: no room, output_ready() follows. */
bool console_put(struct console *c, u8 byte);
/* Any thread: input() may be called again, after it did not take all. */
void console_input_ready(struct console *c);

/* Async-signal-safe: the terminal as it was found, if there is a console. */
void console_restore(void);

#endif
