#!/usr/bin/env bash
# timeout: 280
# Each system call of the agent fails in turn, once, for some time, at random: every byte of the guest stays right, no
# access hangs, pages are private or merged as the agent says, and merging works again afterwards.
. "$(dirname "$0")/../lib.sh"

TOOL=$BUILD/tests/tool_faults
[ -x "$TOOL" ] || die faults "$TOOL is not built"

mode() # NAME [ARG...]: its figures are in $line
{
	local name=$1
	shift
	timeout -k 5 90 "$TOOL" "$RUN" "$name" "$@" >"$RUN/$name.out" 2>&1
	rc=$?
	line=$(grep -a '^FAULTS ' "$RUN/$name.out")
	grep -a -e '^bad ' -e 'ERROR: ' -e 'runtime error' -e '^SUMMARY' "$RUN/$name.out" | head -n 20 | sed 's/^/# /'
	echo "# ${line:-$name: exit status $rc}"
}
figure() { sed -n "s/.* $1=\([0-9]*\).*/\1/p" <<<"$line"; }

mode each
check_eq faults_each 0 $rc
# That it injects at all: floors well below what there is.
check_ge faults_each_sites 200 "$(figure sites)"
check_ge faults_each_failed_calls 1000 "$(figure failed_calls)"
check_ge faults_each_kinds_of_call 20 "$(figure kinds)"
check_ge faults_each_calls_and_errors 120 "$(figure distinct)"
check_ge faults_each_guest_accesses 1000000 "$(figure accesses)"

mode lasting
check_eq faults_lasting 0 $rc
check_ge faults_lasting_failed_calls 3000 "$(figure failed_calls)"

# Pages that are out of the guest and cannot go back: they do once memory is there; if never, the VM stops.
mode back
check_eq faults_back 0 $rc
check_ge faults_back_failed_calls 500 "$(figure failed_calls)"
mode lost
check_eq faults_lost_stops_the_vm 134 $rc
check_eq faults_lost_says_why 1 "$(grep -c 'stopping the VM' "$RUN/lost.out")"
check_eq faults_lost_nothing_wrong_before 0 "$(grep -c '^bad' "$RUN/lost.out")"

mode random 8 "${SEED:-$RANDOM}"
check_eq faults_random 0 $rc
check_ge faults_random_failed_calls 300 "$(figure failed_calls)"

mode life
check_eq faults_life 0 $rc
check_ge faults_life_calls_and_errors 30 "$(figure distinct)"

mode dma
check_eq faults_dma 0 $rc
check_ge faults_dma_calls_and_errors 15 "$(figure distinct)"
