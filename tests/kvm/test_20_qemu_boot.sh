#!/usr/bin/env bash
# timeout: 400
# Stock QEMU's microvm boots both kernels to user space with one and two processors: the host runs stock guests, and the
# time is the one that ballast-vmm is measured against. Each guest then powers off, which must end QEMU. (A reboot would not always:
# QEMU 7.2 lets a vCPU run on from the reset vector until its main loop hears of the reset, and that may fail first.)
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"

kvm_init kvm_boot
for release in "${KVM_RELEASES[@]}"; do
	for cpus in 1 2; do
		name=boot-$release-$cpus
		test=kvm_boot_${release/./_}_$cpus
		begin=${EPOCHREALTIME/[.,]/}
		kvm_microvm "$name" "$release" $cpus "ballast.mode=boot"
		if ! kvm_wait_up 90 "$name" "$QEMU_PID" GUEST-UP; then
			fail "$test" "no GUEST-UP"
			end_process "$QEMU_PID" KILL
			continue
		fi
		took=$((${EPOCHREALTIME/[.,]/} - begin))
		console=$(tr -d '\r' <"$RUN/$name.console")
		uptime=$(sed -n 's/^GUEST-UP uptime=\([0-9.]*\).*/\1/p' <<<"$console")
		check_eq "$test" $cpus "$(sed -n 's/^GUEST-UP .*cpus=\([0-9]*\).*/\1/p' <<<"$console")"
		check "${test}_poweroff_ends_it" wait_for 30 eval "! alive $QEMU_PID"
		echo "RESULT kvm_boot vmm=qemu-microvm kernel=$release cpus=$cpus wall_ms=$((took / 1000)) guest_uptime_s=$uptime"
	done
done
