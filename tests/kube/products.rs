//! `farspan preflight` on clusters whose network is another product's with its default IPAM, by the objects that its
//! manifests make: Calico by its operator and by its manifest, Cilium.

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::lab::agent::PATIENCE;
use crate::lab::wait::wait_until;
use crate::verbs::{codes, preflight};

const SYSTEM: &str = "/api/v1/namespaces/kube-system/configmaps";

#[test]
fn calico_by_its_operator_is_known_with_its_own_ipam_mtu_and_marks() {
    let cluster = Cluster::with_nodes(&["n1"]);
    cluster
        .server
        .kubectl_ok(&["create", "namespace", "calico-system"], "");
    daemon_set(&cluster, "calico-system", "calico-node");
    kind(
        &cluster,
        "operator.tigera.io",
        "installations",
        "Installation",
    );
    kind(&cluster, "crd.projectcalico.org", "ippools", "IPPool");
    kind(
        &cluster,
        "crd.projectcalico.org",
        "felixconfigurations",
        "FelixConfiguration",
    );
    let pool = json!({"cidr": "192.168.0.0/16", "blockSize": 26, "encapsulation": "VXLANCrossSubnet",
        "natOutgoing": "Enabled", "nodeSelector": "all()"});
    object(
        &cluster,
        "operator.tigera.io/v1",
        "Installation",
        "default",
        &json!({"cni": {"type": "Calico", "ipam": {"type": "Calico"}},
        "calicoNetwork": {"bgp": "Disabled", "mtu": 1410, "ipPools": [pool]}}),
    );
    object(
        &cluster,
        "crd.projectcalico.org/v1",
        "IPPool",
        "default-ipv4-ippool",
        &json!({"cidr": "192.168.0.0/16", "blockSize": 26, "vxlanMode": "CrossSubnet", "natOutgoing": true}),
    );
    object(
        &cluster,
        "crd.projectcalico.org/v1",
        "FelixConfiguration",
        "default",
        &json!({"bpfConnectTimeLoadBalancing": "TCP", "iptablesMarkMask": 4_278_190_080_u32}),
    );

    let report = refuses_existing(&cluster, "calico-ipam ignores those");
    assert_eq!(report["cluster"]["cni"], "Calico");
    assert_eq!(report["cluster"]["ipam"]["by"], "calico-ipam");
    assert_eq!(report["cluster"]["mtu"], 1410);
    assert_eq!(mark_of(&report, "Calico"), 0xff00_0000);

    // The other IPAM that the operator offers.
    let local = json!({"spec": {"cni": {"ipam": {"type": "HostLocal"}}}});
    let path = "/apis/operator.tigera.io/v1/installations/default";
    cluster.admin.merge(path, &local).expect("changed");
    let report = preflight(&cluster, &["--pod-network", "existing"], 0);
    assert_eq!(report["cluster"]["ipam"]["by"], "host-local");
}

#[test]
fn calico_by_its_manifest_is_known_by_its_cni_configuration() {
    let cluster = Cluster::with_nodes(&["n1"]);
    daemon_set(&cluster, "kube-system", "calico-node");
    let file = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [{"type": "calico", "log_level": "info",
        "datastore_type": "kubernetes", "nodename": "__KUBERNETES_NODE_NAME__", "mtu": __CNI_MTU__, "ipam": {"type": "calico-ipam"},
        "policy": {"type": "k8s"}}, {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}"#;
    // Detected on each node, unless it is told.
    let data = json!({"typha_service_name": "none", "calico_backend": "bird", "veth_mtu": "0", "cni_network_config": file});
    config_map(&cluster, "calico-config", &data);
    let report = refuses_existing(&cluster, "calico-ipam ignores those");
    assert_eq!(report["cluster"]["mtu"], Value::Null);
    assert_eq!(mark_of(&report, "Calico"), 0xffff_0000);
}

#[test]
fn cilium_is_known_with_its_ipam_its_marks_and_what_it_replaces() {
    let cluster = Cluster::with_nodes(&["n1"]);
    daemon_set(&cluster, "kube-system", "cilium");
    let data = json!({"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/8", "cluster-pool-ipv4-mask-size": "24",
        "routing-mode": "tunnel", "tunnel-protocol": "vxlan", "kube-proxy-replacement": "true", "enable-ipv4-masquerade": "true",
        "enable-bpf-masquerade": "false", "cni-exclusive": "true"});
    config_map(&cluster, "cilium-config", &data);
    let report = refuses_existing(&cluster, "Cilium ipam.mode=cluster-pool ignores those");
    assert_eq!(report["cluster"]["kube_proxy"], "replaced by Cilium");
    assert_eq!(mark_of(&report, "Cilium"), 0x0f00);

    let kubernetes = json!({"data": {"ipam": "kubernetes"}});
    let path = format!("{SYSTEM}/cilium-config");
    cluster.admin.merge(&path, &kubernetes).expect("changed");
    let report = preflight(&cluster, &["--pod-network", "existing"], 0);
    assert_eq!(codes(&report), Vec::<&str>::new());
}

/// `auto` becomes `nodes`, and `existing` is refused in a sentence.
fn refuses_existing(cluster: &Cluster, because: &str) -> Value {
    let report = preflight(cluster, &[], 0);
    assert_eq!(report["pod_network"], "nodes");
    let refused = preflight(cluster, &["--pod-network", "existing"], 3);
    assert_eq!(codes(&refused), ["ipam-ignores-pod-cidrs"]);
    let finding = &refused["findings"][0];
    let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    assert!(text("message").contains(because), "{finding}");
    assert!(text("remedy").contains("--pod-network nodes"), "{finding}");
    report
}

fn mark_of(report: &Value, owner: &str) -> u64 {
    let marks = report["cluster"]["marks"].as_array().expect("a list");
    let mark = marks.iter().find(|mark| mark["owner"] == owner);
    mark.and_then(|mark| mark["mask"].as_u64()).expect("a mark")
}

fn daemon_set(cluster: &Cluster, namespace: &str, name: &str) {
    let labels = json!({"k8s-app": name});
    let spec = json!({"hostNetwork": true, "containers": [{"name": name, "image": "quay.io/example/node"}]});
    let template = json!({"metadata": {"labels": labels}, "spec": spec});
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": template}});
    cluster
        .server
        .kubectl_ok(&["apply", "-f", "-"], &set.to_string());
}

fn config_map(cluster: &Cluster, name: &str, data: &Value) {
    let map = json!({"metadata": {"name": name}, "data": data});
    cluster.admin.create(SYSTEM, &map).expect("a ConfigMap");
}

/// A kind of another product, whose schema says nothing here.
fn kind(cluster: &Cluster, group: &str, plural: &str, name: &str) {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": schema});
    let names = json!({"plural": plural, "singular": name.to_lowercase(), "kind": name, "listKind": format!("{name}List")});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {"group": group, "scope": "Cluster", "names": names, "versions": [version]}});
    cluster
        .server
        .kubectl_ok(&["apply", "-f", "-"], &crd.to_string());
    let path = format!("/apis/{group}/v1/{plural}");
    wait_until(&format!("{plural} are served"), PATIENCE, || {
        let listed = cluster.admin.get(&path);
        listed.map(drop).map_err(|refusal| refusal.to_string())
    });
}

fn object(cluster: &Cluster, version: &str, kind: &str, name: &str, spec: &Value) {
    let object =
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec});
    cluster
        .server
        .kubectl_ok(&["apply", "-f", "-"], &object.to_string());
}
