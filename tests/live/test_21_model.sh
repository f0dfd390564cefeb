#!/usr/bin/env bash
# timeout: 240
# Random operations on several VMs against a model of what each page must hold (model/model.h), with everything
# sanitized, also where the rest is not. SEED=N repeats a run as far as timing allows; MODEL_SECONDS=N: how long.
. "$(dirname "$0")/../lib.sh"

MODEL=$BUILD
[ -n "${SAN:-}" ] || MODEL=$BUILD/san-address-undefined
[ -x "$MODEL/tests/tool_model" ] && [ -x "$MODEL/ballastd" ] ||
	die model_built "no $MODEL/tests/tool_model (make model builds it)"
export ASAN_OPTIONS=${ASAN_OPTIONS:-abort_on_error=1:detect_stack_use_after_return=1}
export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$TOP/tests/lsan.supp:print_suppressions=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

out=$RUN/model.out
timeout 200 "$MODEL/tests/tool_model" --daemon "$MODEL/ballastd" --dir "$RUN" --seconds "${MODEL_SECONDS:-20}" \
	${SEED:+--seed "$SEED"} >"$out" 2>&1
rc=$?
sed 's/^/# /' "$out"
if [ $rc -eq 0 ]; then
	pass model_right
else
	fail model_right "exit status $rc: $(grep '^FAILED' "$out")"
	# What a sanitizer said stands above what came after it.
	grep -ah -A 40 -E 'ERROR: |runtime error: |WARNING: ThreadSanitizer' "$RUN"/*.log | head -n 100 | sed 's/^/# /'
fi

# Nothing can be wrong where nothing was merged.
value() { sed -n "/^RESULT /s/.* $1=\([0-9]*\).*/\1/p" "$out"; }
for least in ops=20000 checks=100000 merges=2000 zeroed=2000 breaks=200 moved_back=20 discards=1000 paged_out=50 paged_in=25 swap_read=25 daemon_kills=1 \
	vm_kills=1 reloads=1 audits=4 shared_most=300; do
	check_ge model_"${least%=*}" "${least#*=}" "$(value "${least%=*}")"
done
