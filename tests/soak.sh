#!/usr/bin/env bash
# make soak: the model test (live/model/model.h), one new seed after the other until the time is up.
#
#	BUILD=... tests/soak.sh SECONDS		SEED=N: the first one
#
# The last line is the sum, "RESULT model ..."; the exit status is 0 if all was right. Logs of a run that was not
# stay in $BUILD/tests/soak.
set -u
cd "$(dirname "$0")/.." || exit 1
BUILD=$(realpath -m "${BUILD:-build}")

# A socket path has at most 107 bytes.
run=$(mktemp -d /tmp/ballast-soak.XXXXXX)
trap 'rm -rf "$run"' EXIT
trap 'exit 130' INT TERM HUP

"$BUILD/tests/tool_model" --daemon "$BUILD/ballastd" --dir "$run" --seconds 30 --total "$1" ${SEED:+--seed "$SEED"} &
pid=$!
trap 'kill $pid 2>/dev/null; exit 130' INT TERM HUP
wait $pid
rc=$?
if [ $rc -ne 0 ]; then
	rm -rf "$BUILD/tests/soak"
	cp -r "$run" "$BUILD/tests/soak"
	echo "logs: $BUILD/tests/soak" >&2
fi
exit $rc
