#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The demo: stock guests in unmodified QEMU under ballastd, host memory before and after, one RESULT line.
# Called by `make demo`, which builds what it needs. GUESTS=4 MEM=256 (MiB each) KERNEL=path/to/vmlinuz.
#
# What is measured, and how, is in bench/README.md. Raw data, chart and report stay in build/demo/.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=bench/demo/measure.sh
. bench/demo/measure.sh

build=${BUILD:-build}
nr_guests=${GUESTS:-4}
mem=${MEM:-256}
dir=$PWD/build/demo
run_dir=$dir/run

# A guest that is not ready by then never will be; on an idle machine it takes under 10 s.
READY_TIMEOUT_S=90
# The promise is "within 30 s of the guests being ready".
SHARE_LIMIT_S=30
# Sharing is stable when memory in use moved by less than this over so many samples (of 0.5 s).
STABLE_KIB=1024
STABLE_SAMPLES=10
BASELINE_SAMPLES=4

daemon_pid=
launcher_pids=()
guest_pids=()


say() { printf '%s\n' "$*"; }

# One line that rewrites itself on a terminal; in a log, a plain line now and then.
progress_at=0
progress()
{
	if [ -t 1 ]; then
		printf '\r\033[K%s' "$*"
	elif [ $((SECONDS - progress_at)) -ge 5 ] || [ "$progress_at" -eq 0 ]; then
		progress_at=$((SECONDS + 1))
		say "$*"
	fi
}

progress_end()
{
	if [ -t 1 ]; then
		printf '\r\033[K'
	fi
	progress_at=0
	say "$*"
}

die()
{
	local log

	[ -t 1 ] && echo
	echo "demo: $1" >&2
	shift
	for log in "$@"; do
		[ -s "$log" ] || continue
		echo "--- end of ${log#"$PWD"/}:" >&2
		tail -n 15 "$log" | tr -d '\033' >&2
	done
	exit 1
}

gone() { ! kill -0 "$1" 2>/dev/null; }

cleanup()
{
	local pid pids=("${guest_pids[@]}" "${launcher_pids[@]}" ${daemon_pid:+"$daemon_pid"})

	trap - EXIT INT TERM HUP
	for pid in "${pids[@]}"; do
		kill -TERM "$pid" 2>/dev/null && kill -CONT "$pid" 2>/dev/null
	done
	for _ in {1..50}; do
		for pid in "${pids[@]}"; do
			gone "$pid" || { sleep 0.1; continue 2; }
		done
		break
	done
	for pid in "${pids[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
	done
	wait 2>/dev/null || true
	rm -rf "$run_dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

check_arguments()
{
	local need available

	[[ $nr_guests =~ ^[0-9]+$ && $nr_guests -ge 1 && $nr_guests -le 64 ]] ||
		die "GUESTS=$nr_guests: give a number from 1 to 64"
	[[ $mem =~ ^[0-9]+$ && $mem -ge 128 ]] ||
		die "MEM=$mem: give MiB for each guest, at least 128"
	[ "$(id -u)" -eq 0 ] ||
		die "needs root (page frame numbers, userfaultfd): sudo make demo"
	[ -r /proc/self/pagemap ] || die "/proc/PID/pagemap is missing on this kernel"
	need=$((nr_guests * (mem + 100)))
	available=$(($(mem_available_kib) / 1024))
	[ "$available" -ge "$need" ] ||
		die "needs $need MiB of free memory, $available MiB are available: give a smaller GUESTS= or MEM="
}

ctl() { timeout 10 "$build/ballastctl" --socket "$run_dir/control.sock" "$@"; }

must_ctl()
{
	ctl "$@" >"$dir/ctl.log" 2>&1 || die "ballastctl $* failed" "$dir/ctl.log" "$dir/ballastd.log"
}

start_daemon()
{
	# Socket addresses hold 107 characters.
	[ ${#run_dir} -le 90 ] || run_dir=$(mktemp -d /tmp/ballast-demo.XXXXXX)
	mkdir -p "$run_dir"
	cat >"$dir/ballast.conf" <<-END
		# All else has its default: this is what users get.
		[daemon]
		run_dir = $run_dir
		[metrics]
		port = 0
	END
	"$build/ballastd" --config "$dir/ballast.conf" >"$dir/ballastd.log" 2>&1 </dev/null 8>&- &
	daemon_pid=$!
	for _ in {1..100}; do
		gone $daemon_pid && die "ballastd ended at its start" "$dir/ballastd.log"
		ctl status >/dev/null 2>&1 && break
		sleep 0.1
	done
	# Nothing is shared before the first snapshot.
	must_ctl pause
}

start_guests()
{
	local i accel

	accel=$(tests/guest/accel.sh)
	# A small translation cache: it is memory of QEMU, not of the guest, and not what this is about.
	[ "$accel" = tcg ] && accel=tcg,tb-size=32
	say "demo: $nr_guests guests of $mem MiB, QEMU -accel $accel, Linux" \
		"$(sed 's/.*image-\([^_]*\)_.*/\1/' build/guest/.source)"
	for ((i = 1; i <= nr_guests; i++)); do
		# timeout: a guest must not outlive a demo that was killed.
		BALLAST_AGENT_SOCKET=$run_dir/agent.sock timeout -k 5 300 "$build/ballast-run" \
			qemu-system-x86_64 -name "guest$i" -accel "$accel" -m "$mem" -smp 1 -nodefaults \
			-nographic -no-reboot -pidfile "$run_dir/guest$i.pid" \
			-serial "file:$dir/guest$i.console" \
			-kernel build/guest/vmlinuz -initrd build/guest/initrd.gz \
			-append "console=ttyS0 quiet panic=-1 ballast.seed=$i ballast.scale_percent=$((mem * 100 / 256))" \
			</dev/null >"$dir/guest$i.log" 2>&1 8>&- &
		launcher_pids+=($!)
		disown # what becomes of it is said by check_alive, not by the shell
	done
}

check_alive()
{
	local i

	gone "$daemon_pid" && die "ballastd died" "$dir/ballastd.log"
	for ((i = 1; i <= nr_guests; i++)); do
		gone "${launcher_pids[i - 1]}" &&
			die "guest $i died" "$dir/guest$i.console" "$dir/guest$i.log" "$dir/ballastd.log"
		grep -qs GUEST-FAILED "$dir/guest$i.console" &&
			die "guest $i could not fill its memory" "$dir/guest$i.console"
	done
	return 0
}

wait_ready()
{
	local i ready=0 start=$SECONDS

	while [ "$ready" -lt "$nr_guests" ]; do
		check_alive
		ready=0
		for ((i = 1; i <= nr_guests; i++)); do
			grep -qs GUEST-READY "$dir/guest$i.console" && ready=$((ready + 1))
		done
		progress "booting: $ready of $nr_guests guests ready, $((SECONDS - start)) s"
		[ $((SECONDS - start)) -lt $READY_TIMEOUT_S ] ||
			die "only $ready of $nr_guests guests were ready after $READY_TIMEOUT_S s" \
				"$dir"/guest*.console
		sleep 0.25
	done
	for ((i = 1; i <= nr_guests; i++)); do
		guest_pids+=("$(cat "$run_dir/guest$i.pid")")
	done
	progress_end "all $nr_guests guests ready after $((SECONDS - start)) s"
}

snapshot()
{
	"$build/outside" --ram-bytes "${mem}M" --stop --timeout 30 --output "$dir/$1.kv" \
		"${guest_pids[@]}" 2>"$dir/outside.log" || {
		check_alive
		die "the outside count failed" "$dir/outside.log"
	}
	note_processes "$1"
}

# Samples until nothing moves any more. Time 0 is when sharing starts.
share()
{
	local i=0 now_kib t first last

	echo "seconds,guests_kib,store_kib,ballastd_kib,mem_available_kib" >"$dir/samples.csv"
	resume_us=$(($(now_us) + BASELINE_SAMPLES * 500000))
	for ((i = 0; ; i++)); do
		check_alive
		if [ $i -eq $BASELINE_SAMPLES ]; then
			cpu_before_us=$(cpu_us)
			resume_us=$(now_us)
			must_ctl resume
		fi
		sample >>"$dir/samples.csv"
		t=$((($(now_us) - resume_us) / 1000000))
		now_kib=$(tail -n 1 "$dir/samples.csv" | awk -F, '{ print $2 + $3 + $4 }')
		if [ $i -le $BASELINE_SAMPLES ]; then
			first=$now_kib
		else
			progress "sharing: $((t < 0 ? 0 : t)) s, host memory in use $((now_kib / 1024)) MiB," \
				"$(((first - now_kib) / 1024)) MiB less"
			[ $t -lt $((SHARE_LIMIT_S - 1)) ] || break
			[ $i -gt $((BASELINE_SAMPLES + 2 * STABLE_SAMPLES)) ] && is_stable && break
		fi
		sleep 0.5
	done
	seconds=$(((($(now_us) - resume_us) + 500000) / 1000000))
	last=$now_kib
	progress_end "shared for $seconds s: host memory in use $((first / 1024)) -> $((last / 1024)) MiB"
}

is_stable()
{
	tail -n $STABLE_SAMPLES "$dir/samples.csv" | awk -F, -v limit=$STABLE_KIB '
		{ v = $2 + $3 + $4; if (NR == 1 || v < lo) lo = v; if (NR == 1 || v > hi) hi = v }
		END { exit !(hi - lo < limit) }'
}

check_arguments
mkdir -p build
exec 8>build/demo.lock
flock -n 8 || die "another demo is running in this checkout"
rm -rf "$dir"
mkdir -p "$dir"
tests/guest/build.sh ${KERNEL:+"$KERNEL"} || exit 1
start_daemon
start_guests
wait_ready
find_store
sleep 1 # the guests' consoles and init settle
snapshot before
share
cpu_after_us=$(cpu_us)
# The count must see a moment without a page on its way.
must_ctl pause
sleep 0.3
must_ctl status --json
cp "$dir/ctl.log" "$dir/status.json"
snapshot after
compute_result
# shellcheck source=bench/demo/report.sh
. bench/demo/report.sh
print_table
write_chart >"$dir/memory.svg"
write_report >"$dir/report.html"
say
say "chart: ${dir#"$PWD"/}/memory.svg   report: ${dir#"$PWD"/}/report.html   raw data: ${dir#"$PWD"/}/"
say "$result_line"
[ "${r[merged_pages]}" -gt 0 ] || [ "${r[dup_pages]}" -eq 0 ] ||
	die "nothing was merged" "$dir/ballastd.log" "$dir/guest1.log"
