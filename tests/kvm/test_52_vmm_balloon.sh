#!/usr/bin/env bash
# timeout: 400
# The balloon and memory hotplug of ballast-vmm with both kernels, seen from outside as the process's memory (PSS): in, out,
# statistics, free pages that the guest reports by itself; memory plugged, used, and unplugged again.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_balloon
MIB=$((1 << 20))

# The guest fills memory, says so, frees it, and waits for what it can see of what the host does.
cat >"$RUN/job" <<'END'
total() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
mount -t tmpfs -o size=90% fill /tmp
dd if=/dev/urandom of=/tmp/one bs=1M count=1 2>/dev/null
fill() { i=0; while [ $i -lt $1 ]; do cat /tmp/one; i=$((i + 1)); done >/tmp/$2; }
fill 100 a
echo "GUEST-FILLED"
rm /tmp/a
echo "GUEST-FREED"
# Hotplug: as soon as it is there, use it.
n=0
until [ "$(total)" -gt 300000 ]; do sleep 0.2; n=$((n + 1)); [ $n -lt 600 ] || exit 1; done
echo "GUEST-PLUGGED $(total)"
# Its size was a share of the memory that there was when it was mounted.
mount -o remount,size=400M /tmp
fill 280 b
[ "$(wc -c </tmp/b)" = $((280 * 1048576)) ] || exit 1
echo "GUEST-USED $(sha256sum </tmp/b)"
sleep 5 # for the host to look
rm /tmp/b
sync; echo 3 >/proc/sys/vm/drop_caches
echo "GUEST-UNUSED"
n=0
until [ "$(total)" -lt 250000 ]; do sleep 0.2; n=$((n + 1)); [ $n -lt 600 ] || exit 1; done
echo "GUEST-UNPLUGGED $(total)"
END

mem_kib() { awk '/^Pss:/ { print $2 }' "/proc/$1/smaps_rollup"; }
mem_below() { [ "$(mem_kib "$1")" -le "$2" ]; }
actual() { vmm_qmp "$1" query-balloon | sed -n 's/.*"actual": *\([0-9]*\).*/\1/p'; }
actual_below() { [ "$(actual "$1")" -le "$2" ]; }
actual_above() { [ "$(actual "$1")" -ge "$2" ]; }
device_stat() { vmm_qmp "$1" x-ballast-stats | sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p"; }
quiet() { "$@" >/dev/null; }
guest_stat() { vmm_qmp "$1" qom-get '{"path": "/machine/peripheral/balloon0", "property": "guest-stats"}' |
	sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p"; }
stats_known() { [ "$(guest_stat "$1" stat-total-memory)" -gt 0 ] 2>/dev/null; }

for release in "${KVM_RELEASES[@]}"; do
	vm=balloon-$release test=kvm_balloon_${release/./_}
	kvm_job "$release" "$RUN/$vm.initrd" "$RUN/job"
	VMM_INITRD=$RUN/$vm.initrd vmm_start "$vm" "$release" 1 "ballast.mode=job ballast.then=sleep memhp_default_state=online_movable" \
		--no-agent --balloon --hotplug 512M --qmp "$RUN/$vm.qmp"
	pid=$VMM_PID
	if ! kvm_wait_up 90 "$vm" "$pid" GUEST-FREED; then
		fail "$test" "no GUEST-FREED"
		end_process "$pid" KILL
		continue
	fi

	# The guest freed 100 MiB: it reports them, some seconds later, in blocks of 2 MiB or more.
	check "${test}_reports" wait_for 90 mem_below "$pid" $((130 * 1024))
	idle=$(mem_kib "$pid")
	echo "# $release: PSS with its free pages reported: $idle KiB of $((VMM_MIB * 1024))"
	check_ge "${test}_reported" $((90 * MIB)) "$(device_stat "$vm" reported-bytes)"

	# Statistics.
	check "${test}_stats_on" quiet vmm_qmp "$vm" qom-set \
		'{"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 1}'
	check "${test}_stats" wait_for 20 stats_known "$vm"
	vmm_qmp "$vm" qom-get '{"path": "/machine/peripheral/balloon0", "property": "guest-stats"}' | sed 's/^/# /'
	check_ge "${test}_stats_total" $(((VMM_MIB - 60) * MIB)) "$(guest_stat "$vm" stat-total-memory)"
	updated=$(guest_stat "$vm" last-update)
	newer() { [ "$(guest_stat "$vm" last-update)" -gt "$updated" ]; }
	check "${test}_stats_again" wait_for 20 newer

	# In, and out again. Reporting has taken the free pages already: what the balloon takes are its frames, discarded.
	check "${test}_in" quiet vmm_qmp "$vm" balloon "{\"value\": $((160 * MIB))}"
	check "${test}_in_reached" wait_for 60 actual_below "$vm" $((161 * MIB))
	check_ge "${test}_inflated" $((90 * 256)) "$(device_stat "$vm" inflated-pages)"
	check_eq "${test}_bad_frames" 0 "$(device_stat "$vm" bad-frames)"
	echo "# $release: PSS with $(($(actual "$vm") / MIB)) MiB left to the guest: $(mem_kib "$pid") KiB"
	check "${test}_in_is_gone" mem_below "$pid" $((idle + 4096))
	check "${test}_out" quiet vmm_qmp "$vm" balloon "{\"value\": $((256 * MIB))}"
	check "${test}_out_reached" wait_for 60 actual_above "$vm" $((255 * MIB))

	# Hotplug: 256 MiB more. The guest fills them, frees them, and gives them back.
	check "${test}_plug" quiet vmm_qmp "$vm" qom-set \
		"{\"path\": \"/machine/peripheral/vmem0\", \"property\": \"requested-size\", \"value\": $((256 * MIB))}"
	check "${test}_plugged" kvm_wait_up 90 "$vm" "$pid" GUEST-PLUGGED
	check "${test}_used" kvm_wait_up 90 "$vm" "$pid" GUEST-USED
	used=$(mem_kib "$pid")
	echo "# $release: PSS when 280 MiB are used: $used KiB; $(vmm_qmp "$vm" query-memory-size-summary)"
	check_ge "${test}_used_is_there" $((280 * 1024)) "$used"
	check "${test}_unused" kvm_wait_up 90 "$vm" "$pid" GUEST-UNUSED
	check "${test}_unplug" quiet vmm_qmp "$vm" qom-set \
		'{"path": "/machine/peripheral/vmem0", "property": "requested-size", "value": 0}'
	check "${test}_unplugged" kvm_wait_up 90 "$vm" "$pid" GUEST-UNPLUGGED
	check_eq "${test}_unplugged_all" 0 \
		"$(vmm_qmp "$vm" query-memory-size-summary | sed -n 's/.*"plugged-memory": *\([0-9]*\).*/\1/p')"
	check "${test}_unplugged_is_gone" wait_for 60 mem_below "$pid" $((idle + 40000))
	echo "# $release: PSS in the end: $(mem_kib "$pid") KiB"
	check "${test}_job" kvm_wait_up 20 "$vm" "$pid" "GUEST-JOB status=0"
	check "${test}_quit" quiet vmm_qmp "$vm" quit
	vmm_wait "$pid"
	check_eq "${test}_ends" 0 "$VMM_STATUS"
done
