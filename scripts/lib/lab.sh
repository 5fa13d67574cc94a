# shellcheck shell=bash
# A small internet of network namespaces for the demo and the benchmark. The caller sets lab (what names
# start with), files (a folder) and binary (farspan).

: "${lab:?}" "${files:=}" "${binary:?}"
. scripts/lib/nat.sh

inside() { local name="$1"; shift; ip netns exec "$lab-$name" "$@"; }

namespace() {
  ip netns add "$lab-$1"
  inside "$1" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
  ip -n "$lab-$1" link set lo up
}

# attach NAMESPACE INTERFACE NUMBER   an uplink with the public address 185.1.NUMBER.2
attach() {
  ip -n "$lab-internet" link add "w$3" type veth peer name "$2" netns "$lab-$1"
  ip -n "$lab-internet" addr add "185.1.$3.1/24" dev "w$3"
  ip -n "$lab-internet" link set "w$3" up
  ip -n "$lab-$1" addr add "185.1.$3.2/24" dev "$2"
  ip -n "$lab-$1" link set "$2" up
  ip -n "$lab-$1" route add default via "185.1.$3.1"
}

# behind ROUTER NAMESPACE NUMBER   a machine with the address 192.168.NUMBER.10
behind() {
  namespace "$2"
  ip -n "$lab-$1" link add lan type veth peer name eth0 netns "$lab-$2"
  ip -n "$lab-$1" addr add "192.168.$3.1/24" dev lan
  ip -n "$lab-$1" link set lan up
  ip -n "$lab-$2" addr add "192.168.$3.10/24" dev eth0
  ip -n "$lab-$2" link set eth0 up
  ip -n "$lab-$2" route add default via "192.168.$3.1"
}

# pod NODE NUMBER   a pod with the address 10.244.NUMBER.2 behind a node
pod() {
  namespace "$1-pod"
  inside "$1" sysctl -qw net.ipv4.ip_forward=1
  ip -n "$lab-$1" link add pod0 type veth peer name eth0 netns "$lab-$1-pod"
  ip -n "$lab-$1" addr add "10.244.$2.1/24" dev pod0
  ip -n "$lab-$1" link set pod0 up
  ip -n "$lab-$1-pod" addr add "10.244.$2.2/24" dev eth0
  ip -n "$lab-$1-pod" link set eth0 up
  ip -n "$lab-$1-pod" route add default via "10.244.$2.1"
}

# farspan NODE VERB...   the real binary on a node, with files of its own
farspan() {
  local node="$1"; shift
  inside "$node" env FARSPAN_CONFIG="$files/$node/farspan.toml" FARSPAN_STATE_DIR="$files/$node/state" \
    FARSPAN_SOCKET="$files/$node/control.sock" FARSPAN_NAME="$node" "$binary" "$@"
}

# wait_for WHAT COMMAND...   at most 30 s
wait_for() {
  local what="$1" end=$((SECONDS + 30)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "not within 30 s: $what" >&2; return 1; }
    sleep 0.1
  done
}
