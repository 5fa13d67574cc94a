# shellcheck shell=bash
# farspan as a person installs, looks at, restarts and removes it. Sourced after rows.sh.

: "${nodes:?}" "${lab:?}" "${files:?}" "${api:?}" "${program:?}" "${farspan_image:?}"

# The CLI on the administrator's machine.
farspan() { ip netns exec "$lab-hub" env KUBECONFIG="$files/admin.kubeconfig" "$program" "$@"; }

# manifests [FLAG...]
manifests() { farspan manifests --image "$farspan_image" --api-server "$api" "$@"; }

rolled_out() { kubectl -n farspan rollout status daemonset/farspan --timeout=120s; }

install() {
  local node
  say "farspan preflight"
  farspan preflight
  for node in "${nodes[@]}"; do row "forwarding and marks on $node without farspan" "0 0 0" "$(settings "$node")"; done
  say "farspan manifests --sysctls | kubectl apply -f -"
  manifests --sysctls | kubectl apply -f -
  rolled_out
  for node in "${nodes[@]}"; do
    row "forwarding and marks on $node" "1 1 1" "$(settings "$node")"
    eventually "by its init container" "*src_valid_mark set to 1*ipv4/ip_forward set to 1*all/forwarding set to 1*" init_container "$node"
  done
  wait_for "the nodes are Ready" ready_nodes
  kubectl get nodes -o wide
  row "the same again: every object is" "unchanged" "$(manifests --sysctls | kubectl apply -f - | awk '{ print $NF }' | sort -u | paste -sd' ')"
}

# start_workload [FAMILIES]
start_workload() {
  workload "${1:-RequireDualStack}" | kubectl apply -f - >/dev/null
  kubectl -n demo wait --for=condition=Ready pod --all --timeout=60s >/dev/null
  kubectl -n kube-system rollout status deployment/coredns --timeout=60s >/dev/null
  read_addresses
  kubectl get pods -A -o wide
}

# heard PING-LOG   how often, and the longest silence between two answers in seconds
heard() {
  tr -d '[]' <"$1" | awk '/bytes from/ { n++; if (last && $1 - last > longest) longest = $1 - last; last = $1 } END { printf "%d answers, longest silence %.1f s", n, longest }'
}

# Every agent is replaced, one after the other, by one with another flag, while a pod in paris pings one in tokyo ten times a second.
rolling_restart() {
  local before; before="$(kubectl -n farspan get pods -o name | sort)"
  # shellcheck disable=SC2016  # the only pod of that node with a network of its own
  service paris-1 ping sh -c 'exec ip netns exec "$(ip netns list | cut -d" " -f1 | head -1)" ping -D -i 0.1 "$0"' "$(pod_ip tokyo-1 4)"
  say "farspan manifests --pod-network own | kubectl apply -f -"
  manifests --pod-network own | kubectl apply -f - >/dev/null
  rolled_out >/dev/null
  row "agents that are the same afterwards" "" "$(comm -12 <(echo "$before") <(kubectl -n farspan get pods -o name | sort))"
  eventually "pod on paris-1 to pod on tokyo-1 afterwards" "tokyo-1 *" from_pod paris-1 "$(pod_ip tokyo-1 4)" 8080
  end_service paris-1 ping
  row "meanwhile paris heard from tokyo" "[1-9]* answers, longest silence *" "$(heard "$files/paris-1/ping.log")"
}
