//! `farspan preflight` and `farspan uninstall` against a real API server.

use std::process::{Child, Output, Stdio};

use serde_json::{Value, json};

use crate::cluster::{Cluster, NODES, PODS};
use crate::lab::agent::PATIENCE;
use crate::lab::wait::wait_until;

/// DaemonSets in the agents' namespace, and the one that cleans up.
const SETS: &str = "/apis/apps/v1/namespaces/farspan/daemonsets";
const CLEANUP: &str = "/apis/apps/v1/namespaces/farspan/daemonsets/farspan-cleanup";

pub fn farspan(cluster: &Cluster, arguments: &[&str]) -> Output {
    let started = begin(cluster, arguments);
    started.wait_with_output().expect("farspan ends")
}

fn begin(cluster: &Cluster, arguments: &[&str]) -> Child {
    let host = &cluster.server.host;
    let mut command = host.namespace.command(env!("CARGO_BIN_EXE_farspan"));
    let kubeconfig = cluster.server.file("admin.kubeconfig");
    command.env("FARSPAN_KUBECONFIG", kubeconfig);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.args(arguments).spawn().expect("farspan starts")
}

pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[track_caller]
pub fn preflight(cluster: &Cluster, flags: &[&str], code: i32) -> Value {
    let arguments = [&["preflight", "-o", "json"], flags].concat();
    let output = farspan(cluster, &arguments);
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub fn codes(report: &Value) -> Vec<&str> {
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
    wait_until("the kind is served", PATIENCE, || {
        let created = cluster.admin.create(policies, &policy);
        created.map(drop).map_err(|refusal| refusal.to_string())
    });
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
fn uninstall_ends_when_kubernetes_has_deleted_the_kinds_and_not_before() {
    let cluster = Cluster::with_nodes(&["n1"]);
    let manifests = farspan(&cluster, &["crds"]);
    let text = String::from_utf8_lossy(&manifests.stdout).into_owned();
    cluster.server.kubectl_ok(&["apply", "-f", "-"], &text);
    let kind = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/externalpeers.farspan.io";
    let admin = &cluster.admin;
    let hold = |by: Value| {
        let held = admin.merge(kind, &json!({"metadata": {"finalizers": by}}));
        held.unwrap_or_else(|refusal| panic!("finalizers: {refusal}"));
    };
    hold(json!(["example.org/held"]));

    let first = farspan(&cluster, &["uninstall", "--timeout", "1s"]);
    assert_eq!(first.status.code(), Some(1), "{}", said(&first));
    let sentence =
        "CustomResourceDefinition externalpeers.farspan.io is still being deleted after 1 s";
    assert!(said(&first).contains(sentence), "{}", said(&first));

    hold(Value::Null);
    let second = farspan(&cluster, &["uninstall"]);
    assert!(second.status.success(), "{}", said(&second));
    let gone = admin
        .get(kind)
        .map(drop)
        .map_err(|refusal| refusal.to_string());
    assert!(gone.is_err_and(|refusal| refusal.contains("404")));
}

#[test]
fn a_node_that_is_down_holds_up_its_own_cleanup_and_no_others() {
    let cluster = Cluster::with_nodes(&["n1", "n2"]);
    let admin = &cluster.admin;
    for (node, status) in [("n1", "True"), ("n2", "Unknown")] {
        let condition = json!({"type": "Ready", "status": status});
        let ready = json!({"status": {"conditions": [condition]}});
        let told = admin.merge(&format!("{NODES}/{node}/status"), &ready);
        told.unwrap_or_else(|refusal| panic!("{node}: {refusal}"));
    }
    let annotation = json!({"metadata": {"annotations": {"farspan.io/seq": "7"}}});
    let noted = admin.merge(&format!("{NODES}/n1"), &annotation);
    noted.expect("an annotation");
    let manifests = farspan(&cluster, &["manifests"]);
    let text = String::from_utf8_lossy(&manifests.stdout).into_owned();
    cluster.server.kubectl_ok(&["apply", "-f", "-"], &text);
    // Its kubelet is silent: nobody ends the agent's pod there.
    daemon_pod(&cluster, "farspan", "n2", false);

    let verb = begin(&cluster, &["uninstall", "--timeout", "15s"]);
    wait_until("the cleanup begins", PATIENCE, || {
        let set = admin.get(CLEANUP);
        set.map(drop).map_err(|refusal| refusal.to_string())
    });
    daemon_pod(&cluster, "farspan-cleanup", "n1", true);
    daemon_pod(&cluster, "farspan-cleanup", "n2", false);
    progress(&cluster, 2, 1);
    let first = verb.wait_with_output().expect("it ends");
    assert_eq!(first.status.code(), Some(1), "{}", said(&first));
    for part in [
        "Nodes that are down keep their pods of DaemonSet farspan: n2",
        "done on 1 of 2 nodes (missing: n2); it goes on there when they come back",
    ] {
        assert!(said(&first).contains(part), "{part}: {}", said(&first));
    }
    let kept = cluster.object(&format!("{NODES}/n1"))["metadata"]["annotations"].clone();
    assert_eq!(kept["farspan.io/seq"], "7", "the rest waits, too");

    // It comes back; controllers do what they do.
    progress(&cluster, 2, 2);
    let mut verb = begin(&cluster, &["uninstall", "--timeout", "30s"]);
    wait_until("the second run ends", PATIENCE * 2, || {
        collect(&cluster);
        let ended = verb.try_wait().map_err(|error| error.to_string())?;
        ended.map(drop).ok_or_else(|| "it runs".to_owned())
    });
    let second = verb.wait_with_output().expect("it ends");
    assert!(second.status.success(), "{}", said(&second));
    assert!(
        said(&second).contains("Cleaned up on 2 nodes"),
        "{}",
        said(&second)
    );
    let left = cluster.object(&format!("{NODES}/n1"))["metadata"]["annotations"].clone();
    assert!(left.is_null(), "{left}");
}

/// As the controller of DaemonSets makes it, and the kubelet tells of it.
fn daemon_pod(cluster: &Cluster, set: &str, node: &str, ready: bool) {
    let name = format!("{set}-{node}");
    let labels = json!({"app.kubernetes.io/name": set});
    let spec = json!({"nodeName": node, "serviceAccountName": "farspan", "containers": [{"name": "c", "image": "i"}]});
    let pod = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
    let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }});
    let status = json!({"status": {"conditions": [condition]}});
    let admin = &cluster.admin;
    let made = admin.create(PODS, &pod);
    let made = made.and_then(|_| admin.merge(&format!("{PODS}/{name}/status"), &status));
    made.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
}

/// What the controller tells of the cleanup.
fn progress(cluster: &Cluster, wanted: u32, ready: u32) {
    let generation = cluster.object(CLEANUP)["metadata"]["generation"].clone();
    let status = json!({"observedGeneration": generation, "desiredNumberScheduled": wanted, "numberReady": ready,
        "currentNumberScheduled": wanted, "numberMisscheduled": 0});
    let told = cluster
        .admin
        .merge(&format!("{CLEANUP}/status"), &json!({"status": status}));
    told.unwrap_or_else(|refusal| panic!("status of the cleanup: {refusal}"));
}

/// The garbage collector: pods of DaemonSets that are to go, then those.
fn collect(cluster: &Cluster) {
    let admin = &cluster.admin;
    for set in ["farspan", "farspan-cleanup"] {
        let path = format!("{SETS}/{set}");
        let ends = admin
            .get(&path)
            .map(|set| set["metadata"]["deletionTimestamp"].is_string());
        if matches!(ends, Ok(true)) {
            for node in ["n1", "n2"] {
                // Some never were.
                let _ = admin.delete(&format!("{PODS}/{set}-{node}"));
            }
            // Gone at once where nothing holds it.
            let _ = admin.merge(&path, &json!({"metadata": {"finalizers": null}}));
        }
    }
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
