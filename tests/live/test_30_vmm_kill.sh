#!/usr/bin/env bash
# timeout: 150
# kill -9 of a VMM: the daemon notices, frees its references, and the other VM does not.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

flat_init vmm_kill
start_daemon "${FLAT_DAEMON[@]}" || die vmm_kill_daemon "ballastd does not start"
flat_start a 1
a=$PID
flat_start b 2
b=$PID
wait_for 10 vms_connected a b || die vmm_kill_connect "$(flat_complaints a; flat_complaints b)"
wait_for 40 vms_reach shared_pages 12000 a b ||
	die vmm_kill_merge "only $(vms_sum shared_pages a b) shared pages"

take_status
refs=$(domain_value store_refs)
shared_b=$(vm_value b shared_pages)
echo "# before: store_pages $(domain_value store_pages) store_refs $refs shared $(vm_value a shared_pages) + $shared_b"
check_ge vmm_kill_b_shared 3000 "$shared_b"

end_process "$b" KILL
killed=${EPOCHREALTIME/[.,]/}
check vmm_kill_b_gone wait_for 10 vm_gone b
left=$(domain_value store_refs)
echo "# b gone $(((${EPOCHREALTIME/[.,]/} - killed) / 1000)) ms after its end: store_pages $(domain_value store_pages)" \
	"store_refs $left shared $(vm_value a shared_pages)"
# a goes on merging and breaking meanwhile, so its own references may have moved by some hundreds.
refs_dropped() { take_status && [ "$(domain_value store_refs)" -le $((refs - shared_b * 8 / 10)) ]; }
check vmm_kill_refs_dropped wait_for 5 refs_dropped
check_ge vmm_kill_a_still_shares 1000 "$(vm_value a shared_pages)"

# a goes on, merges on, and every page of it is checked by more than a turn of the window (64 * 100 ms).
merged=$(vm_value a merged_pages_total)
check vmm_kill_a_merges_on wait_for 20 vms_reach merged_pages_total $((merged + 500)) a
sleep 8
flat_show a
flat_complaints a
check vmm_kill_a_runs alive "$a"
check_eq vmm_kill_a_errors 0 "$(flat_value a errors)"
check_ge vmm_kill_a_stall_below_1s 1 $(($(flat_value a max_stall_us) < 1000000))

end_process "$a" KILL
check vmm_kill_a_gone wait_for 10 vm_gone a
check vmm_kill_store_empty wait_for 15 domain_is store_pages 0
check vmm_kill_refs_zero wait_for 5 domain_is store_refs 0
check vmm_kill_index_empty wait_for 15 domain_is index_entries 0
check vmm_kill_daemon_runs alive "$DAEMON_PID"
