#!/usr/bin/env bash
# timeout: 290
# Pages under DMA: a stock guest moves checked content between its memory and a disk that QEMU has open with O_DIRECT, so
# that the kernel writes guest memory behind the page tables, while the daemon merges as fast as it can. No wrong
# byte; and what the guest broke in store mappings is left alone, unlike in a guest without such a disk.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

SECONDS_RUN=${SECONDS_RUN:-10}

stock_init direct_io
truncate -s 64M "$RUN/direct.img" "$RUN/buffered.img"
start_daemon "${STOCK_DAEMON[@]}" || die direct_io_daemon "ballastd does not start"
stock_start direct 1 ballast.mode=disk \
	-drive file="$RUN/direct.img",if=none,id=disk,format=raw,cache=none,aio=native -device virtio-blk-pci,drive=disk
# The control: the same, but through the host's page cache.
stock_start buffered 2 ballast.mode=disk \
	-drive file="$RUN/buffered.img",if=none,id=disk,format=raw,cache=writeback -device virtio-blk-pci,drive=disk
# Migration of pages all the while: Linux 6.18 moves a page that was under migration and reports EEXIST (merge.c, arrived()).
[ -w /proc/sys/vm/compact_memory ] &&
	start "$RUN/compact.log" bash -c 'while echo 1 >/proc/sys/vm/compact_memory; do sleep 0.2; done'
stock_ready direct_io direct buffered

# has_direct NAME: does QEMU have its image open with O_DIRECT (octal 040000)?
has_direct()
{
	local f flags
	for f in /proc/"${STOCK_PID[$1]}"/fd/*; do
		[[ $(readlink "$f") = *.img ]] || continue
		flags=$(sed -n 's/^flags:\t//p' "/proc/${STOCK_PID[$1]}/fdinfo/${f##*/}")
		[ $((8#$flags & 8#40000)) -ne 0 ] && return
	done
	return 1
}
has_direct direct || skip_all direct_io "QEMU does not open the image with O_DIRECT here"
has_direct buffered && die direct_io_control "the control has an O_DIRECT descriptor as well"

wait_for 40 vms_reach merged_pages_total 5000 direct || die direct_io_merges "nothing is merged"
wait_for 40 vms_reach merged_pages_total 5000 buffered || die direct_io_merges "nothing is merged"
sleep "$SECONDS_RUN"
take_status || die direct_io_status "ballastctl status fails"
show_vms direct buffered

# Each worker's last line, added up.
disk_sum() # NAME KEY
{
	local id v sum=0
	for id in 0 1 2 3; do
		v=$(line_value "$1" "DISK id=$id" "$2")
		sum=$((sum + ${v:-0}))
	done
	echo $sum
}
for vm in direct buffered; do
	echo "# $vm: $(disk_sum $vm iter) pages checked, $(($(disk_sum $vm bytes) >> 20)) MiB transferred"
	check direct_io_${vm}_runs alive "${STOCK_PID[$vm]}"
	check_eq direct_io_${vm}_errors 0 "$(disk_sum $vm errors)"
	check_eq direct_io_${vm}_error_lines 0 \
		"$(grep -ac 'ERROR\|GUEST-FAILED\|Kernel panic\|I/O error' "$RUN/$vm.console")"
	check_ge direct_io_${vm}_checked 20000 "$(disk_sum $vm iter)"
	check_ge direct_io_${vm}_transferred $((64 << 20)) "$(disk_sum $vm bytes)"
	check_ge direct_io_${vm}_merged 5000 "$(vm_value $vm merged_pages_total)"
	check_ge direct_io_${vm}_broken 2000 "$(vm_value $vm broken_pages_total)"
done
# How many merged again: what broke and is neither broken now nor discarded.
again() # NAME
{
	echo $(($(vm_value "$1" broken_pages_total) - $(vm_value "$1" broken_pages) - \
		$(vm_value "$1" discarded_pages_total)))
}
check_store direct_io direct buffered
check_eq direct_io_direct_broken_left_alone 0 "$(again direct)"
check_ge direct_io_direct_refused 100 "$(vm_value direct pinned_pages_total)"
check_ge direct_io_buffered_merged_again 500 "$(again buffered)"
check direct_io_daemon_runs alive "$DAEMON_PID"

# The same with pins that last, on the agent library: fixed buffers of an io_uring. The control first: with a VMM that
# denies its DMA, broken pages merge under the device, and that must be noticed.
end_process "${STOCK_PID[direct]}" KILL
end_process "${STOCK_PID[buffered]}" KILL
pinned_value() { sed -n "s/^PINNED .*$2=\([0-9]*\).*/\1/p" "$RUN/$1.log"; }
pinned() # NAME ARG...
{
	timeout 100 "$BUILD/tests/tool_pinned" "$1" "$RUN/scratch" "${@:2}" >"$RUN/$1.log" 2>&1
}
pinned deny --deny
rc=$?
if [ $rc -eq 77 ]; then
	skip direct_io_pinned "$(tail -n 1 "$RUN/deny.log")"
	exit
fi
check_ge direct_io_pinned_control_errors 1 "$(pinned_value deny errors)"
pinned forget --forget
check_ge direct_io_pins_control_errors 1 "$(pinned_value forget errors)"
for vm in pinned pins; do
	if [ $vm = pins ]; then pinned $vm --pins; else pinned $vm; fi
	rc=$?
	grep -v '^ballast:' "$RUN/$vm.log" | sed 's/^/# /'
	check_eq direct_io_${vm}_status 0 $rc
	check_eq direct_io_${vm}_errors 0 "$(pinned_value $vm errors)"
	check_ge direct_io_${vm}_reads 5000 "$(pinned_value $vm reads)"
	check_ge direct_io_${vm}_others_merged 7000 "$(pinned_value $vm others_merged)"
	check_eq direct_io_${vm}_anon_merged 0 "$(pinned_value $vm anon_merged)"
	check_ge direct_io_${vm}_anon_refused 256 "$(pinned_value $vm anon_refused)"
	check_eq direct_io_${vm}_broken_merged 0 "$(pinned_value $vm broken_merged)"
	check_ge direct_io_${vm}_broken_refused 256 "$(pinned_value $vm broken_refused)"
	check_eq direct_io_${vm}_merges_afterwards 1 "$(pinned_value $vm merged_after)"
done
check direct_io_daemon_survives alive "$DAEMON_PID"
