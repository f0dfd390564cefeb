#!/usr/bin/env bash
# timeout: 600
# Two stock guests in ballast-vmm check every access to their memory while the daemon merges, is killed in the middle and
# starts again: the agent inside the VMM, under its seccomp filter. One is then saved, and restored as a third.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

VMM_MIB=192
kvm_init kvm_vmm_memcheck
# As in test_30: small pages, and a first daemon that hardly looks while the guests boot.
thp=/sys/kernel/mm/transparent_hugepage/enabled
cleanup eval "echo $(sed 's/.*\[\(.*\)\].*/\1/' $thp) >$thp"
echo never >$thp
start_daemon scan.interval=60s scan.idle_interval=60s || die kvm_vmm_memcheck_daemon "ballastd does not start"
ctl pause
seed=0
for vm in a b; do
	seed=$((seed + 1))
	vmm_start $vm 6.12 1 "ballast.mode=check ballast.check_mib=24 ballast.seed=$seed" --qmp "$RUN/$vm.qmp"
	STOCK_PID[$vm]=$VMM_PID
done
stock_ready kvm_vmm_memcheck a b
stop_daemon
start_daemon "${STOCK_DAEMON[@]}" ${KVM_DAEMON[@]+"${KVM_DAEMON[@]}"} ||
	die kvm_vmm_memcheck_daemon "ballastd does not start"
wait_for 30 vms_connected a b || die kvm_vmm_memcheck_connect "the agents do not come back"
kvm_each_reaches 150 merged_pages_total 2000 a b
kvm_each_reaches 60 broken_pages_total 100 a b
take_status || die kvm_vmm_memcheck_status "ballastctl status fails"
show_vms a b
before=$(vms_sum shared_pages a b)
for vm in a b; do
	check_ge kvm_vmm_memcheck_${vm}_merged 2000 "$(vm_value $vm merged_pages_total)"
	check_ge kvm_vmm_memcheck_${vm}_broken 100 "$(vm_value $vm broken_pages_total)"
done
check kvm_vmm_memcheck_stats eval "vmm_qmp a x-ballast-stats | grep -q '\"connected\":true'"

declare -A iter=()
kill_daemon
for vm in a b; do
	iter[$vm]=$(check_value $vm iter)
done
for vm in a b; do
	check kvm_vmm_memcheck_${vm}_goes_on wait_for 20 check_reaches $vm iter $((iter[$vm] + 10000))
done
start_daemon || die kvm_vmm_memcheck_restart "ballastd does not start again"
wait_for 30 vms_connected a b || die kvm_vmm_memcheck_reconnect "the agents do not come back"
check kvm_vmm_memcheck_sharing_found wait_for 30 vms_reach shared_pages $((before / 2)) a b

# A snapshot of memory that is merged has the guest's bytes in it; the restored guest checks them, and is merged in turn.
check kvm_vmm_memcheck_snapshot eval "vmm_qmp a x-ballast-snapshot-save '{\"directory\": \"$RUN/snap\"}' >/dev/null"
end_process "${STOCK_PID[b]}" TERM 30
vmm_run c --restore "$RUN/snap"
STOCK_PID[c]=$VMM_PID
wait_for 30 vms_connected c || die kvm_vmm_memcheck_restored "the restored VM does not connect"
check kvm_vmm_memcheck_restored_checks wait_for 60 check_reaches c iter $((iter[a] + 10000))
check kvm_vmm_memcheck_restored_merges kvm_each_reaches 120 merged_pages_total 1000 c

take_status || die kvm_vmm_memcheck_status "ballastctl status fails"
show_vms a c
for vm in a c; do
	check_guest kvm_vmm_memcheck $vm 100000
	check_ge kvm_vmm_memcheck_${vm}_still_shared 1000 "$(vm_value $vm shared_pages)"
done
check_store kvm_vmm_memcheck --images a c
check kvm_vmm_memcheck_daemon_runs alive "$DAEMON_PID"
for vm in a c; do
	kill -TERM "${STOCK_PID[$vm]}"
	vmm_wait "${STOCK_PID[$vm]}"
	check_eq kvm_vmm_memcheck_${vm}_status 0 $VMM_STATUS
done
