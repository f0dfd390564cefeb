#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# shellcheck shell=dash
# The test host's process 1 after init: finishes what a host has, runs the script, leaves its exit status, powers off.
# Only run.sh starts this, through init, in the machine that it made: it ends every process that it can see.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
bb=/bin/busybox
run=/run/testhost

if [ $$ -ne 1 ] || [ ! -e $run/params ]; then
	echo "inside.sh: for the test host only" >&2
	exit 1
fi
. $run/params # TOP, CWD

$bb ln -sf /proc/self/fd /dev/fd
$bb ln -sf /proc/self/fd/0 /dev/stdin
$bb ln -sf /proc/self/fd/1 /dev/stdout
$bb ln -sf /proc/self/fd/2 /dev/stderr
$bb mkdir -p /dev/pts /dev/shm /run/lock
$bb mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$bb mount -t tmpfs -o mode=1777 shm /dev/shm
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
for c in memory cpu io pids; do
	echo +$c >/sys/fs/cgroup/cgroup.subtree_control
done 2>/dev/null
$bb ip link set lo up
$bb hostname testhost
[ ! -e /dev/kvm ] || $bb chmod 666 /dev/kvm

# Through a pipe, that others may open by /dev/stdout, too. What arrives in this run's folder is on the machine at once. (A
# virtio console would lose what QEMU cannot pass on in time.)
$bb mkfifo -m 666 /run/output
$bb cat </run/output >>$run/output &
cat=$!
$bb cut -d' ' -f1 /proc/uptime >$run/up
while :; do
	echo >$run/alive
	$bb sleep 2
done &

# bash, because run.sh wrote the environment and the command down in its words.
/bin/bash -c '
	. '$run'/environ
	export HOME=/tmp TMPDIR=/tmp BALLAST_TESTHOST=emulated
	unset XDG_RUNTIME_DIR DISPLAY SSH_AUTH_SOCK
	cd "$1" || exit 125
	. '$run'/command' testhost "$CWD" </dev/null >/run/output 2>&1
status=$?

# What the script left is not the next one's problem; the output's last bytes are.
for p in /proc/[0-9]*; do
	p=${p#/proc/}
	[ "$p" = 1 ] || [ "$p" = $cat ] || kill -9 "$p" 2>/dev/null
done
wait $cat
echo $status >$run/status
$bb sync
$bb poweroff -f
