//! What people apply, by whichever way they get it: the API server takes it, a second time it changes nothing, and all
//! ways give the same objects.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use crate::cluster::{Cluster, manifest};
use crate::lab::netns::run;
use crate::server::tool;

/// Objects by kind, namespace and name.
type Objects = BTreeMap<String, Value>;

#[test]
fn rights_and_policies_applied_again_are_unchanged() {
    let cluster = Cluster::start(&[]);
    for file in ["namespace", "crds", "rbac", "admission"] {
        let path = manifest(&format!("base/{file}.yaml"));
        unchanged(&cluster.server.kubectl_ok(&["apply", "-f", &path], ""));
    }
}

#[test]
fn what_manifests_prints_applied_twice_is_unchanged() {
    let cluster = Cluster::start(&[]);
    for flags in [
        &[][..],
        &[
            "--pod-network",
            "own",
            "--sysctls",
            "--forward-accept",
            "--cluster-cidr",
            "10.244.0.0/16",
        ],
    ] {
        let text = manifests(flags);
        let verify = text.lines().last().expect("it has lines");
        assert!(
            verify.starts_with("# Verify: kubectl -n farspan "),
            "{verify}"
        );
        cluster.server.kubectl_ok(&["apply", "-f", "-"], &text);
        unchanged(&cluster.server.kubectl_ok(&["apply", "-f", "-"], &text));
    }
}

#[test]
fn the_pod_has_net_admin_only_as_the_server_sees_it() {
    let cluster = Cluster::start(&[]);
    cluster
        .server
        .kubectl_ok(&["apply", "-f", "-"], &manifests(&[]));
    let set = cluster.object("/apis/apps/v1/namespaces/farspan/daemonsets/farspan");
    let pod = &set["spec"]["template"]["spec"];
    let security = &pod["containers"][0]["securityContext"];
    assert_eq!(
        security["capabilities"],
        json!({"add": ["NET_ADMIN"], "drop": ["ALL"]})
    );
    assert_eq!(security["privileged"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
}

#[test]
fn every_overlay_is_taken_by_the_server() {
    let cluster = Cluster::start(&[]);
    for overlay in ["own", "existing", "nodes", "userspace", "sysctls"] {
        let text = kustomize(&format!("overlays/{overlay}"));
        let arguments = ["apply", "--dry-run=server", "-f", "-"];
        cluster.server.kubectl_ok(&arguments, &text);
    }
}

#[test]
fn the_chart_is_taken_by_the_server() {
    let cluster = Cluster::start(&[]);
    let text = helm(&[
        "createNamespace=true",
        "podNetwork=own",
        "sysctls=true",
        "monitoring.dashboard=true",
    ]);
    let arguments = ["apply", "--dry-run=server", "-f", "-"];
    cluster.server.kubectl_ok(&arguments, &text);
}

#[test]
fn kustomize_helm_and_farspan_make_the_same_objects() {
    let base = objects(&manifests(&[]));
    assert_eq!(objects(&kustomize("base")), base);
    for (flags, overlay, values) in [
        (&[][..], "", &[][..]),
        (&["--pod-network", "own"], "own", &["podNetwork=own"]),
        (
            &["--pod-network", "existing"],
            "existing",
            &["podNetwork=existing"],
        ),
        (&["--pod-network", "nodes"], "nodes", &["podNetwork=nodes"]),
        (
            &["--backend", "userspace"],
            "userspace",
            &["backend=userspace"],
        ),
        (&["--sysctls"], "sysctls", &["sysctls=true"]),
        (
            &[
                "--api-server",
                "https://203.0.113.1:6443",
                "--interface",
                "mesh0",
                "--metrics-per-peer",
                "--cluster-cidr",
                "10.244.0.0/16",
                "--service-cidr",
                "10.96.0.0/16",
                "--cni-conf-dir",
                "/k3s/net.d",
                "--cni-bin-dir",
                "/k3s/bin",
                "--image",
                "r.example.org/f:1.0",
                "--monitoring",
                "--forward-accept",
            ],
            "",
            &[
                "apiServer=https://203.0.113.1:6443",
                "interface=mesh0",
                "metrics.perPeer=true",
                "clusterCIDRs={10.244.0.0/16}",
                "serviceCIDRs={10.96.0.0/16}",
                "cni.confDir=/k3s/net.d",
                "cni.binDir=/k3s/bin",
                "image.repository=r.example.org/f",
                "image.tag=1.0",
                "monitoring.podMonitor=true",
                "monitoring.alerts=true",
                "config=[host]\nforward-accept = true\n",
            ],
        ),
    ] {
        let printed = objects(&manifests(flags));
        if !overlay.is_empty() {
            same(
                &objects(&kustomize(&format!("overlays/{overlay}"))),
                &printed,
                overlay,
            );
        }
        let values = [&["createNamespace=true"], values].concat();
        same(&objects(&helm(&values)), &printed, &values.join(" "));
    }
    assert_ne!(objects(&manifests(&["--namespace", "net"])), base);
}

#[test]
fn the_server_refuses_objects_that_say_nonsense_and_stores_the_others() {
    let cluster = Cluster::start(&[]);
    cluster
        .server
        .kubectl_ok(&["apply", "-f", "-"], &run_farspan(&["crds"]));
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let policy = |name: &str, spec: Value| object("MeshPolicy", name, spec);
    let peer = |spec: Value| object("ExternalPeer", "laptop", spec);
    for (wrong, sentence) in [
        (
            policy("other", json!({})),
            "the one MeshPolicy is named default",
        ),
        (
            policy("default", json!({"nodeCIDRs": ["192.168.0.0"]})),
            "spec.nodeCIDRs[0]",
        ),
        (
            policy("default", json!({"podCIDRs": ["10.0.0.0/33"]})),
            "spec.podCIDRs[0]",
        ),
        (
            policy("default", json!({"topology": "cross"})),
            "spec.topology",
        ),
        (
            policy(
                "default",
                json!({"extraCIDRs": [{"node": "", "cidrs": []}]}),
            ),
            "spec.extraCIDRs[0].node",
        ),
        (
            policy(
                "default",
                json!({"filters": [{"from": {"peers": ["a"]}, "to": [{"cidr": "10.0.0.0/8", "ports": {"from": 9, "to": 1}}]}]}),
            ),
            "from must not be above to",
        ),
        (
            peer(json!({"publicKey": "short", "addresses": ["10.77.0.9/32"]})),
            "spec.publicKey",
        ),
        (
            peer(json!({"publicKey": key, "addresses": []})),
            "spec.addresses",
        ),
        (
            peer(json!({"publicKey": key, "addresses": ["10.77.0.9/32"], "endpoints": ["host:1"]})),
            "spec.endpoints[0]",
        ),
        (
            peer(
                json!({"publicKey": key, "addresses": ["10.77.0.9/32"], "persistentKeepalive": 70000}),
            ),
            "spec.persistentKeepalive",
        ),
    ] {
        let output = cluster
            .server
            .kubectl(&["create", "-f", "-"], &wrong.to_string());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(sentence),
            "{wrong}: {said}"
        );
    }
    for right in [
        policy(
            "default",
            json!({
                "nodeCIDRs": ["192.168.0.0/16", "2001:db8::/32"], "podCIDRs": ["10.244.0.0/16"], "relays": ["hub"],
                "extraCIDRs": [{"node": "a", "cidrs": ["172.20.0.0/24"]}],
                "filters": [{"from": {"regions": ["eu"]}, "to": [{"cidr": "10.244.0.0/16", "ports": {"from": 80, "to": 443}}]}]
            }),
        ),
        peer(
            json!({"publicKey": key, "addresses": ["10.77.0.9/32"], "routes": ["172.21.0.0/24"],
                    "endpoints": ["203.0.113.9:51820", "[2001:db8::9]:51820"], "plain": true, "persistentKeepalive": 25}),
        ),
    ] {
        cluster
            .server
            .kubectl_ok(&["create", "-f", "-"], &right.to_string());
    }
    let stored = cluster.object("/apis/farspan.io/v1alpha1/meshpolicies/default");
    assert_eq!(stored["spec"]["topology"], "mesh");
    let table = cluster.server.kubectl_ok(&["get", "farspan"], "");
    assert!(
        table.contains("10.77.0.9/32") && table.contains("192.168.0.0/16"),
        "{table}"
    );
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let mut object =
        json!({"apiVersion": "farspan.io/v1alpha1", "kind": kind, "metadata": {"name": name}});
    object["spec"] = spec;
    object
}

#[track_caller]
fn unchanged(said: &str) {
    assert!(!said.is_empty(), "nothing was applied");
    for line in said.lines() {
        assert!(line.ends_with(" unchanged"), "applied twice: {line}");
    }
}

#[track_caller]
fn same(made: &Objects, printed: &Objects, by: &str) {
    let keys = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(made), keys(printed), "{by}");
    for (key, object) in made {
        assert_eq!(object, &printed[key], "{by}: {key}");
    }
}

fn objects(text: &str) -> Objects {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML documents");
    all.into_iter()
        .filter(|object| !object.is_null())
        .map(|object| {
            let metadata = &object["metadata"];
            let key = format!(
                "{} {}/{}",
                object["kind"], metadata["namespace"], metadata["name"]
            );
            (key, object)
        })
        .collect()
}

fn manifests(flags: &[&str]) -> String {
    run_farspan(&[&["manifests"], flags].concat())
}

fn run_farspan(arguments: &[&str]) -> String {
    text(Command::new(env!("CARGO_BIN_EXE_farspan")).args(arguments))
}

fn kustomize(folder: &str) -> String {
    text(Command::new(tool("kubectl")).args(["kustomize", &manifest(folder)]))
}

fn helm(values: &[&str]) -> String {
    let mut command = Command::new(tool("helm"));
    command.args([
        "template",
        "farspan",
        &manifest("helm/farspan"),
        "--namespace",
        "farspan",
    ]);
    for value in values {
        command.args(["--set", value]);
    }
    text(&mut command)
}

fn text(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).expect("text")
}
