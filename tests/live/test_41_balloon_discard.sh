#!/usr/bin/env bash
# timeout: 240
# Memory that a guest gives back: QEMU's balloon discards merged pages (MADV_DONTNEED on 4 KiB each). Their store
# references are dropped, host memory comes back, and what the guest uses again after the deflation is right.
#
# Two guests check their memory and read a disk with the same content over and over through their page cache, which is what
# the balloon takes from them. Guest b does not zero pages when it allocates them (init_on_alloc=0): its balloon gets
# pages that are still shared; a's are written, so broken, a moment before they are discarded.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

BALLOON_MIB=${BALLOON_MIB:-104}
declare -A passes=()

# guest NAME SEED PARAMETERS
guest()
{
	truncate -s 96M "$RUN/$1.img"
	stock_start "$1" "$2" "ballast.mode=check-disk ballast.check_mib=32 ballast.disk_direct=0 ballast.disk_quiet=1 $3" \
		-drive file="$RUN/$1.img",if=none,id=disk,format=raw,cache=writeback -device virtio-blk-pci,drive=disk \
		-device virtio-balloon-pci,id=balloon
}

balloon_actual() { qmp "$1" '{"execute": "query-balloon"}' | sed -n 's/.*"actual": *\([0-9]*\).*/\1/p'; }
balloon_below() { [ "$(balloon_actual "$1")" -le $2 ]; }
balloon_above() { [ "$(balloon_actual "$1")" -ge $2 ]; }
balloon() { qmp "$1" "{\"execute\": \"balloon\", \"arguments\": {\"value\": $2}}" >/dev/null; }
disk_passes() { line_value "$1" 'DISK id=0' passes; }
disk_passes_reach() { local v; v=$(disk_passes "$1"); [ "${v:-0}" -ge "$2" ]; }

stock_init balloon_discard
start_daemon "${STOCK_DAEMON[@]}" || die balloon_discard_daemon "ballastd does not start"
guest a 1 ''
guest b 2 init_on_alloc=0
stock_ready balloon_discard a b
for vm in a b; do
	wait_for 60 disk_passes_reach $vm 1 || die balloon_discard_fill "$vm does not get through its disk"
done
wait_for 40 vms_reach shared_pages 40000 a b || die balloon_discard_merges "only $(vms_sum shared_pages a b) shared pages"

outside a b && take_status || die balloon_discard_outside "no count"
show_vms a b
pages=$(out pages) frames=$(out frames) refs=$(domain_value store_refs) shared=$(vms_sum shared_pages a b)
pss=$(($(pss_kib a) + $(pss_kib b)))
echo "# before: pages $pages frames $frames store_pages $(out store_pages) PSS $pss KiB"

for vm in a b; do
	balloon $vm $((BALLOON_MIB << 20)) || die balloon_discard_qmp "$vm refuses the balloon command"
done
for vm in a b; do
	wait_for 60 balloon_below $vm $(((BALLOON_MIB + 4) << 20)) ||
		die balloon_discard_inflate "$vm: $(($(balloon_actual $vm) >> 20)) MiB are left"
done
refs_dropped() { take_status && [ "$(domain_value store_refs)" -le $((refs - 10000)) ]; }
check balloon_discard_refs_dropped wait_for 15 refs_dropped
outside a b && take_status || die balloon_discard_outside "no count"
show_vms a b
pss_small=$(($(pss_kib a) + $(pss_kib b)))
echo "# inflated: pages $(out pages) frames $(out frames) store_pages $(out store_pages) PSS $pss_small KiB"
for vm in a b; do
	check_ge balloon_discard_${vm}_discarded 4000 "$(vm_value $vm discarded_pages_total)"
done
check_ge balloon_discard_outside_pages 20000 $((pages - $(out pages)))
check_ge balloon_discard_outside_frames 8000 $((frames - $(out frames)))
check_ge balloon_discard_pss_kib 30000 $((pss - pss_small))
# No guest takes more than it was left with. The kernel's zero page, where the daemon looked at a hole, takes nothing.
for i in 1 2; do
	resident=$(($(out guest${i}_pages) - $(out guest${i}_zero_kernel_pages)))
	echo "# guest $i: $(out guest${i}_pages) pages, $resident of them with memory"
	check_ge balloon_discard_guest${i}_resident 1 $((resident <= (BALLOON_MIB + 4) * 256))
done
off=$(($(vms_sum shared_pages a b) - $(out store_pages)))
check_ge balloon_discard_outside_agrees 1 $((${off#-} * 5 <= $(out store_pages)))

for vm in a b; do
	passes[$vm]=$(disk_passes $vm)
	balloon $vm $((STOCK_MIB << 20))
done
for vm in a b; do
	wait_for 60 balloon_above $vm $((STOCK_MIB << 20)) || die balloon_discard_deflate "$vm does not deflate"
done
check balloon_discard_a_uses_it_again wait_for 60 disk_passes_reach a $((passes[a] + 2))
check balloon_discard_b_uses_it_again wait_for 60 disk_passes_reach b $((passes[b] + 2))
check balloon_discard_shared_again wait_for 40 vms_reach shared_pages $((shared * 8 / 10)) a b

outside a b && take_status || die balloon_discard_outside "no count"
show_vms a b
pss_end=$(($(pss_kib a) + $(pss_kib b)))
echo "# deflated: pages $(out pages) frames $(out frames) store_pages $(out store_pages) PSS $pss_end KiB;" \
	"disk passes $(disk_passes a) $(disk_passes b)"
check_ge balloon_discard_pages_again $((pages * 8 / 10)) "$(out pages)"
check_ge balloon_discard_pss_at_most 1 $((pss_end <= pss * 5 / 4))
for vm in a b; do
	check_guest balloon_discard $vm 1000000
	check_eq balloon_discard_${vm}_disk_errors 0 "$(line_value $vm 'DISK id=0' errors)"
	check_ge balloon_discard_${vm}_disk_checked 50000 "$(line_value $vm 'DISK id=0' iter)"
done
check_store balloon_discard a b
check balloon_discard_daemon_runs alive "$DAEMON_PID"
