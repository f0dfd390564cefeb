#!/usr/bin/env bash
# timeout: 240
# `make demo`, as a user runs it: by the count from outside nearly all duplicates and zero pages are merged, in under three
# minutes, and nothing is left behind.
. "$(dirname "$0")/../lib.sh"

LOG=$RUN/demo.log
DEMO=$TOP/build/demo

value() { sed -n "s/^RESULT demo .*\b$1=\([0-9.]*\).*/\1/p" "$LOG" | tail -n 1; } # KEY
hundredths() { awk -v v="${1:-0}" 'BEGIN { printf "%d\n", v * 100 + 0.5 }'; }
# Processes of the demo's, by its mark in their environment.
demo_processes() { grep -lszF -e "BALLAST_DEMO_TEST=$$" /proc/[0-9]*/environ | cut -d/ -f3 | grep -vx $$; }
none_left() { [ -z "$(demo_processes)" ]; }

start=$SECONDS
# Without the variables that this test and `make check` set.
start "$LOG" env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS -u BALLAST_AGENT_SOCKET -u ONLY BALLAST_DEMO_TEST=$$ \
	make --no-print-directory BUILD="$BUILD" demo
demo=$PID
wait_for 200 __gone "$demo" || die demo_ends "still running after 200 s"
wait "$demo"
check_eq demo_status 0 $?
took=$((SECONDS - start))
grep -a '^RESULT' "$LOG" | sed 's/^/# /'
echo "# it took $took s"
check_ge demo_under_3_minutes 1 $((took < 180))
check demo_no_process_left wait_for 5 none_left
check_eq demo_no_run_folder_left 0 "$(ls -d "$DEMO"/run 2>/dev/null | wc -l)"
check_eq demo_one_result 1 "$(grep -ac '^RESULT demo ' "$LOG")"

check_ge demo_guests 4 "$(value guests)"
check_ge demo_duplicates 30000 "$(value dup_pages)"
check_ge demo_merged_percent 9500 "$(hundredths "$(value merged_percent)")"
check_ge demo_zero_pages 10000 "$(value zero_pages)"
check_ge demo_zero_merged_percent 9900 "$(hundredths "$(value zero_merged_percent)")"
check_ge demo_within_30s 1 $(($(hundredths "$(value settled_seconds)") <= 3000))
# The percentage is what it says.
check_ge demo_merged_pages $(($(value dup_pages) * 95 / 100)) "$(value merged_pages)"
check_ge demo_net_saved_mib 100 $(($(value net_saved_bytes) >> 20))
check_ge demo_saves_less_net $(($(value net_saved_bytes))) "$(value saved_bytes)"
for f in memory.svg report.html samples.csv result.kv; do
	check demo_wrote_$f test -s "$DEMO/$f"
done
