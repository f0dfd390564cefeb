# shellcheck shell=bash
# What the tests on the test host share. Sourced after tests/lib.sh. They need a KVM that runs a stock kernel; the test
# host (tests/testhost/) has one. By hand: tests/testhost/run.sh tests/kvm/test_NAME.sh

# Status helpers and stock guests in QEMU: stock_init and the rest.
. "$(dirname "${BASH_SOURCE[0]}")/../live/stock/stock.sh"

# The emulated host has one slow processor for the daemon and all guests: the daemon may use 40% of it, and looks 5 times a
# second and not 20 times, since each look costs a guest a fault for every page that it writes; a test that polls does so rarely.
# shellcheck disable=SC2034 # for lib.sh and the tests
if [ "${BALLAST_TESTHOST:-}" = emulated ]; then
	WAIT_POLL=0.5
	STOCK_READY_S=240
	KVM_DAEMON=(scan.cpu_percent=40 scan.interval=200ms)
else
	KVM_DAEMON=()
fi

# The kernels that guests are tested with, and where build.sh puts each one's vmlinuz, vmlinux and initrd.gz.
# shellcheck disable=SC2034 # for the tests
KVM_RELEASES=(6.12 6.1)
kvm_guest() # RELEASE
{
	case $1 in
	6.12) echo build/guest ;;
	*) echo "build/guest/$1" ;;
	esac
}

# kvm_init TEST: leaves where there is no such KVM. The guests are prepared before the host is started, which has no network.
kvm_init()
{
	[ "$(tests/guest/accel.sh)" = kvm ] ||
		skip_all "$1" "this KVM does not run a stock kernel: tests/testhost/run.sh ${0#"$TOP/"}"
	[ -n "${BALLAST_TESTHOST:-}" ] || tests/guest/build.sh --all || die "$1_guest" "tests/guest/build.sh fails"
	stock_init "$1"
}

# kvm_job RELEASE OUT SCRIPT [FILE...]: an initrd whose guest runs SCRIPT with ballast.mode=job (tests/guest/init), with the
# FILEs in /. Linux unpacks archives that follow one another.
kvm_job()
{
	local release=$1 out=$2 script=$3 dir f
	shift 3
	dir=$(mktemp -d "$RUN/job.XXXXXX")
	install -m 755 "$script" "$dir/job"
	for f; do
		cp "$f" "$dir/"
	done
	{ cat "$(kvm_guest "$release")/initrd.gz" && (cd "$dir" && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1); } >"$out"
	rm -rf "$dir"
}

# kvm_microvm NAME RELEASE CPUS "KERNEL PARAMETERS" ARG...: QEMU's microvm, the peer of ballast-vmm. $QEMU_PID is its pid, its
# console is in $RUN/NAME.console. Not through ballast-run. No PCI: its devices are virtio-mmio, found by ACPI.
# KVM_INITRD: another initrd than the release's, see kvm_job.
kvm_microvm()
{
	local name=$1 guest cpus=$3 params=$4
	guest=$(kvm_guest "$2")
	shift 4
	start "$RUN/$name.log" "$QEMU" -name "$name" -machine microvm,acpi=on -accel kvm -cpu host -m "$STOCK_MIB" \
		-smp "$cpus" -nodefaults -no-user-config -display none -no-reboot -serial "file:$RUN/$name.console" \
		-kernel "$guest/vmlinuz" -initrd "${KVM_INITRD:-$guest/initrd.gz}" -append "console=ttyS0 quiet panic=-1 $params" "$@"
	# shellcheck disable=SC2034 # for the test
	QEMU_PID=$PID
}

# kvm_each_reaches SECONDS KEY LEAST NAME...: waits until each of the VMs' counters has reached LEAST. For the log, says how long it took.
__each_reaches()
{
	local key=$1 least=$2 name v
	shift 2
	take_status || return 1
	for name; do
		v=$(vm_value "$name" "$key")
		[ "${v:-0}" -ge "$least" ] || return 1
	done
}
kvm_each_reaches()
{
	local limit=$1 begin=$SECONDS rc
	shift
	wait_for "$limit" __each_reaches "$@"
	rc=$?
	echo "# $*: status $rc after $((SECONDS - begin)) s"
	return $rc
}

# kvm_wait_up SECONDS NAME PID TEXT: until the guest's console has TEXT; fails at once when its VMM ends without it.
__up_or_dead() { console_has "$1" "$3" || ! alive "$2"; }
kvm_wait_up()
{
	wait_for "$1" __up_or_dead "$2" "$3" "$4"
	console_has "$2" "$4"
}
