#!/usr/bin/env bash
# timeout: 300
# Pages leave stock guests, compressed, and come back: memory really returns to the host; every byte of a guest's memory is as
# it was; a guest that checks its memory finds nothing while its pages go out and come back all the time, with merging and
# ballooning beside it and the daemon killed in the middle; samples tell how much of its memory a guest uses.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

stock_init pager
reaches() { take_status && [ "$(vm_value "$1" "$2")" -ge "$3" ]; }
# What is asked for may be too much for one time.
out_reaches() { ctl page-out "$1" 256M >/dev/null && sleep 0.3 && reaches "$1" paged_pages "$2"; }
# All of the guest's memory, as QEMU reads it, which brings all of it back.
ram_sum()
{
	qmp b "{\"execute\": \"pmemsave\", \"arguments\": {\"val\": 0, \"size\": $((STOCK_MIB << 20)), \"filename\": \"$RUN/ram\"}}" >/dev/null
	sha1sum "$RUN/ram" | cut -d' ' -f1
	rm "$RUN/ram"
}

port=$(free_port)
settings=("${STOCK_DAEMON[@]}" metrics.port="$port" 'vm "b".share=zero-only')
start_daemon "${settings[@]}" || die pager_daemon "ballastd does not start"
stock_start a 1 ballast.mode=check -device virtio-balloon-pci,id=balloon0
stock_start b 2 ballast.mode=fill
stock_ready pager a b

# --- memory comes back to the host, and nothing of it is lost ------------------------------------------

# Its huge pages are left whole; the guest's random files (20 MB) do not compress.
expect pager_candidates 40 reaches b passes_total 30
qmp b '{"execute": "stop"}' >/dev/null
before=$(pss_kib b)
sum=$(ram_sum)
[ ${#sum} -eq 40 ] || die pager_sum "QEMU does not save the guest's memory"
expect pager_out 60 out_reaches b 4000
out=$(vm_value b paged_pages) pool=$(vm_value b pool_bytes)
echo "# b: $out pages are out, $((pool >> 10)) KiB compressed ($((pool * 100 / (out * 4096)))%); PSS $before KiB before, $(pss_kib b) now"
check_ge pager_pool_is_smaller 1 $((pool * 10 < out * 4096 * 7))
saved=$((out * 4 - (pool >> 10)))
check_ge pager_pss_fell 1 $((before - $(pss_kib b) > saved * 8 / 10))
# The metrics are of the last second.
metric() { scrape "$port" | grep -q '^ballast_vm_paged_bytes{vm="b"} [1-9]'; }
expect pager_metric 5 metric
check_eq pager_all_is_as_it_was "$sum" "$(ram_sum)"
# But for pages of its other regions (firmware), which are not in what was saved.
expect pager_all_is_back 10 reaches b paged_in_pages_total $((out - 16))
check_ge pager_pool_is_empty 1 $(($(vm_value b pool_bytes) <= 16 * 65536))
qmp b '{"execute": "cont"}' >/dev/null

# --- without a daemon ---------------------------------------------------------------------------------

qmp b '{"execute": "stop"}' >/dev/null
sum=$(ram_sum)
expect pager_out_again 60 out_reaches b 2000
kill_daemon
check_eq pager_same_without_a_daemon "$sum" "$(ram_sum)"
qmp b '{"execute": "cont"}' >/dev/null
check pager_guest_runs alive "${STOCK_PID[b]}"
start_daemon || die pager_restart "ballastd does not start again"
wait_for 10 vms_connected a b || die pager_reconnect "the agents do not come back"

# --- a guest that checks its memory, out and in all the time ---------------------------------------------

begin=$SECONDS
ctl balloon a 224M >/dev/null
while [ $((SECONDS - begin)) -lt 25 ]; do
	ctl page-out a 64M >/dev/null
	ctl page-out b 64M >/dev/null
	sleep 0.1
	if [ $((SECONDS - begin)) -eq 12 ]; then
		kill_daemon
		start_daemon || die pager_second_restart "ballastd does not start again"
		wait_for 10 vms_connected a b || die pager_second_reconnect "the agents do not come back"
		begin=$((begin - 1))
	fi
done
take_status
echo "# a: $(vm_value a paged_out_pages_total) pages out, $(vm_value a paged_in_pages_total) back, $(vm_value a merged_pages_total) merged, balloon $(mib a balloon_actual_bytes) MiB"
check_ge pager_check_out 3000 "$(vm_value a paged_out_pages_total)"
check_ge pager_check_back 2000 "$(vm_value a paged_in_pages_total)"
check_ge pager_check_merged 500 "$(vm_value a merged_pages_total)"
check_guest pager a 1000000
check_stall pager a

# --- who cannot ------------------------------------------------------------------------------------------

check_eq pager_nobody 1 "$(ctl page-out nobody 1M >/dev/null 2>&1; echo $?)"
check_eq pager_bad_size 2 "$(ctl page-out a much >/dev/null 2>&1; echo $?)"
check pager_daemon_runs alive "$DAEMON_PID"
