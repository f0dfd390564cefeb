#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs a script on a host with hardware-style KVM: this machine if its KVM runs a stock kernel, else an emulated one
# (README.md). Prints the script's output as it comes.
#
#	tests/testhost/run.sh [--mem MIB] [--cpus N] [--timeout S] [--emulated] SCRIPT [ARG...]
#
# Exits with the script's status; 124 when the time was up, 125 when the host did not come up, died or hung. Each is said
# on stderr as well, since a script may use these numbers itself.
set -u
set -o pipefail
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

# Enough for two or three guests of 256 MiB and the page cache; two processors, so that a daemon and a guest run at once.
mem=4096 cpus=1 limit=600 emulated=
# Far more than it takes (README.md): a busy machine is no failure.
boot_limit=150
# The host says every two seconds that it is there. QEMU's emulation sometimes stops for good (README.md).
hang_limit=120

usage()
{
	echo "usage: ${0##*/} [--mem MIB] [--cpus N] [--timeout S] [--emulated] SCRIPT [ARG...]" >&2
	exit 2
}

while [ $# -gt 0 ]; do
	case $1 in
	--mem | --cpus | --timeout)
		[[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage
		case $1 in
		--mem) mem=$2 ;;
		--cpus) cpus=$2 ;;
		--timeout) limit=$2 ;;
		esac
		shift 2
		;;
	--emulated) emulated=1 && shift ;;
	--) shift && break ;;
	-*) usage ;;
	*) break ;;
	esac
done
[ $# -ge 1 ] || usage

say() { echo "testhost: $*" >&2; }

if [ -z "$emulated" ]; then
	# builds the probe, too, which accel.sh needs
	"$TOP/tests/guest/build.sh" || exit 125
	if [ "$("$TOP/tests/guest/accel.sh")" = kvm ]; then
		export BALLAST_TESTHOST=real
		timeout -k 15 "$limit" "$@" </dev/null
		exit
	fi
fi

"$TOP/tests/testhost/build.sh" || exit 125
out=$TOP/build/testhost
run=$(mktemp -d "$out/run.XXXXXX") || exit 125
console=$run/console.log
qemu='' reader=''

at_exit()
{
	trap '' INT TERM HUP
	[ -z "$qemu" ] || { kill -KILL "$qemu" && wait "$qemu"; } 2>/dev/null
	[ -z "$reader" ] || wait "$reader"
	rm -rf "$run"
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# What init, inside.sh and its bash read.
printf 'TOP=%q\nCWD=%q\n' "$TOP" "$PWD" >"$run/params"
export -p >"$run/environ"
printf '%q ' exec "$@" >"$run/command"

p9() { # TAG PATH [OPTION]; a comma in a path is written twice
	printf 'local,id=%s,path=%s,security_model=none,multidevs=remap%s' "$1" "${2//,/,,}" "${3:-}"
}

# max: SVM with nested paging. panic=-1 and -no-reboot: a host that panics ends at once. The host dies with this script.
setpriv --pdeathsig KILL qemu-system-x86_64 -name testhost -machine q35 -accel tcg,thread=multi -cpu max \
	-m "$mem" -smp "$cpus" -nodefaults -no-user-config -display none -no-reboot \
	-kernel "$out/vmlinuz" -initrd "$out/initrd.gz" \
	-append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on" \
	-serial "file:$console" \
	-device virtio-rng-pci \
	-fsdev "$(p9 root / ,readonly=on)" -device virtio-9p-pci,fsdev=root,mount_tag=root \
	-fsdev "$(p9 tree "$TOP" ,readonly=on)" -device virtio-9p-pci,fsdev=tree,mount_tag=tree \
	-fsdev "$(p9 build "$TOP/build")" -device virtio-9p-pci,fsdev=build,mount_tag=build \
	-fsdev "$(p9 run "$run")" -device virtio-9p-pci,fsdev=run,mount_tag=run \
	</dev/null >"$run/qemu.log" 2>&1 &
qemu=$!
# Ends when QEMU has and all is printed.
: >>"$run/output"
tail -c +1 -f -s 0.2 --pid=$qemu "$run/output" 2>/dev/null &
reader=$!

# The kernel's own time is what an interrupted sleep cannot lengthen.
now() { echo "${EPOCHREALTIME/[.,]/}"; }
start=$(now)
hung() # is the sign of life older than the limit?
{
	[ -e "$run/alive" ] && [ $(($(date +%s) - $(stat -c %Y "$run/alive"))) -ge $hang_limit ]
}
while kill -0 "$qemu" 2>/dev/null; do
	sleep 0.1
	took=$((($(now) - start) / 1000000))
	if [ ! -e "$run/up" ] && [ $took -ge $boot_limit ]; then
		say "not up after $boot_limit s"
		break
	elif [ -e "$run/up" ] && [ $took -ge "$limit" ]; then
		say "the time ($limit s) is up"
		exit 124
	elif hung; then
		say "the host hangs: no sign of life for $hang_limit s"
		break
	fi
done
if [ -e "$run/status" ]; then
	wait "$qemu"
	qemu=
	exit "$(cat "$run/status")"
fi

if [ ! -e "$run/up" ]; then say "the host did not come up"; elif ! hung; then say "the host died while the script ran"; fi
say "the end of its console and of QEMU's messages:"
tail -q -n 30 "$console" "$run/qemu.log" 2>/dev/null | tr -cd '[:print:]\t\n' | sed 's/^/testhost:   /' >&2
exit 125
