# shellcheck shell=bash
# What the tests of ballast-vmm share. Sourced after kvm.sh.

VMM=$BUILD/ballast-vmm
VMM_MIB=256
# Sanitizers make system calls of their own.
VMM_ARGS=()
[ -z "${SAN:-}" ] || VMM_ARGS=(--no-sandbox)

# vmm_start NAME RELEASE CPUS "KERNEL PARAMETERS" ARG...: a stock guest; $VMM_PID is its pid, its console is in
# $RUN/NAME.console, what the VMM says in $RUN/NAME.log. The image is VMM_KERNEL (vmlinuz), the initrd VMM_INITRD.
vmm_start()
{
	local name=$1 guest params=$4 cpus=$3
	guest=$(kvm_guest "$2")
	shift 4
	vmm_run "$name" --kernel "$guest/${VMM_KERNEL:-vmlinuz}" --initrd "${VMM_INITRD:-$guest/initrd.gz}" \
		--memory "${VMM_MIB}M" --cpus "$cpus" --cmdline "console=ttyS0 quiet panic=-1 $params" "$@"
}

# vmm_run NAME ARG...
vmm_run()
{
	local name=$1
	shift
	"$VMM" --name "$name" "${VMM_ARGS[@]}" "$@" >"$RUN/$name.console" 2>"$RUN/$name.log" </dev/null &
	VMM_PID=$!
	cleanup end_process "$VMM_PID"
}

# vmm_wait PID: its exit status, in $VMM_STATUS; 137 if it does not end within 30 s (VMM_WAIT).
vmm_wait()
{
	wait_for "${VMM_WAIT:-30}" __gone "$1" || kill -KILL "$1"
	wait "$1"
	VMM_STATUS=$?
}

# vmm_qmp NAME COMMAND ["ARGUMENTS" as JSON]: the answer's line. The VMM was started with --qmp $RUN/NAME.qmp.
vmm_qmp() { "$BUILD/tests/tool_qmp" "$RUN/$1.qmp" "{\"execute\": \"$2\"${3:+, \"arguments\": $3}}"; }

# vmm_console NAME TEXT COUNT: the console has so many lines with it
vmm_console() { [ "$(grep -ac -- "$2" "$RUN/$1.console")" -ge "$3" ]; }
