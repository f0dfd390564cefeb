#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# make bench-policy: stock guests whose loads peak at different times (tests/guest/burst.c), on a host of half their memory:
# a memory cgroup. The same guests, the same work, the same time, under
#   roomy     a host that has memory for all (what could be had, at most)
#   fits      no overcommit: as many of the guests as fit
#   today     the kernel's KSM with ksmtuned's rules, and Proxmox's ballooning (rival.c)
#   ballast   ballastd with its defaults and mode = act
# ONLY="today ballast" takes some. GUESTS, MIB (each), SLOTS, SLOT_SECONDS, FLOOR (MiB): see below.
#
# build/bench/policy/ has what the guests said, and a line a second of what each had.
. "$(dirname "$0")/../../tests/lib.sh"
. tests/live/stock/stock.sh

guests=${GUESTS:-8} mib=${MIB:-768} slots=${SLOTS:-6} slot=${SLOT_SECONDS:-120} floor=${FLOOR:-128}
period=4
# What a busy guest reads: of a file that all have, of one of its own; and its anonymous memory.
common_mib=$((mib / 8)) own_mib=$((mib * 3 / 8)) anon_mib=$((mib / 8))
limit_mib=$((guests * mib / 2))
# An allowance for QEMU's own memory, beside a guest's.
overhead_mib=${OVERHEAD:-100}
# Disks like the slower ones of clouds.
iops=${IOPS:-100}
out=$BUILD/bench/policy
cgroups=/sys/fs/cgroup/memory

[ "$(id -u)" -eq 0 ] || die bench_policy "must run as root: it limits memory, and sets KSM"
[ -w $cgroups ] && [ -e $cgroups/memory.limit_in_bytes ] || die bench_policy "needs the memory controller of cgroup v1"
stock_init bench_policy
[ -x "$BUILD/rival" ] || die bench_policy "$BUILD/rival is not built"
mkdir -p "$out"

# --- disks: real files, so that they compress and repeat as files do --------------------------------

disks=$out/disks
rm -rf "$disks"
mkdir -p "$disks"
cleanup rm -rf "$disks"
# It is cut short, which tar calls a failure.
{ tar -c -C / --exclude=usr/src usr var/lib 2>/dev/null || true; } | head -c $(((common_mib + guests * own_mib) << 20)) |
	split -b $((own_mib << 20)) -d -a 2 - "$disks/own" || die bench_policy "cannot write $disks"
last=$(printf %s/own%02d "$disks" "$guests")
mv "$last" "$disks/common"
[ "$(stat -c %s "$disks/common")" -eq $((common_mib << 20)) ] ||
	die bench_policy "/usr and /var/lib have less than $((common_mib + guests * own_mib)) MiB: give fewer GUESTS or less MIB"

# --- a host ------------------------------------------------------------------------------------------

group=$cgroups/ballast-bench.$$
remove_group() { [ ! -d "$group" ] || wait_for 20 rmdir "$group"; }
host() # MIB
{
	remove_group
	mkdir "$group" && echo $(($1 << 20)) >"$group/memory.limit_in_bytes" || die bench_policy "cannot make $group"
}
cleanup remove_group
used_mib() { echo $(($(cat "$group/memory.usage_in_bytes") >> 20)); }

declare -A ksm
for key in run pages_to_scan sleep_millisecs; do ksm[$key]=$(cat /sys/kernel/mm/ksm/$key); done
ksm_back()
{
	local key
	# Nothing of it stays merged, or the next contender would begin with it.
	echo 2 >/sys/kernel/mm/ksm/run
	for key in pages_to_scan sleep_millisecs run; do echo "${ksm[$key]}" >/sys/kernel/mm/ksm/$key; done
}
cleanup ksm_back

# guest N WRAP...: it is in the cgroup before it has any memory.
guest()
{
	local n=$1 name=g$1
	shift
	rm -f "$RUN/$name".*
	mkfifo "$RUN/$name.go.in" "$RUN/$name.go.out"
	# shellcheck disable=SC2016
	start "$RUN/$name.log" bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@" "$QEMU" -name "$name" -nodefaults \
		-no-user-config -display none -no-reboot -serial "file:$RUN/$name.console" -serial "pipe:$RUN/$name.go" \
		-qmp "unix:$RUN/$name.qmp,server=on,wait=off" -qmp "unix:$RUN/$name.watch.qmp,server=on,wait=off" -accel "$STOCK_ACCEL" -m "$mib" -smp 1 \
		-kernel build/guest/vmlinuz -initrd build/guest/initrd.gz -device virtio-balloon-pci,id=balloon0 \
		-drive "file=$disks/common,format=raw,if=none,id=d0,readonly=on,cache=none,throttling.iops-total=$iops" \
		-drive "$(printf 'file=%s/own%02d' "$disks" "$n"),format=raw,if=none,id=d1,readonly=on,cache=none,throttling.iops-total=$iops" \
		-device virtio-blk-pci,drive=d0 -device virtio-blk-pci,drive=d1 \
		-append "console=ttyS0 quiet panic=-1 ballast.mode=burst ballast.burst=$n ballast.burst_period=$period \
ballast.slots=$slots ballast.slot_seconds=$slot ballast.anon_mib=$anon_mib ballast.then=sleep"
	STOCK_PID[$name]=$PID
}

actual_mib() # NAME: what the guest has
{
	local bytes
	bytes=$(qmp "$1.watch" '{"execute": "query-balloon"}' 2>/dev/null | sed -n 's/.*"actual": *\([0-9]*\).*/\1/p')
	echo $((${bytes:-0} >> 20))
}

# watch NAME...: a line a second until it is ended: time, MiB in use, MiB of each guest.
watch()
{
	local name line
	while sleep 1; do
		line="$SECONDS $(used_mib)"
		for name; do line+=" $(actual_mib "$name")"; done
		echo "$line"
		# What the policy thinks, now and then.
		[ "$who" != ballast ] || ((SECONDS % 10)) || ctl plan --json >>"$out/plans.json" 2>/dev/null
	done
}

done_or_dead() { console_has "$1" BURST-DONE || ! alive "${STOCK_PID[$1]}"; }
burst_values() { tr -d '\r' <"$RUN/$1.console" | sed -n "s/^BURST .*busy=$2 .*\b$3=\([0-9]*\).*/\1/p"; }
sum() { awk '{ s += $1 } END { print s + 0 }'; }

# contend NAME GUESTS HOST-MIB
contend()
{
	local who=$1 n names=() sockets=() nr=$2 name watcher rival= wrap=()
	echo "# $who: $nr guests of $mib MiB, a host of $3 MiB"
	host "$3"
	if [ "$who" = ballast ]; then
		wrap=("$BUILD/ballast-run")
		# shellcheck disable=SC2016,SC2034
		DAEMON_WRAP=(bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group")
		start_daemon policy.mode=act policy.cgroup="$group" "vm \"*\".min=${floor}MiB" || die bench_policy "ballastd does not start"
	fi
	for ((n = 0; n < nr; n++)); do
		names+=("g$n") sockets+=("$RUN/g$n.qmp")
		guest $n "${wrap[@]}"
		# One after the other: they boot as fast as two at a time.
		((n % 2)) && wait_for $STOCK_READY_S console_has "g$n" GUEST-READY
	done
	for name in "${names[@]}"; do
		wait_for $STOCK_READY_S console_has "$name" GUEST-READY || die bench_policy "$who: guest $name is not ready"
	done
	echo "# $who: $(used_mib) MiB in use when all are ready"
	if [ "$who" = today ]; then
		start "$out/$who.rival" "$BUILD/rival" "$group" "$floor" "${sockets[@]}"
		rival=$PID
	fi
	watch "${names[@]}" >"$out/$who.seconds" 2>/dev/null &
	watcher=$!
	cleanup end_process $watcher
	local cpu0 cpu1
	cpu0=$(awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat)
	for name in "${names[@]}"; do echo go >"$RUN/$name.go.in"; done
	for name in "${names[@]}"; do wait_for $((slots * slot + 60)) done_or_dead "$name"; done
	cpu1=$(awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat)
	end_process $watcher

	local busy rest p99 killed lowest ended=0
	busy=$(for name in "${names[@]}"; do burst_values "$name" 1 units; done | sum)
	rest=$(for name in "${names[@]}"; do burst_values "$name" 0 units; done | sum)
	p99=$(for name in "${names[@]}"; do burst_values "$name" 1 p99_us; done | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] + 0 }')
	killed=$(sed -n 's/^oom_kill //p' "$group/memory.oom_control")
	for name in "${names[@]}"; do
		alive "${STOCK_PID[$name]}" && console_has "$name" BURST-DONE && ! console_has "$name" "Out of memory" || ended=$((ended + 1))
		cp "$RUN/$name.console" "$out/$who.$name.console"
	done
	lowest=$(awk '{ for (i = 3; i <= NF; i++) if ($i > 0 && (!low || $i < low)) low = $i } END { print low + 0 }' "$out/$who.seconds")
	echo "RESULT policy who=$who guests=$nr units=$busy rest_units=$rest p99_us=$p99 oom_kills=${killed:-0} guests_failed=$ended" \
		"lowest_mib=$lowest peak_used_mib=$(($(cat "$group/memory.max_usage_in_bytes") >> 20))" \
		"host_cpu_s=$(((cpu1 - cpu0) / 100))" | tee -a "$out/results.txt"

	if [ "$who" = ballast ]; then
		ctl status --json >"$out/$who.status.json"
		for name in "${names[@]}"; do ctl explain "$name"; done >"$out/$who.explain" 2>&1
		ctl plan >"$out/$who.plan" 2>&1
		cp "$DAEMON_LOG" "$out/$who.ballastd.log"
	fi
	[ -z "$rival" ] || end_process "$rival"
	for name in "${names[@]}"; do end_process "${STOCK_PID[$name]}"; done
	if [ "$who" = ballast ]; then stop_daemon; fi
	if [ "$who" = today ]; then ksm_back; fi
	remove_group
}

: >"$out/results.txt"
rm -f "$out/plans.json"
for who in ${ONLY:-roomy fits today ballast}; do
	case $who in
	roomy) contend roomy "$guests" $((limit_mib * 2 + guests * overhead_mib)) ;;
	fits) contend fits $((limit_mib / (mib + overhead_mib))) "$limit_mib" ;;
	*) contend "$who" "$guests" "$limit_mib" ;;
	esac
done

units() { sed -n "s/^RESULT policy who=$1 .* units=\([0-9]*\).*/\1/p" "$out/results.txt"; }
ratios=
for who in roomy fits today; do
	[ -n "$(units ballast)" ] && [ -n "$(units $who)" ] || continue
	ratios+=" of_$who=$(awk -v a="$(units ballast)" -v b="$(units $who)" 'BEGIN { printf "%.2f", b ? a / b : 0 }')"
done
[ -z "$ratios" ] || echo "RESULT policy_work$ratios" | tee -a "$out/results.txt"
