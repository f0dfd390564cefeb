#!/usr/bin/env bash
# timeout: 150
# The kernel's swap as a tier: when the host is short, what is idle of a program goes to a swap file that the test adds, and comes back
# right; without swap nothing is asked; a program whose swap = off keeps all. While pages are out the scan and merging go on.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh"
. "$(dirname "$0")/stock/stock.sh"

MIB=192
tool=$BUILD/tests/tool_wset
[ -x "$tool" ] || die swap_built "$tool is not built"
swaps() { tail -n +2 /proc/swaps | wc -l; }
[ "$(swaps)" -eq 0 ] || skip_all swap_tier "this host has swap: what is swapped out would not be the test's alone"

# A cgroup of 1 GiB, of which so many MiB are left.
group=$RUN/group
mkdir -p "$group"
echo $((1 << 30)) >"$group/memory.max"
left() { echo $(((1024 - $1) << 20)) >"$group/memory.current.new" && mv "$group/memory.current.new" "$group/memory.current"; }
left 600

# Sections are tried in their order.
start_daemon scan.cpu_percent=100 scan.interval=100ms scan.idle_interval=1s policy.interval=500ms policy.cgroup="$group" \
	policy.mode=act 'vm "keeps".swap=off' 'vm "keeps".share=zero-only' 'vm "keeps".page_out=off' 'vm "keeps".min=16MiB' \
	'vm "*".page_out=off' 'vm "*".share=zero-only' 'vm "*".min=16MiB' || die swap_daemon "ballastd does not start"
declare -A PIDS=()
for name in gives keeps; do
	start "$RUN/$name.log" "$tool" $name $MIB 10
	PIDS[$name]=$PID
done
wait_for 20 vms_connected gives keeps || die swap_connected "the agents do not connect"
is_ready() { grep -q ready "$RUN/gives.log" && grep -q ready "$RUN/keeps.log"; }
wait_for 20 is_ready || die swap_ready "the programs are not ready"
sleep 3
swapped_mib() { echo $(($(sed -n 's/^VmSwap:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/${PIDS[$1]}/status") / 1024)); }
swapped_reaches() { [ "$(swapped_mib "$1")" -ge "$2" ]; }

# Low, and there is no swap: it is said that nobody may give, and nothing is asked for.
left 8
plan_says() { grep -q "$1" <<<"$(ctl plan 2>&1)"; }
expect swap_none_is_unmet 10 plan_says 'of which no VM can give'
take_status
check_eq swap_none_asks_nothing 0 "$(vm_value gives swap_asked_pages_total)"
left 600

head -c 512M /dev/zero >"$RUN/swapfile"
chmod 600 "$RUN/swapfile"
mkswap "$RUN/swapfile" >/dev/null 2>&1
swapon "$RUN/swapfile" 2>"$RUN/swapon.log" || skip_all swap_tier "swapon does not work here: $(cat "$RUN/swapon.log")"
no_swap() { [ "$(swaps)" -eq 0 ] || swapoff "$RUN/swapfile"; }
cleanup no_swap
left 8
expect swap_goes_out 40 swapped_reaches gives 100
left 600
echo "# swapped out: gives $(swapped_mib gives) MiB, keeps $(swapped_mib keeps) MiB"
check_eq swap_off_keeps_all 0 "$(swapped_mib keeps)"
check_ge swap_is_counted 25600 "$(take_status && vm_value gives swap_asked_pages_total)"
said() { grep -q "$1" <<<"$(ctl explain gives 2>&1)"; }
check swap_is_explained said 'are swapped out'
ctl explain gives | sed 's/^/# /' | head -n 6
# At rest nothing more goes, and what is needed has come back.
sleep 3
before=$(vm_value gives swap_asked_pages_total)
sleep 2
take_status
check_eq swap_ends "$before" "$(vm_value gives swap_asked_pages_total)"

# Merging, paging and discards of pages that are swapped out: the model test has its own daemon and VMs, and swaps them out.
MODEL=$BUILD
[ -n "${SAN:-}" ] || MODEL=$BUILD/san-address-undefined
pswpout() { sed -n 's/^pswpout //p' /proc/vmstat; }
before=$(pswpout)
mkdir "$RUN/model"
if ASAN_OPTIONS=abort_on_error=1 LSAN_OPTIONS=suppressions=$TOP/tests/lsan.supp:print_suppressions=0 timeout 60 \
	"$MODEL/tests/tool_model" --daemon "$MODEL/ballastd" --dir "$RUN/model" --seconds 8 >"$RUN/model.out" 2>&1; then
	pass swap_model_right
else
	fail swap_model_right "$(grep '^FAILED' "$RUN/model.out")"
	tail -n 30 "$RUN/model.out" | sed 's/^/# /'
fi
grep '^RESULT' "$RUN/model.out" | sed 's/^/# /'
after=$(pswpout)
echo "# the model's VMs had $((after - before)) pages swapped out"
check_ge swap_model_swapped 1000 $((after - before))

# All of it comes back at once, and right: swap goes away.
check swap_off timeout 60 swapoff "$RUN/swapfile"
check_eq swap_all_is_back 0 "$(swapped_mib gives)"
for name in gives keeps; do
	kill -USR1 "${PIDS[$name]}"
	wait_for 5 grep -q errors= "$RUN/$name.log"
	echo "# $name: $(grep errors= "$RUN/$name.log" | tail -n 1)"
	check_eq swap_${name}_right 'errors=0' "$(grep -o 'errors=[0-9]*' "$RUN/$name.log" | tail -n 1)"
	check swap_${name}_runs alive "${PIDS[$name]}"
done
check swap_daemon_runs alive "$DAEMON_PID"
