#!/usr/bin/env bash
# timeout: 150
# The configuration with the real daemon: what is wrong is one line with file and line number and exit status 1; a bad
# reload changes nothing, a good one takes effect on running VMs; two daemons do not get in each other's way; an orderly
# stop leaves VMs running, and the next daemon finds their sharing.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

BALLASTD=$BUILD/ballastd

# --- files that are wrong --------------------------------------------------------------------------

mkdir "$RUN/bad"
bad=$RUN/bad/ballast.conf

# one_line NAME FILE LINE TEXT FILE-WITH-OUTPUT STATUS
one_line()
{
	check_eq "config_$1_status" 1 "$6"
	check_eq "config_$1_one_line" 1 "$(grep -c . "$5")"
	if grep -qF -e "$4" "$5" && [[ $(cat "$5") == *"$2:$3: "* ]]; then
		pass "config_$1_says_where_and_why"
	else
		fail "config_$1_says_where_and_why" "wanted $2:$3: ... $4, got '$(head -c 300 "$5")'"
	fi
}

# refused NAME LINE TEXT: the file on stdin, by --check-config and by a start.
refused()
{
	cat >"$bad"
	timeout 20 "$BALLASTD" --config "$bad" --check-config >"$RUN/check.out" 2>&1
	one_line "$1_check" "$bad" "$2" "$3" "$RUN/check.out" $?
	timeout 20 "$BALLASTD" --config "$bad" >"$RUN/check.out" 2>&1
	one_line "$1_start" "$bad" "$2" "$3" "$RUN/check.out" $?
}

refused unknown_key 3 'unknown key "cpu_pct" in [scan] (its keys:' <<'END'
# a comment
[scan]
cpu_pct = 5
END
refused misspelt_key 2 'did you mean "cpu_percent"' <<'END'
[scan]
cpu_percnet = 5
END
refused wrong_section 2 'it belongs in [scan]' <<'END'
[daemon]
cpu_percent = 5
END
refused unknown_section 2 'unknown section [scann] (did you mean [scan]?)' <<'END'

[scann]
END
refused no_section 1 'before the first section' <<'END'
cpu_percent = 5
END
refused bad_unit 2 'is not' <<'END'
[store]
max_size = 12 parsecs
END
refused no_unit 2 'is not' <<'END'
[scan]
interval = 10 bananas
END
refused range 2 'is out of range (accepted: ' <<'END'
[scan]
cpu_percent = 0
END
refused negative 2 'cpu_percent' <<'END'
[scan]
cpu_percent = -5
END
refused overflow 2 'max_size' <<'END'
[store]
max_size = 99999999999999999999GiB
END
refused not_a_port 2 'port' <<'END'
[metrics]
port = 65536
END
refused duplicate_key 4 'is given twice in this section (first on line 2' <<'END'
[scan]
interval = 1s
threads = 1
interval = 2s
END
refused duplicate_section 3 'section [scan] is given twice (first on line 1' <<'END'
[scan]
[store]
[scan]
END
refused duplicate_vm 3 'is given twice (first on line 1' <<'END'
[vm "web*"]
share = off
[vm "web*"]
share = on
END
refused open_section 1 'section header does not end' <<'END'
[scan
END
refused bad_share 2 'share = "maybe" is not' <<'END'
[vm "a"]
share = maybe
END
refused vm_without_name 1 'names no VM' <<'END'
[vm]
share = off
END
refused nul 2 'NUL byte' < <(printf '[scan]\nthreads = \0001\n')
refused long_line 2 'too long' < <(printf '[scan]\nthreads = %5000d\n' 1)

timeout 20 "$BALLASTD" --config "$RUN/absent.conf" --check-config >"$RUN/check.out" 2>&1
check_eq config_absent_status 1 $?
check_eq config_absent_one_line 1 "$(grep -c "$RUN/absent.conf" "$RUN/check.out")"
timeout 20 "$BALLASTD" --config /dev/zero --check-config >"$RUN/check.out" 2>&1
check_eq config_endless_status 1 $?

# The error of a drop-in names the drop-in.
mkdir "$RUN/bad/conf.d"
printf '[scan]\n' >"$bad"
printf '\n\n[scan]\nthreads = many\n' >"$RUN/bad/conf.d/50-threads.conf"
timeout 20 "$BALLASTD" --config "$bad" --check-config >"$RUN/check.out" 2>&1
one_line drop_in "$RUN/bad/conf.d/50-threads.conf" 4 'threads = "many" is not' "$RUN/check.out" $?

# The control: what is right is said to be so, and nothing is started or made.
write_config
timeout 20 "$BALLASTD" --config "$CONF" --check-config >"$RUN/check.out" 2>&1
check_eq config_good_status 0 $?
check_eq config_good_line "$CONF: ok" "$(cat "$RUN/check.out")"
check config_check_starts_nothing test ! -e "$RUN/lock"

# --- conf.d ----------------------------------------------------------------------------------------

# By name order, key by key: 10 after 05, and what is not a *.conf not at all.
conf_d=$RUN/conf.d
mkdir "$conf_d"
printf '[scan]\ncpu_percent = 7\ninterval = 20ms\n' >"$conf_d/10-a.conf"
printf '[scan]\ncpu_percent = 3\n' >"$conf_d/05-b.conf"
printf '[scan]\ncpu_percent = 9\n' >"$conf_d/20-c.conf.disabled"
printf 'this is not INI\n' >"$conf_d/README"
start_daemon scan.cpu_percent=2 || die config_daemon "ballastd does not start"
take_status
check_eq config_conf_d_order 70 "$(host_value scan_cpu_permille)"

# --- a second daemon -------------------------------------------------------------------------------

timeout 20 "$BALLASTD" --config "$CONF" >"$RUN/second.out" 2>&1
check_eq config_second_status 1 $?
check_eq config_second_one_line 1 "$(grep -c . "$RUN/second.out")"
check_ge config_second_says_why 1 "$(grep -c "another ballastd runs with run_dir = $RUN" "$RUN/second.out")"
check config_second_leaves_the_first take_status
check config_second_leaves_the_socket test -S "$AGENT_SOCKET"

# --- reload ----------------------------------------------------------------------------------------

flat_init config
flat_start a 1
a=$PID
flat_start b 2
b=$PID
rm "$conf_d"/*
# reload [SECTION.KEY=VALUE...]: what the daemon counts afterwards is in $reloads and $reload_errors.
counted() { take_status && [ $(($(host_value reloads_total) + $(host_value reload_errors_total))) -gt "$1" ]; }
reload()
{
	local before
	take_status
	before=$(($(host_value reloads_total) + $(host_value reload_errors_total)))
	[ $# -eq 0 ] || write_config "$@"
	kill -HUP "$DAEMON_PID"
	wait_for 10 counted "$before" || fail config_reload_counted "$*"
	reloads=$(host_value reloads_total) reload_errors=$(host_value reload_errors_total)
}
# shared_settles VM LEAST
reload scan.cpu_percent=60 scan.interval=10ms scan.idle_interval=1s
check_eq config_reload_good "1 0" "$reloads $reload_errors"
check_eq config_reload_cpu 600 "$(host_value scan_cpu_permille)"
wait_for 40 vms_reach shared_pages 8000 a b || die config_vms "only $(vms_sum shared_pages a b) shared pages"

# A bad file: one line, the old state.
printf '[scan]\ncpu_percent = 50\n\nfrequency = 7\n' >"$CONF"
log_from=$(stat -c %s "$DAEMON_LOG")
reload
check_eq config_reload_bad "1 1" "$reloads $reload_errors"
check_eq config_reload_bad_keeps_cpu 600 "$(host_value scan_cpu_permille)"
tail -c "+$((log_from + 1))" "$DAEMON_LOG" >"$RUN/reload.out"
check_eq config_reload_bad_line 1 "$(grep -c "error: $CONF:4: unknown key \"frequency\"" "$RUN/reload.out")"
check_eq config_reload_bad_says_kept 1 "$(grep -c 'configuration stays as it was' "$RUN/reload.out")"
merged=$(vms_sum merged_pages_total a b)
check config_reload_bad_goes_on wait_for 20 vms_reach merged_pages_total $((merged + 500)) a b

# No file at all is a bad one, too.
rm "$CONF"
reload
check_eq config_reload_absent "1 2" "$reloads $reload_errors"
check_eq config_reload_absent_keeps_cpu 600 "$(host_value scan_cpu_permille)"

# A VM that runs is taken out of sharing, the other is not. What is merged stays until it is written.
scanned_stands_still()
{
	local first
	take_status
	first=$(vm_value a hashed_pages_total)
	sleep 1
	take_status
	[ "$(vm_value a hashed_pages_total)" = "$first" ]
}
reload scan.cpu_percent=60 scan.interval=10ms scan.idle_interval=1s 'vm "a".share=off'
check_eq config_share_off_applied "2 2 off on" "$reloads $reload_errors $(vm_value a share) $(vm_value b share)"
check config_share_off_no_hashing wait_for 20 scanned_stands_still
merged_a=$(vm_value a merged_pages_total) merged_b=$(vms_sum merged_pages_total b)
check config_share_off_other_merges wait_for 20 vms_reach merged_pages_total $((merged_b + 300)) b
check_eq config_share_off_merges_nothing "$merged_a" "$(vm_value a merged_pages_total)"
# And back.
reload scan.cpu_percent=60 scan.interval=10ms scan.idle_interval=1s
check_eq config_share_on_applied on "$(vm_value a share)"
check config_share_on_merges wait_for 20 vms_reach merged_pages_total $((merged_a + 300)) a
# All of it off: nothing new, for nobody.
reload scan.cpu_percent=60 scan.interval=10ms scan.idle_interval=1s scan.enabled=off
check_eq config_scan_off_shows false "$(host_value scanning)"
quiet() # no merge in a second
{
	local first
	take_status
	first=$(vms_sum merged_pages_total a b)
	sleep 1
	take_status
	[ "$(vms_sum merged_pages_total a b)" = "$first" ]
}
check config_scan_off_merges_nothing wait_for 10 quiet
reload scan.cpu_percent=60 scan.interval=10ms scan.idle_interval=1s
wait_for 40 vms_reach shared_pages 8000 a b || fail config_shares_again "only $(vms_sum shared_pages a b) shared pages"
# Twenty at once are not one too many.
for ((i = 0; i < 20; i++)); do kill -HUP "$DAEMON_PID"; done
check config_many_reloads take_status
check_eq config_many_reloads_errors 2 "$(host_value reload_errors_total)"

# --- a port in use ---------------------------------------------------------------------------------

mkdir "$RUN/other" "$RUN/port"
port=$(free_port)
printf '[daemon]\nrun_dir = %s\n[metrics]\nport = %s\n' "$RUN/other" "$port" >"$RUN/other.conf"
printf '[daemon]\nrun_dir = %s\n[metrics]\nport = %s\n' "$RUN/port" "$port" >"$RUN/port.conf"
start "$RUN/other.out" "$BALLASTD" --config "$RUN/other.conf"
other=$PID
wait_for 10 grep -q 'is ready' "$RUN/other.out"
timeout 20 "$BALLASTD" --config "$RUN/port.conf" >"$RUN/port.out" 2>&1
check_eq config_port_status 1 $?
check_eq config_port_one_line 1 "$(grep -c . "$RUN/port.out")"
check_ge config_port_says_why 1 "$(grep -c "port $port: Address already in use" "$RUN/port.out")"
check config_port_leaves_nothing test ! -e "$RUN/port/control.sock"
check config_port_other_runs alive "$other"
end_process "$other" TERM

# A run folder that cannot be made.
printf '[daemon]\nrun_dir = /proc/nothing/here\n[metrics]\nenabled = off\n' >"$RUN/port.conf"
timeout 20 "$BALLASTD" --config "$RUN/port.conf" >"$RUN/port.out" 2>&1
check_eq config_run_dir_status 1 $?
check_eq config_run_dir_one_line 1 "$(grep -c 'cannot make the run folder /proc/nothing/here' "$RUN/port.out")"

# --- stop and start --------------------------------------------------------------------------------

# The guests write slowly enough for what is shared to last over the pause: theirs is a new start.
end_process "$a" TERM 20
check_eq config_a_errors 0 "$(flat_value a errors)"
end_process "$b" TERM 20
check_eq config_b_errors 0 "$(flat_value b errors)"
check_ge config_ab_accesses 10000000 "$(flat_value a accesses)"
flat_start c 3 --dwell-ms 1000
c=$PID
flat_start d 4 --dwell-ms 1000
d=$PID
wait_for 40 vms_reach shared_pages 12000 c d || fail config_stop_shares "only $(vms_sum shared_pages c d) shared pages"
take_status
before=$(vms_sum shared_pages c d)
kill -TERM "$DAEMON_PID"
begin=${EPOCHREALTIME/[.,]/}
# Not end_process, which forgets the exit status.
check config_stop_in_time wait_for 10 __gone "$DAEMON_PID"
wait "$DAEMON_PID"
check_eq config_stop_status 0 $?
echo "# stopped after $(((${EPOCHREALTIME/[.,]/} - begin) / 1000)) ms"
check config_stop_agent_socket_gone test ! -e "$AGENT_SOCKET"
check config_stop_control_socket_gone test ! -e "$CONTROL_SOCKET"
check_eq config_stop_last_line 1 "$(tail -n 1 "$DAEMON_LOG" | grep -c 'stopping; merged memory stays merged')"
accesses=$(flat_value c accesses)
sleep 2
check config_stopped_c_runs alive "$c"
check config_stopped_d_runs alive "$d"
check_ge config_stopped_c_works $((accesses + 100000)) "$(flat_value c accesses)"
check_eq config_stopped_errors "0 0" "$(flat_value c errors) $(flat_value d errors)"
flat_outside c "$c"
check_ge config_stopped_c_still_shares $((before / 4)) "$(outside_value c shared)"
start_daemon || die config_restart "ballastd does not start again"
wait_for 10 vms_connected c d || fail config_restart_connected "$(flat_complaints c; flat_complaints d)"
check config_restart_finds wait_for 10 vms_reach shared_pages $((before * 3 / 4)) c d
found=$(vms_sum shared_pages c d) made=$(vms_sum merged_pages_total c d)
echo "# shared: $before before the stop; $found after the start, $made of them made anew"
check_ge config_restart_not_made_anew $((before * 3 / 4)) $((found - made))
check_outside config_restart_c_outside c "$c"

end_process "$c" TERM 20
end_process "$d" TERM 20
for vm in c d; do
	flat_show $vm
	check_eq config_${vm}_ended_in_order 1 "$(flat_value $vm final)"
	check_eq config_${vm}_errors 0 "$(flat_value $vm errors)"
	check_ge config_${vm}_accesses 10000000 "$(flat_value $vm accesses)"
done
check config_store_empty wait_for 15 domain_is store_pages 0
check config_stops stop_daemon
