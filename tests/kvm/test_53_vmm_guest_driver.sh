#!/usr/bin/env bash
# timeout: 700
# Our balloon driver under ballast-vmm, with ranges instead of frames: a GiB in and out, against the stock driver under the same VMM
# and under QEMU's microvm, where ours speaks the standard protocol. Its own statistics arrive.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_guest_driver
ko=$BUILD/guest-driver/$(basename build/guest/modules/*)/ballast_balloon.ko
[ -e "$ko" ] || die kvm_guest_driver_built "$ko is not built: tests/guest/driver.sh"
MIB=$((1 << 20)) VMM_MIB=1280 STOCK_MIB=1280
LEFT=$((VMM_MIB - 1024))
# init_on_alloc=0: a kernel that does not zero what it allocates (Debian's do)
GUEST_PARAMS=${GUEST_PARAMS:-}
echo 'sleep 2147483647' >"$RUN/job"
kvm_job 6.12 "$RUN/stock.initrd" "$RUN/job"
kvm_job 6.12 "$RUN/ours.initrd" "$RUN/job" "$ko"

actual_mib() { echo $(($(vmm_qmp "$1" query-balloon | sed -n 's/.*"actual": *\([0-9]*\).*/\1/p') / MIB)); }
actual_is() { [ "$(actual_mib "$1")" = "$2" ]; }
cpu_ms() { awk -v hz="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000 / hz) }' "/proc/$1/stat"; }
# What KVM counts for a VMM's guest; 0 where the host does not show it.
[ -d /sys/kernel/debug/kvm ] || [ "${BALLAST_TESTHOST:-}" != emulated ] || mount -t debugfs none /sys/kernel/debug 2>/dev/null
exits() { cat "/sys/kernel/debug/kvm/$1"-*/exits 2>/dev/null | awk '{ s += $1 } END { print s + 0 }'; }
anon_huge_mib() { awk '/^AnonHugePages:/ { print int($2 / 1024) }' "/proc/$1/smaps_rollup"; }
device_stat() { vmm_qmp "$1" x-ballast-stats | sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p"; }

# resize NAME PID MIB: waits until it is so; its time is in $took_ms, the VMM's CPU time in $took_cpu_ms.
resize()
{
	local begin=${EPOCHREALTIME/[.,]/} cpu
	cpu=$(cpu_ms "$2")
	vmm_qmp "$1" balloon "{\"value\": $(($3 * MIB))}" >/dev/null
	WAIT_POLL=0.02 wait_for 120 actual_is "$1" "$3" || die "kvm_guest_driver_$1" "$(actual_mib "$1") MiB, wanted $3"
	took_ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
	took_cpu_ms=$(($(cpu_ms "$2") - cpu))
}
declare -A in_ms=()
measure() # NAME PID
{
	local in in_cpu before exits_in huge
	kvm_wait_up 120 "$1" "$2" GUEST-UP || die "kvm_guest_driver_$1" "no GUEST-UP"
	before=$(exits "$2") huge=$(anon_huge_mib "$2")
	resize "$1" "$2" $LEFT
	in=$took_ms in_cpu=$took_cpu_ms exits_in=$(($(exits "$2") - before))
	huge+=,$(anon_huge_mib "$2")
	in_ms[$1]=$in
	resize "$1" "$2" $VMM_MIB
	echo "RESULT balloon guest=$1 mib=1024 inflate_ms=$in inflate_cpu_ms=$in_cpu inflate_exits=$exits_in deflate_ms=$took_ms" \
		"deflate_cpu_ms=$took_cpu_ms huge_mib=$huge"
}

VMM_INITRD=$RUN/stock.initrd vmm_start stock-vmm 6.12 1 "ballast.mode=job $GUEST_PARAMS" --no-agent --balloon --qmp "$RUN/stock-vmm.qmp"
measure stock-vmm "$VMM_PID"
stock_discards=$(device_stat stock-vmm discards)
end_process "$VMM_PID" TERM 30

VMM_INITRD=$RUN/ours.initrd vmm_start ours-vmm 6.12 1 "ballast.mode=job $GUEST_PARAMS" --no-agent --balloon --qmp "$RUN/ours-vmm.qmp"
measure ours-vmm "$VMM_PID"
vmm_qmp ours-vmm qom-set '{"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 1}' >/dev/null
check_ge kvm_guest_driver_pages $((1024 * MIB / 4096)) "$(device_stat ours-vmm inflated-pages)"
check_eq kvm_guest_driver_no_bad_frames 0 "$(device_stat ours-vmm bad-frames)"
tells_more() { [ -n "$(vmm_qmp ours-vmm qom-get '{"path": "/machine/peripheral/balloon0", "property": "guest-stats"}' |
	sed -n 's/.*"stat-ballast-given-back": *\([0-9]*\).*/\1/p')" ]; }
check kvm_guest_driver_tells_more wait_for 20 tells_more
end_process "$VMM_PID" TERM 30

kvm_microvm stock-qemu 6.12 1 "ballast.mode=job $GUEST_PARAMS" -initrd "$RUN/stock.initrd" -device virtio-balloon-device,id=balloon0 \
	-qmp "unix:$RUN/stock-qemu.qmp,server=on,wait=off"
measure stock-qemu "$QEMU_PID"
end_process "$QEMU_PID" TERM 30

kvm_microvm ours-qemu 6.12 1 "ballast.mode=job $GUEST_PARAMS" -initrd "$RUN/ours.initrd" -device virtio-balloon-device,id=balloon0 \
	-qmp "unix:$RUN/ours-qemu.qmp,server=on,wait=off"
measure ours-qemu "$QEMU_PID"
end_process "$QEMU_PID" TERM 30

ratio=$(awk -v a="${in_ms[stock-vmm]}" -v b="${in_ms[ours-vmm]}" 'BEGIN { printf "%.1f", a / b }')
qemu_ratio=$(awk -v a="${in_ms[stock-qemu]}" -v b="${in_ms[ours-qemu]}" 'BEGIN { printf "%.1f", a / b }')
echo "RESULT balloon_ratio stock_by_ours_inflate=$ratio qemu_stock_by_ours_inflate=$qemu_ratio stock_discards=$stock_discards"
check kvm_guest_driver_faster awk -v r="$ratio" 'BEGIN { exit !(r >= 2) }'
