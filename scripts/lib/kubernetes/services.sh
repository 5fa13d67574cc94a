# shellcheck shell=bash
# Services across regions, whichever mode kube-proxy runs in. Sourced after rows.sh.

: "${nodes:?}" "${calls:?}"

cluster_ip() {
  local from family
  for from in "${nodes[@]}"; do
    ask "$from" < <(for family in 4 6; do echo "ClusterIP, IPv$family: pod on $from to the pod in tokyo|tokyo-1 ?*|$(service_ip tokyo $family)|80"; done)
    ask "host-$from" < <(for family in 4 6; do echo "ClusterIP, IPv$family: hostNetwork on $from to the pod in tokyo|tokyo-1 ?*|$(service_ip tokyo $family)|80"; done)
  done
  for family in 4 6; do
    row "ClusterIP, IPv$family: sixty calls from paris reach the pods of" "${nodes[*]}" "$(sixty paris-1 "$(service_ip all $family)")"
  done
}
# shellcheck disable=SC2046  # one word each
# sixty POD ADDRESS   whom sixty calls reach
sixty() { in_pod "$1" sh -c "$calls" calls $(for _ in {1..60}; do echo "$2 80"; done) | cut -d' ' -f1 | sort -u | paste -sd' '; }

near() {
  local family service
  for family in 4 6; do
    service="$(service_ip close $family)"
    eventually "the near zone, IPv$family: sixty calls from paris reach the pods of" "paris-1 paris-2" sixty paris-1 "$service"
    eventually "the near zone, IPv$family: sixty calls from tokyo reach the pod of" "tokyo-1" sixty tokyo-1 "$service"
  done
  kubectl -n demo label pod tokyo-1 close- >/dev/null
  eventually "no near pod is left: sixty calls from tokyo reach the pods of" "hub paris-1 paris-2" sixty tokyo-1 "$service"
  kubectl -n demo label pod tokyo-1 close=yes >/dev/null
  eventually "it is back: sixty calls from tokyo reach the pod of" "tokyo-1" sixty tokyo-1 "$service"
}

node_port() {
  local node family
  eventually "NodePort, Cluster: from the internet to the hub, pod in tokyo" "tokyo-1 ?*" from_machine outside 185.1.1.2 30080
  for family in 4 6; do
    for node in paris-1 paris-2; do
      eventually "NodePort, Cluster, IPv$family: a desk in paris to $node, pod in tokyo" "tokyo-1 ?*" from_machine paris-desk "$(node_ip $node $family)" 30080
    done
    eventually "NodePort, Local, IPv$family: a desk in paris to paris-1: seen as itself" "paris-1 $(desk $family)" from_machine paris-desk "$(node_ip paris-1 $family)" 30081
    row "NodePort, Local, IPv$family: paris-2, which has no such pod, is silent" "" "$(from_machine paris-desk "$(node_ip paris-2 $family)" 30081 2>/dev/null || true)"
  done
}
desk() { if [ "$1" = 4 ]; then echo 192.168.2.99; else echo fd16:2::99; fi; }

names() {
  local from
  for from in hub paris-1 tokyo-1; do
    eventually "DNS from $from: the Service tokyo has both addresses" "$(service_ip tokyo 4) $(service_ip tokyo 6)" resolve "$from" tokyo
    eventually "DNS from $from: the headless Service names every pod, both families" "8" count "$from" boxes
  done
  eventually "a pod's own name, from paris to tokyo" "tokyo-1 ?*" from_pod paris-1 tokyo-1.boxes 8080
  eventually "a hostNetwork pod asks the cluster's DNS, too" "tokyo-1 ?*" from_pod host-paris-2 tokyo.demo.svc.cluster.local 80
}
resolve() { in_pod "$1" getent ahosts "$2" | awk '{ print $1 }' | sort -u | sort -t: -k2 | paste -sd' '; }
count() { in_pod "$1" getent ahosts "$2" | awk '{ print $1 }' | sort -u | wc -l; }

services() {
  cluster_ip
  node_port
  near
  names
}
