#!/usr/bin/env bash
# timeout: 200
# A hostile client of the agent socket, which any user of the host may connect to: whatever it says, the daemon stays
# up, answers its administrator, and keeps its memory, descriptors and log bounded, while two honest VMs go on sharing
# without an error.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

TOOL=$BUILD/tests/tool_protocol
GROWTH_KIB=65536 # what the daemon may grow by, whatever is said to it
[ -x "$TOOL" ] || die agent "$TOOL is not built"

fds() { ls "/proc/$DAEMON_PID/fd" 2>/dev/null | wc -l; }
rss_kib() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$DAEMON_PID/status"; }
fds_at_most() { [ "$(fds)" -le "$1" ]; }
rss_at_most() { [ "$(rss_kib)" -le "$1" ]; }
log_bytes() { stat -c %s "$DAEMON_LOG"; }
log_count() { tail -c "+$((log_from + 1))" "$DAEMON_LOG" | grep -c -e "$1"; }

# The daemon answers its administrator within two seconds.
responsive() # NAME
{
	local begin=${EPOCHREALTIME/[.,]/} ms
	timeout 20 "$BUILD/ballastctl" --socket "$CONTROL_SOCKET" status --json >/dev/null 2>&1
	local rc=$?
	ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
	[ $rc -eq 0 ] && [ $ms -le 2000 ] && pass "$1" && return
	fail "$1" "status took $ms ms, exit status $rc"
	return 1
}

# begin: what the daemon is like before a section; settled NAME: and it is so again.
begin()
{
	take_status
	merged=$(vms_sum merged_pages_total a b)
	errors=$(host_value protocol_errors_total)
	log_from=$(log_bytes)
}
settled()
{
	check "agent_$1_daemon_runs" alive "$DAEMON_PID" || die "agent_$1" "the daemon is gone"
	responsive "agent_$1_responsive"
	wait_for 15 fds_at_most "$fds_at_start" || fail "agent_$1_descriptors" "$fds_at_start before, $(fds) now"
	wait_for 15 rss_at_most $((rss_at_start + GROWTH_KIB)) ||
		fail "agent_$1_memory" "$rss_at_start KiB before, $(rss_kib) now"
	check "agent_$1_honest_merge" wait_for 20 vms_reach merged_pages_total $((merged + 500)) a b
	alive "$a" && alive "$b" || die "agent_$1_honest" "a VM died: $(flat_complaints a; flat_complaints b)"
	check_eq "agent_$1_honest_errors" "0 0" "$(flat_value a errors) $(flat_value b errors)"
	echo "# $1: fds $fds_at_start -> $(fds), RSS $rss_at_start -> $(rss_kib) KiB," \
		"log +$(($(log_bytes) - log_from)) bytes"
}

# tool NAME ARG...: runs it to its end, to whose last line the section's figures come from.
tool()
{
	local name=$1
	shift
	timeout -k 5 60 "$TOOL" "$@" >"$RUN/$name.out" 2>&1
	local rc=$?
	grep -a '^bad ' "$RUN/$name.out" | head -n 20 | sed 's/^/# /'
	check_eq "agent_${name}_answers" 0 $rc
	cases=$(sed -n 's/^CASES \([0-9]*\) .*/\1/p' "$RUN/$name.out")
	closed=$(sed -n 's/^CASES .* CLOSED \([0-9]*\) .*/\1/p' "$RUN/$name.out")
}

# tool_start NAME ARG...: in the background, until it has sent all and stays; its pid is in $PID.
sent() { grep -q 'are sent$' "$RUN/$1.out"; }
tool_start()
{
	local name=$1
	shift
	start "$RUN/$name.out" "$TOOL" "$@"
	wait_for 60 sent "$name" || fail "agent_${name}_sent" "$(cat "$RUN/$name.out")"
}

flat_init agent
# Half of a core: the tools and the VMs want some of it, too.
start_daemon scan.cpu_percent=50 scan.interval=10ms scan.idle_interval=1s || die agent_daemon "ballastd does not start"
flat_start a 1
a=$PID
flat_start b 2
b=$PID
wait_for 40 vms_reach shared_pages 8000 a b || die agent_honest "only $(vms_sum shared_pages a b) shared pages"
# Their figures come once a second.
both_speak() { [ -n "$(flat_value a errors)" ] && [ -n "$(flat_value b errors)" ]; }
wait_for 10 both_speak
fds_at_start=$(($(fds) + 4)) # one for a status client, and so on
rss_at_start=$(rss_kib)

# Each breach closes the connection, counts, and is one line of the log that says why.
begin
tool kinds kinds
take_status
check_eq agent_kinds_counted "$closed" $(($(host_value protocol_errors_total) - errors))
check_eq agent_kinds_one_line_each "$closed" "$(log_count 'breaks the protocol: ')"
for why in 'bad magic' 'unknown message type' 'wrong version' 'shorter than a header' 'shorter than its type' \
	'length differs' 'longer than any message' 'length does not fit' 'wrong number of descriptors' \
	'string without an end' 'bad range' 'bad segment' 'versions in the wrong order'; do
	check_eq "agent_kinds_line: $why" 1 "$(log_count "breaks the protocol: .*$why")"
done
check_eq "agent_kinds_line: out of place" 2 "$(log_count "breaks the protocol: .*out of place")"
settled kinds

# Every type, bent in every way, in every state.
begin
tool states states
check_ge agent_states_cases 700 "$cases"
take_status
# HELLOs that are refused are no breaches.
check_eq agent_states_counted "$closed" $(($(host_value protocol_errors_total) - errors))
lines=$(log_count 'breaks the protocol: ')
check_ge agent_states_lines_not_more_than_breaches 1 $((lines <= closed && lines > 0))
check_eq agent_states_lines_say_why 0 "$(log_count 'breaks the protocol: \((null)\|;\)')"
check_ge agent_states_refused_version 1 "$(log_count 'refused: no common protocol version')"
check_ge agent_states_refused_second 1 "$(log_count 'refused: the process has an agent already')"
settled states

begin
tool replies "done"
check_ge agent_replies_cases 14 "$cases"
take_status
check_eq agent_replies_counted "$closed" $(($(host_value protocol_errors_total) - errors))
settled replies

# Regions that make no sense are refused, and the connection stays; more than 64 are not taken.
begin
tool_start regions regions
take_status
configured=$(vm_value hostile configured_bytes)
check_ge agent_regions_at_most_64 1 $((${configured:-0} <= 8388608 + 63 * 4096))
check_ge agent_regions_refused 8 "$(log_count 'VM hostile: region of .* refused')"
end_process "$PID" TERM || fail agent_regions_end "the tool does not end"
check_eq agent_regions_answers 0 "$(grep -c '^bad' "$RUN/regions.out")"
grep '^bad' "$RUN/regions.out" | sed 's/^/# /'
check_ge agent_regions_log_bounded 1 $(($(log_count .) < 200))
settled regions

# 100,000 packets. What a stranger can write into the log is bounded.
begin
tool random random 100000 7
check_ge agent_random_packets 100000 "$cases"
check_ge agent_random_closed 1000 "$closed"
settled random
check_ge agent_random_log_bounded 1 $(($(log_count .) < 2000))
echo "# random: $(log_count .) lines of log for $closed connections"

# Connections on which nothing is said, as many as the tool gets; a VM that starts meanwhile gets in.
begin
(ulimit -n 8192 && exec "$TOOL" crowd 3000 14) >"$RUN/crowd.out" 2>&1 &
crowd=$!
cleanup end_process "$crowd"
crowd_is_there() { ! fds_at_most $((fds_at_start + 16)); }
wait_for 10 crowd_is_there
sleep 2
responsive agent_crowd_responsive
check agent_crowd_bounded fds_at_most $((fds_at_start + 1024))
flat_start late 3
late=$PID
check agent_crowd_vm_gets_in wait_for 5 vms_connected late
wait "$crowd"
sed 's/^/# /' "$RUN/crowd.out"
check_ge agent_crowd_was_there 100 "$(sed -n 's/.* connected=\([0-9]*\) .*/\1/p' "$RUN/crowd.out")"
end_process "$late" TERM
settled crowd
check_ge agent_crowd_log_bounded 1 $(($(log_count .) < 500))
echo "# crowd: $(log_count .) lines of log"

# 1,024 descriptors is what systemd gives a service: when they are used up, the daemon waits and does not spin.
cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$DAEMON_PID/stat"; }
begin
prlimit --pid "$DAEMON_PID" --nofile=256:"$(prlimit --pid "$DAEMON_PID" --nofile --noheadings --output HARD | tr -d ' ')"
ticks_idle=$(cpu_ticks)
sleep 2
ticks_idle=$(($(cpu_ticks) - ticks_idle))
(ulimit -n 8192 && exec "$TOOL" crowd 600 5) >"$RUN/few.out" 2>&1 &
crowd=$!
cleanup end_process "$crowd"
sleep 1
ticks=$(cpu_ticks)
sleep 2
ticks=$(($(cpu_ticks) - ticks))
echo "# CPU of the daemon in 2 s: $ticks_idle ticks before, $ticks without descriptors"
check_ge agent_few_descriptors_no_spin 1 $((ticks < ticks_idle + 40))
responsive agent_few_descriptors_responsive
wait "$crowd"
settled few_descriptors

# One VM's message must not keep the daemon from the others: 16 messages of 1,024 discards of 1 GiB each.
begin
tool_start discard discard 1
responsive agent_discard_busy_responsive || wait_for 60 take_status
end_process "$PID" TERM
settled discard

# Nor must hints: 200 messages of 16,384 pages each.
begin
start "$RUN/reads.out" timeout 60 "$TOOL" reads 200
responsive agent_reads_busy_responsive || wait_for 60 take_status
wait "$PID"
check_eq agent_reads 0 $?
settled reads

# Address space that is not there must not use up what VMs need: 8 TiB of it, then an honest VM.
begin
tool_start claim claim 64 128
responsive agent_claim_busy_responsive || wait_for 60 take_status
flat_start later 4
later=$PID
check agent_claim_vm_shares wait_for 20 vms_reach shared_pages 1000 later
end_process "$later" TERM
end_process "$PID" TERM
settled claim

end_process "$a" TERM 20
end_process "$b" TERM 20
for vm in a b; do
	flat_show $vm
	check_eq agent_${vm}_ended_in_order 1 "$(flat_value $vm final)"
	check_eq agent_${vm}_errors 0 "$(flat_value $vm errors)"
	check_ge agent_${vm}_accesses 10000000 "$(flat_value $vm accesses)"
	# The tools want the CPUs as well, and the wait for one counts.
	check_ge agent_${vm}_stall_below_3s 1 $(($(flat_value $vm max_stall_us) < 3000000))
done
check agent_store_empty wait_for 15 domain_is store_pages 0
check agent_stops stop_daemon
