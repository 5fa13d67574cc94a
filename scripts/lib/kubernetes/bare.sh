# shellcheck shell=bash
# A cluster without farspan: the control plane and the four nodes, NotReady for want of a pod network. Sourced last.

: "${nodes:?}" "${files:?}" "${lab:?}" "${keep:?}"

# At the script's end, however it came.
end() {
  local status=$? node
  trap - EXIT
  if [ "$keep" = yes ]; then
    say "left up; KUBECONFIG=$files/admin.kubeconfig, in namespace $lab-hub; logs in $files; remove with: scripts/clean"
    exit $status
  fi
  if [ $status -ne 0 ]; then
    for node in "${nodes[@]}"; do
      say "the last words of $node"
      on "$node" sh -c 'tail -n 15 /var/log/pods/farspan_*/farspan/*.log' || true
    done
    kubectl get pods -A -o wide || true
  fi
  scripts/clean "$lab" >/dev/null
  exit $status
}

# cluster KUBE-PROXY-MODE
cluster() {
  local node waiting=()
  say "three sites: a hub in public, paris behind a port-restricted NAT, tokyo behind a symmetric one"
  sites
  for node in "${nodes[@]}"; do begin_node "$node"; done
  say "Kubernetes: control plane on the hub, kubelets on ${nodes[*]}"
  start_control
  create_nodes
  for node in "${nodes[@]}"; do { start_containerd "$node" && start_kubelet "$node" && start_proxy "$node" "$1"; } & waiting+=($!); done
  for node in "${waiting[@]}"; do wait "$node"; done
  kubectl apply -f scripts/lib/kubernetes/dns.yaml >/dev/null
}
