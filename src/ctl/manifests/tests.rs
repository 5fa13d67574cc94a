use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Verb};

fn of(flags: &[&str]) -> Vec<Value> {
    let (global, args) = parsed(flags);
    objects(
        &args,
        global.interface.as_deref(),
        &agent_config(&args).unwrap(),
    )
    .unwrap()
}

fn parsed(flags: &[&str]) -> (Global, ManifestsArgs) {
    let cli = Cli::try_parse_from(["farspan", "manifests"].iter().chain(flags)).unwrap();
    let Verb::Manifests(args) = cli.verb else {
        panic!("the verb is `manifests`");
    };
    (cli.global, args)
}

fn kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind)
        .unwrap()
}

fn container(objects: &[Value]) -> &Value {
    &kind(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
}

fn arguments(objects: &[Value]) -> Vec<&str> {
    let listed = container(objects)["args"].as_array().unwrap();
    listed.iter().map(|arg| arg.as_str().unwrap()).collect()
}

#[test]
fn without_flags_it_is_the_base() {
    let mut base = read(BEFORE_CRDS).unwrap();
    base.extend(read(include_str!("../../../manifests/base/crds.yaml")).unwrap());
    for file in AFTER_CRDS {
        base.extend(read(file).unwrap());
    }
    assert_eq!(of(&[]), base);
}

#[test]
fn the_image_of_the_base_is_this_version() {
    let image = concat!("farspan.io/farspan:", env!("CARGO_PKG_VERSION"));
    assert_eq!(container(&of(&[]))["image"], image);
    let overlay = include_str!("../../../manifests/overlays/sysctls/kustomization.yaml");
    assert!(overlay.contains(image));
    let chart = include_str!("../../../manifests/helm/farspan/Chart.yaml");
    assert!(chart.contains(concat!("appVersion: \"", env!("CARGO_PKG_VERSION"), "\"")));
}

#[test]
fn the_agents_pod_has_net_admin_and_nothing_else() {
    let objects = of(&[]);
    assert_eq!(
        container(&objects)["securityContext"],
        json!({
            "runAsUser": 0, "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] }
        })
    );
    let pod = &kind(&objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
}

#[test]
fn flags_become_arguments_of_the_agent() {
    let objects = of(&[
        "--image",
        "r.example.org/f:1",
        "--api-server",
        "https://203.0.113.1:6443",
        "--pod-network",
        "own",
        "--backend",
        "userspace",
        "--cluster-cidr",
        "10.244.0.0/16,fd10:244::/48",
        "--service-cidr",
        "10.96.0.0/16",
        "--metrics-listen",
        "127.0.0.1:9000",
        "--metrics-per-peer",
        "--interface",
        "mesh0",
        "--cni-conf-dir",
        "/var/lib/rancher/k3s/agent/etc/cni/net.d",
        "--sysctls",
        "--forward-accept",
    ]);
    assert_eq!(
        arguments(&objects),
        [
            "agent",
            "--kubernetes",
            "--config=/etc/farspan/farspan.toml",
            "--pod-network=own",
            "--backend=userspace",
            "--metrics-listen=127.0.0.1:9000",
            "--api-server=https://203.0.113.1:6443",
            "--interface=mesh0",
            "--cluster-cidr=10.244.0.0/16,fd10:244::/48",
            "--service-cidr=10.96.0.0/16",
            "--cni-conf-dir=/var/lib/rancher/k3s/agent/etc/cni/net.d",
            "--metrics-per-peer",
        ]
    );
    let container = container(&objects);
    assert_eq!(container["image"], "r.example.org/f:1");
    assert_eq!(container["ports"][0]["containerPort"], 9000);
    assert_eq!(container["livenessProbe"]["httpGet"]["host"], "127.0.0.1");
    let pod = &kind(&objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["initContainers"][0]["image"], "r.example.org/f:1");
    let folder = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
    assert_eq!(pod["volumes"][4]["hostPath"]["path"], folder);
    assert_eq!(container["volumeMounts"][4]["mountPath"], folder);
    assert_eq!(
        kind(&objects, "ConfigMap")["data"]["farspan.toml"],
        "[host]\nforward-accept = true\n"
    );
}

#[test]
fn a_pod_that_writes_no_cni_file_sees_none() {
    for mode in ["existing", "nodes"] {
        let text = serde_json::to_string(&of(&["--pod-network", mode])).unwrap();
        assert!(!text.contains("cni-") && !text.contains("/cni"), "{mode}");
    }
}

#[test]
fn another_namespace_is_meant_everywhere() {
    let objects = of(&["--namespace", "net", "--monitoring"]);
    assert_eq!(kind(&objects, "Namespace")["metadata"]["name"], "net");
    for object in &objects {
        let text = object.to_string();
        for old in [
            "\"namespace\":\"farspan\"",
            "serviceaccount:farspan:",
            "\"farspan\"]}",
        ] {
            assert!(!text.contains(old), "{old}: {text}");
        }
    }
    let homes: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == "Role")
        .map(|role| role["metadata"]["namespace"].as_str().unwrap())
        .collect();
    assert_eq!(homes, ["default", "kube-system"]);
}

#[test]
fn a_file_for_the_agents_keeps_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farspan.toml");
    let name = file.display().to_string();
    std::fs::write(&file, "# ours\n[host]\nfwmark = \"0x10/0x10\"\n").unwrap();
    let objects = of(&["--agent-config", &name, "--forward-accept"]);
    assert_eq!(
        kind(&objects, "ConfigMap")["data"]["farspan.toml"],
        "# ours\n[host]\nfwmark = \"0x10/0x10\"\nforward-accept = true\n"
    );
    std::fs::write(&file, "[host]\nfwmrak = 1\n").unwrap();
    let (_, args) = parsed(&["--agent-config", &name]);
    let said = agent_config(&args).unwrap_err().to_string();
    assert!(said.contains("did you mean `fwmark`?"), "{said}");
}
