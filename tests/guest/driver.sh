#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds guest-driver/ for a test guest's kernel, without installing anything: the headers' packages are unpacked under
# build/guest-driver/headers/. Prints the module's path. Usage: tests/guest/driver.sh [6.12 | 6.1]; the guest's kernel must be
# there (build.sh, build.sh --all).
set -euo pipefail
cd "$(dirname "$0")/../.."
KERNEL_WHO=guest-driver
. tests/guest/kernel.sh

release=${1:-6.12}
guest=build/guest
[ "$release" = 6.12 ] || guest=build/guest/$release
version=$(basename "$guest"/modules/*)
[ -d "$guest/modules/$version" ] || kernel_die "no guest kernel $release: tests/guest/build.sh --all"
out=build/guest-driver
dir=$out/$version
mkdir -p "$dir"
exec 9>$out/.lock
flock 9

newer()
{
	local f
	[ -e "$dir/ballast_balloon.ko" ] || return 0
	for f in guest-driver/*.[ch] guest-driver/Kbuild "$guest/vmlinuz"; do
		[ "$f" -nt "$dir/ballast_balloon.ko" ] && return 0
	done
	return 1
}
if ! newer; then
	echo "$dir/ballast_balloon.ko"
	exit 0
fi

headers=$PWD/$out/headers
src=$headers/usr/src/linux-headers-$version
if [ ! -e "$headers/.$version" ]; then
	common=linux-headers-${version%-cloud-amd64}-common
	kbuild=linux-kbuild-${version%-cloud-amd64}
	# 6.1 has one for all of its updates.
	[ "$release" != 6.1 ] || kbuild=linux-kbuild-6.1
	mkdir -p "$headers" "$kernel_cache"
	for package in "linux-headers-$version" "$common" "$kbuild"; do
		deb=$(ls -t $kernel_cache/"$package"_*.deb 2>/dev/null | head -n 1 || true)
		if [ -z "$deb" ]; then
			(cd $kernel_cache && { apt-get -o APT::Sandbox::User=root download "$package" >apt.log 2>&1 || {
				apt-get update -q >>apt.log 2>&1
				apt-get -o APT::Sandbox::User=root download "$package" >>apt.log 2>&1
			}; }) || kernel_die "could not download $package (log: $kernel_cache/apt.log)"
			deb=$(ls -t $kernel_cache/"$package"_*.deb | head -n 1)
		fi
		dpkg-deb -x "$deb" "$headers" || kernel_die "$deb is damaged: remove it and run again"
	done
	# The packages expect to be installed.
	sed -i "s#/usr/src/#$headers/usr/src/#" "$src/Makefile"
	touch "$headers/.$version"
fi

cp guest-driver/*.[ch] guest-driver/Kbuild "$dir/"
# BTF would need pahole, and nothing here reads it.
make -C "$src" M="$PWD/$dir" KCFLAGS=-Werror CONFIG_DEBUG_INFO_BTF_MODULES= modules >"$dir/build.log" 2>&1 || {
	grep -E 'error|warning|Error' "$dir/build.log" >&2
	kernel_die "the module does not build for $version: $dir/build.log"
}
strip -g "$dir/ballast_balloon.ko"
echo "$dir/ballast_balloon.ko"
