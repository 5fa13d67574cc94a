# shellcheck shell=bash
# What makes a machine a node: containerd, kubelet, kube-proxy. Sourced after node.sh.

: "${files:?}" "${tools:?}"

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
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: "$files/control/clients.crt"}}
authorization: {mode: Webhook}
evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", memory.available: 1Mi}
imageGCHighThresholdPercent: 100
YAML
  service "$1" kubelet "$tools/kubelet" --kubeconfig "$files/$1/kubelet.kubeconfig" --config "$files/$1/kubelet.yaml" \
    --hostname-override "$1" --node-ip "$(addresses "$1")"
}

# start_proxy NODE MODE   instead of the one that runs
start_proxy() {
  end_service "$1" proxy
  kubeconfig "proxy" >"$files/$1/proxy.kubeconfig"
  service "$1" proxy "$tools/kube-proxy" --kubeconfig "$files/$1/proxy.kubeconfig" --proxy-mode "$2" --hostname-override "$1" \
    --cluster-cidr 10.244.0.0/16,fd10:244::/48 --nodeport-addresses 0.0.0.0/0,::/0 --oom-score-adj=0 --conntrack-max-per-core=0 --conntrack-min=0
}
