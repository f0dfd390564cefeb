# shellcheck shell=bash
# What the tests with flat VMs share. Sourced after tests/lib.sh; see flat_vmm.c for the VMM.

FLAT=$BUILD/tests/flat_vmm
FLAT_PAGES=16384 # 64 MiB
# As fast as one core goes: these tests want as many merges and breaks as there can be.
# shellcheck disable=SC2034 # for the tests
FLAT_DAEMON=(scan.cpu_percent=100 scan.interval=10ms scan.idle_interval=1s)

# flat_init: finds out whether KVM can run the guest; else the same loop runs in host threads.
FLAT_MODE=()
flat_init()
{
	local why
	[ -x "$FLAT" ] || die "$1" "$FLAT is not built"
	if ! why=$(timeout 30 "$FLAT" --probe); then
		skip "$1_vcpu" "$why"
		FLAT_MODE=(--threads)
	fi
}

# flat_start NAME SEED ARG...: a VM that runs until it is ended. Its pid is in $PID, its output in $RUN/NAME.flat.
flat_start()
{
	local name=$1 seed=$2
	shift 2
	start "$RUN/$name.flat" "$FLAT" --name "$name" --seed "$seed" --pages $FLAT_PAGES --seconds 600 \
		${FLAT_MODE[@]+"${FLAT_MODE[@]}"} "$@"
}

# flat_value NAME KEY: from the VM's last line.
flat_value() { sed -n "/^FLAT /s/.* $2=\([0-9]*\).*/\1/p" "$RUN/$1.flat" | tail -n 1; }

# flat_show NAME: the last line, for the log.
flat_show() { sed -n 's/^FLAT /# FLAT /p' "$RUN/$1.flat" | tail -n 1; }

# flat_complaints NAME: what the VM said apart from its figures.
flat_complaints() { grep -Ev '^(FLAT|SHARING) ' "$RUN/$1.flat" | tail -n 20 | sed 's/^/# /'; }

# flat_outside NAME PID: has the VM print what the kernel says of its sharing ("SHARING ..." in its output).
__sharing_lines() { grep -c '^SHARING ' "$RUN/$1.flat"; }
__more_sharing_lines() { [ "$(__sharing_lines "$1")" -gt "$2" ]; }
flat_outside()
{
	local lines
	lines=$(__sharing_lines "$1")
	kill -USR1 "$2" && wait_for 10 __more_sharing_lines "$1" "$lines"
}
# outside_value NAME KEY: from the last such line.
outside_value() { sed -n "/^SHARING /s/.* $2=\([0-9]*\).*/\1/p" "$RUN/$1.flat" | tail -n 1; }

# check_outside TEST NAME PID: the daemon's count of shared pages is the kernel's, but for what the guest breaks
# between the daemon's looks and ours (at most a tenth).
check_outside()
{
	local inside outside off
	if ! { flat_outside "$2" "$3" && take_status; }; then
		fail "$1" "no answer"
		return
	fi
	inside=$(vm_value "$2" shared_pages) outside=$(outside_value "$2" shared)
	off=$((${inside:-0} - ${outside:-0}))
	echo "# $2: shared pages: $inside says the daemon, $outside the kernel," \
		"in $(outside_value "$2" mappings) mappings, $(outside_value "$2" broken) broken"
	check_ge "$1" 1 $((${off#-} * 10 <= ${outside:-0}))
}

# The daemon's status, each JSON object on a line of its own. The objects hold no others.
STATUS=$RUN/status
# shellcheck disable=SC2020 # sets of characters are meant
take_status() { ctl status --json | tr -d '\n' | tr '{}' '\n\n' >"$STATUS.new" && mv "$STATUS.new" "$STATUS"; }

# __key KEY: of the object on stdin. Nothing if it is not there.
__key() { sed -n 's/.*"'"$1"'": *"\{0,1\}\([^]", ]*\).*/\1/p' | head -n 1; }

# vm_value NAME KEY, domain_value KEY, host_value KEY: from the status taken last.
vm_value() { grep '"pid":' "$STATUS" | grep "\"name\": *\"$1\"" | __key "$2"; }
domain_value() { grep '"store_pages":' "$STATUS" | __key "$1"; }
host_value() { grep '"uptime_us":' "$STATUS" | __key "$1"; }

# vms_sum KEY NAME...
vms_sum()
{
	local key=$1 sum=0 name v
	shift
	for name; do
		v=$(vm_value "$name" "$key")
		sum=$((sum + ${v:-0}))
	done
	echo $sum
}

# For wait_for; each looks at a fresh status.
vms_connected() # NAME...
{
	local name
	take_status || return 1
	for name; do
		[ "$(vm_value "$name" connected)" = true ] || return 1
	done
}
vms_reach() # KEY LEAST NAME...: the sum over the VMs
{
	local key=$1 least=$2
	shift 2
	take_status && [ "$(vms_sum "$key" "$@")" -ge "$least" ]
}
vm_gone() { take_status && [ -z "$(vm_value "$1" pid)" ]; }
# No domain at all has no pages either.
domain_is() # KEY VALUE
{
	local v
	take_status || return 1
	v=$(domain_value "$1")
	[ "${v:-0}" = "$2" ]
}
