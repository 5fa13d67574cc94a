//! `farspan manifests`: the files of `manifests/`, with what the flags say.

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use serde_json::{Value, json};
use toml_edit::DocumentMut;

use super::{crds, print};
use crate::cli::{Global, ManifestsArgs, PodNetworkChoice};
use crate::config::{self, ConfigError};

/// The base, in the order in which it is applied; the definitions are made by [`crds::objects`].
const BEFORE_CRDS: &str = include_str!("../../manifests/base/namespace.yaml");
const AFTER_CRDS: [&str; 4] = [
    include_str!("../../manifests/base/rbac.yaml"),
    include_str!("../../manifests/base/admission.yaml"),
    include_str!("../../manifests/base/configmap.yaml"),
    include_str!("../../manifests/base/daemonset.yaml"),
];
const POD_MONITOR: &str = include_str!("../../manifests/prometheus/podmonitor.yaml");
const ALERTS: &str = include_str!("../../manifests/prometheus/alerts.yaml");

/// The namespace in the files.
pub const NAMESPACE: &str = "farspan";
const MONITORING: &str = "monitoring.coreos.com/v1";
const CNI_CONF_DIR: &str = "/etc/cni/net.d";
const CNI_BIN_DIR: &str = "/opt/cni/bin";

pub fn run(global: &Global, args: &ManifestsArgs) -> Result<()> {
    let agent_config = agent_config(args)?;
    let objects = objects(args, global.interface.as_deref(), &agent_config)?;
    print(&crds::documents(&objects)?)?;
    let namespace = &args.namespace;
    print(&format!(
        "# Verify: kubectl -n {namespace} rollout status ds/farspan && kubectl -n {namespace} exec ds/farspan -- farspan status\n"
    ))
}

/// All objects, with these settings.
pub fn objects(
    args: &ManifestsArgs,
    interface: Option<&str>,
    agent_config: &str,
) -> Result<Vec<Value>> {
    let mut objects = every_object(&args.namespace)?;
    if !args.monitoring {
        let extra = |object: &Value| object["apiVersion"] == MONITORING;
        objects.retain(|object| !extra(object));
    }
    for object in &mut objects {
        match object["kind"].as_str() {
            Some("ConfigMap") => object["data"]["farspan.toml"] = agent_config.into(),
            Some("DaemonSet") => daemon_set(object, args, interface)?,
            Some(_) | None => {}
        }
    }
    Ok(objects)
}

/// All that may have been applied to a namespace, whatever the flags were.
pub fn every_object(namespace: &str) -> Result<Vec<Value>> {
    let mut objects = read(BEFORE_CRDS)?;
    objects.extend(crds::objects()?);
    for file in AFTER_CRDS {
        objects.extend(read(file)?);
    }
    objects.extend(read(POD_MONITOR)?);
    objects.push(rules()?);
    for object in &mut objects {
        move_to(object, namespace);
    }
    Ok(objects)
}

/// The YAML documents of a file.
fn read(file: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(file).context("Failed to read a manifest")
}

/// The alert rules as the Prometheus Operator takes them.
fn rules() -> Result<Value> {
    let spec: Value = serde_saphyr::from_str(ALERTS).context("Failed to read the alert rules")?;
    Ok(json!({
        "apiVersion": MONITORING,
        "kind": "PrometheusRule",
        "metadata": {
            "name": NAMESPACE, "namespace": NAMESPACE, "labels": { "app.kubernetes.io/name": "farspan" }
        },
        "spec": spec
    }))
}

/// The file for the agents, and what flags add to it.
fn agent_config(args: &ManifestsArgs) -> Result<String> {
    let text = match &args.agent_config {
        Some(path) => {
            let text = config::read(path)?;
            config::shape(&text, path)?;
            text
        }
        None => String::new(),
    };
    if !args.forward_accept {
        return Ok(text);
    }
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| ConfigError(error.message().to_owned()))?;
    document["host"]["forward-accept"] = toml_edit::value(true);
    if let Some(host) = document["host"].as_inline_table().cloned() {
        document["host"] = toml_edit::Item::Table(host.into_table());
    }
    Ok(document.to_string())
}

fn daemon_set(object: &mut Value, args: &ManifestsArgs, interface: Option<&str>) -> Result<()> {
    let pod = &mut object["spec"]["template"]["spec"];
    let container = &mut pod["containers"][0];
    container["image"] = args.image.as_str().into();
    let listed = container["args"]
        .as_array_mut()
        .ok_or_else(|| anyhow!("the DaemonSet's container has no arguments"))?;
    let mut set = |flag: &str, value: &str| {
        let text = format!("{flag}={value}");
        let same = |known: &&mut Value| {
            known
                .as_str()
                .and_then(|known| known.strip_prefix(flag))
                .is_some_and(|rest| rest.starts_with('='))
        };
        match listed.iter_mut().find(same) {
            Some(known) => *known = text.into(),
            None => listed.push(text.into()),
        }
    };
    set("--pod-network", &word(&args.pod_network));
    set("--backend", &word(&args.backend));
    if let Some(url) = &args.api_server {
        set("--api-server", url);
    }
    if let Some(interface) = interface {
        set("--interface", interface);
    }
    for (flag, ranges) in [
        ("--cluster-cidr", &args.cluster_cidrs),
        ("--service-cidr", &args.service_cidrs),
    ] {
        if !ranges.is_empty() {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            set(flag, &ranges.join(","));
        }
    }
    for (flag, folder, usual) in [
        ("--cni-conf-dir", &args.cni_conf_dir, CNI_CONF_DIR),
        ("--cni-bin-dir", &args.cni_bin_dir, CNI_BIN_DIR),
    ] {
        if folder != usual {
            set(flag, folder);
        }
    }
    if let Some(address) = args.metrics_listen {
        set("--metrics-listen", &address.to_string());
    }
    if args.metrics_per_peer {
        listed.push("--metrics-per-peer".into());
    }
    if let Some(address) = args.metrics_listen {
        let ip = address.ip();
        container["ports"][0]["containerPort"] = address.port().into();
        if !ip.is_unspecified() {
            for probe in ["livenessProbe", "readinessProbe"] {
                container[probe]["httpGet"]["host"] = ip.to_string().into();
            }
        }
    }
    cni_folders(pod, args);
    if args.sysctls {
        pod["initContainers"] = json!([{
            "name": "sysctls",
            "image": args.image,
            "imagePullPolicy": "IfNotPresent",
            "args": ["sysctls"],
            "securityContext": { "privileged": true, "runAsUser": 0, "readOnlyRootFilesystem": true },
            "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } }
        }]);
    }
    Ok(())
}

/// A pod that never writes a CNI file sees none; another one sees them under their paths on the host.
fn cni_folders(pod: &mut Value, args: &ManifestsArgs) {
    let folders = match args.pod_network {
        PodNetworkChoice::Auto | PodNetworkChoice::Own => [
            ("cni-conf", Some(args.cni_conf_dir.as_str())),
            ("cni-bin", Some(args.cni_bin_dir.as_str())),
        ],
        PodNetworkChoice::Existing | PodNetworkChoice::Nodes => {
            [("cni-conf", None), ("cni-bin", None)]
        }
    };
    for (name, folder) in folders {
        for (list, field) in [
            ("/volumes", "/hostPath/path"),
            ("/containers/0/volumeMounts", "/mountPath"),
        ] {
            let Some(list) = pod.pointer_mut(list).and_then(Value::as_array_mut) else {
                continue;
            };
            match folder {
                Some(folder) => list
                    .iter_mut()
                    .filter(|entry| entry["name"] == name)
                    .filter_map(|entry| entry.pointer_mut(field))
                    .for_each(|path| *path = folder.into()),
                None => list.retain(|entry| entry["name"] != name),
            }
        }
    }
}

/// Every place that names the namespace: metadata, the subjects of bindings, the account in the admission policy.
fn move_to(object: &mut Value, namespace: &str) {
    if object["kind"] == "Namespace" {
        object["metadata"]["name"] = namespace.into();
    }
    let metadata = object.pointer_mut("/metadata/namespace");
    if let Some(named) = metadata.filter(|named| *named == NAMESPACE) {
        *named = namespace.into();
    }
    if let Some(subjects) = object
        .pointer_mut("/subjects")
        .and_then(Value::as_array_mut)
    {
        for subject in subjects
            .iter_mut()
            .filter(|one| one["namespace"] == NAMESPACE)
        {
            subject["namespace"] = namespace.into();
        }
    }
    let conditions = object.pointer_mut("/spec/matchConditions");
    for condition in conditions
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(expression) = condition["expression"].as_str() {
            let account = |namespace: &str| format!("'system:serviceaccount:{namespace}:farspan'");
            condition["expression"] = expression
                .replace(&account(NAMESPACE), &account(namespace))
                .into();
        }
    }
}

/// A choice as its flag writes it.
pub fn word(choice: &impl ValueEnum) -> String {
    choice
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests;
