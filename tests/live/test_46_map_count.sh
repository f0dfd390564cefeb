#!/usr/bin/env bash
# timeout: 120
# vm.max_map_count, the real one: raised while the daemon runs, put back by its stop, also by the stop of a daemon that
# follows a killed one; never under a VMM that needs more, and never over what somebody else has set meanwhile.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh" # for the status

LIMIT=/proc/sys/vm/max_map_count
OLD=65530
NEW=1048576
LEFT_TO_VMM=8192 # daemon/mapcount.c
TOOL=$BUILD/tests/tool_vmm
[ -x "$TOOL" ] || die map_count_tool "$TOOL is not built"

was=$(cat $LIMIT)
limit() { cat $LIMIT; }
set_limit() { echo "$1" >$LIMIT; }
set_limit "$was" 2>/dev/null || skip_all map_count "$LIMIT cannot be written"
cleanup set_limit "$was"
set_limit $OLD

record() { cat "$RUN/max_map_count" 2>/dev/null; }
host_is() { take_status && [ "$(host_value max_map_count)" = "$1" ]; }
shows() { take_status && echo "$(host_value max_map_count) $(host_value max_map_count_original)"; }
log_lines() { tail -c "+$((log_from + 1))" "$DAEMON_LOG" | grep -c -e "$1"; }
mark_log() { log_from=$(stat -c %s "$DAEMON_LOG" 2>/dev/null || echo 0); }
said() { grep -q -e "$1" "$RUN/maps.out"; }

# --- start and stop ----------------------------------------------------------------------------------

start_daemon scan.max_map_count=$NEW || die map_count_daemon "ballastd does not start"
check_eq map_count_raised $NEW "$(limit)"
check_eq map_count_record "original $OLD raised $NEW" "$(record)"
check_eq map_count_shown "$NEW $OLD" "$(shows)"
# One that finds the folder taken must not put back what is the other's.
timeout 20 "$BUILD/ballastd" --config "$CONF" >"$RUN/second.out" 2>&1
check_eq map_count_second_status 1 $?
check_eq map_count_second_leaves_it "$NEW original $OLD raised $NEW" "$(limit) $(record)"
check map_count_stops stop_daemon
check_eq map_count_put_back $OLD "$(limit)"
check_eq map_count_record_gone "" "$(record)"

# That is the default, but for the test suite.
grep -v max_map_count "$CONF" >"$CONF.new" && mv "$CONF.new" "$CONF"
start_daemon || die map_count_daemon_default "ballastd does not start"
check_eq map_count_default $NEW "$(limit)"
stop_daemon
check_eq map_count_default_put_back $OLD "$(limit)"

# --- killed ------------------------------------------------------------------------------------------

start_daemon scan.max_map_count=$NEW || die map_count_daemon_2 "ballastd does not start"
kill_daemon
check_eq map_count_killed_raised $NEW "$(limit)"
check_eq map_count_killed_record "original $OLD raised $NEW" "$(record)"
start_daemon || die map_count_restart "ballastd does not start again"
check_eq map_count_restart_knows "$NEW $OLD" "$(shows)"
# Twice in a row, and the last one does not even want it.
kill_daemon
start_daemon scan.max_map_count=off || die map_count_restart_2 "ballastd does not start again"
check_eq map_count_restart_knows_still "$NEW $OLD" "$(shows)"
stop_daemon
check_eq map_count_restart_put_back $OLD "$(limit)"
check_eq map_count_restart_record_gone "" "$(record)"

# --- off, and reload ---------------------------------------------------------------------------------

start_daemon scan.max_map_count=off || die map_count_daemon_off "ballastd does not start"
check_eq map_count_off "$OLD $OLD" "$(shows)"
write_config scan.max_map_count=100000
kill -HUP "$DAEMON_PID"
check map_count_reload_raises wait_for 5 host_is 100000
check_eq map_count_reload_record "original $OLD raised 100000" "$(record)"
stop_daemon
check_eq map_count_reload_put_back $OLD "$(limit)"

# --- somebody else -----------------------------------------------------------------------------------

mark_log
start_daemon scan.max_map_count=$NEW || die map_count_daemon_3 "ballastd does not start"
set_limit 200000
check map_count_foreign_seen wait_for 5 host_is 200000
check_eq map_count_foreign_shown "200000 200000" "$(shows)"
# A reload that is about something else does not overrule it.
write_config scan.max_map_count=$NEW scan.cpu_percent=6
kill -HUP "$DAEMON_PID"
reloaded() { take_status && [ "$(host_value scan_cpu_permille)" = 60 ]; }
check map_count_foreign_reload wait_for 5 reloaded
check_eq map_count_foreign_kept 200000 "$(limit)"
stop_daemon
check_eq map_count_foreign_left_alone 200000 "$(limit)"
check_eq map_count_foreign_said 1 "$(log_lines 'left alone')"
check_eq map_count_foreign_record_gone "" "$(record)"
# What the host has more than is wanted stays.
start_daemon scan.max_map_count=100000 || die map_count_daemon_4 "ballastd does not start"
check_eq map_count_more_stays "200000 200000" "$(shows)"
stop_daemon
check_eq map_count_more_stays_after 200000 "$(limit)"
set_limit $OLD

# --- not allowed -------------------------------------------------------------------------------------

mark_log
# shellcheck disable=SC2016 # for the inner shell
DAEMON_WRAP=(unshare -m sh -c 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"' sh)
start_daemon scan.max_map_count=$NEW || die map_count_daemon_5 "ballastd does not start with /proc/sys read-only"
DAEMON_WRAP=()
check_eq map_count_read_only "$OLD $OLD" "$(shows)"
check_eq map_count_read_only_limit $OLD "$(limit)"
check_eq map_count_read_only_said 1 "$(log_lines 'vm.max_map_count')"
check_eq map_count_read_only_no_record "" "$(record)"
check map_count_read_only_stops stop_daemon

# --- a VMM that needs it -----------------------------------------------------------------------------

start_daemon scan.max_map_count=$NEW || die map_count_daemon_6 "ballastd does not start"
start "$RUN/maps.out" "$TOOL" maps 64000
tool=$PID
wait_for 20 said mapped || die map_count_tool_maps "$(cat "$RUN/maps.out")"
counted() { take_status && [ "$(vm_value maps map_count)" -ge "$1" ]; }
check map_count_counted wait_for 60 counted 64000
check_eq map_count_limit_of_vm $((NEW - LEFT_TO_VMM)) "$(vm_value maps map_limit)"
set_limit 300000
follows() { take_status && [ "$(vm_value maps map_limit)" = $((300000 - LEFT_TO_VMM)) ]; }
check map_count_limit_follows wait_for 5 follows
set_limit $NEW
mark_log
stop_daemon
check_eq map_count_in_use_stays $NEW "$(limit)"
check_eq map_count_in_use_said 1 "$(log_lines "stays $NEW: a VM has 64[0-9]* mappings")"
check_eq map_count_in_use_record "original $OLD raised $NEW" "$(record)"
sleep 0.5
check map_count_in_use_maps_on alive "$tool"
# A new daemon knows of it by the state file only.
start_daemon || die map_count_daemon_7 "ballastd does not start"
stop_daemon
check_eq map_count_unconnected_stays $NEW "$(limit)"
# It needs no more than others now.
kill -USR1 "$tool"
check map_count_tool_unmaps wait_for 10 said unmapped
start_daemon || die map_count_daemon_8 "ballastd does not start"
check_eq map_count_later_knows "$NEW $OLD" "$(shows)"
stop_daemon
check_eq map_count_later_put_back $OLD "$(limit)"
check map_count_tool_runs alive "$tool"
check_eq map_count_tool_complaints 0 "$(grep -c failed "$RUN/maps.out")"
