#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Prints the QEMU accelerator that runs a stock kernel here: "kvm" if a probe VM shows it, else "tcg".
# /dev/kvm alone proves nothing: some hosts offer a KVM that cannot run a kernel's own instructions.
# ACCEL=kvm|tcg overrides.
set -u
probe=$(dirname "$0")/../../build/guest/kvm-probe

if [ -n "${ACCEL:-}" ]; then
	echo "$ACCEL"
elif [ -x "$probe" ] && timeout -k 1 5 "$probe" 2>/dev/null; then
	echo kvm
else
	echo tcg
fi
