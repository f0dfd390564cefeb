#!/usr/bin/env bash
# make bench-ksm: records the memory of stock guests, then runs the comparison (ksm.c) on it.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
guests=${GUESTS:-3}
export BUILD CONTENT=$BUILD/bench/ksm-content
[ "$(id -u)" -eq 0 ] || { echo "bench-ksm: must run as root: it sets /sys/kernel/mm/ksm" >&2; exit 1; }

rm -rf "$CONTENT"
mkdir -p "$CONTENT"
tests/guest/build.sh
pids=()
cleanup()
{
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
	[ -n "${KEEP_CONTENT:-}" ] || rm -rf "$CONTENT"
}
trap cleanup EXIT

for ((i = 1; i <= guests; i++)); do
	timeout 600 qemu-system-x86_64 -accel tcg -m 256 -nodefaults -display none -no-reboot \
		-serial "file:$CONTENT/console$i" -kernel build/guest/vmlinuz -initrd build/guest/initrd.gz \
		-append "console=ttyS0 quiet panic=-1 ballast.seed=$i" &
	pids+=($!)
done
for ((i = 1; i <= guests; i++)); do
	for ((n = 0; n < 1200; n++)); do
		grep -q GUEST-READY "$CONTENT/console$i" 2>/dev/null && continue 2
		sleep 0.1
	done
	echo "bench-ksm: guest $i did not start (see $CONTENT/console$i)" >&2
	exit 1
done
vmms=()
for p in "${pids[@]}"; do vmms+=("$(cat "/proc/$p/task/$p/children")"); done
# The guests are needed only to be recorded; ksm.c does that first, and says so on stdout.
# shellcheck disable=SC2086
"$BUILD/bench-ksm" ${vmms[*]} &
bench=$!
for ((n = 0; n < 600; n++)); do
	[ -e "$CONTENT/recorded" ] && break
	kill -0 $bench 2>/dev/null || break
	sleep 0.1
done
for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
pids=()
wait $bench
