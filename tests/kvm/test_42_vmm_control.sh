#!/usr/bin/env bash
# timeout: 500
# ballast-vmm's control socket with a running guest: status, stop, cont, the power button, statistics, reset, quit; and a
# snapshot that is restored, twice, while the first one runs on.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_vmm_control

# A guest that counts, says how often the power button was pressed and what its random number generator was told, and
# echoes what it is sent.
cat >"$RUN/job" <<'EOF'
n=0
# The button's driver: without it the event is off.
insmod /button.ko
while :; do
	echo "TICK $n button=$(tr -s ' ' </sys/firmware/acpi/interrupts/ff_pwr_btn | cut -d' ' -f2) gpe=$(tr -s ' ' </sys/firmware/acpi/interrupts/gpe00 | cut -d' ' -f2)"
	n=$((n + 1))
	sleep 0.2
done
EOF
deb=$(ls build/cache/linux-image-6.12.*-cloud-amd64_*.deb | head -n 1)
dpkg-deb --fsys-tarfile "$deb" | tar -xO --wildcards './lib/modules/*/kernel/drivers/acpi/button.ko.xz' |
	busybox xzcat >"$RUN/button.ko" || die kvm_vmm_control_button "no button.ko in $deb"
kvm_job 6.12 "$RUN/initrd" "$RUN/job" "$RUN/button.ko"
VMM_INITRD=$RUN/initrd vmm_start a 6.12 2 "ballast.mode=job" --no-agent --qmp "$RUN/a.qmp"
kvm_wait_up 90 a "$VMM_PID" "TICK 3" || die kvm_vmm_control_up "no ticks"
a=$VMM_PID

ticks() { tr -d '\r' <"$RUN/$1.console" | sed -n 's/^TICK \([0-9]*\) .*gpe.*/\1/p' | tail -n 1; }
beyond() { [ "$(ticks "$1")" -gt "$2" ]; }
quiet() { "$@" >/dev/null; }
said() { vmm_qmp "$@" | grep -q -- "$WANT"; }

check_eq kvm_vmm_socket_mode 600 "$(stat -c %a "$RUN/a.qmp")"
WANT='"status":"running"' check kvm_vmm_query_running said a query-status
check kvm_vmm_stop quiet vmm_qmp a stop
WANT='"status":"paused"' check kvm_vmm_query_paused said a query-status
sleep 0.5
stopped=$(ticks a)
sleep 2
check_eq kvm_vmm_stopped_is_still "$stopped" "$(ticks a)"
check kvm_vmm_cont quiet vmm_qmp a cont
check kvm_vmm_goes_on wait_for 20 beyond a $((stopped + 3))

check kvm_vmm_powerdown quiet vmm_qmp a system_powerdown
check kvm_vmm_button wait_for 20 vmm_console a 'button=1' 1
WANT='"io":[0-9]' check kvm_vmm_stats_exits said a x-ballast-stats
check kvm_vmm_unknown_command eval '! vmm_qmp a migrate >/dev/null'

# --- snapshot: while it runs; then it runs on
check kvm_vmm_snapshot quiet vmm_qmp a x-ballast-snapshot-save "{\"directory\": \"$RUN/snap\"}"
at=$(ticks a)
check_eq kvm_vmm_snapshot_mode 700 "$(stat -c %a "$RUN/snap")"
check kvm_vmm_snapshot_goes_on wait_for 20 beyond a $((at + 3))
check kvm_vmm_snapshot_not_over_one eval "! vmm_qmp a x-ballast-snapshot-save '{\"directory\": \"$RUN/snap\"}' >/dev/null"
echo "# memory file: $(stat -c '%s bytes, %b blocks of 512' "$RUN/snap/memory")"
check_ge kvm_vmm_snapshot_sparse $(($(stat -c %b "$RUN/snap/memory") * 512 + 1)) "$(stat -c %s "$RUN/snap/memory")"

# restored NAME: goes on from where the snapshot was, and is told of its new generation
restored()
{
	local name=$1 begin=${EPOCHREALTIME/[.,]/} first
	vmm_run "$name" --restore "$RUN/snap" --no-agent --qmp "$RUN/$name.qmp"
	if ! kvm_wait_up 60 "$name" "$VMM_PID" "gpe=1"; then
		fail "kvm_vmm_restore_$name" "no ticks, or no generation interrupt"
		return
	fi
	pass "kvm_vmm_restore_$name"
	echo "RESULT kvm_restore vmm=ballast-vmm wall_ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))"
	first=$(tr -d '\r' <"$RUN/$name.console" | sed -n 's/^TICK \([0-9]*\) .*/\1/p' | head -n 1)
	check_ge "kvm_vmm_restore_${name}_where_it_was" $((at - 5)) "$first"
	check "kvm_vmm_restore_${name}_not_later" test "$first" -le $((at + 3))
	wait_for 20 beyond "$name" $((first + 3))
	check_eq "kvm_vmm_restore_${name}_complains" "" "$(cat "$RUN/$name.log")"
	check "kvm_vmm_restore_${name}_quit" quiet vmm_qmp "$name" quit
	vmm_wait "$VMM_PID"
	check_eq "kvm_vmm_restore_${name}_status" 0 $VMM_STATUS
	check "kvm_vmm_restore_${name}_socket_gone" test ! -e "$RUN/$name.qmp"
}
sum=$(cksum "$RUN/snap/memory")
restored b
restored c
check_eq kvm_vmm_snapshot_unchanged "$sum" "$(cksum "$RUN/snap/memory")"

# A damaged snapshot is refused in one line.
refused() # TEST TEXT ARG...
{
	local test=$1 text=$2
	shift 2
	timeout -k 1 30 "$VMM" "${VMM_ARGS[@]}" --no-agent "$@" >"$RUN/out" 2>"$RUN/refused.log" </dev/null
	check_eq "${test}_status" 1 $?
	check_eq "${test}_lines" 1 "$(wc -l <"$RUN/refused.log")"
	check "${test}_says" grep -qF "$text" "$RUN/refused.log"
}
mkdir "$RUN/bad" && head -c 20000 "$RUN/snap/state" >"$RUN/bad/state" && ln "$RUN/snap/memory" "$RUN/bad/memory"
refused kvm_vmm_restore_damaged damaged --restore "$RUN/bad"
cp "$RUN/snap/state" "$RUN/bad/state" && rm "$RUN/bad/memory" && truncate -s 1M "$RUN/bad/memory"
refused kvm_vmm_restore_short_memory damaged --restore "$RUN/bad"
refused kvm_vmm_restore_other_memory "leave these options out" --restore "$RUN/snap" --memory 512M
refused kvm_vmm_restore_other_devices "other devices" --restore "$RUN/snap" --rng

# --- reset, and the end
check kvm_vmm_reset quiet vmm_qmp a system_reset
check kvm_vmm_reset_boots_again wait_for 90 vmm_console a "GUEST-UP" 2
check kvm_vmm_quit quiet vmm_qmp a quit
vmm_wait "$a"
check_eq kvm_vmm_quit_status 0 $VMM_STATUS
