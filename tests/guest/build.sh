#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prepares the test guest under build/guest/:
#   vmlinuz     Debian's 6.12 cloud kernel, taken out of its package (not installed), or KERNEL
#   initrd.gz   busybox, init and the test programs, 100 % ours but for busybox and two modules
#   kvm-probe   says whether /dev/kvm runs a stock kernel (see accel.sh)
# Usage: tests/guest/build.sh [KERNEL]. Does nothing when all is there and newer than its sources.
set -euo pipefail
cd "$(dirname "$0")/../.."

package=linux-image-6.12-cloud-amd64
out=build/guest
cache=build/cache
kernel=${1:-${KERNEL:-}}
cflags="-std=gnu11 -O2 -g0 -Wall -Wextra -Werror -D_GNU_SOURCE -I."

die()
{
	echo "guest: $*" >&2
	exit 1
}

mkdir -p $out $cache
# `make check` and `make demo` may both be here.
exec 9>$out/.lock
flock 9

[ -x /bin/busybox ] || die "/bin/busybox is missing: apt-get install busybox-static"
for tool in cpio gcc dpkg-deb gzip; do
	command -v $tool >/dev/null || die "$tool is missing: apt-get install cpio gcc dpkg gzip"
done

# The cloud package only names the current one: linux-image-6.12.N+deb12-cloud-amd64.
resolve_package()
{
	apt-cache depends $package 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-6\.12[^ ]*\)$/\1/p' |
		head -n 1
}

fetch_package()
{
	local real log=$PWD/$cache/apt.log

	real=$(resolve_package)
	if [ -z "$real" ]; then
		apt-get update -q >"$log" 2>&1 || true
		real=$(resolve_package)
	fi
	[ -n "$real" ] || die "apt knows no $package: check /etc/apt/sources.list (bookworm-security)" \
		"and run apt-get update, or give KERNEL=path/to/vmlinuz (log: $cache/apt.log)"
	echo "guest: downloading $real (34 MB)" >&2
	# Stale package lists name a version that the mirror no longer has: fetch them and try again.
	(cd $cache && { apt-get -o APT::Sandbox::User=root download "$real" >"$log" 2>&1 || {
		apt-get update -q >>"$log" 2>&1
		apt-get -o APT::Sandbox::User=root download "$(resolve_package)" >>"$log" 2>&1
	}; }) || die "could not download $real (log: $cache/apt.log); give KERNEL=path/to/vmlinuz instead"
}

# Prints nothing, and is no error, when there is none yet.
newest_deb()
{
	{ ls -t $cache/linux-image-6.12*-cloud-amd64_*.deb 2>/dev/null || true; } | head -n 1
}

if [ -n "$kernel" ]; then
	[ -r "$kernel" ] || die "cannot read the kernel $kernel (KERNEL=path/to/vmlinuz)"
	source=$(readlink -f "$kernel")
else
	deb=$(newest_deb)
	[ -n "$deb" ] || { fetch_package && deb=$(newest_deb); }
	source=$deb
fi

# Which kernel is there now; changes with KERNEL=.
if [ ! -e $out/vmlinuz ] || [ "$(cat $out/.source 2>/dev/null)" != "$source" ] ||
	[ "$source" -nt $out/vmlinuz ] || [ tests/guest/build.sh -nt $out/vmlinuz ]; then
	rm -rf $out/modules $out/vmlinuz $out/.source
	mkdir -p $out/modules
	if [ -n "$kernel" ]; then
		cp "$source" $out/vmlinuz
	else
		rm -rf $out/deb
		dpkg-deb -x "$deb" $out/deb ||
			die "$deb is damaged: remove it and run again"
		cp $out/deb/boot/vmlinuz-* $out/vmlinuz
		for dir in $out/deb/lib/modules/*; do
			mkdir -p "$out/modules/${dir##*/}"
			for module in virtio/virtio_balloon block/virtio_blk; do
				/bin/busybox xzcat "$dir/kernel/drivers/$module.ko.xz" \
					>"$out/modules/${dir##*/}/${module##*/}.ko" ||
					die "cannot unpack $module.ko.xz: is the disk full?"
			done
		done
		rm -rf $out/deb
	fi
	touch $out/vmlinuz
	echo "$source" >$out/.source
	rm -f $out/initrd.gz
fi

stale()
{
	local target=$1 f

	shift
	[ -e "$target" ] || return 0
	for f in "$@"; do
		[ "$f" -nt "$target" ] && return 0
	done
	return 1
}

shared="tests/guest/guest.c tests/guest/guest.h common/types.h common/clock.h"
if stale $out/initrd.gz tests/guest/init tests/guest/workload.c tests/guest/memcheck.c \
	tests/guest/diskcheck.c $shared \
	tests/guest/build.sh /bin/busybox; then
	root=$out/root
	rm -rf $root
	mkdir -p $root/bin $root/lib $root/dev
	cp /bin/busybox $root/bin/busybox
	install -m 755 tests/guest/init $root/init
	for p in workload memcheck diskcheck; do
		gcc $cflags -static -s -o $root/bin/$p tests/guest/$p.c tests/guest/guest.c ||
			die "cannot build $p statically: apt-get install gcc libc6-dev"
	done
	[ -d $out/modules ] && cp -r $out/modules $root/lib/modules
	(cd $root && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) >$out/initrd.tmp
	mv $out/initrd.tmp $out/initrd.gz
	rm -rf $root
fi

if stale $out/kvm-probe tests/guest/kvm_probe.c tests/guest/build.sh; then
	gcc $cflags -o $out/kvm-probe tests/guest/kvm_probe.c
fi
