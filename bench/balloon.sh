#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# make bench-balloon: the stock balloon driver and ours, under QEMU's microvm and under ballast-vmm, a GiB in and out, on the test host
# (tests/testhost/); the figures are those of tests/kvm/test_53_vmm_guest_driver.sh. Once with the kernel as it is, which zeroes what it
# allocates (Debian's do), and once without that.
#
# build/bench/balloon/results.txt has the test's own RESULT lines.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
out=$BUILD/bench/balloon
mkdir -p "$out"
: >"$out/results.txt"
export BUILD
tests/guest/build.sh --all
tests/guest/driver.sh >/dev/null
for kernel in zeroing init_on_alloc=0; do
	log=$out/$kernel.log
	GUEST_PARAMS=
	[ "$kernel" = zeroing ] || GUEST_PARAMS=$kernel
	export GUEST_PARAMS
	if ! tests/testhost/run.sh --timeout 900 tests/kvm/test_53_vmm_guest_driver.sh >"$log" 2>&1; then
		grep '^not ok' "$log" >&2 || tail -n 5 "$log" >&2
		echo "bench-balloon: the test fails: $log" >&2
		exit 1
	fi
	sed -n "s/^RESULT \(balloon[a-z_]*\) /RESULT \1 kernel=$kernel /p" "$log" | tee -a "$out/results.txt"
done
