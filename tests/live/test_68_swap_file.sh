#!/usr/bin/env bash
# timeout: 200
# The pager's swap file: what is compressed of a program leaves memory and comes back right, by itself and without a daemon; what does
# not compress goes there as it is; a full medium stops it, loses nothing and is said, and it goes on once there is room; a medium
# that returns wrong bytes ends the VM before it reads them; the policy uses it; a VMM that fills the disk with its file is cut.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"
. "$(dirname "$0")/stock/stock.sh"

MIB=128
tool=$BUILD/tests/tool_wset
[ -x "$tool" ] || die swapfile_built "$tool is not built"
[ "$(tail -n +2 /proc/swaps | wc -l)" -eq 0 ] || skip_all swap_file "this host has swap: what the kernel takes would not be the pager's"

# A cgroup of 1 GiB, of which so many MiB are left.
group=$RUN/group
mkdir -p "$group" "$RUN/disk" "$RUN/small"
echo $((1 << 30)) >"$group/memory.max"
left() { echo $(((1024 - $1) << 20)) >"$group/memory.current.new" && mv "$group/memory.current.new" "$group/memory.current"; }
left 600

settings=(scan.cpu_percent=100 scan.interval=100ms scan.idle_interval=1s policy.interval=500ms policy.cgroup="$group" policy.swap_keep=0
	'vm "*".share=zero-only' 'vm "*".min=16MiB')
port=$(free_port)
start_daemon "${settings[@]}" policy.mode=observe policy.swap_dir="$RUN/disk" metrics.port="$port" ||
	die swapfile_daemon "ballastd does not start"
declare -A PIDS=()
program() # NAME [raw]
{
	start "$RUN/$1.log" "$tool" "$1" $MIB 5 "${@:2}"
	PIDS[$1]=$PID
	wait_for 20 vms_connected "$1" || die swapfile_connected "$1 does not connect"
	wait_for 20 grep -q ready "$RUN/$1.log" || die swapfile_ready "$1 is not ready"
}
rss_mib() { echo $(($(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/${PIDS[$1]}/status") / 1024)); }
reaches() { take_status && [ "$(vm_value "$1" "$2")" -ge "$3" ]; }
out_reaches() { ctl page-out "$1" $MIB"M" >/dev/null && sleep 0.2 && reaches "$1" paged_pages "$2"; }
# To its file, all but what is being filled.
file_takes() { ctl swap-out "$1" $MIB"M" >/dev/null && sleep 0.2 && take_status && [ "$(vm_value "$1" pool_bytes)" -le 1048576 ]; }
errors_of()
{
	kill -USR1 "${PIDS[$1]}"
	wait_for 30 grep -q errors= "$RUN/$1.log"
	grep -o 'errors=[0-9]*' "$RUN/$1.log" | tail -n 1
	: >"$RUN/$1.log"
}

# --- out and back ----------------------------------------------------------------------------------------

program packs
before=$(rss_mib packs)
expect swapfile_out 30 out_reaches packs 24000
pool=$(vm_value packs pool_bytes)
expect swapfile_takes 20 file_takes packs
echo "# packs: $(vm_value packs paged_pages) pages out, $((pool >> 20)) MiB compressed, $(mib packs swap_file_bytes) MiB in its file; RSS $before MiB before, $(rss_mib packs) now"
expect swapfile_has_it 5 reaches packs swap_file_bytes $((pool * 8 / 10))
check_ge swapfile_memory_is_free 80 $((before - $(rss_mib packs)))
has_series() { scrape "$port" | grep -q "$1"; }
expect swapfile_metric 5 has_series '^ballast_vm_swap_file_bytes{vm="packs"} [1-9]'
check_eq swapfile_right errors=0 "$(errors_of packs)"
expect swapfile_is_read 10 reaches packs swap_file_read_pages_total 20000
file_is_empty() { take_status && [ "$(vm_value packs swap_file_bytes)" -le $((16 * 65536)) ]; }
expect swapfile_is_empty 10 file_is_empty
expect swapfile_histogram 5 has_series '^ballast_vm_fault_seconds_count{vm="packs",kind="paged"} [1-9][0-9][0-9]'
scrape "$port" | grep '^ballast_vm_fault_seconds.*paged' | sed 's/^/# /' | tail -n 9

# What does not compress is kept as it is, and only in the file.
program raw raw
before=$(rss_mib raw)
raw_out() { ctl page-out raw $MIB"M" >/dev/null && sleep 0.2 && reaches raw swap_file_bytes $((90 << 20)); }
expect swapfile_raw_goes_out 30 raw_out
echo "# raw: $(mib raw swap_file_bytes) MiB in its file, RSS $before MiB before, $(rss_mib raw) now"
check_ge swapfile_raw_memory_is_free 80 $((before - $(rss_mib raw)))
check_eq swapfile_raw_right errors=0 "$(errors_of raw)"

# --- without a daemon -------------------------------------------------------------------------------------

expect swapfile_out_again 30 out_reaches packs 24000
expect swapfile_takes_again 20 file_takes packs
kill_daemon
check_eq swapfile_right_without_a_daemon errors=0 "$(errors_of packs)"
# From here on files are on a medium of 8 MiB; who has one keeps it.
mount -t tmpfs -o size=8m tmpfs "$RUN/small" 2>"$RUN/mount.log" || skip_all swapfile_full "cannot mount a tmpfs: $(cat "$RUN/mount.log")"
umount_small() { wait_for 10 umount "$RUN/small" 2>/dev/null; }
cleanup umount_small
start_daemon "${settings[@]}" policy.mode=observe policy.swap_dir="$RUN/small" || die swapfile_restart "ballastd does not start again"
wait_for 10 vms_connected packs raw || die swapfile_reconnect "the agents do not come back"
expect swapfile_old_file_again 30 out_reaches packs 24000
expect swapfile_old_file_takes 20 file_takes packs
expect swapfile_beyond_the_small_one 5 reaches packs swap_file_bytes $((9 << 20))

# --- a full medium -----------------------------------------------------------------------------------------

program full raw
ctl page-out full $MIB"M" >/dev/null
expect swapfile_full_fails 20 reaches full swap_file_failures_total 1
log_says() { grep -q "$1" "$DAEMON_LOG"; }
expect swapfile_full_is_said 5 log_says 'VM full: its swap file fails: No space left on device'
sleep 1
ctl page-out full $MIB"M" >/dev/null
check_ge swapfile_full_keeps_to_it 1 $(($(take_status && vm_value full swap_file_bytes) <= 8 << 20))
check_eq swapfile_full_right errors=0 "$(errors_of full)"
mount -o remount,size=256m "$RUN/small"
works_again() { ctl page-out full $MIB"M" >/dev/null && sleep 0.3 && reaches full swap_file_bytes $((60 << 20)); }
expect swapfile_goes_on 30 works_again
expect swapfile_goes_on_is_said 5 log_says 'VM full: its swap file is tried again'
check_eq swapfile_goes_on_right errors=0 "$(errors_of full)"

# --- a medium that lies ------------------------------------------------------------------------------------

expect swapfile_out_to_a_liar 30 works_again
fd=$(find "/proc/${PIDS[full]}/fd" -lname "$RUN/small/*" -printf '%f\n' -quit)
[ -n "$fd" ] || die swapfile_fd "full has no file there"
head -c 128M /dev/urandom | dd of="/proc/${PIDS[full]}/fd/$fd" bs=1M conv=notrunc status=none
ended() { ! alive "${PIDS[full]}"; }
kill -USR1 "${PIDS[full]}"
expect swapfile_liar_ends_it 20 ended
check_eq swapfile_liar_is_not_read '' "$(grep -o 'errors=.*' "$RUN/full.log")"

# --- the policy --------------------------------------------------------------------------------------------

stop_daemon
start_daemon "${settings[@]}" policy.mode=act policy.swap_dir="$RUN/disk" || die swapfile_act "ballastd does not start again"
wait_for 10 vms_connected packs raw || die swapfile_act_connect "the agents do not come back"
sleep 2
left 8
expect swapfile_policy_uses_it 40 reaches raw swap_file_bytes $((60 << 20))
left 600
said() { grep -q "$1" <<<"$(ctl explain raw 2>&1)"; }
check swapfile_is_explained said 'in its swap file'
ctl explain raw | sed 's/^/# /' | head -n 8
check_eq swapfile_policy_right errors=0 "$(errors_of raw)"
check_eq swapfile_packs_right errors=0 "$(errors_of packs)"

# --- who writes more than it has ----------------------------------------------------------------------------

program hostile
fd=
has_file() { fd=$(find "/proc/${PIDS[hostile]}/fd" -lname "$RUN/disk/*deleted*" -printf '%f\n' -quit) && [ -n "$fd" ]; }
expect swapfile_hostile_has_one 5 has_file
blocks() { stat -Lc %b "/proc/${PIDS[hostile]}/fd/$fd"; }
# 128 MiB of memory, an eighth, and 16 MiB; the cut may come while it still writes.
is_cut() { [ "$(blocks)" -le $((160 << 11)) ] && log_says 'VM hostile .* has written .* more than it has memory'; }
head -c 200M /dev/zero | dd of="/proc/${PIDS[hostile]}/fd/$fd" bs=1M conv=notrunc status=none
expect swapfile_hostile_is_cut 10 is_cut
check_eq swapfile_hostile_right errors=0 "$(errors_of hostile)"

# --- who cannot --------------------------------------------------------------------------------------------

check_eq swapfile_nobody 1 "$(ctl swap-out nobody 1M >/dev/null 2>&1; echo $?)"
check_eq swapfile_bad_size 2 "$(ctl swap-out raw much >/dev/null 2>&1; echo $?)"
check swapfile_daemon_runs alive "$DAEMON_PID"
