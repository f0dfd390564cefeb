#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prepares the test guest under build/guest/:
#   vmlinuz       Debian's 6.12 cloud kernel, taken out of its package (not installed), or KERNEL
#   initrd.gz     busybox, init and the test programs, 100 % ours but for busybox and the kernel's virtio modules
#   kvm-probe     says whether /dev/kvm runs a stock kernel (see accel.sh)
# and with --all, for tests of VMMs:
#   vmlinux       the ELF kernel inside vmlinuz
#   6.1/          the same three of Debian's 6.1 cloud kernel
# Usage: tests/guest/build.sh [--all | KERNEL]. Does nothing when all is there and newer than its sources.
set -euo pipefail
cd "$(dirname "$0")/../.."
KERNEL_WHO=guest
. tests/guest/kernel.sh

all=
[ "${1:-}" = --all ] && all=1 && shift
kernel=${1:-${KERNEL:-}}
[ -z "$all" ] || kernel=
out=build/guest
cflags="-std=gnu11 -O2 -g0 -Wall -Wextra -Werror -D_GNU_SOURCE -I."

# Devices are found through these; 6.12 has virtio_pci built in.
buses=(virtio_mmio virtio_pci)
# By virtio device number (virtio 1.2, section 5); init loads what the machine has.
declare -A devices=([1]=virtio_net [2]=virtio_blk [4]=virtio_rng [5]=virtio_balloon [19]=vmw_vsock_virtio_transport
	[24]=virtio_mem)

mkdir -p $out
# `make check` and `make demo` may both be here.
exec 9>$out/.lock
flock 9

[ -x /bin/busybox ] || kernel_die "/bin/busybox is missing: apt-get install busybox-static"
for tool in cpio gcc dpkg-deb gzip; do
	command -v $tool >/dev/null || kernel_die "$tool is missing: apt-get install cpio gcc dpkg gzip"
done

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

unpack_modules() # FROM TO
{
	local id

	mkdir -p "$2"
	kernel_modules "$1" "$2" "${buses[@]}" >"$2/buses"
	for id in "${!devices[@]}"; do
		kernel_modules "$1" "$2" "${devices[$id]}" >"$2/virtio-$id"
	done
}

# Which kernel is there now; changes with KERNEL=.
build_kernel() # DIR SOURCE
{
	local dir=$1 source=$2 lib

	if ! stale $dir/vmlinuz "$source" tests/guest/build.sh tests/guest/kernel.sh &&
		[ "$(cat $dir/.source 2>/dev/null)" = "$source" ]; then
		return
	fi
	rm -rf $dir/modules $dir/vmlinuz $dir/vmlinux $dir/initrd.gz $dir/.source
	mkdir -p $dir/modules
	if [ -n "$kernel" ]; then
		cp "$source" $dir/vmlinuz
	else
		rm -rf $dir/deb
		dpkg-deb -x "$source" $dir/deb ||
			kernel_die "$source is damaged: remove it and run again"
		cp $dir/deb/boot/vmlinuz-* $dir/vmlinuz
		for lib in $dir/deb/lib/modules/*; do
			unpack_modules "$lib" "$dir/modules/${lib##*/}"
		done
		rm -rf $dir/deb
	fi
	touch $dir/vmlinuz
	echo "$source" >$dir/.source
}

programs=(workload memcheck diskcheck burst)
build_programs()
{
	local p shared="tests/guest/guest.c tests/guest/guest.h common/types.h common/clock.h"

	mkdir -p $out/bin
	for p in "${programs[@]}"; do
		stale $out/bin/$p tests/guest/$p.c $shared tests/guest/build.sh || continue
		gcc $cflags -static -s -o $out/bin/$p tests/guest/$p.c tests/guest/guest.c ||
			kernel_die "cannot build $p statically: apt-get install gcc libc6-dev"
	done
}

build_initrd() # DIR
{
	local dir=$1 root=$1/root

	stale $dir/initrd.gz tests/guest/init "${programs[@]/#/$out/bin/}" $dir/vmlinuz /bin/busybox || return 0
	rm -rf $root
	mkdir -p $root/bin $root/lib $root/dev
	cp /bin/busybox "${programs[@]/#/$out/bin/}" $root/bin
	install -m 755 tests/guest/init $root/init
	[ -d $dir/modules ] && cp -r $dir/modules $root/lib/modules
	(cd $root && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) >$dir/initrd.tmp
	mv $dir/initrd.tmp $dir/initrd.gz
	rm -rf $root
}

build_programs
if [ -n "$kernel" ]; then
	[ -r "$kernel" ] || kernel_die "cannot read the kernel $kernel (KERNEL=path/to/vmlinuz)"
	build_kernel $out "$(readlink -f "$kernel")"
else
	build_kernel $out "$(kernel_deb linux-image-6.12-cloud-amd64 6.12 cloud)"
fi
build_initrd $out

if [ -n "$all" ]; then
	mkdir -p $out/6.1
	# 6.1 is what Debian 12 calls just the cloud kernel.
	build_kernel $out/6.1 "$(kernel_deb linux-image-cloud-amd64 6.1 cloud)"
	build_initrd $out/6.1
	for dir in $out $out/6.1; do
		stale $dir/vmlinux $dir/vmlinuz && kernel_vmlinux $dir/vmlinuz $dir/vmlinux
	done
fi

if stale $out/kvm-probe tests/guest/kvm_probe.c tests/guest/build.sh; then
	gcc $cflags -o $out/kvm-probe tests/guest/kvm_probe.c
fi
