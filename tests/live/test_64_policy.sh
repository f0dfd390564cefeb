#!/usr/bin/env bash
# timeout: 400
# The policy on two stock guests, in a cgroup that says what the test wants it to say: it observes and touches nothing; it
# acts, takes from the guest with fewer shares first, never below a floor, and says why; it gives back when there is memory
# again, to a guest under pressure at once, when it is switched off, and when the daemon stops; it overrules no administrator,
# and a kill -9 of the daemon loses nothing.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

stock_init policy
explains() { grep -q "$2" <<<"$(ctl explain "$1" 2>&1)"; } # VM PATTERN
plan_says() { grep -q "$1" <<<"$(ctl plan 2>&1)"; }
rewrite() { write_config "${settings[@]}" "$@" && kill -HUP "$DAEMON_PID"; }

# A cgroup of 1 GiB, of which so many MiB are left.
group=$RUN/group
mkdir -p "$group"
echo $((1 << 30)) >"$group/memory.max"
left() { echo $(((1024 - $1) << 20)) >"$group/memory.current.new" && mv "$group/memory.current.new" "$group/memory.current"; }
left 600

port=$(free_port)
settings=("${STOCK_DAEMON[@]}" metrics.port="$port" policy.interval=500ms policy.cgroup="$group"
	'vm "a".min=176MiB' 'vm "a".shares=3000' 'vm "a".share=off' 'vm "b".min=160MiB' 'vm "b".share=off')
start_daemon "${settings[@]}" || die policy_daemon "ballastd does not start"
stock_start a 1 ballast.mode=grow -device virtio-balloon-pci,id=balloon0
stock_start b 2 ballast.mode=spare -device virtio-balloon-pci,id=balloon0
wait_for 30 vms_connected a b || die policy_vms "not all agents are connected"
__ready_or_dead() { console_has a GUEST-READY || ! alive "${STOCK_PID[a]}"; }
wait_for 90 __ready_or_dead
console_has a GUEST-READY || die policy_guest "the guest is not ready"
expect policy_a_answers 40 is a balloon_driver answers
expect policy_b_answers 40 is b balloon_driver answers

# --- observing -------------------------------------------------------------------------------------

check policy_high plan_says '^host: high, 600.0 MiB of 1.0 GiB available; a VM of .* could be started'
check policy_nothing plan_says 'nothing is to be done'
left 30
expect policy_soft 10 plan_says '^host: hard, 30.0 MiB of 1.0 GiB available, .* wanted'
check policy_is_only_a_plan plan_says 'nothing acts on it (\[policy\] mode = observe'
expect policy_decided 10 explains b ' s ago, only observed: b gives'
sleep 3 # as long as an acting policy needs, several times
check policy_observe_touches_nothing mib_at_least a balloon_actual_bytes 256
check policy_observe_touches_nothing_else mib_at_least b balloon_actual_bytes 256
ctl explain b | sed 's/^/# /'

# --- acting ----------------------------------------------------------------------------------------

left 600
expect policy_high_again 10 plan_says '^host: high'
rewrite policy.mode=act
# 40 MiB short: from the one with fewer shares.
left 32
expect policy_takes_from_fewer_shares 40 mib_at_most b balloon_actual_bytes 232
check policy_leaves_who_has_more mib_at_least a balloon_actual_bytes 256
expect policy_says_why 10 explains b 'b gives .* MiB (balloon): the host is short, and for its shares it is entitled to'
check_ge policy_is_logged 1 "$(grep -c 'policy: b gives' "$DAEMON_LOG")"
check policy_acts plan_says 'mode = act: this is done'
# The cgroup stays as short as it says, so that all that may be taken is, down to the floor.
expect policy_floor 60 mib_at_most b balloon_actual_bytes 164
expect policy_takes_from_more_shares_then 60 mib_at_most a balloon_actual_bytes 250
check policy_floor_holds mib_at_least b balloon_actual_bytes 160
# Now there is more than enough.
left 600
expect policy_gives_back 40 mib_at_least b balloon_actual_bytes 256
expect policy_gives_all_back 40 mib_at_least a balloon_actual_bytes 256
expect policy_has_no_wish_any_more 20 is b balloon_wish_bytes ''
check policy_explains_giving explains b 'b gets .* MiB back (balloon): the host has memory to spare'

# A guest under pressure gets its memory, whatever the host has; the other one keeps its floor. Guest a begins to need 75 MiB
# when it has less than 152.
rewrite policy.mode=act 'vm "a".min=96MiB'
left 8
expect policy_guest_grows 60 console_has a GUEST-GROWS
expect policy_pressure_releases 60 mib_at_least a balloon_actual_bytes 256
expect policy_guest_grew 60 console_has a GUEST-GREW
check_ge policy_nothing_killed 1 $((! $(grep -ac 'Out of memory\|Kernel panic' "$RUN/a.console")))
expect policy_holds_off 30 explains a 'nothing is taken by balloon now: it was short of memory'
expect policy_other_gives 40 mib_at_most b balloon_actual_bytes 164
expect policy_unmet 30 plan_says 'of which no VM can give'
scrape "$port" >"$RUN/metrics"
check_eq policy_metric_state 'low 1' "$(sed -n 's/^ballast_policy_state{state="\(low\)"} /\1 /p' "$RUN/metrics")"
check_eq policy_metric_acting 1 "$(sed -n 's/^ballast_policy_acting //p' "$RUN/metrics")"
check_ge policy_metric_taken 1 "$(sed -n 's/^ballast_policy_taken_bytes_total{mechanism="balloon"} \([0-9]*\).*/\1/p' "$RUN/metrics")"
check_eq policy_metric_vms 2 "$(grep -c '^ballast_vm_entitled_bytes{' "$RUN/metrics")"

# --- who has the last word ----------------------------------------------------------------------------

ctl balloon b 240M | sed 's/^/# /'
expect policy_administrator 40 mib_at_least b balloon_actual_bytes 238
expect policy_administrator_is_named 10 explains b 'an administrator said how much it shall do with'
sleep 2
check policy_administrator_stands mib_at_least b balloon_actual_bytes 238
ctl balloon b off | sed 's/^/# /'
expect policy_takes_again 60 mib_at_most b balloon_actual_bytes 164
# A kill -9: the balloon stays, and the next daemon goes on from there.
kill_daemon
start_daemon || die policy_restart "ballastd does not start again"
wait_for 30 vms_connected a b || die policy_restart_connected "the agents are not back"
expect policy_wish_stands 20 is b balloon_policy true
check policy_kept_over_a_kill mib_at_most b balloon_actual_bytes 176
# Off: all is given back.
rewrite policy.mode=off
expect policy_off_gives_back 40 mib_at_least b balloon_actual_bytes 256
check policy_off_is_said plan_says 'mode = off; act would'
rewrite policy.mode=act
expect policy_on_takes 60 mib_at_most b balloon_actual_bytes 200
stop_daemon || fail policy_stop "took too long"
actual() { qmp b '{"execute": "query-balloon"}' | sed -n 's/.*"actual": *\([0-9]*\).*/\1/p'; }
actual_is_all() { [ "$(($(actual) >> 20))" -ge 256 ]; }
expect policy_stop_gives_back 30 actual_is_all

# --- bad folders ---------------------------------------------------------------------------------------

rm "$group/memory.max"
start_daemon "${settings[@]}" || die policy_last_start "ballastd does not start again"
said() { grep -q "cannot read the memory of cgroup $group: No such file" "$DAEMON_LOG"; }
expect policy_bad_cgroup_is_said 10 said
check policy_bad_cgroup_harms_nothing plan_says '^host: high'
check policy_guests_run alive "${STOCK_PID[a]}"
check policy_other_runs alive "${STOCK_PID[b]}"
check policy_daemon_runs alive "$DAEMON_PID"
