# SPDX-License-Identifier: MIT
# samples.csv -> SVG. Upper panel: memory of the guests, the store on top, ballastd on top. Lower: MemAvailable gained.
# Time 0 is when sharing was allowed.

function x(t) { return LEFT + (t - tmin) / (tmax - tmin) * (WIDTH - LEFT - RIGHT) }
function y(v, top, h, max) { return top + h - v / max * h }

# A round number not below v: 1, 2, 2.5 or 5 times a power of ten.
function nice(v, p, m)
{
	if (v <= 0)
		return 1
	p = 10 ^ int(log(v) / log(10) + (v < 1 ? -1 : 0))
	m = v / p
	return p * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 2.5 ? 2.5 : m <= 5 ? 5 : 10)
}

function text(px, py, s, extra) { printf "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", px, py, extra, s }

function grid(top, h, max, step, v)
{
	for (v = 0; v <= max + step / 1000; v += step) {
		printf "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#e4e7eb\"/>\n",
		       LEFT, WIDTH - RIGHT, y(v, top, h, max), y(v, top, h, max)
		text(LEFT - 8, y(v, top, h, max) + 4, v, "text-anchor=\"end\"")
	}
}

function path(n, values, top, h, max, i, s)
{
	for (i = 1; i <= n; i++)
		s = s sprintf("%s%.1f,%.1f", i == 1 ? "M" : "L", x(t[i]), y(values[i], top, h, max))
	return s
}

function area(n, values, top, h, max)
{
	return path(n, values, top, h, max) sprintf("L%.1f,%.1fL%.1f,%.1fZ", x(t[n]), top + h, x(t[1]), top + h)
}

function legend(px, color, s)
{
	printf "<rect x=\"%.1f\" y=\"12\" width=\"12\" height=\"12\" fill=\"%s\"/>\n", px, color
	text(px + 18, 22, s, "")
}

function marker(top, h)
{
	printf "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#c1121f\" stroke-dasharray=\"4 3\"/>\n",
	       x(0), x(0), top, top + h
}

NR > 1 {
	n++
	t[n] = $1
	guest[n] = $2 / 1024
	store[n] = ($2 + $3) / 1024
	all[n] = ($2 + $3 + $4) / 1024
	available[n] = $5 / 1024
	if (all[n] > most)
		most = all[n]
	if (t[n] <= 0 || n == 1) {
		before = all[n]
		available0 = available[n]
	}
}

END {
	WIDTH = 860; LEFT = 70; RIGHT = 24
	TOP1 = 52; H1 = 220; TOP2 = 322; H2 = 100; HEIGHT = 470
	tmin = t[1]
	tmax = t[n] > tmin ? t[n] : tmin + 1
	for (i = 1; i <= n; i++) {
		gain[i] = available[i] - available0
		if (gain[i] < 0)
			gain[i] = 0
		if (gain[i] > most_gain)
			most_gain = gain[i]
	}
	step1 = nice(most / 5); max1 = step1 * int(most / step1 + 0.999)
	step2 = nice(most_gain / 2); max2 = step2 * int(most_gain / step2 + 0.999)
	if (max1 <= 0) max1 = step1
	if (max2 <= 0) max2 = step2

	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" " \
	       "font-family=\"DejaVu Sans, sans-serif\" font-size=\"12\" fill=\"#52606d\">\n", WIDTH, HEIGHT, WIDTH, HEIGHT
	printf "<title>Host memory of %d guests over time</title>\n", guests
	printf "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", WIDTH, HEIGHT

	text(LEFT, 20, "Memory in use on the host, MiB", "font-size=\"14\" font-weight=\"600\" fill=\"#1f2933\"")
	legend(WIDTH - RIGHT - 380, "#3e7cb1", guests " guests, private")
	legend(WIDTH - RIGHT - 210, "#8fb8de", "shared (store)")
	legend(WIDTH - RIGHT - 74, "#f18f01", "ballastd")
	grid(TOP1, H1, max1, step1)
	printf "<path d=\"%s\" fill=\"#f18f01\"/>\n", area(n, all, TOP1, H1, max1)
	printf "<path d=\"%s\" fill=\"#8fb8de\"/>\n", area(n, store, TOP1, H1, max1)
	printf "<path d=\"%s\" fill=\"#3e7cb1\"/>\n", area(n, guest, TOP1, H1, max1)
	text(x(0) + 6, y(before, TOP1, H1, max1) - 8, sprintf("%.0f MiB", before),
	     "font-weight=\"600\" fill=\"#1f2933\"")
	text(x(t[n]) - 6, y(all[n], TOP1, H1, max1) - 8, sprintf("%.0f MiB, %.0f %% less", all[n],
	     before ? 100 * (before - all[n]) / before : 0), "text-anchor=\"end\" font-weight=\"600\" fill=\"#1f2933\"")

	text(LEFT, TOP2 - 14, "MemAvailable of the host, MiB gained (it lags: freed pages go back in batches)",
	     "font-size=\"14\" font-weight=\"600\" fill=\"#1f2933\"")
	grid(TOP2, H2, max2, step2)
	printf "<path d=\"%s\" fill=\"none\" stroke=\"#0b6e4f\" stroke-width=\"2\"/>\n", path(n, gain, TOP2, H2, max2)

	marker(TOP1, H1)
	marker(TOP2, H2)
	text(x(0) + 6, TOP1 + H1 - 10, "sharing starts", "fill=\"#fff\"")

	step = nice((tmax - tmin) / 8)
	for (v = -step * int(-tmin / step); v <= tmax; v += step)
		text(x(v), TOP2 + H2 + 18, v == 0 ? "0" : v, "text-anchor=\"middle\"")
	text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "seconds", "text-anchor=\"middle\"")
	print "</svg>"
}
