# shellcheck shell=bash
# Pods and nodes reach each other, both families, and are seen by their own addresses. Sourced after rows.sh.

: "${nodes:?}"

# each_other NODE ACTION   for every other node, both families
each_other() {
  local to family
  for to in "${nodes[@]}"; do
    [ "$1" != "$to" ] || continue
    for family in ${families:-4 6}; do "$2" "$1" "$to" "$family"; done
  done
}

pod_to_pod() { echo "pod on $1 to pod on $2, IPv$3: seen as itself|$2 $(pod_ip "$1" "$3")|$(pod_ip "$2" "$3")|8080"; }
pod_to_node() { echo "pod on $1 to node $2, IPv$3: seen as itself|host-$2 $(pod_ip "$1" "$3")|$(node_ip "$2" "$3")|8081"; }
host_to_pod() { echo "hostNetwork on $1 to pod on $2, IPv$3: seen as|$2 ?*|$(pod_ip "$2" "$3")|8080"; }
host_to_host() { echo "hostNetwork on $1 to node $2, IPv$3: seen as|host-$2 ?*|$(node_ip "$2" "$3")|8081"; }

pods() {
  local from
  for from in "${nodes[@]}"; do ask "$from" < <(each_other "$from" pod_to_pod); done
}

traffic() {
  local from
  pods
  for from in "${nodes[@]}"; do ask "$from" < <(each_other "$from" pod_to_node); done
  for from in "${nodes[@]}"; do ask "host-$from" < <(each_other "$from" host_to_pod; each_other "$from" host_to_host); done
}
