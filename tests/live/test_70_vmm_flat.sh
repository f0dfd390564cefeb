#!/usr/bin/env bash
# timeout: 250
# ballast-vmm itself, with a flat guest that runs on any KVM (tests/live/vmm/guest.c): console both ways, stop and cont,
# snapshot and restore, reset, the ways to end. Stock kernels: tests/kvm/.
. "$(dirname "$0")/../lib.sh"

VMM=$BUILD/ballast-vmm
IMAGE=$BUILD/tests/vmm_flat.bin
VMM_ARGS=(--no-agent)
# Sanitizers make system calls of their own.
[ -z "${SAN:-}" ] || VMM_ARGS+=(--no-sandbox)

timeout 10 "$VMM" "${VMM_ARGS[@]}" --flat "$IMAGE" </dev/null >"$RUN/probe" 2>"$RUN/probe.log" &
probe=$!
probed() { grep -q START "$RUN/probe" || ! alive $probe; }
wait_for 10 probed
if ! grep -q START "$RUN/probe"; then
	wait $probe
	rc=$?
	if [ $rc -eq 77 ]; then skip_all vmm_flat "$(cat "$RUN/probe.log")"; fi
	die vmm_flat_starts "status $rc: $(cat "$RUN/probe.log")"
fi
end_process $probe TERM

# flat NAME ARG...: $VMM_PID; its console's input is file descriptor 7
flat()
{
	local name=$1
	shift
	rm -f "$RUN/$name.in"
	mkfifo "$RUN/$name.in"
	"$VMM" --name "$name" "${VMM_ARGS[@]}" --qmp "$RUN/$name.qmp" "$@" <"$RUN/$name.in" >"$RUN/$name.console" 2>"$RUN/$name.log" &
	VMM_PID=$!
	exec 7>"$RUN/$name.in"
	cleanup end_process "$VMM_PID"
}
round() { sed -n 's/^FLAT round=\([0-9]*\) errors=0$/\1/p' "$RUN/$1.console" | tail -n 1; }
reaches() { [ "$(round "$1")" -ge "$2" ]; }
says() { [ "$(grep -c "$2" "$RUN/$1.console")" -ge "${3:-1}" ]; }
qmp() { "$BUILD/tests/tool_qmp" "$RUN/$1.qmp" "{\"execute\": \"$2\"${3:+, \"arguments\": $3}}"; }
quiet() { "$@" >/dev/null; }
ends() # TEST PID STATUS
{
	wait_for 20 __gone "$2" || kill -KILL "$2"
	wait "$2"
	check_eq "$1" "$3" $?
}

flat a --flat "$IMAGE" --memory 64M
a=$VMM_PID
check vmm_flat_runs wait_for 20 reaches a 3
# More than the FIFO and the pipe's piece hold, in order. A dot ends it.
text=$(seq -s' ' 1 3000)
printf 'e%s.' "$text" >&7
check vmm_flat_echo wait_for 60 says a "^$text\$"

check vmm_flat_stop quiet qmp a stop
r=$(round a)
sleep 0.5
check_eq vmm_flat_stopped_is_still "$r" "$(round a)"
check vmm_flat_snapshot quiet qmp a x-ballast-snapshot-save "{\"directory\": \"$RUN/snap\"}"
check vmm_flat_cont quiet qmp a cont
check vmm_flat_goes_on wait_for 20 reaches a $((r + 3))
# Many times in a row, while it runs.
for i in $(seq 50); do
	if ! { qmp a stop && qmp a cont; } >/dev/null; then fail vmm_flat_stop_cont "round $i"; fi
done
check vmm_flat_runs_on wait_for 20 reaches a $(($(round a) + 3))

# Privileges and system calls (not in a sanitized build).
if [ -z "${SAN:-}" ]; then
	for task in /proc/"$a"/task/*; do
		check_eq "vmm_flat_seccomp_$(cat "$task/comm")" 2 "$(sed -n 's/^Seccomp:\t//p' "$task/status")"
		check_eq "vmm_flat_caps_$(cat "$task/comm")" 0000000000000000 "$(sed -n 's/^CapEff:\t//p' "$task/status")"
		check_eq "vmm_flat_no_new_privs_$(cat "$task/comm")" 1 "$(sed -n 's/^NoNewPrivs:\t//p' "$task/status")"
	done 2>/dev/null
fi
rss=$(sed -n 's/^Rss: *\([0-9]*\) kB/\1/p' "/proc/$a/smaps_rollup")
echo "RESULT vmm_flat_resident rss_kb=$rss guest_touched_kb=$((8 * 1024))"

check vmm_flat_reset quiet qmp a system_reset
check vmm_flat_reset_starts_again wait_for 20 says a START 2
printf r >&7
check vmm_flat_guest_reset wait_for 20 says a START 3
printf q >&7
ends vmm_flat_poweroff "$a" 0
check vmm_flat_last_words says a BYE
check_eq vmm_flat_no_errors "" "$(grep 'errors=[1-9]' "$RUN/a.console")"
check_eq vmm_flat_silent "" "$(cat "$RUN/a.log")"

flat b --restore "$RUN/snap"
check vmm_flat_restore wait_for 20 reaches b $((r + 3))
check_ge vmm_flat_restore_where_it_was $r "$(sed -n 's/^FLAT round=\([0-9]*\) .*/\1/p' "$RUN/b.console" | head -n 1)"
check_eq vmm_flat_restore_no_start 0 "$(grep -c START "$RUN/b.console")"
check_eq vmm_flat_restore_no_errors "" "$(grep 'errors=[1-9]' "$RUN/b.console")"
printf x >&7
ends vmm_flat_crash "$VMM_PID" 3
check vmm_flat_crash_says grep -q "triple fault\|KVM internal error" "$RUN/b.log"
check_eq vmm_flat_crash_one_line 1 "$(wc -l <"$RUN/b.log")"

flat c --restore "$RUN/snap"
check vmm_flat_restore_again wait_for 20 reaches c $((r + 1))
printf r >&7
ends vmm_flat_restored_reboot "$VMM_PID" 4
exec 7>&-
# Nothing on stdin, stdout and stderr at all.
"$VMM" --name closed "${VMM_ARGS[@]}" --qmp "$RUN/closed.qmp" --flat "$IMAGE" --memory 64M <&- >&- 2>&- &
closed=$!
cleanup end_process $closed
wait_for 10 test -S "$RUN/closed.qmp"
check vmm_flat_closed_stdio eval "qmp closed query-status | grep -q running"
check vmm_flat_closed_quit quiet qmp closed quit
ends vmm_flat_closed_status $closed 0

# Wrong usage, no KVM, broken images: one line each.
one_line() # TEST STATUS TEXT CMD...
{
	local test=$1 status=$2 text=$3
	shift 3
	timeout -k 1 20 "$@" </dev/null >"$RUN/out" 2>"$RUN/one.log"
	check_eq "${test}_status" "$status" $?
	check_eq "${test}_lines" 1 "$(wc -l <"$RUN/one.log")"
	check "${test}_says" grep -qF -- "$text" "$RUN/one.log"
}
one_line vmm_flat_usage 2 "--cpus 99" "$VMM" --flat "$IMAGE" --cpus 99
one_line vmm_flat_missing 1 /nowhere "$VMM" --flat /nowhere
: >"$RUN/empty"
one_line vmm_flat_empty 1 "0 bytes" "$VMM" "${VMM_ARGS[@]}" --flat "$RUN/empty"
if [ "$(id -u)" -eq 0 ] && [ "$(stat -c %a /dev/kvm)" = 600 ]; then
	one_line vmm_flat_no_kvm 77 "/dev/kvm: Permission denied" setpriv --reuid=65534 --clear-groups "$VMM" --flat "$IMAGE"
fi

# The terminal: raw while it runs, and afterwards as it was, however it ends. With a key (Ctrl-A x), or by a signal.
# A shell without job control gives what runs in its background /dev/null to read, so the terminal is given by hand.
terminal() # TEST SIGNAL|key
{
	local test=$1 how=$2 end="kill -$2 \$p"
	[ "$how" != key ] || end=:
	rm -f "$RUN"/stty.*
	{ [ "$how" != key ] || { wait_for 10 test -e "$RUN/stty.raw"; printf '\001x'; }; sleep 2; } |
		timeout -k 1 30 script -qec "exec 3<&0; stty -g >'$RUN/stty.before'
		'$VMM' ${VMM_ARGS[*]} --flat '$IMAGE' <&3 >/dev/null 2>&1 & p=\$!
		for i in 1 2 3 4 5 6 7 8 9 10; do
			sleep 0.2; stty -a <&3 | grep -q -- ' -icanon' && touch '$RUN/stty.raw' && break; done
		$end; wait \$p; echo \$? >'$RUN/stty.status'
		stty -g >'$RUN/stty.after'" /dev/null >"$RUN/script.out" 2>&1
	check "${test}_raw" test -e "$RUN/stty.raw"
	check_eq "$test" "$(cat "$RUN/stty.before")" "$(cat "$RUN/stty.after")"
	case $how in key | TERM | INT | HUP) check_eq "${test}_status" 0 "$(cat "$RUN/stty.status")" ;; esac
}
for how in key TERM INT HUP SEGV ABRT; do
	terminal vmm_flat_terminal_$how $how
done

# The end of input is not the end of the guest; a closed output neither.
"$VMM" --name d "${VMM_ARGS[@]}" --qmp "$RUN/d.qmp" --flat "$IMAGE" --memory 64M </dev/null 2>"$RUN/d.log" | head -n 1 >/dev/null &
wait_for 10 test -S "$RUN/d.qmp"
sleep 0.5
check vmm_flat_output_closed eval "qmp d query-status | grep -q running"
check vmm_flat_quit quiet qmp d quit

# Its memory goes out, compressed, and comes back, under the sandbox and while it runs: by the agent's threads, KVM's and the
# VMM's own (a snapshot reads all of it).
. "$(dirname "$0")/flat/flat.sh"
start_daemon scan.cpu_percent=100 scan.interval=50ms scan.idle_interval=1s scan.thp_split_min_saving=4KiB 'vm "paged".share=zero-only' ||
	die vmm_flat_daemon "ballastd does not start"
[ -n "${SAN:-}" ] && VMM_ARGS=(--no-sandbox) || VMM_ARGS=()
thp=/sys/kernel/mm/transparent_hugepage/enabled
was=$(sed 's/.*\[\(.*\)\].*/\1/' $thp)
cleanup eval "echo $was >$thp"
echo never >$thp # pages of huge pages are not taken out
flat paged --flat "$IMAGE" --memory 64M
paged=$VMM_PID
check vmm_flat_paged_runs wait_for 20 reaches paged 2
wait_for 10 vms_connected paged || die vmm_flat_paged_connects "its agent does not connect"
went_out() { ctl page-out paged 64M >/dev/null && sleep 0.1 && take_status && [ "$(vm_value paged paged_out_pages_total)" -ge "$1" ]; }
# While it stands still, all that it wrote is still.
check vmm_flat_paged_stop quiet qmp paged stop
check vmm_flat_paged_first quiet qmp paged x-ballast-snapshot-save "{\"directory\": \"$RUN/snap1\"}"
check vmm_flat_paged_out wait_for 30 went_out 1000
check vmm_flat_paged_second quiet qmp paged x-ballast-snapshot-save "{\"directory\": \"$RUN/snap2\"}"
check vmm_flat_paged_same cmp "$RUN/snap1/memory" "$RUN/snap2/memory"
take_status
check vmm_flat_paged_out_again wait_for 30 went_out $(($(vm_value paged paged_out_pages_total) + 1000))
check vmm_flat_paged_cont quiet qmp paged cont
check vmm_flat_paged_goes_on wait_for 30 reaches paged $(($(round paged) + 3))
came_back() { take_status && [ "$(vm_value paged paged_in_pages_total)" -ge 2000 ]; }
check vmm_flat_paged_in wait_for 10 came_back
check_eq vmm_flat_paged_no_errors "" "$(grep 'errors=[1-9]' "$RUN/paged.console")"
echo "# $(vm_value paged paged_out_pages_total) pages out, $(take_status && vm_value paged paged_in_pages_total) back"
check vmm_flat_paged_lives alive "$paged"
check vmm_flat_paged_quit quiet qmp paged quit
echo "$was" >$thp
exec 7>&-
