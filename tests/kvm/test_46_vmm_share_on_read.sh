#!/usr/bin/env bash
# timeout: 600
# Two stock guests read the files of one base image, each with an overlay of its own: what the second one reads is shared with
# the first one's page cache before a scan has been through, and stays right. And what ballast-vmm takes beyond its guest.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_share_on_read
FILE_MIB=${FILE_MIB:-32}

files=$RUN/files base=$RUN/base.img
mkdir -p "$files"
for i in 1 2 3 4; do
	head -c $((FILE_MIB << 18)) /dev/urandom >"$files/f$i"
done
(cd "$files" && sha256sum f* >SUMS)
truncate -s $((FILE_MIB + 16))M "$base"
# Blocks of a page, as a distribution's images have; a small file system would get smaller ones.
mkfs.ext4 -q -b 4096 -O ^has_journal -d "$files" "$base" || die kvm_share_on_read_image "mkfs.ext4 fails"
sum=$(sha256sum <"$base")

cat >"$RUN/job" <<'END'
set -e
mkdir -p /mnt; mount -o ro /dev/vda /mnt; cd /mnt
sha256sum -c SUMS
echo GUEST-READ
n=0
while :; do
	if sha256sum -c SUMS >/dev/null; then echo "TICK $n right"; else echo "TICK $n WRONG"; fi
	n=$((n + 1))
	sleep 5
done
END
kvm_job 6.12 "$RUN/initrd" "$RUN/job"
guest() # NAME ARG...
{
	local name=$1
	shift
	VMM_INITRD=$RUN/initrd vmm_start "$name" 6.12 1 "ballast.mode=job" --qmp "$RUN/$name.qmp" \
		--disk "path=$base,overlay=$RUN/$name.overlay" "$@"
	STOCK_PID[$name]=$VMM_PID
	kvm_wait_up 150 "$name" "$VMM_PID" GUEST-READ || die "kvm_share_on_read_$name" "no GUEST-READ"
}

# --- the VMM's own memory ------------------------------------------------------------------------

guest plain --no-agent
# All that is resident, but for the one mapping that is guest memory.
overhead=$(awk -v guest=$((VMM_MIB * 1024)) '
	$1 == "Size:" { size = $2 }
	$1 == "Rss:" { if (size == guest) found++; else kib += $2 }
	END { if (found == 1) print kib }' "/proc/$VMM_PID/smaps")
echo "RESULT kvm_vmm_resident beyond_guest_kib=$overhead guest_mib=$VMM_MIB"
check_ge kvm_share_on_read_vmm_memory "${overhead:-99999}" 8192
end_process "$VMM_PID" TERM 30

# --- share on read -------------------------------------------------------------------------------

# Small pages: those in huge ones are left to the survey of the next passes (docs/ARCHITECTURE.md, "Share on read").
thp=/sys/kernel/mm/transparent_hugepage/enabled
cleanup eval "echo $(sed 's/.*\[\(.*\)\].*/\1/' $thp) >$thp"
echo never >$thp
# Passes are rare from the first ones on, and what they find is not counted here.
start_daemon scan.cpu_percent=40 scan.interval=600s scan.idle_interval=600s ||
	die kvm_share_on_read_daemon "ballastd does not start"
guest a
guest b
pages=$((FILE_MIB << 8))
read_shared() { take_status && [ "$(vm_value b share_on_read_pages_total)" -ge "$1" ]; }
# The passes of the first seconds, while a guest's memory is new, find some of them first.
check kvm_share_on_read_most_is_shared wait_for 60 read_shared $((pages * 6 / 10))
take_status || die kvm_share_on_read_status "ballastctl status fails"
show_vms a b
shared=$(vm_value b share_on_read_pages_total)
echo "RESULT kvm_share_on_read file_pages=$pages shared_pages=$shared percent=$((shared * 100 / pages))"
for vm in a b; do
	check "kvm_share_on_read_${vm}_reads_on" wait_for 90 vmm_console $vm "right" $(($(grep -ac right "$RUN/$vm.console") + 2))
	check "kvm_share_on_read_${vm}_never_wrong" eval "! grep -aq WRONG '$RUN/$vm.console'"
done
check_store kvm_share_on_read a b
check kvm_share_on_read_daemon_runs alive "$DAEMON_PID"
for vm in a b; do
	end_process "${STOCK_PID[$vm]}" TERM 30
done
check_eq kvm_share_on_read_base_unchanged "$sum" "$(sha256sum <"$base")"
