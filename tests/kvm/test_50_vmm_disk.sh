#!/usr/bin/env bash
# timeout: 600
# Disks of ballast-vmm, used by a stock guest: files found by their sums on a read-only image, on an overlay, and through
# direct I/O; what was written and synced is there after a power-off and after a killed VMM; the base never changes.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_disk

# Files of many sizes, their sums beside them, in an ext4 image that needs no mount to be made.
files=$RUN/files base=$RUN/base.img
mkdir -p "$files/sub"
for i in 1 511 4096 4097 100000 3000000; do
	head -c $i /dev/urandom >"$files/f$i"
done
cp "$files/f100000" "$files/sub/copy"
(cd "$files" && find . -type f ! -name SUMS -exec sha256sum {} + >SUMS)
truncate -s 24M "$base"
mkfs.ext4 -q -O ^has_journal -d "$files" "$base" || die kvm_disk_image "mkfs.ext4 fails"
sum=$(sha256sum <"$base")

# disk_guest TEST NAME SCRIPT ARG...: runs SCRIPT in a guest with these disks. $RUN/NAME.console has what it said.
disk_guest()
{
	local test=$1 name=$2 script=$3
	shift 3
	echo "$script" >"$RUN/$name.sh"
	kvm_job "${RELEASE:-6.12}" "$RUN/$name.initrd" "$RUN/$name.sh"
	VMM_INITRD=$RUN/$name.initrd vmm_start "$name" "${RELEASE:-6.12}" 1 "ballast.mode=job" --no-agent "$@"
	VMM_WAIT=120 vmm_wait "$VMM_PID"
	check_eq "$test" 0 "$VMM_STATUS"
	check "${test}_job" grep -q "GUEST-JOB status=0" "$RUN/$name.console"
}

# Both kernels, the image as it is.
for release in "${KVM_RELEASES[@]}"; do
	RELEASE=$release disk_guest "kvm_disk_readonly_${release/./_}" "readonly-$release" '
		set -e
		[ "$(cat /sys/block/vda/serial)" = ballast-0 ]
		[ "$(cat /sys/block/vda/ro)" = 1 ]
		mount -o ro /dev/vda /mnt 2>/dev/null || { mkdir -p /mnt; mount -o ro /dev/vda /mnt; }
		cd /mnt && sha256sum -c SUMS' --disk "path=$base,readonly"
done
check_eq kvm_disk_readonly_unchanged "$sum" "$(sha256sum <"$base")"

# An overlay: changed, powered off, found again.
overlay=$RUN/overlay.img
disk_guest kvm_disk_write write '
	set -e
	mkdir -p /mnt; mount /dev/vda /mnt; cd /mnt; sha256sum -c SUMS
	seq 1 200000 >new; cat f4097 >>f511; rm f1; sed "/f1$/d; /f511$/d" SUMS >s; sha256sum f511 new >>s; mv s SUMS
	cd /; umount /mnt' --disk "path=$base,overlay=$overlay"
disk_guest kvm_disk_again again '
	set -e
	mkdir -p /mnt; mount /dev/vda /mnt; cd /mnt; sha256sum -c SUMS; [ ! -e f1 ]; [ "$(wc -l <new)" = 200000 ]
	cd /; umount /mnt' --disk "path=$base,overlay=$overlay"
check_eq kvm_disk_base_unchanged "$sum" "$(sha256sum <"$base")"

# The VMM is killed after a sync: what was synced is there.
killed=$RUN/killed.img
cat >"$RUN/killed.sh" <<'END'
set -e
mkdir -p /mnt; mount /dev/vda /mnt; cd /mnt
seq 1 100000 >synced; sha256sum synced >synced.sum; sync
echo GUEST-SYNCED
while :; do seq 1 100000 >later; rm later; done
END
kvm_job 6.12 "$RUN/killed.initrd" "$RUN/killed.sh"
VMM_INITRD=$RUN/killed.initrd vmm_start killed 6.12 1 "ballast.mode=job" --no-agent --disk "path=$base,overlay=$killed"
kvm_wait_up 90 killed "$VMM_PID" GUEST-SYNCED || fail kvm_disk_synced "no GUEST-SYNCED"
kill -KILL "$VMM_PID"
wait "$VMM_PID" 2>/dev/null
disk_guest kvm_disk_after_kill after-kill '
	set -e
	mkdir -p /mnt; mount /dev/vda /mnt; cd /mnt; sha256sum -c synced.sum SUMS' --disk "path=$base,overlay=$killed"
check_eq kvm_disk_killed_base_unchanged "$sum" "$(sha256sum <"$base")"

# What is discarded costs nothing any more. Blocks of 512 bytes.
disk_guest kvm_disk_fill fill 'set -e; dd if=/dev/urandom of=/dev/vda bs=1M count=20; sync' \
	--disk "path=$base,overlay=$RUN/discard.img"
check_ge kvm_disk_filled 40000 "$(stat -c %b "$RUN/discard.img")"
disk_guest kvm_disk_discard discard 'set -e; blkdiscard /dev/vda; cmp -n 20971520 /dev/vda /dev/zero' \
	--disk "path=$base,overlay=$RUN/discard.img"
left=$(stat -c %b "$RUN/discard.img")
check kvm_disk_discarded test "$left" -lt 2000

# Direct I/O needs a file system that has it: ext4 on a loop device (the host's /tmp is tmpfs).
if [ "${BALLAST_TESTHOST:-}" = emulated ]; then
	truncate -s 96M "$RUN/fs.img"
	mkfs.ext4 -q "$RUN/fs.img" && mkdir -p "$RUN/fs" && mount -o loop "$RUN/fs.img" "$RUN/fs" ||
		die kvm_disk_fs "cannot mount an ext4 image"
	cleanup umount "$RUN/fs"
	cp "$base" "$RUN/fs/base.img"
	disk_guest kvm_disk_direct direct '
		set -e
		mkdir -p /mnt; mount /dev/vda /mnt; cd /mnt; sha256sum -c SUMS
		seq 1 200000 >new; sha256sum new >new.sum; sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum -c SUMS new.sum
		cd /; umount /mnt' --disk "path=$RUN/fs/base.img,overlay=$RUN/fs/overlay.img,direct"
	check_eq kvm_disk_direct_base_unchanged "$sum" "$(sha256sum <"$RUN/fs/base.img")"
fi
