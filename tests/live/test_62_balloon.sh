#!/usr/bin/env bash
# timeout: 400
# Balloons through the daemon: it finds the QMP socket of a stock QEMU by itself and leaves it to others in between,
# shows what the guest says, takes memory by `ballastctl balloon` down to the floor and no further, gives it back to a
# guest under pressure, when it stops, and when it is told to; a kill -9 of it loses no wish.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

stock_init balloon
other_actual() { qmp a '{"execute": "query-balloon"}' | sed -n 's/.*"actual": *\([0-9]*\).*/\1/p'; }
other_at_least() { [ "$(($(other_actual) >> 20))" -ge "$1" ]; }

port=$(free_port)
settings=("${STOCK_DAEMON[@]}" metrics.port="$port" 'vm "a".min=64MiB' 'vm "a".share=off' 'vm "fake".qmp='"$RUN/fake.sock" 'vm "off".qmp=off')
start_daemon "${settings[@]}" || die balloon_daemon "ballastd does not start"
start "$RUN/fake.server" "$BUILD/tests/tool_qmpd" "$RUN/fake.sock" flood
stock_start a 1 ballast.mode=grow -device virtio-balloon-pci,id=balloon0
start_qemu fake -accel tcg,tb-size=32 -m 64
start_qemu off -accel tcg,tb-size=32 -m 64
start "$RUN/none.log" "$BUILD/ballast-run" "$QEMU" -name none -nodefaults -no-user-config -display none -accel tcg,tb-size=32 -m 64
wait_for 30 vms_connected a fake off none || die balloon_vms "not all agents are connected"

# --- who has no balloon, and why -------------------------------------------------------------------

# wants NAME VM TEXT
wants()
{
	local text
	text=$(ctl balloon "$2" 128M 2>&1) && fail "$1" "was accepted: $text" && return
	if [[ $text == *"$3"* ]]; then pass "$1"; else fail "$1" "'$text' does not say '$3'"; fi
}
expect balloon_none_state 10 is none balloon_state none
wants balloon_none_says_why none 'no QMP monitor is on its command line'
expect balloon_off_state 10 is off balloon_state none
wants balloon_off_says_why off 'qmp = off'
wants balloon_nobody nobody 'no VM has the name'
# Its configured socket is another process's: never used.
expect balloon_fake_state 10 is fake balloon_state failed
check_ge balloon_fake_says_why 1 "$(ctl status --json | grep -c 'is the socket of process')"
check_eq balloon_bad_size 2 "$(ctl balloon a 3GB >/dev/null 2>&1; echo $?)"

# --- VMMs that are no QMP servers, and say they are ---------------------------------------------------

evil=(garbage endless deep flood silent hang lies)
declare -A EVIL_PID=()
rss_kib() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$DAEMON_PID/status"; }
rss=$(rss_kib)
for mode in "${evil[@]}"; do
	start "$RUN/evil-$mode.log" "$BUILD/ballast-run" "$BUILD/tests/tool_qmpd" "$RUN/$mode.sock" "$mode" \
		-name "evil-$mode" -qmp "unix:$RUN/$mode.sock,server=on"
	EVIL_PID[$mode]=$PID
done
wait_for 20 vms_connected "${evil[@]/#/evil-}" || fail balloon_evil_connected "not all agents are connected"
for mode in garbage endless deep flood; do
	expect "balloon_evil_${mode}_failed" 20 is "evil-$mode" balloon_state failed
done
expect balloon_evil_silent_busy 20 is evil-silent balloon_state busy
expect balloon_evil_lies_has_none 20 is evil-lies balloon_state no-device
check_eq balloon_evil_hang_tells_nothing '' "$(vm_value evil-hang balloon_actual_bytes)"
begin=${EPOCHREALTIME/[.,]/}
take_status || fail balloon_evil_status "no answer"
check_ge balloon_evil_responsive_2s 1 $((${EPOCHREALTIME/[.,]/} - begin < 2000000))
check_ge balloon_evil_memory 1 $(($(rss_kib) <= rss + 32768))
echo "# daemon: $rss KiB before, $(rss_kib) KiB with ${#evil[@]} hostile VMMs"
for mode in "${evil[@]}"; do
	end_process "${EVIL_PID[$mode]}" KILL
done

# --- what the guest says ---------------------------------------------------------------------------

__ready_or_dead() { console_has a GUEST-READY || ! alive "${STOCK_PID[a]}"; }
wait_for 90 __ready_or_dead
console_has a GUEST-READY || die balloon_guest "the guest is not ready"
expect balloon_found 20 is a balloon_state up
expect balloon_driver 40 is a balloon_driver answers
expect balloon_available 20 mib_at_least a guest_available_bytes 64
check_eq balloon_size '256 256 idle running' \
	"$(mib a balloon_actual_bytes) $(mib a balloon_ram_bytes) $(vm_value a balloon_reason) $(vm_value a guest_run)"
check_eq balloon_no_target '' "$(vm_value a balloon_target_bytes)"
# A second for its stamp, two of the guest's period, ten between visits.
check_ge balloon_age 1 $(($(vm_value a guest_stats_age_us) < 16000000))
# The metrics are of the last second.
scraped() { scrape "$port" >"$RUN/metrics" && grep -q '^ballast_vm_guest_available_bytes{vm="a"}' "$RUN/metrics"; }
wait_for 5 scraped
for family in guest_available_bytes guest_free_bytes guest_total_bytes guest_stats_age_seconds balloon_actual_bytes; do
	check_eq "balloon_metric_$family" 1 "$(grep -c "^ballast_vm_$family{vm=\"a\"}" "$RUN/metrics")"
done
check_eq balloon_metric_absent 0 "$(grep -c '^ballast_vm_guest_[a-z]*_bytes.*vm="none"\|^ballast_vm_balloon_target\| -1$' "$RUN/metrics")"
check_eq balloon_metric_up 'a 1' "$(sed -n 's/^ballast_vm_balloon_up{vm="\(a\)"} /\1 /p' "$RUN/metrics")"

# --- taking and giving back ------------------------------------------------------------------------

before=$(pss_kib a)
ctl balloon a 192M | sed 's/^/# /'
expect balloon_taken 40 mib_at_most a balloon_actual_bytes 196
expect balloon_reached 20 is a balloon_reason reached

# What the policy would do: it names the host's state, the VM, and what the guest said.
plan=$(ctl plan)
echo "$plan" | sed 's/^/# /'
check balloon_plan grep -q '^host: [a-z]*, .* available.*could be started$' <<<"$plan"
check balloon_plan_is_dry grep -q 'nothing acts on it' <<<"$plan"
check balloon_explain grep -q '^a: has .*, at least 64.0 MiB stays its, entitled to .*its guest could spare ' <<<"$(ctl explain a)"
check_eq balloon_explain_nobody 1 "$(ctl explain nobody >/dev/null 2>&1; echo $?)"
pss_fell() { [ $((before - $(pss_kib a))) -ge 40000 ]; }
expect balloon_pss_fell 15 pss_fell
echo "# PSS $before KiB, with the balloon $(pss_kib a) KiB"
check_ge balloon_in_status 1 "$(ctl status | grep -c '^balloon: a shall do with 192.0 MiB, has 19[0-9.]* MiB of 256.0 MiB: reached')"
served=0
for ((i = 0; i < 20; i++)); do other_at_least 100 && served=$((served + 1)); done
check_eq balloon_socket_is_left_to_others 20 $served
# With more taken the guest begins to need 75 MiB: all that was taken comes back, whatever is wished.
ctl balloon a 140M | sed 's/^/# /'
expect balloon_guest_grows 40 console_has a GUEST-GROWS
expect balloon_pressure_released 60 mib_at_least a balloon_actual_bytes 256
expect balloon_guest_grew 60 console_has a GUEST-GREW
take_status
check_eq balloon_releases 1 "$(vm_value a balloon_releases_total)"
expect balloon_holdoff 20 is a balloon_reason holdoff
check_eq balloon_wish_is_kept $((140 << 20)) "$(vm_value a balloon_wish_bytes)"
check_ge balloon_pressure_is_logged 1 "$(grep -c 'VM a: balloon: the guest is short of memory' "$DAEMON_LOG")"
check_ge balloon_guest_lives 1 $((! $(grep -ac 'Out of memory\|Kernel panic' "$RUN/a.console")))
echo "# $(sed -n 's/.*VM a: balloon: the guest is/the guest is/p' "$DAEMON_LOG" | tail -n 1)"
ctl balloon a off | sed 's/^/# /'
expect balloon_off_idle 20 is a balloon_reason idle
check_eq balloon_off_forgotten '' "$(vm_value a balloon_wish_bytes)"

# --- the daemon goes -------------------------------------------------------------------------------

# A new daemon knows nothing of the hold-off.
stop_daemon || fail balloon_stop "took too long"
start_daemon || die balloon_restart "ballastd does not start again"
wait_for 30 vms_connected a || die balloon_restart_connected "the agent is not back"
expect balloon_again_driver 40 is a balloon_driver answers
ctl balloon a 1M | sed 's/^/# /'
check_eq balloon_floor 64 "$(take_status && mib a balloon_wish_bytes)"
ctl balloon a 208M | sed 's/^/# /'
expect balloon_taken_again 40 mib_at_most a balloon_actual_bytes 212
kill_daemon
check_ge balloon_killed_stays 1 $(($(other_actual) >> 20 <= 212))
start_daemon || die balloon_killed_restart "ballastd does not start again"
wait_for 30 vms_connected a || die balloon_killed_connected "the agent is not back"
expect balloon_wish_stands 20 is a balloon_wish_bytes $((208 << 20))
expect balloon_wish_reached 40 is a balloon_reason reached
# An orderly stop leaves no guest with less than it had, not even one that is paused; the wish stands.
qmp a '{"execute": "stop"}' >/dev/null
expect balloon_paused 20 is a guest_run paused
stop_daemon || fail balloon_second_stop "took too long"
check_eq balloon_stop_without_a_warning 0 "$(grep -c 'could not be given' "$DAEMON_LOG")"
qmp a '{"execute": "cont"}' >/dev/null
expect balloon_stop_gives_back 30 other_at_least 256
start_daemon || die balloon_third_start "ballastd does not start again"
wait_for 30 vms_connected a || die balloon_third_connected "the agent is not back"
expect balloon_taken_once_more 60 mib_at_most a balloon_actual_bytes 212
ctl balloon a off >/dev/null
expect balloon_given_back 40 mib_at_least a balloon_actual_bytes 256
check balloon_guest_runs alive "${STOCK_PID[a]}"
check balloon_daemon_runs alive "$DAEMON_PID"
