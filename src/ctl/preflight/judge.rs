//! What follows from a cluster's facts: the mode, what is in the way, what would be done.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_types::IpNet;

use super::Report;
use super::facts::{Facts, Ipam};
use super::local::Local;
use crate::api::Finding;
use crate::cli::PodNetworkChoice;
use crate::ctl::manifests::word;

/// The mark of farspan's outer packets, unless told.
const MARK: u32 = 0x2000;
/// The first version with ValidatingAdmissionPolicy v1.
const POLICIES_SINCE: (u32, u32) = (1, 30);
/// The first kernel with WireGuard.
const WIREGUARD_SINCE: (u32, u32) = (5, 6);

/// Judges; `auto` is decided as the agents do it.
pub fn judge(facts: Facts, this_node: Option<Local>, asked: PodNetworkChoice) -> Report {
    let mode = match asked {
        PodNetworkChoice::Auto if facts.cni == "none" => PodNetworkChoice::Own,
        PodNetworkChoice::Auto if facts.ipam.verdict() == Some(true) => PodNetworkChoice::Existing,
        PodNetworkChoice::Auto | PodNetworkChoice::Nodes => PodNetworkChoice::Nodes,
        PodNetworkChoice::Own => PodNetworkChoice::Own,
        PodNetworkChoice::Existing => PodNetworkChoice::Existing,
    };
    let mut findings = Vec::new();
    findings.extend(version(&facts));
    findings.extend(nodes(&facts, mode));
    findings.extend(network(&facts, mode));
    findings.extend(marks(&facts));
    findings.extend(masquerade(&facts));
    if let Some(local) = &this_node {
        findings.extend(here(local));
    }
    if let Some(image) = &facts.installed {
        findings.push(finding(
            "installed",
            "info",
            format!("the cluster runs {image} already"),
            "The same command upgrades it, node by node.",
        ));
    }
    Report {
        pod_network: word(&mode),
        plan: plan(&facts, mode),
        command: command(&facts, mode),
        cluster: facts,
        this_node,
        findings,
    }
}

fn finding(code: &str, severity: &str, message: String, remedy: &str) -> Finding {
    Finding {
        code: code.to_owned(),
        severity: severity.to_owned(),
        message,
        remedy: remedy.to_owned(),
    }
}

/// `v1.34.4+k3s1` or `6.1.0-13-amd64`: the first two numbers.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn version(facts: &Facts) -> Option<Finding> {
    let known = numbers(&facts.version).filter(|version| *version < POLICIES_SINCE)?;
    Some(finding(
        "kubernetes-version",
        "warning",
        format!(
            "Kubernetes {}.{} has no ValidatingAdmissionPolicy v1: a stolen token of one node's agent could change other Nodes",
            known.0, known.1
        ),
        "Upgrade to Kubernetes 1.30 or newer, or leave admission.yaml out and accept it.",
    ))
}

fn nodes(facts: &Facts, mode: PodNetworkChoice) -> Vec<Finding> {
    let mut findings = Vec::new();
    let linux = || facts.nodes.iter().filter(|node| node.os != "windows");
    if linux().next().is_none() {
        findings.push(finding(
            "no-nodes",
            "warning",
            "the cluster has no Linux node yet".to_owned(),
            "",
        ));
    }
    let names = |names: Vec<&str>| match names.as_slice() {
        [one] => format!("node {one}"),
        [first, second, third, _, ..] => {
            format!("{} nodes ({first}, {second}, {third}, ...)", names.len())
        }
        few => format!("nodes {}", few.join(", ")),
    };
    if matches!(mode, PodNetworkChoice::Own | PodNetworkChoice::Existing) {
        let without: Vec<&str> = linux()
            .filter(|node| node.pod_cidrs.is_empty())
            .map(|node| node.name.as_str())
            .collect();
        if !without.is_empty() {
            findings.push(finding(
                "no-pod-cidrs",
                "error",
                format!(
                    "pod network mode {} needs spec.podCIDRs, and {} has none",
                    word(&mode),
                    names(without)
                ),
                "Start kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or use --pod-network nodes.",
            ));
        }
    }
    let mut by_ip: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in &facts.nodes {
        for ip in &node.internal_ips {
            by_ip.entry(ip).or_default().push(&node.name);
        }
    }
    for (ip, owners) in by_ip.into_iter().filter(|(_, owners)| owners.len() > 1) {
        findings.push(finding(
            "shared-node-address",
            "error",
            format!(
                "{} have one InternalIP, {ip}: the younger Node's claim would be refused",
                names(owners)
            ),
            "Give each kubelet its overlay address by --node-ip, with --pod-network nodes.",
        ));
    }
    let old: Vec<&str> = linux()
        .filter(|node| numbers(&node.kernel).is_some_and(|kernel| kernel < WIREGUARD_SINCE))
        .map(|node| node.name.as_str())
        .collect();
    if !old.is_empty() {
        findings.push(finding(
            "old-kernel",
            "info",
            format!("the kernel of {} has no WireGuard of its own; the in-process engine carries their tunnels", names(old)),
            "",
        ));
    }
    if facts.nodes.len() > 1 && facts.nodes.iter().all(|node| node.region.is_none()) {
        findings.push(finding(
            "no-regions",
            "info",
            "no node has a region".to_owned(),
            "Label nodes topology.kubernetes.io/region so that status, metrics and Services know near from far.",
        ));
    }
    findings
}

fn network(facts: &Facts, mode: PodNetworkChoice) -> Vec<Finding> {
    let mut findings = Vec::new();
    let foreign = facts.cni != "none" && facts.cni != "Kilo";
    match mode {
        PodNetworkChoice::Existing if facts.cni == "none" => findings.push(finding(
            "no-cni",
            "warning",
            "pod network mode existing needs another CNI, and none was recognised".to_owned(),
            "Use --pod-network own if farspan is to be the CNI.",
        )),
        PodNetworkChoice::Existing => findings.extend(ipam(facts)),
        PodNetworkChoice::Own if foreign => findings.push(finding(
            "second-cni",
            "error",
            format!("{} is the CNI of this cluster; farspan in mode own would be a second one, and the runtime takes the file that sorts first", facts.cni),
            "Use --pod-network existing or nodes, or remove the other CNI first.",
        )),
        PodNetworkChoice::Own | PodNetworkChoice::Nodes | PodNetworkChoice::Auto => {}
    }
    let ranges = |texts: &[String]| -> Vec<IpNet> {
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    };
    let (pods, services) = (ranges(&facts.pod_cidrs), ranges(&facts.service_cidrs));
    let overlap = |a: &IpNet, b: &IpNet| a.contains(&b.network()) || b.contains(&a.network());
    for pod in &pods {
        if let Some(service) = services.iter().find(|service| overlap(pod, service)) {
            findings.push(finding(
                "ranges-overlap",
                "error",
                format!("pod range {pod} and Service range {service} overlap; farspan routes neither twice"),
                "Give the cluster ranges that do not overlap.",
            ));
        }
        let inside = facts.nodes.iter().find_map(|node| {
            let mut ips = node
                .internal_ips
                .iter()
                .filter_map(|ip| ip.parse::<IpAddr>().ok());
            ips.find(|ip| pod.contains(ip)).map(|ip| (ip, &node.name))
        });
        if let Some((ip, name)) = inside {
            findings.push(finding(
                "node-in-pod-range",
                "error",
                format!("{ip} of node {name} lies in the pod range {pod}"),
                "Give pods a range that no node's network uses.",
            ));
        }
    }
    findings
}

/// The sentence that keeps people out of a mode that cannot work.
fn ipam(facts: &Facts) -> Option<Finding> {
    let Ipam { by, example, .. } = &facts.ipam;
    match facts.ipam.verdict() {
        Some(true) => None,
        Some(false) => {
            let proof = example
                .as_ref()
                .map_or_else(String::new, |example| format!(" ({example})"));
            Some(finding(
                "ipam-ignores-pod-cidrs",
                "error",
                format!(
                    "pod network mode existing needs addresses out of each Node's podCIDRs, and {by} ignores those{proof}"
                ),
                "Use --pod-network nodes: the CNI's own encapsulation then runs on top of the mesh.",
            ))
        }
        None => Some(finding(
            "ipam-unknown",
            "warning",
            format!("no running pod shows whether {by} hands out addresses of the Nodes' podCIDRs"),
            "Start a pod and ask again, or use --pod-network nodes.",
        )),
    }
}

fn marks(facts: &Facts) -> Vec<Finding> {
    let clashes = facts.marks.iter().filter(|mark| mark.mask & MARK != 0);
    clashes
        .map(|mark| {
            finding(
                "mark-in-use",
                "error",
                format!(
                    "{} uses the mark {:#x}/{:#x}, in which farspan's {MARK:#x} lies",
                    mark.owner, mark.mark, mark.mask
                ),
                "Give the agents another one: `fwmark` under [host] in the file of --agent-config.",
            )
        })
        .collect()
}

fn masquerade(facts: &Facts) -> Option<Finding> {
    let native = facts.cilium_native.as_ref()?;
    let native: Option<IpNet> = native.parse().ok();
    let missing: Vec<&String> = facts
        .pod_cidrs
        .iter()
        .filter(|range| {
            let range: Option<IpNet> = range.parse().ok();
            let v4 = range.is_some_and(|range| range.addr().is_ipv4());
            v4 && !native
                .zip(range)
                .is_some_and(|(native, range)| native.contains(&range))
        })
        .collect();
    let first = missing.first()?;
    Some(finding(
        "cilium-masquerade",
        "warning",
        format!(
            "Cilium masquerades by eBPF, which no packet filter can undo, and its ipv4-native-routing-cidr does not cover {first}"
        ),
        "Set ipv4NativeRoutingCIDR to a range that covers all pods of the mesh.",
    ))
}

fn here(local: &Local) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !local.ip_forward {
        findings.push(finding(
            "forwarding-off",
            "warning",
            "this node does not forward IPv4: its pods are reached by nobody".to_owned(),
            "sysctl -w net.ipv4.ip_forward=1, or `farspan manifests --sysctls` for all nodes.",
        ));
    }
    if local.rp_filter == Some(1) && !local.src_valid_mark {
        findings.push(finding(
            "rp-filter",
            "warning",
            "reverse-path filtering is strict here and does not know marks: addresses of nodes will not be routed into the tunnel".to_owned(),
            "sysctl -w net.ipv4.conf.all.src_valid_mark=1, or `farspan manifests --sysctls` for all nodes.",
        ));
    }
    if !local.kernel_wireguard && !local.tun {
        findings.push(finding(
            "no-tunnel",
            "error",
            "this node has neither WireGuard in its kernel nor /dev/net/tun".to_owned(),
            "modprobe wireguard, or modprobe tun.",
        ));
    }
    findings
}

fn plan(facts: &Facts, mode: PodNetworkChoice) -> Vec<String> {
    let linux = facts.nodes.iter().filter(|node| node.os != "windows");
    let mut plan = vec![format!(
        "An agent on each of {} nodes makes the device farspan0, its keys in /var/lib/farspan, rule 5300 and table 22512, and writes its announcement into annotations of its own Node.",
        linux.count()
    )];
    plan.push(
        match mode {
            PodNetworkChoice::Own => {
                "It writes 10-farspan.conflist into the CNI folder: pods get addresses of the Node's podCIDRs, and reach all others through the mesh."
            }
            PodNetworkChoice::Existing => {
                "The CNI stays as it is and hands out pods' addresses; what goes from node to node, to podCIDRs and Nodes, takes the mesh: table 22512 comes before the main one."
            }
            PodNetworkChoice::Nodes | PodNetworkChoice::Auto => {
                "The CNI stays as it is and runs on top of the mesh; only addresses of Nodes and of the overlay are routed."
            }
        }
        .to_owned(),
    );
    plan.push(
        "A ClusterRole, and an admission policy that holds each agent to the annotations of its own Node, are installed with the kinds MeshPolicy and ExternalPeer."
            .to_owned(),
    );
    plan
}

fn command(facts: &Facts, mode: PodNetworkChoice) -> String {
    let mut command = format!("farspan manifests --pod-network {}", word(&mode));
    if let Some(address) = facts.api_addresses.first() {
        command.push_str(&format!(" --api-server {address}"));
    }
    if mode != PodNetworkChoice::Nodes && !facts.pod_cidrs.is_empty() {
        command.push_str(&format!(" --cluster-cidr {}", facts.pod_cidrs.join(",")));
    }
    command.push_str(" | kubectl apply -f -");
    command
}
