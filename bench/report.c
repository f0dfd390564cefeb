/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "bench/report.h"

struct report {
	char dir[256];
	json_t *results; /* array of objects, one a RESULT line */
	json_t *line;
	char text[1024];
};

static void fail(const char *what)
{
	fprintf(stderr, "benchmark: %s: %s\n", what, strerror(errno));
	exit(1);
}

struct report *report_new(const char *name)
{
	struct report *r = calloc(1, sizeof(*r));
	const char *build = getenv("BUILD");

	if (!r)
		fail("memory");
	snprintf(r->dir, sizeof(r->dir), "%s/bench", build ? build : "build");
	mkdir(r->dir, 0777);
	snprintf(r->dir, sizeof(r->dir), "%s/bench/%s", build ? build : "build", name);
	if (mkdir(r->dir, 0777) < 0 && errno != EEXIST)
		fail(r->dir);
	r->results = json_array();
	return r;
}

static void append(struct report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void append(struct report *r, const char *fmt, ...)
{
	size_t n = strlen(r->text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->text + n, sizeof(r->text) - n, fmt, ap);
	va_end(ap);
}

void report_result(struct report *r, const char *name)
{
	r->text[0] = '\0';
	append(r, "RESULT %s", name);
	r->line = json_object();
	json_object_set_new(r->line, "name", json_string(name));
}

void report_text(struct report *r, const char *key, const char *value)
{
	append(r, " %s=%s", key, value);
	json_object_set_new(r->line, key, json_string(value));
}

void report_number(struct report *r, const char *key, double value, int decimals)
{
	append(r, " %s=%.*f", key, decimals, value);
	json_object_set_new(r->line, key, json_real(value));
}

void report_end(struct report *r)
{
	puts(r->text);
	fflush(stdout);
	json_array_append_new(r->results, r->line);
	r->line = NULL;
}

void report_finish(struct report *r)
{
	char path[320];

	snprintf(path, sizeof(path), "%s/results.json", r->dir);
	if (json_dump_file(r->results, path, JSON_INDENT(2)) < 0)
		fail(path);
	json_decref(r->results);
	free(r);
}

/* --- charts ------------------------------------------------------------------------------------
 */

enum {
	WIDTH = 720,
	HEIGHT = 360,
	LEFT = 80,
	RIGHT = 150,
	TOP = 46,
	BOTTOM = 48
};

static const char *const colours[] = {
	"#3d7ab5", "#e8890c", "#0b7a4b", "#b3282d", "#7a4fb0", "#666"
};

static FILE *svg_open(struct report *r, const char *file, int height, const char *title)
{
	char path[320];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", r->dir, file);
	f = fopen(path, "w");
	if (!f)
		fail(path);
	fprintf(f,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
		"font-family=\"sans-serif\" font-size=\"12\">\n"
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
		"<text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\">%s</text>\n",
		WIDTH, height, title);
	return f;
}

static void svg_close(FILE *f, const char *file)
{
	fprintf(f, "</svg>\n");
	if (fclose(f) != 0)
		fail(file);
}

struct axis {
	double low, high;
	bool log;
	int from, to; /* pixels */
};

static double place(const struct axis *a, double v)
{
	double t = a->log ? (log(v) - log(a->low)) / (log(a->high) - log(a->low))
			  : (v - a->low) / (a->high - a->low);

	return a->from + t * (a->to - a->from);
}

static void widen(struct axis *a, double v)
{
	a->low = MIN(a->low, v);
	a->high = MAX(a->high, v);
}

/* A number as a person writes it: 1500000 as 1.5M. */
static void human(double v, char *buf, size_t size)
{
	static const struct {
		double at;
		const char *suffix;
	} units[] = { { 1e9, "G" }, { 1e6, "M" }, { 1e3, "k" } };

	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		if (fabs(v) >= units[i].at) {
			snprintf(buf, size, "%.3g%s", v / units[i].at, units[i].suffix);
			return;
		}
	}
	snprintf(buf, size, "%.3g", v);
}

static void draw_axes(FILE *f, const struct axis *x, const struct axis *y, const struct chart *c)
{
	char label[32];

	for (int i = 0; i <= 4; i++) {
		double t = i / 4.0;
		double v = y->log ? y->low * pow(y->high / y->low, t)
				  : y->low + t * (y->high - y->low);

		human(v, label, sizeof(label));
		fprintf(f,
			"<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
			"<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" fill=\"#555\">%s</text>\n",
			x->from, x->to, place(y, v), place(y, v), x->from - 8, place(y, v) + 4,
			label);
		v = x->log ? x->low * pow(x->high / x->low, t) : x->low + t * (x->high - x->low);
		human(v, label, sizeof(label));
		fprintf(f,
			"<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"#555\">%s</text>\n",
			place(x, v), y->from + 18, label);
	}
	fprintf(f,
		"<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>"
		"<text transform=\"translate(18 %d) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
		(x->from + x->to) / 2, y->from + 38, c->x_title, (y->from + y->to) / 2, c->y_title);
}

void report_chart(struct report *r, const char *file, const struct chart *c)
{
	struct axis x = { INFINITY, -INFINITY, c->log_x, LEFT, WIDTH - RIGHT };
	struct axis y = { c->log_y ? INFINITY : 0, -INFINITY, c->log_y, HEIGHT - BOTTOM, TOP };
	FILE *f = svg_open(r, file, HEIGHT, c->title);

	for (u32 i = 0; i < c->nr_lines; i++) {
		for (u32 k = 0; k < c->lines[i].nr; k++) {
			widen(&x, c->lines[i].x[k]);
			widen(&y, c->lines[i].y[k]);
		}
	}
	if (x.high <= x.low)
		x.high = x.low + 1;
	if (y.high <= y.low)
		y.high = y.low + 1;
	draw_axes(f, &x, &y, c);
	for (u32 i = 0; i < c->nr_lines; i++) {
		const struct chart_line *l = &c->lines[i];
		const char *colour = colours[i % ARRAY_SIZE(colours)];

		fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"",
			colour);
		for (u32 k = 0; k < l->nr; k++)
			fprintf(f, "%.1f,%.1f ", place(&x, l->x[k]), place(&y, l->y[k]));
		fprintf(f,
			"\"/>\n<rect x=\"%d\" y=\"%u\" width=\"12\" height=\"12\" fill=\"%s\"/>"
			"<text x=\"%d\" y=\"%u\">%s</text>\n",
			WIDTH - RIGHT + 16, TOP + i * 20, colour, WIDTH - RIGHT + 34,
			TOP + i * 20 + 11, l->name);
	}
	svg_close(f, file);
}

void report_bars(struct report *r, const char *file, const char *title, const char *unit,
		 const struct bar *bars, u32 nr)
{
	FILE *f = svg_open(r, file, (int)(TOP + nr * 30 + 20), title);
	double high = 0;

	for (u32 i = 0; i < nr; i++)
		high = MAX(high, bars[i].value);
	for (u32 i = 0; i < nr; i++) {
		double width = high > 0 ? bars[i].value / high * 360 : 0;
		char label[32];

		human(bars[i].value, label, sizeof(label));
		fprintf(f,
			"<text x=\"210\" y=\"%u\" text-anchor=\"end\">%s</text>"
			"<rect x=\"220\" y=\"%u\" width=\"%.1f\" height=\"20\" fill=\"%s\"/>"
			"<text x=\"%.1f\" y=\"%u\">%s %s</text>\n",
			TOP + i * 30 + 14, bars[i].name, TOP + i * 30, MAX(width, 1.0),
			colours[i % ARRAY_SIZE(colours)], 228 + width, TOP + i * 30 + 14, label,
			unit);
	}
	svg_close(f, file);
}
