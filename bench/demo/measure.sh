# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Measurements of the demo: everything comes from /proc and from build/outside, nothing from ballastd.
# Sourced by demo.sh; uses its $dir, $daemon_pid, $guest_pids.

declare -A r=() # the result; before_KEY and after_KEY are those of the two snapshots

now_us() { echo "${EPOCHREALTIME/[.,]/}"; }

mem_available_kib() { awk '/^MemAvailable:/ { print $2 }' /proc/meminfo; }

pss_kib() { awk '/^Pss:/ { n += $2 } END { print n + 0 }' "$@"; }

# PSS without shared memory, which is the store: its pages are in somebody's PSS only once they are mapped, and a
# page just merged is not yet mapped by anybody. So the store is counted by its size instead (store_kib).
own_kib() { awk '/^Pss_(Anon|File):/ { n += $2 } END { print n + 0 }' "$@"; }

rollups() { printf '/proc/%s/smaps_rollup\n' "$@"; }

# The store's descriptors do not change once the guests' agents are connected: looked up once.
find_store()
{
	local fd

	store_fds=()
	for fd in /proc/"$daemon_pid"/fd/*; do
		case $(readlink "$fd") in
		*memfd:ballast-store*) store_fds+=("$fd") ;;
		esac
	done
}

# Memory that the store takes. Several descriptors may be of one file.
store_kib()
{
	if [ ${#store_fds[@]} -eq 0 ]; then
		echo 0
	else
		stat -L -c '%i %b' "${store_fds[@]}" | sort -u | awk '{ n += $2 } END { print int(n / 2) }'
	fi
}

sample()
{
	local us=$(($(now_us) - resume_us))

	# shellcheck disable=SC2046
	printf '%d.%03d,%d,%d,%d,%d\n' $((us / 1000000)) $(((us < 0 ? -us : us) / 1000 % 1000)) \
		"$(own_kib $(rollups "${guest_pids[@]}"))" "$(store_kib)" \
		"$(own_kib $(rollups "$daemon_pid"))" "$(mem_available_kib)" | { [ $us -lt 0 ] && sed 's/^0\./-0./' || cat; }
}

# CPU time of ballastd and of the agents' threads inside the VMMs. Ticks (10 ms) are what the kernel shows.
cpu_us()
{
	local files=("/proc/$daemon_pid/stat") task pid

	for pid in "${guest_pids[@]}"; do
		for task in /proc/"$pid"/task/*; do
			case $(cat "$task/comm" 2>/dev/null) in
			ballast-agent | ballast-fault) files+=("$task/stat") ;;
			esac
		done
	done
	# Fields 14 and 15; the command name before them may hold spaces.
	awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); n += $12 + $13 }
		END { printf "%d\n", n * 1000000 / hz }' "${files[@]}"
}

status_kib() { awk -v key="$1:" '$1 == key { n += $2 } END { print n + 0 }' "${@:2}"; }

slab_bytes() { awk -v name="$1" -v dflt="$2" '$1 == name { dflt = $4 } END { print dflt }' /proc/slabinfo; }

# Notes what processes take beside guest memory, for the snapshot @1.
note_processes()
{
	local i key value

	while IFS='=' read -r key value; do
		r[$1_$key]=$value
	done <"$dir/$1.kv"
	for ((i = 1; i <= ${#guest_pids[@]}; i++)); do
		r[$1_guest${i}_pss_kib]=$(pss_kib "/proc/${guest_pids[i - 1]}/smaps_rollup")
	done
	# shellcheck disable=SC2046
	{
		r[$1_guests_pss_kib]=$(pss_kib $(rollups "${guest_pids[@]}"))
		r[$1_pte_bytes]=$(($(status_kib VmPTE $(printf '/proc/%s/status\n' "${guest_pids[@]}")) * 1024))
	}
	r[$1_daemon_pss_kib]=$(pss_kib "/proc/$daemon_pid/smaps_rollup")
	# Without the store, which guests' PSS and the page frames account for.
	r[$1_daemon_own_bytes]=$((($(own_kib "/proc/$daemon_pid/smaps_rollup") +
		$(status_kib VmPTE "/proc/$daemon_pid/status")) * 1024))
	r[$1_store_bytes]=$(($(store_kib) * 1024))
	r[$1_mem_available_kib]=$(mem_available_kib)
	for key in pte_bytes daemon_own_bytes store_bytes guests_pss_kib daemon_pss_kib mem_available_kib; do
		echo "$key=${r[$1_$key]}"
	done >>"$dir/$1.kv"
}

percent() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f\n", b ? 100 * a / b : 0 }'; }

# See bench/README.md, "The figures".
compute_result()
{
	local unused per_vma

	r[dup_pages]=${r[after_dup_pages]}
	r[merged_pages]=${r[after_merged_pages]}
	r[merged_percent]=$(percent "${r[merged_pages]}" "${r[dup_pages]}")
	r[zero_pages]=${r[after_zero_pages]}
	r[zero_merged_percent]=$(percent "${r[after_zero_merged_pages]}" "${r[zero_pages]}")
	r[saved_bytes]=$(((r[before_frames] - r[after_frames]) * 4096))
	unused=$((r[after_store_bytes] - r[after_store_frames] * 4096))
	r[store_unused_bytes]=$((unused > 0 ? unused : 0))
	# A mapping is a vm_area_struct, a link to its anon_vma and a slot in a maple tree node.
	per_vma=$(($(slab_bytes vm_area_struct 192) + $(slab_bytes anon_vma_chain 64) + 16))
	r[vma_bytes]=$(((r[after_process_vmas] - r[before_process_vmas]) * per_vma))
	r[pte_growth_bytes]=$((r[after_pte_bytes] - r[before_pte_bytes]))
	r[daemon_bytes]=${r[after_daemon_own_bytes]}
	r[overhead_bytes]=$((r[daemon_bytes] + r[store_unused_bytes] + r[vma_bytes] + r[pte_growth_bytes]))
	r[net_saved_bytes]=$((r[saved_bytes] - r[overhead_bytes]))
	r[cpu_seconds]=$(awk -v us=$((cpu_after_us - cpu_before_us)) 'BEGIN { printf "%.2f\n", us / 1e6 }')
	r[seconds]=$seconds
	# When the memory in use first came within 1 % of what was to be saved in the end.
	r[settled_seconds]=$(awk -F, '
		NR > 1 { t[NR] = $1; v[NR] = $2 + $3 + $4; if ($1 <= 0) first = v[NR] }
		END {
			near = v[NR] + (first - v[NR]) * 0.01
			for (i = NR; i > 1 && v[i] <= near; i--) at = t[i]
			printf "%.1f\n", (at > 0 ? at : 0)
		}' "$dir/samples.csv")

	result_line="RESULT demo guests=${#guest_pids[@]}"
	for key in dup_pages merged_pages merged_percent saved_bytes net_saved_bytes cpu_seconds \
		zero_pages zero_merged_percent seconds settled_seconds; do
		result_line+=" $key=${r[$key]}"
	done
	result_line+=" before_dup_pages=${r[before_dup_pages]} before_merged_pages=${r[before_merged_pages]}"
	echo "$result_line" >"$dir/result.txt"
	for key in "${!r[@]}"; do
		echo "$key=${r[$key]}"
	done | sort >"$dir/result.kv"
}
