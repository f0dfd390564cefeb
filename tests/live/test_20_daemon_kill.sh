#!/usr/bin/env bash
# timeout: 240
# kill -9 of the daemon in the middle of merging, ten times: no guest reads a wrong byte or waits for a second,
# the agents come back, and the restarted daemon finds the sharing again instead of making it anew.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

ROUNDS=${ROUNDS:-10}
# Of the pages shared before the kill, how many must be found again, in percent. The guests go on writing while
# the daemon is down, which breaks some 3% a second with a dwell of 500 ms.
FOUND_PERCENT=75

flat_init daemon_kill
start_daemon "${FLAT_DAEMON[@]}" || die daemon_kill_daemon "ballastd does not start"
flat_start a 1 --dwell-ms 500
a=$PID
flat_start b 2 --dwell-ms 500
b=$PID
wait_for 10 vms_connected a b || die daemon_kill_connect "$(flat_complaints a; flat_complaints b)"

for ((round = 1; round <= ROUNDS; round++)); do
	# The first round hits the first merges. Later ones hit a daemon that is merging what the guests broke (odd), or
	# one that has hardly found its feet again (even).
	if [ $round -eq 1 ]; then
		what=(shared_pages 2000)
	elif [ $((round % 2)) -eq 1 ]; then
		what=(merged_pages_total 1000)
	else
		what=(shared_pages $((found * 9 / 10)))
	fi
	if ! wait_for 30 vms_reach "${what[@]}" a b; then
		die daemon_kill_round_$round "only $(vms_sum "${what[0]}" a b) ${what[0]}, wanted ${what[1]}"
	fi
	take_status
	before=$(vms_sum shared_pages a b)
	zero=$(vms_sum zero_pages a b)
	merged=$(vms_sum merged_pages_total a b)
	kill_daemon
	# From a restart at once to one that takes longer than an agent may want to wait.
	sleep 0.$((round * 37 % 10))
	start_daemon || die daemon_kill_round_$round "ballastd does not start again"
	restarted=${EPOCHREALTIME/[.,]/}
	wait_for 10 vms_connected a b ||
		die daemon_kill_round_$round "the agents do not come back $(flat_complaints a; flat_complaints b)"
	connected_ms=$(((${EPOCHREALTIME/[.,]/} - restarted) / 1000))
	wait_for 5 vms_reach shared_pages $((before * FOUND_PERCENT / 100)) a b
	found=$(vms_sum shared_pages a b)
	made=$(vms_sum merged_pages_total a b)
	echo "# round $round: shared $before (zero $zero, $merged merged in this life) before the kill; $found after, $made of" \
		"them merged anew;" \
		"connected $connected_ms ms after the daemon answered; errors $(flat_value a errors) $(flat_value b errors)"
	# What is shared now and was not merged by this daemon was found.
	check_ge daemon_kill_round_${round}_found $((before * FOUND_PERCENT / 100)) $((found - made))
	if ! alive "$a" || ! alive "$b"; then
		die daemon_kill_round_$round "a VM died: $(flat_complaints a; flat_complaints b)"
	fi
done

# Merging goes on after all that.
take_status
made=$(vms_sum merged_pages_total a b)
check daemon_kill_merges_on wait_for 20 vms_reach merged_pages_total $((made + 500)) a b
# Longer than a whole turn of the window: by then each page was checked after the last kill.
sleep "${SETTLE_SECONDS:-10}"
for vm in a b; do
	flat_show $vm
	check_eq daemon_kill_${vm}_connected 1 "$(flat_value $vm connected)"
	check_eq daemon_kill_${vm}_errors 0 "$(flat_value $vm errors)"
	check_ge daemon_kill_${vm}_accesses 10000000 "$(flat_value $vm accesses)"
	check_ge daemon_kill_${vm}_stall_below_1s 1 $(($(flat_value $vm max_stall_us) < 1000000))
done

check_outside daemon_kill_a_outside a "$a"
check_outside daemon_kill_b_outside b "$b"

# References that were lost or counted twice over the restarts would now keep store pages, or free them too early.
end_process "$a" KILL
end_process "$b" KILL
check daemon_kill_store_empty wait_for 15 domain_is store_pages 0
check daemon_kill_refs_zero wait_for 5 domain_is store_refs 0
flat_complaints a
flat_complaints b
