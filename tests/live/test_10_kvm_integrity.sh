#!/usr/bin/env bash
# timeout: 150
# Two flat VMs check every access while the daemon merges as fast as it can: no wrong word, many merges, many
# breaks, and broken pages that merge again.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

SECONDS_RUN=${SECONDS_RUN:-20}
flat_init kvm_integrity
start_daemon "${FLAT_DAEMON[@]}" || die kvm_integrity_daemon "ballastd does not start"

# The control: a single flipped bit must be reported, with merging under way like in the real run.
timeout 60 "$FLAT" ${FLAT_MODE[@]+"${FLAT_MODE[@]}"} --name control --pages 4096 --seconds 4 --seed 9 --corrupt \
	>"$RUN/control.flat" 2>&1
rc=$?
flat_show control
check_eq kvm_integrity_control_fails 1 $rc
check_ge kvm_integrity_control_errors 1 "$(flat_value control errors)"

flat_start a 1 --discard
declare -A pid=([a]=$PID)
flat_start b 2 --discard --vcpus 2
pid[b]=$PID
wait_for 10 vms_connected a b || die kvm_integrity_connect "$(flat_complaints a; flat_complaints b)"
sleep "$SECONDS_RUN"
take_status || die kvm_integrity_status "ballastctl status fails"
for vm in a b; do
	echo "# $vm: shared $(vm_value $vm shared_pages) zero $(vm_value $vm zero_pages)" \
		"merged_total $(vm_value $vm merged_pages_total) broken_total $(vm_value $vm broken_pages_total)" \
		"discarded_total $(vm_value $vm discarded_pages_total) passes $(vm_value $vm passes_total)"
done

for vm in a b; do
	check kvm_integrity_${vm}_runs alive "${pid[$vm]}"
	check_outside kvm_integrity_${vm}_outside $vm "${pid[$vm]}"
	end_process "${pid[$vm]}" TERM 20
	flat_show $vm
	flat_complaints $vm
	check_eq kvm_integrity_${vm}_ended_in_order 1 "$(flat_value $vm final)"
	check_eq kvm_integrity_${vm}_errors 0 "$(flat_value $vm errors)"
	check_ge kvm_integrity_${vm}_accesses 10000000 "$(flat_value $vm accesses)"
	check_ge kvm_integrity_${vm}_discards 1 "$(flat_value $vm discards)"
	check_ge kvm_integrity_${vm}_zeroed 1000 "$(flat_value $vm zeroed)"
	check_ge kvm_integrity_${vm}_broken 5000 "$(vm_value $vm broken_pages_total)"
	# More merges than there are pages: some merged again.
	check_ge kvm_integrity_${vm}_merged_again $((FLAT_PAGES + 1)) "$(vm_value $vm merged_pages_total)"
	check_ge kvm_integrity_${vm}_stall_below_1s 1 $(($(flat_value $vm max_stall_us) < 1000000))
done
check_ge kvm_integrity_merged 10000 "$(vms_sum merged_pages_total a b)"
check kvm_integrity_daemon_runs alive "$DAEMON_PID"
