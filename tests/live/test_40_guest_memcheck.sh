#!/usr/bin/env bash
# timeout: 240
# Two stock Linux guests check every access to their memory while the daemon merges as fast as it can and is killed in
# the middle: no wrong word, thousands of merges and breaks, broken pages merge again, the sharing is found again.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

SECONDS_RUN=${SECONDS_RUN:-25}
# Of the pages shared before the kill, how many must be found again: the checkers go on breaking some meanwhile.
FOUND_PERCENT=70

go_first
stock_init guest_memcheck
start_daemon "${STOCK_DAEMON[@]}" || die guest_memcheck_daemon "ballastd does not start"
stock_start a 1 ballast.mode=check
stock_start b 2 ballast.mode=check
stock_ready guest_memcheck a b
wait_for 40 vms_reach shared_pages 20000 a b ||
	die guest_memcheck_merges "only $(vms_sum shared_pages a b) shared pages"

# The counters begin anew with a daemon: these are of the first.
declare -A merged=() broken=() again=() iter=()
sleep $((SECONDS_RUN / 2))
take_status || die guest_memcheck_status "ballastctl status fails"
show_vms a b
before=$(vms_sum shared_pages a b)
for vm in a b; do
	merged[$vm]=$(vm_value $vm merged_pages_total)
	broken[$vm]=$(vm_value $vm broken_pages_total)
	again[$vm]=$((broken[$vm] - $(vm_value $vm broken_pages) - $(vm_value $vm discarded_pages_total)))
done

kill_daemon
for vm in a b; do
	iter[$vm]=$(check_value $vm iter)
done
for vm in a b; do
	check guest_memcheck_${vm}_goes_on wait_for 5 check_reaches $vm iter $((iter[$vm] + 10000))
done
start_daemon || die guest_memcheck_restart "ballastd does not start again"
wait_for 10 vms_connected a b || die guest_memcheck_reconnect "the agents do not come back"
wait_for 5 vms_reach shared_pages $((before * FOUND_PERCENT / 100)) a b
found=$(vms_sum shared_pages a b)
made=$(vms_sum merged_pages_total a b)
echo "# shared: $before before the kill, $found after the restart, $made of them merged anew"
# What is shared now and was not merged by this daemon was found.
check_ge guest_memcheck_sharing_found $((before * FOUND_PERCENT / 100)) $((found - made))

sleep $((SECONDS_RUN - SECONDS_RUN / 2))
take_status || die guest_memcheck_status "ballastctl status fails"
show_vms a b
for vm in a b; do
	check_guest guest_memcheck $vm 3000000
	check_stall guest_memcheck $vm
	check_ge guest_memcheck_${vm}_merged 10000 $((merged[$vm] + $(vm_value $vm merged_pages_total)))
	check_ge guest_memcheck_${vm}_broken 5000 $((broken[$vm] + $(vm_value $vm broken_pages_total)))
	check_ge guest_memcheck_${vm}_merged_again 1000 "${again[$vm]}"
	check_ge guest_memcheck_${vm}_merges_after_restart 500 "$(vm_value $vm merged_pages_total)"
	check_ge guest_memcheck_${vm}_still_shared 5000 "$(vm_value $vm shared_pages)"
done

# The daemon's count is the kernel's, but for what the guests change between the two looks: a tenth at most.
outside a b && take_status || die guest_memcheck_outside "no count"
inside=$(vms_sum shared_pages a b)
off=$((inside - $(out store_pages)))
echo "# shared pages: $inside says the daemon, $(out store_pages) the kernel, which sees $(out broken_pages) broken"
check_ge guest_memcheck_outside_agrees 1 $((${off#-} * 10 <= inside))

check_store guest_memcheck a b

# A reference lost or counted twice over the restart would keep store pages now.
end_process "${STOCK_PID[a]}" KILL
end_process "${STOCK_PID[b]}" KILL
check guest_memcheck_store_empty wait_for 15 domain_is store_pages 0
check guest_memcheck_refs_zero wait_for 5 domain_is store_refs 0
check guest_memcheck_daemon_runs alive "$DAEMON_PID"
