#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prepares the test host under build/testhost/:
#   vmlinuz     Debian's 6.12 generic kernel (the cloud one has no 9p), taken out of its package, not installed
#   initrd.gz   busybox, init and the modules it loads; all else comes over 9p when it runs
# Does nothing when all is there and newer than its sources.
set -euo pipefail
cd "$(dirname "$0")/../.."
KERNEL_WHO=testhost
. tests/guest/kernel.sh

out=build/testhost

# What a host of VMs has. In this order: the first are what init needs before it can do anything else.
# virtio_pci and virtio_console are built into this kernel, and so are zswap, MGLRU, KSM and userfaultfd.
modules=(9p 9pnet_virtio virtio_rng
	ccp kvm_amd
	tun bridge veth vhost_net vhost_vsock
	zram lz4 zstd loop overlay ext4 crc32c_generic nbd)

mkdir -p $out
exec 9>$out/.lock
flock 9

[ -x /bin/busybox ] || kernel_die "/bin/busybox is missing: apt-get install busybox-static"
for tool in cpio dpkg-deb gzip qemu-system-x86_64; do
	command -v $tool >/dev/null || kernel_die "$tool is missing: apt-get install cpio dpkg gzip qemu-system-x86"
done

fresh=1
for f in tests/testhost/build.sh tests/testhost/init tests/guest/kernel.sh /bin/busybox; do
	[ ! "$f" -nt $out/initrd.gz ] || fresh=
done
deb=$(kernel_deb linux-image-6.12-amd64 6.12 generic)
[ -e $out/initrd.gz ] && [ -n "$fresh" ] && [ "$(cat $out/.source 2>/dev/null)" = "$deb" ] && exit 0

rm -rf $out/deb $out/root $out/.source
# 100 MB, of which a few are needed.
dpkg-deb -x "$deb" $out/deb || kernel_die "$deb is damaged: remove it and run again"
cp $out/deb/boot/vmlinuz-* $out/vmlinuz
mkdir -p $out/root/bin $out/root/lib $out/root/dev
kernel_modules $out/deb/lib/modules/* $out/root/lib/modules "${modules[@]}" >$out/root/lib/order
cp /bin/busybox $out/root/bin/busybox
install -m 755 tests/testhost/init $out/root/init
(cd $out/root && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) >$out/initrd.tmp
mv $out/initrd.tmp $out/initrd.gz
rm -rf $out/deb $out/root
echo "$deb" >$out/.source
