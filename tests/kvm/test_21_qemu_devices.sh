#!/usr/bin/env bash
# timeout: 400
# Both kernels find and drive the virtio-mmio devices of QEMU's microvm: what a test of ballast-vmm's devices relies on in
# the guest (drivers, busybox, ballast.mode=job), seen on a VMM that is known to be right.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"

kvm_init kvm_devices
disk=$RUN/disk.img
busybox dd if=/dev/urandom of="$disk" bs=64k count=32 2>/dev/null
sum=$(sha256sum <"$disk")
sum=${sum%% *}

# A tap of this test's own; 198.18.0.0/15 is for such tests (RFC 2544).
tap=bt$((RANDOM % 10000))
busybox tunctl -t $tap >/dev/null || die kvm_devices_tap "no tap interface"
cleanup busybox tunctl -d $tap
busybox ip addr add 198.18.77.1/30 dev $tap && busybox ip link set $tap up || die kvm_devices_tap "cannot set up $tap"

# Runs in the guest.
cat >"$RUN/job" <<'JOB'
driver() { ls /sys/bus/virtio/drivers/"$1" 2>/dev/null | grep -q ^virtio && echo "DRIVER $1"; }
for d in virtio_blk virtio_net virtio_rng virtio_balloon vmw_vsock_virtio_transport virtio_mem; do
	driver $d
done
echo "DISK $(sha256sum /dev/vda | cut -d' ' -f1)"
ip addr add 198.18.77.2/30 dev eth0 && ip link set eth0 up && ping -c 3 -W 5 198.18.77.1 | grep received | sed 's/^/PING /'
echo "RNG $(cat /sys/class/misc/hw_random/rng_current) $(dd if=/dev/hwrng bs=16 count=4 2>/dev/null | wc -c)"
JOB

for release in "${KVM_RELEASES[@]}"; do
	name=devices-$release
	test=kvm_devices_${release/./_}
	kvm_job "$release" "$RUN/$name.initrd" "$RUN/job" || die "${test}_initrd" "cannot make the initrd"
	KVM_INITRD=$RUN/$name.initrd kvm_microvm "$name" "$release" 1 "ballast.mode=job" \
		-drive "if=none,id=disk,format=raw,readonly=on,file=$disk" -device virtio-blk-device,drive=disk \
		-netdev "tap,id=net,ifname=$tap,script=no,downscript=no" -device virtio-net-device,netdev=net \
		-device virtio-rng-device -device virtio-balloon-device \
		-device vhost-vsock-device,guest-cid=$((1000 + RANDOM))
	if ! kvm_wait_up 120 "$name" "$QEMU_PID" GUEST-JOB; then
		fail "$test" "the job did not end"
		end_process "$QEMU_PID" KILL
		continue
	fi
	console=$(tr -d '\r' <"$RUN/$name.console")
	for driver in virtio_blk virtio_net virtio_rng virtio_balloon vmw_vsock_virtio_transport; do
		check "${test}_$driver" grep -qx "DRIVER $driver" <<<"$console"
	done
	check_eq "${test}_disk" "DISK $sum" "$(grep ^DISK <<<"$console")"
	check "${test}_ping" grep -q '^PING .* [123] packets received' <<<"$console"
	check_eq "${test}_rng" "RNG virtio_rng.0 64" "$(grep ^RNG <<<"$console")"
	wait_for 30 eval "! alive $QEMU_PID" || end_process "$QEMU_PID" KILL
done
