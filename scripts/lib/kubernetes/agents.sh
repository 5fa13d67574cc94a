# shellcheck shell=bash
# The agents' pods: where they are, what they may do, what they and their nodes say. Sourced after rows.sh.

: "${nodes:?}"

# agent_pod NODE   its name
agent_pod() { kubectl -n farspan get pods -o name --field-selector "spec.nodeName=$1"; }

# settings NODE   of its kernel, which an agent in a pod may only look at
settings() { on "$1" cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/src_valid_mark /proc/sys/net/ipv6/conf/all/forwarding | paste -sd' '; }

# init_container NODE   what the one of `--sysctls` says
init_container() { kubectl -n farspan logs "$(agent_pod "$1")" -c sysctls; }

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

# region_seen NODE OBSERVER
region_seen() { kubectl -n farspan exec "$(agent_pod "$2")" -- farspan status -o wide | grep -w "$1"; }

status() {
  local node
  for node in "${nodes[@]}"; do
    say "farspan status on $node"
    kubectl -n farspan exec "$(agent_pod "$node")" -- farspan status
  done
  row "kubectl exec ds/farspan -- farspan status" "* backend*" "$(kubectl -n farspan exec ds/farspan -- farspan status)"
  eventually "the region of tokyo-1 as paris-1 sees it" "* ap-northeast *" region_seen tokyo-1 paris-1
}
