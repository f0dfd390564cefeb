#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# make bench-tiers: a process whose memory is 1.2, 1.5 and 2 times what its memory cgroup may have (tierguest.c), at the speed of memory
# and with real faults, under
#   zram     the kernel's reclaim to swap on zram (lz4); what zram takes counts against the limit, as a pool of ours does
#   file     the kernel's reclaim to a swap file
#   pager    no swap: Ballast's pager, told by the policy (its defaults, mode = act), which looks at the cgroup; the daemon is in it
# ONLY="zram pager", FACTORS="1.5", MIB (of the process) take other parts and sizes. Swap and zram are as they were afterwards.
. "$(dirname "$0")/../../tests/lib.sh"
. tests/live/stock/stock.sh

mib=${MIB:-4096} hot=${HOT_PERCENT:-40} fill=${FILL_MIB_PER_S:-48} warm=${WARM_SECONDS:-30} measure=${SECONDS_MEASURED:-20}
out=$BUILD/bench/tiers
cgroups=/sys/fs/cgroup/memory
[ "$(id -u)" -eq 0 ] || die bench_tiers "must run as root: it limits memory, and adds swap"
[ -w $cgroups ] && [ -e $cgroups/memory.limit_in_bytes ] || die bench_tiers "needs the memory controller of cgroup v1"
[ "$(tail -n +2 /proc/swaps | wc -l)" -eq 0 ] || die bench_tiers "this host has swap: it would serve the pager, too"
[ -x "$BUILD/tierguest" ] || die bench_tiers "$BUILD/tierguest is not built"
mkdir -p "$out"
: >"$out/results.txt"

group=$cgroups/ballast-bench.$$
remove_group() { [ ! -d "$group" ] || wait_for 20 rmdir "$group"; }
cleanup remove_group

# --- swap ----------------------------------------------------------------------------------------------

zram=
swap_on() # zram|file
{
	if [ "$1" = zram ]; then
		zram=$(cat /sys/class/zram-control/hot_add) || die bench_tiers "no zram"
		echo lz4 >/sys/block/zram$zram/comp_algorithm
		echo $((2 * mib))M >/sys/block/zram$zram/disksize
		swap=/dev/zram$zram
	else
		swap=$out/swapfile
		head -c $((2 * mib << 20)) /dev/zero >"$swap" && chmod 600 "$swap"
	fi
	mkswap "$swap" >/dev/null 2>&1 && swapon "$swap" || die bench_tiers "swapon $swap fails"
}
swap_off()
{
	[ -z "$swap" ] || ! grep -q "^$swap" /proc/swaps || swapoff "$swap"
	[ -z "$zram" ] || echo "$zram" >/sys/class/zram-control/hot_remove
	[ "$swap" != "$out/swapfile" ] || rm -f "$swap"
	zram='' swap=''
}
swap=
cleanup swap_off

# What zram takes is the process's, too: the limit is less by that, looked at ten times a second.
charge_zram() # LIMIT-BYTES
{
	while sleep 0.1; do
		used=$(awk '{ print $3 }' "/sys/block/zram$zram/mm_stat")
		echo $(($1 - used)) >"$group/memory.limit_in_bytes" 2>/dev/null
	done
}

# --- one run -------------------------------------------------------------------------------------------

ended() { ! alive "$guest"; }
contend() # WHO FACTOR
{
	local who=$1 limit guest mode=plain charger= line killed cpu0 cpu1
	limit=$(awk -v m="$mib" -v f="$2" 'BEGIN { printf "%.0f", int(m / f) * 1048576 }')
	remove_group
	mkdir "$group" && echo "$limit" >"$group/memory.limit_in_bytes" || die bench_tiers "cannot make $group"
	if [ "$who" = pager ]; then
		mode=agent
		# shellcheck disable=SC2016,SC2034
		DAEMON_WRAP=(bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group")
		start_daemon policy.mode=act policy.cgroup="$group" 'vm "*".min=16MiB' || die bench_tiers "ballastd does not start"
	else
		swap_on "$who"
		if [ "$who" = zram ]; then
			charge_zram "$limit" &
			charger=$!
			cleanup end_process $charger
		fi
	fi
	rm -f "$RUN/guest.log"
	cpu0=$(awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat)
	# shellcheck disable=SC2016
	start "$RUN/guest.log" bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" \
		"$BUILD/tierguest" guest $mode "$mib" "$hot" "$fill" "$warm" "$measure"
	guest=$PID
	wait_for $((mib / fill * 3 + warm + measure + 120)) ended || echo "# $who does not end"
	cpu1=$(awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat)
	line=$(sed -n 's/^TIER //p' "$RUN/guest.log")
	killed=$(sed -n 's/^oom_kill //p' "$group/memory.oom_control")
	if [ "$who" = pager ]; then
		cp "$DAEMON_LOG" "$out/pager-$2.ballastd.log"
		stop_daemon
	fi
	end_process "$guest" KILL
	[ -z "$charger" ] || end_process "$charger"
	[ "$who" = pager ] || swap_off
	echo "RESULT tiers who=$who overcommit=$2 mib=$mib oom_kills=${killed:-0} ${line:-ops_per_s=0}" \
		"peak_mib=$(($(cat "$group/memory.max_usage_in_bytes") >> 20)) host_cpu_s=$(((cpu1 - cpu0) / 100))" | tee -a "$out/results.txt"
	remove_group
}

value() { sed -n "s/^RESULT tiers who=$1 overcommit=$2 .* ops_per_s=\([0-9]*\).*/\1/p" "$out/results.txt"; }
for factor in ${FACTORS:-1.2 1.5 2}; do
	for who in ${ONLY:-zram file pager}; do contend "$who" "$factor"; done
	ratios=
	for who in zram file; do
		[ -n "$(value pager "$factor")" ] && [ -n "$(value $who "$factor")" ] || continue
		ratios+=" of_$who=$(awk -v a="$(value pager "$factor")" -v b="$(value $who "$factor")" 'BEGIN { printf "%.2f", b ? a / b : 0 }')"
	done
	[ -z "$ratios" ] || echo "RESULT tiers_throughput overcommit=$factor$ratios" | tee -a "$out/results.txt"
done
