# shellcheck shell=bash
# farspan as a person installs, looks at, restarts and removes it. Sourced after rows.sh.

: "${nodes:?}" "${lab:?}" "${files:?}" "${api:?}" "${program:?}" "${farspan_image:?}"

# The CLI on the administrator's machine.
farspan() { ip netns exec "$lab-hub" env KUBECONFIG="$files/admin.kubeconfig" "$program" "$@"; }

# manifests POD-NETWORK
manifests() { farspan manifests --image "$farspan_image" --api-server "$api" --pod-network "$1"; }

rolled_out() { kubectl -n farspan rollout status daemonset/farspan --timeout=120s; }

install() {
  say "farspan manifests own | kubectl apply -f -"
  manifests own | kubectl apply -f -
  rolled_out
  wait_for "the nodes are Ready" ready_nodes
  kubectl get nodes -o wide
  row "the same again: every object is" "unchanged" "$(manifests own | kubectl apply -f - | awk '{ print $NF }' | sort -u | paste -sd' ')"
}

# shellcheck disable=SC2016  # expanded on the node
# agent_pid NODE   its PID as the node sees it
agent_pid() { on "$1" sh -c 'for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = farspan ] && echo "${p#/proc/}"; done' | head -1; }

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

start_workload() {
  workload | kubectl apply -f - >/dev/null
  kubectl -n demo wait --for=condition=Ready pod --all --timeout=60s >/dev/null
  kubectl -n kube-system rollout status deployment/coredns --timeout=60s >/dev/null
  read_addresses
  kubectl get pods -A -o wide
}

# The longest time without an answer while every agent is replaced, one after the other.
rolling_restart() {
  local ping longest
  in_pod paris-1 ping -D -i 0.1 "$(pod_ip tokyo-1 4)" >"$files/restart.txt" 2>&1 & ping=$!
  kubectl -n farspan rollout restart daemonset/farspan >/dev/null
  rolled_out >/dev/null
  wait_for "paris hears tokyo again" in_pod paris-1 ping -c 1 -W 1 "$(pod_ip tokyo-1 4)"
  kill $ping 2>/dev/null || true
  wait $ping 2>/dev/null || true
  longest="$(tr -d '[]' <"$files/restart.txt" | awk '/bytes from/ { if (last && $1 - last > longest) longest = $1 - last; last = $1 } END { printf "%.1f", longest }')"
  row "every agent replaced, one by one; longest silence between two regions, s" "[0-9]*.[0-9]" "$longest"
}
