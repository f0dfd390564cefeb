#!/usr/bin/env bash
# Runs the tests: lint, the unit tests, then every executable tests/live/test_*.sh in name order, then, on the test host
# (tests/testhost/), those of tests/kvm/test_*.sh that have a line "# part of: make check", or whose name ONLY gives.
#
#	tests/run.sh [--unit | --kvm]	the unit tests only; all tests on the test host, and no others
#	tests/run.sh --inside SCRIPT...	what --kvm runs on the test host: these scripts, without a closing line
#	ONLY=PATTERN tests/run.sh	what has PATTERN (a glob) in its name: a live script "test_NAME", one of the test
#					host "kvm/test_NAME", a unit test "SUITE/NAME", "lint"
#
# Prints each result as it comes and closes with one line, the last on stdout: "N passed, N failed, N skipped".
# Exits with 0 only if something ran and nothing failed. tests/README.md has the rules that a test must keep.
set -u
set -o pipefail
shopt -s nullglob

cd "$(dirname "$0")/.." || exit 1
BUILD=$(realpath -m "${BUILD:-build}")
export BUILD
only=${ONLY:-}
mode=all
case ${1:-} in
--unit | --kvm | --inside) mode=${1#--} && shift ;;
esac

work=$BUILD/tests
logs=$work/logs
tmp=$work/tmp
# On the test host the tree comes over 9p, where sockets do not belong.
[ $mode = inside ] && tmp=$(mktemp -d /tmp/ballast-kvm.XXXXXX)
mkdir -p "$logs/kvm" "$tmp"

passed=0 failed=0 skipped=0
any='' live_ran=''
# Every process that a test starts inherits this mark, so that those that leave its session are found too.
mark=BALLAST_TEST_MARK=$$-${EPOCHREALTIME/[.,]/}

selected() # NAME
{
	# shellcheck disable=SC2053 # the pattern is a glob
	[[ -z $only || $1 == *$only* ]]
}

# Results go through here and nowhere else, so that what is printed is what is counted.
result() # ok|not ok|skip, TEXT
{
	any=1
	case $1 in
	ok) passed=$((passed + 1)) ;;
	'not ok') failed=$((failed + 1)) ;;
	skip) skipped=$((skipped + 1)) ;;
	esac
	printf '%s %s\n' "$1" "$2"
}

# --- processes ---------------------------------------------------------------------------------

# Pids that carry the mark, without zombies (those have no environ).
marked() { grep -lsxzF -e "$mark" /proc/[0-9]*/environ | cut -d/ -f3; }

describe() # PID...
{
	local pid
	for pid; do
		printf '%s (%s) ' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c1-120)"
	done
}

signal_marked() # SIGNAL
{
	local pid
	for pid in $(marked); do
		kill "-$1" "$pid" 2>/dev/null
	done
}

# What is left of a test, after two seconds of grace for processes that are ending by themselves.
leftovers()
{
	local i pids
	for ((i = 0; i < 40; i++)); do
		pids=$(marked)
		[ -n "$pids" ] || return
		sleep 0.05
	done
	echo "$pids"
}

# Until none is left: a process may fork while the list is read.
kill_marked()
{
	local i
	for ((i = 0; i < 100; i++)); do
		[ -n "$(marked)" ] || return
		signal_marked KILL
		sleep 0.05
	done
}

timer=
interrupted()
{
	trap '' INT TERM HUP
	[ -n "$timer" ] && kill "$timer" 2>/dev/null
	signal_marked TERM
	[ -z "$(leftovers)" ] || kill_marked
	rm -rf "${tmp:?}"
	echo "interrupted"
	exit 130
}
trap interrupted INT TERM HUP

# limited SECONDS LOG CMD...: runs CMD in a session of its own. Returns its status, 124 if the time was up.
# $left then names the processes that it left behind, which are ended.
left=
limited()
{
	local limit=$1 log=$2 pid done_pid rc
	shift 2
	left=
	# The tests end by themselves on SIGTERM (and put back what they changed): all their processes get it,
	# because a shell waits for its foreground child first.
	setsid env "$mark" "$@" >"$log" 2>&1 </dev/null &
	pid=$!
	sleep "$limit" &
	timer=$!
	# Without the shell's own words about a child that a signal ended.
	{ wait -n -p done_pid "$pid" "$timer"; } 2>/dev/null
	rc=$?
	if [ "$done_pid" = "$timer" ]; then
		signal_marked TERM
		sleep 15 &
		timer=$!
		{ wait -n -p done_pid "$pid" "$timer"; } 2>/dev/null
		[ "$done_pid" = "$pid" ] || { kill_marked; wait "$pid"; } 2>/dev/null
		rc=124
	fi
	{ kill "$timer" && wait "$timer"; } 2>/dev/null
	timer=
	left=$(leftovers)
	if [ -n "$left" ]; then
		# shellcheck disable=SC2086 # one word a pid
		left=$(describe $left)
		kill_marked
	fi
	return $rc
}

# --- host settings -----------------------------------------------------------------------------

# Settings only: the files of /sys/kernel/mm/ksm that cannot be written are counters.
settings_files()
{
	find /sys/kernel/mm/ksm /sys/kernel/mm/transparent_hugepage -maxdepth 1 -type f -perm -200 2>/dev/null | sort
	echo /proc/sys/vm/max_map_count
	echo /proc/sys/vm/overcommit_memory
	echo /proc/sys/vm/swappiness
	echo /proc/sys/vm/unprivileged_userfaultfd
}

settings()
{
	local f
	for f in $(settings_files); do
		[ -r "$f" ] && echo "$f $(cat "$f" 2>/dev/null)"
	done
	# Without the columns that change by themselves.
	awk 'NR > 1 { print "swap", $1, $3 }' /proc/swaps
}

host_at_start=$(settings)
host_before=$host_at_start

# Reports what a test changed, and puts it back as far as a write can, so that the next test is not blamed.
check_settings() # NAME
{
	local now changed f value
	now=$(settings)
	[ "$now" = "$host_before" ] && return
	changed=$(diff <(echo "$host_before") <(echo "$now") | grep '^[<>]' | tr '\n' ' ')
	result 'not ok' "$1: host settings differ before (<) and after (>): $changed"
	while read -r f value; do
		# The active one of several is in brackets.
		[[ $value =~ \[(.*)\] ]] && value=${BASH_REMATCH[1]}
		[ -w "$f" ] && [ "$(cat "$f")" != "$value" ] && echo "$value" >"$f" 2>/dev/null
	done < <(echo "$host_before" | grep ^/)
	host_before=$(settings)
	return 1
}

# --- the kinds of test -------------------------------------------------------------------------

show_log() # LOG LINES
{
	echo "# the end of $1:"
	tail -n "$2" "$1" | sed 's/^/# /'
}

run_lint()
{
	selected lint || return
	if limited 300 "$logs/lint.log" scripts/lint.sh; then
		result ok lint
	else
		result 'not ok' "lint: make lint"
		show_log "$logs/lint.log" 40
	fi
}

# Criterion runs each test in a process of its own; its TAP output is what is counted.
run_unit()
{
	local bin=$BUILD/tests/unit tap=$work/unit.tap log=$logs/unit.log rc name line why n=0
	[ -x "$bin" ] || return 0
	if [[ ${SAN:-} == *thread* ]]; then
		result skip "unit: Criterion's arena does not fit into ThreadSanitizer's address space"
		return
	fi
	rm -f "$tap"
	mkdir -p "$tmp/unit"
	limited 300 "$log" env LC_ALL=C TMPDIR="$tmp/unit" "$bin" ${only:+--filter="*$only*"} --tap="$tap" \
		--verbose --color=never
	rc=$?
	local bad=0
	# The file's last line may have no newline.
	while IFS= read -r line || [ -n "$line" ]; do
		name=${line#*ok - }
		why=${name#*\# SKIP }
		name=${name%% *}
		name=unit/${name/::/\/}
		case $line in
		# What the filter left out is in the report as well.
		'ok - '*'# SKIP test was skipped') [ -n "$only" ] || result skip "$name: disabled" ;;
		'ok - '*'# SKIP '*) result skip "$name: $why" && n=$((n + 1)) ;;
		'ok - '*) result ok "$name" && n=$((n + 1)) ;;
		'not ok - '*) result 'not ok' "$name" && bad=1 ;;
		# The indented lines after "not ok" say what failed.
		'  '*) echo "#$line" ;;
		esac
	done < <(cat "$tap" 2>/dev/null)
	if [ $rc -eq 124 ]; then
		result 'not ok' "unit: timed out" && bad=1
	elif [ $rc -ne 0 ] && [ $bad -eq 0 ]; then
		result 'not ok' "unit: exit status $rc" && bad=1
	elif [ $((n + bad)) -eq 0 ] && [ -z "$only" ]; then
		result 'not ok' "unit: no test ran" && bad=1
	fi
	[ -z "$left" ] || { result 'not ok' "unit: left process $left" && bad=1; }
	if [ $bad -ne 0 ]; then
		# Which were begun and not ended; and what a sanitizer or a crash left on stderr.
		echo "# $log, without what passed:"
		grep -avE '^\[(PASS|SKIP|RUN ) *\]' "$log" | tail -n 100 | sed 's/^/# /'
		comm -23 <(sed -n 's/^\[RUN *\] //p' "$log" | sort) \
			<(sed -nE 's/^\[(PASS|SKIP|FAIL) *\] ([^: ]+::[^: ]+).*/\2/p' "$log" | sort) |
			sed 's/^/# did not end: /'
	fi
	rm -rf "$tmp/unit"
}

script_name() # SCRIPT: "test_NAME", "kvm/test_NAME"
{
	local name=${1#tests/}
	name=${name#live/}
	echo "${name%.sh}"
}

script_limit() # SCRIPT
{
	local limit
	limit=$(sed -n 's/^# timeout: *\([0-9]\+\).*/\1/p' "$1" | head -n 1)
	echo "${limit:-300}"
}

run_script() # SCRIPT
{
	local script=$1 name limit log rc line bad=0 n=0
	name=$(script_name "$script")
	limit=$(script_limit "$script")
	log=$logs/$name.log
	rm -rf "$tmp/$name"
	mkdir -p "$tmp/$name"
	local start=$SECONDS
	limited "$limit" "$log" env TMPDIR="$tmp/$name" "$script"
	rc=$?
	while IFS= read -r line; do
		n=$((n + 1))
		case $line in
		'ok '*) result ok "$name ${line#ok }" ;;
		'skip '*) result skip "$name ${line#skip }" ;;
		'not ok '*) bad=1 && result 'not ok' "$name ${line#not ok }" ;;
		esac
	done < <(grep -aE '^(ok|not ok|skip) [[:alnum:]]' "$log")
	grep -a '^RESULT ' "$log"
	if [ $rc -eq 124 ]; then
		result 'not ok' "$name: timed out after $limit s" && bad=1
	elif [ $rc -ne 0 ] && [ $bad -eq 0 ]; then
		result 'not ok' "$name: exit status $rc" && bad=1
	elif [ $n -eq 0 ]; then
		result 'not ok' "$name: reported nothing" && bad=1
	fi
	[ -z "$left" ] || { result 'not ok' "$name: left process $left" && bad=1; }
	check_settings "$name" || bad=1
	[ $bad -eq 0 ] || show_log "$log" 60
	rm -rf "$tmp/$name"
	echo "# $name took $((SECONDS - start)) s"
}

# What of these is to be run; a script that is not executable is a failure, not left out unseen.
chosen=()
choose() # SCRIPT...
{
	local script
	chosen=()
	for script; do
		selected "$(script_name "$script")" || continue
		if [ -x "$script" ]; then
			chosen+=("$script")
		else
			result 'not ok' "$(script_name "$script"): not executable"
		fi
	done
}

run_live()
{
	local script
	choose tests/live/test_*.sh
	for script in ${chosen[@]+"${chosen[@]}"}; do
		live_ran=1
		run_script "$script"
	done
}

# The test host runs this script again, with --inside, and its lines are taken over. It is started once for all scripts,
# and again for what is left when a script brings it down: scripts run in order, and each ends with a line "# NAME took".
# A script under which the emulated host hangs gets a second chance: that is QEMU's emulation far more often than ours.
run_kvm()
{
	local script limit line done_name rc again='' all=(tests/kvm/test_*.sh)
	# All of them take longer than `make check` may.
	if [ $mode = all ] && [ -z "$only" ]; then
		mapfile -t all < <(grep -l '^# part of: make check' "${all[@]}")
		echo "# of the tests on the test host, the shortest: make check-kvm runs all"
	fi
	choose "${all[@]}"
	[ ${#chosen[@]} -gt 0 ] || return
	if [ -n "${SAN:-}" ]; then
		result skip "kvm: not run with sanitizers, which nobody has tried in an emulated host"
		return
	fi
	if ! limited 600 "$logs/kvm-build.log" sh -c 'tests/guest/build.sh --all && tests/guest/driver.sh && tests/testhost/build.sh'; then
		result 'not ok' "kvm: the test host or its guests cannot be built"
		show_log "$logs/kvm-build.log" 20
		return
	fi
	while [ ${#chosen[@]} -gt 0 ]; do
		limit=60
		for script in "${chosen[@]}"; do
			# 20 s for a script to be ended, as in limited()
			limit=$((limit + $(script_limit "$script") + 20))
		done
		while IFS= read -r line; do
			case $line in
			'ok '*) result ok "${line#ok }" ;;
			'skip '*) result skip "${line#skip }" ;;
			'not ok '*) result 'not ok' "${line#not ok }" ;;
			'# kvm/'*' took '*)
				echo "$line"
				done_name=${line#\# }
				done_name=${done_name%% took *}
				[ "$done_name" != "$(script_name "${chosen[0]:-}")" ] || chosen=("${chosen[@]:1}")
				;;
			*) echo "$line" ;;
			esac
		done < <(exec env "$mark" tests/testhost/run.sh --timeout $limit tests/run.sh --inside "${chosen[@]}" \
			2>"$logs/testhost.log" </dev/null)
		wait $!
		rc=$?
		[ ${#chosen[@]} -gt 0 ] || break
		show_log "$logs/testhost.log" 40
		# Without the host none runs, whichever is next.
		if grep -q 'did not come up\|not up after' "$logs/testhost.log"; then
			for script in "${chosen[@]}"; do
				result 'not ok' "$(script_name "$script"): the test host does not come up"
			done
			break
		fi
		if grep -q 'the host hangs' "$logs/testhost.log" && [ "$again" != "${chosen[0]}" ]; then
			again=${chosen[0]}
			echo "# the test host hung under $(script_name "$again"): once more"
			continue
		fi
		# Status 0 without its closing line: the runner inside could not write.
		result 'not ok' "$(script_name "${chosen[0]}"): the test host ended with it (status $rc)"
		chosen=("${chosen[@]:1}")
	done
	if [ ${#chosen[@]} -eq 0 ] && [ $rc -ne 0 ]; then
		result 'not ok' "kvm: the test host's exit status is $rc"
		show_log "$logs/testhost.log" 40
	fi
	left=$(leftovers)
	if [ -n "$left" ]; then
		# shellcheck disable=SC2086 # one word a pid
		result 'not ok' "kvm: left process $(describe $left)"
		kill_marked
	fi
}

case $mode in
inside)
	for script; do
		run_script "$script"
	done
	rm -rf "${tmp:?}"
	exit 0
	;;
unit) run_unit ;;
kvm) run_kvm ;;
all)
	run_lint
	run_unit
	run_live
	run_kvm
	;;
esac

if [ -n "$live_ran" ]; then
	if [ "$(settings)" = "$host_at_start" ]; then
		result ok "host settings are as they were"
	else
		result 'not ok' "host settings could not be put back"
	fi
fi

[ -n "$any" ] || echo "nothing has '$only' in its name" >&2
echo "$passed passed, $failed failed, $skipped skipped"
[ -n "$any" ] && [ "$failed" -eq 0 ]
