# shellcheck shell=bash
# What live tests share. A test is an executable tests/live/test_NAME.sh that begins so:
#
#	#!/usr/bin/env bash
#	# timeout: 120
#	. "$(dirname "$0")/../lib.sh"
#
# It reports each thing that it checked as one line on stdout: "ok NAME", "not ok NAME why" or
# "skip NAME why" (pass, fail, skip below). tests/run.sh counts these lines, limits the time, and ends
# (and reports) every process that the test leaves behind. A test also runs by hand, from anywhere.
#
# Nothing here needs root by itself, a terminal, or a fixed port or path.

set -u
set -o pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$(cd "$TOP" && realpath -m "${BUILD:-build}")
cd "$TOP" || exit 1

# A socket path has at most 107 bytes: when the build folder lies too deep, /tmp serves. By hand
# (without tests/run.sh) always.
RUN=$(mktemp -d "${TMPDIR:-/tmp}/run.XXXXXX")
if [ ${#RUN} -gt 80 ]; then
	rmdir "$RUN"
	RUN=$(mktemp -d /tmp/ballast-test.XXXXXX)
fi

# --- results -----------------------------------------------------------------------------------

__failed=0

pass() { echo "ok $*"; } # NAME
skip() { echo "skip $*"; } # NAME WHY...

fail() # NAME WHY...: the test goes on
{
	__failed=1
	echo "not ok $*"
}

die() # NAME WHY...: the test ends
{
	fail "$@"
	exit 1
}

skip_all() # NAME WHY...: the test ends, as it has nothing to test here
{
	skip "$@"
	exit 0
}

# check NAME CMD...: passes if the command does.
check()
{
	local name=$1 rc
	shift
	"$@"
	rc=$?
	if [ $rc -eq 0 ]; then pass "$name"; else fail "$name" "exit status $rc: $*"; fi
	return $rc
}

# check_eq NAME WANTED GOT
check_eq()
{
	if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "wanted '$2', got '$3'"; fi
}

# check_ge NAME LEAST GOT (whole numbers)
check_ge()
{
	if [[ $3 =~ ^[0-9]+$ ]] && [ "$3" -ge "$2" ]; then
		pass "$1"
	else
		fail "$1" "wanted at least $2, got '$3'"
	fi
}

# --- clean-up ----------------------------------------------------------------------------------

__cleanups=()

# cleanup CMD...: run when the test ends, however it ends, last registered first.
cleanup() { __cleanups+=("$(printf '%q ' "$@")"); }

# The run folder is removed, and what the daemon and the guests said is what explains a failure.
__show_logs()
{
	local f
	for f in "$RUN"/*.log "$RUN"/*.console; do
		[ -s "$f" ] || continue
		echo "# the end of ${f##*/}:"
		tail -n 25 "$f" | tr -cd '[:print:]\t\n' | sed 's/^/#   /'
	done
}

__at_exit()
{
	local rc=$? i
	trap - EXIT
	trap '' INT TERM HUP # nothing interrupts what puts the host back as it was
	if [ "$rc" -ne 0 ] || [ $__failed -ne 0 ]; then
		__show_logs
	fi
	for ((i = ${#__cleanups[@]} - 1; i >= 0; i--)); do
		eval "${__cleanups[i]}" || true
	done
	[ "$rc" -eq 0 ] && rc=$__failed
	exit "$rc"
}
trap __at_exit EXIT
# So that a signal ends the test through __at_exit.
trap 'exit 130' INT
trap 'exit 143' TERM HUP

cleanup rm -rf "$RUN"

# --- processes ---------------------------------------------------------------------------------

# alive PID: it runs (a zombie does not).
alive()
{
	local state
	state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)
	[ -n "$state" ] && [ "$state" != Z ] && [ "$state" != X ]
}

# wait_for SECONDS CMD...: polls until the command passes; fails when the time is up. Every WAIT_POLL seconds.
WAIT_POLL=0.05
wait_for()
{
	local end=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "${EPOCHREALTIME/[.,]/}" -lt "$end" ] || return 1
		sleep "$WAIT_POLL"
	done
}

__gone() { ! alive "$1"; }

# end_process PID [SIGNAL [SECONDS]]: signals it, waits, and kills it when the time (10 s) is up.
# Returns 1 if it had to be killed. For children and for other processes.
end_process()
{
	local pid=$1 rc=0
	# Or the shell writes "Killed" into the log. Its exit status is lost: who wants it calls wait first.
	disown "$pid" 2>/dev/null
	alive "$pid" && kill "-${2:-TERM}" "$pid" 2>/dev/null
	if ! wait_for "${3:-10}" __gone "$pid"; then
		rc=1
		kill -KILL "$pid" 2>/dev/null
		wait_for 10 __gone "$pid"
	fi
	return $rc
}

# start LOG CMD...: starts a command in the background that the end of the test ends; its pid is in $PID.
start()
{
	local log=$1
	shift
	"$@" >>"$log" 2>&1 </dev/null &
	PID=$!
	cleanup end_process "$PID"
}

# --- the daemon --------------------------------------------------------------------------------

CONF=$RUN/ballast.conf
AGENT_SOCKET=$RUN/agent.sock
CONTROL_SOCKET=$RUN/control.sock
DAEMON_LOG=$RUN/ballastd.log
DAEMON_PID=
# What ballast-run and the agent library use (hypervisor-hooks/hooks.h).
export BALLAST_AGENT_SOCKET=$AGENT_SOCKET

# write_config [SECTION.KEY=VALUE...]: writes $CONF. The section ends at the last dot before the "=",
# so that 'vm "web*".share=off' works. Sockets lie in $RUN; metrics are off unless metrics.port is given, and
# vm.max_map_count is left alone unless scan.max_map_count is.
write_config()
{
	local -A text=() value=()
	local -a order=(daemon metrics scan)
	local arg lhs section key
	value[daemon.run_dir]=$RUN
	value[daemon.agent_socket]=$AGENT_SOCKET
	value[daemon.control_socket]=$CONTROL_SOCKET
	value[metrics.enabled]=no
	# A setting of the whole host, which other tests and daemons may be using: test_46 is about it.
	value[scan.max_map_count]=off
	for arg in "$@"; do
		lhs=${arg%%=*}
		value[$lhs]=${arg#*=}
		[ "$lhs" = metrics.port ] && value[metrics.enabled]=yes
	done
	for lhs in "${!value[@]}"; do
		section=${lhs%.*} key=${lhs##*.}
		[ -n "${text[$section]+x}" ] || text[$section]=
		text[$section]+="$key = ${value[$lhs]}"$'\n'
	done
	# VM sections are tried in file order, so theirs is the order of the arguments.
	for arg in "$@"; do
		lhs=${arg%%=*}
		section=${lhs%.*}
		[[ " ${order[*]} " == *" $section "* ]] || order+=("$section")
	done
	for section in "${order[@]}"; do
		printf '[%s]\n%s\n' "$section" "${text[$section]}"
	done >"$CONF"
}

__daemon_answers() { ctl status --json; }
__daemon_up_or_dead() { ! alive "$DAEMON_PID" || __daemon_answers; }

# start_daemon [SECTION.KEY=VALUE...]: starts ballastd and waits until it answers on its control socket
# (30 s). Without arguments after an earlier start: with the same configuration. $DAEMON_PID is its pid;
# $DAEMON_WRAP (an array, empty by default) goes before it, such as (strace -f).
DAEMON_WRAP=()
start_daemon()
{
	if [ $# -gt 0 ] || [ ! -e "$CONF" ]; then
		write_config "$@"
	fi
	start "$DAEMON_LOG" ${DAEMON_WRAP[@]+"${DAEMON_WRAP[@]}"} "$BUILD/ballastd" --config "$CONF"
	DAEMON_PID=$PID
	wait_for 30 __daemon_up_or_dead
	if ! __daemon_answers >/dev/null 2>&1; then
		echo "ballastd does not answer; the end of its log:"
		tail -n 30 "$DAEMON_LOG"
		return 1
	fi
}

# stop_daemon: an orderly stop; fails if it took more than 10 s.
stop_daemon() { end_process "$DAEMON_PID" TERM; }
# kill_daemon: kill -9. Its main thread is a zombie before its other threads have let go of the lock.
kill_daemon()
{
	end_process "$DAEMON_PID" KILL
	wait_for 10 flock -n "$RUN/lock" true
}

# ctl ARG...: ballastctl on this test's daemon. A daemon that hangs is a failure, not a test that hangs.
ctl() { timeout 20 "$BUILD/ballastctl" --socket "$CONTROL_SOCKET" "$@"; }

# scrape PORT: prints the metrics, the HTTP header included.
scrape() { exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && cat <&3; exec 3>&-; }

# free_port: prints a TCP port of 127.0.0.1 that was free a moment ago.
free_port()
{
	local port
	while :; do
		port=$((20000 + RANDOM % 12000))
		if ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			echo "$port"
			return
		fi
	done
}

# --- guests ------------------------------------------------------------------------------------

# start_qemu NAME ARG...: an unmodified QEMU through ballast-run, without devices of its own: the caller
# gives machine, memory, kernel. $QEMU_PID is its pid; its serial console is in $RUN/NAME.console, its own
# output in $RUN/NAME.log, its QMP socket is $RUN/NAME.qmp.
QEMU=${QEMU:-qemu-system-x86_64}
start_qemu()
{
	local name=$1
	shift
	start "$RUN/$name.log" "$BUILD/ballast-run" "$QEMU" -name "$name" -nodefaults -no-user-config \
		-display none -no-reboot -serial "file:$RUN/$name.console" \
		-qmp "unix:$RUN/$name.qmp,server=on,wait=off" "$@"
	# shellcheck disable=SC2034 # for the test
	QEMU_PID=$PID
}

# console_has NAME TEXT: the guest has printed TEXT. For wait_for.
console_has() { grep -qaF -e "$2" "$RUN/$1.console"; }
