#!/usr/bin/env bash
# timeout: 240
# The working set by samples: programs that read a known part of their memory, of which no write tells anything. Within 10% of
# what it is; it follows a change; no page that was a sample comes back wrong; observing takes no samples.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"

MIB=256
tool=$BUILD/tests/tool_wset
[ -x "$tool" ] || die wset_built "$tool is not built"
settings=(scan.cpu_percent=100 scan.interval=100ms scan.idle_interval=1s policy.interval=200ms policy.samples=400
	policy.sample_interval=1s 'vm "*".share=zero-only')
start_daemon "${settings[@]}" policy.mode=observe || die wset_daemon "ballastd does not start"
declare -A PIDS=()
for percent in 20 60; do
	start "$RUN/w$percent.log" "$tool" "w$percent" $MIB $percent
	PIDS[$percent]=$PID
done
wait_for 20 vms_connected w20 w60 || die wset_connected "the agents do not connect"
is_ready() { grep -q ready "$RUN/w20.log" && grep -q ready "$RUN/w60.log"; }
wait_for 20 is_ready || die wset_ready "the programs are not ready"
working_set() { ctl explain "$1" --json 2>/dev/null | sed -n 's/.*"working_set_bytes": *\([0-9]*\).*/\1/p'; }
sleep 3
check_eq wset_observing_takes_no_samples ' 0' "$(working_set w20) $(take_status && vm_value w20 paged_out_pages_total)"

write_config "${settings[@]}" policy.mode=act && kill -HUP "$DAEMON_PID"
# In thousandths of the memory that the program has, out or not.
permille()
{
	local ws
	ws=$(working_set "$1")
	echo $((${ws:-0} * 1000 / (MIB << 20)))
}
# The mean of readings over ten seconds: what the estimate is, and not what it happens to be at one moment.
mean()
{
	local sum=0 i
	for ((i = 0; i < 20; i++)); do
		sum=$((sum + $(permille "$1")))
		sleep 0.5
	done
	echo $((sum / 20))
}
sleep 15
for percent in 20 60; do
	is=$(mean w$percent)
	echo "# $percent% in use: $((is / 10)).$((is % 10))% by samples, $((is * 100 / (percent * 10) - 100))% off"
	check_ge wset_${percent}_not_less $((percent * 9)) $is
	check_ge wset_${percent}_not_more $is $((percent * 11))
done
# It uses half as much: the slow average takes its time (an eighth a period).
kill -USR2 "${PIDS[60]}"
sleep 25
is=$(mean w60)
echo "# 30% in use now: $((is / 10)).$((is % 10))% by samples"
check_ge wset_follows "$is" 360
check_ge wset_follows_not_below 270 "$is"
for percent in 20 60; do
	kill -USR1 "${PIDS[$percent]}"
	wait_for 5 grep -q errors= "$RUN/w$percent.log"
	echo "# $(tail -n 1 "$RUN/w$percent.log")"
	check_eq wset_${percent}_errors 0 "$(sed -n 's/.*errors=\([0-9]*\).*/\1/p' "$RUN/w$percent.log")"
	check_ge wset_${percent}_samples_were_taken 1000 "$(take_status && vm_value w$percent paged_out_pages_total)"
done
check wset_daemon_runs alive "$DAEMON_PID"
