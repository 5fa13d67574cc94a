# shellcheck shell=bash
# The control plane, on the hub: kube-apiserver with its etcd, controllers, scheduler. Sourced after node.sh.

: "${lab:?}" "${files:?}" "${tools:?}" "${nodes:?}"

api=https://185.1.1.2:6443

# kubeconfig TOKEN
kubeconfig() {
  cat <<YAML
{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "$api", certificate-authority: "$files/control/certs/apiserver.crt"}}], users: [{name: u, user: {token: "$1"}}]}
YAML
}

kubectl() { ip netns exec "$lab-hub" env KUBECONFIG="$files/admin.kubeconfig" "$tools/kubectl" --cache-dir="$files/kubectl" "$@"; }

# labels_of NODE   what a cloud says of it; tokyo is on premises, and labelled by a person
labels_of() { [ "$1" = tokyo-1 ] || echo "topology.kubernetes.io/region: ${1%%-*}, topology.kubernetes.io/zone: ${1%%-*},"; }

# number_of NODE, addresses NODE, ranges NODE
number_of() { case "$1" in hub) echo 1 ;; paris-1) echo 2 ;; paris-2) echo 3 ;; tokyo-1) echo 4 ;; *) die "no node $1" ;; esac; }
addresses() {
  case "$1" in
    hub) echo "192.168.1.10,fd16:1::10" ;;
    paris-*) echo "192.168.2.1${1#paris-},fd16:2::1${1#paris-}" ;;
    tokyo-*) echo "192.168.3.1${1#tokyo-},fd16:3::1${1#tokyo-}" ;;
  esac
}
ranges() { local number; number="$(number_of "$1")"; echo "\"10.244.$number.0/24\", \"fd10:244:0:$number::/64\""; }

# A kubelet is asked with a certificate; everything else shows a static token.
credentials() {
  local folder="$files/control" node
  mkdir -p "$folder"
  openssl ecparam -name prime256v1 -genkey -noout -out "$folder/sa.key"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /O=system:masters/CN=apiserver -keyout "$folder/clients.key" -out "$folder/clients.crt" 2>/dev/null
  {
    echo 'admin,admin,admin,system:masters'
    echo 'controllers,system:kube-controller-manager,controllers,system:masters'
    echo 'scheduler,system:kube-scheduler,scheduler'
    echo 'proxy,system:kube-proxy,proxy'
    for node in "${nodes[@]}"; do echo "kubelet-$node,system:node:$node,$node,system:nodes"; done
  } >"$folder/tokens.csv"
}

start_control() {
  local ranges=10.96.0.0/16,fd10:96::/112 folder="$files/control"
  credentials
  service hub ../control/apiserver bash -c 'cd ../control && exec "$@"' apiserver "$tools/kube-apiserver" --cert-dir=certs --bind-address=0.0.0.0 --advertise-address=185.1.1.2 --secure-port=6443 \
    --service-cluster-ip-range=$ranges --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true --token-auth-file=tokens.csv \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=sa.key --service-account-signing-key-file=sa.key \
    --kubelet-client-certificate=clients.crt --kubelet-client-key=clients.key --kubelet-preferred-address-types=InternalIP
  wait_for "the API server has its certificate: $folder/apiserver.log" test -s "$folder/certs/apiserver.crt"
  kubeconfig admin >"$files/admin.kubeconfig"
  kubeconfig controllers >"$folder/controllers.kubeconfig"
  kubeconfig scheduler >"$folder/scheduler.kubeconfig"
  wait_for "the API server is ready: $folder/apiserver.log" kubectl get --raw /readyz
  service hub ../control/controllers "$tools/kube-controller-manager" --kubeconfig "$folder/controllers.kubeconfig" --root-ca-file "$folder/certs/apiserver.crt" \
    --service-account-private-key-file "$folder/sa.key" --service-cluster-ip-range=$ranges --leader-elect=false --node-monitor-grace-period=60s
  service hub ../control/scheduler "$tools/kube-scheduler" --kubeconfig "$folder/scheduler.kubeconfig" --leader-elect=false
}

# Nodes with their ranges, and those of clouds with their region and a zone in it.
create_nodes() {
  local node
  for node in "${nodes[@]}"; do
    cat <<YAML
---
{apiVersion: v1, kind: Node, metadata: {name: $node, labels: {$(labels_of "$node") kubernetes.io/os: linux}},
 spec: {podCIDR: $(ranges "$node" | cut -d, -f1), podCIDRs: [$(ranges "$node")]}}
YAML
  done | kubectl create -f - >/dev/null
  kubectl label node tokyo-1 topology.kubernetes.io/region=ap-northeast topology.kubernetes.io/zone=tokyo >/dev/null
}

ready_nodes() { [ "$(kubectl get nodes --no-headers | grep -cw Ready)" = ${#nodes[@]} ]; }
