# shellcheck shell=bash
# Pods and nodes reach each other, both families, and are seen by their own addresses. Sourced after rows.sh.

: "${nodes:?}"

# each_pair ACTION   for every node and every other one, both families
each_pair() {
  local from to family
  for from in "${nodes[@]}"; do
    for to in "${nodes[@]}"; do
      [ "$from" != "$to" ] || continue
      for family in 4 6; do "$1" "$from" "$to" "$family"; done
    done
  done
}

pod_to_pod() { eventually "pod on $1 to pod on $2, IPv$3: seen as itself" "$2 $(pod_ip "$1" "$3")" from_pod "$1" "$(pod_ip "$2" "$3")" 8080; }
pod_to_node() { eventually "pod on $1 to node $2, IPv$3: seen as itself" "host-$2 $(pod_ip "$1" "$3")" from_pod "$1" "$(node_ip "$2" "$3")" 8081; }
host_to_pod() { eventually "hostNetwork on $1 to pod on $2, IPv$3: seen as" "$2 ?*" from_pod "host-$1" "$(pod_ip "$2" "$3")" 8080; }
host_to_host() { eventually "hostNetwork on $1 to node $2, IPv$3: seen as" "host-$2 ?*" from_pod "host-$1" "$(node_ip "$2" "$3")" 8081; }

traffic() {
  local kind
  for kind in pod_to_pod pod_to_node host_to_pod host_to_host; do each_pair $kind; done
}
