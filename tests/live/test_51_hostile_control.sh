#!/usr/bin/env bash
# timeout: 150
# The control socket is root's alone, and no client of it, root's or not, gets the daemon to stop answering the others,
# to grow, or to let go of its VMs.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

TOOL=$BUILD/tests/tool_control
NOBODY=65534
GROWTH_KIB=32768
[ -x "$TOOL" ] || die control "$TOOL is not built"

fds() { ls "/proc/$DAEMON_PID/fd" 2>/dev/null | wc -l; }
rss_kib() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$DAEMON_PID/status"; }
fds_at_most() { [ "$(fds)" -le "$1" ]; }

# say NAME: sends stdin; the reply is in $reply, the tool's exit status in $rc.
say()
{
	reply=$(timeout 20 "$TOOL" "$CONTROL_SOCKET" say 2>"$RUN/say.err")
	rc=$?
}
# refuses NAME WANTED: stdin is answered by one line of JSON that says WANTED, and the connection is closed.
refuses()
{
	say
	check_eq "control_$1_closed" 0 $rc
	check_eq "control_$1_one_line" 1 "$(grep -c . <<<"$reply")"
	if [[ $reply == '{"ok":false,"error":"'*$2*'"}' ]]; then
		pass "control_$1_says_why"
	else
		fail "control_$1_says_why" "wanted $2, got '${reply:0:200}'"
	fi
}
settled() # NAME
{
	local begin=${EPOCHREALTIME/[.,]/} ms
	take_status || fail "control_$1_status" "the daemon does not answer"
	ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
	check_ge "control_$1_responsive" 1 $((ms < 2000))
	wait_for 10 fds_at_most "$fds_at_start" || fail "control_$1_descriptors" "$fds_at_start before, $(fds) now"
	check_ge "control_$1_memory" 1 $(($(rss_kib) <= rss_at_start + GROWTH_KIB))
	check_eq "control_$1_vm" "true 0" "$(vm_value a connected) $(flat_value a errors)"
	echo "# $1: $ms ms, fds $fds_at_start -> $(fds), RSS $rss_at_start -> $(rss_kib) KiB"
}

flat_init control
# A folder that others may pass through, so that the socket's own mode is what is tested.
chmod 711 "$RUN"
start_daemon scan.cpu_percent=50 scan.interval=10ms scan.idle_interval=1s || die control_daemon "ballastd does not start"
flat_start a 1
a=$PID
wait_for 40 vms_reach shared_pages 2000 a || die control_vm "only $(vms_sum shared_pages a) shared pages"
# Its figures come once a second.
speaks() { [ -n "$(flat_value a errors)" ]; }
wait_for 10 speaks
fds_at_start=$(($(fds) + 2))
rss_at_start=$(rss_kib)
status_request='{"command": "status"}'

# One of each is held from here on: the time limit is 30 s.
start "$RUN/drip.out" "$TOOL" "$CONTROL_SOCKET" drip
drip=$PID
begun=$SECONDS

# --- who may ---------------------------------------------------------------------------------------

check_eq control_mode 600 "$(stat -c %a "$CONTROL_SOCKET")"
check_eq control_root_may '{"ok":true' "$(echo "$status_request" | "$TOOL" "$CONTROL_SOCKET" say | cut -c1-10)"
if [ "$(id -u)" != 0 ]; then
	skip control_others "only root can become another user"
else
	reply=$(echo "$status_request" | "$TOOL" "$CONTROL_SOCKET" say $NOBODY 2>&1)
	check_ge control_others_cannot_connect 1 "$(grep -c 'Permission denied' <<<"$reply")"
	# Somebody opens the file to all: the daemon still looks who it is.
	chmod 666 "$CONTROL_SOCKET"
	for command in status pause unmerge; do
		reply=$(echo "{\"command\": \"$command\", \"vm\": \"a\"}" | "$TOOL" "$CONTROL_SOCKET" say $NOBODY 2>&1)
		check_eq "control_others_$command" '{"ok":false,"error":"only root may control ballastd"}' "$reply"
	done
	chmod 600 "$CONTROL_SOCKET"
	take_status
	check_eq control_others_did_nothing "true false" "$(host_value scanning) $(vm_value a unmerged)"
	settled others
fi

# --- what is no request ----------------------------------------------------------------------------

refuses garbage 'is not JSON' < <(head -c 2000 /dev/urandom | tr -d '\n\0'; echo)
refuses nul 'NUL byte' < <(printf '{"command": "status\0"}\n')
refuses empty_line 'is not JSON' < <(echo)
refuses number 'is not JSON' < <(echo 17)
refuses array 'is not an object with' < <(echo '["status"]')
refuses cut_json 'is not JSON' < <(echo '{"command": "sta')
refuses no_line_end 'does not end with a line end' < <(printf '%s' "$status_request")
refuses oversize 'too long' < <(head -c 70000 /dev/zero | tr '\0' ' ')
refuses endless 'too long' < <(head -c 20000000 /dev/zero | tr '\0' 'x')
refuses deep 'is not JSON' < <(head -c 60000 /dev/zero | tr '\0' '['; echo)
refuses bad_utf8 'is not JSON' < <(printf '{"command": "\xff\xfe"}\n')
refuses duplicate 'is not JSON' < <(echo '{"command": "status", "command": "pause"}')

# Wrong, but requests: the connection stays for the next one.
say < <(
	echo '{"command": "destroy"}'
	echo '{"command": "unmerge"}'
	echo '{"command": "unmerge", "vm": "nobody"}'
	echo '{"command": "unmerge", "vm": 4294967297}'
	echo '{"command": "share", "vm": ["a"]}'
	printf '{"command": "unmerge", "vm": "%s"}\n' "$(head -c 50000 /dev/zero | tr '\0' 'v')"
	echo "$status_request"
)
check_eq control_wrong_closed 0 $rc
check_eq control_wrong_replies 7 "$(grep -c . <<<"$reply")"
check_eq control_wrong_errors 6 "$(grep -c '^{"ok":false,"error":"' <<<"$reply")"
check_eq control_wrong_then_right 1 "$(tail -n 1 <<<"$reply" | grep -c '^{"ok":true')"
check_ge control_wrong_lines_are_short 1 $(($(head -n 6 <<<"$reply" | wc -c) < 2000))
settled requests

# --- how it is said --------------------------------------------------------------------------------

# Many requests at once are all answered, in order.
say < <(for ((i = 0; i < 300; i++)); do echo "$status_request"; done)
check_eq control_batch_replies 300 "$(grep -c '^{"ok":true' <<<"$reply")"
settled batch

# Clients that send and never read.
timeout 20 "$TOOL" "$CONTROL_SOCKET" deaf 8 >"$RUN/deaf.out" 2>&1 &
deaf=$!
sleep 1
begin=${EPOCHREALTIME/[.,]/}
check control_deaf_responsive take_status
check_ge control_deaf_responsive_2s 1 $((${EPOCHREALTIME/[.,]/} - begin < 2000000))
wait "$deaf"
check_eq control_deaf_ended 0 $?
sed 's/^/# deaf: /' "$RUN/deaf.out"
check_ge control_deaf_sent 100 "$(sed -n 's/^sent //p' "$RUN/deaf.out")"
settled deaf

# Who closes before the reply comes; who comes and goes.
for ((i = 0; i < 50; i++)); do
	echo "$status_request" | "$TOOL" "$CONTROL_SOCKET" half
done
timeout 60 "$TOOL" "$CONTROL_SOCKET" churn 3000 >"$RUN/churn.out" 2>&1
check_eq control_churn "churned 3000" "$(tail -n 1 "$RUN/churn.out")"
settled churn

# --- how many --------------------------------------------------------------------------------------

# More than there are places: who finds none is told so, and the VM does not mind.
merged=$(vms_sum merged_pages_total a)
start "$RUN/hold.out" "$TOOL" "$CONTROL_SOCKET" hold 200
hold=$PID
wait_for 10 grep -q holding "$RUN/hold.out"
full() { ! ctl status >/dev/null 2>"$RUN/full.err"; }
check control_full wait_for 5 full
check_ge control_full_says_so 1 "$(grep -c 'too many clients' "$RUN/full.err")"
check_ge control_full_bounded 1 $(($(fds) < fds_at_start + 40))
end_process "$hold" TERM
check control_full_over wait_for 5 take_status
check control_full_merges_on wait_for 20 vms_reach merged_pages_total $((merged + 200)) a
settled full

# A client that drips bytes is no better than a silent one.
check control_drip_is_closed wait_for $((45 - (SECONDS - begun))) grep -q closed "$RUN/drip.out"
sed 's/^/# drip: /' "$RUN/drip.out"
check_ge control_drip_was_there 20 "$(sed -n 's/^closed after \([0-9]*\) s/\1/p' "$RUN/drip.out")"
settled drip

# Nothing of all this is worth more than a few lines.
check_ge control_log_bounded 1 $(($(grep -c . "$DAEMON_LOG") < 100))
end_process "$a" TERM 20
check_eq control_vm_errors 0 "$(flat_value a errors)"
check_ge control_vm_accesses 10000000 "$(flat_value a accesses)"
check control_stops stop_daemon
check control_socket_is_gone test ! -e "$CONTROL_SOCKET"
