//! Whom a relay refuses. What it does for those it serves is shown in the simulated mesh.

use std::time::Duration;

use crate::net::{Net, at};
use mesh_types::message::{Message, RelayOffer};
use nat_traversal::{PathKind, PeerSpec, RelaySettings};

const SETTINGS: RelaySettings = RelaySettings {
    ports: (28_672, 29_183),
    pair_rate: 0,
    node_rate: 0,
};

/// A node, a relay that it reaches, and a peer that is not there. The relay knows of the peer where asked for.
fn trio(serves: bool, knows: bool) -> (Net, usize, usize) {
    let mut net = Net::new();
    let a = net.node("192.0.2.1", None);
    let r = net.node("192.0.2.2", None);
    let b = net.node("192.0.2.3", None);
    net.nodes[b].up = false;
    let spec = PeerSpec {
        relay_capable: true,
        ..net.spec(r, vec![net.host_candidate(r)])
    };
    let (id, now) = (net.nodes[r].id, net.now);
    net.nodes[a].traversal.upsert_peer(id, spec, now);
    net.tell(r, a);
    net.tell(a, b);
    if knows {
        net.tell(r, b);
    }
    let settings = serves.then_some(SETTINGS);
    net.nodes[r].traversal.set_relay(settings, now);
    (net, a, r)
}

#[test]
fn a_relay_serves_members_only_and_only_for_peers_it_reaches() {
    for (serves, knows, refused) in [
        (true, false, "refused-relay-peer"),
        (true, true, "refused-relay-absent"),
        (false, false, "refused-relay-off"),
        (false, true, "refused-relay-off"),
    ] {
        let (mut net, a, r) = trio(serves, knows);
        net.run(Duration::from_secs(60));
        let relay = &net.nodes[r].traversal;
        let times = relay.counters().value(refused);
        assert!((1..=12).contains(&times), "{refused}: {times} in a minute");
        assert!(relay.relay_ports().is_empty() && relay.relay_pairs().is_empty());
        let asking = &net.nodes[a].traversal;
        assert_eq!(asking.counters().value("relay-bound"), 0);
        assert_eq!(asking.relays().len(), 1);
        assert_eq!(asking.home_relays().len(), 1);
    }
}

/// Two nodes that only a relay connects, which all of them reach. Before the first one asks, the relay
/// forgets its key unless `known`. Says how many datagrams the relay sent it from then on.
fn ask_after_all(known: bool) -> (Net, [usize; 3], usize) {
    let mut net = Net::new();
    let [a, r, b] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|ip| net.node(ip, None));
    net.drop = Some(|packet| {
        let ends = [packet.source.ip(), packet.destination.ip()];
        !ends.contains(&at("192.0.2.2:1").ip())
    });
    let settings = Some(SETTINGS);
    let now = net.now;
    net.nodes[r].traversal.set_relay(settings, now);
    for end in [a, b] {
        let spec = PeerSpec {
            relay_capable: true,
            ..net.spec(r, vec![net.host_candidate(r)])
        };
        let (id, now) = (net.nodes[r].id, net.now);
        net.nodes[end].traversal.upsert_peer(id, spec, now);
        net.tell(r, end);
    }
    net.run(Duration::from_secs(3));
    if !known {
        let id = net.nodes[a].id;
        net.nodes[r].traversal.remove_peer(&id);
    }
    let since = net.now.mono;
    net.tell(a, b);
    net.tell(b, a);
    net.run(Duration::from_secs(8));
    let ip = net.nodes[a].ip;
    let sent = net.nodes[r].sent.iter();
    let told = sent.filter(|(when, to, _)| *when > since && to.ip() == ip);
    let told = told.count();
    (net, [a, r, b], told)
}

#[test]
fn who_asks_for_a_relay_with_a_key_that_it_does_not_know_gets_nothing_not_even_a_refusal() {
    // This net has no relay's ports, so the second step is in vain for members too.
    let (net, [_, r, _], told) = ask_after_all(true);
    let relay = &net.nodes[r].traversal;
    assert!(told > 0 && relay.relay_ports().len() == 2, "{told}");
    assert!(relay.counters().value("relay-offers") > 0);

    let (net, [a, r, _], told) = ask_after_all(false);
    let asking = net.nodes[a].traversal.counters();
    assert!(asking.value("relay-bind-failed") > 0, "it asked to the end");
    let relay = &net.nodes[r].traversal;
    assert!(relay.counters().value("refused-unknown-sender") > 0);
    assert_eq!(told, 0, "datagrams of the relay to it");
    assert!(relay.relay_ports().is_empty() && relay.relay_pairs().is_empty());
}

/// How many binds a node sends after its neighbour has offered this port for a peer that is not there.
fn binds_after_offer(relays: bool, port: u16) -> u64 {
    let mut net = Net::new();
    let a = net.node("192.0.2.1", None);
    let r = net.node("192.0.2.2", None);
    let b = net.node("192.0.2.3", None);
    net.nodes[b].up = false;
    net.introduce(a, r);
    net.run(Duration::from_secs(1));
    let spec = PeerSpec {
        relay_capable: relays,
        ..net.spec(r, vec![net.host_candidate(r)])
    };
    let (id, now) = (net.nodes[r].id, net.now);
    net.nodes[a].traversal.upsert_peer(id, spec, now);
    let spec = net.spec(b, Vec::new());
    let offer = Message::from(RelayOffer {
        peer: spec.keys[0].idx(),
        port,
        nonce: Some(vec![1; 16]),
    });
    let peer = net.nodes[b].id;
    net.nodes[a].traversal.upsert_peer(peer, spec, now);
    let sent = |net: &Net| net.nodes[a].traversal.counters().value("relay-binds-sent");
    let before = sent(&net);
    net.nodes[a].traversal.handle_message(&id, &offer, now);
    sent(&net) - before
}

#[test]
fn an_offer_counts_from_a_member_that_relays_and_for_a_port_that_may_be_lent() {
    assert_eq!(binds_after_offer(true, 28_700), 1);
    assert_eq!(binds_after_offer(false, 28_700), 0);
    assert_eq!(binds_after_offer(true, 53), 0);
}

#[test]
fn an_address_of_a_member_that_relays_no_longer_is_one_like_any_other() {
    for removed in [true, false] {
        let mut net = Net::new();
        let a = net.node("198.51.100.1", None);
        let r = net.node("192.0.2.2", None);
        let b = net.node("192.0.2.2", None);
        net.nodes[r].up = false;
        let (relay, peer, now) = (net.nodes[r].id, net.nodes[b].id, net.now);
        let spec = |relay_capable| PeerSpec {
            relay_capable,
            ..net.spec(r, vec![net.host_candidate(r)])
        };
        let (before, after) = (spec(true), spec(false));
        let traversal = &mut net.nodes[a].traversal;
        traversal.upsert_peer(relay, before, now);
        if removed {
            traversal.remove_peer(&relay);
        } else {
            traversal.upsert_peer(relay, after, now);
        }
        net.tell_of(a, b, Vec::new());
        net.tell(b, a);
        net.run(Duration::from_secs(1));
        let path = net.nodes[a].traversal.path(&peer).unwrap();
        assert_eq!((path.kind, path.via), (PathKind::Ipv4, None));
    }
}
