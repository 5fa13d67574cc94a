# shellcheck shell=bash
# What is left of farspan after `farspan uninstall`: nothing. Sourced after farspan.sh.

: "${nodes:?}"

# shellcheck disable=SC2016  # expanded on the node
# traces NODE   of links, routes, rules, packet filters and files
traces() {
  on "$1" sh -c '
    ip -o link | grep -o "farspan[^:@]*"
    for f in -4 -6; do ip $f route show table 22512 2>/dev/null; ip $f rule | grep -E "22512|0x2000|^5299:"; done
    nft list tables | grep -i farspan
    ls /etc/cni/net.d /run/farspan /var/lib/farspan 2>/dev/null | grep -v :
  ' 2>/dev/null || true
}

# objects   of farspan in the cluster
objects() {
  kubectl get namespaces,clusterroles,clusterrolebindings,customresourcedefinitions,validatingadmissionpolicies,validatingadmissionpolicybindings,priorityclasses -o name | grep -i farspan || true
  kubectl get nodes -o jsonpath='{.items[*].metadata.annotations}' | grep -o '[a-z.]*farspan.io/[a-z-]*' || true
}

uninstall() {
  local node
  say "farspan uninstall --purge"
  kubectl delete namespace demo --wait >/dev/null
  kubectl -n kube-system delete pods -l k8s-app=dns --wait=false >/dev/null
  farspan uninstall --purge
  eventually "farspan's objects and annotations in the cluster" "" objects
  for node in "${nodes[@]}"; do eventually "links, routes, rules, nftables, files on $node" "" traces "$node"; done
}
