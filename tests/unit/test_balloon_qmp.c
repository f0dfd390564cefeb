/* SPDX-License-Identifier: MIT */
/* A QMP conversation on bytes alone. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "balloon/qmp_session.h"

#define GREETING                                                                           \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, " \
	"\"package\": \"Debian\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define CAPABLE "{\"return\": {}, \"id\": 1}\r\n"
#define T0	1000ULL

static struct log {
	int readies, events, answers;
	char event[QMP_EVENT_MAX];
	s64 event_number;
	/* Of the last answer, and the order of all. */
	int error;
	s64 value;
	char text[QMP_TEXT_MAX], order[64];
} seen;

static void on_ready(void *arg)
{
	seen.readies++;
}

static void on_event(void *arg, const char *name, json_t *data)
{
	seen.events++;
	snprintf(seen.event, sizeof(seen.event), "%s", name);
	seen.event_number = json_integer_value(json_object_get(data, "actual"));
}

static const struct qmp_session_ops ops = { .ready = on_ready, .event = on_event };

/* @arg: a letter that says which command it was. */
static void on_answer(void *arg, int error, json_t *value, const char *text)
{
	size_t n = strlen(seen.order);

	cr_expect(error == 0 ? value && !text : !value && text && *text);
	seen.answers++;
	seen.error = error;
	seen.value = json_integer_value(json_object_get(value, "n"));
	snprintf(seen.text, sizeof(seen.text), "%s", text ? text : "");
	if (n + 1 < sizeof(seen.order))
		seen.order[n] = *(const char *)arg;
}

static struct qmp_session *new_session(void)
{
	struct qmp_session *s;

	seen = (struct log){ 0 };
	cr_assert_eq(qmp_session_new(&ops, NULL, T0, &s), 0);
	return s;
}

static int input(struct qmp_session *s, const char *text)
{
	return qmp_session_input(s, text, strlen(text), T0);
}

static void sent(struct qmp_session *s)
{
	size_t len;

	qmp_session_output(s, &len);
	qmp_session_sent(s, len);
}

static struct qmp_session *ready_session(void)
{
	struct qmp_session *s = new_session();

	cr_assert_eq(input(s, GREETING), 0);
	cr_assert_eq(input(s, CAPABLE), 0);
	cr_assert_eq(qmp_session_phase(s), QMP_PHASE_READY);
	sent(s);
	return s;
}

static int command(struct qmp_session *s, const char *letter)
{
	return qmp_session_command(s, "query-status", NULL, on_answer, (void *)letter, T0);
}

TestSuite(qmp, .timeout = 60);

Test(qmp, handshake)
{
	struct qmp_session *s = new_session();
	size_t len;
	const char *out;

	cr_expect_eq(qmp_session_phase(s), QMP_PHASE_GREETING);
	cr_expect_eq(command(s, "a"), -ENOTCONN);
	cr_expect_eq(input(s, GREETING), 0);
	cr_expect_str_eq(qmp_session_version(s), "7.2.22");
	cr_expect_eq(qmp_session_phase(s), QMP_PHASE_NEGOTIATING);
	out = qmp_session_output(s, &len);
	cr_expect_eq(len, strlen("{\"execute\":\"qmp_capabilities\",\"id\":1}\n"));
	cr_expect_eq(memcmp(out, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n", len), 0);
	cr_expect_eq(command(s, "a"), -ENOTCONN);
	/* An event that is too early is not ours, and harmless. */
	cr_expect_eq(input(s, "{\"event\": \"RESUME\", \"timestamp\": {}}\n"), 0);
	cr_expect_eq(input(s, CAPABLE), 0);
	cr_expect_eq(qmp_session_phase(s), QMP_PHASE_READY);
	cr_expect(seen.readies == 1 && seen.events == 0);
	qmp_session_free(s);
}

Test(qmp, one_byte_at_a_time_and_pretty)
{
	static const char all[] = GREETING CAPABLE
		"{\n  \"event\": \"BALLOON_CHANGE\",\n"
		"  \"data\": {\n    \"actual\": 77\n  }\n}\n"
		"{\"return\": {\"n\": 5, \"s\": \"a}\\\"{[\\\\\"},"
		"\"id\": 2}";
	struct qmp_session *s = new_session();

	for (size_t i = 0; i + 1 < sizeof(all); i++) {
		if (qmp_session_phase(s) == QMP_PHASE_READY && !seen.events && i % 7 == 0)
			(void)command(s, "a");
		cr_assert_eq(qmp_session_input(s, all + i, 1, T0), 0, "byte %zu: %s", i,
			     qmp_session_error_text(s));
	}
	cr_expect(seen.events == 1 && seen.event_number == 77);
	cr_expect_str_eq(seen.event, "BALLOON_CHANGE");
	cr_expect(seen.answers >= 1 && seen.value == 5 && seen.error == 0);
	qmp_session_free(s);
}

Test(qmp, answers_out_of_order)
{
	struct qmp_session *s = ready_session();

	cr_assert(command(s, "a") == 0 && command(s, "b") == 0 && command(s, "c") == 0);
	cr_expect_eq(input(s, "{\"return\": {}, \"id\": 4}{\"return\": {}, \"id\": 2}"
			      "{\"event\": \"STOP\"} {\"id\": 3, \"return\": []}"),
		     0);
	cr_expect_str_eq(seen.order, "cab");
	cr_expect_eq(qmp_session_deadline(s), UINT64_MAX);
	/* Its id is no longer one that was asked for. */
	cr_expect_eq(input(s, "{\"return\": {}, \"id\": 3}"), -EPROTO);
	qmp_session_free(s);
}

Test(qmp, errors_of_commands)
{
	static const struct {
		const char *class;
		int error;
	} cases[] = {
		{ "GenericError", -EREMOTEIO },	 { "DeviceNotActive", -ENODEV },
		{ "DeviceNotFound", -ENODEV },	 { "CommandNotFound", -EOPNOTSUPP },
		{ "KVMMissingCap", -EREMOTEIO }, { "", -EREMOTEIO },
	};
	struct qmp_session *s = ready_session();
	char text[256];

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		cr_assert_eq(command(s, "a"), 0);
		sent(s);
		snprintf(text, sizeof(text),
			 "{\"id\": %u, \"error\": {\"class\": \"%s\", \"desc\": \"no\\u001b[2J\"}}",
			 i + 2, cases[i].class);
		cr_expect_eq(input(s, text), 0);
		cr_expect_eq(seen.error, cases[i].error, "%s", cases[i].class);
		cr_expect_not(strchr(seen.text, '\x1b'), "not fit for a terminal");
	}
	cr_expect_eq(seen.answers, ARRAY_SIZE(cases));
	qmp_session_free(s);
}

/* What ends a conversation, and in which words. */
Test(qmp, hostile)
{
	static const struct {
		const char *name, *bytes; /* after the greeting and the handshake if @ready */
		bool ready;
		int error;
		const char *says;
	} cases[] = {
		{ "garbage", "hello\n", false, -EPROTO, "JSON" },
		{ "binary", "\xff\xfe\x01", false, -EPROTO, "JSON" },
		{ "array", "[1]\n", false, -EPROTO, "JSON" },
		{ "no_greeting", "{\"return\": {}}\n", false, -EPROTO, "greet" },
		{ "greeting_not_object", "{\"QMP\": 3}\n", false, -EPROTO, "greet" },
		{ "event_first", "{\"event\": \"STOP\"}\n", false, -EPROTO, "greet" },
		{ "cut_json", "{\"QMP\" }\n", false, -EPROTO, "JSON" },
		{ "braces_do_not_pair", "{\"QMP\": []]\n", false, -EPROTO, "JSON" },
		{ "bad_utf8", "{\"QMP\": {\"a\": \"\xff\"}}", false, -EPROTO, "JSON" },
		{ "duplicate_keys", "{\"QMP\": {}, \"QMP\": {}}", false, -EPROTO, "JSON" },
		{ "refused", GREETING "{\"error\": {\"class\": \"C\", \"desc\": \"d\"}, \"id\": 1}",
		  false, -EREMOTEIO, "qmp_capabilities" },
		{ "second_greeting", GREETING, true, -EPROTO, "neither" },
		{ "no_id", "{\"return\": {}}", true, -EPROTO, "without the id" },
		{ "id_of_text", "{\"return\": {}, \"id\": \"2\"}", true, -EPROTO,
		  "without the id" },
		{ "id_negative", "{\"return\": {}, \"id\": -2}", true, -EPROTO, "without the id" },
		{ "id_zero", "{\"return\": {}, \"id\": 0}", true, -EPROTO, "without the id" },
		{ "id_huge", "{\"return\": {}, \"id\": 99999999999999999999}", true, -EPROTO,
		  "without the id" },
		{ "id_wrong", "{\"return\": {}, \"id\": 7}", true, -EPROTO, "not sent" },
		{ "error_alone", "{\"error\": {\"class\": \"C\", \"desc\": \"d\"}}", true, -EPROTO,
		  "without the id" },
		{ "error_empty", "{\"error\": {}, \"id\": 2}", true, -EPROTO, "neither with" },
		{ "error_no_object", "{\"error\": 1, \"id\": 2}", true, -EPROTO, "neither with" },
		{ "both", "{\"return\": 1, \"error\": {\"class\":\"\",\"desc\":\"\"}, \"id\": 2}",
		  true, -EPROTO, "neither with" },
		{ "event_number", "{\"event\": 1}", true, -EPROTO, "event" },
		{ "event_empty", "{\"event\": \"\"}", true, -EPROTO, "event" },
		{ "event_data", "{\"event\": \"STOP\", \"data\": 3}", true, -EPROTO, "event" },
		{ "event_long",
		  "{\"event\": \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"}",
		  true, -EPROTO, "event" },
		{ "nothing", "{}", true, -EPROTO, "neither an answer" },
		{ "nul", "{\"a\": \"\\u0000\"}", true, -EPROTO, "JSON" },
		{ "number", "{\"return\": 1e999999, \"id\": 2}", true, -EPROTO, "JSON" },
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		struct qmp_session *s = cases[i].ready ? ready_session() : new_session();
		int asked = cases[i].ready && command(s, "a") == 0;
		size_t len;

		cr_expect_eq(input(s, cases[i].bytes), cases[i].error, "%s", cases[i].name);
		cr_expect(strstr(qmp_session_error_text(s), cases[i].says), "%s: \"%s\"",
			  cases[i].name, qmp_session_error_text(s));
		cr_expect_eq(qmp_session_phase(s), QMP_PHASE_CLOSED);
		/* Who asked has been told, once; nothing is said any more. */
		cr_expect_eq(seen.answers, asked, "%s: %d answers", cases[i].name, seen.answers);
		cr_expect(!asked || seen.error == cases[i].error, "%s", cases[i].name);
		qmp_session_output(s, &len);
		cr_expect_eq(len, 0);
		cr_expect_eq(input(s, GREETING), cases[i].error);
		cr_expect_eq(command(s, "b"), -ENOTCONN);
		qmp_session_free(s);
		cr_expect_eq(seen.answers, asked, "%s: told twice", cases[i].name);
	}
}

static int input_many(struct qmp_session *s, const char *piece, u32 nr, u64 now_us)
{
	int r = 0;

	for (u32 i = 0; i < nr && r == 0; i++)
		r = qmp_session_input(s, piece, strlen(piece), now_us);
	return r;
}

Test(qmp, too_much)
{
	struct qmp_session *s = ready_session();

	/* A message without end. */
	cr_assert_eq(command(s, "a"), 0);
	cr_assert_eq(input(s, "{\"return\": \""), 0);
	cr_expect_eq(input_many(s, "0123456789abcdef", QMP_MESSAGE_MAX / 16 + 1, T0), -EMSGSIZE);
	cr_expect(strstr(qmp_session_error_text(s), "256 KiB"));
	cr_expect_eq(seen.answers, 1);
	qmp_session_free(s);

	/* As deep as allowed, and one deeper. */
	s = ready_session();
	cr_assert_eq(input(s, "{\"event\": \"E\", \"data\": {\"d\": "), 0);
	cr_assert_eq(input_many(s, "[", QMP_DEPTH_MAX - 2, T0), 0);
	cr_assert_eq(input_many(s, "]", QMP_DEPTH_MAX - 2, T0), 0);
	cr_assert_eq(input(s, "}}"), 0);
	cr_expect_eq(seen.events, 1);
	cr_assert_eq(input(s, "{\"a\": "), 0);
	cr_expect_eq(input_many(s, "[", QMP_DEPTH_MAX, T0), -EMSGSIZE);
	qmp_session_free(s);

	/* Nothing but line ends, and nothing but events: bounded in time. */
	s = ready_session();
	cr_expect_eq(input_many(s, "\r\n\r\n\r\n\r\n", QMP_FLOOD_BYTES / 8 + 1, T0), -EMSGSIZE);
	qmp_session_free(s);
	s = ready_session();
	for (u32 i = 0; i < 10; i++)
		cr_expect_eq(input_many(s, "{\"event\": \"RTC_CHANGE\"}\n", 30000,
					T0 + i * QMP_FLOOD_US),
			     0, "%u", i);
	cr_expect_eq(input_many(s, "{\"event\": \"RTC_CHANGE\"}\n", 200000, T0 + 10 * QMP_FLOOD_US),
		     -EMSGSIZE);
	qmp_session_free(s);
}

Test(qmp, time)
{
	struct qmp_session *s = new_session();

	cr_expect_eq(qmp_session_deadline(s), T0 + QMP_GREETING_US);
	cr_expect_eq(qmp_session_expire(s, T0 + QMP_GREETING_US - 1), 0);
	cr_expect_eq(qmp_session_expire(s, T0 + QMP_GREETING_US), -EBUSY);
	cr_expect(strstr(qmp_session_error_text(s), "another one"));
	qmp_session_free(s);

	/* A server that drips a greeting that never ends is no better. */
	s = new_session();
	cr_expect_eq(input(s, "{\"QMP\": {"), 0);
	cr_expect_eq(qmp_session_expire(s, T0 + QMP_GREETING_US), -EBUSY);
	qmp_session_free(s);

	s = new_session();
	cr_expect_eq(input(s, GREETING), 0);
	cr_expect_eq(qmp_session_deadline(s), T0 + QMP_ANSWER_US);
	cr_expect_eq(qmp_session_expire(s, T0 + QMP_ANSWER_US), -ETIMEDOUT);
	qmp_session_free(s);

	s = ready_session();
	cr_expect_eq(qmp_session_deadline(s), UINT64_MAX);
	cr_assert_eq(command(s, "a"), 0);
	cr_assert_eq(qmp_session_command(s, "stop", NULL, on_answer, (void *)"b", T0 + 5), 0);
	cr_expect_eq(input(s, "{\"return\": {}, \"id\": 2}{\"event\": \"STOP\"}"), 0);
	cr_expect_eq(qmp_session_deadline(s), T0 + 5 + QMP_ANSWER_US);
	cr_expect_eq(qmp_session_expire(s, T0 + 5 + QMP_ANSWER_US), -ETIMEDOUT);
	cr_expect(seen.answers == 2 && seen.error == -ETIMEDOUT);
	cr_expect_str_eq(seen.order, "ab");
	qmp_session_free(s);
}

Test(qmp, what_we_send_is_bounded)
{
	static char big[QMP_OUTPUT_MAX];
	struct qmp_session *s = ready_session();
	int r = 0, nr = 0;
	json_t *args;

	while (nr < 1000 && (r = command(s, "a")) == 0)
		nr++;
	cr_expect(r == -EBUSY && nr == QMP_PENDING_MAX, "%d after %d", r, nr);
	qmp_session_free(s);
	cr_expect_eq(seen.answers, nr);
	cr_expect_eq(seen.error, -ECONNRESET);

	s = ready_session();
	memset(big, 'x', sizeof(big) - 1);
	args = json_pack("{s:s}", "text", big);
	cr_assert(args);
	cr_expect_eq(qmp_session_command(s, "c", args, on_answer, (void *)"a", T0), -ENOBUFS);
	cr_expect_eq(command(s, "a"), 0, "room for others is left");
	qmp_session_free(s);
	cr_expect_eq(seen.answers, 1);
}

Test(qmp, sent_in_pieces)
{
	struct qmp_session *s = ready_session();
	char all[256] = "";
	size_t len, n = 0;

	cr_assert_eq(
		qmp_session_command(s, "balloon", json_pack("{s:i}", "value", 7), NULL, NULL, T0),
		0);
	cr_assert_eq(command(s, "a"), 0);
	for (const char *out; (out = qmp_session_output(s, &len)), len;) {
		all[n++] = out[0];
		qmp_session_sent(s, 1);
	}
	cr_expect_str_eq(all, "{\"execute\":\"balloon\",\"id\":2,\"arguments\":{\"value\":7}}\n"
			      "{\"execute\":\"query-status\",\"id\":3}\n");
	qmp_session_sent(s, 100); /* more than there is */
	qmp_session_free(s);
}

/* Commands from within callbacks, which is how a round goes on. */
static struct qmp_session *chained;
static int chain_left;

static void on_chain(void *arg, int error, json_t *value, const char *text)
{
	seen.answers++;
	if (chain_left-- > 0)
		seen.error = qmp_session_command(chained, "next", NULL, on_chain, NULL, T0);
}

Test(qmp, commands_in_callbacks)
{
	char text[64];

	chained = ready_session();
	chain_left = 5;
	cr_assert_eq(qmp_session_command(chained, "first", NULL, on_chain, NULL, T0), 0);
	for (int i = 0; i < 5; i++) {
		snprintf(text, sizeof(text), "{\"return\": {}, \"id\": %d}", i + 2);
		cr_expect_eq(input(chained, text), 0);
	}
	cr_expect(seen.answers == 5 && seen.error == 0);
	/* The last is told of the end, and asks in vain. */
	chain_left = 5;
	qmp_session_close(chained, -EPIPE, "gone\n");
	cr_expect(seen.answers == 6 && seen.error == -ENOTCONN);
	cr_expect_str_eq(qmp_session_error_text(chained), "gone?");
	qmp_session_free(chained);
}

Test(qmp, numbers)
{
	static const struct {
		const char *json;
		int r;
		u64 value;
	} cases[] = {
		{ "0", 0, 0 },
		{ "9223372036854775807", 0, INT64_MAX },
		{ "-1", -ERANGE, 0 },
		{ "18446744073709551615", -ERANGE, 0 },
		{ "9223372036854775808", -ERANGE, 0 },
		{ "1.5", -EPROTO, 0 },
		{ "4096.0", 0, 4096 },
		{ "-1.0", -ERANGE, 0 },
		{ "1e300", -ERANGE, 0 },
		{ "\"1\"", -EPROTO, 0 },
		{ "true", -EPROTO, 0 },
		{ "null", -EPROTO, 0 },
	};

	for (u32 i = 0; i < ARRAY_SIZE(cases); i++) {
		json_t *j = json_loads(cases[i].json, JSON_DECODE_ANY, NULL);
		u64 v = 0;

		if (!j)
			j = json_loads(cases[i].json, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL,
				       NULL);
		cr_assert(j);
		cr_expect_eq(qmp_u64(j, &v), cases[i].r, "%s", cases[i].json);
		cr_expect_eq(v, cases[i].value, "%s", cases[i].json);
		json_decref(j);
	}
	cr_expect_eq(qmp_u64(NULL, &(u64){ 0 }), -ENOENT);
}
