# shellcheck shell=bash
# What the tests of ballast-vmm share. Sourced after kvm.sh.

VMM=$BUILD/ballast-vmm
VMM_MIB=256

# vmm_start NAME RELEASE CPUS "KERNEL PARAMETERS" ARG...: a stock guest; $VMM_PID is its pid, its console is in
# $RUN/NAME.console, what the VMM says in $RUN/NAME.log. VMM_KERNEL (vmlinuz) is the image's name.
vmm_start()
{
	local name=$1 guest params=$4 cpus=$3
	guest=$(kvm_guest "$2")
	shift 4
	"$VMM" --name "$name" --kernel "$guest/${VMM_KERNEL:-vmlinuz}" --initrd "$guest/initrd.gz" --memory "${VMM_MIB}M" \
		--cpus "$cpus" --cmdline "console=ttyS0 quiet panic=-1 $params" "$@" \
		>"$RUN/$name.console" 2>"$RUN/$name.log" </dev/null &
	VMM_PID=$!
	cleanup end_process "$VMM_PID"
}

# vmm_status PID: its exit status; 137 if it does not end within 30 s (VMM_WAIT).
vmm_status()
{
	wait_for "${VMM_WAIT:-30}" __gone "$1" || kill -KILL "$1"
	wait "$1"
	echo $?
}

# vmm_qmp SOCKET COMMAND...: each a line to the control socket; prints what comes back, until the last command is
# answered (5 s).
vmm_qmp()
{
	local socket=$1 line n=0
	shift
	coproc QMP { exec timeout 20 busybox nc "local:$socket" 2>/dev/null || exec timeout 20 "$BUILD/tests/tool_socket" "$socket"; }
	for line in '{"execute":"qmp_capabilities"}' "$@"; do
		echo "$line" >&"${QMP[1]}"
	done
	while [ $n -le $# ] && read -r -t 10 line <&"${QMP[0]}"; do
		echo "$line"
		case $line in *'"return"'* | *'"error"'*) n=$((n + 1)) ;; esac
	done
	kill "$QMP_PID" 2>/dev/null
	wait "$QMP_PID" 2>/dev/null
}
