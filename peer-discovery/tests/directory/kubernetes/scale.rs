//! A cluster of Kubernetes' own size limit.

use mesh_types::cluster::{ClusterEvent, Node};
use mesh_types::{IdentitySecret, IpNet, Signed};
use peer_discovery::Event;

use super::world::{CLUSTER, Hear as _, Worker, reader, worker};
use crate::common::net;

const NODES: u16 = 5_000;

/// Node number `n` of many.
fn one_of_many(n: u16) -> Worker {
    let [high, low] = n.to_be_bytes();
    let mut secret = [7; 32];
    secret[..2].copy_from_slice(&[high, low]);
    let pods: IpNet = net(&format!("10.{}.{low}.0/24", 128 + high));
    worker(9).with(|worker| {
        worker.secret = IdentitySecret::from_bytes(&secret);
        worker.key.0[..2].copy_from_slice(&[high, low]);
        worker.object = Node {
            name: format!("many-{n}"),
            uid: format!("uid-many-{n}"),
            created: worker.object.created + u64::from(n),
            pod_cidrs: vec![pods],
            internal_ips: vec![[172, 20, high, low].into()],
            ..worker.object.clone()
        };
    })
}

#[test]
fn a_listing_of_5000_nodes_is_one_decision_and_one_change_says_one_thing() {
    let mut directory = reader();
    let mut nodes: Vec<Node> = (0..NODES).map(|n| one_of_many(n).shown()).collect();
    nodes.push(worker(1).shown());
    directory.hear(ClusterEvent::Listed(nodes.clone()), 0);
    assert_eq!(directory.peers().count(), usize::from(NODES));
    assert_eq!(directory.objections(), []);
    let changed = |events: Vec<Event>| {
        let all = events.into_iter();
        all.filter(|event| matches!(event, Event::Changed(_)))
            .count()
    };
    let events = directory.drained();
    let dirty = events.iter().filter(|e| **e == Event::Dirty).count();
    assert_eq!(dirty, 1);
    assert_eq!(changed(events), usize::from(NODES));

    directory.hear(ClusterEvent::Listed(nodes), 1);
    assert_eq!(directory.drained(), [], "the same again says nothing");

    let mut roamed = one_of_many(77);
    roamed.seq += 1;
    roamed.number = 10;
    directory.apply(&roamed);
    let events = directory.drained();
    assert_eq!(events, [Event::Changed(roamed.id()), Event::Dirty]);

    let mut labelled = roamed.clone();
    labelled.object.region = Some("moved".into());
    directory.apply(&labelled);
    let events = directory.drained();
    assert_eq!(events, [Event::Changed(roamed.id()), Event::Dirty]);

    let saved = mesh_types::State {
        cluster: Some(directory.saved()),
        ..Default::default()
    };
    let bytes = saved.encode().len() / usize::from(NODES);
    assert!(bytes < 320, "{bytes} bytes a Node on disk");
}

#[test]
fn more_nodes_than_there_is_room_for_are_named() {
    let mut directory = reader();
    let bare = |n: u16| Node {
        annotations: Default::default(),
        ..one_of_many(n).object
    };
    let nodes: Vec<Node> = (0..10_002).map(bare).collect();
    directory.hear(ClusterEvent::Listed(nodes), 0);
    assert_eq!(directory.cluster_nodes().count(), peer_discovery::NODES_MAX);
    let sentence = "2 Nodes find no room: a mesh holds at most 10000";
    assert!(directory.objections().iter().any(|o| o.2 == sentence));
}

#[test]
fn a_record_of_another_cluster_is_not_one_of_this() {
    let mut record = one_of_many(1).announce();
    assert_eq!(record.domain, CLUSTER);
    record.domain.0[0] ^= 1;
    let one = one_of_many(1);
    let signed = Signed::sign(record, &one.secret);
    let mut node = one.object.clone();
    let written = mesh_types::annotations::encode(&signed).into_iter();
    node.annotations
        .extend(written.map(|(key, value)| (key.to_owned(), value)));
    let mut directory = reader();
    directory.hear(ClusterEvent::Listed(vec![node]), 0);
    assert!(!directory.has(&one));
}
