use super::facts::{Ipam, Mark, Node};
use super::*;
use crate::cli::PodNetworkChoice::{Auto, Existing, Nodes, Own};

fn node(number: u8) -> Node {
    Node {
        name: format!("n{number}"),
        ready: true,
        region: Some("eu".into()),
        os: "linux".into(),
        kernel: "6.1.0-13-amd64".into(),
        pod_cidrs: vec![format!("10.244.{number}.0/24")],
        internal_ips: vec![format!("192.0.2.{number}")],
    }
}

/// A cluster in which nothing is wrong.
fn flannel() -> Facts {
    Facts {
        api_server: "https://203.0.113.1:6443".into(),
        api_addresses: vec!["https://203.0.113.1:6443".into()],
        version: "v1.34.4".into(),
        nodes: vec![node(1), node(2)],
        cni: "Flannel (vxlan)".into(),
        ipam: Ipam {
            by: "host-local".into(),
            follows: Some(true),
            pods_inside: 4,
            ..Ipam::default()
        },
        kube_proxy: "iptables".into(),
        marks: vec![Mark {
            owner: "kube-proxy".into(),
            mark: 0x4000,
            mask: 0x4000,
        }],
        pod_cidrs: vec!["10.244.0.0/16".into()],
        service_cidrs: vec!["10.96.0.0/12".into()],
        ..Facts::default()
    }
}

fn codes(report: &Report) -> Vec<(&str, &str)> {
    let findings = report.findings.iter();
    findings
        .map(|one| (one.severity.as_str(), one.code.as_str()))
        .collect()
}

#[test]
fn a_cluster_with_flannel_is_joined_beside_it() {
    let report = judge::judge(flannel(), None, Auto);
    assert_eq!(codes(&report), []);
    assert_eq!(report.pod_network, "existing");
    assert_eq!(
        report.command,
        "farspan manifests --pod-network existing --api-server https://203.0.113.1:6443 --cluster-cidr 10.244.0.0/16 | kubectl apply -f -"
    );
    assert!(table(&report).contains("host-local: follows the nodes' podCIDRs"));
}

#[test]
fn a_cluster_without_cni_gets_farspans() {
    let mut facts = flannel();
    facts.cni = "none".into();
    facts.ipam = Ipam::default();
    assert_eq!(judge::judge(facts, None, Auto).pod_network, "own");
}

#[test]
fn default_ipam_of_calico_and_cilium_is_refused_in_existing_and_nodes_is_recommended() {
    for (cni, by) in [
        ("Calico", "calico-ipam"),
        ("Cilium", "Cilium ipam.mode=cluster-pool"),
    ] {
        let mut facts = flannel();
        facts.cni = cni.into();
        facts.ipam = Ipam {
            by: by.into(),
            follows: Some(false),
            pods_inside: 3,
            ..Ipam::default()
        };
        assert_eq!(judge::judge(facts.clone(), None, Auto).pod_network, "nodes");
        let report = judge::judge(facts, None, Existing);
        assert_eq!(codes(&report), [("error", "ipam-ignores-pod-cidrs")]);
        let said = &report.findings[0];
        assert!(said.message.contains(by), "{}", said.message);
        assert!(
            said.remedy.contains("--pod-network nodes"),
            "{}",
            said.remedy
        );
    }
}

#[test]
fn a_pod_outside_of_its_nodes_range_counts_more_than_any_configuration() {
    let mut facts = flannel();
    facts.ipam.pods_outside = 1;
    facts.ipam.example = Some("pod a has 10.9.0.1".into());
    let report = judge::judge(facts, None, Existing);
    assert!(report.findings[0].message.contains("pod a has 10.9.0.1"));
    assert_eq!(report.findings[0].severity, "error");
}

#[test]
fn what_is_in_the_way_is_told() {
    let mut facts = flannel();
    facts.version = "v1.29.9+k3s1".into();
    facts.nodes[1].internal_ips = vec!["192.0.2.1".into()];
    facts.nodes[1].pod_cidrs.clear();
    facts.nodes[1].kernel = "5.4.0".into();
    facts.marks[0].mark = 0x2000;
    facts.marks[0].mask = 0x2000;
    facts.service_cidrs = vec!["10.244.128.0/20".into()];
    facts.cilium_native = Some("10.0.0.0/16".into());
    facts.installed = Some("farspan:1".into());
    assert_eq!(
        codes(&judge::judge(facts, None, Existing)),
        [
            ("warning", "kubernetes-version"),
            ("error", "no-pod-cidrs"),
            ("error", "shared-node-address"),
            ("info", "old-kernel"),
            ("error", "ranges-overlap"),
            ("error", "mark-in-use"),
            ("warning", "cilium-masquerade"),
            ("info", "installed"),
        ]
    );
}

#[test]
fn a_second_cni_is_refused_and_below_one_nothing_is() {
    let report = judge::judge(flannel(), None, Own);
    assert_eq!(codes(&report), [("error", "second-cni")]);
    let mut facts = flannel();
    facts.ipam.follows = Some(false);
    facts.nodes[0].pod_cidrs.clear();
    assert_eq!(codes(&judge::judge(facts, None, Nodes)), []);
}

#[test]
fn what_this_node_lacks_is_told() {
    let local = Local {
        cni_file: None,
        pod_network: "own".into(),
        kernel_wireguard: false,
        tun: false,
        ip_forward: false,
        rp_filter: Some(1),
        src_valid_mark: false,
        uplink_mtu: Some(1500),
    };
    let report = judge::judge(flannel(), Some(local), Auto);
    assert_eq!(
        codes(&report),
        [
            ("warning", "forwarding-off"),
            ("warning", "rp-filter"),
            ("error", "no-tunnel"),
        ]
    );
    assert!(table(&report).contains("uplink MTU 1500"));
}
