#!/usr/bin/env bash
# clang-format and cppcheck over every source file that git tracks or would track. Changes nothing; exits
# with 1 on any finding. `make format` mends the formatting.
set -euo pipefail
cd "$(dirname "$0")/.."

# The style file is for this version: others format differently.
clang_format=${CLANG_FORMAT:-clang-format-14}
command -v "$clang_format" >/dev/null || clang_format=clang-format

for tool in "$clang_format" cppcheck; do
	if ! command -v "$tool" >/dev/null; then
		echo "lint: $tool is not installed: apt-get install clang-format-14 cppcheck" >&2
		exit 1
	fi
done

# safe.directory: root may well lint a user's clone (as `sudo make check` does).
mapfile -t files < <(git -c safe.directory="$PWD" ls-files --cached --others --exclude-standard -- '*.c' '*.h' |
	while read -r f; do [ -e "$f" ] && echo "$f"; done)
if [ ${#files[@]} -eq 0 ]; then
	echo "lint: no source files" >&2
	exit 1
fi

rc=0
"$clang_format" --dry-run -Werror "${files[@]}" || {
	echo "lint: \`make format\` mends the formatting" >&2
	rc=1
}

# guest-driver/ is kernel code, whose macros cppcheck does not know.
mapfile -t checked < <(printf '%s\n' "${files[@]}" | grep '\.c$' | grep -v '^guest-driver/')

# Why each suppression:
#   missingIncludeSystem         system headers are not searched on purpose: slow, and no gain
#   normalCheckLevelMaxBranches  a note of newer versions, not a finding
#   unusedFunction (not enabled) libraries have callers outside; tests call what the daemon does not
#   constParameter*, constVariable*, constParameterCallback
#                                callbacks and ops tables fix the signatures
#   variableScope                declarations stand at the top of a function, as in the kernel
#   unknownMacro, syntaxError (tests)
#                                Criterion's Test() and cds_list_* are macros of headers that are not searched
#   unusedStructMember           records of the kernel's and of the wire have members that nobody reads
#   comparePointers (flat)       symbols around .incbin data are two objects for cppcheck
suppress=(missingIncludeSystem normalCheckLevelMaxBranches constParameter constParameterPointer
	constParameterCallback constVariablePointer constVariable variableScope
	'unknownMacro:tests/unit/*' 'syntaxError:tests/unit/*' unusedStructMember
	'comparePointers:tests/live/flat/*')

# shellcheck disable=SC2054
cppcheck_args=(--quiet --error-exitcode=1 --std=c11 --language=c --platform=unix64 -j"$(nproc)"
	--enable=warning,style,performance,portability --inline-suppr --max-configs=1
	-D__x86_64__ -D_GNU_SOURCE -D__linux__ -I. --template='{file}:{line}: {severity}: {message} [{id}]')
for s in "${suppress[@]}"; do
	cppcheck_args+=(--suppress="$s")
done
# Results of unchanged files are kept, which makes the second run immediate.
mkdir -p build/cppcheck
[ ${#checked[@]} -eq 0 ] || cppcheck "${cppcheck_args[@]}" --cppcheck-build-dir=build/cppcheck "${checked[@]}" || rc=1

[ $rc -eq 0 ] && echo "lint: ${#files[@]} files, no findings"
exit $rc
