#!/usr/bin/env bash
# Runs fuzz targets that are built, one after the other: fuzz.sh TARGET... For each one it prints
#
#	RESULT fuzz target=NAME execs=N seconds=N crashes=N
#
# What a target finds new is kept in $FUZZ_DIR/corpus/NAME for the next run; an input that crashes, leaks or hangs
# is $FUZZ_DIR/NAME-crash-... (-leak-, -timeout-). Exits with 1 if there was one.
set -u
cd "$(dirname "$0")/../.." || exit 1
dir=${FUZZ_DIR:-build/fuzz} seconds=${FUZZ_SECONDS:-60}
# Sockets and files that a crash leaves behind.
mkdir -p "$dir/tmp"
export TMPDIR=$PWD/$dir/tmp
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0

rc=0
for t; do
	log=$dir/$t.log
	mkdir -p "$dir/corpus/$t"
	touch "$dir/$t.begin"
	timeout -k 10 $((seconds + 120)) "$dir/$t" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=8192 \
		-artifact_prefix="$dir/$t-" -print_final_stats=1 "$dir/corpus/$t" "tests/fuzz/corpus/$t" >"$log" 2>&1
	status=$?
	execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	crashes=$(find "$dir" -maxdepth 1 -name "$t-*" -newer "$dir/$t.begin" | wc -l)
	# A target that could not even run has not found nothing.
	[ $status -eq 0 ] || [ "$crashes" -gt 0 ] || crashes="? (exit status $status)"
	echo "RESULT fuzz target=$t execs=${execs:-0} seconds=$seconds crashes=$crashes"
	if [ $status -ne 0 ]; then
		rc=1
		grep -aE 'does not hold|ERROR|runtime error|SUMMARY|Test unit written' "$log" | head -n 20
		echo "the whole log: $log"
	fi
	rm -f "$dir/$t.begin"
done
exit $rc
