#!/usr/bin/env bash
# timeout: 500
# live/test_10_kvm_integrity on hardware-style KVM: there the MMU notifiers tear second-level page tables down under a
# running guest, what a KVM without nested paging does not have. Fewer accesses, since the host is emulated.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"

kvm_init kvm_flat
flat_init kvm_flat
check_eq kvm_flat_in_a_vcpu "" "${FLAT_MODE[*]-}"
start_daemon "${FLAT_DAEMON[@]}" ${KVM_DAEMON[@]+"${KVM_DAEMON[@]}"} || die kvm_flat_daemon "ballastd does not start"

# The control: a flipped bit must be reported.
timeout 60 "$FLAT" --name control --pages 4096 --seconds 4 --seed 9 --corrupt >"$RUN/control.flat" 2>&1
rc=$?
flat_show control
check_eq kvm_flat_control_fails 1 $rc
check_ge kvm_flat_control_errors 1 "$(flat_value control errors)"

declare -A pid=()
flat_start a 1 --discard
pid[a]=$PID
flat_start b 2 --discard
pid[b]=$PID
wait_for 30 vms_connected a b || die kvm_flat_connect "$(flat_complaints a; flat_complaints b)"
kvm_each_reaches 120 merged_pages_total 2000 a b
kvm_each_reaches 120 broken_pages_total 200 a b
take_status || die kvm_flat_status "ballastctl status fails"
show_vms a b
for vm in a b; do
	check kvm_flat_${vm}_runs alive "${pid[$vm]}"
	check_outside kvm_flat_${vm}_outside $vm "${pid[$vm]}"
	end_process "${pid[$vm]}" TERM 30
	flat_show $vm
	flat_complaints $vm
	check_eq kvm_flat_${vm}_ended_in_order 1 "$(flat_value $vm final)"
	check_eq kvm_flat_${vm}_errors 0 "$(flat_value $vm errors)"
	check_ge kvm_flat_${vm}_accesses 1000000 "$(flat_value $vm accesses)"
	check_ge kvm_flat_${vm}_merged 2000 "$(vm_value $vm merged_pages_total)"
	check_ge kvm_flat_${vm}_broken 200 "$(vm_value $vm broken_pages_total)"
done
check kvm_flat_daemon_runs alive "$DAEMON_PID"
