# shellcheck shell=bash
# farspan as a person installs, looks at, restarts and removes it. Sourced after rows.sh.

: "${nodes:?}" "${lab:?}" "${files:?}" "${api:?}" "${program:?}" "${farspan_image:?}"

# The CLI on the administrator's machine.
farspan() { ip netns exec "$lab-hub" env KUBECONFIG="$files/admin.kubeconfig" "$program" "$@"; }

# manifests POD-NETWORK
manifests() { farspan manifests --image "$farspan_image" --api-server "$api" --pod-network "$1"; }

rolled_out() { kubectl -n farspan rollout status daemonset/farspan --timeout=120s; }

install() {
  say "farspan preflight"
  farspan preflight --pod-network own
  say "farspan manifests own | kubectl apply -f -"
  manifests own | kubectl apply -f -
  rolled_out
  wait_for "the nodes are Ready" ready_nodes
  kubectl get nodes -o wide
  row "the same again: every object is" "unchanged" "$(manifests own | kubectl apply -f - | awk '{ print $NF }' | sort -u | paste -sd' ')"
}

# shellcheck disable=SC2016  # expanded on the node
# agent_pid NODE   its PID as the node sees it
agent_pid() { on "$1" sh -c 'for p in /proc/[0-9]*; do if [ "$(cat $p/comm 2>/dev/null)" = farspan ]; then echo "${p#/proc/}"; break; fi; done'; }

# shellcheck disable=SC2016  # awk's
# What the pods of the DaemonSet may do.
rights() {
  local node pid effective='/^CapEff/ { print $2 }' root='$5 == "/" { print $6 }'
  for node in "${nodes[@]}"; do
    pid="$(agent_pid "$node")"
    row "the agent's capabilities on $node: NET_ADMIN alone" "0000000000001000" "$(on "$node" awk "$effective" "/proc/$pid/status")"
    row "its root on $node is mounted" "ro" "$(on "$node" awk "$root" "/proc/$pid/mountinfo" | cut -d, -f1)"
  done
}

status() {
  local node
  for node in "${nodes[@]}"; do
    say "farspan status on $node"
    kubectl -n farspan exec "$(kubectl -n farspan get pods -o name --field-selector "spec.nodeName=$node")" -- farspan status
  done
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

# Every agent is replaced, one after the other, while a pod in paris pings one in tokyo ten times a second.
rolling_restart() {
  local before; before="$(kubectl -n farspan get pods -o name | sort)"
  # shellcheck disable=SC2016  # the only pod of that node with a network of its own
  service paris-1 ping sh -c 'exec ip netns exec "$(ip netns list | cut -d" " -f1 | head -1)" ping -D -i 0.1 "$0"' "$(pod_ip tokyo-1 4)"
  kubectl -n farspan rollout restart daemonset/farspan >/dev/null
  rolled_out >/dev/null
  row "agents that are the same after a rolling restart" "" "$(comm -12 <(echo "$before") <(kubectl -n farspan get pods -o name | sort))"
  eventually "pod on paris-1 to pod on tokyo-1 afterwards" "tokyo-1 *" from_pod paris-1 "$(pod_ip tokyo-1 4)" 8080
  end_service paris-1 ping
  row "meanwhile paris heard from tokyo" "[1-9]* answers, longest silence *" "$(heard "$files/paris-1/ping.log")"
}
