# shellcheck shell=bash
# A pair of nodes for each contender and family: two namespaces, a veth, one tunnel; the same addresses in each pair.
# Sourced after lab.sh.

: "${lab:?}" "${files:?}"
MTU=1420 PORT=51820

# pair CONTENDER FAMILY PROGRAM   makes it, and waits until it carries packets
pair() {
  local name="$1$2" contender="$1" family="$2" program="$3" node
  for node in a b; do
    namespace "$name$node"
    mkdir "$files/$name$node"
    (umask 077 && wg genkey >"$files/$name$node/key")
  done
  ip -n "$lab-${name}a" link add eth0 type veth peer name eth0 netns "$lab-${name}b"
  if [ "$family" = 4 ]; then
    local outer=(185.1.1.1 185.1.1.2) inner=(10.77.0.1 10.77.0.2) host=32 link=24
  else
    local outer=(2a01:185::1 2a01:185::2) inner=(fd77::1 fd77::2) host=128 link=64
  fi
  node a b 0 1
  node b a 1 0
  wait_for "$contender carries packets of IPv$family" inside "${name}a" ping -c 1 -W 1 -I "${inner[0]}" "${inner[1]}"
  for node in a b; do
    ip -n "$lab-$name$node" -o link | grep -v "lo:\|eth0" | grep -q "mtu $MTU " || die "the device of $contender has another MTU than $MTU"
  done
}

# node OWN PEER OWN-INDEX PEERS-INDEX   one end of the pair, with the variables of that function
node() {
  local own="$name$1" peer="$name$2" self="${inner[$3]}/$host" other="${inner[$4]}/$host" endpoint="${outer[$4]}:$PORT"
  [ "$family" = 4 ] || endpoint="[${outer[$4]}]:$PORT"
  ip -n "$lab-$own" addr add "${outer[$3]}/$link" dev eth0
  ip -n "$lab-$own" link set eth0 up
  case "$contender" in
    farspan) farspan_node ;;
    vxlan) vxlan_node "$@" ;;
    # Flags that keep them where they are and who they are; nothing is tuned.
    wireguard-go) plain_node env WG_PROCESS_FOREGROUND=1 LOG_LEVEL=error "$program" ;;
    *) plain_node "$program" --foreground --disable-drop-privileges ;;
  esac
}

farspan_node() {
  cat >"$files/$own/farspan.toml" <<TOML
[node]
private-key-file = "$files/$own/key"
backend = "userspace"
listen-port = $PORT
addresses = ["$self"]
[[peer]]
name = "$peer"
public-key = "$(wg pubkey <"$files/$peer/key")"
endpoints = ["$endpoint"]
allowed-ips = ["$other"]
TOML
  farspan "$own" up >/dev/null
}

# The kernel's own tunnel without a cipher.
vxlan_node() {
  ip -n "$lab-$own" link add tunnel type vxlan id 7 dstport 4789 local "${outer[$3]}" remote "${outer[$4]}" dev eth0
  ip -n "$lab-$own" addr add "$self" dev tunnel
  ip -n "$lab-$own" link set tunnel mtu $MTU up
  ip -n "$lab-$own" route add "$other" dev tunnel
}

# plain_node COMMAND...   what `wg` configures
plain_node() {
  # Sockets of all namespaces stand in one folder, so every device has another name.
  local device="$lab-${name:0:1}$family${own: -1}"
  (exec ip netns exec "$lab-$own" "$@" "$device" >"$files/$own/log" 2>&1) &
  disown
  wait_for "the device of $own" inside "$own" wg show "$device"
  inside "$own" wg set "$device" private-key "$files/$own/key" listen-port $PORT \
    peer "$(wg pubkey <"$files/$peer/key")" endpoint "$endpoint" allowed-ips "$other"
  ip -n "$lab-$own" addr add "$self" dev "$device"
  ip -n "$lab-$own" link set "$device" mtu $MTU up
  ip -n "$lab-$own" route add "$other" dev "$device"
}
