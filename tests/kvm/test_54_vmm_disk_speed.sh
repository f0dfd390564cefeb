#!/usr/bin/env bash
# timeout: 500
# How fast a guest reads a disk, from front to end, once through the guest's page cache and once with direct I/O: ballast-vmm
# against QEMU's microvm with virtio-blk on virtio-mmio, the same kernel, initrd and image, one after the other.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_disk_speed
ROUNDS=${ROUNDS:-2}
DISK_MIB=${DISK_MIB:-96}
# In the host's page cache, for both: what is compared is the way from there to the guest.
head -c "${DISK_MIB}M" /dev/urandom >"$RUN/disk.img"

cat >"$RUN/job" <<END
set -e
cat /dev/vda >/dev/null
for round in \$(seq $ROUNDS); do
	for how in '' iflag=direct; do
		echo 3 >/proc/sys/vm/drop_caches
		start=\$(cut -d' ' -f1 /proc/uptime)
		dd if=/dev/vda of=/dev/null bs=1M \$how 2>/dev/null
		echo "GUEST-READ \${how:-cached} \$start \$(cut -d' ' -f1 /proc/uptime)"
	done
done
END
kvm_job 6.12 "$RUN/initrd" "$RUN/job"

# best NAME HOW: MiB/s of the fastest round
best()
{
	tr -d '\r' <"$RUN/$1.console" | awk -v how="$2" -v mib="$DISK_MIB" '
		$1 == "GUEST-READ" && $2 == how && $4 > $3 { v = mib / ($4 - $3); if (v > best) best = v }
		END { printf "%.1f\n", best }'
}

# In turns, so that a busy machine is busy for both.
for turn in 1 2; do
	VMM_INITRD=$RUN/initrd vmm_start "ours-$turn" 6.12 1 "ballast.mode=job" --no-agent --disk "path=$RUN/disk.img,readonly"
	VMM_WAIT=120 vmm_wait "$VMM_PID"
	check_eq kvm_disk_speed_ours_$turn 0 "$VMM_STATUS"
	kvm_microvm "qemu-$turn" 6.12 1 "ballast.mode=job" -initrd "$RUN/initrd" \
		-drive "file=$RUN/disk.img,if=none,id=disk,format=raw,readonly=on" -device virtio-blk-device,drive=disk
	check kvm_disk_speed_qemu_$turn wait_for 120 eval "! alive $QEMU_PID"
	for vmm in ours qemu; do
		cat "$RUN/$vmm-$turn.console" >>"$RUN/$vmm.console"
		tr -d '\r' <"$RUN/$vmm-$turn.console" | sed -n "s/^GUEST-READ/# $vmm/p"
	done
done
for how in cached iflag=direct; do
	ours=$(best ours $how) qemu=$(best qemu $how)
	ratio=$(awk -v a="$ours" -v b="$qemu" 'BEGIN { printf "%.2f", (b > 0 ? a / b : 0) }')
	echo "RESULT kvm_disk_read how=${how#iflag=} vmm=ballast-vmm mib_s=$ours qemu_mib_s=$qemu ratio=$ratio"
	# 0.9 is the aim; a busy, emulated machine is allowed some noise below it.
	check "kvm_disk_speed_${how#iflag=}" awk -v r="$ratio" 'BEGIN { exit !(r >= 0.8) }'
done
