#!/usr/bin/env bash
# timeout: 240
# Share on read: VMs read blocks of one image, and their pages are shared before any scan has been through. A VM that lies
# about what it read, and one of another domain, share nothing that they should not. Pages under DMA are left alone as long as
# they are, exactly. All the while a thread of each VM reads all of its memory, and a wrong word ends it.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh" # for the status

TOOL=$BUILD/tests/tool_diskshare
PAGES=16384 BLOCKS=16384
[ -x "$TOOL" ] || die diskshare "$TOOL is not built"
head -c $((BLOCKS * 4096)) /dev/urandom >"$RUN/image"

declare -A pid to churned lines_before
vm() # NAME
{
	mkfifo "$RUN/$1.in"
	exec {fd}<>"$RUN/$1.in"
	to[$1]=$fd
	# shellcheck disable=SC2016
	start "$RUN/$1.log" bash -c 'exec "$0" "$1" "$2" "$3" <"$4"' "$TOOL" "$1" "$RUN/image" $PAGES "$RUN/$1.in"
	pid[$1]=$PID
	wait_for 20 grep -q '^attached' "$RUN/$1.log" || die diskshare_attach "$1: $(cat "$RUN/$1.log")"
}
lines() { wc -l <"$RUN/$1.log"; }
more_lines() { [ "$(lines "$1")" -gt "$2" ]; }
# say NAME COMMAND...: its answer is in $answer.
say()
{
	local name=$1 before
	shift
	before=$(lines "$name")
	echo "$*" >&"${to[$name]}"
	wait_for 40 more_lines "$name" "$before" || die diskshare_answer "$name does not answer '$*'"
	answer=$(tail -n 1 "$RUN/$name.log")
}
figure() { sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" <<<"$answer"; }
checked() # VM...: their memory is right
{
	local vm
	for vm; do
		say "$vm" check
		check_eq "$1_content_$vm" "check: 0 wrong" "$answer"
	done
}
# passes: of all VMs; quiet: no pass has begun for so long that the next ones are at least 4 s away (an interval is twice the
# one before, from 20 ms on: pace.h).
passes() { take_status && vms_sum passes_total "${!pid[@]}"; }
quiet()
{
	local before now since=$SECONDS
	before=$(passes)
	while [ $((SECONDS - since)) -lt 6 ]; do
		sleep 0.2
		now=$(passes)
		[ "$now" = "$before" ] || since=$SECONDS
		before=$now
	done
	passes_before=$before quiet_since=${EPOCHREALTIME/[.,]/}
}

# no_pass NAME: none has begun since quiet(), unless the machine took so long that there had to be one.
no_pass()
{
	local ms=$(((${EPOCHREALTIME/[.,]/} - quiet_since) / 1000))
	if [ $ms -gt 3500 ]; then
		skip "$1" "all this took $ms ms, and a pass was due"
	else
		check_eq "$1" "$passes_before" "$(passes)"
	fi
}
# counted VM: pages that share on read found, whatever the scan did.
counted() { take_status && vm_value "$1" share_on_read_pages_total; }

start_daemon scan.cpu_percent=100 scan.interval=600s scan.idle_interval=600s \
	'vm "other*".domain=other' || die diskshare_daemon "ballastd does not start"
for vm in a b c liar other; do vm $vm; done
quiet

# The same blocks, at other addresses.
say a read 0 4096 0 0
say b read 1000 4096 0 0
say b wait 1000 4096 4000 15000
echo "# b: $answer"
ms=$(figure ms) shared=$(figure shared)
# The first reader's pages are asked for at the same time.
say a wait 0 4096 4000 10000
echo "# a: $answer"
no_pass diskshare_before_any_scan
check_ge diskshare_second_reader 4000 "$shared"
check_ge diskshare_first_reader 4000 "$(figure shared)"
echo "# share on read: $(vm_value a share_on_read_pages_total) and $(vm_value b share_on_read_pages_total) pages," \
	"hashed $(vm_value a hashed_pages_total) and $(vm_value b hashed_pages_total)," \
	"in $(vm_value a mappings) and $(vm_value b mappings) mappings"
check_ge diskshare_counted_a 4000 "$(vm_value a share_on_read_pages_total)"
check_ge diskshare_counted_b 4000 "$(vm_value b share_on_read_pages_total)"
# One copy of each block, of as many as were waited for.
stored=$(domain_value store_pages)
check_ge diskshare_most_stored 4000 "$stored"
check_ge diskshare_one_copy "$stored" 4096
echo "RESULT share_on_read pages=$shared of=4096 ms=$ms"
say a bench 1
echo "RESULT pin_unpin pages=1 ns=${answer//[^0-9]/}"
say a bench 32
echo "RESULT pin_unpin pages=32 ns=${answer//[^0-9]/}"
checked a b

# First touches of memory that pages were moved out of are the agent's to fill: each is told, with its time.
for at in 100 700 1300 1900; do say a refill $at 4; done
check_eq diskshare_refill "refill: 0" "$answer"
say a stats
echo "# a: $answer"
check_ge diskshare_fill_faults 4 "$(figure fill)"
check_eq diskshare_fill_faults_told "$(($(figure wait) + $(figure fill)))" "$(figure called)"
checked a

# Another domain has nothing of it, nor have lies; who comes after a lie still shares.
say other read 0 4096 0 0
say liar read 0 4096 8192 0
say c read 0 4096 0 0
say c wait 0 4096 4000 15000
echo "# c: $answer"
check_ge diskshare_third_reader 4000 "$(figure shared)"
say liar wait 0 4096 1 500
check_eq diskshare_liar 0 "$(figure shared)"
say other wait 0 4096 1 500
check_eq diskshare_other_domain 0 "$(figure shared)"
checked liar other c

quiet
# Under DMA: pages of the first reader are pinned, and stay private; what is not pinned is not held up.
say a read 4096 2048 4096 4096
say a pin 4096 1024
check_eq diskshare_pin "pin: 0" "$answer"
say b read 8192 2048 4096 4096
say b wait 9216 1024 1000 15000
check_ge diskshare_beside_the_pinned 1000 "$(figure shared)"
say a wait 5120 1024 1000 10000
check_ge diskshare_not_pinned 1000 "$(figure shared)"
no_pass diskshare_before_any_scan_again
say a wait 4096 1024 1 500
check_eq diskshare_pinned_are_private 0 "$(figure shared)"
say a stats
echo "# a: $answer"
check_ge diskshare_pinned_refused 1000 "$(figure pinned)"
say a unpin 4096 1024
# Unpinned: the next reader finds them.
say a read 4096 1024 4096 4096
say a wait 4096 1024 1000 15000
check_ge diskshare_unpinned 1000 "$(figure shared)"
checked a b

# Pages that were shared get other blocks, which another VM has: merged again where they lie.
before=$(counted b)
say c read 4096 1024 8192 8192
say b read 1000 1024 8192 8192
say b wait 1000 1024 1000 15000
check_ge diskshare_read_again 1000 "$(figure shared)"
check_ge diskshare_counted_again $((before + 500)) "$(counted b)"
# Written at once after it was read: a page of the guest's own.
say c read 8192 1024 9300 9300
say b read 12288 1024 9300 9300
say b write 12288 1024
say b wait 12288 1024 1 300
check_eq diskshare_written 0 "$(figure shared)"
checked b c

# A snapshot is restored over memory that is shared: all private, all right, and shared again by reading.
say b pin 0 1
say b renew
check_eq diskshare_renew_refused "renew: -16" "$answer"
say b unpin 0 1
say b renew
check_eq diskshare_renew "renew: 0" "$answer"
checked b
say b read 0 1024 0 0
say b wait 0 1024 1000 15000
check_ge diskshare_after_renew 1000 "$(figure shared)"

# The daemon is gone: notes go nowhere, and nothing waits. It comes back.
kill_daemon
say a read 0 1024 2000 2000
start_daemon || die diskshare_daemon_again "ballastd does not start again"
connected() { say "$1" stats && [ "$(figure connected)" = 1 ]; }
for vm in a b c; do check diskshare_connected_$vm wait_for 20 connected $vm; done
say a read 12288 1024 12288 12288
say c read 12288 1024 12288 12288
say c wait 12288 1024 1000 15000
check_ge diskshare_after_restart 1000 "$(figure shared)"
# Pins and merges of the same pages all the time.
for vm in a b; do
	say $vm stats
	churned[$vm]=$(figure merged)
	lines_before[$vm]=$(lines $vm)
	echo "churn 0 256 4096 4000" >&"${to[$vm]}"
done
for vm in a b; do
	wait_for 20 more_lines $vm "${lines_before[$vm]}" || die diskshare_churn "$vm does not answer"
	answer=$(tail -n 1 "$RUN/$vm.log")
	echo "# $vm: $answer, $(head -n 1 "$RUN/$vm.log")"
	check_ge diskshare_churn_reads_$vm 2000 "${answer//[^0-9]/}"
	say $vm stats
	check_ge diskshare_churn_merged_$vm $((churned[$vm] + 1000)) "$(figure merged)"
done
for vm in a b c liar other; do
	checked $vm
	say $vm stats
	echo "# $vm: $answer"
	check_eq diskshare_faults_told_$vm "$(($(figure wait) + $(figure fill))) $(figure called)" "$(figure in_buckets) $(figure in_buckets)"
	check diskshare_runs_$vm alive "${pid[$vm]}"
done
check diskshare_daemon_runs alive "$DAEMON_PID"
