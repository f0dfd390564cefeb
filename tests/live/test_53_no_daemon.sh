#!/usr/bin/env bash
# timeout: 150
# ballast-run where Ballast cannot work: no daemon, no library, a kernel or a container without userfaultfd, a daemon
# that accepts and does not answer. The command runs exactly as if Ballast were not there, and one line says why.
. "$(dirname "$0")/../lib.sh"

RUNNER=$BUILD/ballast-run
TOOL=$BUILD/tests/tool_env
[ -x "$TOOL" ] || die no_daemon "$TOOL is not built"

# run CMD...: its output is in $RUN/out and $RUN/err, its status in $rc, the time it took in $ms.
run()
{
	local begin=${EPOCHREALTIME/[.,]/}
	timeout 60 "$@" >"$RUN/out" 2>"$RUN/err" </dev/null
	rc=$?
	ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
}
out() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" "$RUN/out"; }
lines() { grep -c ballast "$RUN/err"; }

# as_without NAME: what the tool has printed is what it prints without Ballast, and one line was said.
as_without()
{
	check_eq "no_daemon_$1_status" 0 $rc
	check_eq "no_daemon_$1_madvise" 0 "$(out madvise)"
	check_eq "no_daemon_$1_ksm_is_told" "$plain_mg" "$(out mg)"
	check_eq "no_daemon_$1_threads" 1 "$(out threads)"
	check_eq "no_daemon_$1_discard" "0 right" "$(out dontneed) $(out content)"
	check_eq "no_daemon_$1_one_line" 1 "$(grep -c . "$RUN/err")"
	sed 's/^/# /' "$RUN/err"
}

# What the kernel does by itself: 1 where it has KSM.
run "$TOOL" mergeable
plain_mg=$(out mg)
[ "$plain_mg" = 1 ] || skip no_daemon_ksm "this kernel has no KSM"

# --- no daemon -------------------------------------------------------------------------------------

run "$RUNNER" "$TOOL" mergeable
as_without absent
check_ge no_daemon_absent_line 1 "$(grep -c 'no ballastd is running' "$RUN/err")"
check_ge no_daemon_absent_quick 1 $((ms < 1000))

# A socket that nobody listens on, as a daemon that was killed leaves it.
"$TOOL" mute "$RUN/agent.sock" >/dev/null 2>&1 &
mute=$!
wait_for 5 test -S "$RUN/agent.sock"
end_process "$mute" KILL
run "$RUNNER" "$TOOL" mergeable
as_without stale
check_ge no_daemon_stale_line 1 "$(grep -c 'no ballastd is running' "$RUN/err")"
rm -f "$RUN/agent.sock"

# Exit statuses, arguments, standard streams, signals, environment.
for status in 0 1 77 126; do
	run "$RUNNER" sh -c "exit $status"
	check_eq "no_daemon_exit_$status" $status $rc
done
run "$RUNNER" sh -c 'kill -KILL $$'
check_eq no_daemon_signal 137 $rc
run "$RUNNER" printf '<%s>' 'a b' '' '*' '--help' "it's"
check_eq no_daemon_arguments "<a b><><*><--help><it's>" "$(cat "$RUN/out")"
check_eq no_daemon_silent_without_ram 0 "$(grep -c . "$RUN/err")"
echo through >"$RUN/in"
check_eq no_daemon_stdin through "$("$RUNNER" cat <"$RUN/in")"
check_eq no_daemon_exec_same_pid "$BASHPID" "$(exec "$RUNNER" sh -c 'echo $PPID')"
LD_PRELOAD=$BUILD/libballast-preload.so run "$RUNNER" sh -c 'echo $LD_PRELOAD'
check_eq no_daemon_keeps_preload 2 "$(tr ':' '\n' <"$RUN/out" | grep -c preload)"

# --- usage -----------------------------------------------------------------------------------------

run "$RUNNER"
check_eq no_daemon_usage_status 2 $rc
check_ge no_daemon_usage_text 1 "$(grep -c '^usage: ballast-run' "$RUN/err")"
run "$RUNNER" --help
check_eq no_daemon_help_status 0 $rc
check_ge no_daemon_help_text 1 "$(cat "$RUN/out" "$RUN/err" | grep -c '^usage: ballast-run')"
run "$RUNNER" /nonexistent/vmm
check_eq no_daemon_no_command 127 $rc
check_ge no_daemon_no_command_line 1 "$(grep -c 'nonexistent' "$RUN/err")"
run "$RUNNER" "$RUN"
check_eq no_daemon_not_executable 126 $rc

# --- no library ------------------------------------------------------------------------------------

mkdir "$RUN/alone"
cp "$RUNNER" "$RUN/alone/"
run "$RUN/alone/ballast-run" "$TOOL" mergeable
as_without library
check_ge no_daemon_library_line 1 "$(grep -c 'libballast-preload.so' "$RUN/err")"
# Where `make install` puts it.
mkdir -p "$RUN/usr/bin" "$RUN/usr/lib/ballast"
cp "$RUNNER" "$RUN/usr/bin/"
cp "$BUILD/libballast-preload.so" "$RUN/usr/lib/ballast/"
ln -s usr/bin/ballast-run "$RUN/link"
run "$RUN/link" "$TOOL" mergeable
as_without installed
check_ge no_daemon_installed_line 1 "$(grep -c 'no ballastd is running' "$RUN/err")"

# --- no userfaultfd --------------------------------------------------------------------------------

start_daemon || die no_daemon_daemon "ballastd does not start"
# The control: here it does work, KSM is not told, and the agent has its five threads.
run "$RUNNER" "$TOOL" mergeable
check_eq no_daemon_control_ksm_is_not_told 0 "$(out mg)"
check_eq no_daemon_control_threads 6 "$(out threads)"
check_eq no_daemon_control_discard "0 right" "$(out dontneed) $(out content)"
check_eq no_daemon_control_silent 0 "$(grep -c . "$RUN/err")"

run "$TOOL" deny ENOSYS "$RUNNER" "$TOOL" mergeable
as_without old_kernel
check_ge no_daemon_old_kernel_line 1 "$(grep -c 'this kernel lacks' "$RUN/err")"
run "$TOOL" deny EPERM "$RUNNER" "$TOOL" mergeable
as_without strict
check_ge no_daemon_strict_line 1 "$(grep -c 'userfaultfd is not permitted' "$RUN/err")"
check no_daemon_daemon_runs alive "$DAEMON_PID"
stop_daemon

# --- a daemon that does not answer -----------------------------------------------------------------

start "$RUN/mute.out" "$TOOL" mute "$RUN/agent.sock"
mute=$PID
wait_for 5 test -S "$RUN/agent.sock"
run "$RUNNER" "$TOOL" mergeable
as_without mute
check_ge no_daemon_mute_was_asked 1 "$(grep -c accepted "$RUN/mute.out")"
check_ge no_daemon_mute_waits_at_most_2s 1 $((ms < 2000))
echo "# with a mute daemon: $ms ms"

# --- QEMU ------------------------------------------------------------------------------------------

if ! command -v "$QEMU" >/dev/null; then
	skip no_daemon_qemu "$QEMU is not installed"
	end_process "$mute" TERM
	exit 0
fi

# qemu NAME CMD...: starts QEMU by CMD, asks it on its monitor for its state, and quits it there.
monitor_answers() { grep -q 'VM status' "$RUN/$1.monitor"; }
qemu()
{
	local name=$1 fifo=$RUN/$1.in begin=${EPOCHREALTIME/[.,]/} pid
	shift
	mkfifo "$fifo"
	"$@" "$QEMU" -name "$name" -machine q35,accel=tcg,mem-merge=on -m 64 -nodefaults -no-user-config -display none \
		-monitor stdio <"$fifo" >"$RUN/$name.monitor" 2>"$RUN/err" &
	pid=$!
	cleanup end_process "$pid"
	exec 9>"$fifo"
	echo 'info status' >&9
	wait_for 20 monitor_answers "$name" || fail "no_daemon_qemu_${name}_answers" "$(tail -n 3 "$RUN/$name.monitor" "$RUN/err")"
	ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
	threads=$(ls "/proc/$pid/task" | wc -l)
	# Guest RAM, which is the largest mapping: is KSM told of it?
	mg=$(awk '/^[0-9a-f]+-/ { ram = 0 } /^Size:/ { ram = $2 >= 65536 && $2 < 200000 } /^VmFlags:/ && ram && / mg/ { n++ }
		END { print n + 0 }' "/proc/$pid/smaps")
	agents=$(cat /proc/"$pid"/task/*/comm | grep -c '^ballast-')
	echo quit >&9
	exec 9>&-
	wait "$pid"
	rc=$?
	echo "# QEMU $name: ready after $ms ms, $threads threads, $agents of Ballast, mg $mg, exit status $rc"
	sed 's/^/# /' "$RUN/err"
}

qemu plain
plain_ms=$ms plain_mg=$mg
end_process "$mute" TERM
rm -f "$RUN/agent.sock"

qemu_as_plain() # NAME
{
	check_eq "no_daemon_qemu_$1_status" 0 $rc
	check_eq "no_daemon_qemu_$1_no_agent_threads" 0 "$agents"
	check_eq "no_daemon_qemu_$1_ksm_is_told" "$plain_mg" "$mg"
	check_eq "no_daemon_qemu_$1_one_line" 1 "$(lines)"
}
qemu absent "$RUNNER"
qemu_as_plain absent
start_daemon || die no_daemon_daemon "ballastd does not start"
qemu old "$TOOL" deny ENOSYS "$RUNNER"
qemu_as_plain old
# The control again.
qemu shared "$RUNNER"
check_eq no_daemon_qemu_control_status 0 $rc
check_eq no_daemon_qemu_control_agent_threads 5 "$agents"
check_eq no_daemon_qemu_control_ksm_is_not_told 0 "$mg"
stop_daemon
start "$RUN/mute.out" "$TOOL" mute "$RUN/agent.sock"
wait_for 5 test -S "$RUN/agent.sock"
qemu mute "$RUNNER"
qemu_as_plain mute
check_ge no_daemon_qemu_mute_starts_within_2s 1 $((ms < plain_ms + 2000))
