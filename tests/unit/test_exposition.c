/* SPDX-License-Identifier: MIT */
/* The text format and the exporter: plain structs in, text out; promtool has the last word where it
 * is installed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/exporter.h"
#include "metrics/exposition.h"

/* The text as a string, good until the next call. */
static const char *text_of(struct mx_writer *w)
{
	static char copy[1 << 20];
	const char *text;
	size_t bytes;

	cr_assert_eq(mx_finish(w, &text, &bytes), 0);
	cr_assert_lt(bytes, sizeof(copy));
	memcpy(copy, text, bytes);
	copy[bytes] = '\0';
	cr_assert_eq(strlen(copy), bytes);
	return copy;
}

Test(exposition, family_and_samples)
{
	struct mx_writer *w = mx_new();
	const struct mx_label labels[] = { { "vm", "web" }, { "uuid", "" }, { "domain", "a" } };

	mx_family(w, "x_bytes", MX_GAUGE, "Some\nhelp with a \\ and \"quotes\".");
	mx_sample_u64(w, NULL, 0, 0);
	mx_sample_u64(w, labels, 3, UINT64_MAX);
	mx_family(w, "y_total", MX_COUNTER, "Other.");
	mx_sample_u64(w, labels + 1, 1, 7);
	cr_assert_str_eq(text_of(w), "# HELP x_bytes Some\\nhelp with a \\\\ and \"quotes\".\n"
				     "# TYPE x_bytes gauge\n"
				     "x_bytes 0\n"
				     "x_bytes{vm=\"web\",domain=\"a\"} 18446744073709551615\n"
				     "# HELP y_total Other.\n"
				     "# TYPE y_total counter\n"
				     "y_total 7\n");
	mx_free(w);
}

Test(exposition, label_values_are_escaped_and_repaired)
{
	static const struct {
		const char *value, *written;
	} cases[] = {
		{ "a\"b\\c\nd", "a\\\"b\\\\c\\nd" },
		{ "t\xc3\xa4g \xe2\x82\xac \xf0\x9f\x90\x98",
		  "t\xc3\xa4g \xe2\x82\xac \xf0\x9f\x90\x98" },
		{ "\xff", "\xef\xbf\xbd" },
		{ "a\xc3", "a\xef\xbf\xbd" },		    /* cut short */
		{ "\xc3\"", "\xef\xbf\xbd\\\"" },	    /* must not swallow the quote */
		{ "\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd" }, /* overlong */
		{ "\xe0\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" }, /* overlong */
		{ "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" }, /* surrogate */
		{ "\xf4\x90\x80\x80x",
		  "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdx" }, /* too high */
	};
	char wanted[256];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mx_writer *w = mx_new();

		mx_family(w, "x", MX_GAUGE, "h");
		mx_sample_u64(w, &(struct mx_label){ "l", cases[i].value }, 1, 1);
		snprintf(wanted, sizeof(wanted), "# HELP x h\n# TYPE x gauge\nx{l=\"%s\"} 1\n",
			 cases[i].written);
		cr_expect_str_eq(text_of(w), wanted, "case %zu", i);
		mx_free(w);
	}
}

Test(exposition, clean_cuts_at_a_character)
{
	char out[8];

	mx_clean(out, sizeof(out), "abcdef\xc3\xa4");
	cr_assert_str_eq(out, "abcdef");
	mx_clean(out, sizeof(out), "abcde\xc3\xa4");
	cr_assert_str_eq(out, "abcde\xc3\xa4");
	mx_clean(out, 1, "abc");
	cr_assert_str_eq(out, "");
	mx_clean(out, sizeof(out), "\xff\xff\xff");
	cr_assert_str_eq(out, "\xef\xbf\xbd\xef\xbf\xbd");
}

Test(exposition, numbers)
{
	struct mx_writer *w = mx_new();

	mx_family(w, "x", MX_GAUGE, "h");
	mx_sample_f64(w, NULL, 0, 0.1);
	mx_sample_f64(w, NULL, 0, 1.0 / 3);
	mx_sample_f64(w, NULL, 0, -4096);
	mx_sample_f64(w, NULL, 0, NAN);
	mx_sample_f64(w, NULL, 0, -INFINITY);
	cr_assert_str_eq(text_of(w), "# HELP x h\n# TYPE x gauge\n"
				     "x 0.1\nx 0.33333333333333331\nx -4096\nx NaN\nx -Inf\n");
	mx_free(w);
}

Test(exposition, grows)
{
	struct mx_writer *w = mx_new();
	const char *text;
	size_t bytes;
	int i;

	mx_family(w, "x", MX_GAUGE, "h");
	for (i = 0; i < 100000; i++)
		mx_sample_u64(w, NULL, 0, 5);
	cr_assert_eq(mx_finish(w, &text, &bytes), 0);
	cr_assert_eq(bytes, strlen("# HELP x h\n# TYPE x gauge\n") + 400000);
	cr_assert_str_eq(text + bytes - 8, "x 5\nx 5\n" + 0, "the end of the text is not whole");
	mx_free(w);
}

Test(exposition, empty_and_failed)
{
	struct mx_writer *w = mx_new();
	const char *text;
	size_t bytes;

	cr_assert_eq(mx_finish(w, &text, &bytes), 0);
	cr_assert_eq(bytes, 0);
	mx_fail(w);
	mx_family(w, "x", MX_GAUGE, "h");
	cr_assert_eq(mx_finish(w, &text, &bytes), -ENOMEM);
	mx_free(w);
	mx_free(NULL);
}

/* Misuse by the program ends it: these must stay asserted. */
Test(exposition, family_twice, .signal = SIGABRT)
{
	struct mx_writer *w = mx_new();

	mx_family(w, "x", MX_GAUGE, "h");
	mx_family(w, "x", MX_GAUGE, "h");
}

Test(exposition, counter_without_total, .signal = SIGABRT)
{
	mx_family(mx_new(), "x", MX_COUNTER, "h");
}

Test(exposition, gauge_with_total, .signal = SIGABRT)
{
	mx_family(mx_new(), "x_total", MX_GAUGE, "h");
}

Test(exposition, bad_name, .signal = SIGABRT)
{
	mx_family(mx_new(), "9x", MX_GAUGE, "h");
}

/* --- the exporter
 * ------------------------------------------------------------------------------------------- */

static struct vm_view example_vm(const char *name, pid_t pid)
{
	struct vm_view vm = {
		.share = "on",
		.domain = "default",
		.pid = pid,
		.connected = true,
		.configured_bytes = MIB(256),
		.shared_pages = 1000,
		.zero_pages = 500,
		.overhead_bytes = 8192,
		.map_limit = 57338,
		.merged_pages_total = 1234,
		.agent_cpu_us_total = 2500000,
	};

	snprintf(vm.name, sizeof(vm.name), "%s", name);
	return vm;
}

static const char *export(struct vm_view *vms, u32 nr_vms, struct domain_view *domains,
			  u32 nr_domains)
{
	struct view v = {
		.host = { .scanning = true,
			  .uptime_us = 1500000,
			  .cpu_us_total = 250000,
			  .scan_cpu_permille = 50 },
		.vms = vms,
		.nr_vms = nr_vms,
		.domains = domains,
		.nr_domains = nr_domains,
	};
	struct mx_writer *w = mx_new();
	const char *text;

	exporter_write(w, &v);
	text = text_of(w);
	mx_free(w);
	return text;
}

#define HAS(text, line)	  cr_expect_not_null(strstr(text, "\n" line "\n"), "no line: %s", line)
#define LACKS(text, what) cr_expect_null(strstr(text, what), "must not be there: %s", what)

/* What Prometheus would refuse: a series twice. Series here are few, so comparing all pairs is
 * fine. */
static void assert_no_series_twice(const char *text)
{
	char *copy = strdup(text), *line, *save = NULL, *series[2048];
	u32 i, j, nr = 0;

	for (line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (*line == '#')
			continue;
		cr_assert_not_null(strrchr(line, ' '));
		*strrchr(line, ' ') = '\0';
		cr_assert_lt(nr, ARRAY_SIZE(series));
		series[nr++] = line;
	}
	for (i = 0; i < nr; i++)
		for (j = 0; j < i; j++)
			cr_assert_str_neq(series[i], series[j]);
	free(copy);
}

Test(exporter, no_vms)
{
	const char *text = export(NULL, 0, NULL, 0);

	HAS(text, "ballast_scanning 1");
	HAS(text, "ballast_uptime_seconds 1.5");
	HAS(text, "ballast_cpu_seconds_total 0.25");
	HAS(text, "ballast_scan_cpu_limit_ratio 0.05");
	HAS(text, "ballast_build_info{version=\"" BALLAST_VERSION "\"} 1");
	HAS(text, "ballast_net_saved_bytes 0");
	HAS(text, "ballast_cow_debt_bytes 0");
	LACKS(text, "ballast_vm_");
	/* What the kernel did not tell is absent. */
	LACKS(text, "ballast_host_memory");
	LACKS(text, "ballast_host_available");
	LACKS(text, "ballast_store_");
}

Test(exporter, values)
{
	struct vm_view vms[] = { example_vm("web", 12), example_vm("db", 13) };
	struct domain_view domains[] = {
		{ .name = "default", .store_pages = 800, .store_refs = 2000, .index_entries = 9 },
	};
	const char *text;

	snprintf(vms[0].uuid, sizeof(vms[0].uuid), "0a0a");
	vms[1].map_count = 333;
	text = export(vms, 2, domains, 1);
	HAS(text,
	    "ballast_vm_info{vm=\"web\",name=\"web\",uuid=\"0a0a\",domain=\"default\",share=\"on\",pid=\"12\"} 1");
	HAS(text,
	    "ballast_vm_info{vm=\"db\",name=\"db\",domain=\"default\",share=\"on\",pid=\"13\"} 1");
	HAS(text, "ballast_vm_connected{vm=\"web\"} 1");
	HAS(text, "ballast_vm_unmerged{vm=\"web\"} 0");
	HAS(text, "ballast_vm_configured_bytes{vm=\"web\"} 268435456");
	HAS(text, "ballast_vm_shared_bytes{vm=\"db\"} 4096000");
	HAS(text, "ballast_vm_zero_bytes{vm=\"db\"} 2048000");
	HAS(text, "ballast_vm_merged_pages_total{vm=\"db\"} 1234");
	HAS(text, "ballast_vm_agent_cpu_seconds_total{vm=\"db\"} 2.5");
	/* 1000 shared + 500 zero - half of the 800 in the store = 1100 pages. */
	HAS(text, "ballast_vm_saved_bytes{vm=\"web\"} 4505600");
	HAS(text, "ballast_vm_net_saved_bytes{vm=\"web\"} 4497408");
	HAS(text, "ballast_vm_cow_debt_bytes{vm=\"web\"} 6144000");
	HAS(text, "ballast_vm_map_limit{vm=\"web\"} 57338");
	HAS(text, "ballast_vm_map_count{vm=\"db\"} 333");
	LACKS(text, "ballast_vm_map_count{vm=\"web\"}"); /* not counted yet */
	/* 3000 pages shown, 800 stored; overhead: 2 * 8192 and no RSS known. */
	HAS(text, "ballast_saved_bytes 9011200");
	HAS(text, "ballast_overhead_bytes 16384");
	HAS(text, "ballast_net_saved_bytes 8994816");
	HAS(text, "ballast_cow_debt_bytes 9011200");
	HAS(text, "ballast_store_bytes{domain=\"default\"} 3276800");
	HAS(text, "ballast_store_references{domain=\"default\"} 2000");
	HAS(text, "ballast_index_entries{domain=\"default\"} 9");
	assert_no_series_twice(text);
}

/* Sharing that costs more than it brings is shown as what it is; what is unknown is absent. */
Test(exporter, saved_negative_or_absent)
{
	struct vm_view vms[] = { example_vm("a", 1), example_vm("b", 2) };
	struct domain_view domains[] = { { .name = "default", .store_pages = 5, .store_refs = 0 } };
	const char *text;

	vms[0].shared_pages = vms[0].zero_pages = 0;
	text = export(vms, 2, domains, 1);
	HAS(text, "ballast_vm_saved_bytes{vm=\"a\"} 0");
	HAS(text, "ballast_vm_net_saved_bytes{vm=\"a\"} -8192");
	LACKS(text, "saved_bytes{vm=\"b\"}");
}

/* After a restart the store has pages that nobody has claimed yet: breaking frees none of them. */
Test(exporter, debt_of_unreferenced_store_pages)
{
	struct vm_view vms[] = { example_vm("a", 1) };
	struct domain_view domains[] = {
		{ .name = "default", .store_pages = 1500, .store_refs = 1000 }
	};
	const char *text = export(vms, 1, domains, 1);

	HAS(text, "ballast_saved_bytes 0");
	HAS(text, "ballast_cow_debt_bytes 2048000");
	HAS(text, "ballast_net_saved_bytes -8192");
}

Test(exporter, the_host)
{
	struct view v = { .host = { .has_pressure_some = true,
				    .pressure_some_permille = 73,
				    .pressure = true,
				    .memory_bytes = GIB(8),
				    .available_bytes = MIB(300),
				    .max_map_count = 1048576,
				    .max_map_count_original = 65530,
				    .daemon_rss_bytes = 4096 } };
	struct mx_writer *w = mx_new();
	const char *text;

	exporter_write(w, &v);
	text = text_of(w);
	HAS(text, "ballast_host_pressure 1");
	HAS(text, "ballast_host_memory_pressure_ratio 0.073");
	HAS(text, "ballast_host_memory_bytes 8589934592");
	HAS(text, "ballast_host_available_bytes 314572800");
	HAS(text, "ballast_max_map_count 1048576");
	HAS(text, "ballast_max_map_count_original 65530");
	/* A daemon without VMs costs, and saves nothing. */
	HAS(text, "ballast_net_saved_bytes -4096");
	mx_free(w);
}

Test(exporter, same_names_are_told_apart)
{
	struct vm_view vms[] = {
		example_vm("web", 12),		example_vm("web", 13),
		example_vm("web (pid 13)", 14), example_vm("web (pid 12)", 15),
		example_vm("web", 12),		example_vm("", 16),
		example_vm("pid-16", 17),	example_vm("\xff", 18),
		example_vm("\xfe", 19),
	};
	const char *text = export(vms, ARRAY_SIZE(vms), NULL, 0);

	HAS(text, "ballast_vm_connected{vm=\"web (pid 12)\"} 1");
	HAS(text, "ballast_vm_connected{vm=\"web (pid 13)\"} 1");
	HAS(text, "ballast_vm_connected{vm=\"web (pid 12) #3\"} 1");
	HAS(text, "ballast_vm_connected{vm=\"pid-16 (pid 16)\"} 1");
	HAS(text, "ballast_vm_connected{vm=\"\xef\xbf\xbd (pid 18)\"} 1");
	LACKS(text, "{vm=\"web\"}");
	assert_no_series_twice(text);
}

Test(exporter, longest_names)
{
	struct vm_view vms[] = { example_vm("", 2147483647), example_vm("", 2147483646) };
	struct domain_view domains[2] = { { .store_pages = 1 }, { .store_pages = 2 } };

	memset(vms[0].name, 0xff, sizeof(vms[0].name) - 1);
	memset(vms[1].name, 0xfe, sizeof(vms[1].name) - 1);
	memset(domains[0].name, 'd', sizeof(domains[0].name) - 1);
	domains[1] = domains[0];
	assert_no_series_twice(export(vms, 2, domains, 2));
}

Test(exporter, promtool_accepts_it)
{
	struct vm_view vms[] = { example_vm("web", 12), example_vm("web", 13),
				 example_vm("q\"\\\n\xff{}#", 14) };
	struct domain_view domains[] = {
		{ .name = "default", .store_pages = 800, .store_refs = 3000 }
	};
	const char *text = export(vms, ARRAY_SIZE(vms), domains, 1);
	FILE *f;
	int rc;

	if (system("command -v promtool >/dev/null 2>&1") != 0)
		cr_skip("promtool is not installed (Debian package prometheus)");
	f = popen("promtool check metrics 2>&1", "w");
	cr_assert_not_null(f);
	cr_assert_eq(fwrite(text, 1, strlen(text), f), strlen(text));
	rc = pclose(f);
	cr_assert_eq(rc, 0, "promtool: status %d", rc);
}
