#!/usr/bin/env bash
# timeout: 120
# Repair of fragmented sharing: two VMs show the same pages in the same order, which merged in a scattered one, so that
# each page is a mapping. They must end up in few mappings, without a page more in the store, while both write on. The
# control is a third VM that denies it (DMA): there each page stays a mapping, which also shows that they were fragmented.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh" # for the status

TOOL=$BUILD/tests/tool_repair
PAGES=4096 # tool_repair.c

[ -x "$TOOL" ] || die repair "$TOOL is not built"
declare -A pid
vm() # NAME ARG...
{
	start "$RUN/$1.log" "$TOOL" "$@"
	pid[$1]=$PID
	wait_for 20 grep -q '^attached' "$RUN/$1.log" || die repair_attach "$1: $(cat "$RUN/$1.log")"
}
filled() { wait_for 40 grep -q '^filled' "$RUN/$1.log" || die repair_filled "$1: $(cat "$RUN/$1.log")"; }
# The kernel's word.
mappings() { grep -c 'memfd:ballast-store' "/proc/${pid[$1]}/maps"; }
few_mappings() { [ "$(mappings "$1")" -le "$2" ] && [ "$(mappings "$1")" -gt 0 ]; }
value_is() { take_status && [ "$(vm_value "$1" "$2")" -ge "$3" ]; }
store_at_most() { take_status && [ "$(domain_value store_pages)" -le "$1" ]; }
checked()
{
	kill -USR1 "${pid[$1]}"
	check "repair_$1_content" wait_for 20 grep -q '^checked' "$RUN/$1.log"
}

start_daemon scan.cpu_percent=100 scan.interval=50ms scan.idle_interval=1s || die repair_daemon "ballastd does not start"

vm c "$RUN/c.img"
vm d "$RUN/d.img"
filled c
filled d
check repair_control_merges wait_for 30 value_is c shared_pages $((PAGES * 9 / 10))
# Longer than it takes below.
sleep 6
take_status
echo "# control: $(vm_value c shared_pages) pages in $(mappings c) mappings," \
	"$(vm_value c repaired_pages_total) repaired, store $(domain_value store_pages)"
check_ge repair_control_fragmented $((PAGES / 2)) "$(mappings c)"
check_eq repair_control_not_repaired 0 "$(vm_value c repaired_pages_total)"
# One stretch was tried before it was known.
check repair_control_store wait_for 20 store_at_most $((PAGES + 1))
checked c
checked d
end_process "${pid[c]}" KILL
end_process "${pid[d]}" KILL

vm a
vm b
filled a
filled b
for vm in a b; do
	check repair_${vm}_merges wait_for 30 value_is $vm shared_pages $((PAGES * 9 / 10))
	# What is written in between is in a mapping of its own for a while.
	check repair_${vm}_few_mappings wait_for 30 few_mappings $vm $((PAGES / 8))
done
take_status
for vm in a b; do
	echo "# $vm: $(vm_value $vm shared_pages) pages in $(mappings $vm) mappings," \
		"$(vm_value $vm repaired_pages_total) repaired"
	check_ge repair_${vm}_repaired $((PAGES / 2)) "$(vm_value $vm repaired_pages_total)"
	checked $vm
done
echo "# store: $(domain_value store_pages) pages"
check repair_store wait_for 20 store_at_most $((PAGES + 64))
timeout 30 "$BUILD/tests/tool_store" "${pid[a]}" "${pid[b]}" >"$RUN/store.log" || cat "$RUN/store.log"
check_eq repair_shows_the_store 0 "$(sed -n 's/^STORE .*zero=//p' "$RUN/store.log")"

end_process "${pid[a]}" KILL
end_process "${pid[b]}" KILL
check repair_store_empty wait_for 15 store_at_most 0
check repair_daemon_runs alive "$DAEMON_PID"
