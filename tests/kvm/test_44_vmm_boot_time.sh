#!/usr/bin/env bash
# timeout: 500
# Boot to user space of the same guest in ballast-vmm and in QEMU's microvm, in turns; the best of each counts, because what
# else runs on the machine only ever adds.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

TURNS=${TURNS:-3}
# The wanted ratio is 1.0; what a busy machine adds to one and not to the other is beyond that.
PERCENT_MAX=110
kvm_init kvm_boot_time
declare -A best=()

# timed VMM NAME: boots, and keeps the time if it is the best; $VMM_PID or $QEMU_PID ends by itself.
timed()
{
	local vmm=$1 name=$2 begin=${EPOCHREALTIME/[.,]/} took pid
	case $vmm in
	ballast-vmm)
		vmm_start "$name" 6.12 1 "ballast.mode=boot" --no-agent
		pid=$VMM_PID
		;;
	qemu-microvm)
		kvm_microvm "$name" 6.12 1 "ballast.mode=boot"
		pid=$QEMU_PID
		;;
	esac
	WAIT_POLL=0.1 kvm_wait_up 120 "$name" "$pid" GUEST-UP || die kvm_boot_time_$vmm "no GUEST-UP"
	took=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
	wait_for 60 __gone "$pid" || die kvm_boot_time_$vmm "it does not power off"
	echo "# $vmm: $took ms"
	if [ -z "${best[$vmm]:-}" ] || [ "$took" -lt "${best[$vmm]}" ]; then best[$vmm]=$took; fi
}

for turn in $(seq "$TURNS"); do
	timed qemu-microvm "q$turn"
	timed ballast-vmm "b$turn"
done
percent=$((best[ballast-vmm] * 100 / best[qemu-microvm]))
echo "RESULT kvm_boot_time kernel=6.12 ballast_vmm_ms=${best[ballast-vmm]} qemu_microvm_ms=${best[qemu-microvm]} percent=$percent"
check_ge kvm_boot_time_ratio "$percent" $PERCENT_MAX
