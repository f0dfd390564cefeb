#!/usr/bin/env bash
# timeout: 180
# The CPU that scanning and merging take, of the daemon and of the agents in the VMMs, stays within scan.cpu_percent of one
# core in every window of 10 s, although there is always more to do: two guests write all the time. What is measured is
# the kernel's account of the threads, not ours.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

WINDOW_S=${WINDOW_S:-10}
HZ=$(getconf CLK_TCK)

# cpu_ticks: of ballastd, and of the agents' threads.
cpu_ticks()
{
	local vm task files=("/proc/$DAEMON_PID/stat")
	for vm in a b; do
		for task in /proc/"${STOCK_PID[$vm]}"/task/*; do
			[[ $(cat "$task/comm") = ballast-* ]] && files+=("$task/stat")
		done
	done
	# Fields 14 and 15; the command name before them may hold spaces.
	awk '{ sub(/.*\) /, ""); n += $12 + $13 } END { print n, NR }' "${files[@]}"
}
now_us() { echo "${EPOCHREALTIME/[.,]/}"; }

# measure: the CPU used in a window, in permille of a core, is in $permille; in $by_second second by second.
measure()
{
	local first last before after from i
	read -r first _ < <(cpu_ticks)
	from=$(now_us) before=$first by_second=
	for ((i = 0; i < WINDOW_S; i++)); do
		sleep $(((from + (i + 1) * 1000000 - $(now_us)) / 1000))e-3
		read -r after _ < <(cpu_ticks)
		by_second+=" $(((after - before) * 1000 / HZ))"
		before=$after
	done
	last=$after
	permille=$(((last - first) * 1000000 / HZ * 1000 / ($(now_us) - from)))
}

# budget PERCENT MOST LEAST (permille): two windows.
budget()
{
	local w permille by_second
	for w in 1 2; do
		measure
		echo "# budget $1 %, window $w: used $((permille / 10)).$((permille % 10)) %, by second in permille:$by_second"
		check_ge cpu_budget_"$1"_window${w}_kept 1 $((permille <= $2))
		check_ge cpu_budget_"$1"_window${w}_used "$3" "$permille"
	done
}

more_to_do() { take_status && [ "$(vms_sum broken_pages_total a b)" -gt "$1" ]; }

go_first
stock_init cpu_budget
# The default budget: nothing in the configuration says 5.
# A host that is short of memory would be another test.
start_daemon scan.interval=10ms scan.idle_interval=1s scan.cpu_percent_pressure=0.1 || die cpu_budget_daemon "ballastd does not start"
stock_start a 1 ballast.mode=check
stock_start b 2 ballast.mode=check
stock_ready cpu_budget a b
read -r _ threads < <(cpu_ticks)
check_eq cpu_budget_threads_found 11 "$threads"
wait_for 60 vms_reach shared_pages 5000 a b || die cpu_budget_merges "only $(vms_sum shared_pages a b) shared pages"
take_status
check_eq cpu_budget_default 50 "$(host_value scan_cpu_permille)"
host_us=$(host_value cpu_us_total)
read -r ticks _ < <(cpu_ticks)
budget 5 55 20
# Our own account is the kernel's.
take_status
own=$(($(host_value cpu_us_total) - host_us))
read -r now _ < <(cpu_ticks)
kernel=$(((now - ticks) * 1000000 / HZ)) off=$((own - kernel))
echo "# $own us says the daemon, $kernel us the kernel"
check_ge cpu_budget_own_account 1 $((${off#-} * 10 <= kernel))

broken=$(vms_sum broken_pages_total a b)
write_config scan.interval=10ms scan.idle_interval=1s scan.cpu_percent=20 scan.cpu_percent_pressure=0.1
kill -HUP "$DAEMON_PID"
permille_is() { take_status && [ "$(host_value scan_cpu_permille)" = "$1" ]; }
check cpu_budget_reload wait_for 10 permille_is 200
# 5.5 of 5, 20.5 of 20: the bucket holds a fifth of a second.
budget 20 205 100
check cpu_budget_had_work more_to_do "$broken"
for vm in a b; do
	check_guest cpu_budget $vm 1000000
done
show_vms a b
check cpu_budget_daemon_runs alive "$DAEMON_PID"
