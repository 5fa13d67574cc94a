# shellcheck shell=bash
# What people do to nodes from outside: logs, exec, port-forward to machines behind NATs. Sourced after rows.sh.

: "${files:?}"

operate() {
  local pid
  eventually "kubectl logs of the pod in tokyo" "serving*" kubectl -n demo logs tokyo-1
  eventually "kubectl exec in the pod in tokyo" "tokyo-1" kubectl -n demo exec tokyo-1 -- hostname
  kubectl -n demo port-forward pod/tokyo-1 18080:8080 >"$files/forward.log" 2>&1 & pid=$!
  eventually "kubectl port-forward to the pod in tokyo" "tokyo-1 ?*" inside hub socat -T 5 - TCP:127.0.0.1:18080
  kill $pid 2>/dev/null || true
  wait $pid 2>/dev/null || true
}
