#!/usr/bin/env bash
# Installs the Debian packages that building, testing and the demo need. Does nothing (and needs no
# privilege and no network) when they are all there. deps.sh fuzz: what `make fuzz` needs beyond that.
set -euo pipefail

build="gcc make pkg-config libc6-dev libxxhash-dev liburcu-dev libjemalloc-dev libsystemd-dev
       libinih-dev libjansson-dev libmicrohttpd-dev liburing-dev libseccomp-dev liblz4-dev"
test="libcriterion-dev passt qemu-system-x86 busybox-static cpio zstd lz4 curl procps cppcheck clang-format-14"
[ "${1:-}" = fuzz ] && test="$test clang libclang-rt-14-dev"

missing=()
for p in $build $test; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "Ballast needs packages that are not installed. Run this once, then try again:" >&2
	echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -q --no-install-recommends "${missing[@]}" >build/apt.log 2>&1; }
mkdir -p build
# The lists may be old or absent: fetch them when the first try fails.
install || { apt-get update -q >>build/apt.log 2>&1 && install; } || {
	tail -n 20 build/apt.log >&2
	echo "could not install: ${missing[*]} (the whole log: build/apt.log)" >&2
	exit 1
}
