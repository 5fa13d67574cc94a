//! `farspan preflight` and `farspan uninstall` against a real API server.

use std::process::Output;

use serde_json::{Value, json};

use crate::cluster::{Cluster, NODES};

fn farspan(cluster: &Cluster, arguments: &[&str]) -> Output {
    let host = &cluster.server.host;
    let mut command = host.namespace.command(env!("CARGO_BIN_EXE_farspan"));
    let kubeconfig = cluster.server.file("admin.kubeconfig");
    command.env("FARSPAN_KUBECONFIG", kubeconfig);
    command.args(arguments).output().expect("farspan starts")
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn preflight(cluster: &Cluster, flags: &[&str], code: i32) -> Value {
    let arguments = [&["preflight", "-o", "json"], flags].concat();
    let output = farspan(cluster, &arguments);
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().expect("a list");
    let codes = findings.iter().filter_map(|one| one["code"].as_str());
    codes.collect()
}

/// A DaemonSet by which a CNI is known, and a pod with an address on a node.
fn cni(cluster: &Cluster, name: &str, pod_ip: &str) {
    let labels = json!({"app": name});
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}
    });
    let admin = &cluster.admin;
    let pods = "/api/v1/namespaces/farspan/pods";
    let pod = json!({
        "metadata": {"name": "web"},
        "spec": {"nodeName": "n1", "serviceAccountName": "farspan", "containers": [{"name": "c", "image": "i"}]}
    });
    let status =
        json!({"status": {"phase": "Running", "podIP": pod_ip, "podIPs": [{"ip": pod_ip}]}});
    let done = admin
        .create("/apis/apps/v1/namespaces/kube-system/daemonsets", &set)
        .and_then(|_| admin.create(pods, &pod))
        .and_then(|_| admin.merge(&format!("{pods}/web/status"), &status));
    done.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
}

#[test]
fn preflight_names_what_a_cluster_without_cni_is_like_and_proposes_to_be_it() {
    let cluster = Cluster::with_nodes(&["n1", "n2"]);
    let report = preflight(&cluster, &[], 0);
    let facts = &report["cluster"];
    assert_eq!(facts["version"], "v1.34.4");
    assert_eq!(facts["cni"], "none");
    assert_eq!(facts["kube_proxy"], "not found");
    assert_eq!(
        facts["service_cidrs"],
        json!(["10.96.0.0/16", "fd10:96::/112"])
    );
    assert_eq!(facts["nodes"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["pod_network"], "own");
    let server = format!("--api-server {}", cluster.server.url());
    let command = report["command"].as_str().expect("a command");
    assert!(command.contains(&server), "{command}");
    let table = farspan(&cluster, &["preflight"]);
    for word in [
        "IPAM",
        "kube-proxy",
        "Marks in use",
        "MTU",
        "10-farspan.conflist",
    ] {
        assert!(said(&table).contains(word), "{word}: {}", said(&table));
    }
}

#[test]
fn preflight_refuses_existing_where_addresses_ignore_pod_cidrs() {
    let cluster = Cluster::with_nodes(&["n1"]);
    cni(&cluster, "calico-node", "10.244.1.9");
    assert_eq!(preflight(&cluster, &[], 0)["pod_network"], "nodes");
    let report = preflight(&cluster, &["--pod-network", "existing"], 3);
    assert_eq!(codes(&report), ["ipam-ignores-pod-cidrs"]);
    let finding = &report["findings"][0];
    let message = finding["message"].as_str().expect("a sentence");
    let remedy = finding["remedy"].as_str().expect("a sentence");
    assert!(message.contains("calico-ipam ignores those"), "{message}");
    assert!(remedy.contains("--pod-network nodes"), "{remedy}");
}

#[test]
fn preflight_believes_a_pods_address_more_than_the_name_of_its_cni() {
    let cluster = Cluster::with_nodes(&["n1"]);
    cni(&cluster, "kube-flannel-ds", "172.31.0.9");
    let report = preflight(&cluster, &["--pod-network", "existing"], 3);
    let message = report["findings"][0]["message"]
        .as_str()
        .expect("a sentence");
    assert!(message.contains("pod web has 172.31.0.9"), "{message}");
    cluster
        .admin
        .delete("/api/v1/namespaces/farspan/pods/web")
        .expect("deleted");
    let report = preflight(&cluster, &["--pod-network", "existing"], 0);
    assert_eq!(codes(&report), Vec::<&str>::new());
}

#[test]
fn uninstall_leaves_nothing_in_the_cluster_and_says_so_the_second_time() {
    let cluster = Cluster::with_nodes(&["n1", "n2"]);
    let crds = std::process::Command::new(env!("CARGO_BIN_EXE_farspan"))
        .arg("crds")
        .output()
        .expect("farspan starts");
    let crds = String::from_utf8_lossy(&crds.stdout).into_owned();
    cluster.server.kubectl_ok(&["apply", "-f", "-"], &crds);
    let policy = json!({
        "apiVersion": "farspan.io/v1alpha1", "kind": "MeshPolicy", "metadata": {"name": "default"}, "spec": {}
    });
    let policies = "/apis/farspan.io/v1alpha1/meshpolicies";
    crate::lab::wait::wait_until(
        "the kind is served",
        std::time::Duration::from_secs(30),
        || {
            let created = cluster.admin.create(policies, &policy);
            created.map(drop).map_err(|refusal| refusal.to_string())
        },
    );
    let annotations = json!({
        "farspan.io/seq": "7", "farspan.io/identity": "x", "config.farspan.io/region": "eu", "example.org/rack": "7"
    });
    let node = format!("{NODES}/n1");
    let patch = json!({"metadata": {"annotations": annotations}});
    cluster.admin.merge(&node, &patch).expect("patched");

    let dry = farspan(&cluster, &["uninstall", "--dry-run"]);
    assert!(
        said(&dry).contains("Would remove annotations of 1 Nodes"),
        "{}",
        said(&dry)
    );
    assert_eq!(
        cluster.object(&node)["metadata"]["annotations"],
        annotations
    );

    let first = farspan(&cluster, &["uninstall"]);
    assert!(first.status.success(), "{}", said(&first));
    for line in [
        "There is no DaemonSet of agents",
        "Removed annotations of 1 Nodes",
        "1 annotations config.farspan.io/* that people set stay",
        "Removed ValidatingAdmissionPolicy farspan-own-node",
        "Removed CustomResourceDefinition meshpolicies.farspan.io",
        "Removed ClusterRole farspan",
        "Removed Role kube-system/farspan",
        "Removed Namespace farspan",
    ] {
        assert!(said(&first).contains(line), "{line}: {}", said(&first));
    }
    let left = json!({"config.farspan.io/region": "eu", "example.org/rack": "7"});
    assert_eq!(cluster.object(&node)["metadata"]["annotations"], left);

    let purge = farspan(&cluster, &["uninstall", "--purge"]);
    assert!(
        said(&purge).contains("Removed annotations of 1 Nodes"),
        "{}",
        said(&purge)
    );
    assert_eq!(
        cluster.object(&node)["metadata"]["annotations"],
        json!({"example.org/rack": "7"})
    );
    let last = farspan(&cluster, &["uninstall", "--purge"]);
    assert!(
        last.status.success()
            && said(&last).contains("Nothing of farspan was left in this cluster."),
        "{}",
        said(&last)
    );
    let kinds = "crd,validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings,roles,rolebindings";
    let objects = cluster
        .server
        .kubectl_ok(&["get", kinds, "--all-namespaces", "-o", "name"], "");
    let left: Vec<&str> = objects
        .lines()
        .filter(|name| name.contains("farspan"))
        .collect();
    assert_eq!(left, Vec::<&str>::new());
}

#[test]
fn nobody_is_told_more_than_one_sentence_when_the_cluster_cannot_be_asked() {
    let cluster = Cluster::start(&[]);
    let stranger = cluster.server.kubeconfig("token: nobody");
    let file = cluster.server.file("stranger.kubeconfig");
    std::fs::write(&file, stranger).expect("written");
    let name = file.display().to_string();
    for verb in ["preflight", "uninstall"] {
        let output = farspan(&cluster, &[verb, "--kubeconfig", &name]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(
            said(&output).contains("does not accept these credentials (401)"),
            "{}",
            said(&output)
        );
        assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
    }
}
