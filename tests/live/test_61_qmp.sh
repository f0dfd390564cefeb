#!/usr/bin/env bash
# timeout: 290
# The balloon of a stock guest in unmodified QEMU, over QMP, without a daemon: the device is found, its statistics are
# read with their age, memory is taken and given back, a paused VM's balloon stays as it is, a dead QEMU and one that
# comes back are noticed, and so are a guest without a driver and a device that comes late. Then servers that are no QMP.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

TOOL=$BUILD/tests/tool_balloon
SERVER=$BUILD/tests/tool_qmpd
[ -x "$TOOL" ] && [ -x "$SERVER" ] || die qmp_built "$TOOL or $SERVER is not built"

# balloon_tool NAME SOCKET ARG...: in the background, its lines are in $RUN/NAME.balloon; its pid is ${TOOL_PID[NAME]}.
declare -A TOOL_PID=()
balloon_tool()
{
	local name=$1 socket=$2
	shift 2
	: >"$RUN/$name.balloon"
	start "$RUN/$name.balloon" "$TOOL" "$socket" --fast "$@"
	TOOL_PID[$name]=$PID
}
# A line that lies across two pages of the file may be seen half written: one without its last key is not the last yet.
last() { grep '^BALLOON .* age_ms=' "$RUN/$1.balloon" | tail -n 1; }
value() { last "$1" | sed -n "s/.* $2=\([^ ]*\).*/\1/p"; }
error_text() { last "$1" | sed -n 's/.* error="\([^"]*\)".*/\1/p'; }
is() { [ "$(value "$1" "$2")" = "$3" ]; }                # NAME KEY VALUE
at_most() { [ "$(value "$1" "$2")" -le "$3" ]; }         # NAME KEY N
at_least() { [ "$(value "$1" "$2")" -ge "$3" ]; }
says() { grep -q "error=\"[^\"]*$2" "$RUN/$1.balloon"; } # at any time
lines() { grep -c '^BALLOON ' "$RUN/$1.balloon"; }
more_lines() { [ "$(lines "$1")" -gt "$2" ]; }
# expect TEST NAME SECONDS CMD...: waits; shows the last line if it does not come.
expect()
{
	local test=$1 name=$2 seconds=$3
	shift 3
	if wait_for "$seconds" "$@"; then pass "$test"; else fail "$test" "not within $seconds s: $* ($(last "$name"))"; fi
}
other_qmp() { timeout 20 "$BUILD/tests/tool_qmp" "$RUN/$1.other" "$2"; }

stock_init qmp

# vm NAME KERNEL-PARAMETERS QEMU-ARG...: a stock guest with a socket for us and another one for the test.
vm()
{
	local name=$1 params=$2
	shift 2
	stock_start "$name" 1 "ballast.mode=spare $params" -device virtio-balloon-pci,id=balloon0 \
		-qmp "unix:$RUN/$name.other,server=on,wait=off" "$@"
}
# no_guest NAME QEMU-ARG...: a VM in which nothing boots.
no_guest()
{
	local name=$1
	shift
	start_qemu "$name" -accel tcg,tb-size=32 -m 64 -smp 1 -qmp "unix:$RUN/$name.other,server=on,wait=off" "$@"
	STOCK_PID[$name]=$QEMU_PID
}

# --- a guest with a driver -------------------------------------------------------------------------

vm a ''
# Its boot takes a while: those without a guest meanwhile.
no_guest b -device virtio-balloon-pci
no_guest c
balloon_tool b "$RUN/b.qmp" --wish 32 --floor 16 --pid "${STOCK_PID[b]}"
balloon_tool c "$RUN/c.qmp"
expect qmp_no_driver_marked b 30 is b driver none
expect qmp_anonymous_device_found b 5 is b device '/machine/peripheral-anon/device[0]'
expect qmp_no_driver_not_asked b 5 is b reason stale
check_eq qmp_no_driver_no_target '0 64' "$(value b target) $(value b actual)"
expect qmp_no_device c 10 is c actual -1
other_qmp c '{"execute": "device_add", "arguments": {"driver": "virtio-balloon-pci", "id": "late"}}' >/dev/null ||
	fail qmp_late_device_add "refused"
expect qmp_late_device_found c 10 is c device /machine/peripheral/late
expect qmp_late_device_polled c 10 is c period 1
expect qmp_late_device_size c 10 is c actual 64
for vm in b c; do
	end_process "${TOOL_PID[$vm]}"
	end_process "${STOCK_PID[$vm]}" KILL
done

__ready_or_dead() { console_has a GUEST-READY || ! alive "${STOCK_PID[a]}"; }
wait_for 90 __ready_or_dead
console_has a GUEST-READY || die qmp_guest "the guest is not ready"
balloon_tool a "$RUN/a.qmp" --wish 250 --floor 64 --pid "${STOCK_PID[a]}"
expect qmp_device_found a 10 is a device /machine/peripheral/balloon0
expect qmp_driver_answers a 20 is a driver answers
expect qmp_period_checked a 5 is a period 1
expect qmp_available a 5 at_least a available 64
# Whole seconds, once a second, looked at twice a second.
expect qmp_age_is_small a 10 at_most a age_ms 2500
expect qmp_wish_near_is_reached a 10 is a reason reached
check_ge qmp_near_no_statistics_of_others 250 "$(value a actual)"
end_process "${TOOL_PID[a]}"

before=$(pss_kib a)
balloon_tool a "$RUN/a.qmp" --wish 192 --floor 64
# Four MiB more or less are no difference (the controller's deadband).
expect qmp_inflated a 30 at_most a actual 196
expect qmp_inflated_reached a 10 is a reason reached
pss_fell() { [ $((before - $(pss_kib a))) -ge 45000 ]; }
expect qmp_pss_fell a 15 pss_fell
echo "# PSS: $before KiB, with the balloon $(pss_kib a) KiB; $(last a)"

# --- paused: nothing moves -------------------------------------------------------------------------

other_qmp a '{"execute": "stop"}' >/dev/null || fail qmp_stop "refused"
expect qmp_paused a 10 is a run paused
kill -USR1 "${TOOL_PID[a]}"
expect qmp_paused_frozen a 10 is a reason frozen
n=$(lines a)
was=$(value a actual)
wait_for 10 more_lines a $((n + 4))
check_eq qmp_paused_stays "frozen $was $was" "$(value a reason) $(value a actual) $(value a target)"
other_qmp a '{"execute": "cont"}' >/dev/null || fail qmp_cont "refused"
expect qmp_running_again a 10 is a run running
expect qmp_given_back a 30 at_least a actual 256
expect qmp_given_back_done a 15 is a reason idle

# --- one socket, one client ------------------------------------------------------------------------

balloon_tool second "$RUN/a.qmp"
expect qmp_busy second 20 says second 'another one may have it'
check_eq qmp_busy_first_goes_on up "$(value a link)"
end_process "${TOOL_PID[a]}"
expect qmp_busy_then_free second 20 is second link up
end_process "${TOOL_PID[second]}"
# Another process than the VM's: not ours.
balloon_tool wrong "$RUN/a.qmp" --pid 1
expect qmp_peer_is_checked wrong 10 says wrong "not of the VM's process 1"
end_process "${TOOL_PID[wrong]}"
# Visits leave the socket to others in between.
balloon_tool visits "$RUN/a.qmp" --visits
expect qmp_visits visits 20 at_least visits rounds 3
served=0
for ((i = 0; i < 20; i++)); do
	timeout 5 "$BUILD/tests/tool_qmp" "$RUN/a.qmp" '{"execute": "query-status"}' >/dev/null && served=$((served + 1))
done
check_eq qmp_visits_let_others 20 $served
expect qmp_visits_go_on visits 20 at_least visits rounds $(($(value visits rounds) + 3))
check_eq qmp_visits_linked 'up answers' "$(value visits link) $(value visits driver)"
end_process "${TOOL_PID[visits]}"

# --- migration: what was taken stays taken, and no more is --------------------------------------------

balloon_tool a "$RUN/a.qmp" --wish 192 --floor 64
expect qmp_inflated_before_migration a 30 at_most a actual 196
settled() { [ "$(value a actual)" = "$(value a target)" ]; }
wait_for 10 settled
other_qmp a '{"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 1048576}}' >/dev/null &&
	other_qmp a '{"execute": "migrate", "arguments": {"uri": "exec:cat >/dev/null"}}' >/dev/null ||
	fail qmp_migrate "refused"
expect qmp_migrating a 10 is a run migrating
kill -USR1 "${TOOL_PID[a]}"
n=$(lines a)
was=$(value a actual)
wait_for 10 more_lines a $((n + 4))
check_eq qmp_migrating_frozen "frozen $was $was" "$(value a reason) $(value a actual) $(value a target)"
other_qmp a '{"execute": "migrate_cancel"}' >/dev/null || fail qmp_migrate_cancel "refused"
expect qmp_migration_over a 10 is a run running
expect qmp_migration_over_given_back a 30 at_least a actual 256
end_process "${TOOL_PID[a]}"

# --- QEMU dies, and comes back ---------------------------------------------------------------------

balloon_tool a "$RUN/a.qmp" --wish 192 --floor 64
expect qmp_inflated_again a 30 at_most a actual 196
end_process "${STOCK_PID[a]}" KILL
expect qmp_killed a 10 is a link waiting
expect qmp_killed_not_linked a 10 is a reason not-linked
expect qmp_killed_state_unknown a 10 is a run unknown
no_guest a -device virtio-balloon-pci,id=balloon0
expect qmp_reconnected a 15 is a link up
expect qmp_reconnected_device a 10 is a device /machine/peripheral/balloon0
end_process "${TOOL_PID[a]}"
end_process "${STOCK_PID[a]}" KILL

# --- who is no QMP server --------------------------------------------------------------------------

ticks() { awk '{ print $14 + $15 }' "/proc/${TOOL_PID[$1]}/stat"; }
rss_kib() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/${TOOL_PID[$1]}/status"; }
hz=$(getconf CLK_TCK)
clients_reach() { [ "$(grep -c '^CLIENT' "$RUN/$1.server")" -ge "$2" ]; }

# All at once, each with a server of its own: MODE, how often it is tried at least, what the tool says of it ("": nothing).
hostile=(
	"garbage|3|JSON objects"
	"endless|3|256 KiB"
	"blank|2|without end"
	"deep|3|deeper than 32"
	"flood|2|without end"
	"wrong-id|3|was not sent"
	"no-id|3|without the id"
	"hangup|3|hung up"
	"silent|1|does not greet"
	"hang|1|does not answer within 20 s"
	"deaf|1|"
	"lies|1|"
)
for row in "${hostile[@]}"; do
	mode=${row%%|*}
	start "$RUN/$mode.server" "$SERVER" "$RUN/$mode.sock" "$mode"
	wait_for 10 test -S "$RUN/$mode.sock"
	balloon_tool "$mode" "$RUN/$mode.sock" --wish 32 --floor 16
done
for row in "${hostile[@]}"; do
	IFS='|' read -r mode clients what <<<"$row"
	if [ -n "$what" ]; then
		expect "qmp_hostile_${mode}_says_why" "$mode" 30 says "$mode" "$what"
	fi
	expect "qmp_hostile_${mode}_tried_again" "$mode" 15 clients_reach "$mode" "$clients"
	n=$(lines "$mode")
	# Its clock goes on: it was not blocked.
	expect "qmp_hostile_${mode}_goes_on" "$mode" 5 more_lines "$mode" $((n + 1))
	check "qmp_hostile_${mode}_lives" alive "${TOOL_PID[$mode]}"
	check_eq "qmp_hostile_${mode}_asks_for_nothing" 0 "$(value "$mode" target)"
	check_ge "qmp_hostile_${mode}_memory" 1 $(($(rss_kib "$mode") <= 16384))
	echo "# $mode: $(grep -c '^CLIENT' "$RUN/$mode.server") connections, $(($(ticks "$mode") * 1000 / hz)) ms of CPU," \
		"$(rss_kib "$mode") KiB: $(error_text "$mode")"
done
