#!/usr/bin/env bash
# timeout: 500
# Two stock guests in ballast-vmm check every access to their memory while the daemon merges, is killed in the middle and
# starts again: the agent inside the VMM, under its seccomp filter. One is then saved, and restored as a third.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

SECONDS_RUN=${SECONDS_RUN:-30}
VMM_MIB=192
kvm_init kvm_vmm_memcheck
start_daemon "${STOCK_DAEMON[@]}" || die kvm_vmm_memcheck_daemon "ballastd does not start"
seed=0
for vm in a b; do
	seed=$((seed + 1))
	vmm_start $vm 6.12 1 "ballast.mode=check ballast.check_mib=32 ballast.seed=$seed" --qmp "$RUN/$vm.qmp"
	STOCK_PID[$vm]=$VMM_PID
done
stock_ready kvm_vmm_memcheck a b
wait_for 90 vms_reach shared_pages 5000 a b ||
	die kvm_vmm_memcheck_merges "only $(vms_sum shared_pages a b) shared pages"

declare -A iter=()
sleep $((SECONDS_RUN / 2))
take_status || die kvm_vmm_memcheck_status "ballastctl status fails"
show_vms a b
before=$(vms_sum shared_pages a b)
for vm in a b; do
	check_ge kvm_vmm_memcheck_${vm}_merged 2000 "$(vm_value $vm merged_pages_total)"
	check_ge kvm_vmm_memcheck_${vm}_broken 100 "$(vm_value $vm broken_pages_total)"
done
check kvm_vmm_memcheck_stats eval "vmm_qmp a x-ballast-stats | grep -q '\"connected\":true'"

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

# A snapshot of memory that is merged has the guest's bytes in it, and a restored guest can be merged.
check kvm_vmm_memcheck_snapshot eval "vmm_qmp a x-ballast-snapshot-save '{\"directory\": \"$RUN/snap\"}' >/dev/null"
vmm_run c --restore "$RUN/snap"
STOCK_PID[c]=$VMM_PID
wait_for 30 vms_connected c || die kvm_vmm_memcheck_restored "the restored VM does not connect"
check kvm_vmm_memcheck_restored_checks wait_for 60 check_reaches c iter $((iter[a] + 10000))
check kvm_vmm_memcheck_restored_merges wait_for 60 vms_reach shared_pages 2000 c

sleep $((SECONDS_RUN - SECONDS_RUN / 2))
take_status || die kvm_vmm_memcheck_status "ballastctl status fails"
show_vms a b c
for vm in a b c; do
	check_guest kvm_vmm_memcheck $vm 10000
	check_ge kvm_vmm_memcheck_${vm}_still_shared 1000 "$(vm_value $vm shared_pages)"
done
check_store kvm_vmm_memcheck a b c
check kvm_vmm_memcheck_daemon_runs alive "$DAEMON_PID"
