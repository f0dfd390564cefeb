#!/usr/bin/env bash
# timeout: 90
# Memory pressure with the real daemon and the real /proc: the threshold is moved over what the host has, not the host
# under the threshold. While it is on the CPU budget is another, it turns off after a calm while, and each change is one
# line in the log.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh" # for the status

pressure_is() { take_status && [ "$(host_value pressure)" = "$1" ]; }
log_lines() { grep -c -e "$1" "$DAEMON_LOG"; }
reload() { write_config metrics.port="$port" "$@" && kill -HUP "$DAEMON_PID"; }
metric() { exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && sed -n "s/^$1 //p" <&3 | tr -d '\r'; }
metric_is() { [ "$(metric "$1")" = "$2" ]; }

port=$(free_port)
# No host has everything available.
start_daemon metrics.port="$port" scan.pressure_available=100 scan.pressure_some=0 ||
	die pressure_daemon "ballastd does not start"
check pressure_on wait_for 5 pressure_is true
check_eq pressure_budget 200 "$(host_value scan_cpu_permille)"
check pressure_metric wait_for 5 metric_is ballast_host_pressure 1
check pressure_metric_budget wait_for 5 metric_is ballast_scan_cpu_limit_ratio 0.2
check_eq pressure_one_line "1 0" "$(log_lines 'host memory: short') $(log_lines 'host memory: enough again')"
# What the kernel says is what is shown.
total=$(($(awk '/^MemTotal:/ { print $2 }' /proc/meminfo) * 1024))
check_eq pressure_memory_bytes "$total" "$(host_value memory_bytes)"
check_ge pressure_available 1 "$(host_value available_bytes)"
if [ -r /proc/pressure/memory ]; then
	check_ge pressure_some_shown 0 "$(host_value pressure_some_permille)"
else
	check_eq pressure_some_absent "" "$(host_value pressure_some_permille)"
fi

# The other budget may be changed meanwhile, and is never less than the usual one.
budget_is() { take_status && [ "$(host_value scan_cpu_permille)" = "$1" ]; }
reload scan.pressure_available=100 scan.pressure_some=0 scan.cpu_percent_pressure=35
check pressure_budget_reload wait_for 5 budget_is 350
reload scan.pressure_available=100 scan.pressure_some=0 scan.cpu_percent=50
check pressure_budget_not_less wait_for 5 budget_is 500

# Calm: not at once, but after ten seconds.
begin=${EPOCHREALTIME/[.,]/}
reload scan.pressure_available=0 scan.pressure_some=0
check pressure_budget_usual_is_20 wait_for 5 budget_is 200
check pressure_off wait_for 30 pressure_is false
seconds=$(((${EPOCHREALTIME/[.,]/} - begin) / 1000000))
echo "# off after $seconds s"
check_ge pressure_off_not_at_once 9 $seconds
check_eq pressure_off_budget 50 "$(host_value scan_cpu_permille)"
check pressure_off_metric wait_for 5 metric_is ballast_host_pressure 0
check_eq pressure_off_line "1 1" "$(log_lines 'host memory: short') $(log_lines 'host memory: enough again')"
