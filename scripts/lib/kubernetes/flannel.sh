# shellcheck shell=bash
# Another network on top: VXLAN as Flannel makes it, its packets between node addresses, which farspan carries. Sourced after farspan.sh.

: "${nodes:?}"

# flannel_device NODE   VNI 1, port 8472, nothing learned; and the bridge for the node's pods
flannel_device() {
  local number mtu; number="$(number_of "$1")"
  mtu="$(($(on "$1" cat /sys/class/net/farspan0/mtu) - 50))"
  on "$1" ip link add flannel.1 mtu "$mtu" type vxlan id 1 dstport 8472 local "$(node_ip "$1" 4)" nolearning
  on "$1" ip addr add "10.244.$number.0/32" dev flannel.1
  on "$1" ip link set flannel.1 up
  on "$1" sh -c 'cat >/etc/cni/net.d/10-flannel.conflist' <<JSON
{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "bridge", "bridge": "cni0", "mtu": $mtu, "hairpinMode": true, "isDefaultGateway": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.$number.0/24"}]]}}, {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

# flannel_peer NODE OTHER   route, neighbour and forwarding entry
flannel_peer() {
  local number mac; number="$(number_of "$2")"
  mac="$(on "$2" cat /sys/class/net/flannel.1/address)"
  on "$1" ip neigh add "10.244.$number.0" lladdr "$mac" dev flannel.1
  on "$1" bridge fdb append "$mac" dev flannel.1 dst "$(node_ip "$2" 4)"
  on "$1" ip route add "10.244.$number.0/24" via "10.244.$number.0" dev flannel.1 onlink
}

flannel() {
  local node other
  say "Flannel's VXLAN over the mesh: farspan manifests --pod-network nodes | kubectl apply -f -"
  manifests --pod-network nodes | kubectl apply -f - >/dev/null
  rolled_out >/dev/null
  for node in "${nodes[@]}"; do flannel_device "$node"; done
  for node in "${nodes[@]}"; do
    for other in "${nodes[@]}"; do [ "$node" = "$other" ] || flannel_peer "$node" "$other"; done
    [ "$node" = tokyo-1 ] || eventually "the way from $node to tokyo's node address" "*dev farspan0*" on "$node" ip route get "$(node_ip tokyo-1 4)"
  done
  wait_for "the nodes are Ready" ready_nodes
  start_workload SingleStack
  families=4 pods
}
