//! What a cluster says, in any order and in any shape.

use std::collections::{BTreeMap, BTreeSet};

use mesh_types::annotations::{CONFIG_PREFIX, KEYS, RECORD_MAX, decode, encode};
use mesh_types::cluster::{ClusterEvent, Node, PodNetwork, Policy};
use mesh_types::{IpNet, PeerId, Source};
use peer_discovery::{ClusterConfig, Config, Directory};

use crate::harness::{Clock, Random, fuzz};
use crate::samples;

#[test]
fn annotations_are_a_record_or_a_sentence() {
    let domain = samples::node(1).domain;
    fuzz("annotations", |random| {
        let mut node = samples::cluster_node(2);
        for _ in 0..random.below(3) {
            spoil(random, &mut node, &KEYS.map(str::to_owned));
        }
        match decode(domain, &node) {
            Ok(Some(record)) => {
                assert!(record.verify_identity());
                let again = Node {
                    annotations: encode(&record)
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                    ..node
                };
                let size = again.annotations.iter().map(|(k, v)| k.len() + v.len());
                assert!(size.sum::<usize>() <= RECORD_MAX + KEYS.len());
                assert_eq!(decode(domain, &again), Ok(Some(record)));
                true
            }
            Ok(None) => false,
            Err(error) => {
                let sentence = error.to_string();
                assert!(sentence.len() < 1_000, "{sentence}");
                assert!(!sentence.chars().any(char::is_control), "{sentence:?}");
                false
            }
        }
    });
}

/// What there is, whatever came before.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Node>,
    policy: Option<Policy>,
    protected: BTreeSet<IpNet>,
}

#[test]
fn events_in_any_order_come_to_what_a_listing_of_the_same_comes_to() {
    let clock = Clock::new();
    fuzz("cluster", |random| {
        let mut directory = reader(clock);
        let mut model = Model::default();
        let mut now = 0;
        for _ in 0..1 + random.below(24) {
            let event = event(random, &mut model);
            directory.handle_cluster(event, clock.at(now));
            now += random.below(80) as u64;
            directory.handle_timeout(clock.at(now));
            while directory.poll_event().is_some() {}
        }
        directory.handle_timeout(clock.at(now + 50));
        check(&directory, &model);

        let mut other = reader(clock);
        other.handle_cluster(
            ClusterEvent::Protected(model.protected.clone()),
            clock.at(0),
        );
        let policy = model.policy.clone().map(Box::new);
        other.handle_cluster(ClusterEvent::Policy(policy), clock.at(0));
        let nodes = model.nodes.values().cloned().collect();
        other.handle_cluster(ClusterEvent::Listed(nodes), clock.at(0));
        other.handle_timeout(clock.at(50));
        let peers = |directory: &Directory| -> Vec<_> {
            let all = directory.peers();
            all.map(|(id, peer)| (*id, peer.name.clone(), peer.allowed_ips.clone()))
                .collect()
        };
        assert_eq!(peers(&directory), peers(&other));
        other.peers().count() > 1
    });
}

fn reader(clock: Clock) -> Directory {
    let config = Config {
        own: samples::node(1),
        own_key: samples::wg(1),
        authorities: Vec::new(),
        cluster: Some(ClusterConfig {
            node: "n1".into(),
            pod_network: PodNetwork::Existing,
        }),
    };
    let mut directory = Directory::new(config, clock.at(0));
    let domain = samples::node(1).domain;
    directory.handle_cluster(ClusterEvent::Domain(domain), clock.at(0));
    directory
}

/// Something that an API server may say. Of Nodes that were made anew and of damaged records it matters what came
/// before, so a Node's UID and its agent's annotations are what they are; listings take at most two away.
fn event(random: &mut Random, model: &mut Model) -> ClusterEvent {
    match random.below(12) {
        0..6 => {
            let node = node(random);
            model.nodes.insert(node.name.clone(), node.clone());
            ClusterEvent::Applied(Box::new(node))
        }
        6..8 => {
            let Node { name, uid, .. } = samples::cluster_node(1 + random.below(8) as u8);
            let uid = match random.below(4) {
                0 => "another".to_owned(),
                _ => {
                    model.nodes.remove(&name);
                    uid
                }
            };
            ClusterEvent::Deleted { name, uid }
        }
        8..10 => {
            for _ in 0..random.below(3) {
                model.nodes.pop_first();
            }
            for _ in 0..random.below(3) {
                let node = node(random);
                model.nodes.insert(node.name.clone(), node);
            }
            ClusterEvent::Listed(model.nodes.values().cloned().collect())
        }
        10 => {
            model.policy = (random.below(2) == 0).then(|| Policy {
                node_cidrs: ranges(random),
                pod_cidrs: ranges(random),
                extra_cidrs: [("n2".to_owned(), ranges(random))].into(),
                ..Policy::default()
            });
            ClusterEvent::Policy(model.policy.clone().map(Box::new))
        }
        _ => {
            model.protected = ranges(random).into_iter().collect();
            ClusterEvent::Protected(model.protected.clone())
        }
    }
}

/// A Node that may claim what others have.
fn node(random: &mut Random) -> Node {
    let mut node = samples::cluster_node(1 + random.below(8) as u8);
    let wishes = ["region", "force-endpoint", "extra-cidrs", "relay"];
    let wishes = wishes.map(|key| format!("{CONFIG_PREFIX}{key}"));
    match random.below(6) {
        0 => node.pod_cidrs = ranges(random),
        1 => {
            let ips = ranges(random).into_iter().map(|net| net.addr());
            node.internal_ips = ips.collect();
        }
        2 => spoil(random, &mut node, &wishes),
        _ => {}
    }
    node
}

fn ranges(random: &mut Random) -> Vec<IpNet> {
    const SOME: [&str; 12] = [
        "10.244.2.0/24",
        "10.244.3.0/25",
        "10.244.0.0/16",
        "10.244.1.9/32",
        "192.0.2.3/32",
        "192.0.2.0/24",
        "172.16.0.0/24",
        "0.0.0.0/0",
        "127.0.0.1/32",
        "10.96.0.0/12",
        "2001:db8::/64",
        "fe80::1/128",
    ];
    let some = (0..random.below(3)).map(|_| samples::net(random.pick::<&str>(&SOME)));
    some.collect()
}

fn spoil(random: &mut Random, node: &mut Node, keys: &[String]) {
    let key = random.pick(keys).clone();
    let value = node.annotations.get(&key).cloned().unwrap_or_default();
    let bytes = random.input(&[value.into_bytes()]);
    let value = String::from_utf8_lossy(&bytes).into_owned();
    node.annotations.insert(key, value);
}

/// What holds whatever was said.
fn check(directory: &Directory, model: &Model) {
    let mut ranges: Vec<(IpNet, PeerId)> = Vec::new();
    for (id, peer) in directory.peers() {
        assert_eq!(
            peer.source,
            Source::Kubernetes {
                domain: samples::node(1).domain
            }
        );
        let node = model.nodes.get(&peer.name).expect("a Node that exists");
        assert_ne!(node.name, "n1");
        for net in &peer.allowed_ips {
            assert!(net.prefix_len() > 0);
            let own = samples::cluster_node(1).pod_cidrs[0];
            let carries = model
                .nodes
                .get("n1")
                .is_some_and(|n| n.pod_cidrs.contains(&own));
            assert!(!carries || !own.contains(&net.addr()), "{net} is ours");
            let protected = |p: &&IpNet| p.contains(net) || net.contains(*p);
            assert_eq!(model.protected.iter().find(protected), None, "{net}");
            for (other, owner) in &ranges {
                let overlap = other.contains(net) || net.contains(other);
                assert!(!overlap || owner == id, "{net} and {other}");
            }
            ranges.push((*net, *id));
        }
        for net in &peer.pod_cidrs {
            assert!(node.pod_cidrs.iter().any(|claimed| claimed.trunc() == *net));
        }
    }
    for refusal in directory.conflicts() {
        assert!(!refusal.sentence.chars().any(char::is_control));
        assert!(refusal.sentence.len() < 1_000, "{}", refusal.sentence);
    }
}
