#!/usr/bin/env bash
# timeout: 600
# Eight clones of one booted guest: each is up without reading the snapshot, their memory is the domain's store until they
# write it, each goes on with the right bytes, and a daemon that is killed changes nothing for them.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

CLONES=8
kvm_init kvm_vmm_clones

# A guest with content of its own in memory, which it checks at every tenth tick.
cat >"$RUN/job" <<'END'
head -c 24m /dev/urandom >/data/file
sum=$(md5sum </data/file)
n=0 state=unchecked
while :; do
	[ $((n % 10)) -eq 9 ] && { [ "$(md5sum </data/file)" = "$sum" ] && state=right || state=WRONG; }
	echo "TICK $n $state"
	n=$((n + 1))
	sleep 1
done
END
kvm_job 6.12 "$RUN/initrd" "$RUN/job"
# Rare looks: what the clones share is of the image. The image itself is loaded at the pace of the budget.
DAEMON=(scan.cpu_percent=40 scan.interval=10s scan.idle_interval=60s)
start_daemon "${DAEMON[@]}" || die kvm_vmm_clones_daemon "ballastd does not start"
VMM_INITRD=$RUN/initrd vmm_start origin 6.12 1 "ballast.mode=job" --no-agent --qmp "$RUN/origin.qmp"
begin=${EPOCHREALTIME/[.,]/}
kvm_wait_up 120 origin "$VMM_PID" "TICK 0" || die kvm_vmm_clones_up "no ticks"
cold_ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
check kvm_vmm_clones_origin_right wait_for 60 vmm_console origin "right" 1
check kvm_vmm_clones_snapshot eval "vmm_qmp origin x-ballast-snapshot-save '{\"directory\": \"$RUN/snap\"}' >/dev/null"
end_process "$VMM_PID" TERM 30

number() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p"; }
names=() pids=()
for ((i = 1; i <= CLONES; i++)); do
	begin=${EPOCHREALTIME/[.,]/}
	vmm_run "c$i" --restore "$RUN/snap" --qmp "$RUN/c$i.qmp"
	names+=("c$i") pids+=("$VMM_PID")
	STOCK_PID["c$i"]=$VMM_PID
	kvm_wait_up 60 "c$i" "$VMM_PID" TICK || die "kvm_vmm_clones_c$i" "no ticks"
	answer_ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
	stats=$(vmm_qmp "c$i" x-ballast-stats)
	pages=$(number image-pages <<<"$stats")
	echo "RESULT kvm_clone nr=$i start_us=$(number start-us <<<"$stats") answer_ms=$answer_ms cold_boot_ms=$cold_ms image_pages=$pages"
	check_ge "kvm_vmm_clones_c${i}_from_image" 6144 "${pages:-0}"
done

pss=0 rss=0
for pid in "${pids[@]}"; do
	pss=$((pss + $(awk '$1 == "Pss:" { print $2 }' "/proc/$pid/smaps_rollup")))
	rss=$((rss + $(awk '$1 == "Rss:" { print $2 }' "/proc/$pid/smaps_rollup")))
done
take_status || die kvm_vmm_clones_status "ballastctl status fails"
show_vms "${names[@]}"
shared=$(vms_sum shared_pages "${names[@]}")
echo "RESULT kvm_clones nr=$CLONES guest_mib=$VMM_MIB pss_kib=$pss rss_kib=$rss shared_pages=$shared snapshot_kib=$(($(stat -c %b "$RUN/snap/memory") / 2))"
# The 24 MiB that are alike in all of them are there once, and not eight times.
check_ge kvm_vmm_clones_shared $((CLONES * 6144)) "$shared"
check_ge kvm_vmm_clones_pss_is_less "$pss" $((rss / 2))

# Its death costs no clone a byte or a stall; the next one finds the sharing again.
kill_daemon
checked() { [ "$(grep -ac right "$RUN/$1.console")" -ge "$2" ]; }
for name in "${names[@]}"; do
	check "kvm_vmm_clones_${name}_goes_on" wait_for 90 checked "$name" $(($(grep -ac right "$RUN/$name.console") + 11))
done
start_daemon "${DAEMON[@]}" || die kvm_vmm_clones_restart "ballastd does not start again"
wait_for 60 vms_connected "${names[@]}" || die kvm_vmm_clones_reconnect "the agents do not come back"
check kvm_vmm_clones_sharing_found wait_for 60 vms_reach shared_pages 6144 "${names[@]}"
check_store kvm_vmm_clones --images "${names[@]}"
for ((i = 0; i < CLONES; i++)); do
	name=${names[i]}
	check "kvm_vmm_clones_${name}_never_wrong" eval "! grep -aq WRONG '$RUN/$name.console'"
	end_process "${pids[i]}" TERM 30
done
check kvm_vmm_clones_daemon_runs alive "$DAEMON_PID"
