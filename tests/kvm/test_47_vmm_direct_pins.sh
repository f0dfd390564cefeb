#!/usr/bin/env bash
# timeout: 500
# Two stock guests in ballast-vmm move checked content between their memory and disks that are read and written past the host's
# page cache, so that the device writes guest memory itself, while the daemon merges as fast as it can: pages under such I/O are
# pinned, and refused; no byte is wrong. (live/test_42_direct_io.sh, by pins instead of descriptors.)
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

VMM_MIB=192
kvm_init kvm_direct_pins
thp=/sys/kernel/mm/transparent_hugepage/enabled
cleanup eval "echo $(sed 's/.*\[\(.*\)\].*/\1/' $thp) >$thp"
echo never >$thp

# Direct I/O needs a file system that has it (the emulated host's /tmp is tmpfs).
truncate -s 128M "$RUN/fs.img"
mkfs.ext4 -q "$RUN/fs.img" && mkdir -p "$RUN/fs" && mount -o loop "$RUN/fs.img" "$RUN/fs" ||
	die kvm_direct_pins_fs "cannot mount an ext4 image"
cleanup umount "$RUN/fs"

start_daemon scan.interval=60s scan.idle_interval=60s || die kvm_direct_pins_daemon "ballastd does not start"
ctl pause
seed=0
for vm in a b; do
	seed=$((seed + 1))
	truncate -s 32M "$RUN/fs/$vm.img"
	vmm_start $vm 6.12 1 "ballast.mode=disk ballast.seed=$seed" --qmp "$RUN/$vm.qmp" --disk "path=$RUN/fs/$vm.img,direct"
	STOCK_PID[$vm]=$VMM_PID
done
stock_ready kvm_direct_pins a b
stop_daemon
start_daemon "${STOCK_DAEMON[@]}" ${KVM_DAEMON[@]+"${KVM_DAEMON[@]}"} || die kvm_direct_pins_daemon "ballastd does not start"
wait_for 30 vms_connected a b || die kvm_direct_pins_connect "the agents do not come back"
kvm_each_reaches 150 merged_pages_total 2000 a b
vms_reach_in_all() { take_status && [ "$(vms_sum "$1" a b)" -ge "$2" ]; }
# The emulated host's disk is memory, and so fast that the daemon seldom meets a page under I/O.
check kvm_direct_pins_refused wait_for 120 vms_reach_in_all pinned_pages_total 1
disk_sum() # NAME KEY
{
	local id v sum=0
	for id in 0 1 2 3; do
		v=$(line_value "$1" "DISK id=$id" "$2")
		sum=$((sum + ${v:-0}))
	done
	echo $sum
}
enough() { [ "$(disk_sum "$1" iter)" -ge 5000 ] && [ "$(disk_sum "$1" bytes)" -ge $((16 << 20)) ]; }
for vm in a b; do
	check kvm_direct_pins_${vm}_moves_on wait_for 120 enough $vm
done
take_status || die kvm_direct_pins_status "ballastctl status fails"
show_vms a b
for vm in a b; do
	echo "# $vm: $(disk_sum $vm iter) pages checked, $(($(disk_sum $vm bytes) >> 20)) MiB transferred"
	check kvm_direct_pins_${vm}_runs alive "${STOCK_PID[$vm]}"
	check_eq kvm_direct_pins_${vm}_errors 0 "$(disk_sum $vm errors)"
	check_eq kvm_direct_pins_${vm}_error_lines 0 "$(grep -ac 'ERROR\|GUEST-FAILED\|Kernel panic\|I/O error' "$RUN/$vm.console")"
	check_ge kvm_direct_pins_${vm}_merged 2000 "$(vm_value $vm merged_pages_total)"
done
check_store kvm_direct_pins a b
check kvm_direct_pins_daemon_runs alive "$DAEMON_PID"
for vm in a b; do
	end_process "${STOCK_PID[$vm]}" TERM 30
done
