#!/usr/bin/env bash
# timeout: 300
# Network and entropy devices of ballast-vmm, used by both kernels: ping both ways over a tap interface, files by their
# sums in both directions; random numbers. In a network namespace of its own: the host's interfaces are left alone.
[ -n "${BALLAST_NETNS:-}" ] || BALLAST_NETNS=1 exec unshare -n "$0" "$@"
. "$(dirname "$0")/../lib.sh"
. "$(dirname "$0")/kvm.sh"
. "$(dirname "$0")/vmm.sh"

kvm_init kvm_net
tap=blt0 host=10.77.0.1 guest=10.77.0.2
ip link set lo up
ip tuntap add dev $tap mode tap && ip addr add $host/24 dev $tap && ip link set $tap up ||
	die kvm_net_tap "cannot make a tap interface"

mkdir "$RUN/www"
head -c 3000000 /dev/urandom >"$RUN/www/down"
start "$RUN/httpd.log" busybox httpd -f -p $host:8000 -h "$RUN/www"

cat >"$RUN/job" <<END
set -e
[ "\$(cat /sys/class/net/eth0/address)" = 02:00:00:aa:bb:cc ]
ip addr add $guest/24 dev eth0
ip link set eth0 up
ping -c 3 -W 5 $host
wget -q -O /tmp/down http://$host:8000/down
echo "GUEST-SUM \$(sha256sum </tmp/down)"
echo "GUEST-NET-UP"
# The other way round; the host asks twice, for it and for the ping.
nc -l -p 9000 </tmp/down >/dev/null
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng of=/tmp/a bs=64 count=64
dd if=/dev/hwrng of=/tmp/b bs=64 count=64
[ "\$(wc -c </tmp/a)" = 4096 ]
! cmp -s /tmp/a /tmp/b
# 4,096 bytes that are random are no shorter when they are packed.
[ "\$(gzip -c /tmp/a | wc -c)" -gt 4000 ]
echo "GUEST-RNG-OK"
END

for release in "${KVM_RELEASES[@]}"; do
	name=net-$release test=kvm_net_${release/./_}
	kvm_job "$release" "$RUN/$name.initrd" "$RUN/job"
	VMM_INITRD=$RUN/$name.initrd vmm_start "$name" "$release" 1 "ballast.mode=job" --no-agent \
		--net tap=$tap,mac=02:00:00:aa:bb:cc --rng --qmp "$RUN/$name.qmp"
	if ! kvm_wait_up 90 "$name" "$VMM_PID" GUEST-NET-UP; then
		fail "$test" "no GUEST-NET-UP"
		end_process "$VMM_PID" KILL
		continue
	fi
	check_eq "${test}_down" "$(sha256sum <"$RUN/www/down")" \
		"$(tr -d '\r' <"$RUN/$name.console" | sed -n 's/^GUEST-SUM //p')"
	check "${test}_ping" eval "busybox ping -c 3 -W 5 $guest >'$RUN/ping.log'"
	stats=$(vmm_qmp "$name" x-ballast-stats)
	check_ge "${test}_rx_packets" 20 "$(sed -n 's/.*"rx-packets": *\([0-9]*\).*/\1/p' <<<"$stats")"
	check_eq "${test}_dropped" 0 "$(sed -n 's/.*"tx-dropped": *\([0-9]*\).*/\1/p' <<<"$stats")"
	# An end of input would be an end of the connection to the guest.
	exec 8< <(exec sleep 60)
	sleeper=$!
	timeout 60 busybox nc $guest 9000 <&8 >"$RUN/up"
	exec 8<&-
	kill "$sleeper" 2>/dev/null
	check "${test}_up" cmp "$RUN/up" "$RUN/www/down"
	VMM_WAIT=60 vmm_wait "$VMM_PID"
	check_eq "${test}_ends" 0 "$VMM_STATUS"
	check "${test}_rng" grep -q GUEST-RNG-OK "$RUN/$name.console"
	check "${test}_job" grep -q "GUEST-JOB status=0" "$RUN/$name.console"
done

# passt(1): no interface of the host, no privileges. It takes its guest's address from the interface with the default route,
# and shows the host's loopback at the gateway's.
if ! command -v passt >/dev/null; then
	skip kvm_net_passt "passt is not installed"
	exit 0
fi
ip link add dummy0 type dummy 2>/dev/null || ip link add dummy0 type bridge
ip addr add 10.78.0.5/24 dev dummy0 && ip link set dummy0 up && ip route add default via 10.78.0.1 ||
	die kvm_net_passt_route "cannot make an interface with a default route"
start "$RUN/httpd2.log" busybox httpd -f -p 127.0.0.1:8000 -h "$RUN/www"
# As root it becomes nobody first, who cannot reach into $RUN; this version of it does not notice that.
open=$(mktemp -d) && chmod 1777 "$open" && cleanup rm -rf "$open"
start "$RUN/passt.log" passt --foreground --socket "$open/passt.sock"
if ! wait_for 150 test -S "$open/passt.sock"; then
	fail kvm_net_passt "passt does not start: $(tail -n 1 "$RUN/passt.log")"
	exit 0
fi
cat >"$RUN/job" <<END
set -e
ip addr add 10.78.0.5/24 dev eth0
ip link set eth0 up
ip route add default via 10.78.0.1
wget -q -O /tmp/down http://10.78.0.1:8000/down
echo "GUEST-SUM \$(sha256sum </tmp/down)"
END
kvm_job 6.12 "$RUN/passt.initrd" "$RUN/job"
VMM_INITRD=$RUN/passt.initrd vmm_start passt 6.12 1 "ballast.mode=job" --no-agent --net "passt=$open/passt.sock"
VMM_WAIT=120 vmm_wait "$VMM_PID"
check_eq kvm_net_passt_ends 0 "$VMM_STATUS"
check_eq kvm_net_passt_down "$(sha256sum <"$RUN/www/down")" "$(tr -d '\r' <"$RUN/passt.console" | sed -n 's/^GUEST-SUM //p')"
