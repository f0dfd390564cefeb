#!/usr/bin/env bash
# make bench-vmm: ballast-vmm against QEMU's microvm and against a cold boot, on the test host (tests/testhost/). The figures are
# those of the tests that measure, with more turns; here they become ratios.
#
# build/bench/vmm/results.txt has the tests' own RESULT lines.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
out=$BUILD/bench/vmm
mkdir -p "$out"
: >"$out/results.txt"

# TURNS, ROUNDS: of tests/kvm/test_44_vmm_boot_time.sh, tests/kvm/test_54_vmm_disk_speed.sh.
export BUILD TURNS=${TURNS:-5} ROUNDS=${ROUNDS:-3}
tests/guest/build.sh --all
for name in 44_vmm_boot_time 45_vmm_clones 46_vmm_share_on_read 54_vmm_disk_speed; do
	log=$out/$name.log
	if ! tests/testhost/run.sh --timeout 900 "tests/kvm/test_$name.sh" >"$log" 2>&1; then
		grep '^not ok' "$log" >&2 || tail -n 5 "$log" >&2
		echo "bench-vmm: test_$name fails: $log" >&2
		exit 1
	fi
	grep '^RESULT ' "$log" | tee -a "$out/results.txt"
done

# value NAME KEY: of all its lines
value() { sed -n "s/^RESULT $1 .*\b$2=\([0-9.]*\).*/\1/p" "$out/results.txt"; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

cold=$(value kvm_clone cold_boot_ms | head -n 1)
first=$(value kvm_clone answer_ms | head -n 1)
others=$(value kvm_clone answer_ms | tail -n +2 | median)
echo "RESULT vmm_boot ballast_vmm_ms=$(value kvm_boot_time ballast_vmm_ms) qemu_microvm_ms=$(value kvm_boot_time qemu_microvm_ms)" \
	"ratio=$(ratio "$(value kvm_boot_time ballast_vmm_ms)" "$(value kvm_boot_time qemu_microvm_ms)")"
echo "RESULT vmm_clone first_instruction_us=$(value kvm_clone start_us | tail -n +2 | median) answer_ms=$others first_answer_ms=$first" \
	"cold_boot_ms=$cold ratio=$(ratio "$others" "$cold") pss_kib=$(value kvm_clones pss_kib) rss_kib=$(value kvm_clones rss_kib)"
echo "RESULT vmm_disk cached_ratio=$(value kvm_disk_read ratio | head -n 1) direct_ratio=$(value kvm_disk_read ratio | tail -n 1)"
echo "RESULT vmm_memory beyond_guest_kib=$(value kvm_vmm_resident beyond_guest_kib)"
echo "RESULT vmm_share_on_read file_pages=$(value kvm_share_on_read file_pages) shared_pages=$(value kvm_share_on_read shared_pages)" \
	"percent=$(value kvm_share_on_read percent)"
