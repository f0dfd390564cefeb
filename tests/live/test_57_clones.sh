#!/usr/bin/env bash
# timeout: 150
# Clones of one snapshot: the first has the daemon load its file, the others are mapped from what was loaded, in milliseconds.
# Their memory is right to the byte, takes the host no more than one of them does, and what one writes is its own; also
# after the daemon was killed and started again. A file that was changed is another image; what is none is refused.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh" # for the status

TOOL=$BUILD/tests/tool_clone
CLONES=8 MIB=64 PAGES=16384
# Of tool_clone.c's snapshot: a stretch of 2048 zero pages; single ones are stored as well.
STORED=$((PAGES - 2048))
[ -x "$TOOL" ] || die clones "$TOOL is not built"

declare -A pid to
vm() # NAME FILE SEED: the error of its call is in $error, its time in $us
{
	mkfifo "$RUN/$1.in"
	exec {fd}<>"$RUN/$1.in"
	to[$1]=$fd
	# shellcheck disable=SC2016
	start "$RUN/$1.log" bash -c 'exec "$0" run "$1" "$2" "$3" <"$4"' "$TOOL" "$1" "$2" "$3" "$RUN/$1.in"
	pid[$1]=$PID
	wait_for 70 grep -q '^cloned' "$RUN/$1.log" || die clones_start "$1: $(cat "$RUN/$1.log")"
	answer=$(tail -n 1 "$RUN/$1.log")
	error=$(figure err) us=$(figure us)
}
lines() { wc -l <"$RUN/$1.log"; }
more_lines() { [ "$(lines "$1")" -gt "$2" ]; }
say() # NAME COMMAND...: its answer is in $answer
{
	local name=$1 before
	shift
	before=$(lines "$name")
	echo "$*" >&"${to[$name]}"
	wait_for 40 more_lines "$name" "$before" || die clones_answer "$name does not answer '$*'"
	answer=$(tail -n 1 "$RUN/$name.log")
}
figure() { sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" <<<"$answer"; }
checked() # WHEN VM...
{
	local when=$1 vm
	shift
	for vm; do
		say "$vm" check
		check_eq "clones_content_${when}_$vm" "check: 0 wrong" "$answer"
	done
}
store_is() { take_status && [ "$(domain_value store_pages)" = "$1" ]; }
gone() { end_process "${pid[$1]}" TERM; }

"$TOOL" make "$RUN/snapshot" $MIB 1
start_daemon scan.cpu_percent=100 scan.interval=600s scan.idle_interval=600s || die clones_daemon "ballastd does not start"

others=0 longest=0
for i in $(seq $CLONES); do
	vm c"$i" "$RUN/snapshot" 1
	check_eq clones_start_c"$i" 0 "$error"
	echo "# c$i: $us us"
	if [ "$i" -eq 1 ]; then
		first=$us
		# The file was written just now, and is let grow old first.
	else
		others=$((others + us)) longest=$((us > longest ? us : longest))
	fi
done
echo "RESULT clone_first us=$first mib=$MIB"
echo "RESULT clone_others mean_us=$((others / (CLONES - 1))) max_us=$longest mib=$MIB"
for i in $(seq $CLONES); do
	say c"$i" shared
	check_ge clones_shared_c"$i" $STORED "$(figure pages)"
	check_ge clones_few_mappings_c"$i" 1 $(($(figure mappings) <= 4))
done
take_status
check_eq clones_stored_once $STORED "$(domain_value store_pages)"
check_eq clones_counted $((STORED * CLONES)) "$(vms_sum image_pages_total c1 c2 c3 c4 c5 c6 c7 c8)"
check_eq clones_counted_shared $((STORED * CLONES)) "$(vms_sum shared_pages c1 c2 c3 c4 c5 c6 c7 c8)"
checked first c1 c2 c3 c4 c5 c6 c7 c8
sum=0
for i in $(seq $CLONES); do
	say c"$i" pss
	sum=$((sum + ${answer#pss: }))
done
echo "RESULT clones_pss sum_kib=$sum clones=$CLONES mib=$MIB"
# One image, what the processes take of their own, and some room.
if [ -n "${SAN:-}" ]; then
	skip clones_pss "sanitizers take memory of their own"
else
	check_ge clones_pss 1 $((sum < MIB * 1024 + CLONES * 4096))
fi

say c2 again
check_eq clones_memory_in_use 16 "$(figure err)"
say c1 write 0 2000
checked written c1 c2
say c1 shared
check_eq clones_written_are_private $((STORED - 1024)) "$(figure pages)"

# The daemon dies: nothing changes for who runs, and who comes has to fill its memory itself.
kill_daemon
checked without_daemon c1 c3
say c3 write 5000 100
start_daemon || die clones_daemon_again "ballastd does not start again"
connected() { say "$1" connected && [ "$answer" = "connected: 1" ]; }
for i in $(seq $CLONES); do check clones_connected_c"$i" wait_for 20 connected c"$i"; done
check clones_found_again wait_for 20 store_is $STORED ||
	echo "# store: $(domain_value store_pages) pages, $(domain_value store_refs) references"
checked restarted c1 c2 c3 c4
# Images are not remembered: it is loaded again, and is right again.
vm d1 "$RUN/snapshot" 1
check_eq clones_start_d1 0 "$error"
vm d2 "$RUN/snapshot" 1
check_eq clones_start_d2 0 "$error"
echo "# after the restart: $us us"
checked after_restart d1 d2 c2

# Another file in the same place, then the same file with another content: other images.
"$TOOL" make "$RUN/snapshot" $MIB 2
vm e1 "$RUN/snapshot" 2
check_eq clones_start_e1 0 "$error"
checked changed e1 d1
printf 'x' | dd of="$RUN/snapshot" bs=1 seek=$((4096 * 7 + 9)) conv=notrunc status=none
vm e2 "$RUN/snapshot" 2
say e2 check
check_eq clones_changed_byte "0 check: 1 wrong" "$error $answer"

# What is no image.
ctl pause >/dev/null
vm f1 "$RUN/snapshot" 2
check_eq clones_paused 11 "$error"
checked paused f1
ctl resume >/dev/null

# With the last of its clones an image goes.
for vm in c1 c2 c3 c4 c5 c6 c7 c8 d1 d2 e1 e2 f1; do
	check clones_runs_$vm alive "${pid[$vm]}"
	gone $vm
done
check clones_store_empty wait_for 20 store_is 0
check clones_daemon_runs alive "$DAEMON_PID"
