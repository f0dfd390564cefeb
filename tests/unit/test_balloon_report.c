/* SPDX-License-Identifier: MIT */
/* What is told of balloons: plain structs in; JSON and metrics out. */
#include <criterion/criterion.h>
#include <string.h>
#include "daemon/balloon_report.h"

static const struct balloon_view known = {
	.state = "up",
	.linked = true,
	.run = "running",
	.driver = "answers",
	.reason = CONTROLLER_REACHED,
	.has_actual = true,
	.actual_bytes = MIB(192),
	.ram_bytes = MIB(256),
	.releases_total = 3,
	.has_stats = true,
	.stats_age_us = 1500000,
	.present = 1U << GUEST_STAT_AVAILABLE | 1U << GUEST_STAT_MAJOR_FAULTS,
	.stats = { [GUEST_STAT_AVAILABLE] = 777, [GUEST_STAT_MAJOR_FAULTS] = 5 },
	.has_wish = true,
	.wish_bytes = MIB(190),
};

static const struct balloon_view busy = {
	.state = "busy",
	.error = "is another's",
	.has_target = true,
	.target_bytes = MIB(100),
};

static json_t *json_of(const struct balloon_view *b)
{
	json_t *j = json_object();

	cr_assert_eq(balloon_report_json(j, b), 0);
	return j;
}

Test(balloon_report, json)
{
	json_t *j = json_of(&known);

	cr_expect_str_eq(json_string_value(json_object_get(j, "balloon_state")), "up");
	cr_expect_str_eq(json_string_value(json_object_get(j, "balloon_reason")), "reached");
	cr_expect_str_eq(json_string_value(json_object_get(j, "guest_run")), "running");
	cr_expect_eq(json_integer_value(json_object_get(j, "balloon_actual_bytes")), MIB(192));
	cr_expect_eq(json_integer_value(json_object_get(j, "balloon_wish_bytes")), MIB(190));
	cr_expect_eq(json_integer_value(json_object_get(j, "guest_available_bytes")), 777);
	cr_expect_eq(json_integer_value(json_object_get(j, "guest_major_faults_total")), 5);
	cr_expect_eq(json_integer_value(json_object_get(j, "guest_stats_age_us")), 1500000);
	/* What is not known, or not so, is absent. */
	cr_expect_null(json_object_get(j, "balloon_target_bytes"));
	cr_expect_null(json_object_get(j, "balloon_error"));
	cr_expect_null(json_object_get(j, "guest_free_bytes"));
	json_decref(j);

	j = json_of(&busy);
	cr_expect_str_eq(json_string_value(json_object_get(j, "balloon_error")), "is another's");
	cr_expect_eq(json_integer_value(json_object_get(j, "balloon_target_bytes")), MIB(100));
	cr_expect_eq(json_object_size(j), 3, "says what it does not know");
	json_decref(j);

	j = json_of(&(struct balloon_view){ 0 });
	cr_expect_eq(json_object_size(j), 0);
	json_decref(j);
}

Test(balloon_report, metrics)
{
	static char labels[3][EXPORTER_LABEL_MAX] = { "a", "b", "c" };
	struct vm_view vms[3] = { { .balloon = known }, { .balloon = busy }, {} };
	struct view v = { .vms = vms, .nr_vms = 3 };
	struct mx_writer *w = mx_new();
	static const char *const lines[] = {
		"\nballast_vm_balloon_up{vm=\"a\"} 1\n",
		"\nballast_vm_balloon_up{vm=\"b\"} 0\n",
		"\nballast_vm_running{vm=\"a\"} 1\n",
		"\nballast_vm_balloon_actual_bytes{vm=\"a\"} 201326592\n",
		"\nballast_vm_balloon_target_bytes{vm=\"b\"} 104857600\n",
		"\nballast_vm_balloon_wish_bytes{vm=\"a\"} 199229440\n",
		"\nballast_vm_balloon_stuck{vm=\"a\"} 0\n",
		"\nballast_vm_balloon_releases_total{vm=\"a\"} 3\n",
		"\nballast_vm_guest_stats_age_seconds{vm=\"a\"} 1.5\n",
		"\nballast_vm_guest_available_bytes{vm=\"a\"} 777\n",
		"\n# TYPE ballast_vm_guest_major_faults_total counter\n",
		"\nballast_vm_guest_major_faults_total{vm=\"a\"} 5\n",
	};
	static const char *const not_lines[] = {
		"vm=\"c\"",
		"guest_free",
		"-1",
		"ballast_vm_running{vm=\"b\"}",
		"ballast_vm_balloon_target_bytes{vm=\"a\"}",
		"ballast_vm_balloon_actual_bytes{vm=\"b\"}",
	};
	const char *text;
	size_t bytes;

	balloon_report_metrics(w, &v, labels);
	cr_assert_eq(mx_finish(w, &text, &bytes), 0);
	for (u32 i = 0; i < ARRAY_SIZE(lines); i++)
		cr_expect(strstr(text, lines[i]), "not there: %s", lines[i]);
	for (u32 i = 0; i < ARRAY_SIZE(not_lines); i++)
		cr_expect_not(strstr(text, not_lines[i]), "there: %s", not_lines[i]);
	mx_free(w);
}
