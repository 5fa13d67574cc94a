//! Claims that a reader does not believe, though the API server shows them: each with an Event, a metric and no route,
//! beside a Node whose claims are believed.

use std::time::Duration;

use mesh_types::annotations::{encode, fit};
use mesh_types::consts::PROTOCOL;
use mesh_types::record::Features;
use mesh_types::{Announcement, DomainId, IdentitySecret, NatReport, Signed, WgSecret};
use serde_json::{Value, json};

use crate::agents::{machine, start};
use crate::cluster::{Cluster, NODES};
use crate::lab::Node;
use crate::lab::agent::PATIENCE;
use crate::lab::wait::wait_until;

/// Of which everything is believed.
const HONEST: &str = "honest";
const POLICIES: &str = "/apis/farspan.io/v1alpha1/meshpolicies";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

#[test]
fn claims_of_nodes_are_refused_with_an_event_and_a_metric_and_honest_ones_are_routed() {
    let names = [
        "berlin", HONEST, "copycat", "replayer", "greedy", "king", "wide", "newer", "alien",
    ];
    let cluster = Cluster::start(&names);
    let mut berlin = machine(&cluster, cluster.lab.public_host("berlin"), 1);
    let policy = json!({"apiVersion": "farspan.io/v1alpha1", "kind": "MeshPolicy", "metadata": {"name": "default"},
        "spec": {"extraCIDRs": [{"node": HONEST, "cidrs": ["192.168.2.0/24"]}, {"node": "wide", "cidrs": ["192.168.7.0/24"]}]}});
    cluster.admin.create(POLICIES, &policy).expect("a policy");
    let honest = Claim {
        extra_cidrs: &["192.168.2.0/24"],
        ..Claim::new(HONEST, 2)
    };
    honest.show(&cluster);
    start(&mut berlin);
    wait_ranges(&berlin, HONEST, &honest.ranges());
    wait_for_the_next_second(&cluster, HONEST);

    let copied_key = Record::Own {
        key: 2,
        protocol: PROTOCOL,
    };
    let liars = [
        Claim {
            record: copied_key,
            ..Claim::new("copycat", 3)
        },
        Claim {
            record: Record::CopyOf(HONEST),
            ..Claim::new("replayer", 4)
        },
        Claim {
            pods: 2,
            ..Claim::new("greedy", 5)
        },
        Claim {
            address: cluster.server.host.ipv4.to_string(),
            ..Claim::new("king", 6)
        },
        Claim {
            extra_cidrs: &["192.168.7.0/24", "192.168.8.0/24"],
            ..Claim::new("wide", 7)
        },
    ];
    liars.iter().for_each(|liar| liar.show(&cluster));

    let left = |ranges: &[&str]| ranges.iter().map(ToString::to_string).collect();
    for (node, reason, carried) in [
        ("copycat", "duplicate-key", Vec::new()),
        ("replayer", "forged", Vec::new()),
        ("greedy", "overlap", left(&["192.0.2.5/32"])),
        ("king", "protected", pods(6).to_vec()),
        (
            "wide",
            "policy",
            [&pods(7)[..], &left(&["192.0.2.7/32", "192.168.7.0/24"])].concat(),
        ),
    ] {
        wait_refused(&cluster, &berlin, node, reason);
        wait_ranges(&berlin, node, &carried);
    }
    wait_ranges(&berlin, HONEST, &honest.ranges());
    // Its API server is reached as before.
    assert_eq!(berlin.metric("farspan_kubernetes_api_up"), Ok(Some(1.0)));

    // A later version of farspan in the same mesh, and one that has left this version behind.
    for (name, number, protocol) in [("newer", 8, (1, 2)), ("alien", 9, (2, 2))] {
        let record = Record::Own {
            key: number,
            protocol,
        };
        let claim = Claim {
            record,
            ..Claim::new(name, number)
        };
        claim.show(&cluster);
    }
    wait_ranges(&berlin, "newer", &Claim::new("newer", 8).ranges());
    let finding = berlin.wait_finding("protocol", PATIENCE);
    let message = finding["message"].as_str().unwrap_or_default();
    assert!(message.contains("alien"), "{finding}");
}

/// A Node where nobody runs, and what it claims by its object and its annotations.
struct Claim {
    name: &'static str,
    /// The number in its identity.
    identity: u8,
    /// The number in its pod ranges.
    pods: u8,
    address: String,
    record: Record,
    extra_cidrs: &'static [&'static str],
}

/// Its announcement.
enum Record {
    /// With a valid proof, by the token of the Node's own agent; `key`: the number in it.
    Own { key: u8, protocol: (u8, u8) },
    /// The annotations of another Node.
    CopyOf(&'static str),
}

impl Claim {
    /// An honest one, made of a number.
    fn new(name: &'static str, number: u8) -> Self {
        Self {
            name,
            identity: number,
            pods: number,
            address: format!("192.0.2.{number}"),
            record: Record::Own {
                key: number,
                protocol: PROTOCOL,
            },
            extra_cidrs: &[],
        }
    }

    /// Makes the Node, its record, and a person's annotation of what it carries for others.
    fn show(&self, cluster: &Cluster) {
        cluster.add_node(self.name, self.pods, &self.address);
        let annotations = match self.record {
            Record::Own { key, protocol } => self.announcement(cluster, key, protocol),
            Record::CopyOf(other) => own(&cluster.object(&path(other))["metadata"]["annotations"]),
        };
        let object =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"annotations": annotations}});
        let agent = cluster.server.user(&cluster.node_token(self.name));
        let written = agent.apply(&path(self.name), &object);
        written.unwrap_or_else(|refusal| panic!("the record of {}: {refusal}", self.name));
        if !self.extra_cidrs.is_empty() {
            let annotations = json!({"config.farspan.io/extra-cidrs": self.extra_cidrs.join(",")});
            let patch = json!({"metadata": {"annotations": annotations}});
            let written = cluster.admin.merge(&path(self.name), &patch);
            written.unwrap_or_else(|refusal| panic!("the annotation of {}: {refusal}", self.name));
        }
    }

    /// What it carries if all it claims is believed.
    fn ranges(&self) -> Vec<String> {
        let mut ranges = pods(self.pods).to_vec();
        ranges.push(format!("{}/32", self.address));
        ranges.extend(self.extra_cidrs.iter().map(ToString::to_string));
        ranges
    }

    fn announcement(&self, cluster: &Cluster, key: u8, protocol: (u8, u8)) -> Value {
        let system = cluster.object("/api/v1/namespaces/kube-system");
        let object = cluster.object(&path(self.name));
        let secret = IdentitySecret::from_bytes(&[self.identity; 32]);
        let announcement = fit(Announcement {
            domain: domain(system["metadata"]["uid"].as_str().expect("a UID")),
            identity: secret.identity(),
            key: WgSecret::from_bytes([key; 32]).public(),
            next_key: None,
            endpoints: Vec::new(),
            nat: NatReport::default(),
            relays: Vec::new(),
            region: None,
            features: Features::default(),
            protocol_min: protocol.0,
            protocol_max: protocol.1,
            seq: 1,
            name: Some(self.name.to_owned()),
            node_uid: object["metadata"]["uid"].as_str().map(str::to_owned),
        });
        json!(encode(&Signed::sign(announcement, &secret)))
    }
}

/// The ranges that the controller manager gives to this number.
fn pods(number: u8) -> [String; 2] {
    [
        format!("10.244.{number}.0/24"),
        format!("fd10:244:{number}::/64"),
    ]
}

/// The agent's keys.
fn own(annotations: &Value) -> Value {
    let pairs = annotations.as_object().expect("annotations").iter();
    let own = pairs.filter(|(key, _)| key.starts_with("farspan.io/"));
    own.map(|(key, value)| (key.clone(), value.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn wait_refused(cluster: &Cluster, reader: &Node, node: &str, reason: &str) {
    let event = format!("{EVENTS}/{node}.farspan-{reason}");
    let (event, _) = wait_until(
        &format!("an Event says {reason} of {node}"),
        PATIENCE,
        || {
            cluster
                .admin
                .get(&event)
                .map_err(|refusal| refusal.to_string())
        },
    );
    assert_eq!(event["regarding"]["name"], node);
    assert_eq!(event["type"], "Warning");
    println!("{node}: {}", event["note"]);
    let metric = format!("farspan_refused_claims_total{{reason=\"{reason}\"}}");
    wait_until(&format!("{metric} counts"), PATIENCE, || {
        match reader.metric(&metric)? {
            Some(count) if count >= 1.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Waits until a peer carries exactly these ranges, and its own overlay address.
fn wait_ranges(reader: &Node, peer: &str, expected: &[String]) {
    let mut expected = expected.to_vec();
    expected.sort();
    wait_until(&format!("{peer} carries {expected:?}"), PATIENCE, || {
        // Of whom nothing is believed is no peer.
        let seen = reader.peer(peer).map(|peer| ranges_of(&peer));
        let seen = seen.unwrap_or_default();
        if seen == expected {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
}

/// Without the overlay addresses that follow from identity and podCIDR.
fn ranges_of(peer: &Value) -> Vec<String> {
    let all = peer["allowed_ips"].as_array().into_iter().flatten();
    let text = all.filter_map(|range| range.as_str());
    let overlay = |range: &&str| {
        range.starts_with("fd") && range.ends_with("/128") || range.ends_with(".0/32")
    };
    let mut ranges: Vec<_> = text
        .filter(|range| !overlay(range))
        .map(str::to_owned)
        .collect();
    ranges.sort();
    ranges
}

/// Of two Nodes that claim one thing the older keeps it, and a Node's age is told in seconds.
fn wait_for_the_next_second(cluster: &Cluster, node: &str) {
    let created = cluster.object(&path(node))["metadata"]["creationTimestamp"].clone();
    wait_until("a second has passed", Duration::from_secs(5), || {
        let probe = cluster.admin.create(
            &format!("{NODES}?dryRun=All"),
            &crate::cluster::node("clock"),
        );
        let now =
            probe.map_err(|refusal| refusal.to_string())?["metadata"]["creationTimestamp"].clone();
        if now == created {
            Err(now.to_string())
        } else {
            Ok(())
        }
    });
}

fn domain(uid: &str) -> DomainId {
    let digits: Vec<_> = uid.bytes().filter(|byte| *byte != b'-').collect();
    let pairs = digits
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    let bytes: Vec<_> = pairs
        .map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal"))
        .collect();
    DomainId(bytes.try_into().expect("a UID has 16 bytes"))
}

fn path(node: &str) -> String {
    format!("{NODES}/{node}")
}
