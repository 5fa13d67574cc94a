# shellcheck shell=bash
# A cluster without farspan: the control plane and the four nodes, NotReady for want of a pod network. Sourced last.

: "${nodes:?}" "${files:?}" "${mode:?}"

cluster() {
  local node waiting=()
  say "three sites: a hub in public, paris behind a port-restricted NAT, tokyo behind a symmetric one"
  sites
  for node in "${nodes[@]}"; do begin_node "$node"; done
  say "Kubernetes: control plane on the hub, kubelets on ${nodes[*]}"
  start_control
  create_nodes
  for node in "${nodes[@]}"; do { start_containerd "$node" && start_kubelet "$node" && start_proxy "$node" "$mode"; } & waiting+=($!); done
  for node in "${waiting[@]}"; do wait "$node"; done
  kubectl apply -f scripts/lib/kubernetes/dns.yaml >/dev/null
}
