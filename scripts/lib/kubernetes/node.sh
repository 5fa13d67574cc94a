# shellcheck shell=bash
# A node: containerd, kubelet and kube-proxy in namespaces of their own. Sourced after lab.sh; `tools` is Kubernetes' folder.

: "${lab:?}" "${files:?}" "${tools:?}"

# on NODE COMMAND...   as a process of that node
on() {
  local node="$1"; shift
  nsenter --target "$(cat "$files/$node/pid")" --mount --uts --net --pid --cgroup -- "$@"
}

# shellcheck disable=SC2016  # expanded by the other bash
# service NODE NAME COMMAND...   in the background, until the node ends or end_service
service() {
  local node="$1" name="$2"; shift 2
  setsid nsenter --target "$(cat "$files/$node/pid")" --mount --uts --net --pid --cgroup -- \
    bash -c 'cd "$0"; echo $$ >"$1.pid"; shift; exec "$@"' "$files/$node" "$name" "$@" </dev/null >>"$files/$node/$name.log" 2>&1 &
}

# end_service NODE NAME   waits for its end, too
end_service() {
  local pid; pid="$(cat "$files/$1/$2.pid" 2>/dev/null)" || return 0
  on "$1" kill "$pid"
  wait_for "$2 of $1 ends" gone "$1" "$pid"
}
gone() { ! on "$1" kill -0 "$2"; }

# join_groups NAME PID   puts a process into a control group of its own of each hierarchy
join_groups() {
  local path
  awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts | while read -r path; do
    mkdir -p "$path/$1"
    case "$path" in *cpuset*) cat "$path/cpuset.cpus" >"$path/$1/cpuset.cpus"; cat "$path/cpuset.mems" >"$path/$1/cpuset.mems" ;; esac
    echo "$2" >"$path/$1/cgroup.procs"
  done
}

# begin_node NODE   its first process
begin_node() {
  mkdir -p "$files/$1"
  (
    join_groups "$lab-$1" "$BASHPID"
    exec setsid nsenter --net="/run/netns/$lab-$1" unshare --mount --pid --uts --cgroup --fork scripts/lib/kubernetes/init "$1" "$files" "$tools"
  ) </dev/null >"$files/$1/init.log" 2>&1 &
  wait_for "$1 has its namespaces: $files/$1/init.log" test -e "$files/$1/ready"
  # Of the node's processes in its network namespace the one that is first in its own PID namespace.
  ip netns pids "$lab-$1" | while read -r pid; do
    [ "$(awk '/^NSpid:/ { print $NF }' "/proc/$pid/status")" != 1 ] || echo "$pid"
  done | head -1 >"$files/$1/pid"
}

# start_containerd NODE   and gives it the images
start_containerd() {
  local image
  cat >"$files/$1/containerd.toml" <<'TOML'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
TOML
  service "$1" containerd containerd --config "$files/$1/containerd.toml"
  wait_for "containerd of $1 answers" on "$1" ctr version
  for image in "$files"/images/*.tar; do on "$1" ctr --namespace k8s.io images import "$image" >/dev/null; done
}

# start_kubelet NODE
start_kubelet() {
  kubeconfig "kubelet-$1" >"$files/$1/kubelet.kubeconfig"
  cat >"$files/$1/kubelet.yaml" <<YAML
{apiVersion: kubelet.config.k8s.io/v1beta1, kind: KubeletConfiguration, cgroupDriver: cgroupfs, failSwapOn: false, oomScoreAdj: 0, failCgroupV1: false,
 containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock", clusterDNS: ["10.96.0.10"], clusterDomain: cluster.local, resolvConf: /etc/resolv.conf,
 authentication: {anonymous: {enabled: false}, x509: {clientCAFile: "$files/control/clients.crt"}}, authorization: {mode: Webhook},
 evictionHard: {nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%", memory.available: "1Mi"}, imageGCHighThresholdPercent: 100, shutdownGracePeriod: 0s}
YAML
  service "$1" kubelet "$tools/kubelet" --kubeconfig "$files/$1/kubelet.kubeconfig" --config "$files/$1/kubelet.yaml" \
    --hostname-override "$1" --node-ip "$(addresses "$1")"
}

# start_proxy NODE MODE   instead of the one that runs
start_proxy() {
  end_service "$1" proxy
  kubeconfig "proxy" >"$files/$1/proxy.kubeconfig"
  service "$1" proxy "$tools/kube-proxy" --kubeconfig "$files/$1/proxy.kubeconfig" --proxy-mode "$2" --hostname-override "$1" \
    --cluster-cidr 10.244.0.0/16,fd10:244::/48 --oom-score-adj=0 --conntrack-max-per-core=0 --conntrack-min=0
}
