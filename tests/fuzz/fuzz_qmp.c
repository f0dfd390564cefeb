/* SPDX-License-Identifier: MIT */
/*
 * A QMP server that lies: qmp_session, and guest_stats on what it answers. At last the same bytes
 * as a command line, for qmp_find. The input: how the bytes are cut, when commands are sent; then
 * all that the server sends.
 *
 * Properties: it makes no difference how the bytes are cut; each command that was accepted is told
 * of once, with a value or with an error and its words; a session that is closed stays so, and says
 * why in printable text; what it sends is JSON, one command a line.
 */
#include <errno.h>
#include <jansson.h>
#include "balloon/guest_stats.h"
#include "balloon/qmp_find.h"
#include "balloon/qmp_session.h"
#include "tests/fuzz/fuzz.h"

#define COMMANDS_MAX 64
#define NOW	     1000000ULL

/* All that a conversation led to. */
struct outcome {
	int error;
	char text[QMP_TEXT_MAX];
	u32 readies, events, nr_sent, answers;
	u64 digest; /* of events and answers, in order */
};

static struct talk {
	struct qmp_session *s;
	struct outcome o;
	u32 told[COMMANDS_MAX]; /* how often of each command */
	u32 commands;		/* to be sent when the session is ready */
	u32 chain;		/* commands that callbacks still send */
} talk;

static void digest(const char *s)
{
	for (; *s; s++)
		talk.o.digest = (talk.o.digest ^ (u8)*s) * 0x100000001b3ULL;
}

static void must_be_printable(const char *s)
{
	for (; *s; s++)
		MUST(*s >= ' ' && *s < 0x7f);
}

static void send_one(void);

static void on_answer(void *arg, int error, json_t *value, const char *text)
{
	u32 *told = arg;
	char *dump;

	++*told;
	MUST(*told == 1);
	talk.o.answers++;
	if (error == 0) {
		struct guest_stats_reply reply;
		struct guest_stats stats = { 0 };
		u64 n;

		MUST(value && !text);
		dump = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
		MUST(dump);
		digest(dump);
		free(dump);
		MUST(qmp_u64(value, &n) != 0 || n <= INT64_MAX);
		if (guest_stats_parse(value, &reply) == 0) {
			guest_stats_update(&stats, &reply, NOW, 1795676287);
			MUST(stats.taken_us <= NOW);
			MUST(!guest_stats_has(&stats, GUEST_STAT_AVAILABLE) ||
			     !guest_stats_has(&stats, GUEST_STAT_TOTAL) ||
			     reply.value[GUEST_STAT_AVAILABLE] <= reply.value[GUEST_STAT_TOTAL]);
		}
	} else {
		MUST(!value && text && *text);
		must_be_printable(text);
		digest(text);
	}
	if (talk.chain) {
		talk.chain--;
		send_one();
	}
}

static void send_one(void)
{
	int r;

	if (talk.o.nr_sent == COMMANDS_MAX)
		return;
	r = qmp_session_command(talk.s, "qom-get", json_pack("{s:s}", "path", "/x"), on_answer,
				&talk.told[talk.o.nr_sent], NOW);
	MUST(r == 0 || r == -ENOTCONN || r == -EBUSY || r == -ENOBUFS);
	if (r == 0)
		talk.o.nr_sent++;
}

static void on_ready(void *arg)
{
	talk.o.readies++;
	for (u32 i = 0; i < talk.commands; i++)
		send_one();
}

static void on_event(void *arg, const char *name, json_t *data)
{
	talk.o.events++;
	MUST(*name && strlen(name) < QMP_EVENT_MAX);
	MUST(!data || json_is_object(data));
	digest(name);
}

static const struct qmp_session_ops ops = { .ready = on_ready, .event = on_event };

static void check_output(void)
{
	size_t len;
	const char *out = qmp_session_output(talk.s, &len), *end;

	while (len) {
		json_t *j;

		end = memchr(out, '\n', len);
		MUST(end);
		j = json_loadb(out, (size_t)(end - out), JSON_REJECT_DUPLICATES, NULL);
		MUST(json_is_string(json_object_get(j, "execute")));
		MUST(json_integer_value(json_object_get(j, "id")) > 0);
		json_decref(j);
		len -= (size_t)(end - out) + 1;
		out = end + 1;
	}
	qmp_session_output(talk.s, &len);
	qmp_session_sent(talk.s, len);
}

/* @piece: bytes at a time. */
static struct outcome converse(const u8 *bytes, size_t size, size_t piece, u32 commands, u32 chain)
{
	int r = 0;

	memset(&talk, 0, sizeof(talk));
	talk.commands = commands;
	talk.chain = chain;
	MUST(qmp_session_new(&ops, NULL, NOW, &talk.s) == 0);
	for (size_t at = 0; at < size && r == 0; at += piece) {
		size_t n = MIN(piece, size - at);
		u8 *copy = malloc(n); /* ends where the piece does */

		MUST(copy);
		memcpy(copy, bytes + at, n);
		r = qmp_session_input(talk.s, copy, n, NOW);
		free(copy);
		check_output();
	}
	MUST(r == qmp_session_error(talk.s));
	MUST((r < 0) == (qmp_session_phase(talk.s) == QMP_PHASE_CLOSED));
	talk.o.error = r;
	snprintf(talk.o.text, sizeof(talk.o.text), "%s", qmp_session_error_text(talk.s));
	if (r < 0) {
		MUST(*talk.o.text);
		must_be_printable(talk.o.text);
		MUST(qmp_session_input(talk.s, "{", 1, NOW) == r);
		MUST(qmp_session_command(talk.s, "x", NULL, NULL, NULL, NOW) == -ENOTCONN);
		MUST(qmp_session_deadline(talk.s) == UINT64_MAX);
	} else {
		MUST(qmp_session_expire(talk.s, NOW) == 0);
		if (qmp_session_deadline(talk.s) != UINT64_MAX)
			MUST(qmp_session_expire(talk.s, NOW + QMP_ANSWER_US) < 0);
	}
	talk.chain = 0;
	qmp_session_free(talk.s);
	for (u32 i = 0; i < talk.o.nr_sent; i++)
		MUST(talk.told[i] == 1);
	MUST(talk.o.answers == talk.o.nr_sent);
	return talk.o;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static const char handshake[] = "{\"QMP\":{}}{\"return\":{},\"id\":1}";
	struct input in = { data, data + size };
	u8 how = input_u8(&in), cut = input_u8(&in);
	u32 commands = how & 0xf, chain = how >> 6;
	size_t left = input_left(&in), prefix = how & 0x10 ? 0 : sizeof(handshake) - 1;
	u8 *all = malloc(prefix + left + 1);
	struct outcome whole, cut_up;
	char path[QMP_FIND_PATH_MAX];

	MUST(all);
	memcpy(all, handshake, prefix);
	memcpy(all + prefix, in.at, left);
	whole = converse(all, prefix + left, prefix + left + 1, commands, chain);
	cut_up = converse(all, prefix + left, cut + 1, commands, chain);
	MUST(whole.error == cut_up.error && strcmp(whole.text, cut_up.text) == 0);
	MUST(whole.readies == cut_up.readies && whole.events == cut_up.events);
	MUST(whole.answers == cut_up.answers && whole.digest == cut_up.digest);

	free(all);

	/* The same bytes as a command line. */
	if (qmp_find((const char *)in.at, left, path) == QMP_FIND_FOUND)
		MUST(*path && memchr(path, '\0', sizeof(path)));
	return 0;
}
