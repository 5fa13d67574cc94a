# shellcheck shell=bash
# What runs in the cluster: on each node a pod and a hostNetwork pod that say who has called them. Sourced after control.sh.

: "${nodes:?}"

# box NODE NAME HOST-NETWORK PORT   answers each connection with its name and the caller's address
box() {
  cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: {name: $2, namespace: demo, labels: {app: $([ "$3" = true ] && echo host || echo box), node: $1, close: "yes"}}
spec:
  nodeName: $1
  hostNetwork: $3
  hostname: $2
  subdomain: boxes
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - name: box
    image: local.test/tools:1
    imagePullPolicy: Never
    command: [sh, -c]
    args: ['echo serving; socat TCP4-LISTEN:$4,fork,reuseaddr SYSTEM:"echo $2 \\\$SOCAT_PEERADDR" & exec socat TCP6-LISTEN:$4,ipv6only=1,fork,reuseaddr SYSTEM:"echo $2 \\\$SOCAT_PEERADDR"']
YAML
}

# entry NAME SELECTOR PORT SPEC   a Service
entry() { printf -- '---\n{apiVersion: v1, kind: Service, metadata: {name: %s, namespace: demo}, spec: {selector: %s, ipFamilyPolicy: %s, ports: [{port: 80, targetPort: 8080%s}]%s}}\n' "$1" "$2" "$families" "$3" "$4"; }

# workload FAMILIES
workload() {
  local node families="$1"
  echo '{apiVersion: v1, kind: Namespace, metadata: {name: demo}}'
  for node in "${nodes[@]}"; do
    box "$node" "$node" false 8080
    box "$node" "host-$node" true 8081
  done
  entry boxes "{app: box}" "" ", clusterIP: None"
  entry all "{app: box}" "" ""
  entry tokyo "{app: box, node: tokyo-1}" "" ""
  entry close '{app: box, close: "yes"}' "" ", trafficDistribution: PreferSameZone"
  entry far "{app: box, node: tokyo-1}" ", nodePort: 30080" ", type: NodePort"
  entry near "{app: box, node: paris-1}" ", nodePort: 30081" ", type: NodePort, externalTrafficPolicy: Local"
}
