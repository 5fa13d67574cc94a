# shellcheck shell=bash
# Where the nodes stand: a public site, two regions behind NATs, and somebody outside. Sourced after lab.sh.

: "${lab:?}" "${nodes:?}"

# lan ROUTER NUMBER   its inner side: 192.168.NUMBER.0/24, and IPv6 that goes nowhere else
lan() {
  inside "$1" sysctl -qw net.ipv6.conf.all.forwarding=1
  ip -n "$lab-$1" link add lan type bridge
  ip -n "$lab-$1" addr add "192.168.$2.1/24" dev lan
  ip -n "$lab-$1" addr add "fd16:$2::1/64" dev lan
  ip -n "$lab-$1" link set lan up
}

# plug NAMESPACE ROUTER NUMBER HOST   a machine in a LAN: 192.168.NUMBER.HOST and fd16:NUMBER::HOST
plug() {
  namespace "$1"
  ip -n "$lab-$2" link add "l$4" type veth peer name eth0 netns "$lab-$1"
  ip -n "$lab-$2" link set "l$4" master lan up
  ip -n "$lab-$1" addr add "192.168.$3.$4/24" dev eth0
  ip -n "$lab-$1" addr add "fd16:$3::$4/64" dev eth0
  ip -n "$lab-$1" link set eth0 up
  ip -n "$lab-$1" route add default via "192.168.$3.1"
  ip -n "$lab-$1" route add default via "fd16:$3::1"
}

# unprepared NODE   a machine as most distributions leave it: it forwards nothing, and return paths are looked at
unprepared() {
  inside "$1" sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.all.src_valid_mark=0
  inside "$1" sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2
}

# The API server's public address is 185.1.1.2; as a node that machine has a private one, as in a cloud.
sites() {
  namespace internet
  inside internet sysctl -qw net.ipv4.ip_forward=1
  namespace hub-lan
  lan hub-lan 1
  plug hub hub-lan 1 10
  ip -n "$lab-hub" route del default via 192.168.1.1
  attach hub eth1 1
  port_restricted_nat paris-nat 2
  lan paris-nat 2
  plug paris-1 paris-nat 2 11
  plug paris-2 paris-nat 2 12
  plug paris-desk paris-nat 2 99
  symmetric_nat tokyo-nat 3
  lan tokyo-nat 3
  plug tokyo-1 tokyo-nat 3 11
  namespace outside
  attach outside eth0 4
  local node
  for node in "${nodes[@]}"; do unprepared "$node"; done
}
