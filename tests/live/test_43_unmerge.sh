#!/usr/bin/env bash
# timeout: 240
# Opting out: unmerge and share on demand, share = off and zero-only by configuration and by reload, and two domains that
# share nothing. The vCPUs are stopped before the counts, so that all are to the page and no byte may change.
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/stock/stock.sh"

ctl_ok() { ctl "$@" >"$RUN/ctl.out" 2>&1 || { sed 's/^/# /' "$RUN/ctl.out"; return 1; }; }
vm_is() { take_status && [ "$(vm_value "$1" "$2")" = "$3" ]; }          # NAME KEY VALUE
passes_reach() { take_status && [ "$(vm_value "$1" passes_total)" -ge "$2" ]; } # NAME LEAST
# Longer than it takes to find, hash and merge what is there to merge.
some_passes() # NAME...
{
	local name at
	for name; do
		take_status && at=$(vm_value "$name" passes_total)
		wait_for 20 passes_reach "$name" $((at + 12)) || fail unmerge_passes "no passes over $name"
	done
}
__same() # KEY NAME...: no longer moves
{
	local before
	take_status && before=$(vms_sum "$@") && sleep 1 && take_status && [ "$before" = "$(vms_sum "$@")" ]
}
settled() { wait_for 40 vms_reach "$@" && wait_for 20 __same "$1" "${@:3}"; } # KEY LEAST NAME...
guest() # NAME
{
	stock_start "$1" $((++seed)) ''
	names[seed]=$1
}
stop_vcpus() # NAME...
{
	local name
	for name; do
		qmp "$name" '{"execute": "stop"}' >/dev/null || die unmerge_qmp "$name does not stop"
	done
}
count() # WHAT NAME...
{
	local what=$1 i
	shift
	outside "$@" || die unmerge_outside "no count ($what)"
	echo "# $what: store pages/broken:" \
		"$(for ((i = 1; i <= $#; i++)); do echo "${!i} $(out guest${i}_store_pages)/$(out guest${i}_broken_pages)"; done)"
}

stock_init unmerge
config=("${STOCK_DAEMON[@]}" 'vm "[cd]".domain=blue' 'vm "off".share=off' 'vm "zero".share=zero-only')
start_daemon "${config[@]}" || die unmerge_daemon "ballastd does not start"
seed=0 names=()
for vm in a b c d; do
	guest $vm
done
stock_ready unmerge a b c d
settled shared_pages 34000 a b c d || die unmerge_merges "only $(vms_sum shared_pages a b c d) shared pages"
stop_vcpus a b c d
some_passes a b c d
settled shared_pages 34000 a b c d || die unmerge_merges "only $(vms_sum shared_pages a b c d) shared pages"

# --- domains: a and b, c and d ------------------------------------------------------------------

count "domain default" a b
merged_ab=$(out merged_pages) dup_ab=$(out dup_pages)
count "domain blue" c d
merged_cd=$(out merged_pages) dup_cd=$(out dup_pages)
count "all" a b c d
echo "# duplicates $dup_ab + $dup_cd within the domains, $(out dup_pages) in all;" \
	"merged $merged_ab + $merged_cd, $(out merged_pages)"
check_ge unmerge_domain_default_merged 8000 $merged_ab
check_ge unmerge_domain_blue_merged 8000 $merged_cd
# There was more to merge across the domains, and none of it was.
check_ge unmerge_domains_could_share 8000 $(($(out dup_pages) - dup_ab - dup_cd))
check_eq unmerge_domains_share_nothing $((merged_ab + merged_cd)) "$(out merged_pages)"

# --- unmerge and share --------------------------------------------------------------------------

for i in 1 2 3 4; do
	store[i]=$(out guest${i}_store_pages) digest[i]=$(out guest${i}_digest) pages[i]=$(out guest${i}_pages)
done
check unmerge_command ctl_ok unmerge b
check unmerge_status wait_for 20 vm_is b shared_pages 0
check_eq unmerge_flag true "$(vm_value b unmerged)"
some_passes a b c d
count "b unmerged" a b c d
take_status
check_eq unmerge_b_store_pages 0 "$(out guest2_store_pages)"
check_eq unmerge_b_shares_none 0 "$(out guest2_shared_pages)"
check_eq unmerge_b_stays 0 "$(vm_value b shared_pages)"
check_ge unmerge_b_has_its_memory "${store[2]}" "$(out guest2_broken_pages)"
check_ge unmerge_b_counted "${store[2]}" "$(vm_value b unmerged_pages_total)"
for i in 1 3 4; do
	check_eq unmerge_"${names[i]}"_keeps "${store[i]}" "$(out guest${i}_store_pages)"
done
for i in 1 2 3 4; do
	check_eq unmerge_"${names[i]}"_content "${digest[i]}" "$(out guest${i}_digest)"
done

check unmerge_share ctl_ok share b
check unmerge_merges_again settled shared_pages $((store[2] * 95 / 100)) b
count "b shared again" a b c d
echo "# all: duplicates $(out dup_pages), merged $(out merged_pages)"
check_ge unmerge_b_store_pages_again $((store[2] * 95 / 100)) "$(out guest2_store_pages)"
check_eq unmerge_b_flag_gone false "$(vm_value b unmerged)"
for i in 1 2 3 4; do
	check_eq unmerge_"${names[i]}"_content_again "${digest[i]}" "$(out guest${i}_digest)"
done

# --- by configuration, and by reload --------------------------------------------------------------

for vm in b c d; do
	end_process "${STOCK_PID[$vm]}" KILL
done
guest off
guest zero
stock_ready unmerge off zero
check unmerge_zero_only_works settled zero_pages 3000 zero
some_passes a zero
stop_vcpus off zero
count "off, zero-only" off zero
take_status
show_vms a off zero
check_eq unmerge_off_status off "$(vm_value off share)"
check_eq unmerge_zero_status zero-only "$(vm_value zero share)"
check_eq unmerge_off_shared 0 "$(vm_value off shared_pages)"
check_eq unmerge_off_zeroed 0 "$(vm_value off zeroed_pages_total)"
check_eq unmerge_zero_shared 0 "$(vm_value zero shared_pages)"
check_eq unmerge_outside_off 0 "$(out guest1_store_pages)"
check_eq unmerge_outside_zero 0 "$(out guest2_store_pages)"
check_eq unmerge_outside_merged_none 0 "$(out merged_pages)"
check_ge unmerge_outside_zero_pages 3000 $(($(out guest2_zero_kernel_pages) - $(out guest1_zero_kernel_pages)))
digest_off=$(out guest1_digest)

# Now the other way round: these share, a does not any more (what is merged stays).
shared_a=$(vm_value a shared_pages) merged_a=$(vm_value a merged_pages_total)
write_config "${STOCK_DAEMON[@]}" 'vm "a".share=off'
kill -HUP "$DAEMON_PID"
check unmerge_reload_off wait_for 10 vm_is off share on
check_eq unmerge_reload_zero on "$(vm_value zero share)"
check_eq unmerge_reload_a off "$(vm_value a share)"
check unmerge_reload_merges settled shared_pages 16000 off zero
count "after the reload" off zero
check_ge unmerge_reload_outside_off 8000 "$(out guest1_store_pages)"
check_ge unmerge_reload_outside_zero 8000 "$(out guest2_store_pages)"
check_eq unmerge_reload_content "$digest_off" "$(out guest1_digest)"
check_eq unmerge_reload_a_keeps "$shared_a" "$(vm_value a shared_pages)"
check_eq unmerge_reload_a_not_merged "$merged_a" "$(vm_value a merged_pages_total)"
check_store unmerge a off zero
check unmerge_daemon_runs alive "$DAEMON_PID"
