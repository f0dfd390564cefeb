#!/usr/bin/env bash
# timeout: 120
# A VMM passes a file of its own file system, which does not answer: reading and closing such a file hang. The daemon must
# answer its administrator, tell that VMM how its request ended once that can be told, and serve others.
. "$(dirname "$0")/../lib.sh"

TOOL=$BUILD/tests/tool_hangfile
[ -x "$TOOL" ] && [ -x "$BUILD/tests/tool_clone" ] || die hostile_files "$TOOL is not built"
mkdir "$RUN/mount"
cleanup bash -c "umount -l '$RUN/mount' 2>/dev/null"

# The daemon answers within three seconds, again and again: one is what a hang may cost.
responsive() # NAME
{
	local _ begin ms worst=0
	for _ in 1 2 3 4 5; do
		begin=${EPOCHREALTIME/[.,]/}
		timeout 10 "$BUILD/ballastctl" --socket "$CONTROL_SOCKET" status --json >/dev/null 2>&1
		ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
		worst=$((ms > worst ? ms : worst))
		sleep 0.3
	done
	echo "# $1: $worst ms at worst"
	check_ge "$1" 1 $((worst < 3000))
}
said() { grep -q "^$2" "$RUN/$1.log"; }
said_or_dead() { said "$1" "$2" || ! alive "$PID"; }

start_daemon scan.cpu_percent=100 || die hostile_files_daemon "ballastd does not start"
"$BUILD/tests/tool_clone" make "$RUN/snapshot" 4 1
for how in read flush early; do
	start "$RUN/$how.log" "$TOOL" $how "$RUN/mount"
	vm=$PID
	wait_for 20 said_or_dead $how passed
	said $how 'no FUSE' && skip_all hostile_files "$(cat "$RUN/$how.log")"
	check hostile_files_${how}_passed said $how passed
	responsive hostile_files_${how}_responsive
	check hostile_files_${how}_others timeout 30 "$BUILD/tests/tool_clone" run $how "$RUN/snapshot" 1 </dev/null
	# The file system goes, and what hung comes back.
	kill -USR1 "$vm"
	case $how in
	read) check hostile_files_read_end wait_for 20 said read "end 110" ;;
	flush) check hostile_files_flush_end wait_for 20 said flush "end 2" ;;
	early) check hostile_files_early_closed wait_for 20 said early closed ;;
	esac
	end_process "$vm" TERM
	umount -l "$RUN/mount" 2>/dev/null
done
check hostile_files_daemon_runs alive "$DAEMON_PID"
check hostile_files_daemon_stops stop_daemon
