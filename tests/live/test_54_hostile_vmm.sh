#!/usr/bin/env bash
# timeout: 300
# VMMs whose memory hangs whoever reads it, that stop in the middle of merging, or that lie about what they did. The
# daemon answers its administrator within two seconds all the while, the other VMs go on merging, without an error,
# and nothing of the hostile one is left when it is gone.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

TOOL=$BUILD/tests/tool_vmm
NOBODY=65534
[ -x "$TOOL" ] || die vmm "$TOOL is not built"

fds() { ls "/proc/$DAEMON_PID/fd" 2>/dev/null | wc -l; }
threads() { ls "/proc/$DAEMON_PID/task" 2>/dev/null | wc -l; }
fds_at_most() { [ "$(fds)" -le "$1" ]; }
threads_at_most() { [ "$(threads)" -le "$1" ]; }
said() { grep -q -e "$2" "$RUN/$1.out"; }
logged() { tail -c "+$((log_from + 1))" "$DAEMON_LOG" | grep -q -e "$1"; }
log_count() { tail -c "+$((log_from + 1))" "$DAEMON_LOG" | grep -c -e "$1"; }

# hostile NAME ARG...: its pid is in $hostile.
hostile()
{
	rm -f "$RUN/$1.out"
	start "$RUN/$1.out" "$TOOL" "$@"
	hostile=$PID
}

# The longest that a status takes, over six of them and some two seconds.
responsive() # NAME
{
	local i begin ms worst=0
	for ((i = 0; i < 6; i++)); do
		begin=${EPOCHREALTIME/[.,]/}
		take_status || worst=100000
		ms=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000))
		[ $ms -le $worst ] || worst=$ms
		[ $worst -le 2000 ] || break
		sleep 0.3
	done
	echo "# $1: a status takes up to $worst ms"
	check_ge "vmm_$1_responsive" 1 $((worst <= 2000))
}

# The honest VMs merge on: at least a fifth of what they merge when they are alone.
RATE_SECONDS=3
alone=
merges_on() # NAME
{
	local merged
	wait_for 20 take_status
	merged=$(vms_sum merged_pages_total a b)
	sleep $RATE_SECONDS
	wait_for 20 take_status
	merged=$(($(vms_sum merged_pages_total a b) - merged))
	echo "# $1: $merged pages merged in $RATE_SECONDS s${alone:+, $alone when alone}"
	alone=${alone:-$merged}
	check_ge "vmm_$1_others_merge" $((alone / 5 + 1)) $merged
	check_eq "vmm_$1_others_errors" "0 0" "$(flat_value a errors) $(flat_value b errors)"
}

begin() { log_from=$(stat -c %s "$DAEMON_LOG"); }

# The hostile one is killed, and nothing of it stays.
gone() # NAME
{
	end_process "$hostile" KILL
	check "vmm_$1_gone" wait_for 20 vm_gone "$1"
	check "vmm_$1_descriptors_back" wait_for 10 fds_at_most "$fds_at_start"
	check "vmm_$1_threads_back" wait_for 10 threads_at_most "$threads_at_start"
	responsive "$1_after"
	merges_on "$1_after"
}

flat_init vmm
start_daemon scan.cpu_percent=50 scan.interval=100ms scan.idle_interval=1s || die vmm_daemon "ballastd does not start"
flat_start a 1
a=$PID
flat_start b 2
b=$PID
wait_for 60 vms_reach shared_pages 8000 a b || die vmm_honest "only $(vms_sum shared_pages a b) shared pages"
# Its figures come once a second.
both_speak() { [ -n "$(flat_value a errors)" ] && [ -n "$(flat_value b errors)" ]; }
wait_for 10 both_speak
begin
# They have merged what there was; what they merge from here on is what they break.
sleep $RATE_SECONDS
merges_on control
check_ge vmm_control_merges 300 "$alone"
fds_at_start=$(($(fds) + 3))
threads_at_start=$(threads)

# --- memory that hangs -----------------------------------------------------------------------------

begin
hostile hang
wait_for 20 said hang hanging || fail vmm_hang_hangs "$(cat "$RUN/hang.out")"
check vmm_hang_noticed wait_for 20 logged "VM hang .*does not let its memory be read"
responsive hang
merges_on hang
check_eq vmm_hang_one_line 1 "$(log_count 'does not let its memory')"
take_status
check_ge vmm_hang_counted 1 "$(host_value blocked_readers_total)"
# Reads are let through again.
kill -USR1 "$hostile"
check vmm_hang_recovers wait_for 20 logged 'VM hang .*can be read again'
gone hang
# Killed while a reader hangs in it.
begin
hostile hang
wait_for 20 said hang hanging || fail vmm_hang_again "$(cat "$RUN/hang.out")"
check vmm_hang_again_noticed wait_for 20 logged "VM hang .*does not let its memory be read"
gone hang

# Three of them at once.
begin
hostile hang
more=("$hostile")
hostile hang
more+=("$hostile")
hostile hang
three() { [ "$(log_count 'does not let its memory')" -ge 3 ]; }
check vmm_three_noticed wait_for 30 three
responsive three
merges_on three
end_process "${more[0]}" KILL
end_process "${more[1]}" KILL
gone hang

# --- a page that hangs when it is compared with another VM's ----------------------------------------

# Its pages are known first; then they hang, and then a VM comes that has the same ones. That one must not suffer.
end_process "$a" TERM 20
end_process "$b" TERM 20
check_eq vmm_before_decoy_errors "0 0" "$(flat_value a errors) $(flat_value b errors)"
check_ge vmm_before_decoy_accesses 10000000 "$(flat_value a accesses)"
check vmm_before_decoy_store_empty wait_for 15 domain_is store_pages 0
rm -f "$RUN/a.flat" "$RUN/b.flat"
begin
hostile decoy
check vmm_decoy_known wait_for 20 vms_reach candidate_pages 4096 decoy
kill -USR1 "$hostile"
wait_for 10 said decoy hanging || fail vmm_decoy_hangs "$(cat "$RUN/decoy.out")"
flat_start a 1
a=$PID
flat_start b 2
b=$PID
check vmm_decoy_others_share wait_for 30 vms_reach shared_pages 8000 a b ||
	echo "# only $(vms_sum shared_pages a b) pages"
check_eq vmm_decoy_blames_no_other 0 "$(log_count 'VM [ab] .*does not let its memory')"
responsive decoy
merges_on decoy
gone decoy
wait_for 40 vms_reach shared_pages 8000 a b || fail vmm_decoy_after "only $(vms_sum shared_pages a b) shared pages"

# --- memory that is slow ----------------------------------------------------------------------------

# Just under the time limit, page after page: the VM pays for that, and not the others.
begin
hostile slow 900
wait_for 20 said slow slow || fail vmm_slow_slow "$(cat "$RUN/slow.out")"
responsive slow
merges_on slow
gone slow

# --- a VMM that stops -------------------------------------------------------------------------------

begin
flat_start c 3
c=$PID
check vmm_stop_is_merging wait_for 30 vms_reach merged_pages_total 500 c
kill -STOP "$c"
responsive stop
merges_on stop
check_eq vmm_stop_no_complaint 0 "$(log_count 'warning')"
# Its queue does not grow while it does not answer.
check_ge vmm_stop_memory_bounded 1 $(($(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$DAEMON_PID/status") < 200000))
merged=$(vms_sum merged_pages_total c)
kill -CONT "$c"
check vmm_stop_goes_on wait_for 20 vms_reach merged_pages_total $((merged + 500)) c
check_eq vmm_stop_connected true "$(vm_value c connected)"
# Killed while it is stopped.
kill -STOP "$c"
check_eq vmm_stop_errors 0 "$(flat_value c errors)"
end_process "$c" KILL
check vmm_stop_gone wait_for 10 vm_gone c
merges_on stop_after

# --- a VMM that lies --------------------------------------------------------------------------------

begin
hostile liar
check vmm_liar_lies wait_for 30 said liar 'lied [0-9]\{4,\}'
responsive liar
# An hour of CPU a request, it says: the budget is that of all VMs.
merges_on liar
# It has 8,192 pages and has merged none. What the kernel shows is what counts.
truth() { vms_reach shared_pages 0 liar && [ "$(vm_value liar shared_pages)" -le 100 ]; }
check vmm_liar_is_found_out wait_for 20 truth || echo "# status: liar shares $(vm_value liar shared_pages) pages"
check_outside vmm_liar_a_outside a "$a"
check_outside vmm_liar_b_outside b "$b"
gone liar

# --- what is done with the store's descriptor -------------------------------------------------------

store_fd=
for fd in "/proc/$DAEMON_PID/fd"/*; do
	[[ $(readlink "$fd") == *ballast-store:default* ]] && store_fd=$fd
done
store_kib() { echo $(($(stat -L -c %b "$store_fd") / 2)); }
# Not more than its pages, and a little for what is freed with the next slice.
store_is_lean()
{
	take_status && [ "$(store_kib)" -le $(($(domain_value store_pages) * 4 + 8192)) ]
}
check vmm_eat_before wait_for 10 store_is_lean
begin
hostile eat 256
wait_for 20 said eat 'ate 256' || fail vmm_eat_eats "$(cat "$RUN/eat.out")"
check vmm_eat_gone wait_for 10 vm_gone eat
check vmm_eat_memory_is_back wait_for 20 store_is_lean ||
	echo "# the store has $(store_kib) KiB for $(domain_value store_pages) pages"

if [ "$(id -u)" != 0 ]; then
	skip vmm_write "only root can become another user"
else
	chmod 711 "$RUN" # the socket's own mode lets others connect
	timeout 20 "$TOOL" write $NOBODY >"$RUN/write.out" 2>&1
	check_eq vmm_write_tries 7 "$(grep -c ': no$\|WORKED' "$RUN/write.out")"
	check_eq vmm_write_none_worked 0 "$(grep -c WORKED "$RUN/write.out")"
	sed 's/^/# write: /' "$RUN/write.out"
fi

# ----------------------------------------------------------------------------------------------------

end_process "$a" TERM 20
end_process "$b" TERM 20
for vm in a b; do
	flat_show $vm
	check_eq vmm_${vm}_ended_in_order 1 "$(flat_value $vm final)"
	check_eq vmm_${vm}_errors 0 "$(flat_value $vm errors)"
	check_ge vmm_${vm}_accesses 10000000 "$(flat_value $vm accesses)"
done
check vmm_store_empty wait_for 15 domain_is store_pages 0 ||
	echo "# $(domain_value store_pages) pages left, $(domain_value store_refs) references"
check vmm_refs_zero wait_for 5 domain_is store_refs 0
check vmm_index_empty wait_for 15 domain_is index_entries 0
check vmm_daemon_runs alive "$DAEMON_PID"
check vmm_stops stop_daemon
