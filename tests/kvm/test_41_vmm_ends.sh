#!/usr/bin/env bash
# timeout: 200
# part of: make check
# How ballast-vmm ends when a kernel's own instructions bring it down, or its image is broken: one line that says why, and
# the documented exit status. The terminal: live/test_70_vmm_flat.sh.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_vmm_ends

# put FILE OFFSET BYTES: in printf's notation
put() { printf "$3" | dd of="$1" bs=1 seek=$(($2)) conv=notrunc status=none; }

# A bzImage whose code, at its 64-bit entry point, is CODE (boot.rst has the fields).
image() # FILE CODE
{
	truncate -s 4096 "$1"
	put "$1" 0x1f1 '\001'                 # setup_sects: the code begins at 1024
	put "$1" 0x1fe '\x55\xaa\xeb\x66HdrS\x0f\x02' # boot_flag, jump, magic, version 2.15
	put "$1" 0x211 '\001'                 # LOADED_HIGH
	put "$1" 0x22c '\xff\xff\xff\x7f'     # initrd_addr_max
	put "$1" 0x230 '\x00\x00\x20\x00'     # kernel_alignment
	put "$1" 0x234 '\001'                 # relocatable
	put "$1" 0x236 '\001'                 # XLF_KERNEL_64
	put "$1" 0x238 '\xff\x07'             # cmdline_size
	put "$1" 0x258 '\x00\x00\x00\x01'     # pref_address: 16 MiB
	put "$1" 0x260 '\x00\x00\x10\x00'     # init_size
	put "$1" 0x600 "$2"
}

# ends TEST STATUS TEXT IMAGE ARG...: with one line that has TEXT in it
ends()
{
	local test=$1 status=$2 text=$3 kernel=$4 rc
	shift 4
	timeout -k 1 30 "$VMM" "${VMM_ARGS[@]}" --no-agent --name ends --kernel "$kernel" "$@" >"$RUN/out" 2>"$RUN/ends.log" </dev/null
	rc=$?
	check_eq "${test}_status" "$status" $rc
	check_eq "${test}_lines" 1 "$(wc -l <"$RUN/ends.log")"
	check "${test}_says" grep -qF "$text" "$RUN/ends.log"
	sed 's/^/# /' "$RUN/ends.log"
}

# There is no interrupt table: any exception is a triple fault.
image "$RUN/crash" '\x0f\x0b'
ends kvm_vmm_triple_fault 3 "triple fault" "$RUN/crash"
# The reset register, after a port that nobody owns.
image "$RUN/reset" '\x66\xba\xf8\x0e\xee\x66\xba\x0c\x06\xb0\x06\xee\xf4\xeb\xfd'
# S5 through PM1a control
image "$RUN/off" '\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4\xeb\xfd'
timeout -k 1 30 "$VMM" "${VMM_ARGS[@]}" --no-agent --kernel "$RUN/off" </dev/null >"$RUN/out" 2>&1
check_eq kvm_vmm_sleep_register 0 $?
timeout -k 1 30 "$VMM" "${VMM_ARGS[@]}" --no-agent --no-reboot --kernel "$RUN/reset" </dev/null >"$RUN/out" 2>&1
check_eq kvm_vmm_reset_register 4 $?

cp build/guest/vmlinuz "$RUN/short" && truncate -s 1000000 "$RUN/short"
ends kvm_vmm_truncated 1 "truncated" "$RUN/short"
head -c 100000 /dev/urandom >"$RUN/random"
ends kvm_vmm_no_kernel 1 "neither a bzImage nor an ELF" "$RUN/random"
ends kvm_vmm_missing 1 "/nowhere" /nowhere
