#!/usr/bin/env bash
# timeout: 600
# ballast-vmm boots both kernels to user space with one and two processors, as bzImage and by PVH; poweroff, reboot and
# signals end it as its usage text says.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_vmm

# boot TEST NAME RELEASE CPUS MODE ARG...: to user space; then the guest powers off.
boot()
{
	local test=$1 name=$2 release=$3 cpus=$4 begin=${EPOCHREALTIME/[.,]/} took
	shift 4
	vmm_start "$name" "$release" "$cpus" "ballast.mode=boot" --no-agent "$@"
	if ! kvm_wait_up 90 "$name" "$VMM_PID" GUEST-UP; then
		fail "$test" "no GUEST-UP"
		end_process "$VMM_PID" KILL
		return
	fi
	took=$((${EPOCHREALTIME/[.,]/} - begin))
	check_eq "$test" "$cpus" "$(tr -d '\r' <"$RUN/$name.console" | sed -n 's/^GUEST-UP .*cpus=\([0-9]*\).*/\1/p')"
	vmm_wait "$VMM_PID"
	check_eq "${test}_poweroff" 0 $VMM_STATUS
	check_eq "${test}_silent" "" "$(cat "$RUN/$name.log")"
	echo "RESULT kvm_boot vmm=ballast-vmm image=${VMM_KERNEL:-vmlinuz} kernel=$release cpus=$cpus wall_ms=$((took / 1000))"
}

for release in "${KVM_RELEASES[@]}"; do
	for cpus in 1 2; do
		boot "kvm_vmm_boot_${release/./_}_$cpus" "vmm-$release-$cpus" "$release" $cpus
	done
	VMM_KERNEL=vmlinux boot "kvm_vmm_pvh_${release/./_}" "pvh-$release" "$release" 2
done

# More memory than there is room for below 4 GiB. (It is not touched.)
VMM_MIB=4096 boot kvm_vmm_above_4g large 6.12 1

# A reboot starts it anew in the same process, again and again; a signal ends it.
vmm_start reboot 6.12 2 "ballast.mode=boot ballast.then=reboot" --no-agent
check kvm_vmm_reboots_twice wait_for 120 vmm_console reboot GUEST-UP 3
kill -TERM "$VMM_PID"
vmm_wait "$VMM_PID"
check_eq kvm_vmm_signal_ends_it 0 $VMM_STATUS

vmm_start noreboot 6.12 1 "ballast.mode=boot ballast.then=reboot" --no-agent --no-reboot
VMM_WAIT=90 vmm_wait "$VMM_PID"
check_eq kvm_vmm_no_reboot 4 $VMM_STATUS
