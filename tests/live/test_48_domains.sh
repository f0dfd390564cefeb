#!/usr/bin/env bash
# timeout: 150
# Domains share nothing (invariant 5): the same contents in two domains never lie in one page frame, and what a VM can
# learn from merging (a page's mapping, its frame, the time of a write) says nothing of another domain. All by the
# kernel's word, from outside. share = zero-only, off, and unmerge too.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh" # for the status

TOOL=$BUILD/tests/tool_domains
COMMON=1024 ZERO=512 HOME_PAGES=512 ALL=2048 # tool_domains.c

[ "$(id -u)" = 0 ] || skip_all domains "page frame numbers need root"
[ -x "$TOOL" ] || die domains "$TOOL is not built"

declare -A pid
vm() # MODE NAME ARG...
{
	start "$RUN/$2.log" "$TOOL" "$@"
	pid[$2]=$PID
	wait_for 20 grep -q '^attached' "$RUN/$2.log" || die domains_attach "$2: $(cat "$RUN/$2.log")"
}

# A page of the store is not in a VMM's page table before the VMM has read it: all VMs read, and check, all pages.
__checked() { [ "$(grep -c '^checked' "$RUN/$1.log")" -gt "$2" ]; }
read_all() # NAME...
{
	local name before
	for name; do
		before=$(grep -c '^checked' "$RUN/$name.log")
		kill -USR1 "${pid[$name]}"
		wait_for 20 __checked "$name" "$before" || fail domains_content "$name: $(tail -n 1 "$RUN/$name.log")"
	done
}

frames() # NAME...: into $RUN/frames, with names for pids
{
	local name
	local -a pids=() names=()
	for name; do
		pids+=("${pid[$name]}")
		names+=(-e "s/ ${pid[$name]}\b/ $name/g")
	done
	read_all "$@"
	timeout 20 "$TOOL" frames "${pids[@]}" >"$RUN/frames.new" || die domains_frames "$(cat "$RUN/frames.new")"
	sed "${names[@]}" "$RUN/frames.new" >"$RUN/frames"
}
of() { sed -n "s/^vm $1 .*\b$2=\([0-9]*\).*/\1/p" "$RUN/frames"; } # NAME KEY
common() { sed -n "s/^pair $1 $2 common=//p" "$RUN/frames"; }       # NAME NAME
domain_of() { grep '"store_pages":' "$STATUS" | grep "\"name\": *\"$1\"" | __key "$2"; } # DOMAIN KEY
passes_reach() { take_status && [ "$(vm_value "$1" passes_total)" -ge "$2" ]; } # NAME LEAST
# Longer than it takes to find, hash and merge what there is: an idle window is left out of 50 passes (1 s of 20 ms).
some_passes() # NAME...
{
	local name at
	for name; do
		take_status && at=$(vm_value "$name" passes_total)
		wait_for 30 passes_reach "$name" $((at + 120)) || fail domains_passes "no passes over $name"
	done
}
probe_value() { sed -n "/kind=$1 /s/.* $2=\([0-9]*\).*/\1/p" "$RUN/probe.log"; } # KIND KEY

start_daemon scan.cpu_percent=100 scan.interval=20ms scan.idle_interval=1s 'vm "a*".domain=a' 'vm "zero*".domain=a' \
	'vm "zero*".share=zero-only' 'vm "off*".domain=a' 'vm "off*".share=off' 'vm "b*".domain=b' \
	'vm "probe".domain=b' || die domains_daemon "ballastd does not start"
for name in a1 a2 zero1 zero2 off1 off2; do
	vm vm $name only-a
done
for name in b1 b2; do
	vm vm $name only-b
done
shared=$((COMMON + HOME_PAGES))
wait_for 40 vms_reach shared_pages $((4 * shared)) a1 a2 b1 b2 ||
	die domains_merge "only $(vms_sum shared_pages a1 a2 b1 b2) shared pages"
some_passes a1 b1 zero1 zero2 off1 off2

# --- frames -------------------------------------------------------------------------------------

frames a1 a2 b1 b2 zero1 zero2 off1 off2
sed 's/^/# /' "$RUN/frames"
# The count must be able to see sharing at all.
check_eq domains_a_shares $shared "$(common a1 a2)"
check_eq domains_b_shares $shared "$(common b1 b2)"
for pair in 'a1 b1' 'a1 b2' 'a2 b1' 'a2 b2'; do
	# shellcheck disable=SC2086 # two words
	check_eq "domains_${pair/ /_}_apart" 0 "$(common $pair)"
done
for d in a b; do
	check_eq domains_${d}_store $shared "$(domain_of $d store_pages)"
	check_eq domains_${d}_refs $((2 * shared)) "$(domain_of $d store_refs)"
done

for name in zero1 zero2; do
	check_eq domains_${name}_zeros $ZERO "$(of $name zero)"
	check_eq domains_${name}_in_store 0 "$(of $name in_store)"
	check_eq domains_${name}_distinct $((ALL - ZERO)) "$(of $name distinct)"
done
for name in off1 off2; do
	check_eq domains_${name}_zeros 0 "$(of $name zero)"
	check_eq domains_${name}_in_store 0 "$(of $name in_store)"
	check_eq domains_${name}_distinct $ALL "$(of $name distinct)"
done
for pair in 'zero1 zero2' 'off1 off2' 'a1 zero1' 'a1 off1' 'b1 zero1' 'b1 off1'; do
	# shellcheck disable=SC2086 # two words
	check_eq "domains_${pair/ /_}_apart" 0 "$(common $pair)"
done

# --- what merging tells -------------------------------------------------------------------------

# Holds contents of domain a, contents that are nowhere, and contents of its own domain b, in turn.
vm probe probe only-a only-b
wait_for 40 vms_reach shared_pages $HOME_PAGES probe || die domains_probe "only $(vm_value probe shared_pages) shared pages"
some_passes probe a1
take_status
check_eq domains_probe_shares_own $HOME_PAGES "$(vm_value probe shared_pages)"
kill -USR1 "${pid[probe]}"
wait_for 20 grep -q '^probed' "$RUN/probe.log" || die domains_probe "no answer: $(cat "$RUN/probe.log")"
some_passes probe
take_status
sed -n 's/^PROBE /RESULT domains_probe /p' "$RUN/probe.log"
# The control: the probe can see a merge when there is one.
check_eq domains_probe_own_in_store $HOME_PAGES "$(probe_value own in_store)"
check_eq domains_probe_own_breaks $HOME_PAGES "$(probe_value own frame_changed_by_write)"
# Content of the other domain is like content that is nowhere: never mapped to a store, same frame all the time. (The
# kernel may move a page for reasons of its own, so a few frames may differ.)
for kind in other nowhere; do
	check_eq domains_probe_${kind}_in_store 0 "$(probe_value $kind in_store)"
	check_ge domains_probe_${kind}_same_frame 1 $(($(probe_value $kind frame_changed) < HOME_PAGES / 20))
	check_ge domains_probe_${kind}_no_break 1 $(($(probe_value $kind frame_changed_by_write) < HOME_PAGES / 20))
done
check_eq domains_probe_broken $HOME_PAGES "$(vm_value probe broken_pages_total)"
check_eq domains_a_store_untouched $shared "$(domain_of a store_pages)"
check_eq domains_a_refs_untouched $((2 * shared)) "$(domain_of a store_refs)"

# --- unmerge ------------------------------------------------------------------------------------

vm_shares_none() { take_status && [ "$(vm_value "$1" shared_pages)" = 0 ]; }
ctl unmerge a1 >/dev/null || fail domains_unmerge_command "ballastctl failed"
check domains_unmerge wait_for 20 vm_shares_none a1
some_passes a1 a2
frames a1 a2 b1 b2
sed 's/^/# unmerged: /' "$RUN/frames"
check_eq domains_unmerged_in_store 0 "$(of a1 in_store)"
check_eq domains_unmerged_distinct $((ALL - $(of a1 zero))) "$(of a1 distinct)"
for name in a2 b1 b2; do
	check_eq domains_unmerged_apart_$name 0 "$(common a1 $name)"
done
check_eq domains_unmerged_b_keeps $shared "$(common b1 b2)"
check domains_daemon_runs alive "$DAEMON_PID"
