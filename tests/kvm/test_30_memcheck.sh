#!/usr/bin/env bash
# timeout: 400
# live/test_40_guest_memcheck on hardware-style KVM: two stock Linux guests in unmodified QEMU with -accel kvm check every
# access to their memory while the daemon merges and is killed in the middle. Fewer accesses, since the host is emulated.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"

SECONDS_RUN=${SECONDS_RUN:-30}
STOCK_MIB=192
kvm_init kvm_memcheck
start_daemon "${STOCK_DAEMON[@]}" || die kvm_memcheck_daemon "ballastd does not start"
stock_start a 1 "ballast.mode=check ballast.check_mib=32"
stock_start b 2 "ballast.mode=check ballast.check_mib=32"
stock_ready kvm_memcheck a b
check_eq kvm_memcheck_accel kvm "$STOCK_ACCEL"
wait_for 90 vms_reach shared_pages 5000 a b ||
	die kvm_memcheck_merges "only $(vms_sum shared_pages a b) shared pages"

declare -A merged=() iter=()
sleep $((SECONDS_RUN / 2))
take_status || die kvm_memcheck_status "ballastctl status fails"
show_vms a b
before=$(vms_sum shared_pages a b)
for vm in a b; do
	merged[$vm]=$(vm_value $vm merged_pages_total)
	check_ge kvm_memcheck_${vm}_merged 2000 "${merged[$vm]}"
	check_ge kvm_memcheck_${vm}_broken 100 "$(vm_value $vm broken_pages_total)"
done

kill_daemon
for vm in a b; do
	iter[$vm]=$(check_value $vm iter)
done
for vm in a b; do
	check kvm_memcheck_${vm}_goes_on wait_for 20 check_reaches $vm iter $((iter[$vm] + 10000))
done
start_daemon || die kvm_memcheck_restart "ballastd does not start again"
wait_for 30 vms_connected a b || die kvm_memcheck_reconnect "the agents do not come back"
check kvm_memcheck_sharing_found wait_for 30 vms_reach shared_pages $((before / 2)) a b

sleep $((SECONDS_RUN - SECONDS_RUN / 2))
take_status || die kvm_memcheck_status "ballastctl status fails"
show_vms a b
for vm in a b; do
	check_guest kvm_memcheck $vm 100000
	check_ge kvm_memcheck_${vm}_still_shared 1000 "$(vm_value $vm shared_pages)"
done
check_store kvm_memcheck a b
check kvm_memcheck_daemon_runs alive "$DAEMON_PID"
