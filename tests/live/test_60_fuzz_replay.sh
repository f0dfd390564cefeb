#!/usr/bin/env bash
# timeout: 280
# Every fuzz target on its seeds and on mutations of them, the same in every run (tests/fuzz/README.md). Needs no daemon
# and no VM; `make fuzz` looks for what is new.
. "$(dirname "$0")/../lib.sh"

SAVED=$BUILD/fuzz-replay # outlives the test, unlike $RUN
mkdir -p "$SAVED"

for source in tests/fuzz/fuzz_*.c; do
	target=${source#tests/fuzz/fuzz_} target=${target%.c}
	# How many mutations take a few seconds; most take some microseconds, each of agents starts a daemon.
	case $target in
	agents) count=1000 ;;
	control | monitor) count=10000 ;;
	config | boot) count=20000 ;;
	*) count=100000 ;;
	esac
	program=$BUILD/tests/fuzz/$target
	[ -x "$program" ] || { fail "$target" "$program is not built"; continue; }
	seeds=$(find "tests/fuzz/corpus/$target" -type f | wc -l)
	timeout -k 5 120 "$program" "tests/fuzz/corpus/$target" "$count" "$SAVED/$target.crash" \
		>"$RUN/$target.out" 2>"$RUN/$target.log" </dev/null
	rc=$?
	echo "# $target: $(tail -n 1 "$RUN/$target.out")"
	execs=$(sed -n 's/^execs=\([0-9]*\) .*/\1/p' "$RUN/$target.out")
	if [ $rc -ne 0 ]; then
		fail "fuzz_$target" "exit status $rc; $program $SAVED/$target.crash shows it"
	else
		# All seeds, the empty input, all mutations: a target that does not run finds nothing.
		check_eq "fuzz_$target" $((seeds + 1 + count)) "$execs"
	fi
done
