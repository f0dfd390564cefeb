#!/usr/bin/env bash
# timeout: 120
# part of: make check
# The test host is what the other tests need: a KVM that runs a stock kernel, the kernel interfaces that Ballast is built
# on, and what a host of VMs has besides.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"

kvm_init kvm_host
check kvm_host_kvm_runs_a_kernel timeout 30 build/guest/kvm-probe

timeout 30 "$BUILD/tests/tool_kernel" >"$RUN/kernel.log" 2>&1
sed 's/^/# /' "$RUN/kernel.log"
for feature in probe move scan tun; do
	check kvm_host_$feature grep -qx "$feature ok" "$RUN/kernel.log"
done

# A memory cgroup that can be limited and reclaimed from.
memory_cgroup()
{
	local cg=/sys/fs/cgroup/ballast-test-$$
	mkdir $cg || return
	cleanup rmdir $cg
	echo $((64 << 20)) >$cg/memory.max && [ "$(cat $cg/memory.max)" = $((64 << 20)) ] && [ -w $cg/memory.reclaim ] &&
		[ -r $cg/memory.pressure ]
}
check kvm_host_cgroup2 memory_cgroup
check kvm_host_psi grep -q ^some /proc/pressure/memory
check kvm_host_mglru test -e /sys/kernel/mm/lru_gen/enabled
check kvm_host_ksm test -w /sys/kernel/mm/ksm/run
check kvm_host_zswap test -e /sys/module/zswap/parameters/enabled
check kvm_host_vhost test -c /dev/vhost-net -a -c /dev/vhost-vsock
check kvm_host_loopback sh -c "busybox ping -c 1 -W 5 127.0.0.1 >/dev/null"

if [ "${BALLAST_TESTHOST:-}" = emulated ]; then
	# Swap on a machine that somebody uses is theirs; here nobody does.
	zram_swap()
	{
		echo 64M >/sys/block/zram0/disksize && busybox mkswap /dev/zram0 >/dev/null && busybox swapon /dev/zram0 &&
			grep -q ^/dev/zram0 /proc/swaps && busybox swapoff /dev/zram0 && echo 1 >/sys/block/zram0/reset
	}
	check kvm_host_zram_swap zram_swap
	check kvm_host_tree_read_only eval "! touch tests/written 2>/dev/null"
	check kvm_host_build_writable eval "touch '$BUILD/tests/written' && rm '$BUILD/tests/written'"
fi
