//! Claims that a reader does not believe, though the API server shows them: each with an Event, a metric and no route,
//! beside a Node whose claims are believed.

use std::time::Duration;

use mesh_types::annotations::{encode, fit};
use mesh_types::record::Features;
use mesh_types::{Announcement, DomainId, IdentitySecret, NatReport, Signed, WgSecret};
use serde_json::{Value, json};

use crate::agents::{machine, start};
use crate::cluster::{Cluster, NODES};
use crate::lab::Node;
use crate::lab::agent::PATIENCE;
use crate::lab::wait::wait_until;

/// Nodes that only show a record: nobody runs there.
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
    show(&cluster, HONEST, 2, "192.0.2.2", &Record::new(2));
    let policy = json!({"apiVersion": "farspan.io/v1alpha1", "kind": "MeshPolicy", "metadata": {"name": "default"},
        "spec": {"extraCIDRs": [{"node": HONEST, "cidrs": ["192.168.2.0/24"]}, {"node": "wide", "cidrs": ["192.168.7.0/24"]}]}});
    cluster.admin.create(POLICIES, &policy).expect("a policy");
    configure(&cluster, HONEST, "192.168.2.0/24");
    start(&mut berlin);
    let honest = [
        &pods(2)[..],
        &["192.0.2.2/32", "192.168.2.0/24"].map(str::to_owned),
    ]
    .concat();
    wait_ranges(&berlin, HONEST, &honest);
    wait_for_the_next_second(&cluster, HONEST);

    let copied = Record {
        key: 2,
        ..Record::new(3)
    };
    show(&cluster, "copycat", 3, "192.0.2.3", &copied);
    // The whole record of another.
    cluster.add_node("replayer", 4, "192.0.2.4");
    let stolen = cluster.object(&path(HONEST))["metadata"]["annotations"].clone();
    let stolen = json!({"metadata": {"annotations": own(&stolen)}});
    write(&cluster, "replayer", stolen);
    // The pods of another.
    show(&cluster, "greedy", 2, "192.0.2.5", &Record::new(5));
    let api_server = cluster.server.host.ipv4.to_string();
    show(&cluster, "king", 6, &api_server, &Record::new(6));
    // More than the policy gives.
    show(&cluster, "wide", 7, "192.0.2.7", &Record::new(7));
    configure(&cluster, "wide", "192.168.7.0/24,192.168.8.0/24");

    let wide = [
        &pods(7)[..],
        &["192.0.2.7/32", "192.168.7.0/24"].map(str::to_owned),
    ]
    .concat();
    for (node, reason, ranges) in [
        ("copycat", "duplicate-key", None),
        ("replayer", "forged", None),
        ("greedy", "overlap", Some(vec!["192.0.2.5/32".to_owned()])),
        ("king", "protected", Some(pods(6).to_vec())),
        ("wide", "policy", Some(wide)),
    ] {
        wait_refused(&cluster, &berlin, node, reason);
        match ranges {
            Some(ranges) => wait_ranges(&berlin, node, &ranges),
            None => {
                let carried = berlin.peer(node).map(|peer| ranges_of(&peer));
                assert!(
                    carried.clone().unwrap_or_default().is_empty(),
                    "{node}: {carried:?}"
                );
            }
        }
    }
    wait_ranges(&berlin, HONEST, &honest);
    // Its API server is reached as before.
    assert_eq!(berlin.metric("farspan_kubernetes_api_up"), Ok(Some(1.0)));

    // A later version of farspan in the same mesh, and one that has left this version behind.
    let versions = |protocol, number| Record {
        protocol,
        ..Record::new(number)
    };
    show(&cluster, "newer", 8, "192.0.2.8", &versions((1, 2), 8));
    let newer = [&pods(8)[..], &["192.0.2.8/32".to_owned()]].concat();
    wait_ranges(&berlin, "newer", &newer);
    show(&cluster, "alien", 9, "192.0.2.9", &versions((2, 2), 9));
    let finding = berlin.wait_finding("protocol", PATIENCE);
    let message = finding["message"].as_str().unwrap_or_default();
    assert!(message.contains("alien"), "{finding}");
}

/// A Node with the ranges of this number, its address and a record.
fn show(cluster: &Cluster, node: &str, number: u8, internal_ip: &str, record: &Record) {
    cluster.add_node(node, number, internal_ip);
    announce(cluster, node, record);
}

/// The ranges that the controller manager gives to this number.
fn pods(number: u8) -> [String; 2] {
    [
        format!("10.244.{number}.0/24"),
        format!("fd10:244:{number}::/64"),
    ]
}

/// What a Node announces: made of numbers.
struct Record {
    identity: u8,
    key: u8,
    protocol: (u8, u8),
}

impl Record {
    fn new(number: u8) -> Self {
        Self {
            identity: number,
            key: number,
            protocol: mesh_types::consts::PROTOCOL,
        }
    }
}

/// Writes a record with a valid proof, by the token of the Node's own agent.
fn announce(cluster: &Cluster, node: &str, record: &Record) {
    let system = cluster.object("/api/v1/namespaces/kube-system");
    let object = cluster.object(&path(node));
    let secret = IdentitySecret::from_bytes(&[record.identity; 32]);
    let announcement = fit(Announcement {
        domain: domain(system["metadata"]["uid"].as_str().expect("a UID")),
        identity: secret.identity(),
        key: WgSecret::from_bytes([record.key; 32]).public(),
        next_key: None,
        endpoints: Vec::new(),
        nat: NatReport::default(),
        relays: Vec::new(),
        region: None,
        features: Features::default(),
        protocol_min: record.protocol.0,
        protocol_max: record.protocol.1,
        seq: 1,
        name: Some(node.to_owned()),
        node_uid: object["metadata"]["uid"].as_str().map(str::to_owned),
    });
    let annotations = encode(&Signed::sign(announcement, &secret));
    write(
        cluster,
        node,
        json!({"metadata": {"annotations": annotations}}),
    );
}

fn write(cluster: &Cluster, node: &str, mut object: Value) {
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("Node");
    let agent = cluster.server.user(&cluster.node_token(node));
    let written = agent.apply(&path(node), &object);
    written.unwrap_or_else(|refusal| panic!("the record of {node}: {refusal}"));
}

/// A person's word on a Node.
fn configure(cluster: &Cluster, node: &str, extra_cidrs: &str) {
    let annotations = json!({"config.farspan.io/extra-cidrs": extra_cidrs});
    let written = cluster.admin.merge(
        &path(node),
        &json!({"metadata": {"annotations": annotations}}),
    );
    written.unwrap_or_else(|refusal| panic!("the annotation of {node}: {refusal}"));
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
        let seen = ranges_of(&reader.peer(peer)?);
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
