#!/usr/bin/env bash
# timeout: 240
# Huge pages: the daemon counts what splitting each would save, splits it when that reaches thp_split_min_saving or the
# host is short of memory, and reports both. By the daemon's word and by the kernel's (smaps, page tables), while a thread
# of each VM rewrites pages all the time.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/flat/flat.sh" # for the status

TOOL=$BUILD/tests/tool_huge
# CHUNKS:TWINS:ZEROS (tool_huge.c). 128 KiB are 32 pages.
X=(8:8:0 4:28:0 2:8:12 4:0:0 2:32:0 2:16:20 5:256:0)
X_KEPT=18 X_SPLIT=9
X_SAVING=$((8 * 8 + 4 * 28 + 2 * 20))
X_SHARED=$((2 * 32 + 2 * 16 + 5 * 256))
X_ZERO=$((2 * 20))
# Some pages of a chunk of so many twins change, between twin and not.
CHANGING=4
# The daemon takes two pages for twins whose hashes have 32 bits in common (ksmd/index.h). Of these VMs' pages, a pair in
# one of ten runs. So a chunk may seem to save a page more than it does.
MAYBE=4
Y=(4:256:0 4:8:0)
W=(8:8:0)
N=(4:64:0)
Y_SAVING=$((4 * 256 + 4 * 8))

[ "$(id -u)" = 0 ] || skip_all huge "other processes' page tables need root"
[ -x "$TOOL" ] || die huge "$TOOL is not built"

port=$(free_port)
DAEMON=(scan.cpu_percent=100 scan.interval=50ms scan.idle_interval=1s scan.pressure_some=0 metrics.port="$port")

declare -A pid address groups
vm() # MODE NAME SET GROUP...: begins to start one
{
	start "$RUN/$2.log" "$TOOL" "$@"
	pid[$2]=$PID
	groups[$2]=${*:4}
}
__attached_or_dead() { grep -q '^attached' "$RUN/$1.log" || ! alive "${pid[$1]}"; }
vm_attached() # NAME...: and of huge pages
{
	local name
	for name; do
		wait_for 60 __attached_or_dead "$name"
		address[$name]=$(sed -n 's/^attached //p' "$RUN/$name.log")
		[ -n "${address[$name]}" ] || die huge_attach "$name: $(cat "$RUN/$name.log")"
		grep -q '^filled chunks=\([0-9]*\) huge=\1$' "$RUN/$name.log" ||
			skip_all huge "no huge pages to be had: $name: $(head -n 1 "$RUN/$name.log")"
	done
}

# look NAME: what the kernel says; then of group I, or of all of it.
look()
{
	# shellcheck disable=SC2086 # words
	timeout 20 "$TOOL" look "${pid[$1]}" "${address[$1]}" ${groups[$1]} >"$RUN/look"
}
group() { sed -n "s/^group $1 .*\b$2=\([0-9]*\).*/\1/p" "$RUN/look"; } # I KEY
smaps_huge() { echo $(($(sed -n 's/^smaps anon_huge=//p' "$RUN/look") / 2048)); }
show_look() { sed "s/^/# $1: /" "$RUN/look"; }
groups_are() # NAME KEY VALUE...: of its groups in order; "-": any; "N-M": from N to M
{
	local name=$1 key=$2 i=0 v got
	shift 2
	look "$name" || return 1
	for v; do
		got=$(group $i "$key")
		[ "$v" = - ] || { [ "$got" -ge "${v%-*}" ] && [ "$got" -le "${v#*-}" ]; } || return 1
		i=$((i + 1))
	done
}

sum_is() { take_status && [ "$(vms_sum "$1" "${@:3}")" = "$2" ]; } # KEY VALUE NAME...
sum_within() # KEY LEAST MOST NAME...
{
	local sum
	take_status && sum=$(vms_sum "$1" "${@:4}") && [ "$sum" -ge "$2" ] && [ "$sum" -le "$3" ]
}
check_within() # NAME LEAST MOST GOT
{
	if [[ $4 =~ ^[0-9]+$ ]] && [ "$4" -ge "$2" ] && [ "$4" -le "$3" ]; then
		pass "$1"
	else
		fail "$1" "wanted $2 to $3, got '$4'"
	fi
}
passes_reach() { take_status && [ "$(vm_value "$1" passes_total)" -ge "$2" ]; }
some_passes() # LEAST NAME...
{
	local name at
	for name in "${@:2}"; do
		take_status && at=$(vm_value "$name" passes_total)
		wait_for 60 passes_reach "$name" $((at + $1)) || fail huge_passes "no passes over $name"
	done
}
show() # NAME...
{
	local name
	take_status
	for name; do
		echo "# $name: huge $(vm_value "$name" huge_pages) saving $(vm_value "$name" huge_saving_pages)" \
			"splits $(vm_value "$name" huge_splits_total) shared $(vm_value "$name" shared_pages)" \
			"zero $(vm_value "$name" zero_pages) merged $(vm_value "$name" merged_pages_total)" \
			"broken $(vm_value "$name" broken_pages_total) failed $(vm_value "$name" failed_pages_total)" \
			"pinned $(vm_value "$name" pinned_pages_total) passes $(vm_value "$name" passes_total)" \
			"hashed $(vm_value "$name" hashed_pages_total)"
	done
}

__reloads_reach() { take_status && [ "$(host_value reloads_total)" -ge "$1" ]; }
reload()
{
	local before
	take_status && before=$(host_value reloads_total)
	write_config "${DAEMON[@]}" "$@" && kill -HUP "$DAEMON_PID"
	wait_for 20 __reloads_reach $((before + 1)) || fail huge_reload "not taken: $*"
}
# All huge pages are surveyed anew when sharing is resumed, in the next pass over them.
survey_all() # [SECTION.KEY=VALUE] NAME...
{
	local set=()
	if [[ $1 == *=* ]]; then
		set=("$1")
		shift
	fi
	reload ${set[@]+"${set[@]}"} scan.enabled=off
	reload ${set[@]+"${set[@]}"}
	some_passes 8 "$@"
}
metric() { exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && sed -n "s/^$1{vm=\"$2\"} //p" <&3 | tr -d '\r'; }
metric_is() { [ "$(metric "$1" "$2")" = "$3" ]; }

__checked() { [ "$(grep -c '^checked' "$RUN/$1.log")" -gt "$2" ]; }
check_all() # NAME: it checks each of its pages now
{
	local before
	before=$(grep -c '^checked' "$RUN/$1.log")
	kill -USR1 "${pid[$1]}"
	wait_for 60 __checked "$1" "$before" || fail huge_checked "$1: $(tail -n 1 "$RUN/$1.log")"
}
check_content() # TEST NAME...
{
	local test=$1 name
	for name in "${@:2}"; do
		check_all "$name"
		sed -n '/^ERROR/s/^/# /p' "$RUN/$name.log"
		check_eq "${test}_${name}_errors" 0 "$(sed -n 's/^checked errors=\([0-9]*\) .*/\1/p' "$RUN/$name.log" | tail -n 1)"
		check "${test}_${name}_runs" alive "${pid[$name]}"
	done
}

# --- kept and split, by the default threshold ---------------------------------------------------

start_daemon "${DAEMON[@]}" || die huge_daemon "ballastd does not start"
vm vm x1 set-x "${X[@]}"
vm vm x2 set-x "${X[@]}"
vm_attached x1 x2
look x1 && show_look x1

# Fails if chunks of 32 pages' saving or more (twins, or twins and zeros) are not split, or not merged then.
check huge_split wait_for 60 vms_reach huge_splits_total $((2 * X_SPLIT)) x1 x2
check huge_split_merged wait_for 60 vms_reach shared_pages $((2 * X_SHARED)) x1 x2
check huge_split_zeros wait_for 60 vms_reach zero_pages $((2 * X_ZERO)) x1 x2
# Fails if the survey counts a page too few in any chunk that is kept, or a few too many, or not all are known to be huge.
check huge_kept_saving wait_for 60 sum_within huge_saving_pages $((2 * X_SAVING)) $((2 * X_SAVING + MAYBE)) x1 x2
for i in 1 2 3; do
	survey_all x1 x2
done
show x1 x2
for name in x1 x2; do
	# Fails if any chunk that saves less than the threshold is split (thp_split_min_saving = 4KiB: all but group 3 are).
	check_eq huge_${name}_splits $X_SPLIT "$(vm_value $name huge_splits_total)"
	check_eq huge_${name}_huge $X_KEPT "$(vm_value $name huge_pages)"
	saving=$(vm_value $name huge_saving_pages)
	check_within huge_${name}_saving $X_SAVING $((X_SAVING + MAYBE)) "$saving"
	check_eq huge_${name}_zero $X_ZERO "$(vm_value $name zero_pages)"
	check huge_${name}_metric_pages wait_for 5 metric_is ballast_vm_huge_pages $name $X_KEPT
	check huge_${name}_metric_saving wait_for 5 metric_is ballast_vm_huge_saving_bytes $name $((saving * 4096))
	check huge_${name}_metric_splits wait_for 5 metric_is ballast_vm_huge_splits_total $name $X_SPLIT
	look $name && show_look $name
	# The same by the kernel's word. Fails if it had to split what the daemon says is kept, or anything of that shows the store.
	check_eq huge_${name}_smaps $X_KEPT "$(smaps_huge)"
	check huge_${name}_outside_huge groups_are $name huge 8 4 2 4 0 0 0
	check huge_${name}_outside_merged groups_are $name merged 0 0 0 0 64-$((64 + MAYBE)) 32-$((32 + MAYBE)) 1280-$((1280 + 5 * CHANGING + MAYBE))
	check huge_${name}_outside_zero groups_are $name zero 0 0 0 0 0 40 0
done
check_content huge_content x1 x2

# --- what is looked for again and again ---------------------------------------------------------

# A VM of small pages writes the few twins of w1's huge pages again and again, the same as before. Each time they are
# looked for. Fails if lookups count as pages that splitting would save.
vm vm w1 set-w "${W[@]}"
vm_attached w1
vm small w2 set-w "${W[@]}"
wait_for 60 __attached_or_dead w2
check huge_wanted_saving wait_for 60 sum_within huge_saving_pages $((8 * 8)) $((8 * 8 + MAYBE)) w1
hashed_reach() { take_status && [ "$(vm_value "$1" hashed_pages_total)" -ge "$2" ]; }
some_passes 8 w2
for i in 1 2 3 4 5 6 7 8; do
	take_status
	hashed=$(vm_value w2 hashed_pages_total)
	check_all w2 # and then writes all twins
	wait_for 60 hashed_reach w2 $((hashed + 8 * 8)) || fail huge_wanted_looked "the twins were not hashed"
done
some_passes 8 w1 w2
show w1 w2
check_eq huge_wanted_kept 8 "$(vm_value w1 huge_pages)"
check_eq huge_wanted_splits 0 "$(vm_value w1 huge_splits_total)"
check_within huge_wanted_still_saving $((8 * 8)) $((8 * 8 + MAYBE)) "$(vm_value w1 huge_saving_pages)"
check huge_wanted_outside groups_are w1 merged 0
check_eq huge_wanted_smaps 8 "$(smaps_huge)"
check_content huge_wanted w1 w2
end_process "${pid[w1]}"
end_process "${pid[w2]}"

# --- what cannot be merged ----------------------------------------------------------------------

# Splitting would pay, but there are no mappings to merge with. Fails if the daemon counts as split what the kernel has not.
reload scan.max_mappings=0
vm vm n1 set-n "${N[@]}"
vm vm n2 set-n "${N[@]}"
vm_attached n1 n2
# A chunk that is to be split is not counted as kept, until that was in vain.
tried() { take_status && { [ "$(vm_value n1 huge_pages)" = 0 ] || [ "$(vm_value n2 huge_pages)" = 0 ]; }; }
check huge_vain_tried wait_for 60 tried
check huge_vain_kept wait_for 60 sum_is huge_pages 8 n1 n2
some_passes 8 n1 n2
check_eq huge_vain_splits 0 "$(vms_sum huge_splits_total n1 n2)"
for name in n1 n2; do
	check huge_vain_${name}_outside groups_are $name merged 0
	check_eq huge_vain_${name}_smaps 4 "$(smaps_huge)"
done
end_process "${pid[n1]}"
end_process "${pid[n2]}"

# --- another threshold --------------------------------------------------------------------------

reload scan.thp_split_min_saving=2MiB
vm vm y1 set-y "${Y[@]}"
vm vm y2 set-y "${Y[@]}"
vm_attached y1 y2
# Fails if a reload does not reach the engine: 1 MiB a chunk would be split at 128 KiB.
check huge_reload_saving wait_for 60 vms_reach huge_saving_pages $((2 * Y_SAVING)) y1 y2
survey_all scan.thp_split_min_saving=2MiB y1 y2
show x1 x2 y1 y2
for name in y1 y2; do
	check_eq huge_reload_${name}_splits 0 "$(vm_value $name huge_splits_total)"
	check_eq huge_reload_${name}_huge 8 "$(vm_value $name huge_pages)"
	check_within huge_reload_${name}_saving $Y_SAVING $((Y_SAVING + 4 * CHANGING + MAYBE)) "$(vm_value $name huge_saving_pages)"
	check huge_reload_${name}_outside groups_are $name merged 0 0
	check_eq huge_reload_${name}_smaps 8 "$(smaps_huge)"
done
# The control: they would be split if they could. 256 pages are 1 MiB.
reload scan.thp_split_min_saving=1MiB
check huge_lower_split wait_for 60 vms_reach huge_splits_total 8 y1 y2
check huge_lower_merged wait_for 60 vms_reach shared_pages $((2 * 4 * 256)) y1 y2
for name in y1 y2; do
	check huge_lower_${name}_outside_huge wait_for 60 groups_are $name huge 0 4
	check huge_lower_${name}_outside_merged groups_are $name merged - 0
	check_eq huge_lower_${name}_smaps 4 "$(smaps_huge)"
done
take_status
check_eq huge_lower_splits 8 "$(vms_sum huge_splits_total y1 y2)"
check_eq huge_lower_kept $((2 * X_SPLIT)) "$(vms_sum huge_splits_total x1 x2)"
check_content huge_lower_content x1 x2 y1 y2

# --- pressure -----------------------------------------------------------------------------------

# No host has everything available. Not the threshold: that stays above all that is left to save.
reload scan.thp_split_min_saving=2MiB scan.pressure_available=100
pressure_is() { take_status && [ "$(host_value pressure)" = "$1" ]; }
check huge_pressure_on wait_for 20 pressure_is true
for name in x1 x2; do
	# Fails if pressure does not split what saves little, or splits what saves nothing (group 3; what seems to save a page may be split).
	check huge_pressure_${name}_merged wait_for 60 groups_are $name merged 64-$((64 + MAYBE)) 112-$((112 + MAYBE)) \
		16-$((16 + MAYBE)) 0-$MAYBE 64-$((64 + MAYBE)) 32-$((32 + MAYBE)) 1280-$((1280 + 5 * CHANGING + MAYBE))
	check huge_pressure_${name}_huge groups_are $name huge 0 0 0 2-4 0 0 0
	check huge_pressure_${name}_zero wait_for 60 groups_are $name zero 0 0 24 0 0 40 0
	check_within huge_pressure_${name}_smaps 2 4 "$(smaps_huge)"
done
for name in y1 y2; do
	check huge_pressure_${name}_merged wait_for 60 groups_are $name merged 1024-$((1024 + 4 * CHANGING + MAYBE)) 32-$((32 + MAYBE))
	check_eq huge_pressure_${name}_smaps 0 "$(smaps_huge)"
done
check huge_pressure_no_saving wait_for 20 sum_within huge_saving_pages 0 $MAYBE x1 x2 y1 y2
some_passes 8 x1 x2 y1 y2
show x1 x2 y1 y2
for name in x1 x2; do
	check huge_pressure_${name}_splits wait_for 20 sum_within huge_splits_total $((X_SPLIT + 14)) $((X_SPLIT + 16)) $name
	check_within huge_pressure_${name}_left 2 4 "$(vm_value $name huge_pages)"
done

# --- content ------------------------------------------------------------------------------------

# Fails if nothing that was merged was ever written: then the content proves little.
check huge_broken wait_for 60 vms_reach broken_pages_total 8 x1 x2 y1 y2
check_content huge_end x1 x2 y1 y2
for name in x1 x2 y1 y2; do
	tail -n 1 "$RUN/$name.log" | sed "s/^/# $name: /"
	check_ge huge_end_${name}_writes 100 "$(sed -n 's/^checked .*writes=//p' "$RUN/$name.log" | tail -n 1)"
done
check huge_daemon_runs alive "$DAEMON_PID"
