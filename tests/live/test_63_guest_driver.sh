#!/usr/bin/env bash
# timeout: 400
# Our balloon driver in stock guests (Debian's 6.12 and 6.1) under stock QEMU: most of the memory taken and given back, huge pages
# first, statistics, random targets, a guest that needs its memory while it is taken, unbind and bind, unload. And the stock
# driver under the same need, which lets the guest kill a process.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

stock_init driver
timeout 200 tests/guest/build.sh --all || die driver_guests "tests/guest/build.sh --all fails"
MIB=2048 # the kernel keeps some 170 MiB for itself and as its reserve, however large the guest
TARGETS=${TARGETS:-200}

# guest NAME RELEASE ours|stock: commands to it go to $RUN/NAME.in.
guest()
{
	local name=$1 release=$2 dir=build/guest initrd=$RUN/$1.initrd ko
	[ "$release" = 6.12 ] || dir=build/guest/$release
	cp "$dir/initrd.gz" "$initrd"
	if [ "$3" = ours ]; then
		ko=$(tests/guest/driver.sh "$release") || die driver_build "guest-driver/ does not build for $release"
		# Linux unpacks archives that follow one another.
		(cd "$(dirname "$ko")" && echo ballast_balloon.ko | cpio -o -H newc -R 0:0 --quiet | gzip -1) >>"$initrd"
	fi
	mkfifo "$RUN/$name.in" "$RUN/$name.out"
	start_qemu "$name" -accel "$STOCK_ACCEL" -m $MIB -smp 1 -kernel "$dir/vmlinuz" -initrd "$initrd" \
		-append "console=ttyS0 quiet panic=-1 ballast.mode=serve" -serial "pipe:$RUN/$name" \
		-device virtio-balloon-pci,id=balloon0,free-page-reporting=on
	STOCK_PID[$name]=$QEMU_PID
	wait_for $STOCK_READY_S __stock_up_or_dead "$name"
	console_has "$name" GUEST-READY || die "${name}_ready" "the guest is not ready"
}
# run NAME COMMAND...: in the guest; its output is on the console.
dones() { grep -ac GUEST-DONE "$RUN/$1.console"; }
more_dones() { [ "$(dones "$1")" -gt "$2" ]; }
run()
{
	local name=$1 before
	shift
	before=$(dones "$name")
	echo "$*" >"$RUN/$name.in"
	wait_for 60 more_dones "$name" "$before" || fail "${name}_answers" "no answer to: $*"
}
# figure NAME COMMAND: a number that the guest prints
figure()
{
	run "$1" "echo FIGURE \$($2)"
	tr -d '\r' <"$RUN/$1.console" | sed -n 's/^FIGURE //p' | tail -n 1
}
actual_mib() { echo $(($(qmp "$1" '{"execute": "query-balloon"}' | sed -n 's/.*"actual": *\([0-9]*\).*/\1/p') >> 20)); }
actual_is() { [ "$(actual_mib "$1")" = "$2" ]; }
actual_at_least() { [ "$(actual_mib "$1")" -ge "$2" ]; }
actual_at_most() { [ "$(actual_mib "$1")" -le "$2" ]; }
target() { qmp "$1" "{\"execute\": \"balloon\", \"arguments\": {\"value\": $(($2 << 20))}}" >/dev/null; }
pss_mib() { echo $(($(pss_kib "$1") >> 10)); }
pss_at_most() { [ "$(pss_mib "$1")" -le "$2" ]; }
stat_of() # NAME STATISTIC
{
	qmp "$1" '{"execute": "qom-get", "arguments": {"path": "/machine/peripheral/balloon0", "property": "guest-stats"}}' |
		sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p"
}
has_stats() { local v; v=$(stat_of "$1" stat-available-memory); [ -n "$v" ] && [ "$v" -lt $((1 << 40)) ]; }
MEM_TOTAL="meminfo MemTotal"
kills() { grep -aciE 'oom-kill|Out of memory: Killed' "$RUN/$1.console"; }
expect() # TEST SECONDS CMD...
{
	local test=$1 seconds=$2
	shift 2
	if wait_for "$seconds" "$@"; then pass "$test"; else fail "$test" "not within $seconds s: $*"; fi
}

for release in ${RELEASES:-6.12 6.1}; do
	vm=driver_${release/./_}
	guest $vm $release ours
	before=$(pss_mib $vm)
	total=$(figure $vm "$MEM_TOTAL")
	check_eq ${vm}_loaded 1 "$(figure $vm "ls /sys/bus/virtio/drivers/ballast_balloon | grep -c virtio")"

	# Nine tenths, and the memory is really the host's.
	low=$((MIB / 10))
	target $vm $low
	expect ${vm}_taken 60 actual_at_most $vm $((low + 16))
	echo "# $vm: $(actual_mib $vm) MiB left, PSS $before -> $(pss_mib $vm) MiB"
	expect ${vm}_memory_is_the_hosts 20 pss_at_most $vm $((before - MIB / 2))
	qmp $vm '{"execute": "qom-set", "arguments": {"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 1}}' >/dev/null
	expect ${vm}_statistics 20 has_stats $vm
	check_ge ${vm}_statistics_total 1 $(($(stat_of $vm stat-total-memory) >> 20 <= MIB))
	target $vm $MIB
	expect ${vm}_given_back 60 actual_is $vm $MIB

	# Targets that nobody waits for; then one that must be met to the page.
	seed=$RANDOM
	echo "# $vm: seed $seed"
	RANDOM=$seed
	for ((i = 0; i < TARGETS; i++)); do
		target $vm $((200 + RANDOM % (MIB - 200)))
	done
	target $vm 333
	expect ${vm}_random_targets 60 actual_is $vm 333

	# The guest needs it all while it is taken.
	target $vm 256
	expect ${vm}_taken_again 60 actual_at_most $vm 256
	run $vm 'dd if=/dev/zero of=/data/need bs=1M count=700 && echo NEED-MET && rm /data/need'
	check ${vm}_need_is_met grep -aq '^NEED-MET' "$RUN/$vm.console"
	check_eq ${vm}_nothing_killed 0 "$(kills $vm)"
	check ${vm}_gave_back_by_itself actual_at_least $vm 700
	echo "# $vm: $(actual_mib $vm) MiB after the need, target 256"

	# Unbound and bound: a reset of the device.
	run $vm 'cd /sys/bus/virtio/drivers/ballast_balloon; d=$(ls -d virtio*); echo $d >unbind; echo $d >bind; cd /'
	target $vm 400
	expect ${vm}_works_after_reset 60 actual_is $vm 400
	run $vm 'rmmod ballast_balloon'
	check_eq ${vm}_unloaded_gives_all "$total" "$(figure $vm "$MEM_TOTAL")"
	check_eq ${vm}_no_complaint 0 "$(grep -acE 'BUG|WARNING|Oops|Call Trace' "$RUN/$vm.console")"
	end_process "${STOCK_PID[$vm]}" TERM 20
done

# The same need with the stock driver.
vm=stock
guest $vm 6.12 stock
target $vm 256
expect driver_stock_taken 60 actual_at_most $vm 256
run $vm 'dd if=/dev/zero of=/data/need bs=1M count=700 && echo NEED-MET'
check_ge driver_stock_kills 1 "$(kills $vm)"
