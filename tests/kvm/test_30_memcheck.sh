#!/usr/bin/env bash
# timeout: 900
# live/test_40_guest_memcheck on hardware-style KVM: two stock Linux guests in unmodified QEMU with -accel kvm check every
# access to their memory while the daemon merges and is killed in the middle. Fewer accesses, since the host is emulated.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"

STOCK_MIB=192
kvm_init kvm_memcheck
# Small pages: the daemon looks at huge ones rarely, and test_10 has them.
thp=/sys/kernel/mm/transparent_hugepage/enabled
cleanup eval "echo $(sed 's/.*\[\(.*\)\].*/\1/' $thp) >$thp"
echo never >$thp
# A guest that is looked at while it boots takes several times as long here, so that the first daemon hardly looks.
start_daemon scan.interval=60s scan.idle_interval=60s || die kvm_memcheck_daemon "ballastd does not start"
ctl pause
stock_start a 1 "ballast.mode=check ballast.check_mib=24 ballast.check_phase_ms=1000"
stock_start b 2 "ballast.mode=check ballast.check_mib=24 ballast.check_phase_ms=1000"
stock_ready kvm_memcheck a b
check_eq kvm_memcheck_accel kvm "$STOCK_ACCEL"
stop_daemon
start_daemon "${STOCK_DAEMON[@]}" ${KVM_DAEMON[@]+"${KVM_DAEMON[@]}"} || die kvm_memcheck_daemon "ballastd does not start"
wait_for 30 vms_connected a b || die kvm_memcheck_connect "the agents do not come back"
kvm_each_reaches 150 merged_pages_total 2000 a b
kvm_each_reaches 180 broken_pages_total 100 a b
take_status || die kvm_memcheck_status "ballastctl status fails"
show_vms a b
before=$(vms_sum shared_pages a b)
for vm in a b; do
	check_ge kvm_memcheck_${vm}_merged 2000 "$(vm_value $vm merged_pages_total)"
	check_ge kvm_memcheck_${vm}_broken 100 "$(vm_value $vm broken_pages_total)"
done

declare -A iter=()
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

check kvm_memcheck_merges_after_restart kvm_each_reaches 120 merged_pages_total 100 a b
take_status || die kvm_memcheck_status "ballastctl status fails"
show_vms a b
for vm in a b; do
	check_guest kvm_memcheck $vm 100000
	check_ge kvm_memcheck_${vm}_still_shared 1000 "$(vm_value $vm shared_pages)"
done
check_store kvm_memcheck a b
check kvm_memcheck_daemon_runs alive "$DAEMON_PID"
