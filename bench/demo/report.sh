# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# The demo's table, chart and HTML report, from the array r (measure.sh) and samples.csv. Sourced by demo.sh.

mib() { awk -v b="$1" 'BEGIN { b /= 1048576; printf "%.1f", (b > -0.05 && b < 0.05 ? 0 : b) }'; }
pages_mib() { mib $(($1 * 4096)); }

# Rows of the guests' table: name, PSS before, PSS after, resident, duplicates shared, zero shared, written since.
guest_rows()
{
	local i

	for ((i = 1; i <= ${#guest_pids[@]}; i++)); do
		echo "guest$i" "$(mib $((r[before_guest${i}_pss_kib] * 1024)))" \
			"$(mib $((r[after_guest${i}_pss_kib] * 1024)))" \
			"$(pages_mib "${r[after_guest${i}_pages]}")" \
			"$(pages_mib "${r[after_guest${i}_shared_pages]}")" \
			"$(pages_mib "${r[after_guest${i}_zero_kernel_pages]}")" \
			"$(pages_mib "${r[after_guest${i}_broken_pages]}")"
	done
}

# Rows of the totals' table: before and after, then what it is.
total_rows()
{
	local row key what

	for row in \
		"pages:guest pages with memory behind them" \
		"frames:page frames that these take" \
		"nonzero_pages:pages that are not all zeros" \
		"dup_pages:D: duplicates among them, by hashing" \
		"merged_pages:M: duplicates that share a frame" \
		"zero_pages:pages that are all zeros" \
		"zero_merged_pages:zero pages that need no frame" \
		"process_vmas:mappings of the VMMs"; do
		key=${row%%:*}
		what=${row#*:}
		echo "${r[before_$key]} ${r[after_$key]} $what"
	done
}

# Rows of the account: MiB and what it is.
account_rows()
{
	echo "$(mib "${r[saved_bytes]}") page frames saved"
	echo "$(mib "-${r[daemon_bytes]}") ballastd's own memory"
	echo "$(mib "-${r[store_unused_bytes]}") pages of the store that no guest maps"
	echo "$(mib "$((-r[vma_bytes]))") kernel memory for mappings"
	echo "$(mib "$((-r[pte_growth_bytes]))") growth of page tables"
	echo "$(mib "${r[net_saved_bytes]}") net saving"
}

print_table()
{
	echo
	printf '%-8s %11s %11s %11s %11s %11s %11s\n' "MiB" "PSS before" "PSS after" "guest RAM" \
		"shared" "zero" "broken"
	guest_rows | while read -r name rest; do
		# shellcheck disable=SC2086
		printf '%-8s %11s %11s %11s %11s %11s %11s\n' "$name" $rest
	done
	printf '%-8s %11s %11s\n' "ballastd" "$(mib $((r[before_daemon_pss_kib] * 1024)))" \
		"$(mib $((r[after_daemon_pss_kib] * 1024)))"
	printf '%-8s %11s %11s\n' "all" \
		"$(mib $(((r[before_guests_pss_kib] + r[before_daemon_pss_kib]) * 1024)))" \
		"$(mib $(((r[after_guests_pss_kib] + r[after_daemon_pss_kib]) * 1024)))"
	echo
	printf '%11s %11s\n' "before" "after"
	total_rows | while read -r before after what; do
		printf '%11s %11s  %s\n' "$before" "$after" "$what"
	done
	echo
	account_rows | while read -r value what; do
		printf '%11s MiB  %s\n' "$value" "$what"
	done
}

# Two panels over one time axis: what the VMMs and ballastd take (PSS), and what the host gained (MemAvailable).
write_chart()
{
	awk -F, -v guests="${#guest_pids[@]}" -f bench/demo/chart.awk "$dir/samples.csv"
}

write_report()
{
	cat <<-END
		<!doctype html>
		<html lang="en">
		<meta charset="utf-8">
		<meta name="viewport" content="width=device-width">
		<title>Ballast demo: ${#guest_pids[@]} guests</title>
		<style>
		body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2933; max-width: 860px;
		       margin: 2rem auto; padding: 0 1rem; }
		h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
		table { border-collapse: collapse; font-variant-numeric: tabular-nums }
		th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid #e4e7eb }
		th { font-weight: 600; color: #52606d } .t { text-align: left }
		.big { display: flex; flex-wrap: wrap; gap: 2rem; margin: 1.2rem 0 }
		.big div { color: #52606d } .big b { display: block; font-size: 1.7rem; color: #0b6e4f; line-height: 1.2 }
		svg { max-width: 100%; height: auto } code { font-size: .85rem; overflow-wrap: anywhere }
		.note { color: #52606d }
		</style>
		<h1>Ballast demo</h1>
		<div class="note">${#guest_pids[@]} stock Linux guests of $mem MiB in unmodified QEMU,
		$(date -u '+%Y-%m-%d %H:%M UTC'), Linux $(uname -r), $(nproc) CPUs</div>
		<div class="big">
		<div><b>$(mib "${r[net_saved_bytes]}") MiB</b>saved, net</div>
		<div><b>${r[merged_percent]} %</b>of duplicates merged</div>
		<div><b>${r[zero_merged_percent]} %</b>of zero pages merged</div>
		<div><b>${r[settled_seconds]} s</b>to 99 % of it</div>
		<div><b>${r[cpu_seconds]} s</b>of CPU time</div>
		</div>
	END
	write_chart
	echo '<h2>Guests (MiB)</h2><table><tr><th class="t"></th><th>PSS before</th><th>PSS after</th>' \
		'<th>guest RAM in use</th><th>shared</th><th>zero, no frame</th><th>broken by writes</th></tr>'
	guest_rows | awk '{ printf "<tr><td class=t>%s</td>", $1
		for (i = 2; i <= NF; i++) printf "<td>%s</td>", $i; print "</tr>" }'
	echo '</table><h2>Counted from outside (pages)</h2><table><tr><th>before</th><th>after</th><th></th></tr>'
	total_rows | awk '{ printf "<tr><td>%s</td><td>%s</td><td class=t>", $1, $2; $1 = $2 = ""; print $0 "</td></tr>" }'
	echo '</table><h2>The account (MiB)</h2><table>'
	account_rows | awk '{ printf "<tr><td>%s</td><td class=t>", $1; $1 = ""; print $0 "</td></tr>" }'
	cat <<-END
		</table>
		<p class="note">Duplicates and frames are counted by <code>build/outside</code>, which reads guest memory and
		<code>/proc/PID/pagemap</code> with all guests stopped and never asks ballastd. PSS is the kernel's word
		(<code>smaps_rollup</code>). What each figure means: <code>bench/README.md</code>. Raw data lies beside this file:
		<a href="samples.csv">samples.csv</a>, <a href="before.kv">before.kv</a>, <a href="after.kv">after.kv</a>,
		<a href="result.kv">result.kv</a>.</p>
		<p><code>$result_line</code></p>
	END
}
