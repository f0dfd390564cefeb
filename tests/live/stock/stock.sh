# shellcheck shell=bash
# What the tests with stock Linux guests in unmodified QEMU share. Sourced after tests/lib.sh. The guest is tests/guest/.

# Status helpers: take_status, vm_value, domain_value, vms_sum, vms_connected, vms_reach, vm_gone, domain_is.
. "$(dirname "${BASH_SOURCE[0]}")/../flat/flat.sh"

# As fast as one core goes, without keeping the guests from the other one.
# shellcheck disable=SC2034 # for the tests
STOCK_DAEMON=(scan.cpu_percent=100 scan.interval=50ms scan.idle_interval=1s)
STOCK_MIB=256
STOCK_READY_S=90
OUTSIDE=$BUILD/outside

# stock_init TEST: prepares the guest.
stock_init()
{
	local tool
	for tool in "$OUTSIDE" "$BUILD/ballast-run" "$BUILD/ballastd"; do
		[ -x "$tool" ] || die "$1_built" "$tool is not built"
	done
	timeout 200 tests/guest/build.sh || die "$1_guest" "tests/guest/build.sh fails"
	STOCK_ACCEL=$(tests/guest/accel.sh)
	[ "$STOCK_ACCEL" = tcg ] && STOCK_ACCEL=tcg,tb-size=32
}

# stock_start NAME SEED "KERNEL PARAMETERS" QEMU-ARG...: its pid is in ${STOCK_PID[NAME]}.
declare -A STOCK_PID=()
stock_start()
{
	local name=$1 seed=$2 params=$3
	shift 3
	start_qemu "$name" -accel "$STOCK_ACCEL" -m $STOCK_MIB -smp 1 -kernel build/guest/vmlinuz \
		-initrd build/guest/initrd.gz \
		-append "console=ttyS0 quiet panic=-1 ballast.seed=$seed $params" "$@"
	STOCK_PID[$name]=$QEMU_PID
}

# stock_ready TEST NAME...: waits until the guests have filled their memory and their agents are connected.
__stock_up_or_dead() { console_has "$1" GUEST-READY || ! alive "${STOCK_PID[$1]}"; }
stock_ready()
{
	local test=$1 name
	shift
	for name; do
		wait_for $STOCK_READY_S __stock_up_or_dead "$name"
		console_has "$name" GUEST-READY || die "${test}_ready" "guest $name is not ready"
	done
	wait_for 10 vms_connected "$@" || die "${test}_connected" "not all agents are connected: $*"
}

# mib NAME KEY: a number of bytes of `ballastctl status`, as take_status read it, in MiB.
mib() { local v; v=$(vm_value "$1" "$2"); echo $((${v:-0} >> 20)); }
is() { take_status && [ "$(vm_value "$1" "$2")" = "$3" ]; } # NAME KEY VALUE
mib_at_most() { take_status && [ -n "$(vm_value "$1" "$2")" ] && [ "$(mib "$1" "$2")" -le "$3" ]; }
mib_at_least() { take_status && [ -n "$(vm_value "$1" "$2")" ] && [ "$(mib "$1" "$2")" -ge "$3" ]; }
# expect TEST SECONDS CMD...: passes when CMD holds within the time; else it says what the VMs' balloons and pagers were like.
expect()
{
	local test=$1 seconds=$2
	shift 2
	if wait_for "$seconds" "$@"; then
		pass "$test"
	else
		fail "$test" "not within $seconds s: $* ($(grep -o '"\(name\|balloon_[a-z_]*\|paged_[a-z_]*\)": *[^,]*' "$STATUS" | tr '\n' ' '))"
	fi
}

# line_value NAME WORD KEY: of the last whole line that begins with WORD on the guest's console (a terminal's: it ends in CR LF).
line_value() { sed -n "/^$2 .*\r\$/s/.* $3=\([0-9]*\).*/\1/p" "$RUN/$1.console" | tail -n 1; }
# check_value NAME KEY: of the memory checker.
check_value() { line_value "$1" 'CHECK\(-DONE\)\{0,1\}' "$2"; }
check_reaches() { [ "$(check_value "$1" "$2")" -ge "$3" ]; }
# The last line, and the longest stall of each second.
show_check()
{
	grep -a -E "^(CHECK|DISK)" "$RUN/$1.console" | tail -n 1 | tr -d "\r" | sed "s/^/# $1: /"
	echo "# $1: stall_ms by second:" $(tr -d "\r" <"$RUN/$1.console" | sed -n "s/^CHECK .* stall_ms=\([0-9]*\) .*/\1/p")
}

# Reports what holds for every guest that checks its memory: no error, enough accesses.
check_guest() # TEST NAME ACCESSES
{
	show_check "$2"
	grep -a -E 'ERROR|GUEST-FAILED|BUG|Oops|Kernel panic' "$RUN/$2.console" | head -n 10 | sed 's/^/# /'
	check "$1_$2_runs" alive "${STOCK_PID[$2]}"
	check_eq "$1_$2_errors" 0 "$(check_value "$2" errors)"
	check_eq "$1_$2_error_lines" 0 "$(grep -ac 'ERROR\|GUEST-FAILED\|Kernel panic' "$RUN/$2.console")"
	check_ge "$1_$2_accesses" "$3" "$(check_value "$2" iter)"
}

# outside NAME...: counts the guests' pages from outside, all of them stopped meanwhile.
# out KEY: a total; "guestN_KEY" one guest's, N as in the order of the arguments, from 1.
outside()
{
	local name pids=()
	for name; do
		pids+=("${STOCK_PID[$name]}")
	done
	timeout 60 "$OUTSIDE" --ram-bytes ${STOCK_MIB}M --stop --timeout 30 --output "$RUN/outside.kv" "${pids[@]}"
}
out() { sed -n "s/^$1=//p" "$RUN/outside.kv" | head -n 1; }

# qmp NAME JSON: one command; prints what it returns.
qmp() { timeout 20 "$BUILD/tests/tool_qmp" "$RUN/$1.qmp" "$2"; }

# pss_kib NAME: of the VMM.
pss_kib() { awk '/^Pss:/ { print $2 }' "/proc/${STOCK_PID[$1]}/smaps_rollup"; }

# show_vms NAME...: the daemon's figures, for the log.
show_vms()
{
	local name key line
	for name; do
		line="# $name:"
		for key in shared_pages zero_pages broken_pages merged_pages_total broken_pages_total \
			discarded_pages_total pinned_pages_total failed_pages_total passes_total; do
			line+=" ${key/_pages/} $(vm_value "$name" $key)"
		done
		echo "$line"
	done
	echo "# store: pages $(domain_value store_pages) refs $(domain_value store_refs)"
}

# go_first: this test's processes go before whatever else the host does. For tests that measure time: a stall that a guest
# sees includes waiting for a CPU.
go_first()
{
	local nice
	renice -n -15 -p $$ >/dev/null 2>&1
	# Where the scheduler groups by session, the group's niceness is what counts.
	if nice=$(sed -n 's/.* nice //p' /proc/self/autogroup 2>/dev/null) && [ -n "$nice" ]; then
		echo -15 >/proc/self/autogroup && cleanup eval "echo $nice >/proc/self/autogroup"
	fi
}

# check_stall TEST NAME: no access to memory took a second.
check_stall()
{
	echo "# $2: longest stall $(check_value "$2" stall_max_ms) ms"
	check_ge "$1_$2_stall_below_1s" 1 $(($(check_value "$2" stall_max_ms) < 1000))
}

# check_store TEST [--images] NAME...: no guest shows a store page that was given up (invariant 4); see tool_store.c.
check_store()
{
	local test=$1 name pids=()
	shift
	[ "$1" != --images ] || { pids=(--images) && shift; }
	for name; do
		pids+=("${STOCK_PID[$name]}")
	done
	timeout 60 "$BUILD/tests/tool_store" "${pids[@]}" >"$RUN/store.txt" 2>&1
	local rc=$?
	sed 's/^/# /' "$RUN/store.txt" | tail -n 5
	check_eq "${test}_shows_the_store" 0 $rc
}
